"""Keys that a later task can find again, and those that none can.

A task's arguments are unpickled on the worker, so that each task brings objects of its own. A key
is found again if it is equal to the earlier one all the same. An object that compares by identity
is not, unless unpickling gives the very same object (a class, an importable function, a member of
an enumeration) or the worker itself has kept it. Such a key would be cold in every task, and each
of them would leave one more copy of the state behind.

All of this is looked at when a key is about to be loaded, and never when it is found.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from weakref import ref

from gc_warm.worker import ledger

_COMPARED_BY_VALUE = frozenset({str, bytes, int, bool, type(None)})
_NEW_OBJECT: object = vars(copyreg)["__newobj__"]  # makes instances of classes in general
_STAND_IN = -1  # the number of an object that another task would bring anew


def reason_to_refuse(
    value: object, is_kept: Callable[[object], bool], passing: dict[str, ref[type]]
) -> str | None:
    """Return the reason why no later task would find a key with this part, and a remedy.

    Args:
        value: An argument of a loader.
        is_kept: Tells whether an object is state that this process keeps.
        passing: The classes seen so far that are not found by their names; added to.

    Returns:
        The reason, as the end of a sentence; None for a value that can be found again.
    """
    for part, reason in lost_parts(value, is_kept):
        what = "it" if part is value else f"its part {ledger.describe(part)}"
        return (
            f"{what} {reason}, so that no later task would find the state again, and every call "
            "would be cold; pass a frozen dataclass, text or numbers, or say with @warm(key=...) "
            "what stands for it"
        )

    for kind in passing_classes(value):
        known = passing.setdefault(f"{kind.__module__}.{kind.__qualname__}", ref(kind))
        if known() is not kind:
            return (
                f"its class {kind.__qualname__} is made anew in every task, and instances of two "
                "classes are never equal; define it at the top level of a module of the workers"
            )

    return None


def lost_parts(value: object, is_kept: Callable[[object], bool]) -> Iterator[tuple[object, str]]:
    """Yield the parts of a key because of which no later task finds it.

    Args:
        value: An argument of a loader.
        is_kept: Tells whether an object is state that this process keeps.

    Yields:
        The part, and the reason in words that follow its text.
    """
    kind = type(value)
    if kind in _COMPARED_BY_VALUE or is_kept(value):
        return

    if kind.__eq__ in (tuple.__eq__, frozenset.__eq__):
        for part in value:  # type: ignore[attr-defined]
            yield from lost_parts(part, is_kept)
    elif _compares_by_identity(value):
        if not _is_same_in_later_tasks(value, is_kept):
            yield value, "compares by identity"
    elif not _is_equal(value, value):
        yield value, "is not equal to itself"
    elif _has_generated_comparison(kind):
        for part in _compared_fields(value):
            yield from lost_parts(part, is_kept)
    elif not _is_found_by_its_copy(value, is_kept):
        yield value, "is not equal to its own copy"


def passing_classes(value: object) -> Iterator[type]:
    """Yield the classes in a key that cannot be found by their names.

    The serializer makes such a class anew in every task that brings an instance of it; then no two
    instances are equal.
    """
    kind = type(value)
    if isinstance(value, tuple | frozenset):
        for part in value:
            yield from passing_classes(part)
    elif not _compares_as_a_builtin(kind) and not _is_importable(kind):
        yield kind

    if _has_generated_comparison(kind):
        for part in _compared_fields(value):
            yield from passing_classes(part)


def _compares_by_identity(value: object) -> bool:
    # of two bound methods, the objects that they are bound to are compared by identity
    return isinstance(value, MethodType) or type(value).__eq__ is object.__eq__


def _compares_as_a_builtin(kind: type) -> bool:
    """Return whether instances are equal to those of a built-in class, whatever their own is."""
    definers = [base for base in kind.__mro__ if "__eq__" in vars(base)]
    return definers[0].__module__ == "builtins"


def _is_importable(kind: type) -> bool:
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _has_generated_comparison(kind: type) -> bool:
    """Return whether a class compares the fields of a dataclass, and nothing else."""
    parameters = vars(kind).get("__dataclass_params__")
    comparison = getattr(vars(kind).get("__eq__"), "__code__", None)
    if parameters is None or not parameters.eq or comparison is None:
        return False
    return bool(comparison.co_filename == "<string>")  # one that somebody wrote is in a file


def _compared_fields(value: object) -> Iterator[object]:
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        if field.compare:
            yield getattr(value, field.name)


def _is_same_in_later_tasks(value: object, is_kept: Callable[[object], bool]) -> bool:
    """Return whether a later task comes by the very same object, which compares by identity."""
    if isinstance(value, MethodType):
        owner = value.__self__
        return _is_same_in_later_tasks(owner, is_kept)
    return is_kept(value) or _is_restored_as_itself(value) or id(value) in _globals()


def _is_restored_as_itself(value: object) -> bool:
    """Return whether unpickling gives the same object, without making a copy of a large one."""
    try:
        is_found_by_name = isinstance(value, type | FunctionType | BuiltinFunctionType)
        reduced = "" if is_found_by_name else _reduced(value)
        if isinstance(reduced, str):
            return pickle.loads(pickle.dumps(value)) is value

        make, arguments = reduced[:2]
        if make is _NEW_OBJECT and type(value).__new__ is object.__new__:
            return False
        # these tell which object it is; what else there is would be put into that object later
        make, arguments = pickle.loads(pickle.dumps((make, arguments)))
        return make(*arguments) is value
    except Exception:  # it cannot be pickled, in whichever way its class says so
        return False


def _reduced(value: object) -> Any:
    """Return what `pickle` stores of an object, before it looks into the parts."""
    reducer = copyreg.dispatch_table.get(type(value))
    return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if reducer is None else reducer(value)


def _globals() -> set[int]:
    """Return the ids of modules and of their globals, which tasks find again if they use those.

    Those of ``__main__`` are left out: on a worker, that is no module of the user's.
    """
    main = sys.modules.get("__main__")  # it may have other names as well
    found = set()
    for module in list(sys.modules.values()):
        found.add(id(module))
        if module is main:
            continue
        try:
            # past the module's own `__getattribute__`, which may import what was put off
            namespace = object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue
        found.update(map(id, list(namespace.values())))

    return found


def _is_equal(value: object, other: object) -> bool:
    try:
        return bool(value == other)
    except Exception:  # a comparison that cannot be made says nothing of other keys
        return True


def _is_found_by_its_copy(value: object, is_kept: Callable[[object], bool]) -> bool:
    """Return whether a copy as another task would bring it is the same key, if that can be told."""
    carrier = _Carrier(is_kept)
    try:
        copy = carrier.copy(value)
        is_same = copy is value or hash(copy) == hash(value)
    except Exception:  # made on this worker, and not brought by a task: nothing can be told of it
        return True
    return is_same and _is_equal(copy, value)


class _Carrier(pickle.Pickler):
    """Copies an object in the way in which tasks bring it.

    State that the worker keeps, globals and classes stay what they are. An object that compares by
    identity and cannot be pickled, such as a lambda, is brought by other serializers: as another.
    """

    def __init__(self, is_kept: Callable[[object], bool]) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, pickle.HIGHEST_PROTOCOL)
        self._is_kept = is_kept
        self._same: list[object] = []

    @functools.cached_property
    def _globals(self) -> set[int]:
        # all of them take milliseconds, and most keys have no part that could be one
        return _globals()

    def copy(self, value: object) -> object:
        self.dump(value)
        same = self._same

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: int) -> object:
                return object() if number == _STAND_IN else same[number]

        return Unpickler(io.BytesIO(self._file.getvalue())).load()

    def persistent_id(self, value: object) -> int | None:
        if type(value).__eq__ is not object.__eq__:
            return None

        if isinstance(value, type) or id(value) in self._globals or self._is_kept(value):
            self._same.append(value)
            return len(self._same) - 1
        return None if self._can_be_pickled(value) else _STAND_IN

    def _can_be_pickled(self, value: object) -> bool:
        try:
            if isinstance(value, FunctionType | BuiltinFunctionType):
                pickle.dumps(value)
            else:
                _reduced(value)
        except Exception:  # in whichever way its class says so
            return False
        return True
