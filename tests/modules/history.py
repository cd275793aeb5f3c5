"""Functions for the scripted histories of warmth.

One ``@warm`` loader sees everything that can happen to its state.
"""

from __future__ import annotations

from pathlib import Path

from gc_warm import warm


def is_whole(rows: list[str], name: str, flag: str) -> bool:
    return rows == [name]


@warm(maxsize=1, valid=is_whole)
def table(name: str, flag: str) -> list[str]:
    """Fails as long as there is a file *flag*."""
    if Path(flag).exists():
        raise RuntimeError("not yet")
    return [name]


def use(name: str, flag: str) -> str:
    from history import table

    return table(name, flag)[0]


@warm
def points(coordinates: tuple[int, ...]) -> tuple[int, ...]:
    return coordinates


@warm
def letters(number: int) -> bytes:
    return b"a" * number


def block(number: int) -> int:
    from history import letters

    return len(letters(number))
