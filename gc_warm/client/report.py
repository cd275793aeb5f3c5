"""What was warm, where, and what cold calls cost: ``gc-warm report FILE`` for the records of a `WarmExecutor`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gc_warm.client.warmth import Call, Load
from gc_warm.worker import ledger
from gc_warm.worker.lifecycle import Worker

log = logging.getLogger("gc_warm")

_SLOWEST = 5  # loads that are named
_LANE = 0.34  # inches of a picture for each worker
_BARS = {
    "warm call": ("#2a9d8f", 0.8),
    "cold call": ("#e76f51", 0.8),
    "unknown call": ("#b0b0b0", 0.8),
    "load": ("#7f1d1d", 0.3),
}
"""What a picture shows: color, and height as a part of the lane."""


@dataclass(frozen=True)
class Lane:
    """One worker's calls.

    Attributes:
        worker: Which it is.
        calls: How many it ran.
        warm: How many of them were warm.
        cold: How many had to load.
        load_seconds: How long its loads took.
        seconds: How long its calls took, loads included.
    """

    worker: Worker
    calls: int
    warm: int
    cold: int
    load_seconds: float
    seconds: float


@dataclass(frozen=True)
class SlowLoad:
    """A load, and the worker that paid for it."""

    load: Load
    worker: Worker


@dataclass(frozen=True)
class Report:
    """What became of some calls.

    Attributes:
        calls: How many there were.
        warm: How many were warm.
        cold: How many had to load.
        unknown: Of how many nothing can be said.
        hit_rate: Warm calls, as a part of those that are known; None where nothing is known.
        seconds_lost: Seconds that cold calls spent in loads.
        reasons: Why calls were cold or unknown, with how many; the most frequent first.
        stale: Modules of which workers held another version than the client, with the number of
            calls.
        workers: One entry for each worker process.
        slowest: The slowest loads.
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
    slowest: tuple[SlowLoad, ...]
    records: tuple[Call, ...]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> Report:
        """The report on these calls; one that was reloaded is the same call."""
        by_task: dict[str | int, Call] = {}
        for number, call in enumerate(calls):
            by_task.setdefault(call.task_id or number, call)
        records = tuple(by_task.values())
        states = Counter(call.warmth.state for call in records)
        known = states["warm"] + states["cold"]
        return cls(
            calls=len(records),
            warm=states["warm"],
            cold=states["cold"],
            unknown=states["unknown"],
            hit_rate=states["warm"] / known if known else None,
            seconds_lost=sum(call.warmth.load_seconds for call in records),
            reasons=dict(
                Counter(
                    f"{call.warmth.state}: {call.warmth.why}" for call in records if call.warmth.why
                ).most_common()
            ),
            stale=dict(
                Counter(name for call in records for name in call.warmth.stale).most_common()
            ),
            workers=_lanes(records),
            slowest=_slowest(records),
            records=records,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Report:
        """The report on the calls in a file of records.

        Raises:
            OSError: It cannot be read.
            ValueError: A line is something else than a record. Lines that are cut off, as of a
                client that was killed, are passed over.
        """
        calls, broken = [], 0
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} has no record of a call: {error}") from None
        for number, line in enumerate(text.split("\n"), 1):
            try:
                if line.strip():
                    calls.append(Call.of(json.loads(line)))
            except (json.JSONDecodeError, RecursionError):
                broken += 1
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no record of a call: {error}") from None
        if broken and not calls:
            raise ValueError(f"{path} has no record of a call")
        if broken:
            log.warning("%s: %d lines are cut off, and left out", path, broken)
        return cls.of(calls)

    def json(self) -> str:
        """All but the calls themselves, as a JSON object."""
        plain = asdict(self)
        del plain["records"]
        return json.dumps(plain, indent=2)

    def __rich__(self) -> RenderableType:
        return Group(
            *(
                part
                for part in (self._summary(), self._by_worker(), self._by_load())
                if part is not None
            )
        )

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the calls over time, a lane for each worker: PNG, SVG or PDF, by the name's ending.

        Raises:
            ModuleNotFoundError: Matplotlib is not there.
            ValueError: No call is known to have run anywhere, or nothing can be drawn in that
                format.
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
        figure = Figure(figsize=(9, 1.2 + _LANE * len(self.workers)), layout="constrained")
        _draw(figure.subplots(), timed, [lane.worker for lane in self.workers])
        figure.savefig(path, dpi=150)

    def _summary(self) -> Table:
        table = Table(box=box.ASCII, show_header=False)
        rate = "unknown" if self.hit_rate is None else f"{self.hit_rate:.1%}"
        _add(
            table,
            "calls",
            f"{self.calls}: {self.warm} warm, {self.cold} cold, {self.unknown} unknown",
        )
        _add(table, "hit rate", rate)
        _add(table, "lost to loads", f"{self.seconds_lost:.3g} s")
        for reason, number in self.reasons.items():
            _add(table, reason, str(number))
        for module, number in self.stale.items():
            _add(table, f"stale: {module}", str(number))
        return table

    def _by_worker(self) -> Table | None:
        table = Table("worker", "calls", "warm", "cold", "in loads", "in all", box=box.ASCII)
        for lane in self.workers:
            numbers = (
                str(lane.calls),
                str(lane.warm),
                str(lane.cold),
                f"{lane.load_seconds:.3g} s",
                f"{lane.seconds:.3g} s",
            )
            _add(table, _name(lane.worker), *numbers)
        return table if self.workers else None

    def _by_load(self) -> Table | None:
        table = Table("slowest loads", "took", "why", "worker", box=box.ASCII)
        for slow in self.slowest:
            what = ledger.shortened(f"{slow.load.name} {slow.load.key}", 60)
            _add(table, what, f"{slow.load.seconds:.3g} s", slow.load.why, _name(slow.worker))
        return table if self.slowest else None


