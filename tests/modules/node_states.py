"""State of two hundred megabytes, as a benchmark loads it in each worker or once on a node."""

from __future__ import annotations

import mmap
import os
import random
import time
from array import array
from pathlib import Path
from typing import Any

from gc_warm import warm

NUMBERS = 25_000_000  # of eight bytes
OBJECTS = 400_000


def make() -> array[float]:
    """A table that takes a second or two of CPU time."""
    return array("d", (number * 0.5 for number in range(NUMBERS)))


@warm
def table() -> array[float]:
    return make()


@warm
def mapped() -> Any:
    """The same table in a file on the local disk, which all workers map."""
    with Path(os.environ["NODE_STATES_FILE"]).open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(whole).cast("d")


@warm
def records() -> dict[int, list[object]]:
    """Small objects of Python's."""
    return {number: [float(number), str(number)] for number in range(OBJECTS)}


def nothing() -> range:
    return range(OBJECTS)


STATES: dict[str, Any] = {
    "nothing": nothing,
    "table": table,
    "mapped": mapped,
    "records": records,
}


def meet(name: str, folder: str, number: int) -> tuple[int, int, bool]:
    """Use a state; return when all workers have, and with them who this one is."""
    from node_states import STATES

    from gc_warm.worker import ledger

    before = ledger.mark()
    state = STATES[name]()
    was_warm = ledger.mark() == before
    assert len(state) in (NUMBERS, OBJECTS)

    Path(folder, os.environ["GC_TASK_UUID"]).touch()
    while len(os.listdir(folder)) < number:
        time.sleep(0.01)
    return os.getpid(), os.getppid(), was_warm


def read(name: str, times: int) -> float:
    """Read a state at random places."""
    from node_states import STATES

    state = STATES[name]()
    places = [random.randrange(len(state)) for _ in range(times)]
    parts = [state[place] for place in places]
    return float(sum(part[0] if isinstance(part, list) else part for part in parts))
