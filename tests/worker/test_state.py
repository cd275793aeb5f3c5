"""What @warm promises, one promise a test."""

from __future__ import annotations

import gc
import importlib
import logging
import pickle
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gc_warm import warm
from gc_warm.worker import ledger
from gc_warm.worker.state import Info, Warm, clear_all


@dataclass(frozen=True)
class Grid:
    """A natural key."""

    size: int
    step: float = 0.5


def recorder(maxsize: int | None = None) -> tuple[Warm[[str], str], list[str]]:
    """A warm function whose history is a list."""
    history: list[str] = []

    @warm(maxsize=maxsize)
    def resource(name: str) -> Generator[str, None, None]:
        history.append(f"open {name}")
        yield name.upper()
        history.append(f"close {name}")

    return resource, history


@warm
def module_level(size: int) -> list[int]:
    return [size]


def test_spelling_of_the_call_does_not_matter() -> None:
    calls = []

    @warm
    def table(a: int, /, b: int = 1, *rest: int, c: int = 2, **more: int) -> object:
        calls.append((a, b, rest, c, more))
        return object()

    assert table(1) is table(1, 1) is table(1, b=1) is table(1, c=2) is table(1, b=True)
    assert table(1, 1, 5, x=1, y=2) is table(1, 1, 5, y=2, x=1)
    assert table(1) is not table(1, c=3)
    assert len(calls) == 3


@pytest.mark.parametrize("keyword_only", [True, False])
def test_signatures_of_every_kind_are_bound(keyword_only: bool) -> None:
    if keyword_only:

        @warm
        # names that the binder itself might have needed
        def table(*, sorted: int = 1, tuple: int = 2) -> tuple[int, int]:
            return (sorted, tuple)

        assert table(tuple=3) == (1, 3)
    else:

        @warm
        def nothing() -> object:
            return object()

        assert nothing() is nothing()


def test_equal_frozen_dataclasses_are_one_key() -> None:
    @warm
    def table(grid: Grid) -> object:
        return object()

    assert table(Grid(3)) is table(Grid(3, 0.5))
    assert table(Grid(3)) is not table(Grid(4))


def test_wrong_arguments_are_named_as_python_does() -> None:
    with pytest.raises(
        TypeError, match=r"module_level\(\) missing 1 required positional argument: 'size'"
    ):
        module_level()  # type: ignore[call-arg]


@pytest.mark.parametrize("bad", [[1, 2], {"a": 1}, ({1},)])
def test_unhashable_argument_is_named_with_the_remedy(bad: Any) -> None:
    @warm
    def table(grid: Any, step: int = 1) -> object:
        return object()

    with pytest.raises(TypeError, match=r"table.*argument grid=.*not hashable.*frozen dataclass"):
        table(bad)
    assert table((1, 2)) is table((1, 2))


def test_type_error_of_a_key_of_ones_own_is_passed_on() -> None:
    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise TypeError("cannot compare")

    @warm
    def table(key: Key) -> object:
        return object()

    table(Key())
    with pytest.raises(TypeError, match="cannot compare"):
        table(Key())


