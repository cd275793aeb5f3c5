"""The demonstration of ``gc-warm demo``.

Real computations go from cold to warm, and two limits of that are shown.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import Counter
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
_TOLERANCE = 78 * _ERROR + 5e-7  # 78 pairs, and the digits that are published

# of the total energy, in 200 steps of 0.005 from LJ13 at rest and a temperature of 0.1
_DRIFT = 3e-3

_RESTART_TIMEOUT = 60.0  # seconds to wait for a killed worker's successor

_Answer = tuple[Any, Warmth]  # the result of a call, and what is known of it


@dataclass(frozen=True)
class Row:
    """One call of the demonstration.

    Attributes:
        number: 1 for the first call.
        warm: Whether the call found its state.
        worker: Rank and process id of the worker that ran the call.
        seconds: Seconds that the call took there.
        result: The result of the call.
        right: Whether the result is right, and the call was warm or cold as it should be.
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
        title: The approach or limit, in words.
        expected: How many calls will follow.
        rows: The calls so far.
        ratio: Median seconds of a cold call over median seconds of a warm one, where both happened
            and a load was paid.
        note: Events besides the calls.
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
    if engine:
        options = {"workers_per_node": workers}
        plain = MockExecutor(config="local", user_endpoint_config=options)
    else:
        plain = MockExecutor(workers=workers)

    with WarmExecutor(plain) as executor:
        yield _counted(executor, workers, progress)
        yield _tabulated(executor, workers, progress)
        yield _simulated(executor, workers, progress)
        yield _killed(executor, progress)

    with WarmExecutor(MockExecutor(workers=1, fresh_process_per_task=True)) as executor:
        yield _fresh_processes(executor, progress)


def _counted(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("a module global: gc_warm.warmables.counter", 3 * workers)
    counts: Counter[int] = Counter()  # of calls, by process id
    for result, warmth in _calls(executor, part, progress, functions.count):
        counts[_pid(warmth)] += 1
        _add(part, (result, warmth), warm=result > 1, right=result == counts[_pid(warmth)])
    return part


def _tabulated(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    part = Part("@warm: gc_warm.warmables.potential, energy of 13 Lennard-Jones atoms", 3 * workers)
    calls = _calls(executor, part, progress, functions.cluster_energy, None, _ERROR)
    return _filled(part, calls, _add_energy)


def _simulated(executor: WarmExecutor, workers: int, progress: Callable[[Part], None]) -> Part:
    title = (
        "a program kept alive: gc_warm.warmables.simulator, "
        "200 steps of molecular dynamics and their total energy"
    )
    part = Part(title, 3 * workers)
    calls = _calls(executor, part, progress, functions.cluster_dynamics)
    return _filled(part, calls, _add_dynamics)


def _filled(part: Part, calls: Iterator[_Answer], add: Callable[..., None]) -> Part:
    """Return the part with these calls, of which the first on each worker has to be cold."""
    known: set[int] = set()
    for call in calls:
        _, warmth = call
        add(part, call, cold=_pid(warmth) not in known)
        known.add(_pid(warmth))

    part.ratio = _ratio(part)
    return part


def _killed(executor: WarmExecutor, progress: Callable[[Part], None]) -> Part:
    part = Part("a limit: a killed worker is cold again", 3)
    progress(part)
    try:
        executor.submit(_die).result()
    except TaskExecutionFailed as error:
        part.note = (
            f"A task ended its own worker. {_loss(error)}\n"
            "Calls that the other workers answer meanwhile are not shown."
        )

    successor: int | None = None  # the process that took the place of the killed one
    number = 0
    give_up = time.monotonic() + _RESTART_TIMEOUT
    while time.monotonic() < give_up:
        number += 1
        call = _answer(executor, functions.cluster_energy, None, _ERROR)
        _, warmth = call
        is_shown = warmth.loads or number == 1 or _pid(warmth) == successor
        if is_shown:
            is_first = bool(warmth.loads) and successor is None
            _add_energy(part, call, cold=is_first, number=number)
            progress(part)

        if _pid(warmth) == successor:
            return part
        if warmth.loads:
            successor = _pid(warmth)

    part.rows[-1] = replace(part.rows[-1], right=False)
    part.note += f" In {_RESTART_TIMEOUT} s no worker took its place."
    return part


def _loss(error: TaskExecutionFailed) -> str:
    """Return the line of an error that names the lost worker."""
    for line in error.remote_data.splitlines():
        if "WorkerLost:" in line:
            return str(line.strip())
    return ""


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
    """Make as many calls as the part expects, one after the other, and yield their answers."""
    for _ in range(part.expected):
        progress(part)
        yield _answer(executor, *call)
    progress(part)


def _add_energy(part: Part, call: _Answer, *, cold: bool, number: int | None = None) -> None:
    energy, warmth = call
    is_near = abs(energy - LJ13_ENERGY) <= _TOLERANCE
    right = is_near and cold == (warmth.state == "cold")
    _add(part, call, warm=warmth.state == "warm", right=right, number=number)


def _add_dynamics(part: Part, call: _Answer, *, cold: bool) -> None:
    result, warmth = call
    is_steady = result["drift"] <= _DRIFT
    right = is_steady and cold == (warmth.state == "cold")
    _add(part, (result["energy"], warmth), warm=warmth.state == "warm", right=right)


def _add(part: Part, call: _Answer, *, warm: bool, right: bool, number: int | None = None) -> None:
    result, warmth = call
    assert warmth.worker is not None
    assert warmth.seconds is not None
    worker = f"pid {warmth.worker.pid}"
    if warmth.worker.rank is not None:
        worker = f"{warmth.worker.rank}, {worker}"

    number = number or len(part.rows) + 1
    part.rows.append(Row(number, warm, worker, warmth.seconds, result, right))


def _ratio(part: Part) -> float | None:
    cold = [row.seconds for row in part.rows if not row.warm]
    warm = [row.seconds for row in part.rows if row.warm]
    if not cold or not warm:
        return None
    return statistics.median(cold) / statistics.median(warm)


def _die() -> None:
    """End this worker as the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
