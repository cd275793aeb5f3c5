"""The engine behind MockExecutor: what it does when parts of it are lost, slow, or never come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import tasks
from parsl.executors.errors import BadStateException

from gc_warm import MockExecutor
from gc_warm.local import engine as engine_module
from gc_warm.local import startup_diagnosis, worker_main
from gc_warm.local.engine import EngineRunner
from tests import roles
from tests.support import EXPORT_MODULES, client_environment, remote_text, wait_until

pytestmark = pytest.mark.engine

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {workers}
  cores_per_worker: 0.01
  address: 127.0.0.1
  heartbeat_period: 1
  heartbeat_threshold: 5
  block_error_handler: false
  job_status_kwargs: {{strategy_period: 0.5, max_idletime: 600}}
  provider:
    type: LocalProvider
    init_blocks: {blocks}
    max_blocks: {blocks}
    worker_init: |
      {export_modules}
      {environment}
"""


def engine(environment: str = "", *, workers: int = 1, blocks: int = 1) -> MockExecutor:
    return MockExecutor(
        config=CONFIG.format(
            workers=workers, blocks=blocks, environment=environment, export_modules=EXPORT_MODULES
        )
    )


def test_second_block_that_fails_is_no_verdict_on_a_first_that_is_slow(tmp_path: Path) -> None:
    """Both run the same lines: the first to make the folder sleeps, the other one ends."""
    first = tmp_path / "first"
    ready = tmp_path / "ready"
    lines = (
        f"mkdir {first} 2>/dev/null && sleep 8 || {{ [ -e {ready} ] || exit 3; }}; touch {ready}"
    )
    with engine(lines, blocks=2) as executor:
        futures = [executor.submit(tasks.same, number) for number in range(2)]
        assert [future.result(120) for future in futures] == [0, 1]


def test_environment_that_breaks_after_a_first_block_worked_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    lines = f"[ ! -e {broken} ] || {{ echo it is broken now >&2; exit 3; }}"
    with engine(lines) as executor:
        worker = psutil.Process(executor.submit(os.getpid).result(120))
        broken.touch()
        manager = worker.parent()
        assert manager is not None
        manager.kill()
        told = remote_text(executor.submit(tasks.same, 1), 90)
        # it was given to the manager that is gone, before that was noticed
        if "ManagerLost" in told:
            told = remote_text(executor.submit(tasks.same, 1), 90)
        assert "it is broken now" in told


def test_manager_that_is_lost_before_its_first_task_is_replaced() -> None:
    with engine() as executor:
        wait_until(
            lambda: "Registration info for manager" in log_of_the_interchange(),
            "the manager has reported",
        )
        for member in roles.find("GC_WARM_TEST_RUN", os.environ["GC_WARM_TEST_RUN"]):
            if member.role == "manager":
                for process in [*member.process.children(recursive=True), member.process]:
                    process.kill()
        first = executor.submit(tasks.same, 1)
        assert first.exception(120) is None or "ManagerLost" in remote_text(first)
        assert executor.submit(tasks.same, 2).result(120) == 2


def log_of_the_interchange() -> str:
    paths = Path(tempfile.gettempdir()).glob("gc_warm-*/*/interchange.log")
    return "".join(path.read_text() for path in paths)


def test_interchange_that_dies_ends_its_tasks_and_the_next_task_finds_another_engine(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("interchange_client.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "started")],
        env=client_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "the task in flight has failed\nthe next one was done\n"


@pytest.mark.parametrize("after", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_client_that_is_killed_while_its_engine_starts_leaves_nothing(
    after: float, tmp_path: Path
) -> None:
    """The suite's own checks look for processes and folders that are left."""
    script = (
        "from tests.local.test_engine import engine; print(flush=True); "
        "engine('sleep 300; while sleep 301; do :; done')"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script],
        env=client_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with client:
        assert client.stdout is not None
        client.stdout.readline()
        time.sleep(after)  # a moment, whichever it is
        client.send_signal(signal.SIGKILL)


def test_shutdown_in_a_callback_still_tells_the_other_futures() -> None:
    with engine() as executor:
        first = executor.submit(tasks.same, 1)
        second = executor.submit(tasks.wait_for_file, "/never")
        first.add_done_callback(lambda _: executor.shutdown(wait=False))
        assert first.result(120) == 1
        assert second.exception(120) is not None


class HopelessEngine:
    """An engine that gives up each task, as one all of whose blocks have failed."""

    def __init__(self) -> None:
        interchange = SimpleNamespace(poll=lambda: None)
        self.executor = SimpleNamespace(
            provider=SimpleNamespace(worker_init=""),
            interchange_launch_cmd=["interchange.py"],
            interchange_proc=interchange,
            connected_managers=list,
        )

    def start(self, **options: Any) -> None: ...

    def submit(self, future: Any, *task: Any, **options: Any) -> None:
        error = BadStateException(None, RuntimeError("the blocks have failed"))
        future.set_result(worker_main.pack_failure(future.gc_task_id, error))

    def shutdown(self) -> None: ...


def test_result_of_an_engine_that_gave_up_proves_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason: str | None = None
    monkeypatch.setattr(engine_module, "_WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(engine_module, "_JOB_WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(startup_diagnosis, "why_no_worker", lambda *_: reason)

    hopeless = engine_module._Engine(HopelessEngine())
    try:
        first = hopeless.submit(uuid.uuid4(), b"", {}, None)
        assert engine_module._GAVE_UP in first.result(120), "nobody knows why yet"
        reason = "its log says why"
        second = hopeless.submit(uuid.uuid4(), b"", {}, None)
        assert b"its log says why" in second.result(120)
    finally:
        hopeless.shutdown()


def test_tasks_after_shutdown_do_not_wait_for_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = EngineRunner("local", {"workers_per_node": 1})
    assert runner._engine is not None
    runner._engine.shutdown()

    def submit() -> bytes:
        future = runner.submit(uuid.uuid4(), b"", function_id="", resources={}, serializers=())
        return future.result(120)

    start = engine_module._Engine
    starting = threading.Event()
    go_on = threading.Event()

    def start_late(engine: Any) -> Any:
        starting.set()
        assert go_on.wait(120)
        return start(engine)

    monkeypatch.setattr(engine_module, "_Engine", start_late)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(submit)
        assert starting.wait(120)
        ending = pool.submit(runner.shutdown)
        assert runner._closed.wait(120)
        assert b"the engine has been shut down" in submit()
        assert not ending.done(), "whoever shuts down may count on its end"

        go_on.set()
        assert b"the engine has been shut down" in first.result(120)
        ending.result(120)
