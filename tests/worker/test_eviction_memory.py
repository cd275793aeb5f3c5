"""Evicted means gone: what makes room is out of memory before the load that needs the room."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gc_warm import warm
from gc_warm.worker import ledger, memory
from gc_warm.worker.state import Warm

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("cheap_evictions")


class Model:
    """A large object in a reference cycle, as libraries of deep learning make them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.trainer = self


class Alive:
    """Knows which models are in memory, and how many there were when a load began."""

    def __init__(self) -> None:
        self._models: list[weakref.ref[Model]] = []
        self.at_loads: list[int] = []

    def __len__(self) -> int:
        return sum(model() is not None for model in self._models)

    def make(self, name: str) -> Model:
        self.at_loads.append(len(self))
        model = Model(name)
        self._models.append(weakref.ref(model))
        return model


@pytest.fixture(autouse=True)
def no_collection_by_chance() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def limited(alive: Alive, maxsize: int = 1, **options: Any) -> Warm[[str], Model]:
    @warm(maxsize=maxsize, **options)
    def model(name: str) -> Generator[Model, None, None]:
        made = alive.make(name)
        if name == "bad":
            raise OSError(made.name)
        yield made

    return model


def test_cycles_are_freed_before_the_next_load() -> None:
    alive = Alive()
    model = limited(alive, maxsize=2)
    for name in "abcde":
        model(name)
    assert alive.at_loads == [0, 1, 1, 1, 1]


WAYS: dict[str, Callable[[Warm[[str], Model]], object]] = {
    "clear": lambda model: model.clear(),
    "discard": lambda model: model.discard("a"),
    "nothing": lambda model: None,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_given_up_is_freed_before_the_next_load(way: str) -> None:
    alive = Alive()
    model = limited(alive)
    model("a")
    WAYS[way](model)
    model("b")
    assert alive.at_loads == [0, 0]


def test_what_is_not_valid_is_freed_before_it_is_replaced() -> None:
    alive, good = Alive(), [True]
    model = limited(alive, valid=lambda state, name: good[0])
    model("a")
    good[0] = False
    with pytest.raises(RuntimeError, match="valid says no"):
        model("a")
    good[0] = True
    model("a")
    assert alive.at_loads == [0, 0, 0]


def test_what_was_retired_is_freed_before_the_next_load() -> None:
    alive = Alive()
    model = limited(alive)
    with model.lease("a"):
        model.discard("a")
    model("b")
    assert alive.at_loads == [0, 0]


def failing_plainly(made: Model) -> None:
    raise OSError(made.name)


def failing_with_a_cause(made: Model) -> None:
    try:
        failing_plainly(made)
    except OSError as error:
        raise ValueError("cannot be loaded") from error


def failing_in_a_handler(made: Model) -> None:
    try:
        failing_with_a_cause(made)
    finally:
        raise KeyError("cannot be cleaned up")


def failing_in_a_generator(made: Model) -> None:
    def steps(made: Model) -> Iterator[Model]:
        yield made
        failing_plainly(made)

    list(steps(made))


@pytest.mark.parametrize(
    "fail", [failing_plainly, failing_with_a_cause, failing_in_a_handler, failing_in_a_generator]
)
@pytest.mark.parametrize("is_generator", [True, False])
def test_failed_loads_leave_nothing_in_memory(
    fail: Callable[[Model], None], is_generator: bool
) -> None:
    alive = Alive()

    def plain(name: str) -> Model:
        made = alive.make(name)
        if name == "bad":
            fail(made)
        return made

    def generator(name: str) -> Generator[Model, None, None]:
        made = alive.make(name)
        if name == "bad":
            fail(made)
        yield made

    model = warm(maxsize=1)(generator if is_generator else plain)
    with pytest.raises((OSError, ValueError, KeyError)) as caught:
        model("bad")
    model("a")
    assert caught.value.__traceback__ is not None, "the caller has the error in its hands"
    assert alive.at_loads == [0, 0]


def test_errors_of_others_keep_their_variables() -> None:
    """An error that was handled when the load failed is the caller's own."""
    model = limited(Alive())

    def failing_before(kept: list[int]) -> None:
        raise LookupError("before")

    errors: list[BaseException] = []
    try:
        failing_before([1])
    except LookupError as before:
        with pytest.raises(OSError, match="bad") as caught:
            model("bad")
        errors += [before, caught.value]

    own, of_load = errors
    assert of_load.__context__ is own
    *_, failed = traceback.walk_tb(own.__traceback__)
    assert failed[0].f_locals == {"kept": [1]}


def test_garbage_is_collected_after_evictions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[None] = []
    monkeypatch.setattr(memory, "give_back", lambda: collected.append(None))
    bounded = limited(Alive(), maxsize=2)

    @warm
    def unlimited(name: str) -> Model:
        return Model(name)

    for name in "abab":
        bounded(name)
        unlimited(name)
    unlimited.clear()
    unlimited("a")
    assert collected == []

    bounded("c")
    bounded("c")
    assert len(collected) == 1


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "still in" in record.message]


