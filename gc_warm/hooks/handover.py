"""Jobs that hand over: the next one is asked for before the last one drains.

A stock endpoint asks for another job when tasks wait and none is left that could take them. With
this hook, a job that is about to drain has a successor by then: it is asked for early enough by
what starts have taken so far, from the request until workers were ready. Jobs that have a
successor, or drain, give no free slots any more.

It stands between Parsl's poller and its scaling strategy, and shows the strategy an executor
without those jobs. Which managers are connected and which of them drain is asked of the
interchange at every look. The batch system's own status, which Parsl asks for once a minute, says
only which jobs there are; one that has drained, and whose managers have gone, is over whatever it
says. A job that is put into the queue again is known by managers that are new, and one that is
suspended counts as a job.

A config asks for this by a comment in its ``worker_init``, which is in the script of a job, and in
no environment. At whatever is not as it is known here, Parsl's own strategy is all that is left.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

# A child of Parsl's: the endpoint sets up its log by naming loggers, and switches others off.
log = logging.getLogger("parsl.gc_warm")

RECENT = 600.0
"""Seconds without any task after which a job ends without a successor."""

_MARGIN = 1.5  # of what starts have taken
_SHARE = 3  # of a job's life, the part that a start may take
_FORGETTING = 4  # starts after which one that took longer counts for little
_SCALING = ("simple", "htex_auto_scale")
_LINE = re.compile(r"^[ \t]*# gc_warm\.hooks\.handover(?: overlap_jobs=(\d{1,9}))?[ \t]*$", re.M)
_PRELOADS = re.compile(
    r"gc_warm\.worker\.boot(?:\s+--(?!preload-node=)\S+)*\s+(?:--preload-node=)?\w"
)


def overlap_jobs(worker_init: str) -> int | None:
    """Return how many jobs there may be beyond the maximum while jobs hand over.

    Args:
        worker_init: The ``worker_init`` of a config.

    Returns:
        The number; None if jobs do not hand over.
    """
    found = _LINE.search(worker_init)
    return int(found[1] or 0) if found else None


def lead(start: float, drain_period: float, look: float) -> float:
    """Return how many seconds before a job drains its successor is asked for.

    Args:
        start: Seconds that starts have taken, from the request until workers were ready.
        drain_period: Seconds from the start of a job's managers until they drain.
        look: Seconds between two looks of the strategy.
    """
    return min(_MARGIN * start + 2 * look, drain_period / _SHARE)


def install() -> None:
    """Have the jobs of all executors of this process hand over, where their config asks for it.

    Raises:
        TypeError: This Parsl is not as it is known here.
    """
    from parsl.jobs.strategy import Strategy

    stock = Strategy.__init__
    if list(inspect.signature(stock).parameters) != ["self", "strategy", "max_idletime"]:
        raise TypeError(f"this Parsl is not as gc_warm knows it: {inspect.signature(stock)}")

    def __init__(self: Any, *, strategy: str | None, max_idletime: float) -> None:
        stock(self, strategy=strategy, max_idletime=max_idletime)
        if strategy in _SCALING:
            self.strategize = _Handover(self.strategize).strategize

    Strategy.__init__ = __init__  # type: ignore[method-assign]


class _Handover:
    """The way in which a strategy looks at executors.

    Args:
        stock: Parsl's own strategy.
    """

    def __init__(self, stock: Callable[[Sequence[Any]], None]) -> None:
        self._stock = stock
        self._successions: WeakKeyDictionary[Any, _Succession] = WeakKeyDictionary()
        self._is_off = False

    def strategize(self, executors: Sequence[Any]) -> None:
        """Ask for successors, and have the strategy scale by the jobs that do not end soon.

        Args:
            executors: The executors to be scaled.
        """
        if self._is_off:
            self._stock(executors)
            return

        try:
            self._stock([self._seen(executor) for executor in executors])
            for succession in self._successions.values():
                succession.note_requests()
        except Exception:
            self._is_off = True
            log.warning("jobs do not hand over from here", exc_info=True)
            self._stock(executors)

    def _seen(self, executor: Any) -> Any:
        """Return an executor as the strategy is to see it."""
        if executor not in self._successions:
            overlap = overlap_jobs(executor.provider.worker_init)
            if overlap is None:
                return executor
            if not executor.drain_period:
                raise ValueError("handover needs a drain_period, and the engine has none")
            self._successions[executor] = _Succession(executor, overlap)
        return self._successions[executor].look()


class _Overlay:
    """An object with some of its attributes replaced; the original is left as it is.

    Args:
        original: The object.
        **replaced: The attributes.
    """

    def __init__(self, original: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, _original=original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._original)


@dataclass
class _Job:
    """A job that waits or runs, or has just ended; times are on the monotonic clock.

    Attributes:
        asked: The time of the request.
        waited: The last time at which it was known to wait in the queue.
        managers: The managers that have connected since it began, or began again.
        connected: The time at which the first of them was seen.
        is_connected: Whether one of them was there at the last look.
        is_ready: Whether it has been seen to take tasks.
        drains: Whether it has been seen to drain.
        is_over: Whether it has drained and its managers have gone.
        successor: The block of its successor; empty if there is none.
        was_followed: Whether it has drained when it had a successor.
        is_left: Whether it is left to Parsl's own ways.
        has_no_room: Whether it was said that there is no room for its successor.
    """

    asked: float
    waited: float
    managers: set[str] = field(default_factory=set)
    connected: float = 0.0
    is_connected: bool = False
    is_ready: bool = False
    drains: bool = False
    is_over: bool = False
    successor: str = ""
    was_followed: bool = False
    is_left: bool = False
    has_no_room: bool = False

    @property
    def retires(self) -> bool:
        """Whether others are to take its tasks."""
        return not self.is_over and not self.is_left and (self.drains or bool(self.successor))

    @property
    def stays(self) -> bool:
        """Whether it takes tasks for a while, or will when it has begun."""
        is_lost = self.managers and not self.is_connected
        return not (is_lost or self.is_left or self.drains or self.successor)


@dataclass
class _Slowest:
    """The largest of values that are forgotten by and by."""

    value: float | None = None

    def add(self, value: float) -> None:
        """Take a new value: a larger one counts at once, a smaller one in part."""
        if self.value is None or value > self.value:
            self.value = value
        else:
            self.value -= (self.value - value) / _FORGETTING


class _Succession:
    """The jobs of one executor, and who follows whom.

    Args:
        executor: The executor.
        overlap: How many jobs there may be beyond the maximum while jobs hand over.
    """

    def __init__(self, executor: Any, overlap: int) -> None:
        self._executor = executor
        self._overlap = overlap
        self._drain_period: float = executor.drain_period
        self._preloads = bool(_PRELOADS.search(executor.provider.worker_init))

        self._jobs: dict[str, _Job] = {}
        self._start = _Slowest()  # seconds from a request until workers were ready
        self._age = _Slowest()  # seconds from a manager's start until it was seen
        self._look = 0.0  # seconds since the look before
        self._last_look = 0.0
        self._last_poll = 0.0
        self._last_task = 0
        self._work: deque[tuple[float, int]] = deque()  # times at which there were tasks, how many

    def look(self) -> Any:
        """Ask for the successors that are due; return the executor without jobs that retire."""
        now = time.monotonic()
        self._look = now - self._last_look if self._last_look else 0.0
        self._last_look = now
        self._note_work(now)
        self._note_jobs(now)
        self._ask_for_successors(now)

        hidden = [block for block, job in self._jobs.items() if job.is_over or job.retires]
        retiring = sum(job.retires for job in self._jobs.values())
        status = self._executor.status_facade
        provider = self._executor.provider
        room = max(0, provider.max_blocks - max(0, retiring - self._overlap))
        return _Overlay(
            self._executor,
            status_facade={block: each for block, each in status.items() if block not in hidden},
            provider=_Overlay(provider, max_blocks=room),
        )

    def note_requests(self) -> None:
        """Note the jobs that the strategy has asked for just now."""
        now = time.monotonic()
        for block, status in self._executor.status_facade.items():
            if not status.terminal:
                self._jobs.setdefault(block, _Job(now, now))

    def _note_work(self, now: float) -> None:
        """Note whether there are tasks, or were any since the look before."""
        tasks = self._executor.outstanding()
        count = self._executor._task_counter
        if tasks or count != self._last_task:
            self._work.append((now, tasks))
        self._last_task = count
        while self._work and self._work[0][0] < now - RECENT:
            self._work.popleft()

    def _note_jobs(self, now: float) -> None:
        """Note what has become of each job."""
        self.note_requests()
        is_fresh = self._executor._last_poll_time != self._last_poll
        self._last_poll = self._executor._last_poll_time
        managers: dict[str, list[dict[str, Any]]] = {}
        for manager in self._executor.connected_managers():
            managers.setdefault(manager["block_id"], []).append(manager)
        registrations = Counter(self._executor.connected_blocks())

        for block, job in list(self._jobs.items()):
            status = self._executor.status_facade[block]
            if status.terminal:
                del self._jobs[block]
            elif block in managers:
                self._note_running(block, managers[block], registrations[block], now)
            elif job.is_connected:
                self._note_gone(job, now)
            elif is_fresh and status.state.name == "PENDING":
                self._note_waiting(block, now)

        for block, job in self._jobs.items():
            self._note_successor(block, job)

    def _note_waiting(self, block: str, now: float) -> None:
        """Note that a job waits in the queue: for the first time, or again."""
        if self._jobs[block].managers:
            log.info("%s is in the queue again", self._name(block))
            self._jobs[block] = _Job(now, now)
        self._jobs[block].waited = now

    def _note_running(
        self, block: str, managers: list[dict[str, Any]], registrations: int, now: float
    ) -> None:
        names = {manager["manager"] for manager in managers}
        job = self._jobs[block]
        if job.managers.isdisjoint(names):
            if job.managers:  # it was in the queue again, which the status has not said
                job = self._jobs[block] = _Job(now, now, is_ready=True)
            job.connected = now
        job.managers |= names
        job.is_connected = True

        # behind a gate, a manager registers once more when its workers are ready
        if not job.is_ready and (
            not self._preloads
            or registrations >= 2 * len(names)
            or any(manager["tasks"] for manager in managers)
        ):
            job.is_ready = True
            self._start.add(now - job.asked)
            log.info("%s was ready %.1f s after its request", self._name(block), now - job.asked)

        if not job.drains and any(manager["draining"] for manager in managers):
            self._note_drain(job, now)

    def _note_gone(self, job: _Job, now: float) -> None:
        """Note that a job has lost its managers: its end, if it was about to drain."""
        job.is_connected = False
        if not job.drains and now >= self._drains_at(job) - self._look:
            self._note_drain(job, now)
        job.is_over = job.drains

    def _note_drain(self, job: _Job, now: float) -> None:
        job.drains = True
        age = job.connected + self._drain_period - now
        self._age.add(min(max(0.0, age), job.connected - job.waited))

    def _note_successor(self, block: str, job: _Job) -> None:
        """Say what is wrong with the successor of a job, when it is needed or has ended."""
        if not job.successor or job.is_left or job.was_followed:
            return

        successor = self._jobs.get(job.successor)
        if successor is None:
            job.is_left = True
            log.warning(
                "%s, the successor of %s, has ended: that job ends as it would without handover",
                self._name(job.successor),
                self._name(block),
            )
        elif job.drains:
            job.was_followed = True
            if not successor.is_ready:
                log.warning(
                    "%s drains, and its successor, %s, is not ready %.0f s after its request: "
                    "tasks wait for it, as they would without handover",
                    self._name(block),
                    self._name(job.successor),
                    time.monotonic() - successor.asked,
                )

    def _drains_at(self, job: _Job) -> float:
        """Return when a job drains, at the earliest.

        Its managers count from their start, which is before they are seen, and after the last time
        at which the job was known to wait.
        """
        hidden = job.connected - job.waited
        if self._age.value is not None:
            hidden = min(hidden, self._age.value)
        return job.connected - hidden + self._drain_period

    def _is_due(self, job: _Job, now: float) -> bool:
        if not job.is_connected or job.successor or job.is_left:
            return False

        before = lead(self._start.value or 0.0, self._drain_period, self._look)
        return job.drains or now >= self._drains_at(job) - before

    def _ask_for_successors(self, now: float) -> None:
        """Ask for the successors of jobs that are due, as many as there is work and room for."""
        due = {block: job for block, job in self._jobs.items() if self._is_due(job, now)}
        staying = sum(job.stays and block not in due for block, job in self._jobs.items())
        missing = max(0, self._jobs_needed() - staying)
        for block in list(due)[:missing]:
            if self._has_room(block):
                self._ask_for_successor(block)

    def _has_room(self, block: str) -> bool:
        """Return whether the maximum leaves room for a job's successor; say so if it does not."""
        job = self._jobs[block]
        alive = sum(not each.is_over for each in self._jobs.values())
        retiring = sum(each.retires or each is job for each in self._jobs.values())
        most = self._executor.provider.max_blocks
        if alive < most + min(self._overlap, retiring):
            return True

        if not job.has_no_room:
            job.has_no_room = True
            log.warning(
                "%s ends soon, and its successor has to wait for the end of a job: there are %d, "
                "with a maximum of %d, and overlap_jobs is %d",
                self._name(block),
                alive,
                most,
                self._overlap,
            )
        return False

    def _ask_for_successor(self, block: str) -> None:
        job = self._jobs[block]
        launched = self._executor.scale_out_facade(1)
        if not launched:
            job.is_left = True
            log.warning(
                "the scheduler takes no successor of %s: that job ends as it would without "
                "handover",
                self._name(block),
            )
            return

        now = time.monotonic()
        job.successor = launched[0]
        self._jobs[job.successor] = _Job(now, now)
        log.info(
            "%s is asked for, to follow %s, which drains in about %.0f s",
            self._name(job.successor),
            self._name(block),
            max(0.0, self._drains_at(job) - now),
        )

    def _jobs_needed(self) -> int:
        """Return how many jobs the tasks of late have kept busy, at least one if there were any."""
        if not self._work:
            return 0
        slots: float = self._executor.workers_per_node * self._executor.provider.nodes_per_block
        return max(1, math.ceil(max(tasks for _, tasks in self._work) / slots))

    def _name(self, block: str) -> str:
        return f"job {self._executor.blocks_to_job_id.get(block)} (block {block})"
