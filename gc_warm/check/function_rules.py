"""Rules for functions that are to be registered: what in their source can never be warm, or fails on a worker.

Only the source is read: nothing is imported and nothing runs. What is said of each shape of
function is measured, for each of the SDK's serialization strategies, by the tests' persistence
table. Where the source does not say what is submitted, or to whom, nothing is said.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType

from gc_warm.check import source
from gc_warm.check.rules import Finding, RuleSet, is_silenced
from gc_warm.check.source import Function, Module, SourceError, Submission
from gc_warm.check.task_facts import DEFAULT_STRATEGY

_DILL = "DillCode"
# the source, and DillCode where that cannot be read
_COMBINED = ("CombinedCode", "AllCodeStrategies")
_TEXT = ("DillCodeTextInspect", "PureSourceTextInspect")  # the source with its indentation
_CACHES = {
    "functools.lru_cache",
    "functools.cache",
    "functools.cached_property",
    "cachetools.cached",
    "cachetools.func.lru_cache",
    "cachetools.func.ttl_cache",
    "cachetools.func.lfu_cache",
}
_WARM = {"gc_warm.warm", "gc_warm.worker.state.warm"}
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


@dataclass(frozen=True)
class _Sent:
    """Something that is sent to workers.

    Attributes:
        module: Where it is written.
        node: What is written: a function, a lambda, or what stands in its place in a call.
        strategy: How it travels, by the name of the SDK's strategy.
        call: Where it is submitted, if that is written there.
    """

    module: Module
    node: ast.expr | Function
    strategy: str
    call: Submission | None = None

    @property
    def function(self) -> Function | None:
        """It, if it is defined with ``def``."""
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
        return not any(
            self.function is node for node in self.module.top.get(self.function.name, ())
        )

    @functools.cached_property
    def left_behind(self) -> list[str]:
        """Names of its module that it uses, and that are not there on the worker."""
        if self.is_by_reference:
            return []
        above = self._names_above()
        # whose source cannot be read without them
        if self.strategy == _DILL or (self.strategy in _COMBINED and above):
            return sorted(self._names_inside()) if self.module.is_script else []
        return sorted(
            (self._names_inside() | above) - {self.function.name if self.function else ""}
        )

    def _names_inside(self) -> set[str]:
        code = self._code()
        return (
            set(source.free_names(code) & self.module.names) - source.made_first(code)
            if code is not None
            else set()
        )

    def _code(self) -> Function | ast.Lambda | None:
        """What runs: the function itself, or of an object of a class here, its method."""
        return self.node if isinstance(self.node, (Function, ast.Lambda)) else self.method[1]

    def _names_above(self) -> set[str]:
        """Those in its decorators and defaults, which are run where its source is."""
        if self.function is None:
            return set()
        above = [
            *self.function.decorator_list,
            *self.function.args.defaults,
            *filter(None, self.function.args.kw_defaults),
        ]
        used = {node.id for part in above for node in ast.walk(part) if isinstance(node, ast.Name)}
        return used & self.module.names

    def closes_over(self) -> list[str]:
        """Names of the functions around it that it uses."""
        around = [
            scope
            for scope in ast.walk(self.module.tree)
            if isinstance(scope, Function) and scope is not self.node
        ]
        around = [scope for scope in around if any(node is self.node for node in ast.walk(scope))]
        code = self._code()
        own = {self.function.name} if self.function else set()
        known = {name for scope in around for name in source.bindings(scope)} - own
        return sorted(source.free_names(code) & known) if code is not None else []

    @functools.cached_property
    def method(self) -> tuple[str, Function | None, dict[str, Function]]:
        """For a method, or an object that can be called: its class, its function, and all methods of that class, where they are here."""
        made = self.node.value if isinstance(self.node, ast.Attribute) else self.node
        name = self.node.attr if isinstance(self.node, ast.Attribute) else "__call__"
        kind = self._class_of(made) if isinstance(made, (ast.Name, ast.Call)) else ""
        methods = source.methods(self.module, kind, ())
        return kind, methods.get(name), methods

    def _class_of(self, made: ast.Name | ast.Call) -> str:
        if isinstance(made, ast.Call):
            return self.module.origin(made)
        scopes = self.call.scopes if self.call else (self.module.tree,)
        bound = source.resolved(made.id, scopes, made.lineno)
        if isinstance(bound, ast.arg):  # self, in a method
            inside = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
            is_own = isinstance(scopes[-1], Function) and source.arguments(scopes[-1])[:1] == [
                bound
            ]
            return inside[-1].name if inside and is_own else ""
        if isinstance(bound, ast.ClassDef):
            return bound.name if isinstance(self.node, ast.Attribute) else ""
        return self.module.origin(bound) if isinstance(bound, ast.Call) else ""


_RULES: RuleSet[_Sent] = RuleSet()
RULES = _RULES.rules
"""All rules for functions, by id."""


def examine(target: str, strategy: str = DEFAULT_STRATEGY) -> list[Finding]:
    """Hold the functions of a module, or those that a script submits, against all rules.

    Args:
        target: A dotted name as workers import it, or the path of a Python file. A file that
            submits functions of its own is a script.
        strategy: How the functions travel.

    Raises:
        SourceError: There is no such module, or it is not Python.
        OSError: The file cannot be read.
    """
    is_path = target.endswith(".py") or os.sep in target
    path = target if is_path else source.file_of(target)
    try:
        module = source.read(path, may_be_script=is_path)
        submitted = [_Sent(module, _meant(call), strategy, call) for call in module.calls]
        public = (
            [] if module.is_script else [_Sent(module, node, strategy) for node in _public(module)]
        )
        return _findings([*public, *submitted])
    except RecursionError:
        raise SourceError(f"{path} is nested too deeply to be read") from None


def examine_functions(
    functions: Iterable[FunctionType], strategy: str = DEFAULT_STRATEGY
) -> list[Finding]:
    """Hold functions against all rules, where their source can be had.

    Args:
        functions: As they are about to be registered.
        strategy: How they travel.
    """
    read: dict[str, tuple[Module, dict[int, list[Function | ast.Lambda]]]] = {}
    sent = []
    for function in map(inspect.unwrap, functions):
        path = inspect.getsourcefile(function) if isinstance(function, FunctionType) else None
        if path is None or not os.path.isfile(path):
            # written at a prompt, or no function below its decorators: there is nothing to read
            continue
        if path not in read:
            module = source.read(path, may_be_script=function.__module__ == "__main__")
            by_line: dict[int, list[Function | ast.Lambda]] = {}
            for node in ast.walk(module.tree):
                if isinstance(node, (Function, ast.Lambda)):
                    by_line.setdefault(source.first_line(node), []).append(node)
            read[path] = module, by_line
        sent += [
            _Sent(read[path][0], node, strategy)
            for node in read[path][1].get(function.__code__.co_firstlineno, ())
        ]
    return _findings(sent)


def _findings(sent: Sequence[_Sent]) -> list[Finding]:
    found: dict[tuple[object, ...], Finding] = {}
    for each in sent:
        lines = each.module.lines
        for rule, level, place, text in _RULES.broken(each):
            if not any(is_silenced(rule, lines[line - 1]) for line in {place, *_lines_of(each)}):
                found.setdefault(
                    (rule, each.module.path, place),
                    Finding(rule, level, each.module.path, place, text),
                )
    return sorted(found.values(), key=lambda finding: (finding.level, finding.file, finding.line))


def _lines_of(sent: _Sent) -> Iterator[int]:
    """Where a comment silences what is said of all of it: the head of its definition, and the call that submits it."""
    if sent.function is not None:
        begin, end = source.first_line(sent.function), sent.function.body[0].lineno
        yield from range(begin, max(end, sent.function.lineno + 1))
    if sent.call is not None:
        yield from range(
            sent.call.call.lineno, (sent.call.call.end_lineno or sent.call.call.lineno) + 1
        )


def _public(module: Module) -> Iterator[Function]:
    """What `gc-warm register` takes when no name is given: plain functions, by ``__all__`` or without a leading underscore."""
    lists = [
        node.value
        for node in module.tree.body
        if isinstance(node, ast.Assign) and source.assigns(node, "__all__")
    ]
    listed = source.strings(lists[0]) if lists else None
    submitting = [scope for call in module.calls for scope in call.scopes]
    for name, node in module.functions.items():
        is_loader = module.is_decorated(node, _CACHES | _WARM)  # which others call
        # or it runs where tasks are submitted
        if is_loader or any(node is scope for scope in submitting):
            continue
        if name in listed if listed is not None else not name.startswith("_"):
            yield node


def _meant(call: Submission) -> ast.expr | Function:
    """What is submitted: the function or lambda that a name stands for there, else what is written."""
    if isinstance(call.sent, ast.Name):
        found = source.resolved(call.sent.id, call.scopes, call.sent.lineno)
        if isinstance(found, (Function, ast.Lambda)):
            return found
    return call.sent


_REWRITE = (
    "keep it in a module that workers can import, and import that in the body of the function"
)


@_RULES.rule("GCW101", "error")
def nested_cache(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A cached helper inside the function that is sent.

    It is made anew in every call, with an empty cache: cold every time, under every strategy. Warm
    is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)

    A helper that calls itself, to remember within one call, is left alone.
    """
    returned = {
        node.value.id
        for node in ast.walk(sent.node)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
    }
    for node in ast.walk(sent.node):
        if (
            isinstance(node, Function)
            and node is not sent.node
            and any(_is_cache(sent.module, each) for each in node.decorator_list)
        ):
            calls_itself = any(
                isinstance(each, ast.Call) and sent.module.origin(each) == node.name
                for each in ast.walk(node)
            )
            if not calls_itself and node.name not in returned:  # which makes helpers for others
                yield _emptied(node.name, node.lineno, bool(source.arguments(node)))
        elif (
            isinstance(node, ast.Call)
            and _is_cache(sent.module, node)
            and node.args
            and isinstance(node.args[0], (ast.Lambda, ast.Name))
        ):
            yield _emptied(
                "this function",
                node.lineno,
                isinstance(node.args[0], ast.Lambda) and bool(source.arguments(node.args[0])),
            )


