"""What the tests of the queues run in processes of their own, as workers do.

They are here so that such a process imports nothing of the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.queues import Queue
from typing import Any

from gc_warm.hooks.queues import ResultQueue, TaskQueue


def read(stock: Queue[Any], results: Queue[Any], number: int, limit: float) -> None:
    """A worker's part: hand on the sizes of what comes."""
    announced: list[int] = []
    tasks_, out = TaskQueue(stock, announced.append), ResultQueue(results)
    for _ in range(number):
        got = tasks_.get(timeout=limit)
        assert announced[-1] == got["task_id"], "announced before it was taken"
        out.put(bytes(len(got["buffer"])))


def put_large(results: Queue[Any], number: int, size: int) -> None:
    out = ResultQueue(results)
    for _ in range(number):
        out.put(bytes(size))


def put_for_ever(results: Queue[Any], begun: Any, size: int) -> None:
    out = ResultQueue(results)
    while True:
        begun.release()
        out.put(bytes(size))


def take_lock_and_die(results: Queue[Any]) -> None:
    results._wlock.acquire()  # type: ignore[attr-defined]
    os._exit(0)


def hold(stock: Queue[Any], begun: Any) -> None:
    """Take the queue's lock, and never give it back."""

    def announce(_: int) -> None:
        begun.set()
        signal.pause()

    TaskQueue(stock, announce).get()


def manage(pids: Any) -> None:
    """A manager's part: start workers, tell of them, and take nothing of what they have."""
    context = multiprocessing.get_context("spawn")
    tasks_, full, locked = (context.Queue() for _ in range(3))
    locked._wlock.acquire()  # type: ignore[attr-defined]
    begun = context.Semaphore(0)

    for wait, stock in (
        (wait_for_task, tasks_),
        (put_for_ever, full),
        (put_for_ever, full),
        (put_for_ever, locked),
    ):
        process = context.Process(target=wait, args=(stock, begun, 1_200_000))
        process.start()
        pids.send(process.pid)

    # the other two wait for a lock before they begin
    for _ in range(2):
        begun.acquire()
    pids.send(None)
    time.sleep(600)


def wait_for_task(stock: Queue[Any], begun: Any, _: int) -> None:
    reader = TaskQueue(stock, lambda _: None)
    begun.release()
    reader.get()
