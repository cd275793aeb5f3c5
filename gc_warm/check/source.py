"""Python source as it is written: names and their origins, submissions, and names from outside.

Only what is plainly written is known: a name that is bound in several ways is the last of them
before it is used, and what comes from a parameter or a container is not looked into. Other modules
are read by a `Library`. Nothing is imported, and nothing runs.
"""

from __future__ import annotations

import ast
import builtins
import copy
import difflib
import functools
import importlib.util
import os
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gc_warm.worker import module_versions

_OURS = ("globus_compute_sdk", "gc_warm")
_OTHER_POOLS = (
    "concurrent",
    "multiprocessing",
    "dask",
    "distributed",
    "joblib",
    "parsl",
    "ray",
    "loky",
    "mpi4py",
)
WARM = {"gc_warm.warm", "gc_warm.worker.state.warm"}
"""The dotted names of the decorator that makes a loader."""

_SUBMITTING = ("submit", "register_function")
_MOST_PASSED_ON = 5  # packages that pass a name on, one from another
_SUBMITTED = ("fn", "function")  # the names that these methods have for what they take

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class SourceError(ValueError):
    """A name, a file or a function that is no Python that can be read."""


@dataclass(frozen=True)
class Submission:
    """A call that submits or registers something.

    Attributes:
        call: The call itself.
        sent: The argument that is submitted or registered.
        scopes: The scopes around the call, the innermost last.
    """

    call: ast.Call
    sent: ast.expr
    scopes: tuple[Scope, ...]


@dataclass(frozen=True, eq=False)
class Module:
    """A Python file as it is written.

    Attributes:
        path: The file.
        lines: Its lines of text.
        tree: Its syntax tree.
        is_script: Whether it is run, not imported, and submits functions of its own.
    """

    path: str
    lines: list[str]
    tree: ast.Module
    is_script: bool

    @functools.cached_property
    def imports(self) -> dict[str, str]:
        """The dotted name that each imported name stands for; a relative one begins with dots."""
        origins: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    head = alias.name.partition(".")[0]
                    origins[alias.asname or head] = alias.name if alias.asname else head
            elif isinstance(node, ast.ImportFrom):
                package = "." * node.level + (f"{node.module}." if node.module else "")
                for alias in node.names:
                    origins[alias.asname or alias.name] = package + alias.name
        return origins

    @functools.cached_property
    def top(self) -> dict[str, list[ast.AST]]:
        """The bindings of each name that the module itself binds."""
        return bindings(self.tree)

    @functools.cached_property
    def functions(self) -> dict[str, Function]:
        """The functions that the module itself has, also under an if or in a try."""
        return {
            name: nodes[-1] for name, nodes in self.top.items() if isinstance(nodes[-1], Function)
        }

    @functools.cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """The classes that the module itself has."""
        return {
            name: nodes[-1]
            for name, nodes in self.top.items()
            if isinstance(nodes[-1], ast.ClassDef)
        }

    @functools.cached_property
    def names(self) -> set[str]:
        """All names that the module itself defines or imports, and Python does not have anyway."""
        return set(self.top) - set(dir(builtins))

    @functools.cached_property
    def calls(self) -> list[Submission]:
        """All calls that submit or register something with Globus Compute, as far as is written."""
        if not any(name.partition(".")[0] in _OURS for name in self.imports.values()):
            return []
        return list(_calls(self, self.tree, (self.tree,), frozenset()))

    def origin(self, node: ast.expr) -> str:
        """Return the dotted name that an expression stands for; empty if it is something else.

        Args:
            node: The expression. A call stands for what is called.
        """
        parts: list[str] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Call):
                node = node.func
            else:
                return ""

        return ".".join([self.imports.get(node.id, node.id), *parts[::-1]])

    def is_decorated(self, function: Function, decorators: set[str]) -> bool:
        """Return whether the outermost decorator of a function is one of these.

        Args:
            function: A function of this module.
            decorators: Dotted names of decorators.
        """
        if not function.decorator_list:
            return False
        return self.origin(function.decorator_list[0]) in decorators

    @property
    def loaders(self) -> list[Function]:
        """The functions of this module that `WARM` decorates."""
        return [each for each in self.functions.values() if self.is_decorated(each, WARM)]


