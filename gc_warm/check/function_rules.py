"""Rules for functions that are to be registered, by their source.

A rule finds what in the source can never be warm, or fails on a worker. Nothing is imported and
nothing runs. The claim about each shape of function is measured, for each of the SDK's
serialization strategies, by the tests' persistence table. Where the source does not say what is
submitted, or to whom, no rule says anything.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeGuard

from gc_warm.check import identity, source
from gc_warm.check.names import Function, Scope, arguments, defaults
from gc_warm.check.rules import Broken, Finding, Level, Rule, RuleSet, is_silenced
from gc_warm.check.source import Library, Module, SourceError, Submission
from gc_warm.check.task_facts import DEFAULT_STRATEGY, STRATEGIES

_DILL = "DillCode"
_COMBINED = ("CombinedCode", "AllCodeStrategies")  # the source; DillCode where it cannot be read
_TEXT = ("DillCodeTextInspect", "PureSourceTextInspect")  # the source with its indentation

_STRATEGY_OPTIONS = ("code_serialization_strategy", "strategy_code")  # of Client, of its serializer

_CACHES = {
    "functools.lru_cache",
    "functools.cache",
    "functools.cached_property",
    "cachetools.cached",
    "cachetools.func.lru_cache",
    "cachetools.func.ttl_cache",
    "cachetools.func.lfu_cache",
}
_EMPTIED = {"functools.lru_cache", "functools.cache"}
"""Caches that travel without what they hold."""

_CHANGES = {
    "append",
    "add",
    "update",
    "setdefault",
    "extend",
    "insert",
    "pop",
    "popitem",
    "clear",
    "remove",
    "discard",
    "appendleft",
}
"""Methods that change a container in place."""

_MUTABLE = {
    "list",
    "dict",
    "set",
    "bytearray",
    "collections.defaultdict",
    "collections.OrderedDict",
    "collections.deque",
}
"""Makers of containers that can be changed in place."""

_REWRITE = (
    "keep it in a module that workers can import, and import that in the body of the function"
)


@dataclass(frozen=True)
class _Sent:
    """Something that is sent to workers.

    Attributes:
        module: The file that it is written in.
        node: A function, a lambda, or the expression that stands in its place in a call.
        strategy: The name of the SDK's strategy by which it travels.
        call: The call that submits it, if that is written there.
        is_guessed: Whether it is only one of the functions that its module has for others.
    """

    module: Module
    node: ast.expr | Function
    strategy: str
    call: Submission | None = None
    is_guessed: bool = False

    @property
    def function(self) -> Function | None:
        """The function that is sent, if it is defined with ``def``."""
        return self.node if isinstance(self.node, Function) else None

    @property
    def is_by_reference(self) -> bool:
        """Whether a worker imports it, so that its own module is around it there."""
        return self.strategy == _DILL and not self.module.is_script and not self.is_nested

    @property
    def is_nested(self) -> bool:
        """Whether it has no name in its module."""
        if self.function is None:
            return True
        bound = self.module.top.get(self.function.name, ())
        return not any(self.function is node for node in bound)

    @functools.cached_property
    def left_behind(self) -> list[str]:
        """Names of its module that it uses, and that are not there on the worker."""
        if self.is_by_reference:
            return []

        # with such names above it, its source cannot be read, so that it is combined with DillCode
        above = self._names_above()
        if self.strategy == _DILL or (self.strategy in _COMBINED and above):
            return sorted(self._names_inside()) if self.module.is_script else []

        own = {self.function.name} if self.function else set()
        return sorted((self._names_inside() | above) - own)

    def _names_inside(self) -> set[str]:
        """Return the names of its module that the code takes from there when it runs."""
        names: set[str] = set()
        own = [self.code] if self.code else []
        for code in [*own, *self._wrappers()]:
            used = self.module.names.free(code) & self.module.own_names
            names |= used - source.made_first(code)
        return names

    def _wrappers(self) -> Iterator[Function]:
        """Yield what its decorators, if they are of its module, put in its place."""
        if self.function is None or self.strategy not in (_DILL, *_COMBINED):
            return
        for decorator in self.function.decorator_list:
            wrapper = _made_by(self.module, ast.Call(decorator, [], []))
            if wrapper:
                yield wrapper

    @property
    def code(self) -> Function | ast.Lambda | None:
        """The code that runs: the function itself or, of an object, its method."""
        if isinstance(self.node, (Function, ast.Lambda)):
            return self.node
        return self.method[1]

    def _names_above(self) -> set[str]:
        """Return the names in its decorators and defaults, which are run where its source is."""
        if self.function is None:
            return set()

        values = (default for _, default in defaults(self.function) if default)
        above = [*self.function.decorator_list, *values]
        used = {node.id for part in above for node in ast.walk(part) if isinstance(node, ast.Name)}
        return used & self.module.own_names

    @functools.cached_property
    def closed_over(self) -> dict[str, list[ast.AST]]:
        """The names that it takes from the functions around it, with what they are bound to."""
        code = self.code
        if code is None:
            return {}

        names = self.module.names
        own = {self.function.name} if self.function else set()
        owners = {name: names.owner(name, names.around[code]) for name in names.free(code) - own}
        return {
            name: names.bindings(owner).get(name, [])
            for name, owner in sorted(owners.items())
            if isinstance(owner, Function)
        }

    @functools.cached_property
    def method(self) -> tuple[str, Function | None, dict[str, Function]]:
        """The class, the function, and all methods of the class, where these are in its module.

        They are those of a method, or of an object that can be called.
        """
        if isinstance(self.node, ast.Attribute):
            owner: ast.expr | Function = self.node.value
            name = self.node.attr
        else:
            owner = self.node
            name = "__call__"

        kind = self._class_of(owner) if isinstance(owner, (ast.Name, ast.Call)) else ""
        methods = source.methods(self.module, kind, ())
        return kind, methods.get(name), methods

    @property
    def is_bound(self) -> bool:
        """Whether it is a method that takes the object or class of which it is an attribute."""
        method = self.method[1]
        if method is None or not isinstance(self.node, ast.Attribute):
            return False

        kinds = {self.module.origin(each) for each in method.decorator_list}
        if kinds & {"classmethod", "staticmethod"}:
            return "classmethod" in kinds
        owner = self.node.value
        bound = self.module.resolved(owner) if isinstance(owner, ast.Name) else owner
        return not isinstance(bound, ast.ClassDef)

    def _class_of(self, owner: ast.Name | ast.Call) -> str:
        """Return the name of an object's class; empty if that is not written."""
        if isinstance(owner, ast.Call):
            return self.module.origin(owner)

        scopes = self.call.scopes if self.call else (self.module.tree,)
        bound = self.module.resolved(owner)
        if isinstance(bound, ast.arg):
            return _class_of_self(bound, scopes)
        if isinstance(bound, ast.ClassDef):
            return bound.name if isinstance(self.node, ast.Attribute) else ""
        return self.module.origin(bound) if isinstance(bound, ast.Call) else ""


