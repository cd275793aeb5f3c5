"""What is known of one call: whether it was warm, why not, where it ran, and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from gc_warm.worker import module_versions
from gc_warm.worker.calls import FIRST
from gc_warm.worker.lifecycle import Worker

RESTARTED = "worker restarted"
_LOST = ("WorkerLost", "ManagerLost")


@dataclass(frozen=True)
class Load:
    """State that a call had to load, or a program that it had to start.

    Attributes:
        name: The loader, as ``module.function``; the beginning of a program's command line.
        key: The arguments it was called with, as short text.
        seconds: How long it took.
        at: When it was over, in seconds since the epoch by the worker's clock.
        why: "first on this worker", "worker restarted", "evicted", "failed before", "module
            changed", "cleared" (torn down on request; of a program: it had ended), or "loaded
            again" (its loader is made anew in every call). "first" and "restarted" are as far as
            the latest thousand events of the worker, and the records that this client has seen, can
            tell.
    """

    name: str
    key: str
    seconds: float
    at: float
    why: str


@dataclass(frozen=True)
class Warmth:
    """Whether a call was warm, with the evidence.

    Attributes:
        state: "cold": it had to load. "warm": it loaded nothing, and used what was there.
            "unknown": nothing can be said.
        why: Why it was not warm: for a cold call the reason of its longest load.
        loads: What it had to load, in this order.
        uses: How often it found what it asked ``@warm`` or an `ExternalProcess` for.
        failures: How many loads failed in it.
        worker: Where it ran; None if that is not known.
        at: When it began there, in seconds since the epoch by the worker's clock.
        seconds: How long it ran there, loads included.
        stale: Modules of which the worker holds another version than is on this machine, or where
            the worker has it from, now.
    """

    state: Literal["warm", "cold", "unknown"] = "unknown"
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
        """Seconds spent in loads, those that ran within or beside another counted once."""
        total, end = 0.0, float("-inf")
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
        function: Name of the function; its id if it was submitted by that; "reloaded" where all
            that is known is the id of the task.
        task_id: Id of the task; None if it never had one.
        submitted: When it was submitted, in seconds since the epoch.
        ended: When its result was there.
        warmth: What is known of it.
    """

    function: str
    task_id: str | None
    submitted: float
    ended: float
    warmth: Warmth

    def plain(self) -> dict[str, Any]:
        """As JSON would have it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Call:
        """From what `plain` gives; what another version of gc_warm has added is passed over.

        Raises:
            ValueError: It is something else.
        """
        return _CALL.validate_python(plain)


_CALL, _WARMTH = TypeAdapter(Call), TypeAdapter(Warmth)


def unknown(why: str) -> Warmth:
    """Nothing can be said, and why."""
    return Warmth("unknown", why)


def was_lost(error: BaseException | None) -> bool:
    """Whether a task ended with this error because its worker, or the manager of that, had ended."""
    # here, since who only reads records needs no SDK
    from globus_compute_sdk.errors import TaskExecutionFailed

    return isinstance(error, TaskExecutionFailed) and any(
        f".{name}:" in error.remote_data for name in _LOST
    )


def parse_record(record: Mapping[str, Any], died: Collection[tuple[str, str]] = ()) -> Warmth:
    """What a worker's record says.

    Args:
        record: What `gc_warm.worker.calls.Recording.record` gives.
        died: Loaders and keys that were loaded in this worker's place before, by a process that has
            ended.

    Raises:
        ValueError, LookupError: It is something else.
    """
    warmth = _WARMTH.validate_python(record)
    loads = tuple(
        replace(load, why=RESTARTED)
        if load.why == FIRST and (load.name, load.key) in died
        else load
        for load in warmth.loads
    )
    changed = record.get("changed", ())  # a record of an earlier version has no such thing
    stale = tuple(
        name
        for name, version in record["modules"].items()
        if name in changed or _here(name) not in (None, version)
    )
    if loads:
        state, why = "cold", max(loads, key=lambda load: load.seconds).why
    elif warmth.failures:
        state, why = "unknown", "a load failed"
    elif warmth.uses:
        state, why = "warm", None
    else:
        state, why = "unknown", "used nothing of @warm or ExternalProcess"
    return replace(warmth, state=state, why=why, loads=loads, stale=stale)  # type: ignore[arg-type]


def _here(module: str) -> str | None:
    """The version of a module's file on this machine; None if there is none."""
    spec = module_versions.spec_of(module)
    return (
        module_versions.version(spec.origin)
        if spec and spec.origin and Path(spec.origin).suffix == ".py"
        else None
    )