@functools.lru_cache(maxsize=1024)
def bindings(scope: Scope) -> dict[str, list[ast.AST]]:
    """Return all that a scope binds to each of its names, in the order of the source.

    A name is bound to a definition, a value, or whatever else binds it.

    Args:
        scope: The module, class or function; scopes inside it are left out.
    """
    bound_to: dict[str, list[ast.AST]] = {}
    nodes: list[ast.AST] = list[ast.AST](scope.body)[::-1]
    while nodes:
        node = nodes.pop()
        for name, bound in _bound_by(node):
            bound_to.setdefault(name, []).append(bound)
        if not isinstance(node, (Function, ast.ClassDef, ast.Lambda)):
            nodes += list(ast.iter_child_nodes(node))[::-1]

    if isinstance(scope, Function):
        for argument in arguments(scope):
            bound_to.setdefault(argument.arg, []).insert(0, argument)
    return bound_to


def _bound_by(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that a statement or expression itself binds, each with what it binds to."""
    if isinstance(node, (Function, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((_imported_as(alias), node) for alias in node.names)
    elif isinstance(node, ast.Assign):
        names = (target for target in node.targets if isinstance(target, ast.Name))
        yield from ((name.id, node.value) for name in names)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node.value or node.annotation
    elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
        yield node.optional_vars.id, node.context_expr
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name, node


def _imported_as(alias: ast.alias) -> str:
    """Return the name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def arguments(function: Function | ast.Lambda) -> list[ast.arg]:
    """Return all parameters of a function.

    Args:
        function: The function.
    """
    given = function.args
    return [
        *given.posonlyargs,
        *given.args,
        *given.kwonlyargs,
        *filter(None, (given.vararg, given.kwarg)),
    ]


def resolved(name: str, scopes: Sequence[Scope], line: int) -> ast.AST | None:
    """Return what a name is bound to where it is used; None if no scope knows it.

    The innermost scope that knows the name binds it. If that is the scope of the use, the last
    binding before the use counts, and else the last of all.

    Args:
        name: The name.
        scopes: The scopes around the use, the innermost last.
        line: The line of the use.
    """
    for scope in scopes[::-1]:
        if isinstance(scope, ast.ClassDef):  # whose names its methods do not see
            continue

        bound = bindings(scope).get(name, [])
        values = [node for node in bound if not isinstance(node, ast.Name)] or bound
        if values:
            before = [node for node in values if getattr(node, "lineno", 0) <= line]
            is_innermost = scope is scopes[-1]
            return before[-1] if before and is_innermost else values[-1]
    return None


def _calls(
    module: Module, node: ast.AST, scopes: tuple[Scope, ...], hidden: frozenset[str]
) -> Iterator[Submission]:
    """Yield the submissions below a node.

    The names in *hidden* are those that a lambda or a comprehension around the node has taken for
    itself.
    """
    hidden |= _own_names(node)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield from _submissions(module, child, scopes, hidden)

        inner = (*scopes, child) if isinstance(child, (Function, ast.ClassDef)) else scopes
        yield from _calls(module, child, inner, hidden)


def _own_names(node: ast.AST) -> set[str]:
    """Return the names that a lambda or a comprehension takes for itself."""
    if isinstance(node, ast.Lambda):
        return {argument.arg for argument in arguments(node)}
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return set[str]().union(*(_mentioned(part.target) for part in node.generators))
    return set()


def _mentioned(node: ast.AST) -> set[str]:
    """Return all names in a piece of source."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _submissions(
    module: Module, call: ast.Call, scopes: tuple[Scope, ...], hidden: frozenset[str]
) -> Iterator[Submission]:
    """Yield a call, if it submits or registers something with Globus Compute."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _SUBMITTING:
        return

    named = [keyword.value for keyword in call.keywords if keyword.arg in _SUBMITTED]
    sent = next(iter([*call.args[:1], *named]), None)
    if sent is None or (isinstance(sent, ast.Name) and sent.id in hidden):
        return
    if _is_ours(module, call.func.value, scopes):
        yield Submission(call, sent, scopes)


def _is_ours(module: Module, receiver: ast.expr, scopes: tuple[Scope, ...]) -> bool:
    """Return whether an object belongs to Globus Compute.

    Where that is not written, it does if the file imports no other library that has pools.
    """
    made = _maker(receiver, scopes)
    origin = module.origin(made) if isinstance(made, ast.expr) else ""
    head, dot, _ = origin.partition(".")

    imported = {name.partition(".")[0] for name in module.imports.values()}
    if dot and head in imported:
        return head in _OURS
    return not imported & set(_OTHER_POOLS)


def _maker(receiver: ast.expr, scopes: tuple[Scope, ...]) -> ast.AST | None:
    """Return what an object was made by, or is annotated with, as far as that is written."""
    made: ast.AST | None = receiver
    if isinstance(receiver, ast.Name):
        made = resolved(receiver.id, scopes, receiver.lineno)
    elif isinstance(receiver, ast.Attribute):  # self.pool
        made = _stored_in_class(receiver, scopes)

    if isinstance(made, ast.arg):
        return made.annotation
    if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.args:
        is_entered = made.func.attr == "enter_context"
        return made.args[0] if is_entered else made
    return made


def _stored_in_class(attribute: ast.Attribute, scopes: tuple[Scope, ...]) -> ast.expr | None:
    """Return the value that the classes around assign to an attribute; the first, if several."""
    stored = ast.dump(ast.Attribute(attribute.value, attribute.attr, ast.Store()))
    classes = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
    for kind in classes:
        for node in ast.walk(kind):
            if isinstance(node, ast.Assign) and stored in map(ast.dump, node.targets):
                return node.value
    return None


def exists(module: str) -> bool:
    """Return whether there is a module of that name. Nothing is imported to find it.

    Args:
        module: The dotted name.
    """
    return module_versions.spec_of(module) is not None


def file_of(module: str, path: list[str] | None = None) -> str:
    """Return the file of a module.

    Args:
        module: The dotted name.
        path: The folders to look into; those of this process if not given.

    Raises:
        SourceError: The module has no file that is Python.
    """
    spec = module_versions.spec_of(module, path)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SourceError(f"the module {module} has no source that could be read")
    return spec.origin


def read(path: str, may_be_script: bool) -> Module:
    """Read a Python file.

    Args:
        path: The file.
        may_be_script: Whether it is named as a file, or runs as ``__main__``. Whether it then is a
            script, its text says.

    Raises:
        SourceError: The file is not Python. The error names the line.
        OSError: The file cannot be read.
    """
    written = Path(path).read_bytes()
    try:
        text = importlib.util.decode_source(written)
        tree = ast.parse(text, path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise SourceError(f"{path}:{line}: {getattr(error, 'msg', error)}") from error

    module = Module(path, text.split("\n"), tree, is_script=False)
    return replace(module, is_script=may_be_script and _runs_by_itself(module))


class Library:
    """The modules of one examination, and those that they import, each read once.

    Args:
        examined: The modules that have been read.
        path: The folders in which modules are found; those of this process if not given.
    """

    def __init__(self, examined: Iterable[Module], path: list[str] | None = None) -> None:
        self._path = path
        self._read: dict[str, Module | None] = {
            os.path.realpath(module.path): module for module in examined
        }

    def named(self, name: str) -> Module | None:
        """Return the module of a dotted name; None if it cannot be read, or is of Python itself.

        Args:
            name: The dotted name.
        """
        path = _path_of(name, self._path)
        return self._read_once(path) if path else None

    def find(self, node: ast.expr, module: Module) -> tuple[Module, ast.AST] | None:
        """Return the definition that an expression names, and the module that holds it.

        Imports are followed, also through packages that pass a name on, but not into Python's own
        library.

        Args:
            node: A name, or an attribute of an imported module.
            module: The module where that is written.

        Returns:
            None if it names something else, or a name that is bound in several ways.
        """
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value

        if not isinstance(root, ast.Name):
            return None
        all_bound = module.top.get(root.id, [])
        bound = _only_binding(all_bound)
        if all_bound and bound is None:
            return None
        if root.id in module.imports:
            return self._follow(module.origin(node), module)
        return (module, bound) if bound is not None and root is node else None

    def _follow(self, dotted: str, module: Module) -> tuple[Module, ast.AST] | None:
        for _ in range(_MOST_PASSED_ON):
            name = dotted.rpartition(".")[2]
            package = dotted.removesuffix(name)
            if package.strip("."):
                package = package[:-1]

            found = self._module(package, module)
            bound = _only_binding(found.top.get(name, [])) if found else None
            if found is None or bound is None:
                return None
            if not isinstance(bound, (ast.Import, ast.ImportFrom)):
                return found, bound

            module = found
            dotted = found.imports[name]
        return None

    def _module(self, name: str, importer: Module) -> Module | None:
        """Return a module by the name under which another imports it; None if it is not there."""
        if not name.startswith("."):
            return self.named(name)
        path = _path_beside(name, importer)
        return self._read_once(path) if path else None

    def _read_once(self, path: str) -> Module | None:
        place = os.path.realpath(path)
        if place not in self._read:
            try:
                self._read[place] = read(path, may_be_script=False)
            except (SourceError, OSError, RecursionError):  # it is not what is examined
                self._read[place] = None
        return self._read[place]


def _only_binding(bound: Sequence[ast.AST]) -> ast.AST | None:
    """Return what a name is bound to; None if there is nothing, or more than one thing."""
    is_assigned = len(bound) == 2 and is_store(bound[1])  # a value, and the name that gets it
    return bound[0] if len(bound) == 1 or is_assigned else None


def _path_of(name: str, path: list[str] | None) -> str | None:
    """Return the file of a module that is no part of Python itself; None if there is none."""
    if name.partition(".")[0] in {"", *sys.stdlib_module_names}:
        return None

    try:
        return file_of(name, path)
    except (SourceError, ImportError, ValueError):
        return None


def _path_beside(name: str, importer: Module) -> str | None:
    """Return the file that a relative name leads to; None if there is none."""
    inside = name.lstrip(".")
    folders = Path(importer.path).absolute().parents
    above = len(name) - len(inside) - 1
    if above >= len(folders):
        return None

    places = [folders[above].joinpath(*inside.split("."), "__init__.py")]
    if inside:
        places.append(places[0].parent.with_suffix(".py"))
    return next((str(place) for place in places if place.is_file()), None)


def _runs_by_itself(module: Module) -> bool:
    """Return whether a file does more than define things when it is run.

    It does if it has a main part, or if its top level submits something, or calls a function of its
    own that submits.
    """
    if any(len(call.scopes) == 1 for call in module.calls):
        return True

    outermost = [scope for call in module.calls for scope in call.scopes[1:2]]
    submitting = {scope.name for scope in outermost if isinstance(scope, Function)}
    for node in module.tree.body:
        if isinstance(node, ast.If) and "__name__" in _mentioned(node.test):
            return True
        if isinstance(node, ast.Expr) and _mentioned(node) & submitting:
            return True
    return False


def assigns(node: ast.Assign, name: str) -> bool:
    """Return whether an assignment is to that name.

    Args:
        node: The assignment.
        name: The name.
    """
    return any(is_name(target, name) for target in node.targets)


def strings(node: ast.expr) -> set[str]:
    """Return all pieces of text in an expression.

    Args:
        node: The expression.
    """
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def is_name(node: ast.AST, name: str) -> bool:
    """Return whether an expression is just that name.

    Args:
        node: The expression.
        name: The name.
    """
    return isinstance(node, ast.Name) and node.id == name


def near(name: str, names: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: the nearest of those that there are, if any.

    Args:
        name: The name.
        names: Those that there are.
    """
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def first_line(node: Function | ast.Lambda) -> int:
    """Return the line where a function begins, with its decorators, as Python itself counts.

    Args:
        node: The function.
    """
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


class _Bare(ast.NodeTransformer):
    """A transformer that takes annotations away: no worker runs them when it runs the function."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Return an assignment without the annotation.

        Without a value, the statement only makes the name a local one; so does the assignment of
        None.
        """
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value or ast.Constant(None)), node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        """Return ``pass``: without the function around it, the statement could mean nothing."""
        return ast.copy_location(ast.Pass(), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Return an argument without its annotation."""
        return ast.copy_location(ast.arg(node.arg), node)


@functools.lru_cache(maxsize=1024)
def free_names(code: Function | ast.Lambda) -> frozenset[str]:
    """Return the names that a function's body takes from around the function.

    The bodies of functions inside it count, too. Decorators, defaults and annotations do not.

    Args:
        code: The function.

    Raises:
        SourceError: Python itself would not take the function.
    """
    bare: ast.AST = _Bare().visit(copy.deepcopy(code))
    if isinstance(bare, Function):
        bare.decorator_list = []
        bare.returns = None
        bare.args.defaults = [ast.Constant(None) for _ in bare.args.defaults]
        bare.args.kw_defaults = [
            default and ast.Constant(None) for default in bare.args.kw_defaults
        ]

    try:
        scope = symtable.symtable(ast.unparse(ast.fix_missing_locations(bare)), "function", "exec")
    except SyntaxError as error:
        raise SourceError(f"the function in line {code.lineno}: {error.msg}") from error

    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Nonlocal):
            names.update(node.names)
    return frozenset(names.union(*map(_globals, scope.get_children())))


def _globals(scope: symtable.SymbolTable) -> set[str]:
    """Return the names that a scope, or one inside it, takes from the globals."""
    names = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
    return names.union(*map(_globals, scope.get_children()))


def declared_global(code: ast.AST) -> set[str]:
    """Return the names in the global statements of a function.

    Args:
        code: The function.
    """
    return {name for node in ast.walk(code) if isinstance(node, ast.Global) for name in node.names}


def made_first(code: Function | ast.Lambda) -> set[str]:
    """Return the globals that a function's body makes itself before it uses them.

    A body that looks whether globals are there is taken to make all that it declares.

    Args:
        code: The function.
    """
    declared = declared_global(code)
    if not declared:
        return set()
    if any(looks_for_globals(node) for node in ast.walk(code)):
        return declared

    order = list(in_order(code))
    makes = (ast.Import, ast.ImportFrom, Function, ast.ClassDef)
    made = set()
    for name in declared:
        first = next((node for node in order if _names(node, name)), None)
        if isinstance(first, makes) or is_store(first):
            made.add(name)
    return made


def looks_for_globals(node: ast.AST) -> bool:
    """Return whether a node asks for names that may not be there.

    Such are a call of globals(), and an except clause that catches a NameError.

    Args:
        node: Any node.
    """
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or is_name(node.type, "NameError")
    return is_globals(node)


def is_globals(node: ast.AST) -> bool:
    """Return whether a node is a call of globals().

    Args:
        node: Any node.
    """
    return isinstance(node, ast.Call) and is_name(node.func, "globals")


def _names(node: ast.AST, name: str) -> bool:
    """Return whether a node itself uses or binds a name."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any(_imported_as(alias) == name for alias in node.names)
    if isinstance(node, (Function, ast.ClassDef)):
        return node.name == name
    return is_name(node, name)


def is_store(node: ast.AST | None) -> bool:
    """Return whether a node is a name that is given a value.

    Args:
        node: Any node, or None.
    """
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and those below it in the order in which they run.

    The value of an assignment comes before its targets. ``x += 1`` reads x first.

    Args:
        node: Any node.
    """
    yield node

    children = list(ast.iter_child_nodes(node))
    if isinstance(node, (ast.Assign, ast.NamedExpr)):
        children = children[::-1]

    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield ast.Name(node.target.id, ast.Load())
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
        yield ast.Attribute(node.target.value, node.target.attr, ast.Load())

    for child in children:
        yield from in_order(child)


def methods(module: Module, name: str, below: tuple[str, ...]) -> dict[str, Function]:
    """Return the methods of a class of the file, with those inherited from others of the file.

    Args:
        module: The file.
        name: The name of the class.
        below: Names of the classes that inherit from it, so that no circle is followed.
    """
    kind = module.classes.get(name)
    if kind is None or name in below:
        return {}

    inherited = [methods(module, module.origin(base), (*below, name)) for base in kind.bases]
    own = {each.name: each for each in kind.body if isinstance(each, Function)}
    return {method: node for methods in [*inherited[::-1], own] for method, node in methods.items()}
