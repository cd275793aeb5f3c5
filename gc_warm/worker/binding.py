"""Functions with the signature of a loader, compiled once for each loader.

Python's own call machinery binds the arguments of a call, in a tenth of a microsecond where
``inspect.Signature.bind`` needs six.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

# the signs of parameters that take any number of arguments
_STARS: dict[object, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def binder(loader: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Make a function with the loader's own signature that returns what it bound, as a tuple."""
    prefix = _unused_prefix(loader)
    parts = []
    for parameter in inspect.signature(loader).parameters.values():
        is_mapping = parameter.kind is parameter.VAR_KEYWORD
        parts.append(f"{prefix}_items({parameter.name})" if is_mapping else parameter.name)

    returned = "".join(f"{part}," for part in parts)
    items = {f"{prefix}_items": lambda keywords: tuple(sorted(keywords.items()))}
    return _with_signature(loader, f"({returned})", items)


def forwarder(
    loader: Callable[..., Any], target: Callable[..., Any], takes_state: bool = False
) -> Callable[..., Any]:
    """Make a function with the loader's own signature that calls another with what it bound.

    Args:
        loader: The function whose signature is meant.
        target: The function to call. Defaults of the loader are given to it, too.
        takes_state: Whether the state comes before the loader's arguments.
    """
    prefix = _unused_prefix(loader)
    arguments = [f"{prefix}_state"] if takes_state else []
    for parameter in inspect.signature(loader).parameters.values():
        name = parameter.name
        by_keyword = parameter.kind is parameter.KEYWORD_ONLY
        star = _STARS.get(parameter.kind, "")
        arguments.append(f"{name}={name}" if by_keyword else f"{star}{name}")

    called = f"{prefix}_target({', '.join(arguments)})"
    first = arguments[:1] if takes_state else []
    return _with_signature(loader, called, {f"{prefix}_target": target}, first)


def selector(loader: Callable[..., Any], argument: str) -> Callable[..., Any]:
    """Make a function with the loader's own signature that returns one of its arguments."""
    return _with_signature(loader, argument, {})


def _unused_prefix(loader: Callable[..., Any]) -> str:
    """Return the beginning of a name that no parameter of the loader has."""
    prefix = "_gc_warm"
    while any(name.startswith(prefix) for name in inspect.signature(loader).parameters):
        prefix = f"_{prefix}"
    return prefix


def _with_signature(
    loader: Callable[..., Any], body: str, names: dict[str, Any], first: Sequence[str] = ()
) -> Callable[..., Any]:
    """Compile a function of one expression with the loader's own signature.

    Args:
        loader: The function whose signature is meant; errors of a call name it.
        body: The expression.
        names: What it uses besides the parameters.
        first: Parameters before those of the loader.
    """
    prefix = _unused_prefix(loader)
    space = dict(names)
    parameters = [*first]
    before: Any = None

    for number, parameter in enumerate(inspect.signature(loader).parameters.values()):
        parameters += _separators(before, parameter.kind)
        before = parameter.kind

        default = "" if parameter.default is parameter.empty else f"={prefix}_{number}"
        space[f"{prefix}_{number}"] = parameter.default
        parameters.append(f"{_STARS.get(parameter.kind, '')}{parameter.name}{default}")

    parameters += _separators(before, None)

    # names come from a compiled function
    function = eval(f"lambda {', '.join(parameters)}: {body}", space)
    function.__name__ = loader.__name__
    function.__qualname__ = loader.__qualname__
    return cast(Callable[..., Any], function)


def _separators(before: Any, kind: Any) -> Iterator[str]:
    """Yield the signs that a signature has between two kinds of parameters; None is its end."""
    if before is inspect.Parameter.POSITIONAL_ONLY and kind is not before:
        yield "/"

    is_keyword_only = kind is inspect.Parameter.KEYWORD_ONLY
    if is_keyword_only and before not in (kind, inspect.Parameter.VAR_POSITIONAL):
        yield "*"
