"""What the tests of `gc_warm.time_left` run on workers."""

from __future__ import annotations

import os
import sys

from tasks import meet

from gc_warm import ExternalProcess, NotEnoughTimeError, time_left, warm
from gc_warm.worker import deadline

PROGRAM = """
from gc_warm import serve
from gc_warm.worker import deadline
serve(lambda request: deadline.job_end())
"""


def job_end() -> tuple[int, float | None]:
    """Return the worker's process id, and the end of its job on the clock of its node."""
    return os.getpid(), deadline.job_end()


def job_end_in_a_program() -> float | None:
    """Return the end of its job that a program of the worker knows."""
    with ExternalProcess([sys.executable, "-c", PROGRAM]) as program:
        end: float | None = program.call(None)
    return end


def seconds_left() -> float | None:
    """Return how long is left."""
    return time_left()


def seconds_left_on_each(folder: str, number: int) -> tuple[str, float | None]:
    """Wait as in `tasks.meet`, and return the node, and how long is left."""
    meet(folder, number)
    return os.environ["SLURMD_NODENAME"], time_left()


@warm
def index(needed: float) -> str:
    """Something that takes so many seconds to load, if there are as many."""
    left = time_left()
    if left is not None and left < needed:
        raise NotEnoughTimeError(needed, left)
    return f"took {needed:g} s"


def look_up(needed: float) -> str:
    """Return what takes so many seconds to load."""
    return index(needed)
