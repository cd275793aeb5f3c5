"""Servers end with their worker or their manager, whichever way that ends, and not before."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers
import tasks
from servers import PROGRAM

from gc_warm import MockExecutor, WarmExecutor
from tests.support import MODULES, carriers, client_environment, wait_until
from tests.testing.backends import engine_config, workers

MARK = "GC_WARM_SERVERS_OF"

CLIENT = """
import sys, servers
from gc_warm import MockExecutor
from tests.testing.backends import workers

with MockExecutor(**workers(sys.argv[1])) as executor:
    for scope in servers.SERVERS:
        executor.submit(servers.start, sys.argv[2], scope).result()
    print("started", flush=True)
    sys.stdin.read()
"""


def start(executor: MockExecutor, scope: str) -> tuple[int, str]:
    """Start a server; return the worker and the mark of all processes of the server."""
    mark = secrets.token_hex(8)
    worker = executor.submit(servers.start, mark, scope).result()
    assert len(carriers(MARK, mark)) == 3, "server, child and supervisor"
    return worker, mark


def parent_of(worker: int) -> psutil.Process:
    parent = psutil.Process(worker).parent()
    assert parent is not None
    return parent


def kill_manager(executor: MockExecutor, worker: int) -> None:
    parent_of(worker).kill()


def terminate_manager(executor: MockExecutor, worker: int) -> None:
    parent_of(worker).terminate()


def shut_down(executor: MockExecutor, worker: int) -> None:
    executor.shutdown()


OF_MANAGERS = [kill_manager, terminate_manager, shut_down]


def has_ended(mark: str) -> bool:
    return not carriers(MARK, mark)


@pytest.mark.parametrize(
    ("backend", "end"),
    [
        ("spawned", shut_down),
        *(pytest.param("engine", end, marks=pytest.mark.engine) for end in OF_MANAGERS),
    ],
)
def test_servers_end_with_the_manager(
    backend: str, end: Callable[[MockExecutor, int], None]
) -> None:
    with MockExecutor(**workers(backend)) as executor:
        worker, own = start(executor, "worker")
        _, of_node = start(executor, "node")
        end(executor, worker)
        wait_until(lambda: has_ended(own) and has_ended(of_node), "both servers have ended")


@pytest.mark.engine
def test_a_server_of_the_node_outlives_its_workers() -> None:
    with MockExecutor(**workers("engine")) as executor:
        _, of_node = start(executor, "node")
        _, server = executor.submit(servers.ask_of, "node").result()
        for how in ("sys.exit", "os._exit", "SIGKILL"):
            worker, own = start(executor, "worker")
            assert executor.submit(tasks.end, how).exception()
            wait_until(functools.partial(has_ended, own), "the worker's server has ended")

            other, same = executor.submit(servers.ask_of, "node").result()
            assert (other != worker, same) == (True, server)
        assert len(carriers(MARK, of_node)) == 3


@pytest.mark.engine
@pytest.mark.parametrize("backend", ["spawned", "engine"])
def test_servers_end_with_a_client_that_is_killed(backend: str) -> None:
    mark = secrets.token_hex(8)
    command = [sys.executable, "-c", CLIENT, backend, mark]
    with subprocess.Popen(
        command, env=client_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "started\n"
        assert len(carriers(MARK, mark)) == 6
        client.kill()
        wait_until(lambda: has_ended(mark), "both servers have ended")


@pytest.mark.engine
def test_of_workers_that_start_at_once_one_starts_the_server() -> None:
    with MockExecutor(workers=4, pythonpath=[MODULES]) as executor:
        for _ in range(50):
            futures = [executor.submit(servers.ask_of, "node") for _ in range(4)]
            answers = [future.result() for future in futures]
            assert len({server for _, server in answers}) == 1
            executor.submit(servers.close).result()


@pytest.mark.engine
def test_the_others_go_on_where_the_one_that_starts_it_is_killed(tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    loaded = tmp_path / "loaded"
    with MockExecutor(**workers("engine", 2)) as executor:
        futures = [executor.submit(servers.start_slowly, mark, str(loaded)) for _ in range(2)]
        # a moment before, it is still a copy of its supervisor
        wait_until(
            lambda: any(PROGRAM in line for line in carriers(MARK, mark).values()), "it runs"
        )
        (supervisor,) = [pid for pid, line in carriers(MARK, mark).items() if "supervisor" in line]
        (server,) = carriers(MARK, mark).keys() - {supervisor}
        os.kill(psutil.Process(supervisor).ppid(), signal.SIGKILL)
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        loaded.touch()

        assert [future.exception() for future in done] != [None]
        (other,) = set(futures) - done
        assert other.result(120) == server


@contextlib.contextmanager
def pinned(*lines: str) -> Iterator[MockExecutor]:
    """An engine with two workers that are pinned to a device each."""
    config = engine_config(2, *lines)
    devices = 'available_accelerators: ["3", "5"]'
    config = config.replace("cores_per_worker", f"{devices}\n  cores_per_worker", 1)
    with MockExecutor(config=config) as executor:
        yield executor


@pytest.mark.engine
def test_a_server_of_the_node_has_the_devices_of_the_manager() -> None:
    with pinned("export CUDA_VISIBLE_DEVICES=3,5") as executor:
        seen: dict[str, Any] = {}
        for scope in servers.SERVERS:
            _, seen[scope] = executor.submit(servers.ask_of, scope, "/environment").result()
        assert seen["node"]["CUDA_VISIBLE_DEVICES"] == "3,5"
        assert "PARSL_WORKER_RANK" not in seen["node"]
        assert seen["worker"]["CUDA_VISIBLE_DEVICES"] in ("3", "5")
        assert seen["worker"]["PARSL_WORKER_RANK"] in ("0", "1")


@pytest.mark.engine
def test_a_server_is_preloaded() -> None:
    python = shlex.quote(sys.executable)
    boot = f'eval "$({python} -m gc_warm.worker.boot servers:node.start)"'
    with WarmExecutor(MockExecutor(config=engine_config(1, boot))) as executor:
        first = executor.submit(servers.ask_of, "node")
        assert first.result(120)
        assert (first.warmth.state, first.warmth.uses) == ("warm", 1)
