"""The account of a soak: the kinds of its tasks, and what may become of each.

Whether a loss is right is known from the kills alone, see `tests/soak.py`.
"""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import psutil
import soaked
from globus_compute_sdk.errors import TaskExecutionFailed

KILLED = {
    "worker": 5,
    "template": 2,
    "manager": 1,
    "manager's helper": 1,
    "program": 3,
    "program's supervisor": 2,
    "server": 3,
    "server's supervisor": 2,
}
"""The roles of what is killed, and how often each, compared with the others.

Not the interchange: with it an engine loses all of its tasks. Not the tracker of multiprocessing's
resources: what it tracks stays behind in /dev/shm, whatever else is done.
"""


WORKERS = 2
"""Workers of a block."""

LIMIT = 0.1
"""The part by which memory may grow in `UNIT` tasks."""

UNIT = 10_000


@dataclass(frozen=True)
class Kind:
    """A kind of tasks.

    Attributes:
        weight: How often it is chosen, compared with the others.
        function: The function, whose first argument is the task's number.
        arguments: Returns its other arguments.
        result: Returns the result that is right, of all arguments; None if there is none.
        error: Returns what the text of its own error has, of all arguments; None if there is none.
        used: The role whose kill, or that of its supervisor, makes it fail.
        is_huge: Whether it sends more than a pipe holds.
        hint: Returns what the task is to be near to, of its arguments; None for no hint.
    """

    weight: float
    function: Callable[..., Any]
    arguments: Callable[[random.Random], tuple[Any, ...]] = lambda chance: ()
    result: Callable[..., Any] | None = None
    error: Callable[..., str | None] = lambda *arguments: None
    used: str = ""
    is_huge: bool = False
    hint: Callable[..., str] | None = None


TIMED_OUT = "AppTimeout"

KINDS = {
    "quick": Kind(600, soaked.quick, result=lambda token: (soaked.entry(1, token), 1)),
    "load": Kind(
        120,
        soaked.look_up,
        lambda chance: (chance.randrange(6), chance.random() < 0.3),
        lambda token, key, fails: soaked.entry(key, token),
        lambda token, key, fails: f"LookupError: no table for task {token}\n" if fails else None,
        hint=lambda key, fails: f"table {key}",
    ),
    "timed load": Kind(
        40,
        soaked.look_up_in_time,
        lambda chance: (chance.randrange(6), chance.uniform(0.001, 0.03)),
        lambda token, key, seconds: soaked.entry(key, token),
        lambda *arguments: TIMED_OUT,
        hint=lambda key, seconds: f"slow table {key}",
    ),
    "program": Kind(80, soaked.call, result=lambda token: token, used="program"),
    "timed call": Kind(
        20,
        soaked.call_in_time,
        lambda chance: (chance.uniform(0.0001, 0.002),),
        lambda token, seconds: token,
        lambda *arguments: TIMED_OUT,
        used="program",
    ),
    "call in vain": Kind(
        4, soaked.call_in_vain, error=lambda token: "gc_warm.ProcessTimeoutError: ", used="program"
    ),
    "server": Kind(
        80,
        soaked.ask,
        lambda chance: (chance.choice(["worker", "node"]),),
        lambda token, scope: str(token),
        used="server",
    ),
    "result": Kind(
        25,
        soaked.large,
        lambda chance: (chance.randrange(1000, 730_000),),
        soaked.pattern,
    ),
    "argument": Kind(
        15,
        soaked.measure,
        lambda chance: (soaked.pattern(chance.randrange(10**6), chance.randrange(1000, 730_000)),),
        lambda token, sent: zlib.crc32(sent),
    ),
    "largest result": Kind(
        4,
        soaked.large,
        lambda chance: (chance.randrange(7_700_000, 7_755_000),),
        soaked.pattern,
        is_huge=True,
    ),
    "too large": Kind(
        4,
        soaked.large,
        lambda chance: (chance.randrange(7_770_000, 8_200_000),),
        error=lambda *arguments: "MaxResultSizeExceeded(",
    ),
    "endless": Kind(0.5, soaked.never_end, error=lambda token: TIMED_OUT),
}


