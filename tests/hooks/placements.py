"""A node in a simulation, free of a machine's noise, with the placement that workers do by."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

from gc_warm.hooks.placement import decide
from gc_warm.hooks.pool import Needs, Seat, State, Waiting


@dataclass(frozen=True)
class Work:
    """Tasks with one of several keys each, which are distributed as in Zipf's law.

    Attributes:
        tasks: How many.
        rate: How many come in a second; 0 for all at once.
        load: Seconds of a load.
        median: The median of the seconds of a task, which are log-normal.
        keys: How many keys there are.
        room: Keys whose state a worker has room for.
    """

    tasks: int
    rate: float
    load: float
    median: float = 0.02
    keys: int = 8
    room: int = 2


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    loads: int
    seconds: float
    waits: list[float]

    def wait(self, part: float) -> float:
        return sorted(self.waits)[int(part * (len(self.waits) - 1))]


class Node:
    """A manager and its workers; *routed* ones, or those of stock, which take what is first."""

    def __init__(self, work: Work, workers: int, prefetch: int, *, routed: bool = True) -> None:
        chance = random.Random(7)
        weights = [1 / (number + 1) for number in range(work.keys)]
        self.work, self.routed = work, routed
        self.keys = chance.choices(range(work.keys), weights, k=work.tasks)
        self.lengths = [chance.lognormvariate(math.log(work.median), 0.5) for _ in self.keys]
        self.comes = [0.0] * work.tasks
        for number in range(1, work.tasks) if work.rate else ():
            self.comes[number] = self.comes[number - 1] + chance.expovariate(work.rate)

        self.capacity = workers + prefetch
        self.queue = deque(range(work.tasks))  # of the interchange
        self.under_way = 0
        self.state = State("", seats={number: Seat(1, idle=True) for number in range(workers)})
        self.held: dict[int, list[int]] = {number: [] for number in range(workers)}
        self.events = [(time, "came", number, 0) for number, time in enumerate(self.comes)]
        self.loads = 0
        self.waits = [0.0] * work.tasks
        self.now = 0.0
        self.ended = 0.0

    def run(self) -> Outcome:
        heapq.heapify(self.events)
        while self.events:
            self.now, kind, number, worker = heapq.heappop(self.events)
            if kind == "loaded":
                self.note(number)
                self.state.seats[worker].loading = False
            elif kind == "done":
                self.end(number, worker)
            if not self.events or self.events[0][0] > self.now:
                self.dispatch()
        return Outcome(self.loads, self.ended, self.waits)

    def note(self, number: int) -> None:
        hint = bytes([self.keys[number]])
        self.state.note(hint, Needs(frozenset([hint]), self.work.load))

    def dispatch(self) -> None:
        while self.queue and self.under_way < self.capacity:
            if self.comes[self.queue[0]] > self.now:
                break
            number = self.queue.popleft()
            self.under_way += 1
            hint = bytes([self.keys[number]])
            self.state.tasks.append(Waiting(number, hint, self.now))

        seats = self.state.seats
        idle = [number for number, seat in seats.items() if seat.idle]
        if self.routed:
            plan = decide(self.state, idle, self.now)
            given, again = plan.given, plan.again
        else:
            order = sorted(idle, key=lambda number: seats[number].used)
            given, again = dict(zip(order, self.state.tasks, strict=False)), math.inf
        for worker, task in given.items():
            self.begin(worker, task)
        if again < math.inf:
            heapq.heappush(self.events, (max(again, self.now + 1e-6), "alarm", 0, 0))

    def begin(self, worker: int, task: Waiting) -> None:
        self.state.tasks.remove(task)
        seat, held, key = self.state.seats[worker], self.held[worker], self.keys[task.task_id]
        seat.idle, seat.doing = False, task.hint
        begins = self.now
        if key in held:
            held.remove(key)
        else:
            self.loads += 1
            seat.loading = True
            begins += self.work.load
            heapq.heappush(self.events, (begins, "loaded", task.task_id, worker))
            del held[: len(held) - self.work.room + 1]
        held.append(key)
        end = begins + self.lengths[task.task_id]
        heapq.heappush(self.events, (end, "done", task.task_id, worker))

    def end(self, number: int, worker: int) -> None:
        seat = self.state.seats[worker]
        seat.idle, seat.doing, seat.used = True, None, self.now
        seat.holds = frozenset(bytes([key]) for key in self.held[worker])
        self.under_way -= 1
        self.ended = self.now
        self.waits[number] = self.now - self.comes[number] - self.lengths[number]
