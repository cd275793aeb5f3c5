"""What ``gc-warm demo`` runs: real computations that go from cold to warm, and the two limits of it."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import functions
from gc_warm.client.executor import WarmExecutor
from gc_warm.client.warmth import Warmth
from gc_warm.testing.mock import MockExecutor

LJ13_ENERGY = -44.326801  # Cambridge Cluster Database; see gc_warm.warmables.potential
_ERROR = 1e-8  # allowed for one pair
_RESTART_TIMEOUT = 60.0  # seconds to wait for a killed worker's successor
# of the total energy, in 200 steps of 0.005 from LJ13 at rest and a temperature of 0.1
_DRIFT = 3e-3
_TOLERANCE = 78 * _ERROR + 5e-7  # 78 pairs, and the digits that are published


_Answer = tuple[Any, Warmth]  # what a call returned, and what is known of it


@dataclass(frozen=True)
class Row:
    """One call of the demonstration.

    Attributes:
        number: 1 for the first call.
        warm: Whether it found its state.
        worker: Which worker ran it: rank and process id.
        seconds: How long it took there.
        result: What it returned.
        right: Whether that is the right result, and it was warm or cold as it should be.
    """

    number: int
    warm: bool
    worker: str
    seconds: float
    result: Any
    right: bool


@dataclass
class Part:
    """One approach, or one limit, with its calls.

    Attributes:
        title: What is shown.
        expected: How many calls will follow.
        rows: The calls so far.
        ratio: Median seconds of a cold call over median seconds of a warm one, where both happened
            and a load was paid.
        note: What happened besides the calls.
    """

    title: str
    expected: int
    rows: list[Row] = field(default_factory=list)
    ratio: float | None = None
    note: str = ""


def run(
    workers: int, engine: bool, progress: Callable[[Part], None]
) -> Generator[Part, None, None]:
    """Run the demonstration.

    Args:
        workers: How many workers, 1 or more.
        engine: Use the endpoint's real engine in place of spawned workers.
        progress: Called with the part at hand after each of its calls, and before the first.

    Yields:
        Each part when it is complete.
    """
    options = {"workers_per_node": workers}
    plain = (
        MockExecutor(config="local", user_endpoint_config=options)
        if engine
        else MockExecutor(workers=workers)
    )
    with WarmExecutor(plain) as executor:
        yield _counted(executor, workers, progress)
        yield _tabulated(executor, workers, progress)
        yield _simulated(executor, workers, progress)
        yield _killed(executor, progress)
    with WarmExecutor(MockExecutor(workers=1, fresh_process_per_task=True)) as executor:
        yield _fresh_processes(executor, progress)


def _counted(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("a module global: gc_warm.warmables.counter", 3 * workers)
    seen: dict[int, int] = {}
    for result, warmth in _calls(executor, part, progress, functions.count):
        seen[_pid(warmth)] = seen.get(_pid(warmth), 0) + 1
        _add(part, (result, warmth), warm=result > 1, right=result == seen[_pid(warmth)])
    return part


def _tabulated(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("@warm: gc_warm.warmables.potential, energy of 13 Lennard-Jones atoms", 3 * workers)
    return _filled(
        part, _calls(executor, part, progress, functions.cluster_energy, None, _ERROR), _add_energy
    )


def _simulated(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part(
        "a program kept alive: gc_warm.warmables.simulator, 200 steps of molecular dynamics and their total energy",
        3 * workers,
    )
    return _filled(
        part, _calls(executor, part, progress, functions.cluster_dynamics), _add_dynamics
    )


def _filled(part: Part, calls: Iterator[_Answer], add: Callable[..., None]) -> Part:
    """The part with these calls, of which the first on each worker is to be cold."""
    known: set[int] = set()
    for call in calls:
        add(part, call, cold=_pid(call[1]) not in known)
        known.add(_pid(call[1]))
    part.ratio = _ratio(part)
    return part


def _killed(executor: WarmExecutor, progress: Callable[[Part], None]) -> Part:
    part = Part("a limit: a killed worker is cold again", 3)
    progress(part)
    try:
        executor.submit(_die).result()
    except TaskExecutionFailed as error:
        lost = next(
            (line.strip() for line in error.remote_data.splitlines() if "WorkerLost:" in line), ""
        )
        part.note = f"A task ended its own worker. {lost}\nCalls that the other workers answer meanwhile are not shown."
    replaced: int | None = None  # the process that took the place of the killed one
    give_up = time.monotonic() + _RESTART_TIMEOUT
    number = 0
    while time.monotonic() < give_up:
        number += 1
        result, warmth = _answer(executor, functions.cluster_energy, None, _ERROR)
        if warmth.loads or number == 1 or _pid(warmth) == replaced:
            _add_energy(
                part, (result, warmth), cold=bool(warmth.loads) and replaced is None, number=number
            )
            progress(part)
        if _pid(warmth) == replaced:
            return part
        replaced = _pid(warmth) if warmth.loads else replaced
    part.rows[-1] = replace(part.rows[-1], right=False)
    part.note += f" In {_RESTART_TIMEOUT} s no worker took its place."
    return part


def _fresh_processes(executor: WarmExecutor, progress: Callable[[Part], None]) -> Part:
    part = Part("a limit: with one process a task, every call is cold", 2)
    for call in _calls(executor, part, progress, functions.cluster_energy, None, _ERROR):
        _add_energy(part, call, cold=True)
    return part


def _answer(executor: WarmExecutor, function: Callable[..., Any], *args: Any) -> _Answer:
    future = executor.submit(function, *args)
    return future.result(), future.warmth


def _pid(warmth: Warmth) -> int:
    assert warmth.worker is not None
    return warmth.worker.pid


def _calls(
    executor: WarmExecutor, part: Part, progress: Callable[[Part], None], *call: Any
) -> Iterator[_Answer]:
    """As many calls as the part expects, one after the other."""
    for _ in range(part.expected):
        progress(part)
        yield _answer(executor, *call)
    progress(part)


def _add_energy(part: Part, call: _Answer, *, cold: bool, number: int | None = None) -> None:
    energy, warmth = call
    near = abs(energy - LJ13_ENERGY) <= _TOLERANCE
    _add(
        part,
        call,
        warm=warmth.state == "warm",
        right=near and cold == (warmth.state == "cold"),
        number=number,
    )


def _add_dynamics(part: Part, call: _Answer, *, cold: bool) -> None:
    result, warmth = call
    right = result["drift"] <= _DRIFT and cold == (warmth.state == "cold")
    _add(part, (result["energy"], warmth), warm=warmth.state == "warm", right=right)


def _add(part: Part, call: _Answer, *, warm: bool, right: bool, number: int | None = None) -> None:
    result, warmth = call
    assert warmth.worker is not None
    assert warmth.seconds is not None
    rank = "" if warmth.worker.rank is None else f"{warmth.worker.rank}, "
    part.rows.append(
        Row(
            number or len(part.rows) + 1,
            warm,
            f"{rank}pid {warmth.worker.pid}",
            warmth.seconds,
            result,
            right,
        )
    )


def _ratio(part: Part) -> float | None:
    cold = [row.seconds for row in part.rows if not row.warm]
    warm = [row.seconds for row in part.rows if row.warm]
    return statistics.median(cold) / statistics.median(warm) if cold and warm else None


def _die() -> None:
    """End this worker as the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
