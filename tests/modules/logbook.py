"""State with a teardown that can be seen from outside.

It writes down when it is loaded and when it is torn down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path

from gc_warm import warm


@warm
def logbook(path: str) -> Generator[list[str], None, None]:
    pages: list[str] = []
    _write(path, "loaded")
    yield pages
    _write(path, f"torn down after {len(pages)}")


def note(path: str) -> int:
    """How many notes this worker has taken: 1 is cold, more is warm."""
    from logbook import logbook

    pages = logbook(path)
    pages.append("note")
    return len(pages)


def _write(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


@warm
def slow_state(path: str, gate: str) -> str:
    """Its load takes until there is a file *gate*."""
    _write(path, "loading")
    while not os.path.exists(gate):
        time.sleep(0.005)
    return gate


def load_slowly(path: str, gate: str) -> str:
    """What takes its time to load."""
    from logbook import slow_state

    return slow_state(path, gate)
