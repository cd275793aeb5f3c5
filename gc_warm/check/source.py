"""Python source as it is written: names and their origins, submissions, and names from outside.

Only what is plainly written is known: a name that is bound in several ways is the last of them
before it is used, and what comes from a parameter or a container is not looked into. Other modules
are read by a `Library`. Nothing is imported, and nothing runs.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gc_warm.check import notebooks
from gc_warm.check.names import Bindings, Function, Names, Scope, bound_by, named_by
from gc_warm.check.notebooks import Notebook
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
FILES = (".py", ".ipynb")
"""The endings of files with Python."""

NOTEBOOK = FILES[1]

WARM = {"gc_warm.warm", "gc_warm.worker.state.warm"}
"""The dotted names of the decorator that makes a loader."""

_SUBMITTING = ("submit", "register_function")
_MOST_PASSED_ON = 5  # packages that pass a name on, one from another
_SUBMITTED = ("fn", "function")  # the names that these methods have for what they take


class SourceError(ValueError):
    """A name, a file or a function that is no Python that can be read."""


@dataclass(frozen=True)
class Submission:
    """A call that submits or registers something.

    Attributes:
        module: The file that it is written in.
        call: The call itself.
        sent: The argument that is submitted or registered.
        scopes: The module, classes and functions around the call, the innermost last.
    """

    module: Module
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
        names: The names in it.
        is_script: Whether it is run, not imported, and submits functions of its own.
        notebook: The notebook that the text is of, if it is one.
    """

    path: str
    lines: list[str]
    tree: ast.Module
    names: Names
    is_script: bool
    notebook: Notebook | None = None

    def place(self, line: int) -> tuple[str, int]:
        """Return the file and the line of a line of text; in a notebook, the cell and its line.

        Args:
            line: The line, from 1.
        """
        return _place(self.path, line, self.notebook)

    @functools.cached_property
    def imports(self) -> set[str]:
        """The dotted names of all that the file imports; relative ones begin with dots."""
        return {self._absolute(name) for name in self.names.origins.values()}

    @functools.cached_property
    def top(self) -> Bindings:
        """The bindings of each name that the module itself has, see `Names.bindings`."""
        return self.names.bindings(self.tree)

    def resolved(self, name: ast.Name) -> ast.AST | None:
        """Return what a name is bound to where it is used; None if nothing binds it.

        A name that is given another name stands for what that one does.

        Args:
            name: The name where it is used.
        """
        seen: set[ast.AST] = set()
        bound: ast.AST | None = name
        while isinstance(bound, ast.Name) and bound not in seen and not is_store(bound):
            seen.add(bound)
            bound = self.names.resolved(bound)
        return bound

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
    def own_names(self) -> set[str]:
        """All names that the module itself defines or imports, and Python does not have anyway."""
        names = set(self.top)
        if "*" in names:  # then any name may come from there
            names.update(filter(None, map(named_by, self.names.around)))
        return names - set(dir(builtins))

    @functools.cached_property
    def calls(self) -> list[Submission]:
        """All calls that submit or register something with Globus Compute, as far as is written."""
        if not any(name.partition(".")[0] in _OURS for name in self.imports):
            return []
        return [
            found
            for node, scopes in self.names.around.items()
            if isinstance(node, ast.Call)
            for found in _submissions(self, node, scopes)
        ]

    @functools.cached_property
    def at_home(self) -> set[str]:
        """The functions and classes that submit tasks, and functions that use these or the SDK."""
        sdk = {
            name
            for name, bound in self.top.items()
            for each in bound
            if isinstance(each, ast.alias) and self.origin_of(each).startswith(_OURS[0])
        }
        around = {scope for call in self.calls for scope in call.scopes}
        own = {**self.functions, **self.classes}
        found = {name for name, node in own.items() if node in around}
        used = {name: self.names.free(node) for name, node in self.functions.items()}
        while more := {name for name in used if used[name] & (sdk | found)} - found:
            found |= more
        return found

    @functools.cached_property
    def submitted(self) -> set[str]:
        """The names in what is submitted."""
        return set[str]().union(*(_mentioned(call.sent) for call in self.calls))

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

        return ".".join([self._origin_of(node), *parts[::-1]])

    def _origin_of(self, name: ast.Name) -> str:
        """Return the dotted name that an imported name stands for, and others as they are."""
        bound = self.resolved(name)
        if isinstance(bound, ast.alias):
            return self.origin_of(bound)
        if isinstance(bound, ast.Attribute):  # cache = functools.cache
            return self.origin(bound)

        if bound is None and "*" in self.top and not hasattr(builtins, name.id):
            return self._origin_in_starred(name.id)
        return name.id

    def _origin_in_starred(self, name: str) -> str:
        """Return the dotted name of what one of several ``import *`` may have brought."""
        aliases = (node for node in self.top["*"] if isinstance(node, ast.alias))
        modules = [self.origin_of(alias).removesuffix(".*") for alias in aliases]
        having = [module for module in modules if len(modules) == 1 or name in _top_of(module)]
        return ".".join([*having[-1:], name])

    def origin_of(self, alias: ast.alias) -> str:
        """Return the dotted name of what is imported; a relative one begins with dots.

        Args:
            alias: The name in the statement that imports it.
        """
        return self._absolute(self.names.origins[alias])

    def _absolute(self, origin: str) -> str:
        """Return an origin with a dot in front if the file of it lies beside this one.

        That is where Python looks first for what a script imports, and it is no other module of
        that name, such as one of Python itself.
        """
        head = origin.partition(".")[0]
        return f".{origin}" if head in self._beside else origin

    @functools.cached_property
    def _beside(self) -> set[str]:
        """The modules that the file imports from its folder; of ours, there is only one."""
        folder = Path(self.path).absolute().parent
        if (folder / "__init__.py").is_file() or folder.name.endswith("-packages"):
            return set()

        heads = {name.partition(".")[0] for name in self.names.origins.values()}
        return {
            head
            for head in heads - {"", *_OURS}
            if (folder / f"{head}.py").is_file() or (folder / head / "__init__.py").is_file()
        }

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


