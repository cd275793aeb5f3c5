"""A client's script that submits callables of every shape three times with every strategy.

It prints what came back, as JSON, of the executor itself and "recorded", which is through a
`WarmExecutor`, which has to change nothing. It is a script of its own, since only then ``__main__``
is what a user has. Usage: python persistence_client.py BACKEND
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import shapes
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import (
    AllCodeStrategies,
    ComputeSerializer,
    DillCode,
    PureSourceDill,
    PureSourceTextInspect,
)

from gc_warm import MockClient, MockExecutor, WarmExecutor, functions
from tests.testing.backends import workers

count = 0


def main_global() -> int:
    global count
    count += 1
    return count


def main_globals() -> int:
    space = globals()
    space["hits"] = space.get("hits", 0) + 1
    return int(space["hits"])


def callables() -> dict[str, Callable[..., Any]]:
    client_only = importlib.import_module("client_only")  # by the name that lies beside this script
    return {
        "import in the body": shapes.import_in_body,
        "gc_warm.functions.count": functions.count,
        "import of a @warm function in the body": shapes.import_of_warm_in_body,
        "module function with a global": shapes.module_global,
        "module function wrapped by a closure": shapes.wrapped_by_closure,
        "decorator class with __reduce__": shapes.decorated_by_reference,
        "@warm function itself": shapes.warm_itself,
        "lru_cache function itself": shapes.lru_cached,
        "module function that calls an lru_cache loader": shapes.calls_lru_cached,
        "bound method": shapes.Counter().increase,
        "callable instance": shapes.Counter(),
        "callable instance with a __name__": shapes.NamedCounter(),
        "helper nested in the function": shapes.nested_helper,
        "function attribute": shapes.function_attribute,
        "mutable default": shapes.mutable_default,
        "__main__ function with a global": main_global,
        "__main__ function with globals()": main_globals,
        "client-only function, self-contained": client_only.self_contained,
        "client-only function with a global": client_only.uses_global,
        "client-only closure": client_only.closure,
        "client-only closure, self-contained": client_only.self_contained_closure,
        "client-only lambda, self-contained": client_only.self_contained_lambda,
    }


def forget() -> None:
    """Have the next callable find its modules on the worker as in a fresh process."""
    import sys

    mine = ("shapes", "gc_warm.functions", "gc_warm.warmables")
    for name in [name for name in sys.modules if name.startswith(mine)]:
        del sys.modules[name]
    for name in ("count", "hits"):
        globals().pop(name, None)  # an engine's worker has two modules of the name __main__


def outcome(future: Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()

    assert isinstance(error, TaskExecutionFailed), error
    names = re.findall(r"^(?:\w+\.)*(\w+Error)\b", error.remote_data, re.MULTILINE)
    return f"worker: {names[-1]}"


def submitter(
    client: MockClient, executor: MockExecutor, function: Callable[..., Any], recorded: bool
) -> Callable[[], Future[Any]]:
    if recorded:
        return functools.partial(WarmExecutor(executor).submit, function)
    function_id = client.register_function(function)
    return functools.partial(executor.submit_to_registered_function, function_id)


def three_calls(
    client: MockClient, executor: MockExecutor, function: Callable[..., Any], recorded: bool
) -> Any:
    try:
        submit = submitter(client, executor, function, recorded)
        futures = [submit() for _ in range(3)]
    except Exception as error:
        return f"client: {type(error).__name__}"

    outcomes = [outcome(future) for future in futures]
    first, *others = outcomes
    same_error = isinstance(first, str) and others == [first, first]
    return first if same_error else outcomes


def main(backend: str) -> None:
    ways = ("itself", "recorded")
    tables: dict[str, dict[str, dict[str, Any]]] = {
        way: {name: {} for name in callables()} for way in ways
    }
    with MockClient(**workers(backend)) as client, MockExecutor(client=client) as executor:
        for strategy in (DillCode, AllCodeStrategies, PureSourceTextInspect, PureSourceDill):
            client.fx_serializer = ComputeSerializer(strategy_code=strategy())
            for way, (name, function) in itertools.product(ways, callables().items()):
                executor.submit(forget).result()
                seen = three_calls(client, executor, function, way == "recorded")
                tables[way][name][strategy.__name__] = seen
    print(json.dumps(tables))


if __name__ == "__main__":
    main(sys.argv[1])
