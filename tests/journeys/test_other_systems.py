"""The same warmable modules, unchanged, in other systems that keep their worker processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import logbook
import pytest
from parsl import DataFlowKernel, python_app
from parsl.config import Config
from parsl.executors import GlobusComputeExecutor, HighThroughputExecutor
from parsl.executors.base import ParslExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

from gc_warm import MockExecutor, functions
from tests.support import EXPORT_MODULES, MODULES

Submit = Callable[..., Future[Any]]


def counts_and_notes(submit: Submit, path: Path) -> list[list[int]]:
    """Return what three calls of each of two warmable modules return."""
    calls = [(functions.count, ()), (logbook.note, (str(path),))]
    return [
        [submit(function, *arguments).result(120) for _ in range(3)]
        for function, arguments in calls
    ]


@pytest.fixture(scope="module")
def tracker() -> None:
    """Start Python's helper of spawned pools, which it keeps: no test leaves it behind then."""
    resource_tracker.ensure_running()


@pytest.mark.usefixtures("tracker")
def test_process_pool_executor(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        assert counts_and_notes(pool.submit, tmp_path / "logbook") == [[1, 2, 3], [1, 2, 3]]
    assert (tmp_path / "logbook").read_text() == "loaded\ntorn down after 3\n"


def in_parsl(executor: ParslExecutor, tmp_path: Path) -> list[list[int]]:
    """Return what the three calls return as Parsl apps."""
    config = Config(
        executors=[executor],
        run_dir=str(tmp_path / "runinfo"),
        usage_tracking=0,
        initialize_logging=False,
    )
    with DataFlowKernel(config) as dfk:

        def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            future: Future[Any] = python_app(function, dfk)(*arguments)
            return future

        return counts_and_notes(submit, tmp_path / "logbook")


def test_parsl_on_a_mock_executor(tmp_path: Path) -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
        assert in_parsl(GlobusComputeExecutor(executor), tmp_path) == [[1, 2, 3], [1, 2, 3]]
    assert (tmp_path / "logbook").read_text() == "loaded\ntorn down after 3\n"


@pytest.mark.engine
def test_parsl_high_throughput_executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    # its manager leaves an empty folder where temporary files are
    environment = f"{EXPORT_MODULES} TMPDIR={tmp_path}"
    # Pip's way to start Parsl's two scripts does not work where the environment's path has a blank.
    interchange = os.path.join(os.path.dirname(sys.executable), "interchange.py")
    pool = "python3 -m parsl.executors.high_throughput.process_worker_pool"

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=0.01,
        provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1, worker_init=environment),
        interchange_launch_cmd=[sys.executable, interchange],
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", pool),
    )
    assert in_parsl(executor, tmp_path) == [[1, 2, 3], [1, 2, 3]]
