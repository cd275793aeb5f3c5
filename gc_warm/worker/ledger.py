"""The ledger of a process: the state that is loaded in it, and the history of that state.

All code that keeps state alive between tasks writes here; anybody may read. There is one ledger per
process, as long as the process lives: it is itself a module global of the worker. Nothing in its
records refers to the state, so reading or sending a record is always cheap.

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

Kind = Literal[
    "loaded", "failed", "evicted", "cleared", "ended", "discarded", "invalid", "replaced"
]

_EVENTS_KEPT = 1000  # a worker can live for weeks; its memory should not grow with its age
_FAILED_PRELOADS_KEPT = 20
_TEXT_LENGTH = 300
_brief = reprlib.Repr()  # looks at no more of a large tuple or string than it shows
_brief.maxstring = _TEXT_LENGTH
_brief.maxother = _TEXT_LENGTH
_brief.maxlist = 100  # words of a command line, of which the last ones tell most


@dataclass(frozen=True)
class Event:
    """One thing that happened to state in this process.

    Attributes:
        number: Position in this process's history, from 1.
        kind: ``loaded``, ``failed`` (a load that raised), ``evicted`` (made room for another),
            ``cleared``, ``ended`` (a program that nobody has closed), ``discarded`` (given up by a
            task), ``invalid`` (a predicate said no), or ``replaced`` (its module was imported
            anew).
        name: The loader, as ``module.function``; for a program, the two ends of its command line.
        key: The loader's arguments, as short text; for a program, its command line.
        at: When the event was over, in seconds since the epoch.
        seconds: How long the load took; 0.0 for events that are not loads.
        error: For ``failed``, the exception that the loader raised, as text.
        grown: For ``loaded``, the bytes by which the process grew meanwhile.
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
    grown: int = 0
    key_hash: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class Loaded:
    """The record of a state that is in this process now.

    Attributes:
        name: The loader, as in an `Event`.
        key: The loader's arguments, as short text.
        at: When the load was over, in seconds since the epoch.
        seconds: How long the load took.
    """

    name: str
    key: str
    at: float
    seconds: float


@dataclass(frozen=True)
class PreloadFailure:
    """Something that this process was to load before its first task, and did not.

    Attributes:
        what: The module or callable, as the config names it: ``my_model:load``.
        error: The reason, as text in one line.
    """

    what: str
    error: str


class Holding(Protocol):
    """Something alive in this process that has to be torn down before the process ends.

    Attributes:
        order: The position of its load in this process's history: the later, the earlier it is
            torn down. Infinity while it is being loaded.
    """

    order: float

    @property
    def used(self) -> int:
        """A number that is another one after each use."""

    def loaded(self) -> Loaded | None:
        """Return its record, or None while it is still being loaded."""

    def close(self) -> None:
        """Tear it down: idempotent, never raises an `Exception`.

        A teardown that takes long may only begin here, and wait for its end in the next round.
        """

    def disown(self) -> None:
        """Leave the resource to the parent process, which owns it: never tear it down here.

        This is called in a forked child.
        """


_events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
_numbers = itertools.count(1)
_counts: list[Callable[[], Mapping[str, int]]] = []
_failed_preloads: list[PreloadFailure] = []
_held: dict[int, Holding] = {}  # by id(); plain dict operations, so no lock and no deadlock
_watches: list[Callable[[bool], None]] = []


def describe(value: object) -> str:
    """Return a value as text of bounded length; a broken ``__repr__`` does not raise.

    Args:
        value: Any object.

    Returns:
        Its representation, shortened.
    """
    return _text(_brief.repr, value)


def record(
    kind: Kind,
    name: str,
    key: object,
    *,
    seconds: float = 0.0,
    error: BaseException | None = None,
    grown: int = 0,
) -> int:
    """Add an event to the history.

    Args:
        kind: See `Event`, as for the others.
        name: The loader.
        key: The loader's arguments.
        seconds: How long the load took.
        error: The exception that the loader raised.
        grown: The bytes by which the process grew in the load.

    Returns:
        The number of the event.
    """
    reason = None if error is None else f"{type(error).__name__}: {_text(str, error)}"
    event = Event(
        number=next(_numbers),
        kind=kind,
        name=name,
        key=describe(key),
        at=time.time(),
        seconds=seconds,
        error=reason,
        grown=grown,
        key_hash=_hash(key),
    )

    _events.append(event)
    if kind in ("loaded", "failed"):
        for watch in _watches:
            watch(False)
    return event.number


