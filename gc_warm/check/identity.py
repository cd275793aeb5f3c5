"""Classes whose instances compare by identity, as far as source says so.

A class does if it takes its comparison from `object`. It is passed over where a worker may get one
and the same instance all the same: where the class makes or restores its instances itself, where a
module or a loader keeps one, or where an instance may be one of a subclass.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gc_warm.check import source
from gc_warm.check.names import Function
from gc_warm.check.source import Library, Module

PARTIAL = "functools.partial"
"""The class of Python's own library that is known here."""

_TYPING = ("typing", "typing_extensions")
_CHOICES = {f"{module}.{name}" for module in _TYPING for name in ("Optional", "Union")}
_CONTAINERS = {"tuple", "frozenset"} | {
    f"{module}.{name}" for module in _TYPING for name in ("Tuple", "FrozenSet")
}
"""Types that are equal if their parts are."""

_ANNOTATED = {f"{module}.Annotated" for module in _TYPING}
_PLAIN_BASES = {"object"} | {f"{module}.Generic" for module in _TYPING}
_DATACLASS = "dataclasses.dataclass"
_OWN_IDENTITY = {"__eq__", "__new__", "__reduce__", "__reduce_ex__"}
"""Methods with which a class compares, makes or restores its instances in a way of its own."""


def found_in(annotation: ast.expr | None, module: Module, library: Library) -> Iterator[str]:
    """Yield the names of the classes in an annotation whose instances compare by identity.

    Args:
        annotation: The annotation of a parameter, if it has one.
        module: The module that the parameter is written in.
        library: Reads the modules of other classes.
    """
    for node in _types_in(annotation, module):
        if module.origin(node) == PARTIAL:
            if not _is_named_at_top(PARTIAL.rpartition(".")[2], module):
                yield PARTIAL
            continue

        home, kind = library.find(node, module) or (None, None)
        if home is None or not isinstance(kind, ast.ClassDef):
            continue

        is_plain = _takes_comparison_of_object(kind, home) and not _is_to_be_extended(kind)
        name_here = node.id if isinstance(node, ast.Name) else node.attr
        is_kept = _may_be_kept(name_here, module) or _may_be_kept(kind.name, home)
        if is_plain and not is_kept:
            yield kind.name


def _types_in(node: ast.expr | None, module: Module) -> Iterator[ast.Name | ast.Attribute]:
    """Yield the types in an annotation that a value, or a part of a value, may have."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        yield node
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _types_in(_parsed(node.value), module)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _types_in(node.left, module)
        yield from _types_in(node.right, module)
    elif isinstance(node, ast.Subscript):
        for part in _parts(node, module):
            yield from _types_in(part, module)


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _parts(node: ast.Subscript, module: Module) -> list[ast.expr]:
    """Return the types in a subscript that count: its parts, or the class before the bracket."""
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    origin = module.origin(node.value)
    if origin in _ANNOTATED:
        return parts[:1]
    return parts if origin in _CHOICES | _CONTAINERS else [node.value]


def _takes_comparison_of_object(kind: ast.ClassDef, module: Module) -> bool:
    """Return whether a class is written such that nothing but `object` compares its instances."""
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in kind.bases]
    if kind.keywords or any(module.origin(base) not in _PLAIN_BASES for base in bases):
        return False
    if not all(_is_dataclass_without_eq(each, module) for each in kind.decorator_list):
        return False

    is_changed_later = any(
        isinstance(node, ast.Attribute)
        and node.attr in _OWN_IDENTITY
        and source.is_name(node.value, kind.name)
        for node in ast.walk(module.tree)
    )
    return not is_changed_later and not _OWN_IDENTITY & module.names.bindings(kind).keys()


def _is_dataclass_without_eq(decorator: ast.expr, module: Module) -> bool:
    if not isinstance(decorator, ast.Call) or module.origin(decorator) != _DATACLASS:
        return False
    given = {keyword.arg: keyword.value for keyword in decorator.keywords}
    eq = given.get("eq")
    return isinstance(eq, ast.Constant) and eq.value is False


def _is_to_be_extended(kind: ast.ClassDef) -> bool:
    """Return whether a class leaves methods to its subclasses."""
    names = {"abstractmethod", "NotImplementedError"}
    return any(_names_one_of(node, names) for node in ast.walk(kind))


def _may_be_kept(name: str, module: Module) -> bool:
    """Return whether a module may keep an instance of a class, or have a subclass of it."""
    if _is_named_at_top(name, module):
        return True

    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and any(_names(base, name) for base in node.bases):
            return True
        is_keeping = isinstance(node, Function) and source.declared_global(node)
        if is_keeping and _names(node, name):
            return True

    return any(_may_make(function, name) for function in _run_by_loaders(module))


def _run_by_loaders(module: Module) -> list[Function]:
    """Return the loaders of a module, and those of its functions that they use."""
    functions = module.functions
    found = module.loaders
    for function in found:  # which grows meanwhile
        used = module.names.free(function) & functions.keys()
        found += [functions[name] for name in used if functions[name] not in found]
    return found


def _may_make(function: Function, name: str) -> bool:
    """Return whether a function may return instances of a class: it names it, or says so."""
    quoted = source.strings(function.returns) if function.returns else ()
    if any(name in text for text in quoted):
        return True
    return any(_names(part, name) for part in (function.returns, *function.body) if part)


def _is_named_at_top(name: str, module: Module) -> bool:
    """Return whether a statement at the top level of a module uses a class."""
    definitions = (Function, ast.ClassDef, ast.Import, ast.ImportFrom)
    return any(_names(node, name) for node in module.tree.body if not isinstance(node, definitions))


def _names(tree: ast.AST, name: str) -> bool:
    return any(_names_one_of(node, {name}) for node in ast.walk(tree))


def _names_one_of(node: ast.AST, names: set[str]) -> bool:
    """Return whether a node itself is one of these names, or an attribute of that name."""
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr in names
