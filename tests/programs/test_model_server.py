"""A real model server, an ONNX model behind uvicorn, kept by all workers of a node."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gc_warm import ExternalServer, MockExecutor, ProcessStartError, WarmExecutor
from tests.testing.backends import engine_config

pytestmark = pytest.mark.programs

SERVER = str(Path(__file__).parents[1] / "executables" / "onnx_server.py")
WEIGHTS = [[1.0, 2.0], [3.0, 4.0]]

MODULE = """
import json, sys
from gc_warm import ExternalServer

PLACES = {{"socket": ["--uds", "{{socket}}"], "port": ["--port", "{{port}}"]}}
models = {{
    place: ExternalServer(
        [sys.executable, {server!r}, {model!r}, *words], ready="/health", scope="node"
    )
    for place, words in PLACES.items()
}}

def predict(place, x):
    with models[place].connect() as address:
        connection = address.http()
        connection.request("POST", "/predict", json.dumps({{"x": x}}))
        reply = json.loads(connection.getresponse().read())
        connection.close()
        return models[place].pid, reply["y"]
"""


@pytest.fixture
def onnx() -> Any:
    """The library with which models are made; the extra `dev` has it, and what else is needed."""
    return pytest.importorskip("onnx")


@pytest.fixture
def model(onnx: Any, tmp_path: Path) -> Path:
    """The model ``y = x @ WEIGHTS``, as a file."""
    import numpy

    helper = onnx.helper
    kind = onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(numpy.array(WEIGHTS, dtype=numpy.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
        [weights],
    )
    path = tmp_path / "product.onnx"
    # the newest that all supported versions of the runtime read
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.engine
def test_all_workers_of_a_node_use_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text(MODULE.format(server=SERVER, model=str(model)))
    monkeypatch.syspath_prepend(tmp_path)
    predict = importlib.import_module("my_model").predict
    config = engine_config(2, f"export PYTHONPATH={shlex.quote(str(tmp_path))}:$PYTHONPATH")

    with WarmExecutor(MockExecutor(config=config)) as executor:
        for place in ("socket", "port"):
            futures = [executor.submit(predict, place, [[1, 1], [0, n]]) for n in range(40)]
            answers = [future.result(120) for future in futures]
            assert [y for _, y in answers] == [[[4, 6], [3 * n, 4 * n]] for n in range(40)]
            assert len({server for server, _ in answers}) == 1

            states = Counter(future.warmth.state for future in futures)
            assert states.keys() == {"cold", "warm"}
            assert states["cold"] <= 2
            (load, *_) = [load for future in futures for load in future.warmth.loads]
            assert load.name.endswith("[node]")


@pytest.mark.usefixtures("onnx")
def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("nonsense")
    command = [sys.executable, SERVER, str(tmp_path / "broken.onnx"), "--uds", "{socket}"]
    with pytest.raises(ProcessStartError, match="exit status 1 before it was ready") as failure:
        ExternalServer(command, ready="/health").start()
    assert "onnxruntime" in str(failure.value)
