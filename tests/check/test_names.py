"""The names in source, held against what Python itself says of its own library."""

from __future__ import annotations

import ast
import asyncio.tasks
import dataclasses
import inspect
import symtable
import typing
from types import ModuleType

import pytest

from gc_warm.check.names import Comprehension, Names, bound_by


@pytest.mark.parametrize("module", [ast, asyncio.tasks, dataclasses, inspect, symtable, typing])
def test_each_name_that_python_binds_is_bound(module: ModuleType) -> None:
    text = inspect.getsource(module)
    tree = ast.parse(text)
    names = Names(tree, text, "mine.py")
    assert not any(names._unvisited.values())

    inner = [scope for scope in names._bound if isinstance(scope, Comprehension)]
    for scope, table in names._tables.items():
        known = set(names.bindings(scope)).union(*map(names.bindings, inner))
        local = [symbol for symbol in table.get_symbols() if symbol.is_local()]
        bound = {symbol.get_name() for symbol in local if not symbol.get_name().startswith("_")}
        assert bound <= known


def test_names_belong_to_the_scopes_that_python_gives_them_to() -> None:
    text = """
x = 1
def f(a, b=x):
    global g
    g = [y for x in a if (y := x)]
    def h():
        nonlocal b
        b = lambda a=a: (a, x)
    class C:
        x = a
        z = x
        def m(self): return x
    match a:
        case {"k": v, **rest}: return v
        case [*w]: return w
"""
    tree = ast.parse(text)
    names = Names(tree, text, "mine.py")
    function = tree.body[1]
    assert isinstance(function, ast.FunctionDef)
    assert set(names.bindings(tree)) == {"x", "f", "g"}
    assert set(names.bindings(function)) == {"a", "b", "y", "h", "C", "v", "rest", "w"}
    assert names.free(function) == {"x", "g"}

    (kind,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert set(names.bindings(kind)) == {"x", "z", "m"}
    uses = [node for node in ast.walk(kind) if bound_by(node) is None]
    owners = {
        (node.lineno, names.owner(node.id, names.around[node]))
        for node in uses
        if isinstance(node, ast.Name) and node.id == "x"
    }
    assert owners == {(11, kind), (12, tree)}
