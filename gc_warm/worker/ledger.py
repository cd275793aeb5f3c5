"""What is loaded in this process, and what happened to it.

Whatever keeps state alive between tasks writes here; anybody may read. One ledger per process, as
long as the process lives: it is itself a module global of the worker. Nothing in it refers to the
state, so reading or sending a record is always cheap.

Example:
    Which loads did this piece of work pay for?

    >>> from gc_warm.worker import ledger
    >>> before = ledger.mark()
    >>> # ... call warm functions ...
    >>> [event.name for event in ledger.events(since=before) if event.kind == "loaded"]
    []
"""

from __future__ import annotations

import itertools
import reprlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, Protocol

Kind = Literal["loaded", "failed", "evicted", "cleared", "replaced"]

_EVENTS_KEPT = 1000  # a worker can live for weeks; its memory should not grow with its age
_TEXT_LENGTH = 300
_brief = reprlib.Repr()  # looks at no more of a large tuple or string than it shows
_brief.maxstring = _brief.maxother = _TEXT_LENGTH
_brief.maxlist = 100  # words of a command line, of which the last ones tell most


@dataclass(frozen=True)
class Event:
    """One thing that happened to state in this process.

    Attributes:
        number: Position in this process's history, from 1.
        kind: ``loaded``, ``failed`` (a load that raised), ``evicted`` (made room for another),
            ``cleared``, or ``replaced`` (its module was imported anew).
        name: The loader, as ``module.function``; where it is a program, the two ends of its command
            line.
        key: The arguments it was called with, as short text; a program's command line.
        at: When it was over, in seconds since the epoch.
        seconds: How long the load took; 0.0 for events that are not loads.
        error: For ``failed``: what the loader raised, as text.
        key_hash: Tells the key from others whose short text is the same; of use in this process
            only.
    """

    number: int
    kind: Kind
    name: str
    key: str
    at: float
    seconds: float = 0.0
    error: str | None = None
    key_hash: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class Loaded:
    """State that is in this process now: its loader, its key as short text, since when, and how long the load took (seconds)."""

    name: str
    key: str
    at: float
    seconds: float


class Holding(Protocol):
    """Something alive in this process that has to be torn down before the process ends.

    Attributes:
        order: Where it stands in this process's history: what comes later is torn down earlier.
            Infinity while it is being loaded.
    """

    order: float

    def loaded(self) -> Loaded | None:
        """The record of it, or None while it is still being loaded."""

    def close(self) -> None:
        """Tear it down: idempotent, never raises an `Exception`.

        What takes long may begin it, and wait for its end in the next round.
        """

    def disown(self) -> None:
        """Called in a forked child: the parent owns the resource; never tear it down here."""


_events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
_numbers = itertools.count(1)
_counts: list[Callable[[], Mapping[str, int]]] = []
_held: dict[int, Holding] = {}  # by id(); plain dict operations, so no lock and no deadlock


def describe(value: object) -> str:
    """*value* as text of bounded length; a broken ``__repr__`` does not raise."""
    return _text(_brief.repr, value)


def record(
    kind: Kind, name: str, key: object, *, seconds: float = 0.0, error: BaseException | None = None
) -> int:
    """Add an event to the history; returns its number."""
    reason = None if error is None else f"{type(error).__name__}: {_text(str, error)}"
    event = Event(
        next(_numbers), kind, name, describe(key), time.time(), seconds, reason, _hash(key)
    )
    _events.append(event)
    return event.number


def _hash(key: object) -> int:
    try:
        return hash(key)
    except Exception:  # a hash of the user's; it has its text
        return 0


def _text(convert: Callable[[object], str], value: object) -> str:
    try:
        text = convert(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose text cannot be had: {type(error).__name__}>"
    return shortened(text, _TEXT_LENGTH)


def shortened(text: str, most: int) -> str:
    """Return the text, or where it has more than *most* characters its two ends, with a word of what is left out between them."""
    left_out = len(text) - most
    return (
        text
        if left_out <= 0
        else f"{text[: most // 2]} ... {left_out} characters ... {text[-(most // 2) :]}"
    )


def mark() -> int:
    """The number of the latest event, to be passed to `events` later; 0 when nothing has happened yet."""
    return _events[-1].number if _events else 0


def events(since: int = 0) -> tuple[Event, ...]:
    """What happened after the event numbered *since*, oldest first; the latest 1000 events are kept."""
    return tuple(event for event in _events.copy() if event.number > since)


def count_uses(counts: Callable[[], Mapping[str, int]]) -> None:
    """Have *counts* asked whenever somebody wants to know how often what is loaded has been used: a number for each loader."""
    _counts.append(counts)


def uses() -> Counter[str]:
    """How often each loader's state was there when it was asked for, and each program answered, since this process began."""
    total: Counter[str] = Counter()
    for counts in _counts:
        total.update(counts())
    return total


def loaded() -> tuple[Loaded, ...]:
    """What is loaded in this process now, in the order of loading."""
    records = [holding.loaded() for holding in held()]
    return tuple(found for found in records if found is not None)


def hold(holding: Holding) -> None:
    """Enter *holding*: from now on `gc_warm.worker.lifecycle.tear_down` ends it."""
    _held[id(holding)] = holding


def release(holding: Holding) -> None:
    """Strike *holding* out; it has been torn down."""
    _held.pop(id(holding), None)


def held() -> list[Holding]:
    """Everything that is held, in the order of loading: what a loader needed itself comes before what it loads."""
    return sorted(_held.values(), key=attrgetter("order"))
