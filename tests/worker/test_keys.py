"""Keys: those that no later task finds again are refused, and all others are taken."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import importlib.util
import ipaddress
import logging
import math
import operator
import pathlib
import pickle
import re
import sys
import threading
import uuid
import weakref
from collections import namedtuple
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar, NamedTuple

import attr
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gc_warm import warm
from gc_warm.worker import keys
from gc_warm.worker.state import Warm


class Plain:
    """It compares by identity."""

    def __init__(self, name: str = "a.pt") -> None:
        self.name = name

    def method(self) -> str:
        return self.name

    @classmethod
    def of_the_class(cls) -> str:
        return cls.__name__


@dataclass(frozen=True)
class Settings:
    part: Any = None
    note: Any = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class ByIdentity:
    path: str


@dataclass(frozen=True)
class ByPath:
    """Its own comparison leaves one of the fields out."""

    path: str
    callback: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByPath) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


class HashedByIdentity:
    """Equal by value, but in dictionaries it is found by identity only."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedByIdentity)


class ComparesParts:
    def __init__(self, part: object) -> None:
        self.part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComparesParts) and bool(self.part == other.part)

    def __hash__(self) -> int:
        return 1


@attr.frozen
class Attributes:
    part: Any


class Validated(pydantic.BaseModel, frozen=True):
    part: Any


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Precision(enum.Enum):
    HALF = "bf16"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Single:
    """One object in each process, which has attributes."""

    _instance: Single | None = None

    def __new__(cls) -> Single:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __init__(self) -> None:
        self.settings = {"a": 1}


