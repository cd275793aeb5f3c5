"""The gate: a manager asks for tasks once its workers have preloaded, whatever happens then."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from multiprocessing.managers import DictProxy
from multiprocessing.queues import Queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import preloaded
import psutil
import pytest
import tasks

from gc_warm import MockExecutor
from gc_warm.hooks import boot, gate, installing, registry
from gc_warm.worker import deadline
from tests.support import has_ended, wait_until
from tests.testing.backends import engine_config

HOOKS = ("preload", "preload_node", "gate")
MESSAGE = {"type": "registration", "worker_count": 2, "max_capacity": 3}


class Marks(dict[str, object]):
    """A manager's dictionary of tasks in progress, without its process."""

    __class__ = DictProxy  # type: ignore[assignment]


class Outgoing(queue.Queue[bytes]):
    """A manager's queue of results, without its pipe."""

    __class__ = Queue  # type: ignore[assignment]


def make_manager(**attributes: object) -> Any:
    """A manager with two workers, as the hook sees it."""
    known = {
        "worker_count": 2,
        "drain_time": float("inf"),
        "_stop_event": threading.Event(),
        "_tasks_in_progress": Marks(),
        "pending_result_queue": Outgoing(),
        "create_reg_message": lambda: dict(MESSAGE),
    }
    return SimpleNamespace(**(known | attributes))


def communicator(made: object) -> Any:
    return SimpleNamespace(_target=SimpleNamespace(__self__=made))


@pytest.fixture(autouse=True)
def no_thread_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gate, "_WATCH_INTERVAL", 0.001)
    monkeypatch.setattr(gate, "_HELPER_LOSS", 0.001)
    monkeypatch.setattr(deadline, "time_left", lambda: None)
    yield
    for thread in threading.enumerate():
        if thread.name == "gc_warm-gate":
            thread.join()


