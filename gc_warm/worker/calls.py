"""Recording what one task finds on its worker.

A task that `gc_warm.client.executor.WarmExecutor` sends calls its function within a `Recording`.
The record travels back beside the result, as plain data, so that every way to serialize results
can carry it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gc_warm.worker import ledger, lifecycle, module_versions

RECORD = "gc_warm_record"
"""The key of an envelope for the record of a call."""

RESULT = "result"
"""The key of an envelope for the value that the function returned."""

FIRST = "first on this worker"
ANOTHER_KEY = "another key"
_WHY = {
    "failed": "failed before",
    "evicted": "evicted",
    "cleared": "cleared",  # or, where it is a program, ended
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


class Recording:
    """A recording of what one call finds on this worker.

    Make it before the function is deserialized, and enter it for the length of the call.

    Example:
        >>> from gc_warm.worker.calls import Recording
        >>> with Recording().of(divmod) as recording:
        ...     result = divmod(7, 2)
        >>> recording.envelope(result)["result"]
        (3, 1)
    """

    def __init__(self) -> None:
        self._imported = frozenset(sys.modules)
        self._modules: set[str] = set()

    def of(self, function: Callable[..., Any]) -> Recording:
        """Note the version of the module that the function comes from.

        The version matters only if the function came by reference.

        Args:
            function: The deserialized function that is about to be called.

        Returns:
            This recording.
        """
        function = getattr(function, "__func__", function)  # of a method
        name = getattr(function, "__module__", None) or ""
        if _named(name, getattr(function, "__qualname__", "")) is function:
            module_versions.note_imported(name, now=name not in self._imported)
            self._modules.add(name)

        return self

    def __enter__(self) -> Recording:
        self._mark = ledger.mark()
        self._uses = ledger.uses()
        self._at = time.time()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._seconds = time.perf_counter() - self._start

    def record(self) -> dict[str, Any]:
        """Return what the call found on this worker, in the types that JSON has."""
        events = ledger.events(since=self._mark)
        loads = [event for event in events if event.kind == "loaded"]
        uses = ledger.uses() - self._uses

        names = {*uses, *(load.name for load in loads)}
        modules = sorted(self._modules | {name.rpartition(".")[0] for name in names})
        versions = {module: module_versions.noted(module) for module in modules}

        return {
            "worker": asdict(lifecycle.worker()),
            "at": self._at,
            "seconds": self._seconds,
            "uses": uses.total(),
            "failures": sum(event.kind == "failed" for event in events),
            "loads": [_record_of(load) for load in loads],
            "modules": {module: version for module, version in versions.items() if version},
            "changed": [module for module in modules if module_versions.has_changed(module)],
        }

    def envelope(self, result: Any) -> Any:
        """Return the result with the record, in one envelope.

        Functions travel another way than data, so a result that can be called goes as it is.

        Args:
            result: The value that the function returned.

        Returns:
            A dictionary of record and result; or the result alone, if it can be called.
        """
        return result if callable(result) else {RECORD: self.record(), RESULT: result}


def _named(module: str, name: str) -> object:
    """Return the object that a module has under a dotted name; None if it has none."""
    named: object = sys.modules.get(module)
    for part in name.split("."):
        named = getattr(named, part, None)
    return named


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
