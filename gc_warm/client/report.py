"""Reports on calls: how many were warm, where they ran, and the time that cold calls cost.

``gc-warm report FILE`` prints the report on the records of a `WarmExecutor`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box, filesize
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from gc_warm.client.warmth import Call, Load, is_readable
from gc_warm.worker import ledger
from gc_warm.worker.lifecycle import Worker

log = logging.getLogger("gc_warm")

_SLOWEST_SHOWN = 5  # loads
_LENGTHS = (60, 120, 240)  # characters of a load; the shortest that tells it from the others
_LANE_HEIGHT = 0.34  # inches of a picture for each worker
_BARS = {
    "warm call": ("#2a9d8f", 0.8),
    "cold call": ("#e76f51", 0.8),
    "unknown call": ("#b0b0b0", 0.8),
    "load": ("#7f1d1d", 0.3),
}
"""The bars of a picture, by kind: color, and height as a part of the lane."""

_Bar = tuple[int, float, float]
"""A bar: number of its lane, beginning, and duration in seconds."""


@dataclass(frozen=True)
class Lane:
    """One worker's calls.

    Attributes:
        worker: The worker.
        calls: Number of calls that ran on it.
        warm: Number of those that were warm.
        cold: Number of those that had to load.
        loads: Number of its loads in them.
        load_seconds: Duration of its loads.
        seconds: Duration of its calls, loads included.
    """

    worker: Worker
    calls: int
    warm: int
    cold: int
    loads: int
    load_seconds: float
    seconds: float


@dataclass(frozen=True)
class Node:
    """The loads on one node, as far as calls have met them.

    Attributes:
        host: Its name.
        workers: Number of the worker processes there.
        born_warm: Number of those that were forked from a template, which had loaded for them.
        templates: Number of these templates.
        loads: Number of loads that workers made in calls.
        load_seconds: Duration of these.
    """

    host: str
    workers: int
    born_warm: int
    templates: int
    loads: int
    load_seconds: float


@dataclass(frozen=True)
class SlowLoad:
    """A load, and the worker that paid for it."""

    load: Load
    worker: Worker


@dataclass(frozen=True)
class Report:
    """The report on some calls.

    Attributes:
        calls: Number of calls.
        warm: Number of warm calls.
        cold: Number of calls that had to load.
        unknown: Number of calls of which nothing can be said.
        hit_rate: Warm calls, as a part of the warm and cold ones; None if there are neither.
        seconds_lost: Seconds that cold calls spent in loads.
        reasons: The reasons why calls were cold or unknown, with the number of calls; the most
            frequent first.
        stale: Modules of which workers held another version than the client, with the number of
            calls.
        workers: One entry for each worker process.
        nodes: One entry for each node.
        not_forked: The reasons why workers were not forked, though their config asks for that, with
            the number of workers.
        slowest: The slowest loads, of all workers.
        records: The calls themselves.
    """

    calls: int
    warm: int
    cold: int
    unknown: int
    hit_rate: float | None
    seconds_lost: float
    reasons: dict[str, int]
    stale: dict[str, int]
    workers: tuple[Lane, ...]
    nodes: tuple[Node, ...]
    not_forked: dict[str, int]
    slowest: tuple[SlowLoad, ...]
    records: tuple[Call, ...]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> Report:
        """Return the report on some calls.

        Args:
            calls: The calls; one that was reloaded is counted once.
        """
        by_task: dict[str | int, Call] = {}
        for number, call in enumerate(calls):
            by_task.setdefault(call.task_id or number, call)
        records = tuple(by_task.values())

        states = Counter(call.warmth.state for call in records)
        known = states["warm"] + states["cold"]
        reasons: Counter[str] = Counter()
        stale: Counter[str] = Counter()
        for call in records:
            if call.warmth.why:
                reasons[f"{call.warmth.state}: {call.warmth.why}"] += 1
            stale.update(call.warmth.stale)

        lanes = _lanes(records)
        not_forked = Counter(lane.worker.not_forked for lane in lanes if lane.worker.not_forked)
        return cls(
            calls=len(records),
            warm=states["warm"],
            cold=states["cold"],
            unknown=states["unknown"],
            hit_rate=states["warm"] / known if known else None,
            seconds_lost=sum(call.warmth.load_seconds for call in records),
            reasons=dict(reasons.most_common()),
            stale=dict(stale.most_common()),
            workers=lanes,
            nodes=_nodes(lanes),
            not_forked=dict(not_forked.most_common()),
            slowest=_slowest(records),
            records=records,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Report:
        """Return the report on the calls in a file of records.

        Lines that are cut off, such as those of a client that was killed, are passed over; so are
        those of a later version of gc_warm. Their numbers are logged.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
            ValueError: A line is something else than a record.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} has no record of a call: {error}") from None

        calls = []
        left_out: Counter[str] = Counter()
        for number, line in enumerate(text.split("\n"), 1):
            try:
                read = _read_line(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no record of a call: {error}") from None
            if isinstance(read, Call):
                calls.append(read)
            elif read:
                left_out[read] += 1

        if left_out and not calls:
            what = " and ".join(left_out)
            raise ValueError(f"{path} has no record of a call that can be read: all are {what}")
        for what, lines in left_out.items():
            log.warning("%s: %d lines are %s, and left out", path, lines, what)
        return cls.of(calls)

    def json(self) -> str:
        """Return all but the calls themselves, as a JSON object."""
        plain = asdict(self)
        del plain["records"]
        return json.dumps(plain, indent=2)

    def __rich__(self) -> RenderableType:
        tables = (self._summary(), self._by_worker(), self._by_load())
        return Group(*(table for table in tables if table is not None))

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the calls over time, a lane for each worker.

        Args:
            path: File of the picture; its name's ending says the format, PNG, SVG or PDF.

        Raises:
            ModuleNotFoundError: Matplotlib is not installed.
            ValueError: Of no call is it known where it ran, or the format is none that can be
                drawn.
        """
        timed = [call for call in self.records if call.warmth.worker and call.warmth.at is not None]
        if not timed:
            raise ValueError("there is nothing to draw: of no call is it known where it ran")

        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a picture needs Matplotlib: pip install 'matplotlib>=3.8'"
            ) from error

        height = 1.2 + _LANE_HEIGHT * len(self.workers)
        figure = Figure(figsize=(9, height), layout="constrained")
        _draw(figure.subplots(), timed, [lane.worker for lane in self.workers])
        figure.savefig(path, dpi=150)

    def _summary(self) -> Table:
        table = Table(box=box.ASCII, show_header=False)
        numbers = f"{self.warm} warm, {self.cold} cold, {self.unknown} unknown"
        rate = "unknown" if self.hit_rate is None else f"{self.hit_rate:.1%}"
        _add(table, "calls", f"{self.calls}: {numbers}")
        _add(table, "hit rate", rate)
        _add(table, "lost to loads", f"{self.seconds_lost:.3g} s")

        if self.nodes:
            _add(table, "loads", _loads_in_words(self.nodes))

        for reason, number in self.reasons.items():
            _add(table, reason, str(number))
        for reason, number in self.not_forked.items():
            _add(table, f"not forked: {reason}", _counted(f"{number} workers"))
        for module, number in self.stale.items():
            _add(table, f"stale: {module}", str(number))
        return table

    def _by_worker(self) -> Table | None:
        if not self.workers:
            return None

        table = Table("worker", "calls", "warm", "cold", "in loads", "in all", box=box.ASCII)
        for lane in self.workers:
            numbers = (str(lane.calls), str(lane.warm), str(lane.cold))
            durations = (f"{lane.load_seconds:.3g} s", f"{lane.seconds:.3g} s")
            name = _name(lane.worker)
            if lane.worker.template is not None:
                name += f", from template {lane.worker.template}"
            _add(table, name, *numbers, *durations)
        return table

    def _by_load(self) -> Table | None:
        if not self.slowest:
            return None

        # folded, since an ellipsis would hide the difference between two keys
        loads = Column("slowest loads", overflow="fold")
        worker = Column("worker", overflow="fold")
        table = Table(loads, "took", "grew", "why", worker, box=box.ASCII)
        for slow, label in zip(self.slowest, _labels(self.slowest), strict=True):
            load = slow.load
            grown = filesize.decimal(load.grown) if load.grown else ""
            _add(table, label, f"{load.seconds:.3g} s", grown, load.why, _name(slow.worker))
        return table


def _read_line(line: str) -> Call | str:
    """Return the call in a line of a file of records, or what the line is; "" if it is blank.

    Raises:
        ValueError: It is something else than a record.
    """
    if not line.strip():
        return ""
    try:
        plain = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return "cut off"

    if isinstance(plain, dict) and not is_readable(plain):
        return "of another version of gc_warm"
    return Call.of(plain)


def _add(table: Table, *cells: str) -> None:
    """Add a row, whose cells may hold text that rich would take for markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _lanes(calls: Sequence[Call]) -> tuple[Lane, ...]:
    by_worker: dict[Worker, list[Call]] = {}
    for call in calls:
        if call.warmth.worker is not None:
            by_worker.setdefault(call.warmth.worker, []).append(call)

    return tuple(_lane(worker, by_worker[worker]) for worker in sorted(by_worker, key=_order))


def _lane(worker: Worker, calls: Sequence[Call]) -> Lane:
    states = Counter(call.warmth.state for call in calls)
    return Lane(
        worker=worker,
        calls=len(calls),
        warm=states["warm"],
        cold=states["cold"],
        loads=sum(len(call.warmth.loads) for call in calls),
        load_seconds=sum(call.warmth.load_seconds for call in calls),
        seconds=sum(call.warmth.seconds or 0.0 for call in calls),
    )


def _nodes(lanes: Sequence[Lane]) -> tuple[Node, ...]:
    by_host: dict[str, list[Lane]] = {}
    for lane in lanes:
        by_host.setdefault(lane.worker.host, []).append(lane)

    nodes = []
    for host, own in by_host.items():
        born_warm = [lane.worker for lane in own if lane.worker.template is not None]
        node = Node(
            host=host,
            workers=len(own),
            born_warm=len(born_warm),
            templates=len({(worker.pool, worker.template) for worker in born_warm}),
            loads=sum(lane.loads for lane in own),
            load_seconds=sum(lane.load_seconds for lane in own),
        )
        nodes.append(node)
    return tuple(nodes)


def _loads_in_words(nodes: Sequence[Node]) -> str:
    """Return how many loads there were on nodes, and by whom."""
    by_workers = sum(node.loads for node in nodes)
    workers = sum(node.workers for node in nodes)
    words = f"{by_workers} by {workers} workers on {len(nodes)} nodes"

    templates = sum(node.templates for node in nodes)
    if templates:
        born_warm = sum(node.born_warm for node in nodes)
        words += f"; {born_warm} of them were born warm, from {templates} templates"
    return _counted(words)


def _counted(words: str) -> str:
    """Return words in which what there is one of is in the singular."""
    return re.sub(r"\b1 (worker|node|template)s\b", r"1 \1", words)


def _slowest(calls: Sequence[Call]) -> tuple[SlowLoad, ...]:
    loads: list[SlowLoad] = []
    for call in calls:
        worker = call.warmth.worker
        if worker:
            loads += [SlowLoad(load, worker) for load in call.warmth.loads]

    loads.sort(key=lambda slow: slow.load.seconds, reverse=True)
    return tuple(loads[:_SLOWEST_SHOWN])


def _labels(loads: Sequence[SlowLoad]) -> Iterator[str]:
    """Yield a text for each load; different keys have different ones, as far as that is known.

    Keys whose whole text is the same are known to differ within one process, by their tags.
    """
    texts = {_text(slow) for slow in loads}
    tags: dict[tuple[Worker, str], set[str]] = {}
    for slow in loads:
        tags.setdefault((slow.worker, _text(slow)), set()).add(slow.load.tag)

    for slow in loads:
        text = _text(slow)
        label = _shortest_of_its_own(text, texts)
        look_alike = len(tags[slow.worker, text]) > 1
        yield f"{label} #{slow.load.tag}" if look_alike else label


def _text(slow: SlowLoad) -> str:
    return f"{slow.load.name} {slow.load.key}"


def _shortest_of_its_own(text: str, texts: Collection[str]) -> str:
    """Return a text as short as it can be while none of the other texts looks the same."""
    for length in _LENGTHS:
        label = ledger.shortened(text, length)
        if not any(ledger.shortened(other, length) == label for other in texts if other != text):
            return label
    return text


def _order(worker: Worker) -> tuple[Any, ...]:
    """Return the key that sorts workers by where they are; those without a rank come first."""
    rank = -1 if worker.rank is None else worker.rank
    return (worker.host, worker.block or "", worker.pool or "", rank, worker.pid)


def _name(worker: Worker) -> str:
    parts = [worker.host]
    if worker.block is not None:
        parts.append(f"block {worker.block}")
    if worker.rank is not None:
        parts.append(f"worker {worker.rank}")
    parts.append(f"pid {worker.pid}")
    return ", ".join(parts)


def _draw(axes: Any, calls: Sequence[Call], workers: Sequence[Worker]) -> None:
    """Draw a lane for each worker.

    A lane shows calls as bars in the color of their state, and loads as narrower bars in them.
    """
    bars = _bars_by_kind(calls, workers)
    for kind, (color, height) in _BARS.items():
        if bars.get(kind):
            axes.add_collection(_collection(bars[kind], height, color, kind))

    axes.set_ylim(len(workers) - 0.4, -0.6)
    axes.autoscale(axis="x")
    axes.set_yticks(range(len(workers)), [_name(worker) for worker in workers], fontsize=8)
    axes.set_xlabel("seconds since the first call began")
    axes.spines[["top", "right"]].set_visible(False)

    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_BARS), frameon=False, fontsize=8
    )


