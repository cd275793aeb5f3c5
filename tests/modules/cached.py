"""State under `functools.lru_cache`, in the ways in which people keep it there."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.lru_cache(maxsize=1)
def table(name: str) -> list[str]:
    return [name]


def use(name: str) -> str:
    return table(name)[0]


@functools.cache
def slow_table(name: str, begun: str, gate: str) -> list[str]:
    from tasks import wait_for_file

    Path(begun).touch()
    wait_for_file(gate)
    return [name]
