"""The hooks in a manager's own process, and who ends with whom."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import programs
import psutil
import pytest
import tasks

from gc_warm import MockExecutor
from gc_warm.hooks import STARTUP, registry
from tests.support import has_ended, remote_text, wait_until
from tests.testing.backends import engine_config

UPSTREAM = Path(__file__).parents[1] / "upstream" / "helper_death.py"
HELPER_DEATH = "multiprocessing helper of this manager, process {}, has ended with exit code -9"

MANAGER = """
import multiprocessing.managers, os, signal, sys, threading, time

if "slow" in sys.argv:  # in the helper, too
    serve = multiprocessing.managers.Server.serve_forever
    multiprocessing.managers.Server.serve_forever = lambda self: (time.sleep(1), serve(self))

if __name__ == "__main__":
    # as Parsl does
    helper = multiprocessing.get_context("spawn").Manager()
    print(helper._process.pid, flush=True)
    input()
    if "kill" in sys.argv:
        os.kill(helper._process.pid, signal.SIGKILL)
        threading.Event().wait(60)
"""
"""A program that Parsl's manager is taken for, and of which some lines are."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "process_worker_pool.py"
    path.write_text(MANAGER)
    return path


@contextmanager
def start(script: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, script, *arguments],
        env={**os.environ, "PYTHONPATH": STARTUP, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # or a test that fails would wait for it


with_tested_parsl = pytest.mark.skipif(
    bool(registry.hook("helper_watch").why_not()),
    reason="hooks leave this Parsl alone",
)


@with_tested_parsl
def test_manager_ends_when_its_helper_is_killed(script: Path) -> None:
    with start(script, "kill") as process:
        said, complaints = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert HELPER_DEATH.format(said.strip()) in complaints


@pytest.mark.engine
def test_manager_that_ends_in_order_says_nothing(script: Path) -> None:
    with start(script) as process:
        _, complaints = process.communicate("\n", timeout=60)
    assert (process.returncode, complaints) == (0, "")


@pytest.mark.engine
@pytest.mark.parametrize("options", [(), ("slow",)], ids=["serves", "is yet to serve"])
def test_helper_ends_when_its_manager_is_killed(script: Path, options: tuple[str, ...]) -> None:
    with start(script, *options) as process:
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        process.kill()
        wait_until(lambda: has_ended(helper), "the helper has ended")


@pytest.mark.engine
def test_switch_leaves_the_manager_as_it_is(script: Path, tmp_path: Path) -> None:
    with start(script, GC_WARM_DISABLE="helper_watch", TMPDIR=str(tmp_path)) as process:
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        os.kill(helper, signal.SIGKILL)
        _, complaints = process.communicate("\n", timeout=60)
    assert "gc_warm" not in complaints


def engine(*options: str) -> MockExecutor:
    """The real engine with two workers, and with the hooks unless there are no options."""
    line = f'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {" ".join(options)})"'
    return MockExecutor(config=engine_config(2, *[line] * bool(options)))


class Family:
    """A manager of an engine, and all that descends from it."""

    def __init__(self, executor: MockExecutor, folder: Path) -> None:
        folder.mkdir()
        futures = [executor.submit(tasks.meet, str(folder), 2) for _ in range(2)]
        self.workers = [psutil.Process(future.result(120)[1]) for future in futures]

        (manager,) = {worker.parent() for worker in self.workers}
        assert manager is not None
        self.manager = manager
        self.descendants = manager.children(recursive=True)

        spawned = [each for each in self.descendants if each.cmdline()[-1].endswith("-fork")]
        self.helper = min(spawned, key=psutil.Process.create_time)
        assert self.helper not in self.workers

    def wait_for_end(self) -> None:
        for process in (self.manager, *self.descendants):
            wait_until(partial(has_ended, process.pid), f"{process} has ended")


def logs(executor: MockExecutor, name: str) -> list[Path]:
    runner = executor._mock_client.runner()
    folder = Path(runner._engine._folder)  # type: ignore[attr-defined]
    return sorted(folder.rglob(name))


def loses_helper(options: tuple[str, ...], folder: Path) -> str:
    """Kill the helper under a busy worker; return the log of its manager when all is well again."""
    with engine(*options) as executor:
        family = Family(executor, folder / "meeting")
        mark = folder.name
        _, started = executor.submit(programs.start, mark).result(120)
        (log,) = logs(executor, "manager.log")

        busy = executor.submit(tasks.for_ever, str(folder / "busy"))
        wait_until((folder / "busy").exists, "a worker is busy")
        family.helper.kill()
        assert "ManagerLost" in remote_text(busy)

        family.wait_for_end()
        wait_until(lambda: all(map(has_ended, started)), "the programs have ended")
        said = log.read_text(errors="replace")
        replacement = Family(executor, folder / "second meeting")
        assert replacement.manager != family.manager
    return said.replace(str(family.helper.pid), "{}")


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Any]]:
    """All that waits for lost managers to be replaced, at the same time."""
    hook, stock = (tmp_path_factory.mktemp(name) for name in ("hook", "stock"))
    with ThreadPoolExecutor(3) as pool:
        return {
            "upstream": pool.submit(
                subprocess.run,
                [sys.executable, str(UPSTREAM)],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=300,
            ),
            "hook": pool.submit(loses_helper, ("json",), hook),
            "stock": pool.submit(loses_helper, (), stock),
        }


@pytest.mark.engine
def test_stock_manager_without_helper_takes_tasks_that_never_end(
    side_by_side: dict[str, Future[Any]],
) -> None:
    """The reproduction for upstream, on this very Parsl.

    When this fails, the fault has been mended there.
    """
    run = side_by_side["upstream"].result()
    assert run.returncode == 0, run.stdout
    versions = f"Python {platform.python_version()}, Parsl {importlib.metadata.version('parsl')}"
    assert f"{versions}: the manager's multiprocessing helper was killed; " in run.stdout
    assert "a task has not ended, the manager is there" in run.stdout


@pytest.mark.engine
def test_block_whose_manager_lost_its_helper_is_replaced(
    side_by_side: dict[str, Future[Any]],
) -> None:
    log = side_by_side["hook"].result()
    assert HELPER_DEATH in log


@pytest.mark.engine
def test_stand_in_replaces_it_where_no_hook_does(side_by_side: dict[str, Future[Any]]) -> None:
    log = side_by_side["stock"].result()
    assert "Failed to forward monitoring message" in log
    assert HELPER_DEATH not in log


@pytest.mark.engine
@pytest.mark.parametrize("options", [("json",), ("--survive-idle-kill", "json")])
def test_killed_manager_takes_workers_with_results_along(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """A result of which the pipe holds a part only, and one that waits for the first."""
    gate = tmp_path / "gate"
    with engine(*options) as executor:
        family = Family(executor, tmp_path / "meeting")
        lost = [executor.submit(tasks.wait_and_return, str(gate), 900_000) for _ in range(2)]
        worker_logs = logs(executor, "worker_?.log")
        wait_until(lambda: counts(worker_logs, "Received") == [2, 2], "both workers are busy")

        family.manager.suspend()
        gate.touch()
        wait_until(lambda: counts(worker_logs, "Completed") == [2, 2], "both have a result")
        wait_until(lambda: all(map(sleeps, family.workers)), "neither gets rid of it")
        family.manager.kill()

        family.wait_for_end()
        assert all(future.exception(120) is not None for future in lost)


def counts(worker_logs: list[Path], word: str) -> list[int]:
    return [log.read_text().count(f"{word} executor task") for log in worker_logs]


def sleeps(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_SLEEPING