def _class_of_self(argument: ast.arg, scopes: Sequence[Scope]) -> str:
    """Return the name of the class around a method, if this is the method's ``self``."""
    classes = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
    innermost = scopes[-1]
    if not classes or not isinstance(innermost, Function):
        return ""
    return classes[-1].name if arguments(innermost)[:1] == [argument] else ""


@dataclass(frozen=True)
class _Loader:
    """A loader, which workers import: a function with ``@warm``.

    Attributes:
        module: The file that it is written in.
        node: The function.
        library: Reads what that file imports.
    """

    module: Module
    node: Function
    library: Library


@dataclass(frozen=True)
class _Helper:
    """A function that workers import, and that a function which is sent calls.

    Attributes:
        module: The file that it is written in.
        node: The function.
    """

    module: Module
    node: Function


_RULES: RuleSet[_Sent] = RuleSet()
_LOADER_RULES: RuleSet[_Loader] = RuleSet()


def examine(target: str, strategy: str = DEFAULT_STRATEGY) -> list[Finding]:
    """Hold the functions of a module, or those that a script submits, against all rules.

    Loaders are those of the module, and those that the functions call.

    Args:
        target: A dotted name as workers import it, or the path of a Python file or a notebook. A
            file that submits functions of its own is a script, and so is a notebook.
        strategy: The serialization strategy by which the functions travel.

    Raises:
        SourceError: There is no such module, or it is not Python.
        OSError: The file cannot be read.
    """
    findings, _ = examine_all(target, strategy)
    return findings


def examine_all(target: str, strategy: str = DEFAULT_STRATEGY) -> tuple[list[Finding], int]:
    """Return the findings of `examine`, and the number of functions and loaders looked at.

    Args:
        target: A dotted name as workers import it, or the path of a Python file or a notebook.
        strategy: The serialization strategy by which the functions travel. Instead of the default,
            the one that the file itself asks for counts.

    Raises:
        SourceError: There is no such module, or it is not Python.
        OSError: The file cannot be read.
    """
    is_path = target.endswith(source.FILES) or os.sep in target
    path = target if is_path else source.file_of(target)

    try:
        module = source.read(path, may_be_script=is_path)
        if strategy == DEFAULT_STRATEGY:
            strategy = _written_strategy(module) or strategy
        sent: list[_Sent] = []
        loaders: list[_Loader] = []
        library = Library([module])
        if not module.is_script:
            sent += [_Sent(module, node, strategy, is_guessed=True) for node in _public(module)]
            own = module.functions.values()
            loaders += [_Loader(module, node, library) for node in own if _is_warm(module, node)]

        for call in module.calls:
            for node in _meant(module, call.sent):
                home, meant = _followed(node, module, library)
                sent.append(_Sent(home, meant, strategy, call))

        called, helpers = _called_by(sent, library)
        found = _findings(sent, [*loaders, *called], helpers)
        return found, len(sent) + len(loaders)
    except RecursionError:
        raise SourceError(f"{path} is nested too deeply to be read") from None


