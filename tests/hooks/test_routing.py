"""Warm-first within a node: processes that share a pool, and are killed at every line of it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing import heap, resource_tracker
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import FrameType
from typing import Any

import keyed
import pytest
import tasks
from globus_compute_sdk.serialize import ComputeSerializer, SerializationStrategy
from globus_compute_sdk.serialize.concretes import SELECTABLE_DATA_STRATEGIES

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.hooks import placement, pool, queues, routing
from gc_warm.hooks.pool import Pool, State, descriptor_of
from gc_warm.hooks.queues import locked
from gc_warm.hooks.routing import RoutedQueue
from gc_warm.hooks.versions import TESTED_PARSL
from gc_warm.worker import hints, ledger
from tests.support import wait_until
from tests.testing.backends import engine_config

SPAWN = multiprocessing.get_context("spawn")  # whose shared numbers are in a file
FORK = multiprocessing.get_context("fork")  # for what these tests run: milliseconds
BUFFERS: Any = heap.BufferWrapper
TRACED = tuple(module.__file__ for module in (placement, pool, queues, routing))


def task(number: int, hint: str | None = None, size: int = 10) -> dict[str, Any]:
    """As the interchange makes them, with arguments as a client has written them."""
    arguments = "00\ngASV" + "A" * size
    if hint is not None:
        arguments = hints.write(arguments, hints.fingerprint(hint))
    return {"task_id": number, "context": {}, "buffer": arguments.encode()}


class Node:
    """What a manager shares with its workers."""

    def __init__(self) -> None:
        self.tasks: Queue[Any] = SPAWN.Queue()
        BUFFERS._heap = heap.Heap()  # a file of its own, as a manager has it
        self.ready: Any = SPAWN.Value("i", 0)
        self.announced = FORK.SimpleQueue()
        self.bells: list[socket.socket] = []

    def put(self, *tasks: dict[str, Any]) -> None:
        """Write to the pipe as the manager does, but in no thread of its own."""
        for each in tasks:
            self.tasks._sem.acquire()  # type: ignore[attr-defined]
            self.tasks._writer.send_bytes(  # type: ignore[attr-defined]
                ForkingPickler.dumps(each)
            )

    def worker(self, number: int) -> RoutedQueue:
        shared = descriptor_of(self.ready)
        made = RoutedQueue(self.tasks, self.announced.put, shared, number)
        self.bells.append(made._bells.own)
        return made

    def state(self) -> State:
        with locked(self.tasks._writer.fileno()):  # type: ignore[attr-defined]
            shared = Pool(descriptor_of(self.ready))
            with shared.opened() as state:
                return state

    def announcements(self) -> list[int]:
        found = []
        while not self.announced.empty():
            found.append(self.announced.get())
        return found

    def in_a_process(self, function: Callable[..., None], *arguments: Any) -> Any:
        process = FORK.Process(target=function, args=(self, *arguments))
        process.start()
        return process

    def close(self) -> None:
        self.tasks.close()
        self.tasks.join_thread()
        self.tasks._reader.close()  # type: ignore[attr-defined]
        self.tasks._writer.close()  # type: ignore[attr-defined]
        self.announced.close()
        for bell in self.bells:
            bell.close()
        del self.ready
        BUFFERS._heap = heap.Heap()


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """What multiprocessing starts once in a process, and keeps."""
    resource_tracker.ensure_running()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(ledger, "_watches", [])
    made = Node()
    yield made
    made.close()


def take_all(node: Node, number: int, done: Any = None) -> None:
    """A worker's life, until nothing is left."""
    worker = node.worker(number)
    while True:
        try:
            got = worker.get(block=False)
        except queue.Empty:
            break
        if done is not None:
            done.put(got["task_id"])