def test_least_recently_used_is_torn_down_before_the_load_that_needs_room() -> None:
    resource, history = recorder(maxsize=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert resource(name) == name.upper()
    assert history == ["open a", "open b", "close b", "open c", "close c", "open b"]
    assert resource.info().evictions == 2
    resource.clear()
    assert history[-2:] == ["close b", "close a"]  # latest first


def test_failed_load_does_not_bring_the_evicted_back() -> None:
    @warm(maxsize=1)
    def number(text: str) -> int:
        return int(text)

    assert number("1") == 1
    with pytest.raises(ValueError, match="invalid literal"):
        number("x")

    seconds = number.info().load_seconds
    assert number.info() == Info(
        hits=0, loads=1, failures=1, evictions=1, size=0, maxsize=1, load_seconds=seconds, grown=0
    )
    assert number("1") == 1


def test_info_counts_and_is_frozen() -> None:
    resource, _ = recorder(maxsize=3)
    begun = time.perf_counter()
    for name in "aab":
        resource(name)
    info = resource.info()
    elapsed = time.perf_counter() - begun
    assert (info.hits, info.loads, info.failures) == (1, 2, 0)
    assert (info.evictions, info.size, info.maxsize) == (0, 2, 3)
    assert resource.info() == info
    assert 0 < info.load_seconds <= elapsed
    with pytest.raises(AttributeError):
        info.hits = 7  # type: ignore[misc]
    resource.clear()


def test_lease_protects_from_eviction() -> None:
    resource, history = recorder(maxsize=1)
    with resource.lease("a") as state:
        assert state == "A"
        reason = "no room: all of its 1 values are leased or loading"
        with pytest.raises(RuntimeError, match=f"{reason}; end a lease or raise maxsize"):
            resource("b")
        with resource.lease("a"):
            pass
        with pytest.raises(RuntimeError, match="no room"):
            resource("b")
    assert resource("b") == "B"
    assert history == ["open a", "close a", "open b"]
    resource.clear()


GIVING_UP: dict[str, Callable[[Warm[[str], str]], object]] = {
    "discard": lambda resource: resource.discard("a"),
    "clear": lambda resource: resource.clear(),
    "clear_all": lambda resource: clear_all(),
}


@pytest.mark.parametrize("way", GIVING_UP)
def test_what_is_given_up_leaves_with_its_last_lease(way: str) -> None:
    resource, history = recorder()
    with resource.lease("a"):
        with resource.lease("a") as state:
            GIVING_UP[way](resource)
            assert state == "A"
            assert history == ["open a"]
            assert resource.info().size == 1, "it counts as long as it is leased"

            assert resource("a") == "A"
            assert history == ["open a", "open a"], "it is handed out no more"
            assert resource.info().size == 2
        assert history == ["open a", "open a"]
    assert history == ["open a", "open a", "close a"]
    assert resource.info().size == 1

    resource.clear()
    assert history[-1] == "close a"
    assert len(history) == 4


def test_retired_state_takes_its_room_until_its_lease_ends() -> None:
    resource, history = recorder(maxsize=1)
    with resource.lease("a"):
        assert resource.discard("a")
        for name in ("a", "b"):
            with pytest.raises(RuntimeError, match="no room"):
                resource(name)
    assert history == ["open a", "close a"]
    assert resource("b") == "B"
    resource.clear()


def test_discard_gives_up_one_key_and_says_so() -> None:
    resource, history = recorder()
    resource("a")
    resource("b")
    assert resource.discard("a")
    assert not resource.discard("a")
    assert not resource.discard("never loaded")
    assert history == ["open a", "open b", "close a"]
    assert resource.info().evictions == 0

    resource("a")
    assert history[-1] == "open a"
    resource.clear()


def test_discarding_an_unhashable_key_names_it() -> None:
    with pytest.raises(TypeError, match=r"argument size=\[1\] is not hashable"):
        module_level.discard([1])  # type: ignore[arg-type]


def test_discarding_unknown_keys_leaves_nothing_behind() -> None:
    before = len(module_level._locks)
    for _ in range(3):
        assert not module_level.discard(object())  # type: ignore[arg-type]
    assert len(module_level._locks) == before


def test_discarding_under_load_waits_for_it() -> None:
    loading, go_on = threading.Event(), threading.Event()

    @warm
    def slow(name: str) -> Generator[str, None, None]:
        loading.set()
        assert go_on.wait(120)
        yield name
        closed.append(name)

    closed: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        loaded = pool.submit(slow, "a")
        assert loading.wait(120)
        discarded = pool.submit(slow.discard, "a")
        go_on.set()
        assert loaded.result(120) == "a"
        assert discarded.result(120) in (True, False)  # before or after the load
    slow.clear()
    assert closed == ["a"]


@pytest.mark.parametrize("maxsize", [None, 2])
def test_abandoned_lease_of_retired_state_does_not_wait(maxsize: int | None) -> None:
    """The garbage collector ends it, amid anything: to wait there for a load might be for ever."""
    loading, collected = threading.Event(), threading.Event()
    closed: list[str] = []

    @warm(maxsize=maxsize)
    def resource(name: str) -> Generator[str, None, None]:
        if name == "slow":
            loading.set()
            assert collected.wait(120)
        yield name
        closed.append(name)

    lease = resource.lease("a")
    lease.__enter__()
    cycle: list[object] = [lease]
    cycle.append(cycle)
    del lease
    resource.discard("a")

    thread = threading.Thread(target=resource, args=("slow",))
    thread.start()
    assert loading.wait(120)
    cycle.clear()
    gc.collect()
    collected.set()
    thread.join(120)

    resource.clear()
    assert sorted(closed) == ["a", "slow"]
    assert resource.info().size == 0


def test_closing_a_generator_ends_the_lease_in_it() -> None:
    resource, history = recorder(maxsize=1)

    def results() -> Generator[str, None, None]:
        with resource.lease("a") as state:
            yield state

    running = results()
    assert next(running) == "A"
    resource.discard("a")
    running.close()
    assert history == ["open a", "close a"]


def test_teardown_of_retired_state_may_use_its_loader() -> None:
    @warm(maxsize=2)
    def resource(name: str) -> Generator[str, None, None]:
        yield name
        if name == "a":
            used.append(resource("b"))

    used: list[str] = []
    with resource.lease("a"):
        resource.clear()
    assert used == ["b"]
    resource.clear()


def test_lease_ends_with_an_error_in_its_block() -> None:
    resource, history = recorder(maxsize=1)
    with pytest.raises(KeyError), resource.lease("a"):
        raise KeyError("boom")
    resource("b")
    assert history == ["open a", "close a", "open b"]
    resource.clear()


def test_load_returns_none() -> None:
    assert module_level.load(3) is None  # type: ignore[func-returns-value]
    assert module_level.info().size >= 1


def test_loader_that_needs_its_own_key() -> None:
    @warm
    def snake(n: int) -> int:
        return snake(n) + 1

    with pytest.raises(RecursionError, match="its loader calls itself"):
        snake(1)

    @warm
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    assert factorial(10) == 3628800  # other keys are welcome


def test_loader_that_never_yields() -> None:
    @warm
    def empty(n: int) -> Generator[int, None, None]:
        if n:
            yield n

    with pytest.raises(
        TypeError, match=r"empty.*never yielded: a generator loader yields its state once"
    ):
        empty(0)
    assert empty(1) == 1
    empty.clear()


def test_loader_that_yields_twice(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    @warm
    def twice() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    assert twice() == 1
    with caplog.at_level(logging.ERROR, logger="gc_warm"):
        twice.clear()
    assert "twice" in caplog.text
    assert "yielded twice" in caplog.text
    assert closed == [True]
    assert twice() == 1
    twice.clear()


def test_teardown_error_is_logged_and_the_rest_is_torn_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = []

    @warm
    def resource(name: str) -> Generator[str, None, None]:
        yield name
        closed.append(name)
        if name == "bad":
            raise OSError("cannot close")

    for name in ("first", "bad", "last"):
        resource(name)
    with caplog.at_level(logging.ERROR, logger="gc_warm"):
        resource.clear()
    assert closed == ["last", "bad", "first"]
    assert "teardown of" in caplog.text
    assert "cannot close" in caplog.text


def test_half_opened_generator_is_closed() -> None:
    history = []

    @warm
    def resource() -> Generator[int, None, None]:
        try:
            history.append("open")
            if len(history) == 1:
                raise OSError("no device")
            yield 1
        finally:
            history.append("close")

    with pytest.raises(OSError, match="no device"):
        resource()
    assert history == ["open", "close"]
    assert resource() == 1
    resource.clear()


async def coroutine() -> int:
    return 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (coroutine, "is async, and workers call plain functions"),
        (async_generator, "is async"),
        (len, "takes a function, not <built-in"),
        (3, r"takes a function, not 3; a limit is written @warm\(maxsize=2\)"),
        (Grid, "takes a function, not <class"),
    ],
)
def test_loaders_that_cannot_be(loader: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        warm(loader)


@pytest.mark.parametrize(
    ("maxsize", "kind"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_maxsize_is_checked(maxsize: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="maxsize must be"):

        @warm(maxsize=maxsize)
        def table() -> int:
            return 1


def test_loader_in_a_class_body() -> None:
    with pytest.raises(
        TypeError, match=r"Model\.weights is defined in a class.*top level of its module"
    ):

        class Model:
            @warm
            def weights(self) -> int:
                return 1


def test_pickles_by_reference() -> None:
    assert pickle.loads(pickle.dumps(module_level)) is module_level
    assert len(pickle.dumps(module_level)) < 100


def test_pickling_what_a_worker_cannot_import() -> None:
    resource, _ = recorder()
    with pytest.raises(
        pickle.PicklingError,
        match="defined in a function, which a worker cannot import: move it to the top level",
    ):
        pickle.dumps(resource)

    main: dict[str, Any] = {"__name__": "__main__", "warm": warm}
    exec("@warm\ndef table(): return 1", main)
    with pytest.raises(pickle.PicklingError, match=r"notebook.*: move .* with %%writefile"):
        pickle.dumps(main["table"])


def test_looks_like_its_loader_but_does_not_give_it_away() -> None:
    resource, _ = recorder()
    assert resource.__name__ == "resource"
    assert not hasattr(resource, "__wrapped__")
    assert repr(module_level).startswith("<warm tests.worker.test_state.module_level: ")


def test_reloading_a_module_tears_its_old_state_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reloaded_module.py").write_text(
        "from gc_warm import warm\nhistory = globals().get('history', [])\n"
        "@warm\ndef state():\n"
        "    history.append('open')\n    yield len(history)\n    history.append('close')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("reloaded_module")
    module.state()
    old = module.state
    importlib.reload(module)
    assert module.history == ["open", "close"]
    assert module.state is not old
    assert module.state() == 3
    module.state.clear()
    del sys.modules["reloaded_module"]


def test_waiter_finds_what_another_thread_loaded() -> None:
    loading, go_on = threading.Event(), threading.Event()

    @warm
    def slow() -> object:
        loading.set()
        assert go_on.wait(120)
        return object()

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(slow())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert loading.wait(120)
    go_on.set()
    for thread in threads:
        thread.join(120)
    assert len(set(found)) == 1
    assert (slow.info().loads, slow.info().hits) == (1, 3)


def test_ledger_tells_what_happened() -> None:
    resource, _ = recorder(maxsize=1)
    before = ledger.mark()
    resource("a")
    resource("b")
    assert [(event.kind, event.key) for event in ledger.events(since=before)] == [
        ("loaded", "('a',)"),
        ("evicted", "('a',)"),
        ("loaded", "('b',)"),
    ]

    latest = ledger.loaded()[-1]
    assert (latest.name.rpartition(".")[2], latest.key) == ("resource", "('b',)")

    resource.clear()
    assert ledger.events()[-1].kind == "cleared"
    names = [record.name for record in ledger.loaded()]
    assert not [name for name in names if name.endswith("recorder.<locals>.resource")]