def test_capacity_is_announced_when_all_are_ready(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = make_manager()
    marks = made._tasks_in_progress
    gate._shut(communicator(made))
    assert made.create_reg_message() == MESSAGE | {"max_capacity": 0}

    marks[1] = "a task"
    marks[boot.ready_mark(0)] = True
    marks["gc_warm preload 1"] = "my_model"
    wait_until(lambda: "no tasks are asked for until 2 workers" in caplog.text, "it is shut")
    assert made.pending_result_queue.empty()

    marks[boot.ready_mark(1)] = True
    assert pickle.loads(made.pending_result_queue.get(timeout=120)) == MESSAGE
    assert "ready 2: tasks are asked for after " in caplog.text


@pytest.mark.parametrize(
    ("bound", "drain_period", "left"),
    [(0.01, float("inf"), None), (1200, 0.1, None), (1200, -5, 9), (1200, 3600, 0.1)],
    ids=["bound", "drains", "drained", "job ends"],
)
def test_gate_opens_in_time_without_them(
    bound: float,
    drain_period: float,
    left: float | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gate, "BOUND", bound)
    monkeypatch.setattr(deadline, "time_left", lambda: left)
    made = make_manager(drain_time=time.time() + drain_period)
    made._tasks_in_progress[boot.ready_mark(0)] = True
    gate._shut(communicator(made))
    made.create_reg_message()
    assert pickle.loads(made.pending_result_queue.get(timeout=120)) == MESSAGE
    (record,) = caplog.records
    assert record.getMessage().endswith(" s, although there are workers that have not preloaded: 1")


def test_gate_opens_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    made = make_manager()
    made._tasks_in_progress.keys = partial(open, "/no/such/file")
    gate._shut(communicator(made))
    assert made.create_reg_message()["max_capacity"] == 0
    assert pickle.loads(made.pending_result_queue.get(timeout=120)) == MESSAGE
    (record,) = caplog.records
    assert record.getMessage().startswith("tasks are asked for: who is ready cannot be seen any ")


@pytest.mark.parametrize(
    "other",
    [
        {"worker_count": "2"},
        {"_tasks_in_progress": {}},
        {"pending_result_queue": queue.Queue()},
        {"create_reg_message": lambda: {"type": "registration", "capacity": 3}},
    ],
    ids=["number", "marks", "queue", "message"],
)
def test_other_manager_is_left_alone(
    other: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    made = make_manager(**other)
    expected = made.create_reg_message()
    gate._shut(communicator(made))
    assert made.create_reg_message() == expected
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert made.pending_result_queue.empty()


def test_manager_that_ends_asks_for_nothing() -> None:
    made = make_manager()
    gate._shut(communicator(made))
    made.create_reg_message()
    made._stop_event.set()
    wait_until(lambda: "gc_warm-gate" not in {each.name for each in threading.enumerate()}, "ended")
    assert made.pending_result_queue.empty()


@pytest.mark.parametrize(
    ("preload", "disabled", "version", "said"),
    [
        ("my_model", "", "2026.10.5", ""),
        ("", "", "2026.9.28", ""),
        ("my_model", "gate", "2026.9.28", ""),
        ("my_model", "preload", "2026.9.28", ""),
        (
            "my_model",
            "",
            "2026.9.28",
            "gate is not done in this manager, which is as it is without",
        ),
    ],
)
def test_install_is_for_preloads_and_known_versions(
    preload: str,
    disabled: str,
    version: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stock = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", stock)
    monkeypatch.setattr(registry, "HOOKS", [registry.hook(each) for each in HOOKS])
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    monkeypatch.setenv(boot.PRELOAD, preload)
    monkeypatch.setenv("GC_WARM_DISABLE", disabled)

    installing.install("manager")
    printed = capsys.readouterr().err
    assert printed.count("\n") == bool(said)
    assert said in printed
    is_done = bool(preload) and not disabled and not said
    assert (threading.Thread.start is not stock) == is_done


class Nodes:
    """Blocks of one node each, on this machine, whose preload waits to be let."""

    def __init__(self, executor: MockExecutor, folder: Path) -> None:
        self.executor = executor
        self.folder = folder
        runner: Any = executor._mock_client.runner()
        self._engine = runner._engine
        self.htex: Any = self._engine._engine.executor

    def await_preload(self, block: int, rank: int = 0) -> int:
        """Wait until a worker preloads and its manager is known, and return its process."""
        begun = self.folder / f"begun-{block}-{rank}"
        wait_until(begun.exists, "the worker preloads")
        wait_until(lambda: str(block) in self.tasks(), "its manager is known")
        return int(begun.read_text())

    def tasks(self) -> dict[str, int]:
        """Return the numbers of tasks that managers have been given, by their blocks."""
        return {each["block_id"]: each["tasks"] for each in self.htex.connected_managers()}

    def log(self, block: int | str) -> str:
        found = Path(self._engine._folder).rglob(f"block-{block}/*/manager.log")
        return "".join(log.read_text() for log in found)

    def let(self) -> None:
        (self.folder / "let").touch()

    def place(self) -> Future[tuple[str, str, bool]]:
        return self.executor.submit(preloaded.place)


@contextmanager
def nodes(folder: Path, number: int = 1, drain: str = "", **variables: str) -> Iterator[Nodes]:
    exports = " ".join(f"{name}={value}" for name, value in {"GATE": folder, **variables}.items())
    line = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot preloaded:when_let)"'
    config = engine_config(number, f"export {exports}", line)
    config = config.replace("max_blocks: 1", "max_blocks: 2")
    config = config.replace("heartbeat_threshold: 5", f"heartbeat_threshold: 5{drain}")
    with MockExecutor(config=config) as executor:
        yield Nodes(executor, folder)


@pytest.mark.engine
def test_preloading_node_is_given_no_task(tmp_path: Path) -> None:
    with nodes(tmp_path) as made:
        assert made.place().result(120) == ("0", "0", True)
        made.htex.scale_out_facade(1)
        made.await_preload(1)

        # a stock interchange gives every other of them to the node that preloads
        assert {made.place().result(120)[0] for _ in range(40)} == {"0"}

        begun = tmp_path / "begun"
        done = tmp_path / "done"
        busy = made.executor.submit(tasks.begin_and_wait, str(begun), str(done))
        wait_until(begun.exists, "the first node is busy")
        waiting = made.place()
        wait_until(lambda: made.htex.outstanding() == 2, "another task waits")
        assert made.tasks() == {"0": 1, "1": 0}
        assert "no tasks are asked for until 1 workers have preloaded" in made.log(1)

        made.let()
        assert waiting.result(120) == ("1", "0", True)
        assert "ready 1: tasks are asked for after " in made.log(1)
        done.touch()
        busy.result(120)


@pytest.mark.engine
def test_worker_killed_in_its_preload_opens_the_gate(tmp_path: Path) -> None:
    with nodes(tmp_path, number=2, HOLDS="1") as made:
        waiting = made.place()
        made.await_preload(0, rank=1)
        os.kill(made.await_preload(0), signal.SIGKILL)
        wait_until(lambda: "Worker 0 has been restarted" in made.log(0), "it is replaced")
        assert "tasks are asked for" not in made.log(0).replace("no tasks are asked for", "")

        made.let()
        _, rank, has_loaded = waiting.result(120)
        assert has_loaded == (rank == "1")
        assert "ready 2: tasks are asked for after " in made.log(0)


@pytest.mark.engine
@pytest.mark.parametrize("killed", ["manager", "helper"])
def test_manager_lost_in_the_preload_loses_no_task(tmp_path: Path, killed: str) -> None:
    """The manager, or the process that keeps the marks, without which the manager ends, too."""
    with nodes(tmp_path, HOLDS="1") as made:
        made.htex.block_error_handler = lambda *_: None
        waiting = made.place()
        worker = made.await_preload(0)
        process = psutil.Process(worker).parent()
        assert process is not None
        if killed == "helper":
            (process,) = (
                child
                for child in process.children()
                if "--multiprocessing-fork" in child.cmdline() and child.pid != worker
            )
        process.kill()

        made.await_preload(1)
        made.let()
        assert waiting.result(120) == ("1", "0", True)
        wait_until(lambda: has_ended(worker), "the worker has ended, too")


@pytest.mark.engine
def test_scale_in_during_the_preload_is_no_failure(tmp_path: Path) -> None:
    with nodes(tmp_path, HOLDS="1") as made:
        worker = made.await_preload(0)
        assert made.htex.scale_in_facade(1) == ["0"]
        wait_until(lambda: has_ended(worker), "the worker has ended")

        waiting = made.place()
        made.await_preload(1)
        made.let()
        assert waiting.result(120) == ("1", "0", True)
        assert not made.htex.bad_state_is_set


@pytest.mark.engine
def test_node_that_drains_still_has_tasks(tmp_path: Path) -> None:
    """Its gate opens after half of the time that it has."""
    with nodes(tmp_path, drain="\n  drain_period: 12", HOLDS="1") as made:
        waiting = made.place()
        opened = "although there are workers that have not preloaded: 0"
        wait_until(lambda: opened in made.log("*"), "the gate is open")
        wait_until(lambda: 1 in made.tasks().values(), "the task is there")
        made.let()
        assert waiting.result(120)[2]
        wait_until(lambda: "process_worker_pool ran for " in made.log("*"), "the node has drained")


@pytest.mark.engine
def test_worker_that_is_never_ready_does_not_keep_tasks(tmp_path: Path) -> None:
    """The gate opens for the others, here after half of what its job has left."""
    with nodes(tmp_path, number=2, HANGS="1", GC_WARM_SECONDS_LEFT="8") as made:
        assert made.place().result(120) == ("0", "0", True)
        assert "although there are workers that have not preloaded" in made.log(0)