def _bars_by_kind(calls: Sequence[Call], workers: Sequence[Worker]) -> dict[str, list[_Bar]]:
    lanes = {worker: number for number, worker in enumerate(workers)}
    start = min(call.warmth.at for call in calls if call.warmth.at is not None)

    bars: dict[str, list[_Bar]] = {}
    for call in calls:
        warmth = call.warmth
        assert warmth.worker is not None
        lane = lanes[warmth.worker]

        began = (warmth.at or start) - start
        bar = (lane, began, warmth.seconds or 0.0)
        bars.setdefault(f"{warmth.state} call", []).append(bar)

        loads = [(lane, load.at - load.seconds - start, load.seconds) for load in warmth.loads]
        bars.setdefault("load", []).extend(loads)
    return bars


def _collection(bars: Sequence[_Bar], height: float, color: str, label: str) -> Any:
    """Return all bars of a kind as one artist, since there may be a hundred thousand."""
    from matplotlib.collections import PolyCollection

    shapes = []
    for lane, begin, width in bars:
        end = begin + width
        top = lane - height / 2
        bottom = lane + height / 2
        shapes.append([(begin, top), (end, top), (end, bottom), (begin, bottom)])
    return PolyCollection(shapes, facecolors=color, edgecolors=color, linewidths=0.6, label=label)


# the former name of `gc-warm report`, which will be gone in the next release
if (
    __name__ == "__main__"
):  # the former name of `gc-warm report`, which will be gone in the next release
    command = [sys.executable, "-m", "gc_warm", "report", *sys.argv[1:]]
    print("gc-warm: write `gc-warm report` for `python -m gc_warm.client.report`", file=sys.stderr)
    os.execv(command[0], command)
