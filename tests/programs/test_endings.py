"""Nothing of a program outlives its worker, whatever the program does to stay."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
import tasks

from gc_warm import MockExecutor
from tests.support import carriers, client_environment, programs_end_with, wait_until
from tests.testing.backends import workers

CLIENT = """
import json, sys, programs
from gc_warm import MockExecutor
from tests.testing.backends import workers

with MockExecutor(**workers(sys.argv[1])) as executor:
    print(json.dumps(executor.submit(programs.start, sys.argv[2]).result()), flush=True)
    sys.stdin.read()
"""


def start(executor: MockExecutor) -> tuple[int, str]:
    mark = secrets.token_hex(8)
    worker, started = executor.submit(programs.start, mark).result()
    assert_all_run(mark, started)
    return worker, mark


def assert_all_run(mark: str, started: list[int]) -> None:
    # a child, one in a session of its own, and a daemon
    assert len(started) == len(programs.BEHAVIOURS) + 3
    assert set(started) < set(carriers(programs.MARK, mark))
    # and the supervisors
    assert len(carriers(programs.MARK, mark)) == len(started) + len(programs.BEHAVIOURS)


def kill(executor: MockExecutor, worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


def terminate(executor: MockExecutor, worker: int) -> None:
    os.kill(worker, signal.SIGTERM)


def exit_in_a_task(executor: MockExecutor, worker: int) -> None:
    assert executor.submit(tasks.end, "sys.exit").exception()


def end_at_once_in_a_task(executor: MockExecutor, worker: int) -> None:
    assert executor.submit(tasks.end, "os._exit").exception()


def shut_down(executor: MockExecutor, worker: int) -> None:
    executor.shutdown()


ENDINGS = [kill, terminate, exit_in_a_task, end_at_once_in_a_task, shut_down]


@pytest.mark.parametrize(
    ("backend", "end"),
    [
        ("spawned", shut_down),
        *(pytest.param("engine", end, marks=pytest.mark.engine) for end in ENDINGS),
    ],
)
def test_programs_end_with_their_worker(
    backend: str, end: Callable[[MockExecutor, int], None]
) -> None:
    with MockExecutor(**workers(backend)) as executor:
        worker, mark = start(executor)
        end(executor, worker)
        programs_end_with(worker, mark)


@pytest.mark.engine
def test_programs_end_with_a_worker_that_is_killed_in_a_call(tmp_path: Path) -> None:
    with MockExecutor(**workers("engine")) as executor:
        worker, mark = start(executor)
        future = executor.submit(programs.stay_in_a_call, str(tmp_path / "begun"))
        wait_until(lambda: (tmp_path / "begun").exists() or future.done(), "the call has begun")
        os.kill(worker, signal.SIGKILL)
        programs_end_with(worker, mark)


@pytest.mark.engine
@pytest.mark.parametrize("backend", ["spawned", "engine"])
def test_programs_end_with_the_workers_of_a_client_that_is_killed(backend: str) -> None:
    mark = secrets.token_hex(8)
    command = [sys.executable, "-c", CLIENT, backend, mark]
    with subprocess.Popen(
        command, env=client_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        worker, started = json.loads(client.stdout.readline())
        assert_all_run(mark, started)

        client.kill()
        programs_end_with(worker, mark)
