"""Python source as it is written: what its names stand for, what it submits, and what its functions take from around them.

Only what is plainly written is known: a name that is bound in several ways is the last of them
before it is used, and what comes from a parameter, a container or another module is not looked
into.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import importlib.util
import symtable
from collections.abc import Iterator, Sequence
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
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class SourceError(ValueError):
    """What was named is no Python that can be read."""


@dataclass(frozen=True)
class Submission:
    """A call that submits or registers something, and the scopes around it, the innermost last."""

    call: ast.Call
    sent: ast.expr
    scopes: tuple[Scope, ...]


@dataclass(frozen=True, eq=False)
class Module:
    """A Python file as it is written.

    A script is run, not imported, and submits functions of its own.
    """

    path: str
    lines: list[str]
    tree: ast.Module
    is_script: bool

    @functools.cached_property
    def imports(self) -> dict[str, str]:
        """What each imported name stands for, as a dotted name."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                heads = [
                    alias.name if alias.asname else alias.name.partition(".")[0]
                    for alias in node.names
                ]
                found.update(
                    {
                        alias.asname or head: head
                        for alias, head in zip(node.names, heads, strict=True)
                    }
                )
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update(
                    {
                        alias.asname or alias.name: f"{node.module}.{alias.name}"
                        for alias in node.names
                    }
                )
        return found

    @functools.cached_property
    def top(self) -> dict[str, list[ast.AST]]:
        """What the module itself binds its names to."""
        return bindings(self.tree)

    @functools.cached_property
    def functions(self) -> dict[str, Function]:
        """Those that the module itself has, also under an if or in a try."""
        return {
            name: nodes[-1] for name, nodes in self.top.items() if isinstance(nodes[-1], Function)
        }

    @functools.cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Those that the module itself has."""
        return {
            name: nodes[-1]
            for name, nodes in self.top.items()
            if isinstance(nodes[-1], ast.ClassDef)
        }

    @functools.cached_property
    def names(self) -> set[str]:
        """All that the module itself defines or imports, and that Python does not have anyway."""
        return set(self.top) - set(dir(builtins))

    @functools.cached_property
    def calls(self) -> list[Submission]:
        """All that submit or register something with Globus Compute, as far as is written here."""
        if not any(name.partition(".")[0] in _OURS for name in self.imports.values()):
            return []
        return list(_calls(self, self.tree, (self.tree,), frozenset()))

    def origin(self, node: ast.expr) -> str:
        """The dotted name that an expression stands for; of a call, that of what is called; empty if it is something else."""
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
        """Whether the outermost decorator is one of these."""
        return (
            bool(function.decorator_list) and self.origin(function.decorator_list[0]) in decorators
        )


@functools.lru_cache(maxsize=1024)
def bindings(scope: Scope) -> dict[str, list[ast.AST]]:
    """What a scope binds each of its names to, in the order of the source: a definition, a value, or whatever else binds."""
    found: dict[str, list[ast.AST]] = {}
    nodes: list[ast.AST] = list[ast.AST](scope.body)[::-1]
    while nodes:
        node = nodes.pop()
        for name, bound in _bound_by(node):
            found.setdefault(name, []).append(bound)
        if not isinstance(node, (Function, ast.ClassDef, ast.Lambda)):
            nodes += list(ast.iter_child_nodes(node))[::-1]
    if isinstance(scope, Function):
        for argument in arguments(scope):
            found.setdefault(argument.arg, []).insert(0, argument)
    return found


def _bound_by(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, (Function, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (
            (target.id, node.value) for target in node.targets if isinstance(target, ast.Name)
        )
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node.value or node.annotation
    elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
        yield node.optional_vars.id, node.context_expr
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name, node


def arguments(function: Function | ast.Lambda) -> list[ast.arg]:
    """All parameters of a function."""
    given = function.args
    return [
        *given.posonlyargs,
        *given.args,
        *given.kwonlyargs,
        *filter(None, (given.vararg, given.kwarg)),
    ]


def resolved(name: str, scopes: Sequence[Scope], line: int) -> ast.AST | None:
    """What a name is bound to where it is used: by the innermost scope that knows it, there the last time before that line."""
    for scope in scopes[::-1]:
        if isinstance(scope, ast.ClassDef):  # whose names its methods do not see
            continue
        values = [
            node for node in bindings(scope).get(name, ()) if not isinstance(node, ast.Name)
        ] or bindings(scope).get(name, [])
        if values:
            before = [node for node in values if getattr(node, "lineno", 0) <= line]
            return before[-1] if before and scope is scopes[-1] else values[-1]
    return None


def _calls(
    module: Module, node: ast.AST, scopes: tuple[Scope, ...], hidden: frozenset[str]
) -> Iterator[Submission]:
    """The calls below a node; *hidden* are names that a lambda or a comprehension around it has taken for itself."""
    if isinstance(node, ast.Lambda):
        hidden |= {argument.arg for argument in arguments(node)}
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        hidden |= {
            each.id
            for part in node.generators
            for each in ast.walk(part.target)
            if isinstance(each, ast.Name)
        }
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.Call)
            and isinstance(child.func, ast.Attribute)
            and child.func.attr in ("submit", "register_function")
        ):
            named = [
                keyword.value for keyword in child.keywords if keyword.arg in ("fn", "function")
            ]
            sent = [*child.args[:1], *named]
            is_known = bool(sent) and not (isinstance(sent[0], ast.Name) and sent[0].id in hidden)
            if is_known and _is_ours(module, child.func.value, scopes):
                yield Submission(child, sent[0], scopes)
        inner = (*scopes, child) if isinstance(child, (Function, ast.ClassDef)) else scopes
        yield from _calls(module, child, inner, hidden)


def _is_ours(module: Module, receiver: ast.expr, scopes: tuple[Scope, ...]) -> bool:
    """Whether an object belongs to Globus Compute; where that is not written, whether the file knows of no other pools."""
    made: ast.AST | None = receiver
    if isinstance(receiver, ast.Name):
        made = resolved(receiver.id, scopes, receiver.lineno)
    elif isinstance(receiver, ast.Attribute):  # self.pool
        kinds = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
        stores = [node for kind in kinds for node in ast.walk(kind) if isinstance(node, ast.Assign)]
        made = next(
            (
                node.value
                for node in stores
                if any(ast.dump(target) == _stored(receiver) for target in node.targets)
            ),
            None,
        )
    if isinstance(made, ast.arg):
        made = made.annotation
    if (
        isinstance(made, ast.Call)
        and isinstance(made.func, ast.Attribute)
        and made.func.attr == "enter_context"
        and made.args
    ):
        made = made.args[0]
    head, dot, _ = (
        module.origin(made).partition(".") if isinstance(made, ast.expr) else ("", "", "")
    )
    imported = {name.partition(".")[0] for name in module.imports.values()}
    if dot and head in imported:
        return head in _OURS
    return not imported & set(_OTHER_POOLS)


def _stored(node: ast.Attribute) -> str:
    return ast.dump(ast.Attribute(node.value, node.attr, ast.Store()))


def exists(module: str) -> bool:
    """Whether there is a module of that dotted name. Nothing is imported to find it."""
    return module_versions.spec_of(module) is not None


def file_of(module: str) -> str:
    """The file of a module, by its dotted name.

    Raises:
        SourceError: It has none that is Python.
    """
    spec = module_versions.spec_of(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SourceError(f"the module {module} has no source that could be read")
    return spec.origin


def read(path: str, may_be_script: bool) -> Module:
    """A Python file.

    Args:
        path: The file.
        may_be_script: It is named as a file, or runs as ``__main__``; whether it is a script, it
            says itself.

    Raises:
        SourceError: It is not Python. The text has the line.
        OSError: It cannot be read.
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


