"""Recording what one task finds on its worker.

A task that `gc_warm.client.executor.WarmExecutor` sends calls its function by `recorded`. The
record travels back beside the result, as text: every way to serialize results can carry it, and
needs no longer for it than for a word.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from gc_warm.worker import caches, ledger, lifecycle, module_versions

log = logging.getLogger("gc_warm")

VERSION = 2
"""The version of a record's form. Version 1 had no such number."""

RECORD = "gc_warm_record"
"""The key of an envelope for the record of a call."""

RESULT = "result"
"""The key of an envelope for the value that the function returned."""

CODE = "code"
"""The key of an envelope, in place of `RESULT`, for a value that can be called, serialized."""

FIRST = "first on this worker"
ANOTHER_KEY = "another key"
_WHY = {
    "failed": "failed before",
    "evicted": "evicted",
    "cleared": "cleared",
    "ended": "program restarted",
    "discarded": "discarded",
    "invalid": "not valid any more",
    "replaced": "module changed",
    "loaded": "loaded again",  # its loader was made anew, in a function say
}
"""The reason for a load, by what happened last to the state of its key."""

# Makes tags of keys that tell nothing of the keys to anybody who does not have this.
_TAG_SECRET = os.urandom(16)

# records of the warm-ups that have been on this worker, by their tokens
_visited: dict[str, dict[str, Any]] = {}

_running: set[Recording] = set()  # of all threads
_preload_is_told = False  # a record has said whether the preload had failed

# a worker is the same in all of its records
_plain = functools.lru_cache(maxsize=1)(asdict)


class Serializer(Protocol):
    """What is needed of a `globus_compute_sdk.serialize.ComputeSerializer`."""

    def serialize(self, data: Any) -> str:
        """Return an object as text."""

    def deserialize(self, payload: str) -> Any:
        """Return the object of a text."""


