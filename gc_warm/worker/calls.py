"""Run one task on a worker and record what it found there.

What `gc_warm.client.executor.WarmExecutor` sends calls a function in the hands of a `Recording`,
and its record travels back beside the result, as plain data, so that every way to serialize results
can carry it.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gc_warm.worker import ledger, lifecycle, module_versions

RECORD, RESULT = "gc_warm_record", "result"
"""The keys of an envelope: what was found, and what the function returned."""

FIRST = "first on this worker"
_WHY = {
    "failed": "failed before",
    "evicted": "evicted",
    "cleared": "cleared",  # or, where it is a program, ended
    "replaced": "module changed",
    "loaded": "loaded again",  # its loader was made anew, in a function say
}
"""Why something had to be loaded, by what happened to it last."""

_visited: dict[str, dict[str, Any]] = {}  # records of warm-ups that have been here, by their tokens


class Recording:
    """What one call finds on this worker: made before its function is deserialized, entered for the length of the call.

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
        """The same, now that the *function* is there: if it came by reference, the version of its module matters."""
        function = getattr(function, "__func__", function)  # of a method
        name = getattr(function, "__module__", None) or ""
        if _named(name, getattr(function, "__qualname__", "")) is function:
            module_versions.note_imported(name, now=name not in self._imported)
            self._modules.add(name)
        return self

    def __enter__(self) -> Recording:
        self._mark, self._uses = ledger.mark(), ledger.uses()
        self._at, self._start = time.time(), time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._seconds = time.perf_counter() - self._start

    def record(self) -> dict[str, Any]:
        """What was found, as JSON would have it."""
        events = ledger.events(since=self._mark)
        loads = [event for event in events if event.kind == "loaded"]
        uses = ledger.uses() - self._uses
        names = {*uses, *(load.name for load in loads)}
        modules = sorted(self._modules | {name.rpartition(".")[0] for name in names})
        return {
            "worker": asdict(lifecycle.worker()),
            "at": self._at,
            "seconds": self._seconds,
            "uses": uses.total(),
            "failures": sum(event.kind == "failed" for event in events),
            "loads": [
                {
                    "name": load.name,
                    "key": load.key,
                    "seconds": load.seconds,
                    "at": load.at,
                    "why": _why(load),
                }
                for load in loads
            ],
            "modules": {
                module: version for module in modules if (version := module_versions.noted(module))
            },
            "changed": [module for module in modules if module_versions.has_changed(module)],
        }

    def envelope(self, result: Any) -> Any:
        """The result with the record.

        A function travels another way than data: a result that is one goes as it is.
        """
        return result if callable(result) else {RECORD: self.record(), RESULT: result}


def _named(module: str, name: str) -> object:
    """What a module has under a dotted name; None if it has nothing."""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _why(load: ledger.Event) -> str:
    """Why it had to be loaded: what happened last to that loader's state of that key."""
    same = (load.name, load.key, load.key_hash)
    before = [
        event.kind
        for event in ledger.events()
        if event.number < load.number and (event.name, event.key, event.key_hash) == same
    ]
    return _WHY[before[-1]] if before else FIRST


def visit(
    token: str,
    seconds: float,
    until: float,
    function: Callable[[], Callable[..., Any]],
    args: Sequence[Any],
) -> dict[str, Any]:
    """Warm this worker up, once for each *token*, and keep it busy for a while, so that the others of its kind go to other workers.

    Args:
        token: Which warm-up this is.
        seconds: How long it takes at least, counted from its beginning.
        until: When nobody waits for it any more, in seconds since the epoch.
        function: Gives what is to be called.
        args: What that is called with.

    Returns:
        The record of the call, the same at every visit; with ``error``, the end of a traceback, if
        it failed.
    """
    end = time.monotonic() + min(seconds, until - time.time())
    if token not in _visited:
        _visited[token] = _first_visit(function, args)
    time.sleep(max(0.0, end - time.monotonic()))
    return _visited[token]


def _first_visit(function: Callable[[], Callable[..., Any]], args: Sequence[Any]) -> dict[str, Any]:
    recording, error = Recording(), None
    with recording:
        try:
            found = function()
            recording.of(found)
            found(*args)
        except Exception as failure:
            # it belongs to this worker, and its name has to travel with it
            error = "".join(traceback.format_exception_only(failure)).strip()
    return {**recording.record(), "error": error}