def _is_cache(module: Module, node: ast.expr) -> bool:
    return module.origin(node) in _CACHES | _WARM


def _emptied(name: str, line: int, takes_any: bool) -> tuple[int, str, str]:
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
    """
    if sent.function is not None and sent.module.is_decorated(sent.function, _CACHES):
        name = sent.function.name
        yield (
            sent.function.lineno,
            f"{name} is sent with an empty cache for every task: send a function that imports {name} and calls it",
        )


@_RULES.rule("GCW103", "error")
def function_attribute(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept on the function itself, or in what globals() gives.

    With DillCode a function of an importable module is sent by its name, and its attributes stay on
    the worker: a warning. Every other strategy, and a function of a script, makes the function anew
    for every task, without them: cold every time, silently. So it does with `globals()`, but for
    DillCode, which gives it the worker's own. Warm is:

        # my_model.py, which workers can import            # the function to register
        @warm                                              def predict(x):
        def model():                                           from my_model import model
            return load()                                      return model()(x)
    """
    if sent.function is None:
        return
    name = sent.function.name
    is_own = name not in source.bindings(sent.function)
    nodes = [node for node in ast.walk(sent.function) if isinstance(node, ast.expr)]
    line = next(
        (node.lineno for node in nodes if is_own and _changes_attribute(sent.module, node, name)),
        None,
    )
    if line is not None:
        yield _kept(sent, sent.is_by_reference, line, f"{name} keeps state on itself")
    elif not sent.is_by_reference and (line := _changes_globals(sent.function)) is not None:
        yield _kept(sent, sent.strategy == _DILL, line, f"{name} keeps state in globals()")


