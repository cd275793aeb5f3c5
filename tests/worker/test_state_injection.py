"""An asynchronous exception at any point wedges nothing, loses nothing, doubles nothing.

Task time-outs and SIGTERM arrive as exceptions in the middle of any code. Here one is injected at
every point where CPython may deliver it: in the quick suite once at each place in the code, and
with the mark `engine` each time that an operation comes by, with both kinds of exceptions.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pytest

from gc_warm.worker import lifecycle, memory, state
from gc_warm.worker.state import Warm
from tests.worker import injection
from tests.worker.injection import Injector, TaskTimeout

Table: TypeAlias = "Warm[[int], State]"
Operation: TypeAlias = Callable[[Table], None]

ROOT = Path(__file__).parents[2]
# a file is closed all the same when its `open` is interrupted, and its object freed
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

BROKEN = 13  # the key that cannot be loaded


class State:
    """What is loaded for a key, and how often it was torn down."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.teardowns = 0


class Resource:
    """What the loaders open and close."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.most_open = 0

    def open(self, key: int) -> State:
        if key == BROKEN:
            raise OSError("no such device")
        self.states.append(State(key))
        self.most_open = max(self.most_open, sum(not opened.teardowns for opened in self.states))
        return self.states[-1]

    def finally_loader(self) -> Callable[[int], Any]:
        def state(key: int) -> Generator[State, None, None]:
            opened = self.open(key)
            try:
                yield opened
            finally:
                opened.teardowns += 1

        return state

    def yield_loader(self) -> Callable[[int], Any]:
        def state(key: int) -> Generator[State, None, None]:
            opened = self.open(key)
            yield opened
            opened.teardowns += 1

        return state


def function_loader(resource: Resource) -> Callable[[int], Any]:
    def state(key: int) -> State:
        if key == BROKEN:
            raise OSError("no such device")
        return State(key)  # nothing to tear down

    return state


LOADERS = {
    "finally": Resource.finally_loader,
    "yield": Resource.yield_loader,
    "function": function_loader,
}


def under_test(file: str) -> bool:
    """All code but this file, which holds the loaders, and what injects."""
    return file not in (__file__, injection.__file__)


def nothing(table: Table) -> None:
    pass


def loaded(table: Table) -> None:
    table(1)


def other_loaded(table: Table) -> None:
    table(2)


def call(table: Table) -> None:
    table(1)


def clear(table: Table) -> None:
    table.clear()


def discard(table: Table) -> None:
    table.discard(1)


def lease(table: Table) -> None:
    with table.lease(1):
        pass


def lease_and_discard(table: Table) -> None:
    with table.lease(1):
        table.discard(1)


def lease_and_clear(table: Table) -> None:
    with table.lease(1):
        table.clear()


def failing_load(table: Table) -> None:
    with contextlib.suppress(OSError):
        table(BROKEN)


def tear_down(table: Table) -> None:
    lifecycle.tear_down()


OPERATIONS: dict[str, tuple[Operation, Operation, int]] = {
    # name: what precedes it, the operation, the least number of points it has
    "load": (nothing, call, 20),
    "hit": (loaded, call, 3),
    "evict and load": (other_loaded, call, 30),
    "failing load": (nothing, failing_load, 15),
    "clear": (loaded, clear, 10),
    "discard": (loaded, discard, 10),
    "discard while leased": (loaded, lease_and_discard, 30),
    "clear while leased": (loaded, lease_and_clear, 30),
    "lease of loaded": (loaded, lease, 10),
    "lease that loads": (nothing, lease, 30),
    "tear down": (loaded, tear_down, 5),
}


@pytest.fixture(autouse=True)
def cheap_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Freeze what is there, so that the collection after each point looks at new objects only.

    Each point needs one collection, to drop tracebacks that keep a lease; those of evictions, which
    `test_eviction_memory` shows, are left out. Nothing is thawed later: that would thaw all that
    was imported, and the next test would look through it. Callbacks of other libraries are left
    out: what is raised in one goes no further.
    """
    monkeypatch.setattr(memory, "give_back", lambda: None)
    callbacks = gc.callbacks.copy()
    gc.callbacks.clear()
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.callbacks.extend(callbacks)