@dataclass(frozen=True)
class Kill:
    """A process that was killed.

    Attributes:
        role: Its role.
        pid: Its process id.
        parent: That of its parent.
        pool: The manager that it is, or is a child of; empty for others.
        workers: The workers that end by it: itself, or those that a template has forked.
    """

    role: str
    pid: int
    parent: int = 0
    pool: str = ""
    workers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loss:
    """A task that ended with an error which a kill has to explain.

    Attributes:
        token: The task.
        kind: Its kind.
        what: What was lost: a role.
        text: The end of the error's text.
        pool: The manager that the error names; empty if it names none.
    """

    token: int
    kind: str
    what: str
    text: str
    pool: str = ""


_LOST = re.compile(r"\.(Worker|Manager)Lost: Task failure due to loss of \w+ (\S+) on host")
_TEXT_KEPT = 1000  # characters, the last of an error's text
_PROCESS = re.compile(r"^gc_warm\.Process(Died|Start)Error: ", re.MULTILINE)


@dataclass
class Account:
    """The account of a run: what has become of each task, and which kills there were.

    Attributes:
        sent: Number of tasks that have been sent.
        ended: Number of tasks that have ended.
        failed: Number of tasks that have ended with their own errors.
        kills: The kills.
        losses: What they have to explain.
        unended: Tasks that have not ended.
        wrong: Tasks with a wrong result.
        doubled: Tasks that have begun twice.
        unexplained: Tasks that were lost with a wrong error.
        births: Number of workers that took tasks, by the template that they were born from: the
            first of their manager, its second, or 0 for those that were started.
        left: What is left behind, by kind.
        growth: By how much memory has grown, by process.
        offences: A line about everything that should not be.
    """

    sent: int = 0
    ended: int = 0
    failed: int = 0
    kills: list[Kill] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    unended: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    unexplained: list[int] = field(default_factory=list)
    births: Counter[int] = field(default_factory=Counter)
    left: dict[str, int] = field(
        default_factory=lambda: {"processes": 0, "descriptors": 0, "files": 0}
    )
    growth: dict[str, float | None] = field(default_factory=dict)
    offences: list[str] = field(default_factory=list)

    def take(self, token: int, kind: str, arguments: tuple[Any, ...], future: Future[Any]) -> int:
        """Judge a task that has ended.

        Args:
            token: The task.
            kind: Its kind.
            arguments: Its arguments.
            future: Its future.

        Returns:
            The process id of its worker; 0 if that is not known.
        """
        self.ended += 1
        error = future.exception()
        if error is not None:
            self._take_error(token, kind, arguments, error)
            return 0

        worker, value = future.result()
        expected = KINDS[kind].result
        if expected is None or value != expected(token, *arguments):
            self.wrong.append(token)
            self.offences.append(f"task {token} ({kind}): wrong result {value!r:.200}")
        return int(worker)

    def _take_error(
        self, token: int, kind: str, arguments: tuple[Any, ...], error: BaseException
    ) -> None:
        text = str(error.remote_data) if isinstance(error, TaskExecutionFailed) else ""
        own = KINDS[kind].error(token, *arguments)
        lost = _LOST.search(text)

        end = (text or repr(error)).strip()[-_TEXT_KEPT:]

        if own is not None and own in text:
            self.failed += 1
        elif lost and lost[1] == "Worker":
            self.losses.append(Loss(token, kind, "worker", end))
        elif lost:
            self.losses.append(Loss(token, kind, "manager", end, lost[2]))
        elif KINDS[kind].used and _PROCESS.search(text):
            self.losses.append(Loss(token, kind, KINDS[kind].used, end))
        else:
            self._unexplained(token, kind, end)

    def _unexplained(self, token: int, kind: str, error: str) -> None:
        self.unexplained.append(token)
        self.offences.append(f"task {token} ({kind}): wrong error: {error}")

    def leave_open(self, tasks: Mapping[int, str]) -> None:
        """Note tasks that do not end.

        Args:
            tasks: Their kinds, by their numbers.
        """
        for token, kind in tasks.items():
            self.unended.append(token)
            self.offences.append(f"task {token} ({kind}): has not ended")

    def settle(self, begun: Iterable[tuple[int, int, int]]) -> None:
        """Compare with what the tasks have noted as they began.

        Args:
            begun: The number of each task that has begun, its worker, and the template of that.
        """
        times = Counter[int]()
        workers: dict[int, int] = {}
        templates: dict[int, int] = {}
        lost = {loss.token for loss in self.losses}
        for token, worker, template in begun:
            times[token] += 1
            templates[worker] = template
            if token in lost:
                workers[token] = worker

        for token in [token for token, number in times.items() if number > 1]:
            self.doubled.append(token)
            self.offences.append(f"task {token}: has begun {times[token]} times")
        self.births.update(templates.values())
        self._explain(workers)

    def _explain(self, workers: Mapping[int, int]) -> None:
        """Find a kill for every loss."""
        pools = {kill.pool for kill in self.kills if kill.role in ("manager", "manager's helper")}
        killed = Counter(worker for kill in self.kills for worker in kill.workers)
        programs = Counter(kill.parent for kill in self.kills if kill.role.startswith("program"))
        servers = WORKERS * sum(kill.role.startswith("server") for kill in self.kills)

        adrift = []  # no worker that was killed had begun them, but it may have had them in hand
        for loss in self.losses:
            worker = workers.get(loss.token, 0)
            if loss.what == "worker" and killed[worker]:
                killed[worker] -= 1
            elif loss.what == "worker":
                adrift.append(loss)
            elif loss.what == "program" and programs[worker]:
                programs[worker] -= 1
            elif loss.what == "server" and servers:
                servers -= 1
            elif loss.what != "manager" or loss.pool not in pools:
                self._unexplained(loss.token, loss.kind, loss.text)

        for loss in adrift[killed.total() :]:
            self._unexplained(loss.token, loss.kind, loss.text)

    def leave(self, kind: str, things: Iterable[object]) -> None:
        """Note what is left behind.

        Args:
            kind: What they are: a key of `left`.
            things: What is left.
        """
        for thing in things:
            self.left[kind] += 1
            self.offences.append(f"left behind, {kind}: {thing}")

    def grow(self, process: str, growth: float | None) -> None:
        """Note by how much a process has grown.

        Args:
            process: The process: "client" or "worker".
            growth: The part by which it has grown; None if it had too few tasks to tell.
        """
        self.growth[process] = growth
        if growth is not None and growth >= LIMIT:
            self.offences.append(f"the {process} has grown by {growth:.1%} in {UNIT} tasks")

    def line(self) -> str:
        """Return the account in one line."""
        number = Counter(kill.role for kill in self.kills)
        kills = ", ".join(f"{role} {number[role]}" for role in KILLED)
        left = ", ".join(f"{kind} {number}" for kind, number in self.left.items())
        births = ", ".join(
            f"{number} from template {template}" if template else f"{number} started"
            for template, number in sorted(self.births.items())
        )
        grown = ", ".join(
            f"{process} {'too few to tell' if growth is None else f'{growth:+.1%}'}"
            for process, growth in self.growth.items()
        )
        return (
            f"{self.sent} tasks, {self.failed} of them with their own errors; "
            f"{len(self.kills)} kills ({kills}), by which {len(self.losses)} tasks were lost; "
            f"without an end {len(self.unended)}, wrong results {len(self.wrong)}, "
            f"doubled {len(self.doubled)}, lost with the wrong error {len(self.unexplained)}; "
            f"workers: {births or 'none'}; left: {left}; "
            f"memory per {UNIT} tasks: {grown or 'not known'}"
        )


_LEAST_SAMPLES = 10  # of which a median is taken: results of 10 MB come and go


class Memory:
    """The memory of a process, as its tasks go by.

    Args:
        pid: The process.

    Attributes:
        pid: The process.
        samples: Numbers of tasks, and the memory that the process had by then.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.samples: list[tuple[int, float]] = []

    def sample(self, tasks: int) -> None:
        """Take a sample, if the process is still there.

        Args:
            tasks: Number of tasks so far.
        """
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(self.pid).memory_info()
            self.samples.append((tasks, memory.rss - memory.shared))

    def growth(self) -> float | None:
        """Return the part by which it grows in `UNIT` tasks; None if there are fewer than that."""
        fifth = len(self.samples) // 5
        if fifth < _LEAST_SAMPLES:
            return None

        first_tasks, first = _medians(self.samples[:fifth])
        last_tasks, last = _medians(self.samples[-fifth:])
        if last_tasks - first_tasks < UNIT:
            return None
        return (last / first - 1) / ((last_tasks - first_tasks) / UNIT)


def _medians(samples: list[tuple[int, float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*samples, strict=True)]
