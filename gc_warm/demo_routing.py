"""The demonstration of ``gc-warm demo --routing``: the same tasks with and without `warm_first`.

Two engines as a real endpoint runs them get the same tasks at the same times. Each task needs one
of a few tables, which a worker makes when it has not got it, and keeps.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gc_warm import functions
from gc_warm.client.executor import WarmExecutor
from gc_warm.demo import LJ13_ENERGY
from gc_warm.testing.mock import MockExecutor

COLD = "C"
"""The letter of a call that had to load, in the lane of its worker."""

WARM = "w"
"""That of a call that found all that it needed."""

_ERRORS = [4e-8 + 1e-8 * number for number in range(6)]  # one table each, some 0.4 s of CPU
_TOLERANCE = 78 * _ERRORS[-1] + 5e-7  # see `gc_warm.demo`
_TASKS = 60
_INTERVAL = 0.15  # seconds between tasks
_LOOK = 0.1  # seconds between looks at what has ended


@dataclass
class Side:
    """One of the two engines, and what has become of its tasks so far.

    Attributes:
        title: What its tasks go by.
        expected: How many tasks it gets.
        lanes: For each worker, by its number, a letter for each of its calls.
        waits: Seconds from the submission of each task until it had ended.
        right: Whether every result was right.
    """

    title: str
    expected: int = _TASKS
    lanes: dict[int, str] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    right: bool = True

    @property
    def loads(self) -> int:
        """The number of calls that had to load."""
        return sum(lane.count(COLD) for lane in self.lanes.values())

    @property
    def longest(self) -> float:
        """The seconds within which 19 of 20 tasks had ended."""
        return sorted(self.waits)[len(self.waits) * 19 // 20] if self.waits else 0.0

    def add(self, future: Future[float], begun: float, ended: float) -> None:
        """Take up a task that has ended.

        Args:
            future: The task's.
            begun: When it was submitted.
            ended: When it had ended.

        Raises:
            TaskExecutionFailed: It has failed.
        """
        energy = future.result()
        warmth: Any = future.warmth  # type: ignore[attr-defined]
        rank = warmth.worker.rank or 0
        letter = WARM if warmth.state == "warm" else COLD
        self.lanes[rank] = self.lanes.get(rank, "") + letter
        self.waits.append(ended - begun)
        self.right = self.right and abs(energy - LJ13_ENERGY) <= _TOLERANCE


def run(workers: int, progress: Callable[[Sequence[Side]], None]) -> Sequence[Side]:
    """Run the demonstration.

    Args:
        workers: How many workers each engine has, 1 or more.
        progress: Called with both sides again and again, while tasks end.

    Returns:
        Stock, and warm-first.
    """
    sides = (Side("stock: to the worker that has waited longest"), Side("warm_first: true"))
    with contextlib.ExitStack() as stack:
        executors = []
        for is_warm_first in (False, True):
            options = {"workers_per_node": workers, "warm_first": is_warm_first}
            plain = MockExecutor(config="local", user_endpoint_config=options)
            executors.append(stack.enter_context(WarmExecutor(plain)))
        # which starts them
        for future in [executor.submit(functions.count) for executor in executors]:
            future.result()

        progress(sides)
        _run_tasks(sides, executors, progress)
    return sides


def _run_tasks(
    sides: Sequence[Side],
    executors: Sequence[WarmExecutor],
    progress: Callable[[Sequence[Side]], None],
) -> None:
    """Submit the same tasks to both, at the same times, and wait until all have ended."""
    chosen = random.Random(13).choices(_ERRORS, k=_TASKS)
    ends: dict[Future[float], float] = {}
    open_tasks: list[tuple[Side, Future[float], float]] = []
    following = time.monotonic()

    while chosen or open_tasks:
        if chosen and time.monotonic() >= following:
            error = chosen.pop()
            following += _INTERVAL
            for side, executor in zip(sides, executors, strict=True):
                begun = time.monotonic()
                near = executor.near(f"table {error}")
                future: Future[float] = near.submit(functions.cluster_energy, None, error)
                future.add_done_callback(partial(_note_end, ends))
                open_tasks.append((side, future, begun))

        for task in [task for task in open_tasks if task[1] in ends]:
            side, ended, begun = task
            open_tasks.remove(task)
            side.add(ended, begun, ends.pop(ended))
        progress(sides)
        until = following if chosen else time.monotonic() + _LOOK
        time.sleep(max(0.0, min(_LOOK, until - time.monotonic())))


def _note_end(ends: dict[Future[float], float], future: Future[float]) -> None:
    ends[future] = time.monotonic()
