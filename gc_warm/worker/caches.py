"""Functions under `functools.lru_cache`, which tell how often they had their value.

They count for themselves, for all of the process, and nothing else is known of them: neither when
they computed, nor for how long, nor what they have given up. What can be told is how the counts of
those at the top level of a module changed while a task ran that imports the module.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any, NamedTuple

_CacheType = type(functools.lru_cache(len))


class Counts(NamedTuple):
    """The counts of one cached function.

    Attributes:
        function: The function.
        hits: How often it had the value.
        misses: How often it had to compute it.
    """

    function: Any
    hits: int
    misses: int


def modules_of(function: object) -> frozenset[str]:
    """Return the modules that a function's body imports, by their absolute names.

    Args:
        function: A function; anything else that can be called imports nothing.
    """
    code = getattr(function, "__code__", None)
    return _imports(code) if isinstance(code, CodeType) else frozenset()


# Code objects of the same text are equal, also those of a function that each task brings anew.
@functools.lru_cache(maxsize=256)
def _imports(code: CodeType) -> frozenset[str]:
    modules: set[str] = set()
    imported = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            imported = instruction.argval
            modules.add(imported)
        elif instruction.opname == "IMPORT_FROM":  # of a package, this may be a module
            modules.add(f"{imported}.{instruction.argval}")

    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            modules |= _imports(constant)
    return frozenset(modules - sys.stdlib_module_names)


def counts(modules: Iterable[str]) -> dict[str, Counts]:
    """Return the counts of all cached functions at the top level of some modules.

    Args:
        modules: Names of modules; those that have not been imported are passed over.

    Returns:
        The counts, by ``module.function``: by the first name that the module has for it, since a
        function may have another one of its own, or none. What a module has from another one is not
        in them.
    """
    found = {}
    for module in modules:
        seen: set[int] = set()
        for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            is_own = type(value) is _CacheType and value.__module__ == module
            if is_own and id(value) not in seen:
                seen.add(id(value))
                info = value.cache_info()
                found[f"{module}.{name}"] = Counts(value, info.hits, info.misses)
    return found


def changes(before: dict[str, Counts], after: dict[str, Counts]) -> dict[str, tuple[int, int]]:
    """Return by how much counts have grown, of those that have.

    Args:
        before: The counts at the beginning.
        after: The counts at the end.

    Returns:
        Hits and misses, by ``module.function``.
    """
    changed = {}
    for name, now in after.items():
        then = before.get(name)
        # of a module that was imported anew, or a cache that was cleared, all are new
        is_same = then is not None and then.function is now.function
        if then is None or not is_same or now.hits < then.hits or now.misses < then.misses:
            then = Counts(now.function, 0, 0)

        if (now.hits, now.misses) != (then.hits, then.misses):
            changed[name] = (now.hits - then.hits, now.misses - then.misses)
    return changed
