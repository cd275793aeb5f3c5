"""What several tests use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
"""Warmable modules of the tests; on a worker's import path only where a test puts this folder there."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition, not for time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.01)
