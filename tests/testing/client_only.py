"""Functions of a module that lies beside a client's script.

No worker can import it under the name that the script uses.
"""

from __future__ import annotations

from collections.abc import Callable

count = 0


def self_contained() -> int:
    return 1


def uses_global() -> int:
    global count
    count += 1
    return count


def _closure_over(number: int) -> Callable[[], int]:
    def closure() -> int:
        return number

    return closure


def _closure_over_nothing() -> Callable[[], int]:
    def closure() -> int:
        return 1

    return closure


closure = _closure_over(1)
self_contained_closure = _closure_over_nothing()
self_contained_lambda = lambda: 1  # noqa: E731