def _add(table: Table, *cells: str) -> None:
    """A row, whose cells may hold what would otherwise be markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _lanes(calls: Sequence[Call]) -> tuple[Lane, ...]:
    by_worker: dict[Worker, list[Call]] = {}
    for call in calls:
        if call.warmth.worker is not None:
            by_worker.setdefault(call.warmth.worker, []).append(call)
    lanes = []
    for worker, own in sorted(by_worker.items(), key=lambda item: _order(item[0])):
        states = Counter(call.warmth.state for call in own)
        load_seconds = sum(call.warmth.load_seconds for call in own)
        lanes.append(
            Lane(
                worker,
                len(own),
                states["warm"],
                states["cold"],
                load_seconds,
                sum(call.warmth.seconds or 0.0 for call in own),
            )
        )
    return tuple(lanes)


def _slowest(calls: Sequence[Call]) -> tuple[SlowLoad, ...]:
    loads = [
        SlowLoad(load, call.warmth.worker)
        for call in calls
        if call.warmth.worker
        for load in call.warmth.loads
    ]
    return tuple(sorted(loads, key=lambda slow: slow.load.seconds, reverse=True)[:_SLOWEST])


def _order(worker: Worker) -> tuple[Any, ...]:
    return (
        worker.host,
        worker.block or "",
        worker.pool or "",
        -1 if worker.rank is None else worker.rank,
        worker.pid,
    )


def _name(worker: Worker) -> str:
    place = worker.host if worker.block is None else f"{worker.host}, block {worker.block}"
    return (
        f"{place}, pid {worker.pid}"
        if worker.rank is None
        else f"{place}, worker {worker.rank}, pid {worker.pid}"
    )


def _draw(axes: Any, calls: Sequence[Call], workers: Sequence[Worker]) -> None:
    """A lane for each worker, its calls as bars in the color of their state, and loads as narrower bars in them."""
    lanes = {worker: number for number, worker in enumerate(workers)}
    start = min(call.warmth.at for call in calls if call.warmth.at is not None)
    bars: dict[str, list[tuple[int, float, float]]] = {}
    for call in calls:
        warmth = call.warmth
        assert warmth.worker is not None
        lane = lanes[warmth.worker]
        bars.setdefault(f"{warmth.state} call", []).append(
            (lane, (warmth.at or start) - start, warmth.seconds or 0.0)
        )
        bars.setdefault("load", []).extend(
            (lane, load.at - load.seconds - start, load.seconds) for load in warmth.loads
        )
    for kind, (color, height) in _BARS.items():
        if bars.get(kind):
            axes.add_collection(_bars(bars[kind], height, color, kind))
    axes.set_ylim(len(workers) - 0.4, -0.6)
    axes.autoscale(axis="x")
    axes.set_yticks(range(len(workers)), [_name(worker) for worker in workers], fontsize=8)
    axes.set_xlabel("seconds since the first call began")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_BARS), frameon=False, fontsize=8
    )


def _bars(bars: Sequence[tuple[int, float, float]], height: float, color: str, label: str) -> Any:
    """All bars of a kind at once, since there may be a hundred thousand."""
    from matplotlib.collections import PolyCollection

    corners = [
        [
            (begin, lane - height / 2),
            (begin + width, lane - height / 2),
            (begin + width, lane + height / 2),
            (begin, lane + height / 2),
        ]
        for lane, begin, width in bars
    ]
    return PolyCollection(corners, facecolors=color, edgecolors=color, linewidths=0.6, label=label)


# the former name of `gc-warm report`, which will be gone in the next release
if (
    __name__ == "__main__"
):  # the former name of `gc-warm report`, which will be gone in the next release
    command = [sys.executable, "-m", "gc_warm", "report", *sys.argv[1:]]
    print("gc-warm: write `gc-warm report` for `python -m gc_warm.client.report`", file=sys.stderr)
    os.execv(command[0], command)