def test_tasks_with_and_without_hints_all_arrive_as_they_were(node: Node) -> None:
    worker = node.worker(0)  # by which the pipe is widened
    node.put(task(1), task(2, "a"), task(3), task(4, "b", 300_000), task(5, "a"))
    got = [worker.get(timeout=60) for _ in range(5)]
    order = [1, 2, 3, 5, 4]  # it holds A by then, and not B
    assert [each["task_id"] for each in got] == order
    assert node.announcements() == order
    assert got[4] == task(4, "b", 300_000)
    with pytest.raises(queue.Empty):
        worker.get(timeout=0.01)


def test_a_task_that_no_pipe_holds_passes_through(node: Node) -> None:
    large = task(2, "a", 3_000_000)
    node.put(task(1, "a"))
    feeder = node.in_a_process(lambda node: node.put(large, task(3, "a")))
    worker = node.worker(0)
    assert [worker.get(timeout=60)["task_id"] for _ in range(3)] == [1, 2, 3]
    feeder.join()


def test_where_the_pool_is_full_tasks_stay_in_the_pipe(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PAYLOADS_SIZE", 1000)
    node.put(*(task(number, "a", 300) for number in range(6)))
    worker = node.worker(0)
    assert worker.get(timeout=60)["task_id"] == 0
    assert len(node.state().tasks) == 1
    assert [worker.get(timeout=60)["task_id"] for _ in range(5)] == [1, 2, 3, 4, 5]


def serve(node: Node, number: int, out: Any, seconds: float = 60.0) -> None:
    """A worker that says who it is and what it took, and ends with a task of no buffer."""
    worker = node.worker(number)
    out.put((number, "begun"))
    while True:
        got = worker.get(timeout=seconds)
        out.put((number, got["task_id"]))
        if not got["task_id"]:
            return


def test_idle_workers_take_what_is_best_for_all(node: Node) -> None:
    """A worker that has run a hint's task gets the next one; what has none goes to the last."""
    out = FORK.SimpleQueue()
    with ExitStack() as ending:
        for number in range(3):
            process = node.in_a_process(serve, number, out)
            ending.callback(process.join)
            ending.callback(process.kill)
        assert {out.get() for _ in range(3)} == {(number, "begun") for number in range(3)}
        wait_until(lambda: idle(node) == {0, 1, 2}, "all wait")

        def send(number: int, hint: str | None) -> int:
            node.put(task(number, hint))
            taker, taken = out.get()
            assert taken == number
            wait_until(lambda: idle(node) == {0, 1, 2}, "it waits again")
            return int(taker)

        takers = {hint: send(number, hint) for number, hint in enumerate("abc", start=1)}
        assert len({*takers.values()}) == 3
        for number, hint in enumerate("cabbac", start=4):
            assert send(number, hint) == takers[hint]
            assert send(number + 10, None) == takers[hint]


def idle(node: Node) -> set[int]:
    return {number for number, seat in node.state().seats.items() if seat.idle}


def test_a_worker_that_dies_is_forgotten_and_what_waits_is_found(node: Node) -> None:
    """The last worker dies while a task for it waits in the pool; its successor takes that."""
    out = FORK.SimpleQueue()
    process = node.in_a_process(serve, 0, out)
    node.put(task(1, "a"), task(2, "a"), task(3, "b"))
    assert [out.get() for _ in range(4)][-1] == (0, 3)
    wait_until(lambda: idle(node) == {0}, "it waits")
    os.kill(process.pid, signal.SIGSTOP)
    node.put(task(4, "a"))
    process.kill()
    process.join()

    successor = node.worker(1)
    assert successor.get(timeout=60)["task_id"] == 4
    assert set(node.state().seats) == {1}


def test_a_task_in_the_pool_outlives_the_worker_that_was_told_of_it(node: Node) -> None:
    out = FORK.SimpleQueue()
    process = node.in_a_process(serve, 0, out)
    node.put(task(1, "a"))
    assert [out.get(), out.get()] == [(0, "begun"), (0, 1)]
    wait_until(lambda: idle(node) == {0}, "it waits")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        other = node.worker(1)
        node.put(task(2, "a"))
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            other.get(block=False)
        assert node.state().seats[0].called >= begun
        assert other.get(timeout=60)["task_id"] == 2, "one that does not come is not waited for"
    finally:
        process.kill()
        process.join()


def test_a_load_that_is_under_way_is_told_and_then_how_long_it_took(node: Node) -> None:
    node.put(task(1, "a"), task(2, "a"))
    worker = node.worker(0)
    worker.get(timeout=60)

    holding: Any = Holding()
    ledger.hold(holding)
    assert node.state().seats[0].loading
    holding.order = ledger.record("loaded", "table", (1,), seconds=1.5)
    assert not node.state().seats[0].loading
    hint = hints.fingerprint("a")
    assert node.state().needs[hint].seconds < 60

    worker.get(timeout=60)
    assert node.state().needs[hint].seconds == 1.5, "which the ledger says"
    assert node.state().seats[0].doing == hint
    holding.used += 1
    ledger.record("discarded", "table", (1,))
    ledger.release(holding)
    with pytest.raises(queue.Empty):
        worker.get(block=False)
    assert not node.state().seats[0].holds, "the last task has used what is no longer there"


class Holding:
    order = float("inf")
    used = 0

    def loaded(self) -> ledger.Loaded | None:
        return ledger.Loaded("table", "(1,)", 1.0, 1.5) if self.order < float("inf") else None


def test_state_that_is_loaded_everywhere_is_held_by_all(node: Node) -> None:
    """As by a preload: whoever has all that the last task with a hint used holds that hint."""
    holding: Any = Holding()
    holding.order = 1.0
    uses = routing._Uses()
    ledger.hold(holding)
    try:
        uses.begin()
        holding.used = 2
        needs = uses.end()
        assert needs is not None
        other = routing._Uses()
        other.look(None)
        assert other.holds({b"a": needs}) == {b"a"}
    finally:
        ledger.release(holding)
    other.look(None)
    assert not other.holds({b"a": needs})


def test_what_waits_in_the_pool_is_given_back(node: Node) -> None:
    node.put(*(task(number, "a") for number in range(4)))
    assert node.worker(0).get(timeout=60)["task_id"] == 0
    assert len(node.state().tasks) == 3
    routing.give_back([0, node.tasks, node.ready])
    assert not node.state().tasks
    assert [node.tasks.get(timeout=60)["task_id"] for _ in range(3)] == [1, 2, 3]


WAITING = (task(1, "a"), task(2), task(3, "b"), task(4, "a"), task(5))


def die_at_line(node: Node, wanted: int, number: int) -> None:
    """Be killed before the *wanted*-th line of what is tested."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            count += 1
            if count == wanted:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    take_all(node, number)


def survivors(kills: Sequence[int]) -> bool:
    """Have workers killed at these lines, and one that lives; return whether each was killed.

    What was announced is what the manager would report as lost, or a result.
    """
    node = Node()
    try:
        node.put(*WAITING)
        was_killed = True
        for number, line in enumerate(kills):
            process = node.in_a_process(die_at_line, line, number)
            process.join()
            was_killed = was_killed and process.exitcode == -signal.SIGKILL
        lost = node.announcements()

        taken = FORK.SimpleQueue()
        process = node.in_a_process(take_all, 9, taken)
        process.join()
        assert process.exitcode == 0
        ran = []
        while not taken.empty():
            ran.append(taken.get())

        assert len(ran) == len(set(ran)), f"killed at {kills}: {ran} twice"
        assert {*lost, *ran} == {1, 2, 3, 4, 5}, f"killed at {kills}: of {lost} and {ran}"
        assert len(set(lost) & set(ran)) <= len(kills), f"killed at {kills}: {lost} and {ran}"
        assert not node.state().tasks
        return was_killed
    finally:
        node.close()


def test_a_kill_at_any_of_some_lines_loses_and_doubles_nothing() -> None:
    for line in range(40, 1000, 190):
        assert survivors([line])


@pytest.mark.engine
def test_a_kill_at_any_line_loses_and_doubles_nothing() -> None:
    every = int(os.environ.get("GC_WARM_KILL_EVERY", "4"))  # of the lines
    line = 1
    while survivors([line]):
        line += every
    assert line > 500

    # and of the next one, in what it does about that
    for first in range(100, line, 71):
        for second in range(1, 400, 53):
            survivors([first, second])


BOOT = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {})"'


def engine(workers: int, words: str = "--warm-first") -> WarmExecutor:
    config = engine_config(workers, BOOT.format(words)).replace(
        "run_in_sandbox: true", "prefetch_capacity: 16"
    )
    return WarmExecutor(MockExecutor(config=config))


@pytest.fixture(scope="module")
def routed() -> Iterator[WarmExecutor]:
    with engine(3) as executor:
        executor.warm_up(tasks.pid_of, 0, workers=3)
        yield executor


@pytest.mark.engine
def test_engine_a_sequential_client_uses_one_worker(routed: WarmExecutor) -> None:
    assert version("parsl") in TESTED_PARSL, (
        "this Parsl is new: see whether these tests hold, and add it to TESTED_PARSL"
    )
    assert len({routed.submit(tasks.pid_of, 0).result(120)[0] for _ in range(20)}) == 1


@pytest.mark.engine
@pytest.mark.parametrize("strategy", SELECTABLE_DATA_STRATEGIES)
def test_engine_calls_with_a_hint_find_their_state_whatever_the_strategy(
    routed: WarmExecutor, strategy: type[SerializationStrategy]
) -> None:
    before = routed.serializer
    routed.serializer = ComputeSerializer(strategy_data=strategy)
    try:
        keys = [f"{strategy.__name__} {letter}" for letter in "abcdef"]
        first = {key: routed.near(key).submit(keyed.use, key).result(120) for key in keys}
        assert all(is_cold for _, is_cold in first.values())
        assert len({pid for pid, _ in first.values()}) == 3

        function_id = routed.register_function(keyed.use)
        for key in keys * 3:
            assert routed.near(key).submit(keyed.use, key).result(120) == (first[key][0], False)
            again = routed.near(key).submit_to_registered_function(function_id, (key,))
            assert tuple(again.result(120)) == (first[key][0], False)
    finally:
        routed._function_registry.clear()
        routed.serializer = before


@pytest.mark.engine
@pytest.mark.parametrize("words", ["--warm-first", "--warm-first --preload-node=keyed"])
def test_engine_kills_lose_running_tasks_only_and_run_none_twice(
    words: str, tmp_path: Path
) -> None:
    chance = random.Random(1)
    runs = tmp_path / "runs"
    lost, returned = set(), set()
    pids: set[int] = set()
    killed: set[int] = set()
    number = 0

    with engine(2, words) as executor:
        near = {key: executor.near(key) for key in "abcdef"}
        while len(killed) < 6:
            futures = {}
            for _ in range(40):
                key = chance.choice("abcdef")
                futures[number] = near[key].submit(keyed.count, key, number, str(runs))
                number += 1
            if alive := sorted(pids - killed):
                killed.add(chance.choice(alive))
                os.kill(max(killed & set(alive)), signal.SIGKILL)
            for which, future in futures.items():
                error = future.exception(120)
                if error is not None:
                    assert "WorkerLost" in str(error)
                    lost.add(which)
                    continue
                pid, answer = future.result()
                assert answer == which
                returned.add(which)
                pids.add(pid)

    assert lost | returned == set(range(number))
    assert len(lost) <= len(killed)
    ran = [int(line) for line in runs.read_text().split()]
    assert {each for each in ran if ran.count(each) > 1} <= lost


@pytest.mark.engine
def test_engine_stock_ignores_hints() -> None:
    with WarmExecutor(MockExecutor(config=engine_config(1))) as executor:
        assert executor.near("a").submit(tasks.pid_of, 7).result(120)[1] == 7
