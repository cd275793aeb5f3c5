"""Rules for functions that are to be registered: what in their source can never be warm, or fails on a worker.

Only the source is read: nothing is imported and nothing runs. What is said of each shape of function is measured, for each of the SDK's
serialization strategies, by the tests' persistence table.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import os
import symtable
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType

from globus_compute_sdk.serialize import DEFAULT_STRATEGY_CODE

from gc_warm.check.rules import Problem, Table, is_silenced

DEFAULT_STRATEGY = type(DEFAULT_STRATEGY_CODE).__name__
_DILL = "DillCode"
_COMBINED = ("CombinedCode", "AllCodeStrategies")  # the source, and DillCode where that cannot be read
_TEXT = ("DillCodeTextInspect", "PureSourceTextInspect")  # the source with its indentation
_CACHES = {
    "functools.lru_cache",
    "functools.cache",
    "cachetools.cached",
    "cachetools.func.lru_cache",
    "cachetools.func.ttl_cache",
    "cachetools.func.lfu_cache",
}
_WARM = {"gc_warm.warm", "gc_warm.worker.state.warm"}
_OURS = ("globus_compute_sdk", "gc_warm")
_CHANGES = {"append", "add", "update", "setdefault", "extend", "insert", "pop", "popitem", "clear", "remove", "discard", "appendleft"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceError(ValueError):
    """What was named is no Python that can be read."""


@dataclass(frozen=True)
class Module:
    """A Python file as it is written.

    Attributes:
        path: The file.
        lines: Its lines.
        tree: Its syntax.
        scope: Its symbols.
        is_script: It is run, not imported: it submits functions of its own when it is.
    """

    path: str
    lines: list[str]
    tree: ast.Module
    scope: symtable.SymbolTable
    is_script: bool

    @functools.cached_property
    def imports(self) -> dict[str, str]:
        """What each imported name stands for, as a dotted name."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                heads = [alias.name if alias.asname else alias.name.partition(".")[0] for alias in node.names]
                found.update({alias.asname or head: head for alias, head in zip(node.names, heads, strict=True)})
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        return found

    @functools.cached_property
    def functions(self) -> dict[str, _Function]:
        """Those at the top level."""
        return {node.name: node for node in self.tree.body if isinstance(node, _Function)}

    @functools.cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Those at the top level."""
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    @functools.cached_property
    def names(self) -> set[str]:
        """All that the module itself defines or imports."""
        return {symbol.get_name() for symbol in self.scope.get_symbols() if symbol.is_assigned() or symbol.is_imported()}

    def origin(self, node: ast.expr) -> str:
        """The dotted name that an expression stands for; of a call, that of what is called; empty if it is something else."""
        if isinstance(node, ast.Call):
            return self.origin(node.func)
        if isinstance(node, ast.Attribute):
            before = self.origin(node.value)
            return f"{before}.{node.attr}" if before else ""
        return self.imports.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def maker(self, name: str) -> str:
        """The dotted name of what is called to make the object of that name, as far as the file says so in plain words."""
        made = ""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and _assigns(node, name) and isinstance(node.value, ast.Call):
                made = self.origin(node.value)
            elif isinstance(node, ast.withitem) and node.optional_vars and _is_name(node.optional_vars, name):
                made = self.origin(node.context_expr)
        return made

    def is_decorated(self, function: _Function, decorators: set[str]) -> bool:
        """Whether one of *decorators* is above it."""
        return any(self.origin(decorator) in decorators for decorator in function.decorator_list)


@dataclass(frozen=True)
class _Sent:
    """Something that is sent to workers: a function, a lambda, or what a call makes.

    Attributes:
        module: Where it is written.
        node: What is written.
        strategy: How it travels, by the name of the SDK's strategy.
        line: Where it is sent, if that is written there.
    """

    module: Module
    node: ast.expr | _Function
    strategy: str
    line: int | None = None

    @property
    def function(self) -> _Function | None:
        """It, if it is defined with ``def``."""
        return self.node if isinstance(self.node, _Function) else None

    @property
    def is_by_reference(self) -> bool:
        """Whether a worker imports it, so that its own module is around it there."""
        return self.strategy == _DILL and not self.module.is_script and not self.is_nested

    @property
    def is_nested(self) -> bool:
        """Whether it has no name in its module."""
        return self.function is None or self.module.functions.get(self.function.name) is not self.function

    def left_behind(self) -> list[str]:
        """Names of its module that it uses, and that are not there on the worker."""
        if self.is_by_reference:
            return []
        above = self._names_above()
        if self.strategy == _DILL or (self.strategy in _COMBINED and above):  # whose source cannot be read without them
            return sorted(self._names_inside()) if self.module.is_script else []
        return sorted((self._names_inside() | above) - {self.function.name if self.function else ""})

    def _names_inside(self) -> set[str]:
        body = _scope_of(self.module.scope, self.node)
        return _globals(body) & self.module.names if body else set()

    def _names_above(self) -> set[str]:
        """Those in its decorators and defaults, which are run where its source is."""
        if self.function is None:
            return set()
        above = [*self.function.decorator_list, *self.function.args.defaults, *filter(None, self.function.args.kw_defaults)]
        used = {node.id for part in above for node in ast.walk(part) if isinstance(node, ast.Name)}
        return used & self.module.names

    def closes_over(self) -> list[str]:
        """Names of the function around it that it uses."""
        body = _scope_of(self.module.scope, self.node)
        return sorted(symbol.get_name() for symbol in body.get_symbols() if symbol.is_free()) if body else []


_RULES: Table[_Sent] = Table()
RULES = _RULES.rules
"""All rules for functions, by id."""


def examine(target: str, strategy: str = DEFAULT_STRATEGY) -> list[Problem]:
    """Hold the functions of a module, or those that a script submits, against all rules.

    Args:
        target: A dotted name as workers import it, or the path of a Python file. A file that submits functions of its own is a script.
        strategy: How the functions travel.

    Raises:
        SourceError: There is no such module, or it is not Python.
        OSError: The file cannot be read.
    """
    is_path = target.endswith(".py") or os.sep in target
    module = _read(target if is_path else _file_of(target), may_be_script=is_path)
    submitted = list(_submitted(module, strategy))
    public = [] if module.is_script else [_Sent(module, node, strategy) for node in _public(module)]
    return _problems([*public, *submitted])


def examine_functions(functions: Iterable[FunctionType], strategy: str = DEFAULT_STRATEGY) -> list[Problem]:
    """Hold functions against all rules, where their source can be had.

    Args:
        functions: As they are about to be registered.
        strategy: How they travel.
    """
    sent = []
    for function in map(inspect.unwrap, functions):
        path = inspect.getsourcefile(function)
        if path is None or not os.path.isfile(path):
            continue  # written at a prompt: there is nothing to read
        module = _read(path, may_be_script=function.__module__ == "__main__")
        line = function.__code__.co_firstlineno
        nodes = [node for node in ast.walk(module.tree) if isinstance(node, (_Function, ast.Lambda))]
        sent += [_Sent(module, node, strategy) for node in nodes if _first_line(node) == line]
    return _problems(sent)


def _problems(sent: Sequence[_Sent]) -> list[Problem]:
    found: dict[tuple[object, ...], Problem] = {}
    for each in sent:
        lines = each.module.lines
        for rule, level, place, text in _RULES.broken(each):
            around = [place, each.line or place, each.node.lineno]
            if not any(is_silenced(rule, lines[line - 1]) for line in around):
                found.setdefault((rule, each.module.path, place), Problem(rule, level, each.module.path, place, text))
    return sorted(found.values(), key=lambda problem: (problem.level, problem.file, problem.line))


def exists(module: str) -> bool:
    """Whether there is a module of that dotted name; its packages are imported to find it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package on the way is not there, or is none
        return False