@pytest.fixture(autouse=True)
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log nothing: before Python 3.13, an exception within a handler leaves its lock held for ever.

    There is something to log, since the books that are kept here hold what was evicted.
    """
    monkeypatch.setattr(state.log, "disabled", True)


@pytest.fixture
def disarm() -> Iterator[Callable[[], None]]:
    """A function that makes the next load the first one for signals and ``atexit``."""
    handler, armed = signal.getsignal(signal.SIGTERM), lifecycle._armed

    def again() -> None:
        atexit.unregister(lifecycle._end)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        lifecycle._armed = False

    yield again
    again()
    signal.signal(signal.SIGTERM, handler)
    lifecycle._armed = armed
    if armed:
        atexit.register(lifecycle._end)


def use_and_end(table: Table, problems: list[str]) -> None:
    """What the next tasks do, and the end of the worker."""
    for key in (1, 2, 1):
        try:
            found = table(key)
            if (found.key, found.teardowns) != (key, 0):
                problems.append(f"for {key} it gives {vars(found)}")
        except Exception as error:
            problems.append(f"cannot load {key}: {error!r}")
    table.clear()
    lifecycle.tear_down()


def problems_after(table: Table, resource: Resource) -> list[str]:
    problems: list[str] = []
    thread = threading.Thread(target=use_and_end, args=(table, problems), daemon=True)
    thread.start()
    thread.join(120)
    if thread.is_alive():
        return [*problems, "wedged"]

    problems += [
        f"torn down {opened.teardowns} times: {opened.key}"
        for opened in resource.states
        if opened.teardowns != 1
    ]
    if resource.most_open > 1:
        problems.append(f"{resource.most_open} were open at a time, where maxsize is 1")
    return problems


def interrupt(
    operation: str,
    loader: str,
    point: int | str,
    error: type[BaseException],
    disarm: Callable[[], None],
) -> tuple[Injector, list[str]]:
    """Raise an error at this point of the operation, and return the problems that it causes."""
    prepare, operate, _ = OPERATIONS[operation]

    def fail() -> NoReturn:
        raise error("injected")

    resource = Resource()
    table: Table = Warm(LOADERS[loader](resource), maxsize=1)
    prepare(table)
    disarm()

    injector = Injector(point, fail, under_test)
    injector.run(functools.partial(operate, table))
    gc.collect()
    return injector, problems_after(table, resource)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_exception_at_every_place(operation: str, loader: str, disarm: Callable[[], None]) -> None:
    """Take time-outs and SIGTERM in turn, and another one first with each loader."""
    for _ in range(2):  # the first run also fills caches
        undisturbed, problems = interrupt(operation, loader, 0, TaskTimeout, disarm)
        assert problems == []
    places = dict.fromkeys(undisturbed.passed)
    assert len(places) >= OPERATIONS[operation][2], "these are too few places to show anything"

    errors = itertools.cycle((TaskTimeout, SystemExit))
    if loader == "yield":
        next(errors)
    for place in places:
        error = next(errors)
        injector, problems = interrupt(operation, loader, place, error, disarm)
        if injector.where is None:
            # From Python 3.12 on, a run after one that was cut short has the steps of a frame
            # traced too late for its first jumps.
            assert problems == []
            injector, problems = interrupt(operation, loader, place, error, disarm)
        assert injector.where == place
        assert problems == [], f"{error.__name__} at {place}"


@pytest.mark.engine
@pytest.mark.parametrize("error", [TaskTimeout, SystemExit])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_exception_at_every_point(
    operation: str, loader: str, error: type[BaseException], disarm: Callable[[], None]
) -> None:
    for number in itertools.count(1):
        injector, problems = interrupt(operation, loader, number, error, disarm)
        assert problems == [], injector.where
        if injector.where is None:
            break
    assert number > OPERATIONS[operation][2], "these are too few points to show anything"


def abandon_lease(table: Table) -> None:
    """Leave a lease in a cycle of garbage, where the traceback of an interrupted task leaves it."""
    lease = table.lease(1)
    lease.__enter__()
    cycle: list[object] = [lease]
    cycle.append(cycle)


def collect_garbage_at_every_point(operation: str) -> int:
    """The number of points tried; a collection ends the abandoned lease there."""
    prepare, operate, _ = OPERATIONS[operation]
    state.log.disabled = True
    gc.freeze()
    gc.disable()
    for number in itertools.count(1):
        table: Table = Warm(Resource().finally_loader(), maxsize=1)
        leased: Table = Warm(Resource().finally_loader())
        prepare(table)
        abandon_lease(leased)
        if number % 2:
            leased.discard(1)  # what the lease leaves is torn down at the same point
        injector = Injector(number, gc.collect, under_test)
        injector.run(functools.partial(operate, table))
        if injector.where is None:
            return number - 1
        leased.clear()
        assert leased.info().size == 0, f"a lease stays after {injector.where}"
    raise AssertionError("not reached")


def test_garbage_collected_at_every_point() -> None:
    script = (
        "import faulthandler; faulthandler.dump_traceback_later(120, exit=True)\n"
        f"from {__name__} import collect_garbage_at_every_point\n"
        "for operation in ('evict and load', 'lease of loaded', 'clear'):\n"
        "    print(collect_garbage_at_every_point(operation))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, f"it hangs or fails:\n{ended.stderr}"
    assert min(map(int, ended.stdout.split())) >= 20