def test_survivors_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model = limited(Alive())
    held = [model("held")]
    model("b")
    assert len(warnings_of(caplog)) == 1
    assert "('held',), is still in memory" in warnings_of(caplog)[0]
    assert "model" in warnings_of(caplog)[0]

    held.append(model("c"))
    model("d")
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("state", [None, 1, "text", [1], {"a": 1}, (1, 2), b"bytes"])
def test_nothing_is_said_where_nothing_is_known(
    state: object, caplog: pytest.LogCaptureFixture
) -> None:
    @warm(maxsize=1)
    def model(name: str) -> object:
        return state

    with caplog.at_level(logging.DEBUG, logger="gc_warm"):
        model("a")
        model("b")
    assert caplog.records == []


def sized(maxsize: float | None = 10, **options: Any) -> tuple[Warm[[Any], Any], list[Any]]:
    history: list[Any] = []

    @warm(maxsize=maxsize, size=lambda size: size, **options)
    def state(size: Any) -> Generator[Any, None, None]:
        history.append(("open", size))
        yield size
        history.append(("close", size))

    return state, history


def test_room_in_units_of_size() -> None:
    state, history = sized()
    for size in (4, 5, 3):
        state(size)
    assert history == [("open", 4), ("open", 5), ("close", 4), ("open", 3)]
    assert (state.info().size, state.info().maxsize, state.info().evictions) == (8, 10, 1)

    state(10)
    assert history[-3:] == [("close", 5), ("close", 3), ("open", 10)]
    state.clear()


def test_size_is_asked_before_the_load_with_its_arguments() -> None:
    asked: list[Any] = []

    def room(*args: Any, **kwargs: Any) -> float:
        asked.append((args, kwargs))
        return 1.0

    @warm(maxsize=2.5, size=room)
    def state(path: str, /, scale: float = 2, *rest: int, exact: bool = False, **more: int) -> None:
        assert len(asked) == 1

    state("a", exact=True, other=3)
    state("a", 2, exact=True, other=3)
    assert asked == [(("a", 2), {"exact": True, "other": 3})]


def test_too_large_a_value_is_refused_with_both_numbers() -> None:
    state, history = sized(maxsize=40e9)
    state(1e9)
    with pytest.raises(ValueError, match=r"size of 41,000,000,000.0, .* maxsize=40,000,000,000.0"):
        state(41e9)
    assert history == [("open", 1e9)], "nothing leaves for what cannot come"
    state(40e9)
    assert history[-1] == ("open", 40e9)
    state.clear()


@pytest.mark.parametrize(
    "size", [-1, math.nan, math.inf, True, None, "1", 1j, -0.5], ids=lambda size: repr(size)
)
def test_sizes_that_are_no_numbers_are_refused(size: object) -> None:
    @warm(maxsize=10, size=lambda name: size)  # type: ignore[arg-type, return-value]
    def state(name: str) -> None:
        pytest.fail("it is loaded")

    with pytest.raises(ValueError, match=r"size says .* of \('a',\), where a number is wanted"):
        state("a")
    assert state.info().size == 0


@pytest.mark.parametrize("size", [np.int64(3), np.float32(3), Fraction(3), 3, 3.0, 0])
def test_sizes_of_other_libraries_are_numbers(size: Any) -> None:
    state, _ = sized()
    state(size)
    assert state.info().size == size
    assert type(state.info().size) in (int, float)
    state.clear()