def _file_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SourceError(f"the module {module} has no source that could be read")
    return spec.origin


def _read(path: str, may_be_script: bool) -> Module:
    written = Path(path).read_bytes()
    try:
        text = importlib.util.decode_source(written)
        tree, scope = ast.parse(text, path), symtable.symtable(text, path, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise SourceError(f"{path}:{line}: {getattr(error, 'msg', error)}") from error
    module = Module(path, text.splitlines(), tree, scope, is_script=False)
    return replace(module, is_script=may_be_script and _runs_by_itself(module))


def _runs_by_itself(module: Module) -> bool:
    """Whether a file does more than define things when it is run: it has a main part, or submits at its top level."""
    for node in module.tree.body:
        if isinstance(node, ast.If) and any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)):
            return True
        if not isinstance(node, (_Function, ast.ClassDef)) and any(_callables_of(module, each) for each in ast.walk(node)):
            return True
    return False


def _callables_of(module: Module, node: ast.AST) -> list[ast.expr]:
    """What a call submits or registers with Globus Compute; nothing if it is none that does."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("submit", "register_function")):
        return []
    if not any(name.partition(".")[0] in _OURS for name in module.imports.values()):
        return []
    maker = module.maker(node.func.value.id) if isinstance(node.func.value, ast.Name) else ""
    if "." in maker and maker.partition(".")[0] not in _OURS:  # a pool of threads, say
        return []
    named = [keyword.value for keyword in node.keywords if keyword.arg in ("fn", "function")]
    return node.args[:1] or named


def _public(module: Module) -> Iterator[_Function]:
    """What `gc-warm register` takes when no name is given: plain functions, by ``__all__`` or without a leading underscore."""
    listed = next((_strings(node.value) for node in module.tree.body if isinstance(node, ast.Assign) and _assigns(node, "__all__")), None)
    for name, node in module.functions.items():
        is_loader = module.is_decorated(node, _CACHES | _WARM)  # which others call
        if is_loader or any(_callables_of(module, each) for each in ast.walk(node)):  # or it runs where tasks are submitted
            continue
        if name in listed if listed is not None else not name.startswith("_"):
            yield node


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _strings(node: ast.expr) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def _submitted(module: Module, strategy: str) -> Iterator[_Sent]:
    """What the file itself submits or registers, as far as it is written in the file."""
    defined = {node.name: node for node in ast.walk(module.tree) if isinstance(node, _Function)} | module.functions
    lambdas = {
        target.id: node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(module.tree):
        for sent in _callables_of(module, call):
            node: ast.expr | _Function = sent
            if isinstance(sent, ast.Name):
                node = defined.get(sent.id) or lambdas.get(sent.id) or sent
            yield _Sent(module, node, strategy, sent.lineno)


def _first_line(node: _Function | ast.Lambda) -> int:
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _scope_of(scope: symtable.SymbolTable, node: ast.expr | _Function) -> symtable.SymbolTable | None:
    name = "lambda" if isinstance(node, ast.Lambda) else getattr(node, "name", None)
    lines = {node.lineno, _first_line(node)} if isinstance(node, _Function) else {node.lineno}
    for child in scope.get_children():
        if child.get_name() == name and child.get_lineno() in lines:
            return child
        if found := _scope_of(child, node):
            return found
    return None


def _globals(scope: symtable.SymbolTable) -> set[str]:
    found = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
    return found.union(*map(_globals, scope.get_children()))


# ---- the rules -------------------------------------------------------------------------------------------------------------------

_REWRITE = "keep it in a module that workers can import, and import that in the body of the function"


@_RULES.rule("GCW101", "error")
def nested_cache(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A cached helper inside the function that is sent.

    It is made anew in every call, with an empty cache: cold every time, under every strategy. Warm is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)

    A helper that calls itself, to remember within one call, is left alone.
    """
    for node in ast.walk(sent.node):
        if not isinstance(node, _Function) or node is sent.node or not sent.module.is_decorated(node, _CACHES | _WARM):
            continue
        if any(isinstance(each, ast.Call) and sent.module.origin(each) == node.name for each in ast.walk(node)):
            continue
        takes_any = bool(node.args.args or node.args.posonlyargs or node.args.kwonlyargs or node.args.vararg or node.args.kwarg)
        text = f"{node.name} is cached, and made anew with an empty cache in every call: {_REWRITE}"
        yield node.lineno, text, "warning" if takes_any else "error"


