"""Run one task and record whether it was warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gc_warm.worker import ledger, lifecycle


@dataclass(frozen=True)
class Call:
    """One call as its worker saw it; travels back to the client in place of the bare result.

    Attributes:
        result: What the function returned.
        worker: Which worker ran it.
        seconds: How long it ran there, loads included.
        loads: What ``@warm`` state it had to load, and which programs it had to start. Empty for a warm call.
    """

    result: Any
    worker: lifecycle.Worker
    seconds: float
    loads: tuple[ledger.Event, ...]

    @property
    def load_seconds(self) -> float:
        """Seconds spent in loads."""
        return sum(load.seconds for load in self.loads)


def observe(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
    """Call *function* on this worker and tell what the call found.

    Args:
        function: An importable function.
        *args: Its arguments.
        **kwargs: Likewise.

    Returns:
        The result with the record of the call.

    Example:
        >>> from gc_warm.worker.calls import observe
        >>> observe(divmod, 7, 2).result
        (3, 1)
    """
    before = ledger.mark()
    start = time.perf_counter()
    result = function(*args, **kwargs)
    seconds = time.perf_counter() - start
    loads = tuple(event for event in ledger.events(since=before) if event.kind == "loaded")
    return Call(result, lifecycle.worker(), seconds, loads)
