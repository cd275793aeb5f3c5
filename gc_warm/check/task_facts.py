"""Facts that a user may tell the rules of tasks: how functions travel, and a few numbers.

Standard library only, so that the command line can offer these names without importing the SDK. A
test holds them against the SDK's own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

STRATEGIES = (
    "DillCodeSource",
    "DillCodeTextInspect",
    "DillCode",
    "PureSourceTextInspect",
    "PureSourceDill",
    "CombinedCode",
    "AllCodeStrategies",
)
"""Names of the SDK's serialization strategies for code, in its own order."""

DEFAULT_STRATEGY = "DillCode"
"""Name of the strategy that the SDK uses when none is asked for."""


@dataclass(frozen=True)
class Numbers:
    """The numbers that a user knows of tasks; rules that need a missing one say nothing.

    Attributes:
        load_seconds: Building the state.
        task_seconds: The longest task, without the load.
        state_gb: Memory of one copy of the state.
        queue_seconds: A job's wait in the queue.
    """

    load_seconds: float | None = None
    task_seconds: float | None = None
    state_gb: float | None = None
    queue_seconds: float | None = None


NUMBERS = tuple(field.name for field in dataclasses.fields(Numbers))
"""Names of what may be known of tasks."""
