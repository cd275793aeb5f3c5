"""State under `functools.lru_cache`, in the ways in which people keep it there."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.lru_cache(maxsize=1)
def table(name: str) -> list[str]:
    return [name]


def use(name: str) -> str:
    return table(name)[0]


class _Doubler:
    def __call__(self, number: int) -> int:
        return 2 * number


# has no name of its own
doubled = functools.lru_cache(_Doubler())

# the name that this has is that of another one
longer_table = functools.lru_cache(maxsize=9)(table.__wrapped__)


@functools.cache
def slow_table(name: str, begun: str, gate: str) -> list[str]:
    from tasks import wait_for_file

    Path(begun).touch()
    wait_for_file(gate)
    return [name]