def _submissions(module: Module, call: ast.Call, scopes: Sequence[Scope]) -> Iterator[Submission]:
    """Yield a call, if it submits or registers something with Globus Compute."""
    function = call.func
    arguments = call.args
    if arguments and module.origin(function) == "functools.partial":  # partial(executor.submit, f)
        function, *arguments = arguments

    bound = module.resolved(function) if isinstance(function, ast.Name) else function
    if not isinstance(bound, ast.Attribute):
        return
    receiver = bound.value
    if bound.attr == "run_in_executor" and arguments:
        receiver, *arguments = arguments
    elif bound.attr not in _SUBMITTING:
        return

    named = [keyword.value for keyword in call.keywords if keyword.arg in _SUBMITTED]
    sent = next(iter([*arguments[:1], *named]), None)
    is_none = isinstance(receiver, ast.Constant)  # then threads run it
    if sent is not None and not is_none and _is_ours(module, receiver, scopes):
        defining = (Function, ast.ClassDef, ast.Module)
        around = tuple(scope for scope in scopes if isinstance(scope, defining))
        yield Submission(module, call, sent, around)


def _is_ours(module: Module, receiver: ast.expr, scopes: Sequence[Scope]) -> bool:
    """Return whether an object belongs to Globus Compute.

    Where that is not written, it does if the file imports no other library that has pools.
    """
    made = _maker(module, receiver, scopes)
    origin = module.origin(made) if isinstance(made, ast.expr) else ""
    head, dot, _ = origin.partition(".")

    imported = {name.partition(".")[0] for name in module.imports}
    if head and dot and head in imported:  # a module of one's own may have made any
        return head in _OURS

    # of concurrent.futures, a client of Globus Compute may use what is no pool
    others = imported & set(_OTHER_POOLS)
    if not any("PoolExecutor" in line for line in module.lines):
        others.discard("concurrent")
    return not others


def _maker(module: Module, receiver: ast.expr, scopes: Sequence[Scope]) -> ast.AST | None:
    """Return what an object was made by, or is annotated with, as far as that is written."""
    made: ast.AST | None = receiver
    if isinstance(receiver, ast.Name):
        made = module.resolved(receiver)
    elif isinstance(receiver, ast.Attribute):  # self.pool
        made = _stored_in_class(receiver, scopes)

    if isinstance(made, ast.arg):
        return made.annotation
    if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.args:
        is_entered = made.func.attr == "enter_context"
        return made.args[0] if is_entered else made
    return made


