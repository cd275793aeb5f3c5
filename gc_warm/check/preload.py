"""What workers are to preload, held against the source of it.

A preload names a module, or a callable of one that is called without arguments. Whether that can
be done is read in the module's file, where workers and this machine have the same, or this machine
has one of that name. Nothing is imported. What is bound in several ways, or in ways that cannot be
read, is passed over.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gc_warm.check import source
from gc_warm.check.names import Function, defaults
from gc_warm.check.source import Library, Module
from gc_warm.worker import module_versions

_SAME_PARAMETERS = source.WARM | {"functools.cache", "functools.lru_cache"}
"""Decorators below which a function takes the arguments that it is written with."""

# Names in a module that may bind others, in ways that are not read.
_BINDING = {
    "__dict__",
    "__getattr__",
    "eval",
    "exec",
    "globals",
    "locals",
    "modules",
    "setattr",
    "vars",
}
_NOT_CALLABLE = (
    ast.Constant,
    ast.JoinedStr,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


@dataclass(frozen=True)
class Mistake:
    """A preload that cannot be done.

    Attributes:
        text: The reason, with the file and the line, and what to write instead.
        is_certain: Whether the file is the one that workers have.
    """

    text: str
    is_certain: bool


def mistakes(specs: Sequence[str], folders: Sequence[str]) -> Iterator[Mistake]:
    """Yield each preload that cannot be done.

    Args:
        specs: What is to be preloaded: ``my_model``, or ``my_model:load``.
        folders: The folders in which workers look for modules first. Python's path here comes
            after them.
    """
    for spec in specs:
        for path, is_certain in ((list(folders), True), (None, False)):
            name = spec.partition(":")[0]
            at_hand = module_versions.spec_of(name.partition(".")[0], path) is not None
            if at_hand:
                text = _mistake(spec, path)
                if text:
                    yield Mistake(text, is_certain)
                break


def _mistake(spec: str, path: list[str] | None) -> str:
    """Return why a preload cannot be done; empty if it can be, or if that is not known."""
    name, _, attributes = spec.partition(":")
    library = Library([], path)

    package, _, last = name.rpartition(".")
    if package and module_versions.spec_of(name, path) is None:
        return _no_package(package, last, attributes, library)

    module = library.named(name)
    if module is None or not attributes:
        return ""

    wanted = ast.parse(attributes, mode="eval").body
    found = library.find(wanted, module)
    if found is None:
        is_lacking = isinstance(wanted, ast.Name) and not _may_have(module, attributes)
        return _lacking(spec, module) if is_lacking else ""
    return _not_to_be_called(spec, *found, library)


def _no_package(package: str, last: str, attributes: str, library: Library) -> str:
    """Return why a module inside another is not there: the other is a file, not a folder."""
    module = library.named(package)
    is_file = module is not None and os.path.basename(module.path) != "__init__.py"
    if module is None or not is_file or _binds_unseen(module):
        return ""

    remedy = f"write {package}:{last}" if not attributes and last in module.top else "correct it"
    return f"there is no module {package}.{last}, since {module.path} is no package; {remedy}"


def _lacking(spec: str, module: Module) -> str:
    name = spec.partition(":")[2]
    return f"{spec} is not there: {module.path} has no {name}{source.near(name, module.top)}"


def _may_have(module: Module, name: str) -> bool:
    """Return whether a module may have something of that name when it has been imported."""
    if name in module.top or name.startswith("__") or _binds_unseen(module):
        return True

    # modules inside a package become its attributes when somebody imports them
    folder, file = os.path.split(module.path)
    inside = (os.path.join(folder, name), os.path.join(folder, f"{name}.py"))
    return file == "__init__.py" and any(map(os.path.exists, inside))


def _binds_unseen(module: Module) -> bool:
    """Return whether a module may bind names that are not written in it."""
    if "*" in module.top:
        return True
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id in _BINDING:
            return True
        if isinstance(node, ast.Attribute) and node.attr in _BINDING:
            return True
    return "__getattr__" in module.top


def _not_to_be_called(spec: str, module: Module, found: ast.AST, library: Library) -> str:
    """Return why a definition cannot be called without arguments, or runs nothing if it is."""
    definition = _behind(found, module, library)
    if definition is None:
        return ""

    home, node, is_warm = definition
    place = f"{home.path}:{getattr(node, 'lineno', 1)}"
    if isinstance(node, _NOT_CALLABLE):
        return f"{spec} cannot be called: it is {ast.unparse(node)[:50]} ({place}); name a function"

    function = _initializer(node, home) if isinstance(node, ast.ClassDef) else node
    if not isinstance(function, (Function, ast.Lambda)):
        return ""

    needed = _needed(function)[1 if isinstance(node, ast.ClassDef) else 0 :]
    if needed:
        return (
            f"{spec} needs {', '.join(needed)} ({place}), and is called without arguments; give "
            "defaults, or name a function that calls it"
        )

    kind = source.unrun(function)
    if kind and not is_warm and function is node:
        return (
            f"{spec} is {kind} ({place}), and calling it runs nothing of it; name a function that "
            "does the work"
        )
    return ""


def _behind(
    node: ast.AST, module: Module, library: Library, is_warm: bool = False
) -> tuple[Module, ast.AST, bool] | None:
    """Return the function, class or value that a name stands for, its module, and if it is @warm.

    None means that this cannot be read: there is a decorator of another kind, say.
    """
    seen: set[int] = set()
    while id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, (Function, ast.ClassDef)):
            origins = {module.origin(each) for each in node.decorator_list}
            known = _SAME_PARAMETERS if isinstance(node, Function) else set()
            is_warm = is_warm or bool(origins & source.WARM)
            return (module, node, is_warm) if origins <= known else None
        if isinstance(node, ast.Lambda) or _is_plain_value(node, module):
            return module, node, is_warm

        if isinstance(node, ast.Call):  # load = warm(function)
            is_known = module.origin(node) in _SAME_PARAMETERS and len(node.args) == 1
            if not is_known:
                return None
            is_warm = is_warm or module.origin(node) in source.WARM
            node = node.args[0]
            continue

        followed = library.find(node, module) if isinstance(node, ast.expr) else None
        if followed is None:
            return None
        module, node = followed
    return None


def _is_plain_value(node: ast.AST, module: Module) -> bool:
    """Return whether an expression gives something that cannot be called.

    The annotation of a name that gets no value here is none.
    """
    if not isinstance(node, _NOT_CALLABLE):
        return False
    declared = (each for each in ast.walk(module.tree) if isinstance(each, ast.AnnAssign))
    return all(each.annotation is not node for each in declared)


def _initializer(kind: ast.ClassDef, module: Module) -> Function | None:
    """Return what a class is called with; None if that is written elsewhere, or in other ways."""
    bound = module.names.bindings(kind)
    has_own = not kind.bases and not kind.keywords and "__new__" not in bound
    methods = bound.get("__init__", [])
    if not has_own or len(methods) != 1 or not isinstance(methods[0], Function):
        return None
    return None if methods[0].decorator_list else methods[0]


def _needed(function: Function | ast.Lambda) -> list[str]:
    """Return the parameters without a default."""
    return [argument.arg for argument, default in defaults(function) if default is None]
