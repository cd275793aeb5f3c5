"""What several tests use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
from globus_compute_sdk.errors import TaskExecutionFailed

MODULES = Path(__file__).parent / "modules"
"""Warmable modules of the tests; on a worker's import path only where a test puts this folder there."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition, not for time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.01)


def remote_text(future: Future[Any], seconds: float = 60) -> str:
    """What the remote side says of a task that has to fail."""
    error = future.exception(seconds)
    assert isinstance(error, TaskExecutionFailed), error
    return str(error.remote_data)


def client_environment() -> dict[str, str]:
    """For a client in a process of its own that uses what the tests have."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(MODULES.parents[1]), str(MODULES)])}


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or has ended and is only not yet waited for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