def _stored_in_class(attribute: ast.Attribute, scopes: Sequence[Scope]) -> ast.expr | None:
    """Return the value that the classes around assign to an attribute; the first, if several."""
    stored = ast.dump(ast.Attribute(attribute.value, attribute.attr, ast.Store()))
    classes = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
    for kind in classes:
        for node in ast.walk(kind):
            if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Constant):
                continue
            if stored in map(ast.dump, node.targets):
                return node.value
    return None


@functools.lru_cache(maxsize=64)
def _top_of(module: str) -> frozenset[str]:
    """Return the names that a module has by its source; none if that cannot be read."""
    try:
        return frozenset(read(file_of(module), may_be_script=False).top)
    except (SourceError, ImportError, OSError, ValueError, RecursionError):
        return frozenset()


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
    """Read a Python file, or the Python in a notebook.

    Args:
        path: The file.
        may_be_script: Whether it is named as a file, or runs as ``__main__``. Whether it then is a
            script, its text says.

    Raises:
        SourceError: The file is not Python, nor a notebook with it. The error names the line.
        OSError: The file cannot be read.
    """
    written = Path(path).read_bytes()
    notebook = None
    try:
        if path.endswith(NOTEBOOK):
            notebook = notebooks.read(written)
        text = notebook.text if notebook else importlib.util.decode_source(written)
        tree = ast.parse(text, path)
        names = Names(tree, text, path)
    except notebooks.NotebookError as error:
        raise SourceError(f"{path}: {error}") from error
    except (SyntaxError, ValueError) as error:
        file, line = _place(path, getattr(error, "lineno", None) or 1, notebook)
        raise SourceError(f"{file}:{line}: {getattr(error, 'msg', error)}") from error

    module = Module(path, text.split("\n"), tree, names, is_script=False, notebook=notebook)
    is_script = may_be_script and (notebook is not None or _runs_by_itself(module))
    return replace(module, is_script=is_script)


def _place(path: str, line: int, notebook: Notebook | None) -> tuple[str, int]:
    if notebook is None:
        return path, line
    cell, line = notebook.place(line)
    return f"{path}:cell {cell}", line


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
        bound = _only_binding(module.names.bound_to(root))
        if isinstance(bound, ast.alias):
            return self._follow(module.origin(node), module)
        is_whole = root is node and module.top.get(root.id) == [bound]
        return (module, bound) if bound is not None and is_whole else None

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
            if not isinstance(bound, ast.alias):
                return found, bound

            module = found
            dotted = found.origin_of(bound)
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
    return bound[0] if len(bound) == 1 else None


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

    It does if it has a main part, or if its top level submits something, or calls what submits.
    """
    if any(len(call.scopes) == 1 for call in module.calls):
        return True

    for node, scopes in module.names.around.items():
        is_at_top = scopes == (module.tree,)
        if is_at_top and isinstance(node, ast.If) and "__name__" in _mentioned(node.test):
            return True
        if is_at_top and isinstance(node, ast.Call):
            called = module.origin(node).partition(".")[0]
            if called in module.at_home:
                return True
    return False


def _mentioned(node: ast.AST) -> set[str]:
    """Return all names in a piece of source."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


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


def returned(module: Module, function: Function) -> Function | None:
    """Return the function inside a function that it returns; None if it returns something else.

    Args:
        module: The module.
        function: A function in it.
    """
    for node in ast.walk(function):
        if not isinstance(node, ast.Return) or module.names.around[node][-1] is not function:
            continue
        inner = module.resolved(node.value) if isinstance(node.value, ast.Name) else None
        if isinstance(inner, Function) and module.names.around[inner][-1] is function:
            return inner
    return None


def unrun(function: Function | ast.Lambda) -> str:
    """Return what a function is called whose call runs nothing of it; empty if it is none.

    Args:
        function: The function.
    """
    if isinstance(function, ast.AsyncFunctionDef):
        return "an async function"
    if isinstance(function, ast.FunctionDef) and _yields(function.body):
        return "a generator"
    return ""


def _yields(body: Sequence[ast.AST]) -> bool:
    """Return whether statements have a yield of their own."""
    nodes = list(body)
    for node in nodes:  # which grows meanwhile
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (Function, ast.ClassDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return False


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

    made = set()
    for name in declared:
        first = next((node for node in in_order(code) if named_by(node) == name), None)
        if first is not None and bound_by(first) == name:
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
