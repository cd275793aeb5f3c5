"""State by key, with room for two, as tests of routing use it."""

from __future__ import annotations

import os
import time

from gc_warm import warm


@warm(maxsize=2)
def model(key: str, seconds: float = 0.0) -> list[str]:
    time.sleep(seconds)
    return [key]


def use(key: str, seconds: float = 0.0) -> tuple[int, bool]:
    """Return the worker's process id, and whether the call was cold."""
    before = model.info().loads
    model(key, seconds)
    return os.getpid(), model.info().loads > before


def count(key: str, number: int, file: str) -> tuple[int, int]:
    """Note in a file that a task runs, and return the worker's process id and the task's number."""
    with open(file, "a") as runs:
        runs.write(f"{number}\n")
    model(key)
    return os.getpid(), number