class Registered:
    """One object for each name, as loggers are."""

    known: ClassVar[dict[str, Registered]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Registered.named, ("a",), {"state": 1}

    @classmethod
    def named(cls, name: str) -> Registered:
        return cls.known.setdefault(name, cls())


GLOBAL = Plain()


def function(x: int) -> int:
    return x


def loader() -> Warm[[Any], object]:
    @warm
    def model(config: Any) -> object:
        return object()

    return model


def nested(value: object) -> dict[str, object]:
    return {
        "alone": value,
        "in a tuple": (1, value),
        "in tuples": (("a", (value,)),),
        "in a named tuple": Point(1, value),
        "in a frozen dataclass": Settings(value),
        "in a dataclass in a tuple": (1, Settings(Settings(value))),
        "in a frozenset": frozenset({value}),
        "in a frozen attrs class": Attributes(value),
        "in a frozen pydantic model": Validated(part=value),
        "in a class of one's own": ComparesParts(value),
    }


LOST: dict[str, Callable[[], object]] = {
    "object": Plain,
    "bare object": object,
    "dataclass without comparison": lambda: ByIdentity("a"),
    "partial": lambda: functools.partial(pow, 2),
    "lambda": lambda: lambda x: x,
    "nested function": lambda: nested_function(),
    "bound method": lambda: Plain().method,
    "bound method of what cannot be pickled": lambda: Plain(lambda: 0).method,  # type: ignore[arg-type]
    "method of a built-in object": lambda: [].append,
    "nan": lambda: float("nan"),
    "nan of the module math": lambda: math.nan,
    "nan of Decimal": lambda: decimal.Decimal("nan"),
    "complex nan": lambda: complex(math.nan, 1),
    "nan of NumPy": lambda: np.float64("nan"),
    "NaT of NumPy": lambda: np.datetime64("NaT", "s"),
    "lock": threading.Lock,
    "item getter": lambda: operator.itemgetter(1),
}


def nested_function() -> Callable[[], int]:
    def inner() -> int:
        return 1

    return inner


@pytest.fixture
def globals_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through all modules, which a session has thousands of, once in a test."""
    monkeypatch.setattr(keys, "_globals", functools.cache(keys._globals))


@pytest.mark.usefixtures("globals_once")
@pytest.mark.parametrize("what", LOST)
def test_refuses_what_no_later_task_finds(what: str) -> None:
    for form, value in nested(LOST[what]()).items():
        model = loader()
        with pytest.raises(
            TypeError, match=r"argument config=.* cannot be part of a key: .*@warm\(key="
        ):
            pytest.fail(f"{form}: {model(value)}")
        info = model.info()
        assert (info.loads, info.failures, info.size) == (0, 0, 0), form


def test_refuses_what_is_equal_but_hashed_by_identity() -> None:
    for value in (HashedByIdentity(), (HashedByIdentity(),), Settings(HashedByIdentity())):
        with pytest.raises(TypeError, match="not equal to its own copy"):
            loader()(value)
    model = loader()
    model(ComparesParts(HashedByIdentity()))  # whose own hash is that of a value
    model(ComparesParts(HashedByIdentity()))
    assert model.info().loads == 1


def test_refusal_says_which_part_and_why() -> None:
    @warm
    def model(path: str, *rest: Any, **options: Any) -> object:
        return object()

    with pytest.raises(
        TypeError, match=r"argument rest=.*its part <.*Plain object.* compares by id"
    ):
        model("a", 1, Plain())
    with pytest.raises(TypeError, match=r"argument options=.*its part nan is not equal to itself"):
        model("a", scale=math.nan)
    with pytest.raises(TypeError, match=r"argument path=nan .*: it is not equal to itself"):
        model(math.nan)  # type: ignore[arg-type]


def test_refuses_leases_and_loads_too() -> None:
    model = loader()
    with pytest.raises(TypeError, match="compares by identity"):
        model.load(Plain())
    with pytest.raises(TypeError, match="compares by identity"), model.lease(Plain()):
        pass
    assert not model.discard(Plain())


KEPT = [
    None,
    ...,
    "a",
    b"a",
    1,
    1.5,
    2j,
    True,
    math.inf,
    range(3),
    (),
    frozenset(),
    Precision.HALF,
    Level.LOW,
    Access.READ | Access.WRITE,
    Plain,
    int,
    list[int],
    function,
    len,
    str.upper,
    np.sin,
    Plain.of_the_class,
    math,
    GLOBAL,
    GLOBAL.method,
    logging.getLogger("gc_warm.tests"),
    pathlib.Path("a.pt"),
    pathlib.PurePosixPath("a.pt"),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    datetime.timedelta(1),
    decimal.Decimal("1.5"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=1),
    ipaddress.ip_address("127.0.0.1"),
    re.compile("a+"),
    np.float32(1.5),
    np.dtype("float32"),
    np.float32,
    Point(1, "a"),
    Single(),
    Registered.named("a"),
    ByPath("a", lambda: 0),
    Settings("a", note=Plain()),
]


@pytest.mark.usefixtures("globals_once")
@pytest.mark.parametrize("value", KEPT, ids=lambda value: type(value).__name__)
def test_takes_what_a_later_task_finds(value: object) -> None:
    for form, key in nested(value).items():
        model = loader()
        assert model(key) is model(key), form
        assert model.info().loads == 1, form


def test_takes_state_that_this_worker_keeps() -> None:
    @warm
    def tokenizer(name: str) -> Generator[Plain, None, None]:
        yield Plain(name)

    @warm
    def pair() -> tuple[Plain, Plain]:
        return Plain("first"), Plain("second")

    model = loader()
    for value in (tokenizer("a"), *pair()):
        for form, key in nested(value).items():
            assert model(key) is model(key), form
    assert model(tokenizer("a").method) is model(tokenizer("a").method)

    forgotten = tokenizer("b")
    tokenizer.discard("b")
    with pytest.raises(TypeError, match="compares by identity"):
        model(forgotten)
    tokenizer.clear()


def test_takes_state_that_is_retired_but_leased() -> None:
    @warm
    def tokenizer() -> Plain:
        return Plain()

    model = loader()
    with tokenizer.lease() as kept:
        tokenizer.discard()
        model(kept)
        assert model.info().loads == 1


def test_classes_made_anew_in_every_task_are_refused() -> None:
    def settings_of(as_part: bool) -> object:
        made: Any = make_dataclass("Made", ["path"], frozen=True)  # a class for each task
        return Settings(made("a")) if as_part else made("a")

    for as_part in (False, True):
        model = loader()
        model(settings_of(as_part))
        with pytest.raises(TypeError, match=r"its class (\w+\.)*Made is made anew in every task"):
            model(settings_of(as_part))
        assert model.info().size == 1


def test_class_made_anew_is_refused_after_an_eviction() -> None:
    @warm(maxsize=1)
    def model(config: Any) -> object:
        return object()

    for number in range(2):
        made: Any = make_dataclass("Made", ["path"], frozen=True)
        config = made("a")
        if number:
            with pytest.raises(TypeError, match="made anew"):
                model(config)
        else:
            model(config)
            model.clear()
        del made, config


def test_classes_made_anew_that_compare_as_built_in_ones() -> None:
    model = loader()
    for _ in range(2):
        pair: Any = namedtuple("pair", "x y")  # a class for each task
        level: Any = enum.IntEnum("level", "LOW HIGH")
        text = type("text", (str,), {})
        for key in (pair(1, 2), level.LOW, text("a")):
            model(key)
    model(level(2))
    model(text("b"))
    assert model.info().hits == 3


def test_the_key_of_ones_own_is_what_counts() -> None:
    @warm(key=lambda config: config.name)
    def model(config: Plain) -> object:
        return object()

    assert model(Plain("a")) is model(Plain("a"))
    assert model(Plain("a")) is not model(Plain("b"))

    @warm(key=lambda config: (1, config))
    def lost(config: Plain) -> object:
        return object()

    with pytest.raises(TypeError, match=r"key=.*its part .*compares by identity"):
        lost(Plain())

    @warm(key=lambda config: [config])  # type: ignore[arg-type, return-value]
    def unhashable(config: Plain) -> object:
        return object()

    with pytest.raises(TypeError, match=r"key=\[.*is not hashable"):
        unhashable(Plain())


def test_globals_of_main_are_no_globals_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    value = Plain()
    monkeypatch.setattr(sys.modules["__main__"], "value", value, raising=False)
    with pytest.raises(TypeError, match="compares by identity"):
        loader()(value)


def test_a_found_key_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loader()
    model(Settings(1))
    monkeypatch.setattr(keys, "lost_parts", lambda *args: pytest.fail("looked at"))
    model(Settings(1))


def test_modules_that_load_late_stay_unloaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "loads_late.py"
    file.write_text("raise RuntimeError('it is loaded')\n")
    spec = importlib.util.spec_from_file_location("loads_late", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "loads_late", module)
    monkeypatch.setitem(sys.modules, "no_module", None)
    with pytest.raises(TypeError, match="compares by identity"):
        loader()(Plain())


def test_large_objects_are_not_copied() -> None:
    class Large(Plain):
        def __getstate__(self) -> object:
            raise AssertionError("it is copied")

    def no_reduce(self: object, protocol: object) -> object:
        return object.__reduce_ex__(self, 4)

    large = type("Plain", (Plain,), {"__reduce_ex__": no_reduce, "__module__": __name__})()
    large.weights = weakref.ref(large)  # which cannot be pickled
    with pytest.raises(TypeError, match="compares by identity"):
        loader()(large)
    with pytest.raises(TypeError, match="compares by identity"):
        loader()(Large())


def by_value(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=3).map(tuple),
        st.frozensets(children, max_size=3),
        st.builds(Settings, children),
        st.builds(Point, children, children),
        st.builds(Attributes, children),
        st.builds(ComparesParts, children),
    )


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(allow_nan=False),
    st.decimals(-1000, 1000, places=2),
    st.fractions(-10, 10, max_denominator=100),
    st.dates(),
    st.uuids(),
    st.complex_numbers(allow_nan=False),
    st.sampled_from(
        [Precision.HALF, Level.LOW, int, function, pathlib.Path("a"), GLOBAL.__class__]
    ),
)
GOOD = st.recursive(ATOMS, by_value, max_leaves=6)


@settings(max_examples=50, derandomize=True, database=None)
@given(GOOD)
def test_every_key_made_of_values_is_found_by_its_copy(key: Any) -> None:
    model = loader()
    state = model(key)
    assert model(pickle.loads(pickle.dumps(key))) is state
    assert model.info().loads == 1


def surrounded(part: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    for _ in range(draw(st.integers(0, 3))):
        other = draw(GOOD)
        part = draw(
            st.sampled_from(
                [
                    (part, other),
                    (other, part),
                    frozenset({part, other}),
                    Settings(part),
                    Settings((other, part)),
                    Point(other, part),
                    Attributes(part),
                    ComparesParts(part),
                ]
            )
        )
    return part


@settings(max_examples=50, derandomize=True, database=None)
@given(st.data(), st.sampled_from(sorted(LOST)))
def test_every_key_with_one_lost_part_is_refused(data: st.DataObject, what: str) -> None:
    key = surrounded(LOST[what](), data.draw)
    with pytest.raises(TypeError, match=r"argument config=.*cannot be part of a key"):
        loader()(key)


def test_reasons_are_words_that_follow_the_part() -> None:
    lost = list(keys.lost_parts((GLOBAL, Plain, Plain(), math.nan), lambda value: False))
    assert [reason for _, reason in lost] == ["compares by identity", "is not equal to itself"]


def test_a_default_is_found_again() -> None:
    """It is the same object in every call that leaves the argument out."""

    @warm
    def table(config: object = Plain()) -> list[object]:
        return [config]

    assert table() is table()
    with pytest.raises(TypeError, match=r"argument config=.* compares by identity"):
        table(Plain())
