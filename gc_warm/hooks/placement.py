"""Which idle worker gets which of the tasks that wait: a decision, and nothing that acts.

- A task goes to an idle worker that holds its hint; of several, to the one used last.
- One whose holder is busy waits for it. While another worker is idle, which could do it, it waits
  hardly longer than its load takes; while the first load with that hint is under way, it waits for
  that, too, since another would end later.
- One that nobody holds goes to the idle worker that gives up least for it.
- One without a hint goes to the worker used last.
- Tasks that find state come before those that have to load. But none is passed over for more than
  `PATIENCE` seconds, beyond those that it waits for its holder: then it gets the next worker.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gc_warm.hooks.pool import Seat, State, Waiting

PATIENCE = 3.0
"""The most seconds for which later tasks are preferred to one that could be done."""

WORTH = 1.25
"""How long a task waits for its busy holder while others are idle, in lengths of its load.

What keeps the holder busy is often a load as long as that, and the call after it."""

LONGEST_LOAD = 600.0
"""The most seconds for which a task waits for a load whose length nobody knows."""


@dataclass(frozen=True)
class Plan:
    """A decision.

    Attributes:
        given: The tasks that idle workers are to take, by the numbers of the workers.
        again: When the rest is to be decided anew, though nothing has happened.
    """

    given: Mapping[int, Waiting]
    again: float


def decide(state: State, idle: Collection[int], now: float, eager: int | None = None) -> Plan:
    """Decide which idle workers take which tasks.

    Args:
        state: The tasks, and what is known of the workers.
        idle: The numbers of the workers that can take one.
        now: The time, on the clock of the tasks.
        eager: The worker that takes what has no hint, since more of that waits than one worker can
            do; None for the one used last.

    Returns:
        The decision.
    """
    return _Decision(state, idle, now, eager).plan()


class _Decision:
    """The steps of `decide`."""

    def __init__(self, state: State, idle: Collection[int], now: float, eager: int | None) -> None:
        self._state = state
        self._eager = eager
        self._now = now
        self._seats = state.seats
        # used last first
        self._free = sorted(idle, key=lambda number: -self._seats[number].used)
        self._given: dict[int, Waiting] = {}
        self._rest = [*state.tasks, *([state.head] if state.head is not None else [])]
        self._wanted = {task.hint for task in self._rest}
        # hints that somebody will hold soon
        self._coming = _held_by_busy(self._seats, self._free)

    def plan(self) -> Plan:
        in_order = self._rest
        self._place([task for task in self._rest if self._is_overdue(task)], may_load=True)
        self._place(self._rest, may_load=False)
        self._place(self._rest, may_load=True)

        last = max((in_order.index(task) for task in self._given.values()), default=0)
        for task in in_order[:last]:
            if task in self._rest:
                task.passed = task.passed or self._now
        if not self._free:
            return Plan(self._given, math.inf)

        for task in self._rest:
            task.left = task.left or self._now
        again = min((self._end_of_wait(task) for task in self._rest), default=math.inf)
        return Plan(self._given, again)

    def _place(self, tasks: list[Waiting], *, may_load: bool) -> None:
        for task in tasks:
            if not self._free:
                return
            number = self._warm_for(task)
            if number is None and may_load and not self._waits(task):
                number = self._cold_for(task)
            if number is not None:
                self._free.remove(number)
                self._given[number] = task
                self._rest = [each for each in self._rest if each is not task]
                self._coming |= self._seats[number].holds
                if task.hint is not None:
                    self._coming.add(task.hint)

    def _warm_for(self, task: Waiting) -> int | None:
        if task.hint is None:
            return None
        holders = (number for number in self._free if task.hint in self._seats[number].holds)
        return next(holders, None)

    def _cold_for(self, task: Waiting) -> int:
        if task.hint is None:
            is_free = self._eager is not None and self._eager in self._free
            return self._eager if is_free and self._eager is not None else self._free[0]

        def loss(number: int) -> tuple[int, int, float]:
            holds = self._seats[number].holds
            return len(self._wanted & holds), len(holds), self._seats[number].used

        return min(self._free, key=loss)

    def _waits(self, task: Waiting) -> bool:
        """Return whether a task waits for a busy worker, which will have what it needs."""
        return self._worth(task) > 0 and not (
            self._now >= self._end_of_wait(task) or self._is_overdue(task)
        )

    def _is_overdue(self, task: Waiting) -> bool:
        patience = PATIENCE + self._worth(task)
        return task.passed > 0 and self._now >= task.passed + patience

    def _end_of_wait(self, task: Waiting) -> float:
        """Return until when a task waits for a busy worker rather than go to an idle one."""
        return task.left + self._worth(task) if task.left else math.inf

    def _worth(self, task: Waiting) -> float:
        """Return how many seconds it is worth to wait for the worker that has what a task needs."""
        if task.hint is None or task.hint not in self._coming:
            return 0.0

        needs = self._state.needs.get(task.hint)
        if needs is not None:
            return WORTH * needs.seconds
        busy = [seat for seat in self._seats.values() if seat.doing == task.hint]
        return LONGEST_LOAD if any(seat.loading for seat in busy) else PATIENCE


def _held_by_busy(seats: Mapping[int, Seat], free: Collection[int]) -> set[bytes]:
    """Return the hints of which workers have the state, or will, that are not free."""
    held: set[bytes] = set()
    for number, seat in seats.items():
        if number not in free:
            held |= seat.holds
            if seat.doing is not None:
                held.add(seat.doing)
    return held
