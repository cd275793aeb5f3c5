"""A client's script: histories of calls through a `WarmExecutor`.

It prints the warmth of each call's future, as JSON. A script of its own, since only then
``__main__`` is what it is for a user. Usage: python history_client.py BACKEND FOLDER FORM...,
where a form is the kind of a function and the strategy by which it is sent: ``module:DillCode``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer, DillCode

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.client.executor import WarmFuture
from tests.support import MODULES, wait_until
from tests.testing.backends import workers

STRATEGIES = {"DillCode": DillCode, "AllCodeStrategies": AllCodeStrategies}


def use(name: str, flag: str) -> str:
    from history import table

    return table(name, flag)[0]


def _closure() -> Callable[[str, str], str]:
    suffix = ""

    def use(name: str, flag: str) -> str:
        from history import table

        return table(name, flag)[0] + suffix

    return use


def _self_contained_closure() -> Callable[[str, str], str]:
    def use(name: str, flag: str) -> str:
        from history import table

        return table(name, flag)[0]

    return use


def callable_of(kind: str, strategy: str) -> Callable[[str, str], str]:
    """Return a function of a kind that can be sent with a strategy.

    A closure that uses what is around it cannot be sent as source, by any executor.
    """
    if kind == "module":
        function: Callable[[str, str], str] = importlib.import_module("history").use
        return function

    if kind == "__main__":
        return use
    return _closure() if strategy == "DillCode" else _self_contained_closure()


def die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def reload() -> None:
    import importlib

    import history

    importlib.reload(history)


def discard(name: str, flag: str) -> bool:
    from history import table

    return table.discard(name, flag)


def spoil(name: str, flag: str) -> None:
    from history import table

    table(name, flag).append("spoiled")


def history(backend: str, kind: str, strategy: str, folder: Path) -> list[list[Any]]:
    shutil.copy(MODULES / "history.py", folder)
    flag = folder / "flag"
    said: list[list[Any]] = []
    options = workers(backend)
    if "config" in options:
        options["config"] = options["config"].replace(str(MODULES), f"{folder}:{MODULES}")
    else:
        options["pythonpath"] = [folder, MODULES]

    serializer = ComputeSerializer(strategy_code=STRATEGIES[strategy]())
    with WarmExecutor(MockExecutor(**options, serializer=serializer)) as executor:
        function = callable_of(kind, strategy)

        def tell(what: str, future: WarmFuture) -> None:
            error = future.exception(120)
            warmth = future.warmth
            loads = [load.name for load in warmth.loads]
            stale = list(warmth.stale)
            said.append([what, warmth.state, warmth.why, loads, stale, error is None])

        def call(what: str, name: str) -> None:
            tell(what, executor.submit(function, name, str(flag)))

        call("first", "a")
        call("second", "a")
        call("another key", "b")
        call("after its eviction", "a")
        flag.touch()
        call("a load that fails", "c")
        flag.unlink()
        call("after the failure", "c")

        function_id = executor.client.register_function(function)
        tell("by id", executor.submit_to_registered_function(function_id, ("c", str(flag))))
        tell("a worker that dies", executor.submit(die))
        call("after a restart", "a")
        call("again", "a")
        call("another key after it", "b")
        call("a key that is new", "d")

        with (folder / "history.py").open("a") as file:
            file.write("\n# edited\n")
        call("after an edit", "d")
        executor.submit(reload).result(120)
        call("after a reload", "d")
        call("and again", "d")

        tell("given up", executor.submit(discard, "d", str(flag)))
        call("after it was given up", "d")
        tell("spoiled", executor.submit(spoil, "d", str(flag)))
        call("after it was spoiled", "d")

        other = "AllCodeStrategies" if strategy == "DillCode" else "DillCode"
        executor.serializer = ComputeSerializer(strategy_code=STRATEGIES[other]())
        function = callable_of(kind, other)
        call("sent in another way", "d")

        wait_until(lambda: executor.report().calls == len(said) + 1, "all of it is in the report")
        report = executor.report()
        said.append(
            ["report", report.warm, report.cold, report.unknown, report.reasons, report.stale]
        )
    return said


def main(backend: str, folder: Path, forms: list[str]) -> None:
    sys.path.insert(0, str(folder))
    said = {}
    for form in forms:
        kind, _, strategy = form.partition(":")
        said[form] = history(backend, kind, strategy, folder)
    print(json.dumps(said))


if __name__ == "__main__":
    backend, folder, *forms = sys.argv[1:]
    main(backend, Path(folder), forms)
