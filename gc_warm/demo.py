"""What ``gc-warm demo`` runs: real computations that go from cold to warm, and the two limits of it."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import functions
from gc_warm.testing.mock import MockExecutor
from gc_warm.worker.calls import Call, observe

LJ13_ENERGY = -44.326801  # Cambridge Cluster Database; see gc_warm.warmables.potential
_ERROR = 1e-8  # allowed for one pair
_PATIENCE = 60.0  # seconds to wait for a killed worker's successor
_DRIFT = 3e-3  # of the total energy, in 200 steps of 0.005 from LJ13 at rest and a temperature of 0.1
_TOLERANCE = 78 * _ERROR + 5e-7  # 78 pairs, and the digits that are published


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
        ratio: Median seconds of a cold call over median seconds of a warm one, where both happened and a load was paid.
        note: What happened besides the calls.
    """

    title: str
    expected: int
    rows: list[Row] = field(default_factory=list)
    ratio: float | None = None
    note: str = ""


def run(workers: int, engine: bool, progress: Callable[[Part], None]) -> Iterator[Part]:
    """Run the demonstration.

    Args:
        workers: How many workers, 1 or more.
        engine: Use the endpoint's real engine in place of spawned workers.
        progress: Called with the part at hand after each of its calls, and before the first.

    Yields:
        Each part when it is complete.
    """
    options = {"workers_per_node": workers}
    with MockExecutor(config="local", user_endpoint_config=options) if engine else MockExecutor(workers=workers) as executor:
        yield _counted(executor, workers, progress)
        yield _tabulated(executor, workers, progress)
        yield _simulated(executor, workers, progress)
        yield _killed(executor, progress)
    with MockExecutor(workers=1, fresh_process_per_task=True) as executor:
        yield _fresh_processes(executor, progress)


def _counted(executor: MockExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("a module global: gc_warm.warmables.counter", 3 * workers)
    seen: dict[int, int] = {}
    for call in _calls(executor, part, progress, functions.count):
        seen[call.worker.pid] = seen.get(call.worker.pid, 0) + 1
        _add(part, call, warm=call.result > 1, right=call.result == seen[call.worker.pid])
    return part


def _tabulated(executor: MockExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("@warm: gc_warm.warmables.potential, energy of 13 Lennard-Jones atoms", 3 * workers)
    return _filled(part, _calls(executor, part, progress, functions.cluster_energy, None, _ERROR), _add_energy)


def _simulated(executor: MockExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("a program kept alive: gc_warm.warmables.simulator, 200 steps of molecular dynamics and their total energy", 3 * workers)
    return _filled(part, _calls(executor, part, progress, functions.cluster_dynamics), _add_dynamics)


def _filled(part: Part, calls: Iterator[Call], add: Callable[..., None]) -> Part:
    """The part with these calls, of which the first on each worker is to be cold."""
    known: set[int] = set()
    for call in calls:
        add(part, call, cold=call.worker.pid not in known)
        known.add(call.worker.pid)
    part.ratio = _ratio(part)
    return part


def _killed(executor: MockExecutor, progress: Callable[[Part], None]) -> Part:
    part = Part("a limit: a killed worker is cold again", 3)
    progress(part)
    try:
        executor.submit(_die).result()
    except TaskExecutionFailed as error:
        lost = next((line.strip() for line in error.remote_data.splitlines() if "WorkerLost:" in line), "")
        part.note = f"A task ended its own worker. {lost}\nCalls that the other workers answer meanwhile are not shown."
    replaced: int | None = None  # the process that took the place of the killed one
    give_up = time.monotonic() + _PATIENCE
    number = 0
    while time.monotonic() < give_up:
        number += 1
        call = executor.submit(observe, functions.cluster_energy, None, _ERROR).result()
        if call.loads or number == 1 or call.worker.pid == replaced:
            _add_energy(part, call, cold=bool(call.loads) and replaced is None, number=number)
            progress(part)
        if call.worker.pid == replaced:
            return part
        replaced = call.worker.pid if call.loads else replaced
    part.rows[-1] = replace(part.rows[-1], right=False)
    part.note += f" In {_PATIENCE} s no worker took its place."
    return part


def _fresh_processes(executor: MockExecutor, progress: Callable[[Part], None]) -> Part:
    part = Part("a limit: with one process a task, every call is cold", 2)
    for call in _calls(executor, part, progress, functions.cluster_energy, None, _ERROR):
        _add_energy(part, call, cold=True)
    return part


def _calls(executor: MockExecutor, part: Part, progress: Callable[[Part], None], *call: Any) -> Iterator[Call]:
    """As many calls as the part expects, one after the other."""
    for _ in range(part.expected):
        progress(part)
        yield executor.submit(observe, *call).result()
    progress(part)


def _add_energy(part: Part, call: Call, *, cold: bool, number: int | None = None) -> None:
    near = abs(call.result - LJ13_ENERGY) <= _TOLERANCE
    _add(part, call, warm=not call.loads, right=near and cold == bool(call.loads), number=number)


def _add_dynamics(part: Part, call: Call, *, cold: bool) -> None:
    energy, steady = call.result["energy"], call.result["drift"] <= _DRIFT
    _add(part, replace(call, result=energy), warm=not call.loads, right=steady and cold == bool(call.loads))


def _add(part: Part, call: Call, *, warm: bool, right: bool, number: int | None = None) -> None:
    rank = "" if call.worker.rank is None else f"{call.worker.rank}, "
    part.rows.append(Row(number or len(part.rows) + 1, warm, f"{rank}pid {call.worker.pid}", call.seconds, call.result, right))


def _ratio(part: Part) -> float | None:
    cold = [row.seconds for row in part.rows if not row.warm]
    warm = [row.seconds for row in part.rows if row.warm]
    return statistics.median(cold) / statistics.median(warm) if cold and warm else None


def _die() -> None:
    """End this worker as the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
