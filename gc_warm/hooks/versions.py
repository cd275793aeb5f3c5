"""The versions of Parsl that hooks were tested with: one list for all that check it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

TESTED_PARSL = (
    "2026.7.27",  # the oldest that endpoint 4.19 takes
    "2026.8.10",
    "2026.9.7",
    "2026.9.14",
    "2026.9.28",
    "2026.10.5",
    "2026.10.12",
    "2026.10.19",
    "2026.10.26",
)
"""Versions whose workers and managers were found to be as hooks assume."""


def why_untested(tested: Sequence[str] | None = None) -> str:
    """Return why this Parsl is none that hooks were tested with; empty if it is one.

    Args:
        tested: The versions that count, for a hook which has some more or less than the others.
    """
    tested = TESTED_PARSL if tested is None else tested
    version = importlib.metadata.version("parsl")
    if version in tested:
        return ""
    return f"it was tested with Parsl {', '.join(tested)}, and this is {version}"