def _hash(key: object) -> int:
    try:
        return hash(key)
    except Exception:  # a hash of the user's; the key still has its text
        return 0


def _text(convert: Callable[[object], str], value: object) -> str:
    try:
        text = convert(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose text cannot be had: {type(error).__name__}>"
    return shortened(text, _TEXT_LENGTH)


def shortened(text: str, most: int) -> str:
    """Return the text, or only its two ends where it is long.

    Args:
        text: Any text.
        most: The most characters that a text may have and stay whole.

    Returns:
        The text; or its two ends, with the number of characters left out between them.
    """
    left_out = len(text) - most
    if left_out <= 0:
        return text

    half = most // 2
    return f"{text[:half]} ... {left_out} characters ... {text[-half:]}"


def mark() -> int:
    """Return the number of the latest event, to be passed to `events` later.

    Returns:
        The number; 0 when nothing has happened yet.
    """
    return _events[-1].number if _events else 0


def events(since: int = 0) -> tuple[Event, ...]:
    """Return the latest events, oldest first; 1000 of them are kept.

    Args:
        since: The number of an event: only those after it are returned.

    Returns:
        The events.
    """
    return tuple(event for event in _events.copy() if event.number > since)


def count_uses(counts: Callable[[], Mapping[str, int]]) -> None:
    """Register a function that tells how often the state of its loaders has been used.

    Args:
        counts: Returns a number for each loader; `uses` calls it.
    """
    _counts.append(counts)


def uses() -> Counter[str]:
    """Count the uses of state, by loader, since this process began.

    Returns:
        How often each loader's state was there when it was asked for, and how often each program
        answered.
    """
    total: Counter[str] = Counter()
    for counts in _counts:
        total.update(counts())
    return total


def loaded() -> tuple[Loaded, ...]:
    """Return the records of all state that is loaded now, in the order of loading."""
    entries = [holding.loaded() for holding in held()]
    return tuple(entry for entry in entries if entry is not None)


def note_preload_failure(what: str, error: BaseException | str) -> None:
    """Note that this process starts without something that it was to preload.

    The first 20 are kept.

    Args:
        what: The module or callable.
        error: The exception that its load raised; or the reason in words, where none was raised.
    """
    reason = error
    if isinstance(error, BaseException):
        reason = f"{type(error).__name__}: {_text(str, error)}"

    if len(_failed_preloads) < _FAILED_PRELOADS_KEPT:
        one_line = " ".join(str(reason).split())
        _failed_preloads.append(PreloadFailure(what, shortened(one_line, _TEXT_LENGTH)))


def preload_failures() -> tuple[PreloadFailure, ...]:
    """Return what this process was to load before its first task and did not, in that order.

    It does not change once the first task has begun; empty where nothing was to be preloaded, or
    all of it was loaded.
    """
    return tuple(_failed_preloads)


def watch_loads(watch: Callable[[bool], None]) -> None:
    """Have a function called when a load begins, and when it has ended.

    Args:
        watch: Called with True and with False, in the thread that loads; must not raise.
    """
    _watches.append(watch)


def hold(holding: Holding) -> None:
    """Enter a holding: from now on `gc_warm.worker.lifecycle.tear_down` ends it.

    Args:
        holding: Something alive in this process.
    """
    _held[id(holding)] = holding
    for watch in _watches:
        watch(True)


def release(holding: Holding) -> None:
    """Strike a holding out; it has been torn down.

    Args:
        holding: As entered by `hold`.
    """
    _held.pop(id(holding), None)


def held() -> list[Holding]:
    """Return all holdings, in the order of loading.

    State that a loader needed itself comes before the state that it loads.
    """
    return sorted(_held.values(), key=attrgetter("order"))