@_RULES.rule("GCW102", "error")
def cache_itself(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A cached function is what is sent.

    `lru_cache` is rebuilt on the worker with an empty cache for every task: cold every time. Send a plain function that calls it:

        # my_model.py, which workers can import            # the function to register
        @lru_cache                                         def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    if sent.function is not None and sent.module.is_decorated(sent.function, _CACHES):
        name = sent.function.name
        yield sent.function.lineno, f"{name} is sent with an empty cache for every task: send a function that imports {name} and calls it"


@_RULES.rule("GCW103", "error")
def function_attribute(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept on the function itself, or in what globals() gives.

    With DillCode a function of an importable module is sent by its name, and its attributes stay on the worker: a warning. Every other
    strategy, and a function of a script, makes the function anew for every task, without them: cold every time, silently. So it does
    with `globals()`, but for DillCode, which gives it the worker's own. Warm is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    if sent.function is None:
        return
    name = sent.function.name
    for node in [each for each in ast.walk(sent.function) if isinstance(each, (ast.Attribute, ast.Call))]:
        is_store = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_name(node.value, name)
        is_call = isinstance(node, ast.Call) and sent.module.origin(node) == "setattr" and node.args and _is_name(node.args[0], name)
        if is_store or is_call:
            yield _kept(sent, sent.is_by_reference, node.lineno, f"{name} keeps state on itself")
            return
        if isinstance(node, ast.Call) and sent.module.origin(node) == "globals" and not sent.is_by_reference:
            yield _kept(sent, sent.strategy == _DILL, node.lineno, f"{name} keeps state in globals()")
            return


@_RULES.rule("GCW104", "error")
def mutable_default(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept in a default argument.

    With DillCode a function of an importable module is sent by its name, and its defaults stay on the worker: a warning. Every other
    strategy, and a function of a script, makes them anew for every task: cold every time, silently. Warm is what GCW103 shows.
    """
    if sent.function is None:
        return
    arguments = sent.function.args
    with_default = [*arguments.posonlyargs, *arguments.args][::-1]
    pairs = [*zip(with_default, arguments.defaults[::-1], strict=False), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    for argument, default in pairs:
        if default is not None and _is_mutable(sent.module, default) and _is_changed(sent.function, argument.arg):
            yield _kept(sent, sent.is_by_reference, default.lineno, f"{argument.arg} keeps state in its default value")


def _kept(sent: _Sent, is_warm: bool, line: int, what: str) -> tuple[int, str, str]:
    if is_warm:
        return line, f"{what}, which is warm only as long as it travels by {sent.strategy}: {_REWRITE}", "warning"
    return line, f"{what}, and is made anew for every task: {_REWRITE}", "error"


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_mutable(module: Module, node: ast.expr) -> bool:
    makers = {"list", "dict", "set", "bytearray", "collections.defaultdict", "collections.OrderedDict", "collections.deque"}
    return isinstance(node, (ast.List, ast.Dict, ast.Set)) or (isinstance(node, ast.Call) and module.origin(node) in makers)


def _is_changed(function: _Function, name: str) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)) and _is_name(node.value, name):
            return True
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and _is_name(called.value, name) and called.attr in _CHANGES:
            return True
    return False


@_RULES.rule("GCW105", "error")
def main_global(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A function of a script uses what the script defines or imports at its top level.

    A script is `__main__` at home, and on the worker `__main__` is another program: the name is not there, and the task ends with a
    NameError. Imports belong into the body of the function, state into a module that workers can import:

        # my_model.py, which workers can import            # the script
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    used = sent.left_behind() if sent.module.is_script else []
    if used:
        what = ", ".join(used)
        yield sent.node.lineno, f"{_called(sent)} uses {what} of this script, which workers do not have: NameError; import it in the body"


@_RULES.rule("GCW106", "error")
def instance_state(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A method that keeps state on its object is what is sent.

    The object travels with every task, as it is at home: what a call leaves on it is lost with the call. Send a function, and keep the
    object where the worker keeps it:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return Model()                                     return model().predict(x)
    """
    module, node = sent.module, sent.node
    made = node.value if isinstance(node, ast.Attribute) else node
    name = module.maker(made.id) if isinstance(made, ast.Name) else module.origin(made) if isinstance(made, ast.Call) else ""
    method = node.attr if isinstance(node, ast.Attribute) else "__call__"
    methods = _methods(module, name)
    if method in methods and _keeps_state(methods, method, set()):
        yield node.lineno, f"{name}.{method} keeps state on its object, which is sent anew with every task: {_REWRITE}"


def _methods(module: Module, name: str) -> dict[str, _Function]:
    """Those of a class of the file, with those it inherits from others of the file."""
    kind = module.classes.get(name)
    if kind is None:
        return {}
    inherited = [_methods(module, module.origin(base)) for base in kind.bases if module.origin(base) != name]
    own = {each.name: each for each in kind.body if isinstance(each, _Function)}
    return {method: node for methods in [*inherited[::-1], own] for method, node in methods.items()}


def _keeps_state(methods: dict[str, _Function], name: str, seen: set[str]) -> bool:
    """Whether a method, or one that it calls on itself, stores something on its object."""
    seen.add(name)
    arguments = methods[name].args
    own = next((argument.arg for argument in [*arguments.posonlyargs, *arguments.args]), "")
    for node in ast.walk(methods[name]):
        if isinstance(node, ast.Attribute) and _is_name(node.value, own):
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                return True
            if node.attr in methods and node.attr not in seen and _keeps_state(methods, node.attr, seen):
                return True
    return False


@_RULES.rule("GCW107", "error")
def nameless(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A lambda or a nested function is what is sent.

    It has no name by which a worker could import it. With DillCode it travels whole, and still asks for the module it was written in: a
    warning, since it fails where workers lack that module. As source, a lambda has no name at all, a nested function may have lost
    what it uses of the function around it, and some strategies send it indented, which is no Python. Write a function with `def` at the
    top level.
    """
    is_lambda, remedy = isinstance(sent.node, ast.Lambda), "write it with def at the top level"
    if not (is_lambda or (sent.function is not None and sent.is_nested)):
        return
    is_whole = sent.strategy == _DILL or (is_lambda and sent.strategy in _COMBINED)
    closed = [] if is_whole else sent.closes_over()
    if closed:
        yield sent.node.lineno, f"{_called(sent)} is sent as source by {sent.strategy}, without {', '.join(closed)}: {remedy}"
    elif not is_whole and (is_lambda or sent.strategy in _TEXT):
        yield sent.node.lineno, f"{_called(sent)} cannot be sent with {sent.strategy}: {remedy}"
    elif is_whole and not sent.module.is_script:
        yield sent.node.lineno, f"{_called(sent)} fails where workers lack this module, though it is sent whole: {remedy}", "warning"


@_RULES.rule("GCW108", "error")
def source_global(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A function that is sent as source uses names of its module.

    Source arrives alone: what its module defines or imports at the top level is not there, and the task ends with a NameError. With
    AllCodeStrategies and CombinedCode, a function whose decorator or default is such a name comes by reference after all. Imports belong
    into the body:

        def predict(x):
            from my_model import model    # a module that workers can import; its @warm function keeps the state
            return model()(x)
    """
    used = [] if sent.module.is_script else sent.left_behind()
    if used:
        what = f"{_called(sent)} is sent as source by {sent.strategy}, and {', '.join(used)} of its module stay behind"
        yield sent.node.lineno, f"{what}: import them in the body"


def _called(sent: _Sent) -> str:
    return sent.function.name if sent.function is not None else "this lambda" if isinstance(sent.node, ast.Lambda) else "this"
