"""The names in a Python file: the scope that each belongs to, and what it is bound to there.

Python's own symbol tables say to which scope a name belongs; the syntax tree says what it is bound
to. A name that is bound in ways that are not known here is bound to something unknown.
"""

from __future__ import annotations

import ast
import symtable
import sys
from collections.abc import Iterable, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Scope = ast.Module | ast.ClassDef | Function | ast.Lambda | Comprehension
Bindings = dict[str, list[ast.AST]]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")  # their symbol tables


class Names:
    """The names in a syntax tree.

    Args:
        tree: The syntax tree.
        text: The text that it was made of.
        path: The file that the text is in.

    Attributes:
        around: The scopes around each node, the innermost last. Nodes that are never run have none:
            the annotations of local variables, and those that Python leaves as text.
        origins: The dotted name that each import of a name stands for; a relative one begins with
            dots.

    Raises:
        SyntaxError: Python would not take the text.
    """

    def __init__(self, tree: ast.Module, text: str, path: str) -> None:
        self.around: dict[ast.AST, tuple[Scope, ...]] = {}
        self.origins: dict[ast.alias, str] = {}
        self._tree = tree
        self._tables: dict[Scope, symtable.SymbolTable] = {}
        self._values: dict[ast.AST, ast.AST] = {}  # of names that are assigned to
        self._bound: dict[Scope, Bindings] = {}

        self._has_lazy_annotations = sys.version_info >= (3, 14) or any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(alias.name == "annotations" for alias in node.names)
            for node in tree.body
        )
        self._unvisited: dict[Scope, list[symtable.SymbolTable]] = {}
        self._enter(tree, symtable.symtable(text, path, "exec"))
        self._visit_all(tree.body, (tree,))

        for node, scopes in self.around.items():
            if name := bound_by(node):
                bound = self._bound.setdefault(self.owner(name, scopes), {})
                bound.setdefault(name, []).append(self._values.get(node, node))

    def bindings(self, scope: Scope) -> Bindings:
        """Return all that each name of a scope is bound to, in the order of the source.

        A name is bound to a definition, an imported name, a value, the loop whose values it gets,
        or whatever else binds it. What an except clause binds comes before what its try does, which
        it stands in for.

        Args:
            scope: The scope; those inside it count where they declare a name to be of this one.
        """
        return self._bound.get(scope, {})

    def owner(self, name: str, scopes: tuple[Scope, ...]) -> Scope:
        """Return the scope that a name belongs to; the module also for what Python itself has.

        Args:
            name: The name.
            scopes: The scopes around it, the innermost last.
        """
        for scope in scopes[::-1]:
            if isinstance(scope, Comprehension):
                targets = (node for part in scope.generators for node in ast.walk(part.target))
                if any(bound_by(node) == name for node in targets):
                    return scope
                continue

            parameters = getattr(scope, "type_params", ())  # of Python 3.12
            if any(parameter.name == name for parameter in parameters):
                return scope

            table = self._tables.get(scope)
            is_unseen = isinstance(scope, ast.ClassDef) and scope is not scopes[-1]
            if table is None or is_unseen or name not in table.get_identifiers():
                continue

            symbol = table.lookup(name)
            if symbol.is_local():
                return scope
            if symbol.is_global():
                break
        return self._tree

    def bound_to(self, name: ast.Name) -> list[ast.AST]:
        """Return all that a name may be bound to, by the scope that it belongs to.

        Args:
            name: The name where it is used. One that is not in the tree is taken to be used at the
                end of the module.
        """
        owner = self.owner(name.id, self.around.get(name, (self._tree,)))
        return self.bindings(owner).get(name.id, [])

    def resolved(self, name: ast.Name) -> ast.AST | None:
        """Return what a name is bound to where it is used; None if nothing binds it.

        In the scope that the name belongs to, the last binding before the use counts, and else the
        last of all.

        Args:
            name: The name where it is used.
        """
        bound = self.bound_to(name)
        if not bound:
            return None

        scopes = self.around.get(name, ())
        running = [scope for scope in scopes if not isinstance(scope, Comprehension)]
        if not running or self.owner(name.id, scopes) is not running[-1]:
            return bound[-1]
        before = [node for node in bound if _end(node) <= (name.lineno, name.col_offset)]
        return before[-1] if before else bound[-1]

    def free(self, code: Function | ast.Lambda) -> set[str]:
        """Return the names that a function's body takes from around the function.

        The bodies of functions inside it count, too. Decorators, defaults and annotations do not.

        Args:
            code: The function.
        """
        names = set()
        for node in ast.walk(code):
            name = named_by(node)
            scopes = self.around.get(node, ())
            if name and code in scopes:
                inside = scopes[scopes.index(code) :]
                if self.owner(name, scopes) not in inside:
                    names.add(name)
        return names

    def _visit_all(self, nodes: Iterable[ast.AST | None], scopes: tuple[Scope, ...]) -> None:
        for node in nodes:
            if node is not None:
                self._visit(node, scopes)

    def _visit(self, node: ast.AST, scopes: tuple[Scope, ...]) -> None:
        """Note the scopes around a node and those below it, and what names are given."""
        self.around[node] = scopes
        self._note(node)

        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            self._visit_block(node, scopes)
        elif isinstance(node, Comprehension):
            first, *others = node.generators
            made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            self._visit(first.iter, scopes)
            self._visit_all([first.target, *first.ifs, *others, *made], (*scopes, node))
        elif isinstance(node, ast.Try):
            parts = [*node.handlers, *node.body, *node.orelse, *node.finalbody]
            self._visit_all(parts, scopes)
        elif isinstance(node, ast.AnnAssign):
            is_run = not self._has_lazy_annotations and not isinstance(scopes[-1], Function)
            self._visit_all([node.target, node.annotation if is_run else None, node.value], scopes)
        elif not isinstance(node, ast.arg):
            self._visit_all(ast.iter_child_nodes(node), scopes)

    def _visit_block(
        self, node: Function | ast.Lambda | ast.ClassDef, scopes: tuple[Scope, ...]
    ) -> None:
        """Visit what of a function or class is run around it, and then what is run in it."""
        inside: list[ast.AST] = []
        around: list[ast.AST | None] = []
        if not isinstance(node, ast.Lambda):
            around += node.decorator_list
        if isinstance(node, ast.ClassDef):
            around += [*node.bases, *node.keywords]
        else:
            inside += arguments(node)
            around += [*node.args.defaults, *node.args.kw_defaults]
        if isinstance(node, Function) and not self._has_lazy_annotations:
            around += [*(argument.annotation for argument in arguments(node)), node.returns]
        self._visit_all(around, scopes)

        home = next(scope for scope in scopes[::-1] if scope in self._tables)
        name = "lambda" if isinstance(node, ast.Lambda) else node.name
        for table in self._unvisited[home]:
            if (table.get_lineno(), table.get_name()) == (node.lineno, name):
                self._unvisited[home].remove(table)
                self._enter(node, table)
                break
        inside += [node.body] if isinstance(node, ast.Lambda) else node.body
        self._visit_all(inside, (*scopes, node))

    def _enter(self, scope: Scope, table: symtable.SymbolTable) -> None:
        self._tables[scope] = table
        self._unvisited[scope] = list(_tables_in(table))

    def _note(self, node: ast.AST) -> None:
        """Note what a statement gives to names."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._note_values(target, node.value)
        elif isinstance(node, ast.NamedExpr):
            self._values[node.target] = node.value
        elif isinstance(node, ast.AnnAssign):
            self._values[node.target] = node.value or node.annotation
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._values[node.target] = node
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._values[node.optional_vars] = node.context_expr
        elif isinstance(node, ast.Import):
            for alias in node.names:
                self.origins[alias] = alias.name if alias.asname else _first_part(alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (f"{node.module}." if node.module else "")
            self.origins.update((alias, package + alias.name) for alias in node.names)

    def _note_values(self, target: ast.expr, value: ast.expr) -> None:
        self._values[target] = value
        lists = (ast.Tuple, ast.List)
        if not isinstance(target, lists) or not isinstance(value, lists):
            return

        if not any(isinstance(each, ast.Starred) for each in [*target.elts, *value.elts]):
            for part, part_value in zip(target.elts, value.elts, strict=False):
                self._note_values(part, part_value)


def _tables_in(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """Yield the tables of the functions and classes of a scope.

    Those of comprehensions, which newer Pythons do not have, and of type parameters are opened.
    """
    for child in table.get_children():
        is_block = str(child.get_type()) in ("function", "class")
        if is_block and child.get_name() not in _COMPREHENSIONS:
            yield child
        else:
            yield from _tables_in(child)


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


def defaults(function: Function | ast.Lambda) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return the parameters of a function, each with its default if it has one.

    Args:
        function: The function; what takes any other arguments is left out.
    """
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    without = len(positional) - len(given.defaults)
    return [
        *((argument, None) for argument in positional[:without]),
        *zip(positional[without:], given.defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]


def bound_by(node: ast.AST) -> str | None:
    """Return the name that a node itself binds; None if it binds none.

    Args:
        node: Any node.
    """
    if isinstance(node, (Function, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return node.name
    if isinstance(node, ast.alias):
        return node.asname or _first_part(node.name)
    if isinstance(node, ast.MatchMapping):
        return node.rest
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return node.id
    return None


def named_by(node: ast.AST) -> str | None:
    """Return the name that a node itself uses or binds; None if there is none.

    Args:
        node: Any node.
    """
    return node.id if isinstance(node, ast.Name) else bound_by(node)


def _first_part(dotted: str) -> str:
    return dotted.partition(".")[0]


def _end(node: ast.AST) -> tuple[int, int]:
    """Return the line and column from which a binding is there; (0, 0) if that is not written."""
    if isinstance(node, (ast.ExceptHandler, ast.For, ast.AsyncFor)):
        return node.lineno, node.col_offset
    return getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0)