def _runs_by_itself(module: Module) -> bool:
    """Whether a file does more than define things when it is run: it has a main part, or its top level submits, or calls what does."""
    submitting = {
        scope.name
        for call in module.calls
        for scope in call.scopes[1:2]
        if isinstance(scope, Function)
    }
    if any(len(call.scopes) == 1 for call in module.calls):
        return True
    for node in module.tree.body:
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        if isinstance(node, ast.If) and any(
            isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)
        ):
            return True
        if isinstance(node, ast.Expr) and names & submitting:
            return True
    return False


def assigns(node: ast.Assign, name: str) -> bool:
    """Whether an assignment is to that name."""
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def strings(node: ast.expr) -> set[str]:
    """All pieces of text in an expression."""
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def is_name(node: ast.expr, name: str) -> bool:
    """Whether an expression is just that name."""
    return isinstance(node, ast.Name) and node.id == name


def first_line(node: Function | ast.Lambda) -> int:
    """Where a function begins, with its decorators: what Python calls its first line."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


class _Bare(ast.NodeTransformer):
    """Takes away what is not run on a worker, or not when the function is: annotations."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """An annotated assignment is an assignment; without a value, it only makes the name a local one."""
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value or ast.Constant(None)), node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        """Without the function around it, there is nothing that the statement could mean."""
        return ast.copy_location(ast.Pass(), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """An argument without its annotation."""
        return ast.copy_location(ast.arg(node.arg), node)


@functools.lru_cache(maxsize=1024)
def free_names(code: Function | ast.Lambda) -> frozenset[str]:
    """Names that the body of a function, and of those inside it, takes from around it.

    Raises:
        SourceError: It is no function that Python would take.
    """
    bare: ast.AST = _Bare().visit(copy.deepcopy(code))
    if isinstance(bare, Function):
        bare.decorator_list, bare.returns = [], None
        bare.args.defaults = [ast.Constant(None) for _ in bare.args.defaults]
        bare.args.kw_defaults = [
            default and ast.Constant(None) for default in bare.args.kw_defaults
        ]
    try:
        scope = symtable.symtable(ast.unparse(ast.fix_missing_locations(bare)), "function", "exec")
    except SyntaxError as error:
        raise SourceError(f"the function in line {code.lineno}: {error.msg}") from error
    outer = {
        name for node in ast.walk(code) if isinstance(node, ast.Nonlocal) for name in node.names
    }
    return frozenset(outer.union(*map(_globals, scope.get_children())))


def _globals(scope: symtable.SymbolTable) -> set[str]:
    found = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
    return found.union(*map(_globals, scope.get_children()))


def declared_global(code: ast.AST) -> set[str]:
    """Names in the global statements of a function."""
    return {name for node in ast.walk(code) if isinstance(node, ast.Global) for name in node.names}


def made_first(code: Function | ast.Lambda) -> set[str]:
    """Globals that the body itself makes before it uses them, or looks whether they are there."""
    declared = declared_global(code)
    if not declared:
        return set()
    looks = any(looks_for_globals(node) for node in ast.walk(code))
    order = list(in_order(code))
    first = {name: next((node for node in order if _names(node, name)), None) for name in declared}
    makes = (ast.Import, ast.ImportFrom, Function, ast.ClassDef)
    return {
        name for name, node in first.items() if looks or isinstance(node, makes) or is_store(node)
    }


def looks_for_globals(node: ast.AST) -> bool:
    """Whether something asks for names that may not be there: globals(), or what catches a NameError."""
    caught = node.type if isinstance(node, ast.ExceptHandler) else None
    is_caught = isinstance(node, ast.ExceptHandler) and (
        caught is None or (isinstance(caught, ast.Name) and caught.id == "NameError")
    )
    return is_caught or is_globals(node)


def is_globals(node: ast.AST) -> bool:
    """Whether this is a call of globals()."""
    return isinstance(node, ast.Call) and is_name(node.func, "globals")


def _names(node: ast.AST, name: str) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any((alias.asname or alias.name.partition(".")[0]) == name for alias in node.names)
    if isinstance(node, (Function, ast.ClassDef)):
        return node.name == name
    return isinstance(node, ast.Name) and node.id == name


def is_store(node: ast.AST | None) -> bool:
    """Whether a name is given a value here."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes in the order in which they run: the value of an assignment before its targets. x += 1 reads x first."""
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
    """Those of a class of the file, with those it inherits from others of the file."""
    kind = module.classes.get(name)
    if kind is None or name in below:
        return {}
    inherited = [methods(module, module.origin(base), (*below, name)) for base in kind.bases]
    own = {each.name: each for each in kind.body if isinstance(each, Function)}
    return {method: node for methods in [*inherited[::-1], own] for method, node in methods.items()}
