"""The ledger: what is loaded in this process, and its history; always cheap to read and send."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from collections.abc import Generator

import pytest

from gc_warm import warm
from gc_warm.worker import ledger


class BrokenRepr:
    def __repr__(self) -> str:
        raise AttributeError("half initialised")


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise AttributeError("half initialised")


# an object of a class that reprlib knows another one of the same name of
array = type("array", (), {})()


def test_record_and_events_since_a_mark() -> None:
    before, start = ledger.mark(), time.time()
    ledger.record("loaded", "module.first", (1,), seconds=0.5)
    between = ledger.mark()
    ledger.record("failed", "module.second", ("a", 2), error=ValueError("no such file"))
    loaded, failed = ledger.events(since=before)
    assert loaded == ledger.Event(
        before + 1, "loaded", "module.first", "(1,)", loaded.at, 0.5, None
    )
    error = "ValueError: no such file"
    assert failed == ledger.Event(
        before + 2, "failed", "module.second", "('a', 2)", failed.at, 0.0, error
    )
    assert start <= loaded.at <= failed.at <= time.time()
    assert between == loaded.number
    assert ledger.events(since=between) == (failed,)
    assert ledger.events(since=ledger.mark()) == ()
    assert ledger.events()[-2:] == (loaded, failed)


def test_events_are_frozen_and_travel() -> None:
    ledger.record("cleared", "module.state", object())
    event = ledger.events()[-1]
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.name = "other"  # type: ignore[misc]


def test_history_is_bounded_and_goes_on_counting() -> None:
    before = ledger.mark()
    for number in range(1500):
        ledger.record("loaded", "module.state", (number,))
    assert ledger.mark() == before + 1500
    assert [event.number for event in ledger.events()] == list(range(before + 501, before + 1501))
    assert len(ledger.events(since=before)) == 1000
    assert [event.key for event in ledger.events(since=before + 1498)] == ["(1498,)", "(1499,)"]


def test_every_number_is_given_once() -> None:
    before = ledger.mark()

    def work() -> None:
        for _ in range(100):
            ledger.record("loaded", "module.state", ())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    numbers = sorted(event.number for event in ledger.events(since=before))
    assert numbers == list(range(before + 1, before + 801))


@pytest.mark.parametrize(
    "value",
    [
        BrokenRepr(),
        (1, BrokenRepr()),
        10**5000,
        array,
        "x" * 10**6,
        tuple(range(10**5)),
        ((("x" * 10**6,) * 100,) * 100,),
    ],
    ids=[
        "broken repr",
        "broken repr inside",
        "huge number",
        "name of another",
        "long string",
        "long tuple",
        "nested tuples",
    ],
)
def test_describe_never_raises_and_is_short(value: object) -> None:
    assert 0 < len(ledger.describe(value)) < 5000


@pytest.mark.parametrize(
    "error", [BrokenStr(), ValueError("x" * 10**6)], ids=["broken str", "long text"]
)
def test_any_error_can_be_recorded_and_sent(error: Exception) -> None:
    ledger.record("failed", "module.state", (1,), error=error)
    event = ledger.events()[-1]
    assert event.error is not None
    assert event.error.startswith(type(error).__name__)
    assert len(pickle.dumps(event)) < 5000


@pytest.mark.parametrize("key", [10**5000, array], ids=["huge number", "name of another"])
def test_a_key_that_is_hard_to_describe_can_be_loaded(key: object) -> None:
    @warm
    def table(key: object) -> str:
        return "state"

    assert table(key) == "state"
    table.clear()


def test_what_is_loaded_now_in_the_order_of_loading() -> None:
    before, start, begun = ledger.loaded(), time.time(), time.perf_counter()

    @warm
    def inner(key: str) -> Generator[str, None, None]:
        yield key

    @warm
    def outer(key: str) -> str:
        return inner(key)

    outer("a")
    inner("b")

    found = [record for record in ledger.loaded() if record not in before]
    names = [(record.name.rpartition(".")[2], record.key) for record in found]
    assert names == [("inner", "('a',)"), ("outer", "('a',)"), ("inner", "('b',)")], (
        "what was needed for a load came before it"
    )

    elapsed = time.perf_counter() - begun
    for record in found:
        assert start <= record.at <= time.time()
        assert 0 <= record.seconds <= elapsed

    inner.clear()
    outer.clear()
    assert ledger.loaded() == before