def _written_strategy(module: Module) -> str:
    """Return the only strategy that a file asks the SDK for; empty if there is none, or several."""
    names = set()
    for node in module.names.around:
        if isinstance(node, ast.keyword) and node.arg in _STRATEGY_OPTIONS:
            value = module.resolved(node.value) if isinstance(node.value, ast.Name) else node.value
            origin = module.origin(value) if isinstance(value, ast.expr) else ""
            names.add(origin.rpartition(".")[2])
    return names.pop() if len(names) == 1 and names <= set(STRATEGIES) else ""


def examine_functions(
    functions: Iterable[FunctionType], strategy: str = DEFAULT_STRATEGY
) -> list[Finding]:
    """Hold functions against all rules, where their source can be had.

    Args:
        functions: The functions, as they are about to be registered.
        strategy: The serialization strategy by which they travel.

    Raises:
        SourceError: A file that holds one of them is not Python.
        OSError: Such a file cannot be read.
    """
    read: dict[str, tuple[Module, dict[int, list[Function | ast.Lambda]]]] = {}
    sent: list[_Sent] = []
    for function in map(inspect.unwrap, functions):
        path = inspect.getsourcefile(function) if isinstance(function, FunctionType) else None
        if path is None or not os.path.isfile(path):
            # written at a prompt, or no function below its decorators: there is nothing to read
            continue

        if path not in read:
            module = source.read(path, may_be_script=function.__module__ == "__main__")
            read[path] = (module, _by_first_line(module))
        module, by_line = read[path]
        nodes = by_line.get(function.__code__.co_firstlineno, ())
        sent += [_Sent(module, node, strategy) for node in nodes]
    library = Library(module for module, _ in read.values())
    return _findings(sent, *_called_by(sent, library))


def _by_first_line(module: Module) -> dict[int, list[Function | ast.Lambda]]:
    by_line: dict[int, list[Function | ast.Lambda]] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, (Function, ast.Lambda)):
            by_line.setdefault(source.first_line(node), []).append(node)
    return by_line


def _called_by(sent: Sequence[_Sent], library: Library) -> tuple[list[_Loader], list[_Helper]]:
    """Return the loaders and the other functions that workers import for what is sent."""
    code = {id(each.code): (each.module, each.code) for each in sent if each.code}
    loaders: dict[int, _Loader] = {}
    helpers: dict[int, _Helper] = {}
    for module, function in code.values():
        called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        for node in ast.walk(function):
            if not isinstance(node, (ast.Name, ast.Attribute)):
                continue

            home, found = library.find(node, module) or (module, None)
            if not isinstance(found, Function) or home.is_script:
                continue
            if _is_warm(home, found):
                loaders[id(found)] = _Loader(home, found, library)
            elif id(node) in called and not found.decorator_list and id(found) not in code:
                helpers[id(found)] = _Helper(home, found)
    return list(loaders.values()), list(helpers.values())


def _is_warm(module: Module, function: Function) -> bool:
    """Return whether one of the decorators of a function makes it a loader."""
    return any(module.origin(each) in source.WARM for each in function.decorator_list)


def _findings(
    sent: Sequence[_Sent], loaders: Sequence[_Loader], helpers: Sequence[_Helper]
) -> list[Finding]:
    """Return each finding that no comment silences, the worst first."""
    broken: list[tuple[_Sent | _Loader | _Helper, Iterable[Broken]]] = [
        *((each, _RULES.broken(each)) for each in sent),
        *((each, _LOADER_RULES.broken(each)) for each in loaders),
        *((each, _emptied_helpers(each)) for each in helpers),
    ]

    by_place: dict[tuple[str, str, int], Finding] = {}
    for each, problems in broken:
        lines = each.module.lines
        for rule, level, place, text, _ in problems:
            if any(is_silenced(rule, line) for line in (lines[place - 1], *_lines_of(each))):
                continue
            column = _column(each.node, place, lines[place - 1])
            file, line = each.module.place(place)
            found = Finding(rule, level, file, line, column, None, text)
            by_place.setdefault((rule, file, line), found)

    findings = by_place.values()
    return sorted(findings, key=lambda finding: (finding.level, finding.file, finding.line))


def _column(node: ast.expr | Function, line: int, text: str) -> int:
    """Return the column, from 1, of what is wrong in a line: the node, or the statement there."""
    if node.lineno != line:
        return len(text) - len(text.lstrip()) + 1
    # the tree counts bytes
    return len(text.encode()[: node.col_offset].decode(errors="replace")) + 1


