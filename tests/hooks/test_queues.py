"""The queues of ``survive_idle_kill``.

A kill costs less with them than without, and nothing is lost in them.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from multiprocessing import resource_tracker
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import parsl
import psutil
import pytest
import queue_workers
import tasks
from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import MockExecutor
from gc_warm.hooks import queues
from gc_warm.hooks.queues import ResultQueue, TaskQueue
from gc_warm.hooks.versions import TESTED_PARSL
from tests.support import has_ended, wait_until
from tests.testing.backends import engine_config

SPAWN = multiprocessing.get_context("spawn")
TASKS, KILLS = 5000, 50
UPSTREAM = Path(__file__).parents[1] / "upstream" / "idle_worker_kill.py"


def task(number: int, size: int = 10) -> dict[str, Any]:
    """As the interchange makes them."""
    return {"task_id": number, "context": {}, "buffer": bytes(size)}


@pytest.fixture
def stock() -> Iterator[Queue[Any]]:
    made: Queue[Any] = SPAWN.Queue()
    yield made
    made.close()
    made.join_thread()
    made._reader.close()  # type: ignore[attr-defined]
    made._writer.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """What multiprocessing starts once in a process, and keeps."""
    resource_tracker.ensure_running()


SIZES = [*[0, 10, 4_000] * 10, *[20_000, 100_000] * 100, *[900_000, 1_100_000, 9_000_000] * 3]


def test_tasks_and_results_of_every_size_arrive_as_they_were(stock: Queue[Any]) -> None:
    """Large ones arrive in parts.

    The manager writes their length, and then the rest, while the worker waits.
    """
    results: Queue[Any] = SPAWN.Queue()
    reader = SPAWN.Process(target=queue_workers.read, args=(stock, results, len(SIZES) + 3, 120.0))
    reader.start()

    for number, size in enumerate(SIZES):
        stock.put(task(70_000 * number, size))
        assert len(results.get(timeout=120)) == size
    for number in range(3):
        stock.put(task(number, 100_000))
    assert [len(results.get(timeout=120)) for _ in range(3)] == [100_000] * 3

    reader.join()
    assert reader.exitcode == 0
    results.close()
    results.join_thread()


def test_a_message_of_the_size_of_the_pipe_arrives(stock: Queue[Any]) -> None:
    """A pipe holds less than its size where pages are not full."""
    capacity = 1 << 20
    own = len(ForkingPickler.dumps(task(2, 0)))
    reader = TaskQueue(stock, lambda _: None)
    stock.put(task(1, 2000))
    wait_until(lambda: reader._reader.poll(0), "the first is there")
    for less in (0, 10, 4096):
        stock.put(task(2, capacity - own - less))
    assert [reader.get(timeout=120)["task_id"] for _ in range(4)] == [1, 2, 2, 2]


def test_large_results_are_not_mixed_with_what_the_manager_writes() -> None:
    results: Queue[Any] = SPAWN.Queue()
    writer = SPAWN.Process(target=queue_workers.put_large, args=(results, 30, 3_000_000))
    writer.start()
    done = threading.Event()

    def manager() -> None:
        while not done.wait(0.001):
            results.put(bytes(3000))

    thread = threading.Thread(target=manager)
    thread.start()

    sizes: list[int] = []
    while sizes.count(3_000_000) < 30:
        sizes.append(len(results.get(timeout=120)))
    done.set()
    thread.join()
    writer.join()

    while not results.empty():
        sizes.append(len(results.get(timeout=120)))
    assert set(sizes) <= {3000, 3_000_000}
    results.close()
    results.join_thread()


@pytest.mark.parametrize("size", [300_000, 700_000])
def test_a_worker_that_is_killed_while_its_result_waits_for_room_leaves_no_part_of_it_and_no_lock(
    stock: Queue[Any], size: int
) -> None:
    begun = SPAWN.Semaphore(0)
    writer = SPAWN.Process(target=queue_workers.put_for_ever, args=(stock, begun, size))
    writer.start()
    looks: deque[int] = deque(maxlen=10)

    def waits() -> bool:
        """It sleeps for want of room, at look after look, and not for want of a core."""
        sleeps = psutil.Process(writer.pid).status() == psutil.STATUS_SLEEPING
        looks.append(begun.get_value() if sleeps else -1)
        return len(looks) == looks.maxlen and len(set(looks)) == 1 and looks[0] > 1

    wait_until(waits, "nobody reads, so that there is no room any more")
    writer.kill()
    writer.join()
    assert [len(stock.get(timeout=120)) for _ in range(looks[0] - 1)] == [size] * (looks[0] - 1)
    assert stock.empty()
    stock.put("what the manager says")
    assert stock.get(timeout=120) == "what the manager says"


def test_the_managers_lock_that_a_dead_worker_held_is_free_again_when_the_next_begins(
    stock: Queue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = SPAWN.Process(target=queue_workers.take_lock_and_die, args=(stock,))
    holder.start()
    holder.join()
    monkeypatch.setattr(queues, "_ORPHANED", 0.1)
    ResultQueue(stock)
    stock.put("lost")
    assert stock.get(timeout=120) == "lost"


def test_a_pipe_that_is_too_small_is_refused(
    stock: Queue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some kernels give to users who have many."""
    monkeypatch.setattr(queues, "_CAPACITY", 4096)
    with pytest.raises(OSError, match="holds 4096 bytes"):
        TaskQueue(stock, lambda _: None)


