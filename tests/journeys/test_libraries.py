"""Libraries that people use beside Globus Compute, on a MockExecutor and through a WarmExecutor.

They come with the extra "dev", so that these tests have the mark of those that need more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk import Executor
from parsl import DataFlowKernel, python_app
from parsl.config import Config
from parsl.executors import GlobusComputeExecutor

from gc_warm import MockExecutor, WarmExecutor, functions
from tests.support import MODULES, client_environment

pytestmark = pytest.mark.engine


@contextmanager
def mock() -> Iterator[MockExecutor]:
    with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
        yield executor


@contextmanager
def warm() -> Iterator[WarmExecutor]:
    with WarmExecutor(MockExecutor(workers=1, pythonpath=[MODULES])) as executor:
        yield executor


@pytest.fixture(params=[mock, warm])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    make: Callable[[], Any] = request.param
    with make() as executor:
        yield executor


def test_proxystore_results_stay_lazy(executor: Executor, tmp_path: Path) -> None:
    import lazy_tasks
    from proxystore.proxy import Proxy, is_resolved

    name = uuid.uuid4().hex
    results = [
        executor.submit(lazy_tasks.proxied, name, str(tmp_path), number).result(120)
        for number in range(2)
    ]
    assert [type(result) for result in results] == [Proxy, Proxy]
    assert not any(is_resolved(result) for result in results)
    assert results == [{"number": 0, "calls": 1}, {"number": 1, "calls": 2}]


def test_proxystore_arguments_are_fetched_on_the_worker(executor: Executor, tmp_path: Path) -> None:
    import lazy_tasks
    from proxystore.connectors.file import FileConnector
    from proxystore.proxy import is_resolved
    from proxystore.store import Store

    with Store(uuid.uuid4().hex, FileConnector(str(tmp_path))) as store:
        numbers = store.proxy([1, 2, 3], populate_target=False)
        assert executor.submit(lazy_tasks.total, numbers).result(120) == 6
        assert not is_resolved(numbers)


def test_parsl_apps(executor: Executor, tmp_path: Path) -> None:
    """Parsl checks the class of its executor, and asks for private methods of it at the end."""
    config = Config(
        executors=[GlobusComputeExecutor(executor)],
        run_dir=str(tmp_path),
        usage_tracking=0,
        initialize_logging=False,
    )
    with DataFlowKernel(config) as dfk:
        app = python_app(functions.count, dfk)
        assert [app().result(120) for _ in range(3)] == [1, 2, 3]
    if isinstance(executor, WarmExecutor):
        assert executor.report().calls == 3


@pytest.mark.parametrize("kind", ["mock", "warm"])
def test_academy_agents(kind: str) -> None:
    """In a process of its own, since Academy leaves connections to the garbage collector."""
    script = str(Path(__file__).with_name("academy_client.py"))
    run = subprocess.run(
        [sys.executable, script, kind],
        env=client_environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    assert json.loads(run.stdout) == [[1, 2, 3], [4, 5, 6]], "the second agent finds what is warm"