def _lines_of(subject: _Sent | _Loader | _Helper) -> Iterator[str]:
    """Yield the lines where a comment silences whatever is found in a loader, or what is sent.

    They are the head of its definition, and the call that submits it.
    """
    function = subject.node
    if isinstance(function, Function):
        begin = source.first_line(function)
        end = max(function.body[0].lineno, function.lineno + 1)
        yield from subject.module.lines[begin - 1 : end - 1]

    if isinstance(subject, _Sent) and subject.call is not None:
        call = subject.call.call
        yield from subject.call.module.lines[call.lineno - 1 : call.end_lineno]


def _public(module: Module) -> Iterator[Function]:
    """Yield the functions that `gc-warm register` takes when no name is given.

    These are plain functions, by ``__all__`` or without a leading underscore.
    """
    lists = [
        node.value
        for node in module.tree.body
        if isinstance(node, ast.Assign) and source.assigns(node, "__all__")
    ]
    listed = source.strings(lists[0]) if lists else None

    for name, node in module.functions.items():
        # tasks call a loader, and a function that submits them runs where they are submitted
        is_loader = module.is_decorated(node, _CACHES | source.WARM)
        if is_loader or name in module.at_home:
            continue

        is_public = not name.startswith("_") if listed is None else name in listed
        if is_public:
            yield node


def _meant(module: Module, sent: ast.expr) -> Iterator[ast.expr | Function]:
    """Yield the functions that an expression stands for; if that is not written, the expression.

    They are looked for in a partial, in the function that makes them, and in what a loop goes over.
    """
    node = module.resolved(sent) if isinstance(sent, ast.Name) else sent
    if isinstance(node, (Function, ast.Lambda)):
        yield node
        return

    if isinstance(node, (ast.For, ast.comprehension)):
        over = module.resolved(node.iter) if isinstance(node.iter, ast.Name) else node.iter
        if isinstance(over, (ast.Tuple, ast.List)):
            for part in over.elts:
                yield from _meant(module, part)
            return

    if isinstance(node, ast.Call) and module.origin(node) == identity.PARTIAL and node.args:
        yield from _meant(module, node.args[0])
        return
    yield (_made_by(module, node) if isinstance(node, ast.Call) else None) or sent


def _followed(
    node: ast.expr | Function, module: Module, library: Library
) -> tuple[Module, ast.expr | Function]:
    """Return an imported function, with its module, if that is what a node names."""
    found = library.find(node, module) if isinstance(node, ast.expr) else None
    if found is not None and isinstance(found[1], Function):
        return found[0], found[1]
    return module, node


def _made_by(module: Module, call: ast.Call) -> Function | None:
    """Return the function that a call makes, by the function of the module that is called."""
    if isinstance(call.func, ast.Call):
        maker = _made_by(module, call.func)
    else:
        called = module.resolved(call.func) if isinstance(call.func, ast.Name) else None
        maker = called if isinstance(called, Function) else None
    return source.returned(module, maker) if maker else None


