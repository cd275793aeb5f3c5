"""The shapes that a callable with state can have.

Which of them are warm is what the persistence table says.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from gc_warm import warm

count = 0


def import_in_body() -> int:
    import shapes

    shapes.count += 1
    return shapes.count


@warm
def unsendable_state() -> list[object]:
    return [sys._getframe()]


def module_global() -> int:
    global count
    count += 1
    return count


def _wrapping(function: Callable[[], int]) -> Callable[[], int]:
    @functools.wraps(function)
    def wrapper() -> int:
        return function()

    return wrapper


class _ByReference:
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[[], int]) -> None:
        self._function = function
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__

    def __call__(self) -> int:
        return self._function()

    def __reduce__(self) -> str:
        return self.__qualname__


@_wrapping
def wrapped_by_closure() -> int:
    global count
    count += 1
    return count


@_ByReference
def decorated_by_reference() -> int:
    global count
    count += 1
    return count


@functools.lru_cache
def lru_cached() -> int:
    """Counts its own loads: 1 every time if the cache stays."""
    import shapes

    shapes.count += 1
    return shapes.count


@warm
def warm_itself() -> int:
    """Counts its own loads: 1 every time if the state stays."""
    import shapes

    shapes.count += 1
    return shapes.count


@functools.lru_cache
def _loader() -> list[int]:
    return [0]


def calls_lru_cached() -> int:
    state = _loader()
    state[0] += 1
    return state[0]


@warm
def warm_state() -> list[int]:
    return [0]


def import_of_warm_in_body() -> int:
    from shapes import warm_state

    state = warm_state()
    state[0] += 1
    return state[0]


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def increase(self) -> int:
        self.count += 1
        return self.count

    def __call__(self) -> int:
        return self.increase()


class NamedCounter(Counter):
    """The SDK registers only what has a name."""

    __name__ = "named_counter"


def nested_helper() -> int:
    import functools

    @functools.lru_cache
    def load() -> list[int]:
        return [0]

    load()[0] += 1
    return load()[0]


def function_attribute() -> int:
    function_attribute.count = getattr(function_attribute, "count", 0) + 1  # type: ignore[attr-defined]
    return int(function_attribute.count)  # type: ignore[attr-defined]


def mutable_default(state: list[int] = [0]) -> int:  # noqa: B006
    state[0] += 1
    return state[0]