def test_an_empty_queue_says_so_after_its_timeout(stock: Queue[Any]) -> None:
    tasks_ = TaskQueue(stock, lambda _: None)
    begun = time.monotonic()
    with pytest.raises(queue.Empty):
        tasks_.get(timeout=0.05)
    assert time.monotonic() - begun >= 0.05
    with pytest.raises(queue.Empty):
        tasks_.get(block=False)


def test_a_task_that_was_announced_by_a_worker_that_dies_is_there_for_the_next(
    stock: Queue[Any],
) -> None:
    begun = SPAWN.Event()
    holder = SPAWN.Process(target=queue_workers.hold, args=(stock, begun))
    holder.start()
    stock.put(task(1))
    assert begun.wait(120)
    holder.kill()
    holder.join()
    announced: list[int] = []
    assert TaskQueue(stock, announced.append).get(timeout=120) == task(1)
    assert announced == [1]


@pytest.mark.engine
def test_worker_ends_with_its_manager_wherever_it_waits() -> None:
    """For a task, for room in the pipe, for another worker's lock, and for the manager's."""
    ours, theirs = SPAWN.Pipe()
    manager = SPAWN.Process(target=queue_workers.manage, args=(theirs,))
    manager.start()
    workers = [psutil.Process(pid) for pid in iter(ours.recv, None)]
    assert len(workers) == 4
    try:
        wait_until(lambda: all(map(sleeps, workers)), "they wait")
        manager.kill()
        manager.join()
        for worker in workers:
            wait_until(partial(has_ended, worker.pid), "the worker has ended")
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()
        ours.close()
        theirs.close()


def sleeps(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_SLEEPING


def engine(number: int, survive: bool) -> MockExecutor:
    """The real engine, whose watchdog looks every second."""
    line = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --survive-idle-kill)"'
    return MockExecutor(config=engine_config(number, *[line] * survive))