@_RULES.rule("GCW101", "error")
def nested_cache(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A cached helper inside the function that is sent.

    It is made anew in every call, with an empty cache: cold every time, under every strategy. So is
    one inside a function of a module that it calls, if that function does nothing but call it; and
    one inside the function around it, whose `lru_cache` travels by DillCode without what it holds.
    Warm is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)

    A helper that calls itself, to remember within one call, is left alone.
    """
    # a function that returns such a helper makes it for others
    returned = {
        node.value.id
        for node in ast.walk(sent.node)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
    }

    for node in ast.walk(sent.node):
        if isinstance(node, Function) and node is not sent.node:
            is_cached = any(_is_cache(sent.module, each) for each in node.decorator_list)
            is_meant = node.name in returned or _calls_itself(sent.module, node)
            if is_cached and not is_meant:
                yield _emptied(node.name, node.lineno, bool(arguments(node)))

        elif isinstance(node, ast.Call) and node.args and _is_cache(sent.module, node):
            cached = node.args[0]
            if isinstance(cached, ast.Lambda):
                yield _emptied("this function", node.lineno, bool(arguments(cached)))
            elif isinstance(cached, ast.Name):
                yield _emptied("this function", node.lineno, takes_any=False)

    if sent.strategy == _DILL:
        yield from _emptied_on_the_way(sent)


def _emptied_on_the_way(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """Yield the cached helpers that a function takes along from the functions around it."""
    for name, bound in sent.closed_over.items():
        helper = bound[0] if len(bound) == 1 else None
        if not isinstance(helper, Function) or _calls_itself(sent.module, helper):
            continue
        if sent.module.is_decorated(helper, _EMPTIED):
            yield _emptied(name, helper.lineno, bool(arguments(helper)))


def _emptied_helpers(helper: _Helper) -> Iterator[Broken]:
    """Yield the cached functions that a helper makes anew in every call, and only calls."""
    inside = helper.module.names.bindings(helper.node)
    kept = source.declared_global(helper.node)
    called = {id(node.func) for node in ast.walk(helper.node) if isinstance(node, ast.Call)}

    for name, bound in inside.items():
        node = bound[0] if len(bound) == 1 else None
        if not isinstance(node, Function) or name in kept:
            continue
        uses = [each for each in ast.walk(helper.node) if source.is_name(each, name)]
        is_only_called = all(id(each) in called for each in uses)
        is_cached = helper.module.is_decorated(node, _CACHES | source.WARM)
        if is_cached and is_only_called and not _calls_itself(helper.module, node):
            line, text, level = _emptied(name, node.lineno, bool(arguments(node)))
            yield "GCW101", level, line, text, None


def _calls_itself(module: Module, function: Function) -> bool:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(module.origin(call) == function.name for call in calls)


def _is_cache(module: Module, node: ast.expr) -> bool:
    return module.origin(node) in _CACHES | source.WARM


def _emptied(name: str, line: int, takes_any: bool) -> tuple[int, str, Level]:
    text = f"{name} is cached, and made anew with an empty cache in every call: {_REWRITE}"
    # with arguments, it may be meant for this one call
    return line, text, "warning" if takes_any else "error"


@_RULES.rule("GCW102", "error")
def cache_itself(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A cached function is what is sent.

    `lru_cache` is rebuilt on the worker with an empty cache for every task: cold every time. Send a
    plain function that calls it:

        # my_model.py, which workers can import            # the function to register
        @lru_cache                                         def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)

    A @warm function of a script or a notebook cannot be sent at all: it travels by its name, and
    workers have no such module.
    """
    if _is_warm_of_script(sent):
        yield (
            sent.node.lineno,
            f"{_called(sent)} is a @warm function of this {_kind(sent.module)}, which workers "
            "cannot import, and submitting it is an error: move it to a module, and send a "
            "function that imports it",
        )
    elif sent.function is not None and sent.module.is_decorated(sent.function, _CACHES):
        name = sent.function.name
        yield (
            sent.function.lineno,
            f"{name} is sent with an empty cache for every task: send a function that imports "
            f"{name} and calls it",
        )


def _is_warm_of_script(sent: _Sent) -> bool:
    function = sent.function
    if function is None or not sent.module.is_script:
        return False
    return sent.module.is_decorated(function, source.WARM)


@_RULES.rule("GCW103", "error")
def function_attribute(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept on the function itself, in what globals() gives, or around the function.

    With DillCode a function of an importable module is sent by its name, and its attributes stay on
    the worker: a warning. Every other strategy, and a function of a script, makes the function anew
    for every task, without them: cold every time, silently. So it does with `globals()`, but for
    DillCode, which gives it the worker's own, and with what a nested function keeps in the function
    around it. Warm is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    if sent.function is None:
        return

    name = sent.function.name
    line = _line_of_own_attribute(sent.module, sent.function)
    if line is not None:
        yield _kept(sent, sent.is_by_reference, line, f"{name} keeps state on itself")
    elif (
        not sent.is_by_reference
        and (line := _changes_globals(sent.module, sent.function)) is not None
    ):
        yield _kept(sent, sent.strategy == _DILL, line, f"{name} keeps state in globals()")

    declared = (each for each in ast.walk(sent.function) if isinstance(each, ast.Nonlocal))
    nonlocals = {around for each in declared for around in each.names}
    for around, bound in sent.closed_over.items() if sent.strategy == _DILL else ():
        is_mutable = any(_is_mutable(sent.module, value) for value in bound)
        if around in nonlocals or (is_mutable and _is_changed(sent.function, around)):
            what = f"{name} keeps state in {around} of the function around it"
            yield _kept(sent, False, sent.function.lineno, what)


def _line_of_own_attribute(module: Module, function: Function) -> int | None:
    """Return the line where a function keeps something on itself; None if it does not."""
    name = function.name
    if name in module.names.bindings(function):  # then the name is that of something else
        return None

    for node in ast.walk(function):
        if isinstance(node, ast.expr) and _changes_attribute(module, node, name):
            return node.lineno
    return None


def _changes_attribute(module: Module, node: ast.AST, name: str) -> bool:
    """Return whether a node changes an attribute of the object of that name.

    It does if it stores something in the attribute, or in what the attribute holds.
    """
    if isinstance(node, ast.Call) and module.origin(node) == "setattr" and node.args:
        return source.is_name(node.args[0], name)

    is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))
    changed = node if is_stored else _changed_by(node)
    return changed is not None and _is_attribute(changed, name)


