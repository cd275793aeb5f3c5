"""Warm-up: rounds of tasks that reach every worker, and their result.

A task cannot be sent to a worker of choice. But a worker runs one task at a time: of as many tasks
as there are workers, all running at the same instant, each is on a worker of its own. So every task
of a round takes some time, counted from its own beginning, since the clocks of nodes differ. If a
worker was occupied by other people's tasks, another worker has run two tasks of the round; then
another round follows, with longer tasks. On a worker that has been reached before, a task does
nothing but take its time.

`gc_warm.client.executor.WarmExecutor.warm_up` is the entry for users.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gc_warm.client.warmth import Warmth, was_lost
from gc_warm.worker.lifecycle import Worker

_SHORTEST_TASK = 0.1  # seconds that a task of the first round takes at least
_LONGEST_TASK = 8.0  # seconds that a task of any round takes at least
# rounds in which workers died and no other worker was reached, after which there are no more
_DEADLY_ROUNDS = 3
_WATCH_INTERVAL = 1.0  # seconds between looks at whether the executor is still there


@dataclass(frozen=True)
class Visit:
    """A worker that was reached.

    Attributes:
        worker: The worker.
        warmth: Warmth of the function's call there: cold if it had to load, with its loads.
        error: The error that the function raised there, as text; None if it returned.
    """

    worker: Worker
    warmth: Warmth
    error: str | None


@dataclass(frozen=True)
class WarmUp:
    """The result of a warm-up.

    Attributes:
        workers: Number of workers that were asked for.
        reached: The workers that the function ran on, in the order in which they answered.
        rounds: Number of rounds; in each, as many tasks as there are workers were sent.
        seconds: Duration of the warm-up.
        lost: Number of tasks that ended with their workers. If the function itself kills the
            workers, the warm-up ends early.
    """

    workers: int
    reached: tuple[Visit, ...]
    rounds: int
    seconds: float
    lost: int = 0

    @property
    def complete(self) -> bool:
        """Whether all workers asked for were reached, and the function failed on none of them."""
        return len(self.reached) >= self.workers and not self.failed

    @property
    def failed(self) -> tuple[Visit, ...]:
        """The workers on which the function raised."""
        return tuple(visit for visit in self.reached if visit.error is not None)

    @property
    def stale(self) -> tuple[Visit, ...]:
        """The workers that hold another version of a module than there is now."""
        return tuple(visit for visit in self.reached if visit.warmth.stale)

    @property
    def missing(self) -> tuple[str, ...]:
        """The workers that were not reached, as text.

        A worker whose manager is known is named by its rank, its manager and its host. A last item
        says how many others are missing.
        """
        number = self.workers - len(self.reached)
        if number <= 0:
            return ()

        names = self._missing_of_known_managers()
        if number > len(names):
            names.append(f"{number - len(names)} of which nothing is known")
        return tuple(names)

    def _missing_of_known_managers(self) -> list[str]:
        ranks: dict[tuple[str, str], set[int]] = {}
        counts: dict[tuple[str, str], int] = {}
        for visit in self.reached:
            worker = visit.worker
            if worker.pool is not None and worker.rank is not None and worker.count is not None:
                ranks.setdefault((worker.host, worker.pool), set()).add(worker.rank)
                counts[worker.host, worker.pool] = worker.count

        names = []
        for (host, pool), count in counts.items():
            missing = set(range(count)) - ranks[host, pool]
            names += [f"worker {rank} of manager {pool} on {host}" for rank in sorted(missing)]
        return names

    def __str__(self) -> str:
        reached = len(self.reached)
        lines = [f"{reached} of {self.workers} workers reached in {self.seconds:.1f} s"]
        lines += [f"missing: {name}" for name in self.missing]
        if self.lost:
            lines.append(f"{self.lost} tasks were lost with their workers")

        for visit in self.stale:
            modules = ", ".join(visit.warmth.stale)
            lines.append(f"stale on {_place(visit.worker)}: {modules}")
        lines += [f"failed on {_place(visit.worker)}: {visit.error}" for visit in self.failed]
        return "\n  ".join(lines)


def _place(worker: Worker) -> str:
    return f"{worker.host}, pid {worker.pid}"


@dataclass
class WarmUpRun:
    """A warm-up under way.

    Tasks are sent until they have run on as many workers as there are, or time is over.

    Attributes:
        send: Submits a task, given the warm-up's token and the seconds that it takes at least.
        parse_record: Returns the warmth that a worker's record shows.
        keep: Called once for each worker that is reached, with the future of the task, the time
            when it was submitted, and the warmth.
        has_ended: Returns whether the executor has ended, and sends nothing any more.
        workers: Number of workers.
        timeout: Seconds after which the warm-up ends.
    """

    send: Callable[[str, float], concurrent.futures.Future[Any]]
    parse_record: Callable[[dict[str, Any]], Warmth]
    keep: Callable[[concurrent.futures.Future[Any], float, Warmth], None]
    has_ended: Callable[[], bool]
    workers: int
    timeout: float

    def __post_init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._start = time.monotonic()
        self._reached: dict[tuple[str, str | None, int], Visit] = {}
        self._lost = 0
        self._submitted = 0.0  # the tasks of the latest round

    def run(self) -> WarmUp:
        """Send the tasks, in rounds, and show on a terminal how many workers have been reached."""
        rounds = 0
        console = Console(stderr=True)
        progress = _progress(console)

        # older versions of rich end also a hidden one by an empty line
        with progress if console.is_terminal else contextlib.nullcontext():
            bar = progress.add_task("", total=self.workers)

            def show(reached: int) -> None:
                progress.update(bar, completed=reached)

            deadly = 0  # rounds in a row in which workers died and no other was reached
            seconds = _SHORTEST_TASK if self.workers > 1 else 0.0
            while self._is_wanted() and deadly < _DEADLY_ROUNDS:
                reached = len(self._reached)
                lost = self._lost
                self._round(seconds, show)

                is_deadly = self._lost > lost and len(self._reached) == reached
                deadly = deadly + 1 if is_deadly else 0
                rounds += 1
                seconds = min(2 * seconds, _LONGEST_TASK)

        duration = time.monotonic() - self._start
        return WarmUp(self.workers, tuple(self._reached.values()), rounds, duration, self._lost)

    def _is_wanted(self) -> bool:
        """Return whether another round is wanted: workers are missing, and there is time."""
        return len(self._reached) < self.workers and self._time_left > 0

    @property
    def _time_left(self) -> float:
        return max(0.0, self._start + self.timeout - time.monotonic())

    def _round(self, seconds: float, show: Callable[[int], None]) -> None:
        """Send a task for each worker, and collect the results that come back in time.

        A task that reaches its worker later knows that it has to be short.

        Args:
            seconds: Seconds that each task takes at least.
            show: Called with the number of workers that have been reached.
        """
        self._submitted = time.time()
        waiting = {self.send(self._token, seconds) for _ in range(self.workers)}

        while waiting and (left := self._time_left) > 0:
            done, waiting = concurrent.futures.wait(
                waiting, min(_WATCH_INTERVAL, left), concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                self._take_in(future)
            show(len(self._reached))

            if not done and self.has_ended():
                raise RuntimeError(
                    "the executor has ended; a task that it could not send, "
                    "such as one with odd arguments, ends it"
                )

    def _take_in(self, future: concurrent.futures.Future[Any]) -> None:
        """Count the worker that a task has reached, or that was lost with it."""
        error = future.exception()
        if was_lost(error):
            self._lost += 1  # the round after this one will tell
            return
        if error is not None:
            raise error

        record = future.result()
        warmth = self.parse_record(record)
        worker = warmth.worker
        assert worker is not None

        # a worker that was restarted meanwhile counts once
        number = worker.pid if worker.rank is None else worker.rank
        place = (worker.host, worker.pool, number)
        known = self._reached.get(place)
        if known is None or known.worker != worker:
            if record["error"] is not None and warmth.state == "unknown":
                warmth = replace(warmth, why="failed")
            self.keep(future, self._submitted, warmth)
        self._reached[place] = Visit(worker, warmth, record["error"])


def _progress(console: Console) -> Progress:
    """Return a progress bar, which is hidden unless the console is a terminal."""
    return Progress(
        TextColumn("workers warmed up"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
