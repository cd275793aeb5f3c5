"""What the tests of the queues run in processes of their own, as workers do.

They are here so that such a process imports nothing of the tests.
"""

from __future__ import annotations

import os
import signal
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
