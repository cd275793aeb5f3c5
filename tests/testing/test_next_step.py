"""The line that the stand-ins add to a task's error, under the text of a real endpoint."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import shapes
from globus_compute_sdk.errors import SerializationError, TaskExecutionFailed
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect

from gc_warm import MockExecutor, warm
from gc_warm.testing import next_step

SOURCES = {
    "name": "def task():\n    return settings\n",
    "module": "def task():\n    import client_only_module\n",
    "nowhere": "def task():\n    import no.such.module\n",
    "inside": "def task():\n    import json.no_such\n",
    "installed": "def task():\n    import installed_here_only\n",
    "result": "def task():\n    return (letter for letter in 'abc')\n",
    "large": "def task():\n    return bytes(10_000_000)\n",
    "own": "def task():\n    raise LookupError('mine')\n",
}
STEPS = {
    "name": "'settings' is not there where the function ran: .* define 'settings' in its body, or",
    "module": "the workers have nothing of this client's import path, where 'client_only_module' ",
    "nowhere": "the workers cannot import 'no', and neither can this client: install it, or ",
    "inside": "the workers have 'json', and no 'no_such' in it: ",
    "installed": "'installed_here_only' is installed here, and not where the workers are: install",
    "result": r"its result cannot be sent \(TypeError: cannot pickle 'generator' object\): return",
    "large": r"its result cannot be sent \(\d+ bytes of text, where 10485760 is the limit\)",
    "own": None,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_error_ends_with_the_next_step(
    executor: MockExecutor, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (tmp_path / "client_only_module.py").touch()
    (installed / "installed_here_only.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(installed)
    task = executor.register_source_code(f"# {executor.task_group_id}\n{SOURCES[kind]}", "task")
    error: Any = executor.submit_to_registered_function(task).exception(120)
    assert isinstance(error, TaskExecutionFailed)
    assert "gc_warm: " not in error.remote_data, "what a real endpoint sends stays as it is"

    stock = str(TaskExecutionFailed(error.remote_data)).rstrip()
    step = STEPS[kind]
    if step is None:
        assert str(error).rstrip() == stock
        return

    text, line = str(error).rsplit("\n\n", 1)
    assert text == stock
    assert line.startswith("gc_warm: ")
    assert "\n" not in line
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert re.search(step, line), line
    if kind == "module":
        assert str(tmp_path) in line
        assert ("worker_init" in line) != ("pass pythonpath=[" in line)


@pytest.mark.parametrize("client", ["spawned"], indirect=True)
def test_submitted_warm_function_is_told_from_others(executor: MockExecutor) -> None:
    error = executor.submit(shapes.unsendable_state).exception(120)
    assert "a @warm function returns its state, which cannot be sent (TypeError: " in str(error)
    assert executor.submit(shapes.warm_itself).exception(120) is None


@pytest.mark.parametrize("client", ["spawned"], indirect=True)
def test_warm_function_that_cannot_be_registered(executor: MockExecutor) -> None:
    before = executor.serializer
    executor.serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    with pytest.raises(SerializationError, match="submit a function that imports it in its body"):
        executor.submit(shapes.warm_itself)
    executor.serializer = before


def test_state_is_known_without_an_import() -> None:
    @warm
    def table() -> int:
        return 1

    assert next_step.holds_state(table)
    assert not next_step.holds_state(len)