@pytest.fixture(scope="module")
def side_by_side() -> dict[Any, Future[Any]]:
    """All that waits for dead workers to be replaced, at the same time."""
    with ThreadPoolExecutor(3) as pool:
        reproduction = pool.submit(
            subprocess.run,
            [sys.executable, str(UPSTREAM)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
        )
        survivals = {number: pool.submit(survive, number) for number in (1, 2)}
        return {"stock": reproduction, **survivals}


@pytest.mark.engine
def test_stock_the_only_idle_worker_is_killed_and_later_tasks_never_end(
    side_by_side: dict[Any, Future[Any]],
) -> None:
    """The reproduction for upstream, on this very Parsl.

    When this fails, the fault has been mended there.
    """
    run = side_by_side["stock"].result()
    assert run.returncode == 0, run.stdout
    versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
    assert f"{versions}: the idle worker " in run.stdout
    assert "a task has not begun" in run.stdout


def kill_while_idle(executor: MockExecutor) -> int:
    pid, _ = executor.submit(tasks.pid_and_count).result(120)
    wait_until(lambda: idle(pid), "it waits for a task")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), "it is dead")
    return pid


def idle(pid: int) -> bool:
    if "poll" in Path(f"/proc/{pid}/wchan").read_text():
        return True
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "7"


@pytest.mark.engine
def test_the_only_idle_worker_is_killed_and_is_replaced() -> None:
    assert version("parsl") in TESTED_PARSL, (
        "this Parsl is new: see whether these tests hold, and add it to TESTED_PARSL"
    )
    with engine(1, survive=True) as executor:
        killed = {kill_while_idle(executor) for _ in range(3)}
        assert executor.submit(tasks.same, 1).result(120) == 1
        assert len(killed) == 3


@dataclass
class Survival:
    """A run in which workers are killed at random."""

    pids: set[int] = field(default_factory=set)
    killed: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def goes_on(self, sent: int) -> bool:
        return sent < TASKS or len(self.killed) < KILLS

    def kill(self, chance: random.Random) -> None:
        """Kill a worker every now and then, which may be idle or busy."""
        while len(self.killed) < KILLS and not self.done.wait(chance.uniform(0.1, 0.8)):
            alive = sorted(self.pids - self.killed)
            if alive:
                pid = chance.choice(alive)
                self.killed.add(pid)
                os.kill(pid, signal.SIGKILL)

    def take_in(self, which: int, future: Future[Any]) -> None:
        error = future.exception(120)
        if isinstance(error, TaskExecutionFailed):
            self.lost[which] = str(error.remote_data)
            return

        pid, answer = future.result()
        assert answer == which
        self.pids.add(pid)
        self.returned.add(which)


def survive(number: int) -> Survival:
    """Some tasks are always under way, but for moments in which all workers are idle."""
    survival = Survival()
    chance = random.Random(number)
    killer = threading.Thread(target=survival.kill, args=(random.Random(-number),))
    under_way: deque[tuple[int, Future[Any]]] = deque()
    sent = 0

    with engine(number, survive=True) as executor:
        executor.submit(tasks.same, 0).result(120)
        killer.start()
        try:
            while under_way or survival.goes_on(sent):
                if survival.goes_on(sent) and chance.random() < 0.6 and len(under_way) < 8:
                    under_way.append((sent, executor.submit(tasks.pid_of, sent)))
                    sent += 1
                elif under_way:
                    survival.take_in(*under_way.popleft())
                elif chance.random() < 0.2:
                    time.sleep(0.05)
        finally:
            survival.done.set()
            killer.join()
    return survival


@pytest.mark.engine
@pytest.mark.parametrize("number", [1, 2])
def test_fifty_random_kills_during_five_thousand_tasks_lose_running_ones_only(
    side_by_side: dict[Any, Future[Any]], number: int
) -> None:
    survival = side_by_side[number].result()
    assert len(survival.killed) == KILLS

    ended = len(survival.returned) + len(survival.lost)
    assert ended == len({*survival.returned, *survival.lost}) >= TASKS, "each ends, and once"

    lost = survival.lost.values()
    assert len(lost) <= KILLS
    assert all("WorkerLost: Task failure due to loss of worker" in text for text in lost)
    print(f"{KILLS} kills during {ended} tasks lost {len(lost)}")