def test_an_error_in_size_is_the_callers() -> None:
    @warm(maxsize=1e9, size=lambda path: Path(path).stat().st_size)
    def state(path: str) -> str:
        return path

    with pytest.raises(FileNotFoundError):
        state("/nowhere/at/all")
    assert state(__file__) == __file__


def test_leased_values_that_take_all_room_are_said_in_units() -> None:
    state, _ = sized()
    with state.lease(8), pytest.raises(RuntimeError, match="all of its 10 units are leased"):
        state(3)
    state.clear()


def test_size_without_a_limit_only_counts() -> None:
    state, _ = sized(maxsize=None)
    for size in (4, 5, 30):
        state(size)
    assert (state.info().size, state.info().maxsize) == (39, None)
    state.clear()


@pytest.mark.parametrize("maxsize", [0, -1, math.nan, math.inf])
def test_maxsize_in_units_is_checked(maxsize: float) -> None:
    with pytest.raises(ValueError, match="maxsize must be a positive number"):
        sized(maxsize)
    with pytest.raises(TypeError, match="maxsize must be a number or None"):
        sized("40 GB")  # type: ignore[arg-type]
    assert sized(0.5)[0](0.25) == 0.25


@settings(max_examples=40, derandomize=True, database=None)
@given(
    st.floats(0.5, 10),
    st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["call", "lease", "discard", "end"]))),
)
def test_what_is_loaded_never_exceeds_maxsize(
    maxsize: float, steps: list[tuple[float, str]]
) -> None:
    present: list[float] = []
    leases: list[Any] = []

    @warm(maxsize=maxsize, size=lambda size: size)
    def state(size: float) -> Generator[float, None, None]:
        present.append(size)
        assert math.fsum(present) <= maxsize
        yield size
        present.remove(size)

    for size, action in steps:
        with contextlib.suppress(ValueError, RuntimeError):  # too large, or no room
            if action == "call":
                state(size)
            elif action == "lease":
                lease = state.lease(size)
                lease.__enter__()
                leases.append(lease)
            elif action == "discard":
                state.discard(size)
            elif leases:
                leases.pop().__exit__(None, None, None)
        assert state.info().size == pytest.approx(math.fsum(present))

    for lease in leases:
        lease.__exit__(None, None, None)
    state.clear()
    assert present == []
    assert state.info().size == 0


def test_growth_is_known_while_the_value_is_there() -> None:
    @warm
    def table(size: int) -> bytearray:
        return bytearray(b"x" * size)

    before = ledger.mark()
    table(50_000_000)
    grown = table.info().grown
    assert 40_000_000 < grown < 200_000_000
    assert ledger.events(since=before)[-1].grown == grown
    table.clear()
    assert table.info().grown == 0


def test_growth_evicts_nothing() -> None:
    @warm(maxsize=3, size=lambda size: 1)
    def table(size: int) -> bytearray:
        return bytearray(size)

    for size in (20_000_000, 20_000_001, 20_000_002):
        table(size)
    assert (table.info().evictions, table.info().size) == (0, 3)


PEAK = """\
import gc
from gc_warm import warm

SIZE = 50_000_000

class Model:
    def __init__(self):
        self.weights = {make}
        self.trainer = self

@warm(maxsize=1)
def model(number):
    {loader}

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

gc.disable()  # only what an eviction does counts
start = status("VmRSS")
for number in range(20):
    try:
        model(number)
    except OSError:
        pass
print((status("VmHWM") - start) / SIZE)
"""

LOADS = {
    "plain": "return Model()",
    "generator": "yield Model()",
    "failing": "m = Model(); yield m; raise OSError",
    "failing every other time": "m = Model()\n    if number % 2: raise OSError(m)\n    return m",
}
MAKES = {
    "one piece": "bytearray(b'x') * SIZE",
    "many pieces": "[bytes(50_000) for _ in range(SIZE // 50_000)]",
}


@pytest.mark.parametrize(
    ("load", "make"),
    [
        ("plain", "one piece"),
        ("generator", "many pieces"),
        ("failing every other time", "one piece"),
    ],
)
def test_twenty_loads_never_take_the_memory_of_more_than_one(load: str, make: str) -> None:
    program = PEAK.format(make=MAKES[make], loader=LOADS[load])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.9 < float(ended.stdout) < 2.2