def recorded(
    serializer: Serializer, function: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call a function, and return its result with the record of the call.

    Nothing is asked of the result but whether its type can be called: it may be lazy, or raise in
    whatever it is asked.

    Args:
        serializer: The serializer of the worker's endpoint.
        function: The function, serialized.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        A dictionary of the record and the result. Functions travel another way than data, so a
        result that can be called is in it as text; or alone, if that serializer cannot write it. A
        result is also alone if there is no record of the call, for whatever reason.
    """
    recording = Recording()
    to_call = serializer.deserialize(function)
    with recording.of(to_call):
        result = to_call(*args, **kwargs)

    record = ""
    with _unharmed():
        record = json.dumps(recording.record())
    if not record:
        return result
    if not callable(result):
        return {RECORD: record, RESULT: result}

    try:
        code = serializer.serialize(result)
    except Exception:  # the endpoint may know another way, or will say what is wrong
        return result
    return {RECORD: record, CODE: code}


@contextlib.contextmanager
def _unharmed() -> Iterator[None]:
    """Log an error of the bookkeeping, which looks at modules of the user's: the call goes on."""
    try:
        yield
    except Exception:
        log.warning("a call could not be recorded in full", exc_info=True)


class Recording:
    """A recording of what one call finds on this worker.

    Make it before the function is deserialized, and enter it for the length of the call.

    Example:
        >>> from gc_warm.worker.calls import Recording
        >>> with Recording().of(divmod) as recording:
        ...     _ = divmod(7, 2)
        >>> recording.record()["loads"]
        []
    """

    def __init__(self) -> None:
        self._imported = frozenset(sys.modules)
        self._modules: set[str] = set()
        self._with_caches: frozenset[str] = frozenset()
        self._cached: dict[str, caches.Counts] = {}
        self._is_alone = True

    def of(self, function: Callable[..., Any]) -> Recording:
        """Note the version of the module that the function comes from.

        The version matters only if the function came by reference.

        Args:
            function: The deserialized function that is about to be called.

        Returns:
            This recording.
        """
        with _unharmed():
            function = getattr(function, "__func__", function)  # of a method
            name = getattr(function, "__module__", None) or ""
            if _named(name, getattr(function, "__qualname__", "")) is function:
                module_versions.note_imported(name, now=name not in self._imported)
                self._modules.add(name)

            self._with_caches = caches.modules_of(function) | self._modules
        return self

    def __enter__(self) -> Recording:
        _running.add(self)  # first, so that of two that begin at once, one sees the other
        for other in list(_running - {self}):
            other._is_alone = False
            self._is_alone = False

        with _unharmed():
            self._cached = caches.counts(self._with_caches)
        self._mark = ledger.mark()
        self._uses = ledger.uses()
        self._at = time.time()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._seconds = time.perf_counter() - self._start
        _running.discard(self)

    def record(self) -> dict[str, Any]:
        """Return what the call found on this worker, in the types that JSON has."""
        events = ledger.events(since=self._mark)
        loads = [event for event in events if event.kind == "loaded"]
        uses = ledger.uses() - self._uses

        names = {*uses, *(load.name for load in loads)}
        modules = sorted(self._modules | {name.rpartition(".")[0] for name in names})
        versions = {module: module_versions.noted(module) for module in modules}

        return {
            "version": VERSION,
            "worker": _plain(lifecycle.worker()),
            "at": self._at,
            "seconds": self._seconds,
            "uses": uses.total(),
            "failures": sum(event.kind == "failed" for event in events),
            "loads": _records_of(loads),
            "cached": self._cached_changes(),
            "modules": {module: version for module, version in versions.items() if version},
            "changed": [module for module in modules if module_versions.has_changed(module)],
        }

    def _cached_changes(self) -> dict[str, tuple[int, int]] | None:
        """Return hits and misses of `functools.lru_cache`; None if they may be another call's."""
        changed = caches.changes(self._cached, caches.counts(self._with_caches))
        return changed if self._is_alone or not changed else None

    def envelope(self, result: Any) -> Any:
        """Return the result with the record, as clients of the version before expect them.

        Args:
            result: The value that the function returned.

        Returns:
            A dictionary of record and result; or the result alone, if it can be called.
        """
        # goes in the next release
        return result if callable(result) else {RECORD: self.record(), RESULT: result}


def _named(module: str, name: str) -> object:
    """Return the object that a module has under a dotted name; None if it has none."""
    named: object = sys.modules.get(module)
    for part in name.split("."):
        named = getattr(named, part, None)
    return named


def _records_of(loads: Sequence[ledger.Event]) -> list[dict[str, Any]]:
    """Return the records of loads; the first ones of a worker say if its preload has failed."""
    global _preload_is_told
    records = [_record_of(load) for load in loads]
    if loads and not _preload_is_told:
        _preload_is_told = True
        for record in records:
            record["why"] = _failed_preload(record["name"]) or record["why"]
    return records


def _failed_preload(name: str) -> str | None:
    """Return why a loader's state was not preloaded, as far as a preload has failed here."""
    failures = ledger.preload_failures()
    if not failures:
        return None

    module = name.rpartition(".")[0]
    own = [failure for failure in failures if failure.what.partition(":")[0] == module]
    failure = (own or failures)[0]
    return f"preload failed: {failure.what}: {failure.error}"


def _record_of(load: ledger.Event) -> dict[str, Any]:
    return {
        "name": load.name,
        "key": load.key,
        "seconds": load.seconds,
        "at": load.at,
        "why": _why(load),
        "grown": load.grown,
        "tag": _tag(load),
    }


def _tag(load: ledger.Event) -> str:
    """Return what tells the key of a load from others of the same text, within this process."""
    hashed = str(load.key_hash).encode()
    return hashlib.blake2b(hashed, key=_TAG_SECRET, digest_size=3).hexdigest()


def _why(load: ledger.Event) -> str:
    """Return the reason for a load: what happened last to that loader's state of that key."""
    same = (load.key, load.key_hash)
    before = [
        event for event in ledger.events() if event.number < load.number and event.name == load.name
    ]
    kinds = [event.kind for event in before if (event.key, event.key_hash) == same]
    if kinds:
        return _WHY[kinds[-1]]
    return ANOTHER_KEY if any(event.kind == "loaded" for event in before) else FIRST


def visit(
    token: str,
    seconds: float,
    until: float,
    function: Callable[[], Callable[..., Any]],
    args: Sequence[Any],
) -> dict[str, Any]:
    """Warm this worker up, once for each token, and keep it busy for a while.

    While it is busy, the other tasks of the same warm-up go to other workers.

    Args:
        token: Names the warm-up.
        seconds: The least time that the visit takes, counted from its beginning.
        until: The time after which nobody waits for the visit, in seconds since the epoch.
        function: Returns the function to call.
        args: The arguments of that function.

    Returns:
        The record of the call, the same at every visit. Its ``error`` is the end of a traceback if
        the call failed, or else None.
    """
    end = time.monotonic() + min(seconds, until - time.time())
    if token not in _visited:
        _visited[token] = _first_visit(function, args)

    time.sleep(max(0.0, end - time.monotonic()))
    return _visited[token]


def _first_visit(function: Callable[[], Callable[..., Any]], args: Sequence[Any]) -> dict[str, Any]:
    recording = Recording()
    error: str | None = None

    with recording:
        try:
            to_call = function()
            recording.of(to_call)
            to_call(*args)
        except Exception as failure:
            # the failure belongs to this worker, whose name has to travel with it
            error = "".join(traceback.format_exception_only(failure)).strip()

    return {**recording.record(), "error": error}
