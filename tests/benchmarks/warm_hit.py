"""The cost of a warm hit: ``python tests/benchmarks/warm_hit.py``.

Compares gc_warm with other ways of keeping a value per key, in one run and one process, and with
``--against FOLDER`` also with the gc_warm of another checkout. The numbers that travel from machine
to machine are the multiples of ``functools.lru_cache``; nanoseconds are this machine's own.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import random
import sys
import threading
import timeit
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from gc_warm import warm

Lookup = Callable[[Any], object]
REFERENCE = "functools.lru_cache"
GUARDED = "cachetools.cached, RLock"


@dataclass(frozen=True)
class Settings:
    """A key as large as those that tasks have."""

    checkpoint: str
    precision: str = "bf16"
    layers: int = 12


KEYS: dict[str, Hashable] = {
    "string": "checkpoints/a.pt",
    "frozen dataclass": Settings("checkpoints/a.pt"),
}


@dataclass(frozen=True)
class Row:
    """One way of keeping values with one kind of key.

    Attributes:
        way: How the value is kept.
        key: What kind of key it is found by.
        ns: Nanoseconds a hit in the quickest of all rounds: what else this machine does only ever
            adds to it.
        multiple: The same as a multiple of what ``functools.lru_cache`` takes for that key.
    """

    way: str
    key: str
    ns: float
    multiple: float


def load(key: Hashable) -> object:
    """The load that all of them do once."""
    return [key]


def lru_cache() -> Lookup:
    return functools.lru_cache(maxsize=None)(load)


def dictionary_under_lock() -> Lookup:
    values: dict[Hashable, object] = {}
    lock = threading.Lock()

    def look_up(key: Hashable) -> object:
        with lock:
            try:
                return values[key]
            except KeyError:
                state = values[key] = load(key)
                return state

    return look_up


def zict_lru() -> Lookup:
    import zict

    values: Any = zict.LRU(8, {})

    def look_up(key: Hashable) -> object:
        try:
            return values[key]
        except KeyError:
            state = values[key] = load(key)
            return state

    return look_up


def cachetools_cached() -> Lookup:
    import cachetools

    look_up: Lookup = cachetools.cached(cachetools.LRUCache(8), lock=threading.RLock())(load)
    return look_up


def gc_warm_unbounded() -> Lookup:
    return warm(load)


def gc_warm_bounded() -> Lookup:
    return warm(maxsize=8)(load)


def gc_warm_valid() -> Lookup:
    return warm(valid=lambda state, key: True)(load)


def gc_warm_key() -> Lookup:
    return warm(key=lambda key: key)(load)


def gc_warm_of(checkout: str) -> Lookup:
    """Return a warm function of another checkout, whose modules stay beside those of this one."""
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gc_warm"}
    for name in own:
        del sys.modules[name]

    sys.path.insert(0, checkout)
    try:
        other: Lookup = importlib.import_module("gc_warm.worker.state").warm(load)
    finally:
        sys.path.remove(checkout)
        sys.modules.update(own)
    return other


WAYS: dict[str, Callable[[], Lookup]] = {
    REFERENCE: lru_cache,
    "dict under a lock": dictionary_under_lock,
    "zict.LRU, its own lock": zict_lru,
    GUARDED: cachetools_cached,
    "gc_warm": gc_warm_unbounded,
    "gc_warm, maxsize=8": gc_warm_bounded,
    "gc_warm, valid": gc_warm_valid,
    "gc_warm, key": gc_warm_key,
}
WITHOUT_OPTIONS = ("gc_warm", "gc_warm, maxsize=8")


def measure(rounds: int, hits: int) -> list[Row]:
    """Time all ways in every round.

    Each round has another order, so that other work of this machine meets all of them alike.
    """
    timers = {}
    for way, make in WAYS.items():
        for kind, key in KEYS.items():
            look_up = make()
            look_up(key)
            names = {"look_up": look_up, "key": key}
            timers[way, kind] = timeit.Timer("look_up(key)", globals=names)

    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in timers}
    order = list(timers)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for case in order:
            gc.collect()
            seconds[case].append(timers[case].timeit(hits) / hits)

    quickest = {case: min(times) for case, times in seconds.items()}
    return [
        Row(way, kind, 1e9 * time, time / quickest[REFERENCE, kind])
        for (way, kind), time in quickest.items()
    ]


def table(rows: list[Row]) -> str:
    lines = ["| way | " + " | ".join(KEYS) + " |", "| --- |" + " ---: |" * len(KEYS)]
    for way in WAYS:
        cells = [f"{row.ns:.0f} ns, {row.multiple:.1f} x" for row in rows if row.way == way]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def slower_than_guarded(rows: list[Row]) -> list[str]:
    """Return the ways of gc_warm that are slower than the comparable one that is ready-made.

    That is a bounded cache under a lock.
    """
    limits = {row.key: row.ns for row in rows if row.way == GUARDED}
    return [
        f"{row.way} takes {row.ns:.0f} ns with a {row.key}, {GUARDED} {limits[row.key]:.0f} ns"
        for row in rows
        if row.way in WITHOUT_OPTIONS and row.ns > limits[row.key]
    ]


def main(arguments: list[str] | None = None) -> str | int:
    parser = argparse.ArgumentParser(
        description="What a warm hit costs, as a multiple of functools.lru_cache."
    )
    parser.add_argument(
        "--rounds", type=int, default=21, help="how often each way is timed (default: %(default)s)"
    )
    parser.add_argument(
        "--hits", type=int, default=20_000, help="hits a timing (default: %(default)s)"
    )
    parser.add_argument(
        "--against",
        metavar="FOLDER",
        help="another checkout of gc_warm, to be timed beside this one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.against:
        WAYS[f"gc_warm of {options.against}"] = functools.partial(gc_warm_of, options.against)

    try:
        rows = measure(options.rounds, options.hits)
    except ModuleNotFoundError as error:
        return f"{error.name} is needed for the comparison: pip install cachetools zict"

    print(json.dumps([vars(row) for row in rows], indent=2) if options.json else table(rows))
    return "\n".join(slower_than_guarded(rows)) or 0


if __name__ == "__main__":
    sys.exit(main())
