"""Reaching every worker: what `gc_warm.client.executor.WarmExecutor.warm_up` does, and what it tells.

Nobody can send a task to a worker of choice. But a worker has one task at a time: of as many tasks
as there are workers, all running at the same instant, each is on a worker of its own. So every task
of a round takes some time, counted from its own beginning, since the clocks of nodes differ. Where
a task waited for a worker that was occupied by others', another has taken two; then there is
another round, a longer one. On a worker that has been reached, a task does nothing but take its
time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gc_warm.client.warmth import Warmth, was_lost
from gc_warm.worker.lifecycle import Worker

_SHORTEST, _LONGEST = 0.1, 8.0  # seconds that a task of a round takes at least
# rounds in which workers died and nobody new was reached, after which there are no more
_DEADLY = 3
_WATCH_INTERVAL = 1.0  # seconds between looks at whether the executor is still there


@dataclass(frozen=True)
class Visit:
    """A worker that was reached.

    Attributes:
        worker: Which it is.
        warmth: What the function found there: cold if it had to load, and what.
        error: What the function raised there, as text; None if it returned.
    """

    worker: Worker
    warmth: Warmth
    error: str | None


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up has come to.

    Attributes:
        workers: How many were asked for.
        reached: Those that the function ran on, in the order in which they answered.
        rounds: How often as many tasks as there are workers were sent.
        seconds: How long it took.
        lost: How many tasks ended with their workers; where the function itself is what kills them,
            it ends early.
    """

    workers: int
    reached: tuple[Visit, ...]
    rounds: int
    seconds: float
    lost: int = 0

    @property
    def complete(self) -> bool:
        """Whether as many workers as were asked for were reached, and the function failed on none of them."""
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
        """Who was not reached: by host and rank as far as its manager is known, and how many more."""
        ranks: dict[tuple[str, str], set[int]] = {}
        counts: dict[tuple[str, str], int] = {}
        for worker in (visit.worker for visit in self.reached):
            if worker.pool is not None and worker.rank is not None and worker.count is not None:
                ranks.setdefault((worker.host, worker.pool), set()).add(worker.rank)
                counts[worker.host, worker.pool] = worker.count
        named = [
            f"worker {rank} of manager {pool} on {host}"
            for (host, pool), count in counts.items()
            for rank in sorted(set(range(count)) - ranks[host, pool])
        ]
        left = max(0, self.workers - len(self.reached))
        if left > len(named):
            named.append(f"{left - len(named)} of which nothing is known")
        return tuple(named) if left else ()

    def __str__(self) -> str:
        text = f"{len(self.reached)} of {self.workers} workers reached in {self.seconds:.1f} s"
        text += "".join(f"\n  missing: {who}" for who in self.missing)
        text += f"\n  {self.lost} tasks were lost with their workers" if self.lost else ""
        text += "".join(
            f"\n  stale on {visit.worker.host}, pid {visit.worker.pid}: {', '.join(visit.warmth.stale)}"
            for visit in self.stale
        )
        return text + "".join(
            f"\n  failed on {visit.worker.host}, pid {visit.worker.pid}: {visit.error}"
            for visit in self.failed
        )


@dataclass
class WarmUpRun:
    """A warm-up under way: tasks are sent until they have been on as many workers as there are, or time is over.

    Attributes:
        send: Submits a task, given the warm-up's token and the seconds it is to take at least.
        tell: What a worker's record says.
        has_ended: Whether the executor sends nothing any more.
        workers: How many workers there are.
        timeout: Seconds.
    """

    send: Callable[[str, float], concurrent.futures.Future[Any]]
    tell: Callable[[dict[str, Any]], Warmth]
    has_ended: Callable[[], bool]
    workers: int
    timeout: float

    def __post_init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._start = time.monotonic()
        self._reached: dict[tuple[str, str | None, int], Visit] = {}
        self._lost = 0

    def run(self) -> WarmUp:
        """Send the tasks, in rounds, and show on a terminal how many workers have been reached."""
        rounds, deadly, seconds = 0, 0, _SHORTEST
        console = Console(stderr=True)
        columns = (
            TextColumn("workers warmed up"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        # older versions of rich end also a hidden one by an empty line
        with progress if console.is_terminal else contextlib.nullcontext():
            bar = progress.add_task("", total=self.workers)
            while len(self._reached) < self.workers and self._left > 0 and deadly < _DEADLY:
                reached, lost = len(self._reached), self._lost
                self._round(
                    seconds if self.workers > 1 else 0.0,
                    lambda done: progress.update(bar, completed=done),
                )
                deadly = deadly + 1 if self._lost > lost and len(self._reached) == reached else 0
                rounds, seconds = rounds + 1, min(2 * seconds, _LONGEST)
        return WarmUp(
            self.workers,
            tuple(self._reached.values()),
            rounds,
            time.monotonic() - self._start,
            self._lost,
        )

    @property
    def _left(self) -> float:
        return max(0.0, self._start + self.timeout - time.monotonic())

    def _round(self, seconds: float, progress: Callable[[int], None]) -> None:
        """Send a task for each worker, and take in what comes back in time.

        What comes to its worker later knows to be short.
        """
        waiting = {self.send(self._token, seconds) for _ in range(self.workers)}
        while waiting and (left := self._left) > 0:
            done, waiting = concurrent.futures.wait(
                waiting, min(_WATCH_INTERVAL, left), concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                self._take_in(future)
            progress(len(self._reached))
            if not done and self.has_ended():
                raise RuntimeError(
                    "the executor has ended; a task that it could not send, such as one with odd arguments, ends it"
                )

    def _take_in(self, future: concurrent.futures.Future[Any]) -> None:
        error = future.exception()
        if was_lost(error):
            self._lost += 1  # the round after this one will tell
            return
        if error is not None:
            raise error
        record = future.result()
        warmth = self.tell(record)
        worker = warmth.worker
        assert worker is not None
        # one that was restarted meanwhile counts once
        place = worker.pid if worker.rank is None else worker.rank
        self._reached[worker.host, worker.pool, place] = Visit(worker, warmth, record["error"])
