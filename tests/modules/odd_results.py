"""Results that raise, on the client only, in whatever they are asked: as a lazy one might."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NoReturn


def _is_asked() -> None:
    if "PARSL_WORKER_RANK" not in os.environ:
        raise ConnectionError("the store is on the cluster")


class Lazy:
    """A result that must not be asked for its class, as a proxy is fetched by it."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        _is_asked()
        return Lazy

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class LazyFunction(Lazy):
    def __call__(self) -> int:
        return 1


class Incomparable:
    """A result that must not be compared, hashed, measured, or taken for true or false."""

    def __eq__(self, other: object) -> NoReturn:
        raise ConnectionError("the store is on the cluster")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> NoReturn:
        raise ConnectionError("the store is on the cluster")

    __len__ = __iter__ = __bool__


class Key:
    """A key of a dictionary that can be looked for on the worker only."""

    def __hash__(self) -> int:
        return hash("gc_warm_record")

    def __eq__(self, other: object) -> bool:
        _is_asked()
        return self is other


def keyed() -> dict[Any, int]:
    return {Key(): 1, "result": 2}


def adder() -> Callable[[int], int]:
    return lambda number: number + 1


MAKE: dict[str, Callable[[], Any]] = {
    "lazy": Lazy,
    "lazy function": LazyFunction,
    "incomparable": Incomparable,
    "dictionary with odd keys": keyed,
    "lambda": adder,
    "built-in": lambda: len,
    "class": lambda: Lazy,
    "partial": lambda: functools.partial(max, 2),
}


def make(kind: str) -> Any:
    return MAKE[kind]()