def _changed_by(node: ast.AST) -> ast.expr | None:
    """Return the container that a node changes: an item of it, or by a method of its own."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return node.value

    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Attribute) and called.attr in _CHANGES:
        return called.value
    return None


def _is_attribute(node: ast.AST, name: str) -> TypeGuard[ast.Attribute]:
    """Return whether a node is an attribute of the object of that name."""
    return isinstance(node, ast.Attribute) and source.is_name(node.value, name)


def _changes_globals(module: Module, function: Function) -> int | None:
    """Return the line where a function keeps something in its globals; None if it does not.

    A function that only stores globals, and never looks whether they are there, keeps nothing.
    """
    spaces = {
        name
        for name, nodes in module.names.bindings(function).items()
        if any(source.is_globals(node) for node in nodes)
    }
    for node in ast.walk(function):
        if _stores_in(node, spaces):
            return node.lineno

    if not any(source.looks_for_globals(node) for node in ast.walk(function)):
        return None
    declared = source.declared_global(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and source.is_store(node) and node.id in declared:
            return node.lineno
    return None


def _stores_in(node: ast.AST, spaces: set[str]) -> TypeGuard[ast.Subscript | ast.Attribute]:
    """Return whether a node stores in globals(), or in one of the names for it."""
    if not isinstance(node, (ast.Subscript, ast.Attribute)):
        return False

    space = node.value
    is_space = source.is_globals(space) or (isinstance(space, ast.Name) and space.id in spaces)
    if isinstance(node, ast.Attribute):
        return is_space and node.attr in _CHANGES
    return is_space and isinstance(node.ctx, ast.Store)


@_RULES.rule("GCW104", "error")
def mutable_default(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept in a default argument.

    With DillCode a function of an importable module is sent by its name, and its defaults stay on
    the worker: a warning. Every other strategy, and a function of a script, makes them anew for
    every task: cold every time, silently. Warm is what GCW103 shows.
    """
    if sent.function is None:
        return

    for argument, default in defaults(sent.function):
        name = argument.arg
        if default is None or _is_rebound(sent.function, name):
            continue
        if _is_mutable(sent.module, default) and _is_changed(sent.function, name):
            what = f"{name} keeps state in its default value"
            yield _kept(sent, sent.is_by_reference, default.lineno, what)


def _kept(sent: _Sent, is_warm: bool, line: int, what: str) -> tuple[int, str, str]:
    if not is_warm:
        return line, f"{what}, and is made anew for every task: {_REWRITE}", "error"

    text = f"{what}, which is warm only as long as it travels by {sent.strategy}: {_REWRITE}"
    return line, text, "warning"


def _is_rebound(function: Function, name: str) -> bool:
    """Return whether a name is given to another object; x += 1 may change the one it has."""
    grown = [node.target for node in ast.walk(function) if isinstance(node, ast.AugAssign)]
    stores = [
        node for node in ast.walk(function) if source.is_name(node, name) and source.is_store(node)
    ]
    return any(node not in grown for node in stores)


