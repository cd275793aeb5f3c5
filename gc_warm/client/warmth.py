"""Warmth of a call: whether it was warm, why not, where it ran, and what it cost."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from gc_warm.worker import module_versions
from gc_warm.worker.calls import ANOTHER_KEY, FIRST, VERSION
from gc_warm.worker.ledger import shortened
from gc_warm.worker.lifecycle import Worker

RESTARTED = "worker restarted"
_LOST = ("WorkerLost", "ManagerLost")

_KEY_LENGTH = 120  # characters of a key in a file of records
_SPEC_SECONDS = 5.0  # for which the place of a module's file is taken as it was found

State = Literal["warm", "cold", "unknown"]


@dataclass(frozen=True)
class Load:
    """State that a call had to load, or a program that it had to start.

    Attributes:
        name: The loader, as ``module.function``; of a program, the beginning of its command line.
        key: The arguments that the loader was called with, as short text.
        seconds: Duration of the load.
        at: End of the load, in seconds since the epoch by the worker's clock.
        why: The reason: "first on this worker" (of its loader), "another key" (its loader had
            loaded others there), "preload failed: ..." (in the first call that loads on a worker
            where one had), "worker restarted", "evicted", "failed before", "module changed",
            "discarded" (given up by a task), "not valid any more" (a predicate said no), "cleared"
            (torn down on request), "program restarted" (it had ended, and nobody had closed it), or
            "loaded again" (its loader is made anew in every call). "first", "another key" and
            "restarted" hold as far as the latest thousand events of the worker, and the records
            that this client has seen, can tell.
        grown: Bytes by which the worker grew in the load, by whatever ran there; 0 if that is not
            known.
        tag: A mark that tells keys with the same text apart: two loads in one process with
            different tags had different keys. Each process has tags of its own, of which nothing
            about the key can be learned. Empty if not known.
    """

    name: str
    key: str
    seconds: float
    at: float
    why: str
    grown: int = 0
    tag: str = ""


@dataclass(frozen=True)
class Warmth:
    """Whether a call was warm, with the evidence.

    Attributes:
        state: "cold": the call had to load. "warm": it loaded nothing, and used what was there.
            "unknown": nothing can be said.
        why: Why the call was not warm; of a cold one, the reason of its longest load, or the
            functions under `functools.lru_cache` that computed. None of a warm one.
        loads: Its loads, in the order in which they were made.
        uses: How often it found what it asked ``@warm``, an `ExternalProcess`, or a function under
            `functools.lru_cache` for.
        failures: Number of loads that failed in it.
        worker: The worker that it ran on; None if that is not known.
        at: Its beginning there, in seconds since the epoch by the worker's clock.
        seconds: Its duration there, loads included.
        stale: Modules of which the worker holds another version than is now on this machine, or in
            the file that the worker imported.
    """

    state: State = "unknown"
    why: str | None = None
    loads: tuple[Load, ...] = ()
    uses: int = 0
    failures: int = 0
    worker: Worker | None = None
    at: float | None = None
    seconds: float | None = None
    stale: tuple[str, ...] = ()

    @property
    def load_seconds(self) -> float:
        """Seconds spent in loads; time in which several ran at once is counted once."""
        total = 0.0
        end = float("-inf")
        for load in sorted(self.loads, key=lambda load: load.at - load.seconds):
            total += max(0.0, min(load.seconds, load.at - end))
            end = max(end, load.at)
        return total

    def __str__(self) -> str:
        return self.state + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Call:
    """One call as its client saw it.

    Attributes:
        function: Name of the function; its id if it was submitted by that; "reloaded" if all that
            is known is the id of the task.
        task_id: Id of the task; None if it never had one.
        submitted: Time when the call was submitted, in seconds since the epoch.
        ended: Time when its result was there, in seconds since the epoch.
        warmth: The warmth of the call.
    """

    function: str
    task_id: str | None
    submitted: float
    ended: float
    warmth: Warmth

    def plain(self, *, keys: bool = True) -> dict[str, Any]:
        """Return the call as a dictionary that can be written as JSON.

        Args:
            keys: Have the texts of keys in it, cut short; and of programs, which go by their
                command lines, more than the first word.
        """
        plain = {"version": VERSION, **asdict(self)}
        for load in plain["warmth"]["loads"]:
            load["key"] = shortened(load["key"], _KEY_LENGTH) if keys else ""
            if not keys:
                load["name"] = load["name"].partition(" ")[0]
        return plain

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Call:
        """Return the call that `plain` has made a dictionary of.

        Items that another version of gc_warm has added are passed over.

        Args:
            plain: The dictionary.

        Raises:
            ValueError: It is not that of a call.
        """
        return _CALL.validate_python(plain)


_CALL = TypeAdapter(Call)
_WARMTH = TypeAdapter(Warmth)


def unknown(why: str) -> Warmth:
    """Return the warmth of a call of which nothing can be said.

    Args:
        why: The reason.
    """
    return Warmth("unknown", why)


def was_lost(error: BaseException | None) -> bool:
    """Return whether a task ended because its worker, or that worker's manager, had ended.

    Args:
        error: The error that the task ended with; None if it has a result.
    """
    # here, since a process that only reads records needs no SDK
    from globus_compute_sdk.errors import TaskExecutionFailed

    if not isinstance(error, TaskExecutionFailed):
        return False
    return any(f".{name}:" in error.remote_data for name in _LOST)


def parse_record(record: Mapping[str, Any], died: Collection[tuple[str, str]] = ()) -> Warmth:
    """Return the warmth that a worker's record shows.

    Args:
        record: The record, as `gc_warm.worker.calls.Recording.record` gives it.
        died: Names and keys of the loads that were made in this worker's place before, by a process
            that has ended.

    Raises:
        ValueError: The record is something else, or of a later version than this one.
        LookupError: The record has no versions of modules.
    """
    if not is_readable(record):
        raise ValueError(f"version {record['version']!r} of records is not known here")

    warmth = _WARMTH.validate_python(record)
    loads = tuple(_with_restart(load, died) for load in warmth.loads)
    cached = record.get("cached", {})  # version 1 has no such thing
    hits = sum(hits for hits, _ in (cached or {}).values())
    warmth = replace(warmth, loads=loads, uses=warmth.uses + hits, stale=_stale(record))

    state, why = _state(warmth, cached)
    worker = _same(warmth.worker) if warmth.worker else None
    return replace(warmth, state=state, why=why, worker=worker)


def is_readable(record: Mapping[str, Any]) -> bool:
    """Return whether a record of a worker, or of a file, has a form that is known here.

    Args:
        record: The record.
    """
    version = record.get("version", 1)
    return isinstance(version, int) and 1 <= version <= VERSION


def _state(
    warmth: Warmth, cached: Mapping[str, tuple[int, int]] | None
) -> tuple[State, str | None]:
    """Return a call's state, and why it was not warm.

    Args:
        warmth: What is known of the call.
        cached: Hits and misses of functions under `functools.lru_cache`; None if they may be those
            of another call.
    """
    if warmth.loads:
        return "cold", max(warmth.loads, key=lambda load: load.seconds).why
    if warmth.failures:
        return "unknown", "a load failed"

    computed = [name for name, (_, misses) in (cached or {}).items() if misses]
    if computed:
        return "cold", f"lru_cache computed: {', '.join(sorted(computed))}"
    if warmth.uses:
        return "warm", None
    if cached is None:
        return "unknown", "lru_cache was used by several calls at the same time"
    return "unknown", "used nothing of @warm, ExternalProcess or ExternalServer"


def _with_restart(load: Load, died: Collection[tuple[str, str]]) -> Load:
    """Return a load with the reason "worker restarted" if a process that has ended had made it."""
    if load.why in (FIRST, ANOTHER_KEY) and (load.name, load.key) in died:
        return replace(load, why=RESTARTED)
    return load


def _stale(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules of which the worker holds another version than there is now."""
    stale = []
    changed = record.get("changed", ())  # a record of an earlier version has no such thing
    for name, version in record["modules"].items():
        if name in changed or _version_here(name) not in (None, version):
            stale.append(name)
    return tuple(stale)


def _version_here(module: str) -> str | None:
    """Return the version of a module's file on this machine; None if there is none."""
    now = time.monotonic()
    searched = (module, *sys.path)
    found, path = _found.get(searched, (-math.inf, None))
    if now - found > _SPEC_SECONDS:
        spec = module_versions.spec_of(module)
        path = spec.origin if spec else None
        _found[searched] = (now, path)

    return module_versions.version(path) if path and path.endswith(".py") else None


# where modules' files were found on this machine, and when, by name and import path
_found: dict[tuple[str, ...], tuple[float, str | None]] = {}


@functools.lru_cache(maxsize=1000)
def _same(worker: Worker) -> Worker:
    """Return an equal worker, the same one for all the calls that ran there, to save memory."""
    return worker