def _changes_attribute(module: Module, node: ast.AST, name: str) -> bool:
    """Whether something is stored in an attribute of the object of that name, or in what such an attribute holds."""
    if isinstance(node, ast.Call) and module.origin(node) == "setattr" and node.args:
        return source.is_name(node.args[0], name)
    is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))
    changed = node if is_stored else _changed_by(node)
    return changed is not None and _is_attribute(changed, name)


def _changed_by(node: ast.AST) -> ast.expr | None:
    """The container that is changed in place: an item of it, or by a method of its own."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return node.value
    called = node.func if isinstance(node, ast.Call) else None
    return called.value if isinstance(called, ast.Attribute) and called.attr in _CHANGES else None


def _is_attribute(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and source.is_name(node.value, name)


def _changes_globals(function: Function) -> int | None:
    """Where a function keeps something in its globals, and looks whether it is there; None if it does not."""
    spaces = {
        name
        for name, nodes in source.bindings(function).items()
        for node in nodes
        if source.is_globals(node)
    }
    for node in ast.walk(function):
        space = node.value if isinstance(node, (ast.Subscript, ast.Attribute)) else None
        if space is None or not (
            source.is_globals(space) or (isinstance(space, ast.Name) and space.id in spaces)
        ):
            continue
        if isinstance(node, ast.Attribute) and node.attr in _CHANGES:
            return node.lineno
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            return node.lineno
    declared = source.declared_global(function)
    if any(source.looks_for_globals(node) for node in ast.walk(function)):
        stored = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and source.is_store(node) and node.id in declared
        ]
        return stored[0].lineno if stored else None
    return None


@_RULES.rule("GCW104", "error")
def mutable_default(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """State is kept in a default argument.

    With DillCode a function of an importable module is sent by its name, and its defaults stay on
    the worker: a warning. Every other strategy, and a function of a script, makes them anew for
    every task: cold every time, silently. Warm is what GCW103 shows.
    """
    if sent.function is None:
        return
    arguments = sent.function.args
    with_default = [*arguments.posonlyargs, *arguments.args][::-1]
    pairs = [
        *zip(with_default, arguments.defaults[::-1], strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if default is None or _is_rebound(sent.function, argument.arg):
            continue
        if _is_mutable(sent.module, default) and _is_changed(sent.function, argument.arg):
            yield _kept(
                sent,
                sent.is_by_reference,
                default.lineno,
                f"{argument.arg} keeps state in its default value",
            )


def _kept(sent: _Sent, is_warm: bool, line: int, what: str) -> tuple[int, str, str]:
    if is_warm:
        return (
            line,
            f"{what}, which is warm only as long as it travels by {sent.strategy}: {_REWRITE}",
            "warning",
        )
    return line, f"{what}, and is made anew for every task: {_REWRITE}", "error"


def _is_rebound(function: Function, name: str) -> bool:
    """Whether the name is given to another object; x += 1 may change the one it has."""
    grown = [node.target for node in ast.walk(function) if isinstance(node, ast.AugAssign)]
    stores = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == name and source.is_store(node)
    ]
    return any(node not in grown for node in stores)


def _is_mutable(module: Module, node: ast.expr) -> bool:
    makers = {
        "list",
        "dict",
        "set",
        "bytearray",
        "collections.defaultdict",
        "collections.OrderedDict",
        "collections.deque",
    }
    return isinstance(node, (ast.List, ast.Dict, ast.Set)) or (
        isinstance(node, ast.Call) and module.origin(node) in makers
    )


def _is_changed(function: Function, name: str) -> bool:
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
    used = sent.left_behind if sent.module.is_script else []
    if used:
        what = ", ".join(used)
        yield (
            sent.node.lineno,
            f"{_called(sent)} uses {what} of this script, which workers do not have: NameError; import it in the body",
        )


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
    if method is not None and _keeps_state(sent.module, methods, method.name, set()):
        text = f"{kind}.{method.name} keeps state on its object, which is sent anew with every task: {_REWRITE}"
        yield (
            sent.node.lineno,
            text,
            "warning" if _is_for_one_call(sent.module, method) else "error",
        )


def _is_for_one_call(module: Module, method: Function) -> bool:
    """Whether all that a method stores on its object is stored before it is used: it may be meant for this one call."""
    own = next((argument.arg for argument in source.arguments(method)), "")
    uses = [
        node
        for node in source.in_order(method)
        if isinstance(node, ast.Attribute) and source.is_name(node.value, own)
    ]
    first = {node.attr: node for node in uses[::-1]}
    changes = [node for node in ast.walk(method) if _changes_attribute(module, node, own)]
    is_plain = all(
        isinstance(node, ast.Attribute) and isinstance(first[node.attr].ctx, ast.Store)
        for node in changes
    )
    return (
        bool(changes)
        and is_plain
        and not any(
            source.is_name(node, "hasattr")
            for node in ast.walk(method)
            if isinstance(node, ast.Name)
        )
    )


def _keeps_state(module: Module, methods: dict[str, Function], name: str, seen: set[str]) -> bool:
    """Whether a method, or one that it calls on itself, stores something on its object."""
    seen.add(name)
    own = next((argument.arg for argument in source.arguments(methods[name])), "")
    if any(_is_cache(module, decorator) for decorator in methods[name].decorator_list):
        return True
    for node in ast.walk(methods[name]):
        if _changes_attribute(module, node, own):
            return True
        is_other = (
            isinstance(node, ast.Attribute)
            and source.is_name(node.value, own)
            and node.attr in methods
            and node.attr not in seen
        )
        if (
            isinstance(node, ast.Attribute)
            and is_other
            and _keeps_state(module, methods, node.attr, seen)
        ):
            return True
    return False


@_RULES.rule("GCW107", "error")
def nameless(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A lambda or a nested function is what is sent.

    It has no name by which a worker could import it. With DillCode it travels whole, and still asks
    for the module it was written in: a warning, since it fails where workers lack that module. As
    source, a lambda has no name at all, a nested function may have lost what it uses of the
    function around it, and some strategies send it indented, which is no Python. Write a function
    with `def` at the top level.
    """
    is_lambda, remedy = isinstance(sent.node, ast.Lambda), "write it with def at the top level"
    if not (is_lambda or (sent.function is not None and sent.is_nested)):
        return
    is_whole = sent.strategy == _DILL or (is_lambda and sent.strategy in _COMBINED)
    closed = [] if is_whole else sent.closes_over()
    if closed:
        yield (
            sent.node.lineno,
            f"{_called(sent)} is sent as source by {sent.strategy}, without {', '.join(closed)}: {remedy}",
        )
    elif not is_whole and (is_lambda or sent.strategy in _TEXT):
        yield sent.node.lineno, f"{_called(sent)} cannot be sent with {sent.strategy}: {remedy}"
    elif is_whole and not sent.module.is_script:
        yield (
            sent.node.lineno,
            f"{_called(sent)} fails where workers lack this module, though it is sent whole: {remedy}",
            "warning",
        )


@_RULES.rule("GCW108", "error")
def source_global(sent: _Sent) -> Iterator[tuple[object, ...]]:
    """A function that is sent as source uses names of its module.

    Source arrives alone: what its module defines or imports at the top level is not there, and the
    task ends with a NameError. With AllCodeStrategies and CombinedCode, a function whose decorator
    or default is such a name comes by reference after all. Imports belong into the body:

        def predict(x):
            from my_model import model    # a module that workers can import; its @warm function keeps the state
            return model()(x)
    """
    used = [] if sent.module.is_script or sent.method[1] is not None else sent.left_behind
    if used:
        what = f"{_called(sent)} is sent as source by {sent.strategy}, and {', '.join(used)} of its module stay behind"
        yield sent.node.lineno, f"{what}: import them in the body"


def _called(sent: _Sent) -> str:
    if sent.function is not None:
        return sent.function.name
    return (
        "this lambda"
        if isinstance(sent.node, ast.Lambda)
        else f"{sent.method[0]}.{sent.method[1].name}"
        if sent.method[1]
        else "this"
    )