def _is_mutable(module: Module, node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return module.origin(node) in _MUTABLE
    return isinstance(node, (ast.List, ast.Dict, ast.Set))


def _is_changed(function: Function, name: str) -> bool:
    """Return whether a function changes the container of that name in place."""
    for node in ast.walk(function):
        changed = node.target if isinstance(node, ast.AugAssign) else _changed_by(node)
        if changed is not None and source.is_name(changed, name):
            return True
    return False


@_RULES.rule("GCW105", "error")
def main_global(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A function of a script uses what the script defines or imports at its top level.

    A script is `__main__` at home, and on the worker `__main__` is another program: the name is not
    there, and the task ends with a NameError. Imports belong into the body of the function, state
    into a module that workers can import:

        # my_model.py, which workers can import            # the script
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    if not sent.module.is_script or not sent.left_behind or _is_warm_of_script(sent):
        return

    by_tasks = {name: made for name in sent.left_behind if (made := _made_by_task(sent, name))}
    names = ", ".join(name for name in sent.left_behind if name not in by_tasks)
    if names:
        yield (
            sent.node.lineno,
            f"{_called(sent)} uses {names} of this {_kind(sent.module)}, which workers do not "
            "have: NameError; import it in the body",
        )

    for name, task in by_tasks.items():
        text = f"{_called(sent)} uses {name}, which only workers have that have run {task} before"
        yield sent.node.lineno, f"{text}: {_REWRITE}", "warning"


def _made_by_task(sent: _Sent, name: str) -> str:
    """Return the name of another task's function that makes a global; empty if there is none."""
    for bound in sent.module.top.get(name, ()) if sent.strategy == _DILL else ():
        maker = sent.module.names.around.get(bound, (None,))[-1]
        if maker is sent.node or not isinstance(maker, Function):
            continue
        if maker.name in sent.module.submitted:
            return maker.name
    return ""


@_RULES.rule("GCW106", "error")
def instance_state(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A method that keeps state on its object is what is sent.

    The object travels with every task, as it is at home: what a call leaves on it is lost with the
    call. (What it stores before it uses it may be meant for one call: a warning.) Send a function,
    and keep the object where the worker keeps it:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return Model()                                     return model().predict(x)
    """
    kind, method, methods = sent.method
    if method is None or not _keeps_state(sent.module, methods, method.name, set()):
        return

    text = (
        f"{kind}.{method.name} keeps state on its object, which is sent anew with every task: "
        f"{_REWRITE}"
    )
    level = "warning" if _is_for_one_call(sent.module, method) else "error"
    yield sent.node.lineno, text, level


def _keeps_state(module: Module, methods: dict[str, Function], name: str, seen: set[str]) -> bool:
    """Return whether a method, or one that it calls on itself, stores something on its object."""
    seen.add(name)
    method = methods[name]
    if any(_is_cache(module, decorator) for decorator in method.decorator_list):
        return True

    own = _name_of_self(method)
    for node in ast.walk(method):
        if _changes_attribute(module, node, own):
            return True

        if not _is_attribute(node, own) or node.attr not in methods or node.attr in seen:
            continue
        if _keeps_state(module, methods, node.attr, seen):
            return True
    return False


def _is_for_one_call(module: Module, method: Function) -> bool:
    """Return whether a method stores all that it keeps on its object before it uses it.

    Then it may be meant for this one call.
    """
    own = _name_of_self(method)
    changes = [node for node in ast.walk(method) if _changes_attribute(module, node, own)]
    looks = any(source.is_name(node, "hasattr") for node in ast.walk(method))
    if looks or not changes:
        return False

    first: dict[str, ast.Attribute] = {}
    for node in source.in_order(method):
        if _is_attribute(node, own):
            first.setdefault(node.attr, node)
    return all(
        isinstance(node, ast.Attribute) and isinstance(first[node.attr].ctx, ast.Store)
        for node in changes
    )


def _name_of_self(method: Function) -> str:
    """Return the name of a method's first parameter; empty if it has none."""
    return next((argument.arg for argument in arguments(method)), "")


@_RULES.rule("GCW107", "error")
def nameless(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A lambda, a nested function, or as source a method is what is sent.

    It has no name by which a worker could import it. With DillCode it travels whole, and still asks
    for the module it was written in: a warning, since it fails where workers lack that module. As
    source, a lambda has no name at all, a nested function may have lost what it uses of the
    function around it, a method has lost its object, and some strategies send it indented, which is
    no Python. Write a function with `def` at the top level.
    """
    name = _called(sent)
    remedy = "write it with def at the top level"
    if sent.is_bound and sent.strategy != _DILL:
        text = f"{name} is sent as source by {sent.strategy}, without its object: {remedy}"
        yield sent.node.lineno, text

    is_lambda = isinstance(sent.node, ast.Lambda)
    is_nested = sent.function is not None and sent.is_nested
    if not is_lambda and not is_nested:
        return

    is_whole = sent.strategy == _DILL or (is_lambda and sent.strategy in _COMBINED)
    closed = [] if is_whole else list(sent.closed_over)
    if closed:
        text = f"{name} is sent as source by {sent.strategy}, without {', '.join(closed)}: {remedy}"
        yield sent.node.lineno, text
    elif not is_whole and (is_lambda or sent.strategy in _TEXT):
        yield sent.node.lineno, f"{name} cannot be sent with {sent.strategy}: {remedy}"
    elif is_whole and not sent.module.is_script:
        text = f"{name} fails where workers lack this module, though it is sent whole: {remedy}"
        yield sent.node.lineno, text, "warning"


@_RULES.rule("GCW108", "error")
def source_global(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A function that is sent as source uses names of its module.

    Source arrives alone: what its module defines or imports at the top level is not there, and the
    task ends with a NameError. With AllCodeStrategies and CombinedCode, a function whose decorator
    or default is such a name comes by reference after all. Imports belong into the body:

        def predict(x):
            # a module that workers can import; its @warm function keeps the state
            from my_model import model
            return model()(x)
    """
    if sent.module.is_script or sent.method[1] is not None or not sent.left_behind:
        return

    names = ", ".join(sent.left_behind)
    yield (
        sent.node.lineno,
        f"{_called(sent)} is sent as source by {sent.strategy}, and {names} of its module stay "
        "behind: import them in the body",
    )


@_RULES.rule("GCW111", "error", "read in globus_compute_endpoint/engines/helper.py, execute_task")
def unrun(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A coroutine or a generator is what a task would return.

    A worker calls what it gets, and awaits nothing: of an async function or a generator function,
    nothing has run by then, and what it returns cannot be sent back. (Among all that a module
    registers, it may be meant for others: a warning.) Run it in a function:

        def predict(x):
            import asyncio
            from my_model import model
            return asyncio.run(model().predict(x))
    """
    # a module may have such functions for others of its own, and a decorator may run them
    is_meant = not sent.is_guessed and not (sent.function and sent.function.decorator_list)
    kind = source.unrun(sent.code) if sent.code else ""
    if kind and is_meant:
        text = (
            f"{_called(sent)} is {kind}, of which a task runs nothing: send a function that runs "
            "it, and returns what it gives"
        )
        yield sent.node.lineno, text, "error" if sent.call else "warning"


@_LOADER_RULES.rule("GCW109", "error")
def identity_key(loader: _Loader) -> Iterator[tuple[object, ...]]:
    """A loader takes an argument that compares by identity.

    A task brings a copy of its own of each argument, and no copy is equal to another: no later task
    would find the state. The worker refuses to load it, with a TypeError. A frozen dataclass is
    equal to its copies:

        @dataclass(frozen=True)
        class Config:
            path: str

        @warm
        def model(config: Config):
            return load(config.path)

    Or say with `@warm(key=...)` what stands for the argument. A class is passed over where a worker
    may meet one and the same instance again: one that a loader returns, that its module keeps, or
    that is the default of the argument.
    """
    if not loader.module.is_decorated(loader.node, source.WARM) or _has_own_key(loader.node):
        return

    with_objects = _objects_as_defaults(loader.node)
    taken: list[tuple[ast.arg, str]] = []
    for argument in arguments(loader.node):
        if argument.arg in with_objects:
            continue
        kinds = identity.found_in(argument.annotation, loader.module, loader.library)
        taken += [(argument, kind) for kind in kinds]
    if not taken:
        return

    names = ", ".join(f"{argument.arg} ({kind})" for argument, kind in taken)
    text = (
        f"{loader.node.name} takes {names}, by identity: no later task would find its state, and "
        "the call is refused; make it a frozen dataclass, or say with @warm(key=...) what stands "
        "for it"
    )
    # a module that is not read may keep a partial
    is_certain = any(kind != identity.PARTIAL for _, kind in taken)
    yield taken[0][0].lineno, text, "error" if is_certain else "warning"


def _objects_as_defaults(loader: Function) -> set[str]:
    """Return the parameters whose default may be an object: the same one in every call."""
    return {
        argument.arg
        for argument, default in defaults(loader)
        if default is not None and not isinstance(default, ast.Constant)
    }


def _has_own_key(loader: Function) -> bool:
    """Return whether the decorator of a loader is given a key, or options that are not written."""
    decorator = loader.decorator_list[0]
    is_unknown = isinstance(decorator, ast.Call) and any(
        not each.arg for each in decorator.keywords
    )
    return is_unknown or bool(_options_given(decorator, "key"))


def _options_given(decorator: ast.expr, *names: str) -> list[str]:
    """Return those of some options that a decorator is given, and not as None."""
    if not isinstance(decorator, ast.Call):
        return []

    given = {keyword.arg: keyword.value for keyword in decorator.keywords}
    values = {name: given[name] for name in names if name in given}
    return [
        name
        for name, value in values.items()
        if not (isinstance(value, ast.Constant) and value.value is None)
    ]


@_LOADER_RULES.rule("GCW110", "error")
def cache_in_front(loader: _Loader) -> Iterator[tuple[object, ...]]:
    """A cache in front of a @warm function that gives state up.

    The cache goes on handing out what `maxsize` or `valid` has @warm give up: state that has been
    torn down. And what it answers counts as no use of the state. Take the cache away: @warm is one.
    """
    decorators = loader.node.decorator_list
    number = next(
        number
        for number, each in enumerate(decorators)
        if loader.module.origin(each) in source.WARM
    )
    in_front = [each for each in decorators[:number] if loader.module.origin(each) in _CACHES]
    gives_up = _options_given(decorators[number], "maxsize", "valid")
    if not in_front or not gives_up:
        return

    cache = loader.module.origin(in_front[0]).rpartition(".")[2]
    text = (
        f"{loader.node.name} has {cache} in front of @warm, which goes on handing out what "
        f"{' and '.join(gives_up)} has @warm tear down: take {cache} away"
    )
    yield in_front[0].lineno, text


def _kind(module: Module) -> str:
    """Return what a message calls a file that is run."""
    return "notebook" if module.notebook else "script"


def _called(sent: _Sent) -> str:
    """Return what a message calls something that is sent."""
    if sent.function is not None:
        return sent.function.name
    if isinstance(sent.node, ast.Lambda):
        return "this lambda"

    kind, method, _ = sent.method
    return f"{kind}.{method.name}" if method else "this"


RULES: Mapping[str, Rule[Any]] = {**_RULES.rules, **_LOADER_RULES.rules}
"""All rules for functions, by id."""
