"""The rules for functions: right by the persistence table, and silent where all is well."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pickle
import sys
import textwrap
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import shapes
from globus_compute_sdk.errors import SerializationError
from globus_compute_sdk.serialize import ComputeSerializer

import gc_warm
from gc_warm.check import function_rules
from gc_warm.check.rules import Finding
from gc_warm.check.source import SourceError
from gc_warm.worker.state import Warm
from tests.testing import persistence_client
from tests.testing.test_persistence import STRATEGIES, TABLE, WARM

SDK = "from globus_compute_sdk import Executor\n"

CASES: list[tuple[str, str, str, str, str]] = [
    # rule, strategy, what is bad, what is warm in its place, what is said
    (
        "GCW101",
        "DillCode",
        """
        def predict(x):
            import functools
            @functools.lru_cache
            def load():
                return [x]
            return load()
        """,
        """
        def predict(x):
            from my_model import load
            @functools.cache
            def fibonacci(n):
                return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
            return load()
        """,
        "load is cached, and made anew with an empty cache in every call",
    ),
    (
        "GCW101",
        "DillCode",
        """
        import functools
        def build(executor):
            @functools.lru_cache
            def load():
                return [1]
            def predict(x):
                return load(), x
            executor.submit(predict, 1)
        """,
        """
        def predict(x):
            from my_model import load
            return load(), x
        def build(executor):
            executor.submit(predict, 1)
        """,
        "load is cached, and made anew with an empty cache in every call",
    ),
    (
        "GCW102",
        "DillCode",
        """
        from gc_warm import warm
        @warm
        def model():
            return 1
        with Executor() as executor:
            executor.submit(model)
        """,
        """
        def predict():
            from my_model import model
            return model()
        with Executor() as executor:
            executor.submit(predict)
        """,
        "model is a @warm function of this script, which workers cannot import",
    ),
    (
        "GCW102",
        "DillCode",
        """
        from functools import lru_cache
        @lru_cache
        def load():
            return 1
        def main(executor):
            executor.submit(load)
        """,
        """
        from functools import lru_cache
        @lru_cache
        def load():
            return 1
        def predict():
            return load()
        def main(executor):
            executor.submit(predict)
        """,
        "load is sent with an empty cache for every task",
    ),
    (
        "GCW103",
        "AllCodeStrategies",
        """
        def predict(x):
            if not hasattr(predict, "model"):
                predict.model = open(x)
            return predict.model
        """,
        """
        def predict(x):
            from my_model import model
            return getattr(predict, "unit", 1) * model()
        """,
        "predict keeps state on itself, and is made anew for every task",
    ),
    (
        "GCW104",
        "PureSourceDill",
        """
        def predict(x, *, models={}):
            if x not in models:
                models[x] = open(x)
            return models[x]
        """,
        """
        def predict(x, *, units={}):
            return units[x]
        """,
        "models keeps state in its default value, and is made anew for every task",
    ),
    (
        "GCW105",
        "DillCode",
        """
        import numpy as np
        MODEL = None
        def predict(x):
            global MODEL
            MODEL = MODEL or np.load(x)
            return MODEL
        if __name__ == "__main__":
            with Executor() as executor:
                executor.submit(predict, 1)
        """,
        """
        import numpy as np
        from my_model import other
        def predict(x):
            import numpy as np
            from my_model import model
            return np.sum(model())
        def helper():
            return np.sum([1])
        if __name__ == "__main__":
            helper()
            with Executor() as executor:
                executor.submit(predict, 1)
                executor.submit(other, 1)
        """,
        "predict uses MODEL, np of this script, which workers do not have",
    ),
    (
        "GCW106",
        "DillCode",
        """
        class Model:
            def load(self):
                self.weights = 1
            def predict(self, x):
                self.load()
                return self.weights
        def main(executor):
            model = Model()
            executor.submit(model.predict, 1)
        """,
        """
        class Model:
            def __init__(self):
                self.weights = 1
            def predict(self, x):
                return self.weights
        def main(executor):
            model = Model()
            executor.submit(model.predict, 1)
        """,
        "Model.predict keeps state on its object",
    ),
    (
        "GCW107",
        "PureSourceDill",
        """
        def main(executor):
            executor.submit(lambda x: x + 1, 1)
        """,
        """
        def add(x):
            return x + 1
        def main(executor):
            executor.submit(add, 1)
        """,
        "this lambda cannot be sent with PureSourceDill",
    ),
    (
        "GCW107",
        "AllCodeStrategies",
        """
        def main(executor):
            scale = 2
            def double(x):
                return scale * x
            executor.submit(double, 1)
        """,
        """
        def main(executor):
            def double(x, scale):
                return scale * x
            executor.submit(double, 1, 2)
        """,
        "double is sent as source by AllCodeStrategies, without scale",
    ),
    (
        "GCW108",
        "AllCodeStrategies",
        """
        from pathlib import Path
        def size(name):
            return len(Path(name).read_text())
        """,
        """
        from pathlib import Path
        def size(name, times=2):
            from pathlib import Path
            return times * size(name, times - 1) + len(Path(name).read_text())
        """,
        "size is sent as source by AllCodeStrategies, and Path of its module stay behind",
    ),
    (
        "GCW109",
        "DillCode",
        """
        from gc_warm import warm
        class Settings:
            def __init__(self, path):
                self.path = path
        @warm
        def model(settings: Settings):
            return settings.path
        """,
        """
        from dataclasses import dataclass
        from gc_warm import warm
        @dataclass(frozen=True)
        class Settings:
            path: str
        @warm
        def model(settings: Settings):
            return settings.path
        """,
        "model takes settings (Settings), by identity: no later task would find its state",
    ),
    (
        "GCW110",
        "DillCode",
        """
        import functools
        from gc_warm import warm
        @functools.lru_cache
        @warm(maxsize=1)
        def connection(number):
            yield [number]
        """,
        """
        import functools
        from gc_warm import warm
        @functools.lru_cache
        @warm
        def model(number):
            return number
        @warm(maxsize=1)
        @functools.lru_cache
        def other(number):
            return [number]
        """,
        "connection has lru_cache in front of @warm, which goes on handing out what maxsize has",
    ),
    (
        "GCW111",
        "DillCode",
        """
        async def predict(x):
            return x
        with Executor() as executor:
            executor.submit(predict, 1)
        """,
        """
        def run(function):
            def wrapper(x):
                import asyncio
                return asyncio.run(function(x))
            return wrapper
        @run
        async def predict(x):
            return x
        def steps(n):
            def inner():
                yield n
            return list(inner())
        async def main(executor):
            executor.submit(predict, 1)
            executor.submit(steps, 1)
        """,
        "predict is an async function, of which a task runs nothing",
    ),
]


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(SDK + textwrap.dedent(text))
    return str(folder / name)


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{rule}-{strategy}" for rule, strategy, *_ in CASES]
)
def test_each_rule_finds_its_miniature_and_is_content_with_the_warm_one(
    number: int, tmp_path: Path
) -> None:
    rule, strategy, bad, warm, says = CASES[number]
    path = written(tmp_path, bad)
    found = [problem for problem in function_rules.examine(path, strategy) if problem.rule == rule]
    assert [(problem.level, problem.file) for problem in found] == [("error", path)]
    assert says in found[0].text
    assert function_rules.examine(written(tmp_path, warm), strategy) == []

    written(tmp_path, bad)
    lines = Path(path).read_text().splitlines()
    lines[found[0].line - 1] += f"  # gc-warm: ignore[{rule}]"
    Path(path).write_text("\n".join(lines))
    assert rule not in {problem.rule for problem in function_rules.examine(path, strategy)}


HELPERS = """
import functools
from functools import cache
KEPT = {}
def cold():
    @functools.lru_cache
    def load():
        return [1]
    return load()
def silenced():
    @cache
    def load():  # gc-warm: ignore[GCW101]
        return [1]
    return load()
def given_away():
    @cache
    def load():
        return [1]
    return load
def kept():
    @cache
    def load():
        return [1]
    KEPT.setdefault("load", load)
    return KEPT["load"]()
def kept_as_global():
    global load
    @cache
    def load():
        return [1]
    return load()
def recursive(n):
    @cache
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
    return fibonacci(n)
@cache
def once():
    @cache
    def load():
        return [1]
    return load()
"""


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("cold", True),
        ("silenced", False),
        ("given_away", False),
        ("kept", False),
        ("kept_as_global", False),
        ("recursive", False),
        ("once", False),
    ],
)
def test_cached_function_that_a_helper_makes_anew(
    name: str, is_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helpers.py").write_text(HELPERS)
    body = f"def predict():\n    from helpers import {name}\n    return {name}()\n"
    found = function_rules.examine(written(tmp_path, body))
    assert [(each.rule, each.file) for each in found] == [
        ("GCW101", str(tmp_path / "helpers.py"))
    ] * is_found


def test_gcw110_the_cache_hands_out_what_was_torn_down() -> None:
    torn_down: list[int] = []

    def connection(number: int) -> Generator[int, None, None]:
        yield number
        torn_down.append(number)

    loader = gc_warm.warm(maxsize=1)(connection)
    cached = functools.lru_cache(loader)
    assert [cached(number) for number in (1, 2, 1)] == [1, 2, 1]
    assert torn_down == [1]
    loader.clear()


def test_gcw111_what_it_returns_cannot_be_sent_back() -> None:
    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    for returned in (waiting := coroutine(), generator()):
        with pytest.raises(SerializationError):
            ComputeSerializer().serialize(returned)
    waiting.close()


def test_generator_among_the_functions_of_a_module_is_a_warning(folder: Path) -> None:
    (folder / "mine.py").write_text("def steps():\n    yield 1\n")
    assert function_rules.examine("mine") == []
    (found,) = function_rules.examine_functions([imported("mine").steps])
    assert (found.rule, found.level) == ("GCW111", "warning")


def test_every_rule_has_a_miniature() -> None:
    assert {rule for rule, *_ in CASES} == set(function_rules.RULES)


SUBMITTED = {  # what is not a function, as a client would write it
    "bound method": "Counter().increase",
    "callable instance with a __name__": "NamedCounter()",
    "lru_cache function itself": "lru_cached",
    "@warm function itself": "warm_itself",
    "decorator class with __reduce__": "decorated_by_reference",
}
RUNS = [1, 1, 1]
FINE = {"@warm function itself": RUNS} | {
    row: RUNS for row in TABLE if row.startswith("client-only") and "self-contained" in row
}
"""What a row shows when all is well, where that is not three warm calls."""
NOT_WRITTEN = {"client-only function, self-contained", "client-only function with a global"}
"""Whether workers can import a module is not in its source."""


def said_of(row: str, strategy: str, folder: Path) -> list[Finding]:
    if row in SUBMITTED:
        path = folder / "submits.py"
        path.write_text(
            f"{inspect.getsource(shapes)}\n{SDK}__all__ = []\n"
            f"def main(executor):\n    executor.submit({SUBMITTED[row]})\n"
        )
        return function_rules.examine(str(path), strategy)

    function = persistence_client.callables()[row]
    if row.startswith("__main__"):
        path = folder / "script.py"
        shape = inspect.getsource(function)
        path.write_text(
            f"{SDK}\ncount = 0\n{shape}\n"
            f"with Executor() as executor:\n    executor.submit({function.__name__})\n"
        )
        return function_rules.examine(str(path), strategy)

    assert isinstance(function, FunctionType)
    return function_rules.examine_functions([function], strategy)


# the SDK itself refuses a callable instance
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("row", [row for row in TABLE if row != "callable instance"])
def test_what_is_said_is_what_the_persistence_table_has_measured(
    row: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # importable, as it is for that script
    monkeypatch.syspath_prepend(str(Path(persistence_client.__file__).parent))
    measured = TABLE[row][STRATEGIES.index(strategy)]
    levels = {problem.level for problem in said_of(row, strategy, tmp_path)}

    is_whole = strategy == "DillCode" or ("lambda" in row and strategy == "AllCodeStrategies")
    if is_whole and row.startswith("client-only"):
        # it fails where workers lack the module
        assert levels == (set() if row in NOT_WRITTEN else {"warning"})
    else:
        # lru_cache itself, which counts its loads, looks warm in the table
        is_fine = measured == FINE.get(row, WARM) and row != "lru_cache function itself"
        assert ("error" in levels) != is_fine, measured


@pytest.mark.parametrize(
    "strategy", ["DillCode", "AllCodeStrategies", "CombinedCode", "PureSourceDill"]
)
def test_own_functions_break_no_rule(strategy: str) -> None:
    assert function_rules.examine("gc_warm.functions", strategy) == []
    for path in sorted((Path(gc_warm.__file__).parent / "warmables").glob("*.py")):
        assert function_rules.examine(str(path)) == []


FINE_TEXTS = {
    "a pool of threads": """
        from concurrent.futures import ThreadPoolExecutor as P
        N = 1
        def f():
            return N
        with P() as pool:
            pool.submit(f)
        """,
    "a pool on self, and as a parameter": """
        from concurrent.futures import ThreadPoolExecutor
        N = 1
        class A:
            def __init__(self):
                self.pool = ThreadPoolExecutor(1)
            def go(self, pool: ThreadPoolExecutor):
                self.pool.submit(lambda: N)
                pool.submit(lambda: N)
        A().go(ThreadPoolExecutor())
        """,
    "comprehensions and builtins": """
        from rich import print
        N = 1
        def f():
            print([N for N in range(3)] + [len('a')])
        with Executor() as e:
            e.submit(f)
        """,
    "what comes from elsewhere": """
        from my_model import energy
        class Local:
            def energy(self):
                return Executor
        def submit_all(e, energy):
            e.submit(energy, 1)
        with Executor() as e:
            e.submit(energy, 1)
            e.submit(unknown.thing)
            e.submit()
        """,
    "a script that imports itself": """
        import numpy as np
        def predict(x):
            return np.sum(x)
        if __name__ == "__main__":
            from mine import predict
            with Executor() as e:
                e.submit(predict, 1)
        """,
    "a shell function": """
        from globus_compute_sdk import ShellFunction
        with Executor() as e:
            e.submit(ShellFunction('date'))
        """,
    "a default that is never changed": """
        def f(options={}, seen=None, names=()):
            seen = seen or []
            seen.append(1)
            return options.get('a'), seen
        """,
    "a default that is copied": """
        def f(options={}, more={}):
            options = dict(options)
            options['n'] = 1
            more = {**more}
            more['n'] = 1
        """,
    "a loader that others call": """
        import functools
        @functools.cache
        def model():
            return 1
        def f():
            return model()
        """,
    "a factory of loaders": """
        import functools
        def make(path):
            @functools.cache
            def load():
                return open(path)
            return load
        """,
    "a method without state": """
        class Model:
            def run(self):
                return 1
        def main(e):
            e.submit(Model().run)
        """,
    "a local of the function's name": """
        from types import SimpleNamespace
        def result(x):
            result = SimpleNamespace()
            result.value = x
            return result
        """,
    "globals that are only read": """
        def f(text):
            return eval(text, globals())
        """,
    "under try, at the top level": """
        try:
            import numpy
            def f(seen=None):
                return numpy.sum(seen)
        except ImportError:
            numpy = None
        """,
    "annotations": """
        import typing
        import numpy as np
        def f():
            x: typing.List[int] = [1]
            y: np.ndarray
            return x
        with Executor() as e:
            e.submit(f)
        """,
    "a global that the body makes": """
        import math
        def f():
            global math
            import math
            return math.pi
        with Executor() as e:
            e.submit(f)
        """,
    "two lambdas in a line": """
        import math
        with Executor() as e:
            found = sorted([1], key=lambda t: math.sin(t)) + [e.submit(lambda: 2)]
        """,
    "a pool of another system": """
        import math
        import submitit
        def f():
            return math.pi
        pool = submitit.AutoExecutor("x")
        pool.submit(f)
        """,
    "what a lambda and a comprehension take for themselves": """
        import math
        def f():
            return math.pi
        with Executor() as e:
            list(map(lambda f: e.submit(f), [1]))
            [e.submit(f) for f in [1]]
        """,
    "a global function that the body makes": """
        helper = None
        def f(x):
            global helper
            def helper(y):
                return y
            return helper(x)
        with Executor() as e:
            e.submit(f)
        """,
    "a list of what is public": """
        __all__ = ['f']
        def g(seen=[]):
            seen.append(1)
        def f():
            return 1
        """,
    "names that a match, a walrus, a del and an except clause bind": """
        import kept, key, rest, msg, total
        def f(command, rows):
            match command:
                case {"a": key, **rest}:
                    return key, rest
                case [first, *kept]:
                    return first, kept
            try:
                found = [total := row for row in rows]
            except ValueError as msg:
                found = str(msg)
            del kept
            return found, total
        with Executor() as e:
            e.submit(f, 1, 2)
        """,
    "names of a class, and of functions that have the same": """
        size = 1
        def other():
            import math
            def cache(function):
                return function
            return math, cache
        def f(x):
            class Local:
                size = x
                def math(self):
                    return self.size
            return Local().math()
        with Executor() as e:
            e.submit(f, 1)
        """,
    "what a default and a decorator take at home": """
        import functools
        N = 1
        def f(x, n=N, key=lambda: 1):
            @functools.wraps
            def g():
                return n
            return g
        def plain(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper
        @plain
        def h(x, n=N):
            return n
        with Executor() as e:
            e.submit(h, 1)
        """,
    "a cache that is rebound": """
        from functools import cache
        def cache(function):
            return function
        @cache
        def f():
            return 1
        with Executor() as e:
            e.submit(f)
        """,
    "annotations that Python leaves as text": """
        from __future__ import annotations
        from typing import Any
        def f(x: Any) -> Any:
            def g(y: Any) -> Any:
                return y
            return g(x)
        with Executor() as e:
            e.submit(f, 1)
        """,
    "what a loop goes over": """
        def f():
            return 1
        def g():
            return 2
        tasks = {"f": f}
        with Executor() as e:
            [e.submit(each) for each in (f, g)]
            for name, each in tasks.items():
                e.submit(each)
        """,
    "state of a closure that is only read": """
        def make(path):
            units = {}
            def f(x):
                return units.get(x, path)
            return f
        with Executor() as e:
            e.submit(make("a"), 1)
        """,
    "nothing": "",
}


@pytest.mark.parametrize("name", FINE_TEXTS)
def test_nothing_is_said_of_what_is_as_it_should_be(name: str, tmp_path: Path) -> None:
    assert function_rules.examine(written(tmp_path, FINE_TEXTS[name])) == []


FOUND: dict[str, tuple[str, list[str], str]] = {
    "a script without a main part": (
        "DillCode",
        ["GCW105"],
        """
        import math
        def f():
            return math.pi
        def main():
            with Executor() as e:
                e.submit(f)
        main()
        """,
    ),
    "an executor on a stack": (
        "DillCode",
        ["GCW105"],
        """
        import contextlib
        import math
        with contextlib.ExitStack() as stack:
            e = stack.enter_context(Executor())
            e.submit(lambda: math.pi)
        """,
    ),
    "itself, submitted by its method": (
        "DillCode",
        ["GCW106"],
        """
        class Model:
            def work(self):
                self.seen["n"] = 1
            def go(self, e):
                e.submit(self.work)
        """,
    ),
    "state in what a method finds on its object": (
        "DillCode",
        ["GCW106"],
        """
        class Model:
            def work(self):
                self.seen.append(1)
        def main(e):
            e.submit(Model().work)
        """,
    ),
    "state on a class": (
        "DillCode",
        ["GCW106"],
        """
        class Model:
            @classmethod
            def work(cls):
                cls.n = 1
        def main(e):
            e.submit(Model.work)
        """,
    ),
    "a method that uses the script": (
        "DillCode",
        ["GCW105"],
        """
        import math
        class Model:
            def work(self):
                return math.pi
        model = Model()
        with Executor() as e:
            e.submit(model.work)
        """,
    ),
    "state in a global that is looked for": (
        "PureSourceDill",
        ["GCW103"],
        """
        def f():
            global MODEL
            try:
                MODEL
            except NameError:
                MODEL = open("x")
            return MODEL
        """,
    ),
    "state in what an attribute of the function holds": (
        "AllCodeStrategies",
        ["GCW103"],
        """
        def f(x):
            f.store[x] = 1
        """,
    ),
    "a default that grows in place": (
        "AllCodeStrategies",
        ["GCW104"],
        """
        def f(x, seen=[]):
            seen += [x]
            return seen
        """,
    ),
    "a cache that is called": (
        "DillCode",
        ["GCW101"],
        """
        def f(x):
            import functools
            load = functools.lru_cache(lambda: open(x))
            return load()
        """,
    ),
    "recursion in a script, which DillCode sends without its own name": (
        "DillCode",
        ["GCW105"],
        """
        def factorial(n):
            return n * factorial(n - 1) if n else 1
        with Executor() as e:
            e.submit(factorial, 3)
        """,
    ),
    "names from a star": (
        "DillCode",
        ["GCW102", "GCW105"],
        """
        from math import *
        from functools import *
        @lru_cache(maxsize=None)
        def load():
            return 1
        def f(x):
            return sin(x)
        with Executor() as e:
            e.submit(load)
            e.submit(f, 1)
        """,
    ),
    "a cache under another name": (
        "DillCode",
        ["GCW102", "GCW102"],
        """
        import functools as f
        memo = f.cache
        try:
            from functools import cache
        except ImportError:
            def cache(function):
                return function
        @memo
        def load():
            return 1
        @cache
        def other():
            return 1
        with Executor() as e:
            e.submit(load)
            e.submit(other)
        """,
    ),
    "a partial": (
        "DillCode",
        ["GCW105"],
        """
        import functools
        import math
        def f(x, y):
            return math.pi
        half = functools.partial(f, 1)
        with Executor() as e:
            e.submit(half, 2)
        """,
    ),
    "what a decorator puts around": (
        "DillCode",
        ["GCW105"],
        """
        import functools, time
        def timed(times):
            def decorate(function):
                @functools.wraps(function)
                def wrapper(*args):
                    return time.time(), function(*args)
                return wrapper
            return decorate
        @timed(2)
        def f():
            return 1
        with Executor() as e:
            e.submit(f)
        """,
    ),
    "state of a closure": (
        "DillCode",
        ["GCW103", "GCW103"],
        """
        def make(path):
            models = {}
            def f(x):
                if x not in models:
                    models[x] = open(path)
                return models[x]
            return f
        def main(e):
            n = 0
            def count():
                nonlocal n
                n += 1
                return n
            task = make("a")
            e.submit(task, 1)
            e.submit(count)
        main(Executor())
        """,
    ),
    "one of several, beside a pool of threads": (
        "DillCode",
        ["GCW105"],
        """
        import math
        from concurrent.futures import ThreadPoolExecutor, as_completed
        def f(x):
            return math.pi
        def g(x):
            return x
        gpu, cpu = Executor("a"), Executor("b")
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: math.pi)
            for each in (f, g):
                cpu.submit(each, 1)
        """,
    ),
    "an executor that is passed, where futures are waited for": (
        "DillCode",
        ["GCW105"],
        """
        import math
        from concurrent.futures import as_completed
        def f(x):
            return math.pi
        def main(gce):
            return as_completed([gce.submit(f, 1)])
        main(Executor())
        """,
    ),
    "an executor that is called in other ways": (
        "DillCode",
        ["GCW105"] * 4,
        """
        import functools, math
        from concurrent.futures import ThreadPoolExecutor
        def a(x):
            return math.pi
        def b(x):
            return math.pi
        def c(x):
            return math.pi
        def d(x):
            return math.pi
        class Runner:
            def __init__(self):
                self.pool = None
            async def go(self, loop, path):
                self.pool = Executor()
                self.pool.submit(a, 1)
                await loop.run_in_executor(self.pool, b, 1)
                await loop.run_in_executor(None, lambda: math.pi)
        with Executor() as e:
            submit = e.submit
            submit(c, 1)
            functools.partial(e.submit, d)(1)
        """,
    ),
    "a script whose functions call one another": (
        "DillCode",
        ["GCW105"],
        """
        import math, sys
        def connect():
            return Executor()
        def work(x):
            return math.pi
        def study():
            gce = connect()
            return gce.submit(work, 1)
        def main():
            study()
        sys.exit(main())
        """,
    ),
    "a script whose class submits": (
        "DillCode",
        ["GCW105"],
        """
        import math
        def work(x):
            return math.pi
        class Study:
            def run(self, gce):
                return gce.submit(work, 1)
        done = Study().run(Executor())
        """,
    ),
    "a module in which one function is for tasks": (
        "CombinedCode",
        ["GCW108"],
        """
        import math
        def connect():
            return Executor()
        def work(x):
            return math.pi
        def main():
            return connect()
        """,
    ),
    "a global that another function makes": (
        "DillCode",
        ["GCW105"],
        """
        def load():
            global MODEL
            MODEL = 1
        def f():
            return MODEL
        load()
        with Executor() as e:
            e.submit(f)
        """,
    ),
    "methods as source, of which some take an object": (
        "AllCodeStrategies",
        ["GCW107", "GCW107"],
        """
        class Model:
            @staticmethod
            def plain(x):
                return x
            @classmethod
            def make(cls, x):
                return x
            def run(self, x):
                return x
        def main(e):
            e.submit(Model.plain, 1)
            e.submit(Model.run, 1, 2)
            e.submit(Model().plain, 1)
            e.submit(Model.make, 1)
            e.submit(Model().run, 1)
        """,
    ),
    "a value that a comprehension does not take for itself": (
        "DillCode",
        ["GCW105"],
        """
        N = 1
        def f(xs):
            return [N for x in xs if (lambda N: N)(x)]
        with Executor() as e:
            e.submit(f, [1])
        """,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_cold_or_fails_is_found_in_other_words(name: str, tmp_path: Path) -> None:
    strategy, rules, text = FOUND[name]
    found = function_rules.examine(written(tmp_path, text), strategy)
    assert [problem.rule for problem in found] == rules


@pytest.mark.parametrize(
    ("more", "is_cold"),
    [
        ("", False),
        ("client = Client(code_serialization_strategy=CombinedCode())\n", True),
        ("code = CombinedCode()\nserializer = ComputeSerializer(strategy_code=code)\n", True),
        ("Client(code_serialization_strategy=chosen())\n", False),
    ],
)
def test_strategy_that_a_file_asks_for_counts(more: str, is_cold: bool, tmp_path: Path) -> None:
    text = (
        "from globus_compute_sdk import Client\n"
        "from globus_compute_sdk.serialize import CombinedCode, ComputeSerializer\n"
        "def f():\n    f.n = getattr(f, 'n', 0) + 1\n"
    )
    (found,) = function_rules.examine(written(tmp_path, text + more))
    assert found.rule == "GCW103"
    assert (found.level == "error") == is_cold


def test_global_that_another_task_makes_is_a_warning(tmp_path: Path) -> None:
    text = """
        def load():
            global MODEL
            MODEL = 1
        def f():
            return MODEL
        with Executor() as e:
            e.submit(load)
            e.submit(f)
        """
    (found,) = function_rules.examine(written(tmp_path, text))
    assert (found.rule, found.level, found.line) == ("GCW105", "warning", 6)
    assert "f uses MODEL, which only workers have that have run load before" in found.text


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of Python 3.12")
def test_type_parameters_are_names_of_their_own(tmp_path: Path) -> None:
    text = """
        import os as T
        def f[T](x: T) -> T:
            type Pair[U] = tuple[T, U]
            class Box[V]:
                kept: V
            return [x for x in (x, Box)]
        def make[V](kind: V):
            def g():
                return V, kind
            return g
        with Executor() as e:
            e.submit(f, 1)
            e.submit(make(1))
        """
    assert function_rules.examine(written(tmp_path, text)) == []


@pytest.mark.parametrize("place", ["beside a script", "in its package"])
def test_module_of_ones_own_is_not_the_one_of_python(place: str, tmp_path: Path) -> None:
    (tmp_path / "functools.py").write_text("def cache(function):\n    return function\n")
    dot = "." * (place == "in its package")
    text = f"from {dot}functools import cache\n@cache\ndef f():\n    return 1\n"
    path = written(tmp_path, f"{text}with Executor() as e:\n    e.submit(f)\n")
    if dot:
        (tmp_path / "__init__.py").touch()
    assert function_rules.examine(path) == []

    (tmp_path / "functools.py").unlink()
    expected = [] if dot else ["GCW102"]
    assert [found.rule for found in function_rules.examine(path)] == expected


def notebook(folder: Path, *cells: str, **parts: object) -> str:
    """Write a notebook, and return its path."""
    code = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    metadata = {"kernelspec": {"name": "python3", "language": "python"}}
    text = {"cell_type": "markdown", "source": "# $x$"}
    whole = {"nbformat": 4, "metadata": metadata, "cells": [text, *code]} | parts
    path = folder / "analysis.ipynb"
    path.write_text(json.dumps(whole))
    return str(path)


def test_notebook_is_read_like_a_script(tmp_path: Path) -> None:
    path = notebook(
        tmp_path,
        "%matplotlib inline\n!pip install \\\n  numpy\nimport numpy as np\nnp.sum?\n?np",
        "%%bash\necho 'broken (",
        f"%%time\n{SDK}files = !ls\nwith Executor() as e:\n    %time e.submit(len, '%d' %\\\n  3)",
        "\ndef f(x):\n    return np.sum(x)\n",
        "%timeit -n 3 f(1)\nawait e.submit(f, 1)",
        "%%capture out\n%%time\nx = 1",
        "  x = 1\n  if x:\n    !ls",
    )
    (found,) = function_rules.examine(path)
    assert (found.rule, found.file, found.line) == ("GCW105", f"{path}:cell 4", 2)
    assert "f uses np of this notebook" in found.text

    silenced = Path(path).read_text().replace("def f(x):", "def f(x):  # gc-warm: ignore[GCW105]")
    Path(path).write_text(silenced)
    assert function_rules.examine(path) == []


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"metadata": {"kernelspec": {"name": "ir", "language": "R"}}}, "for R, and only Python"),
        ({"metadata": {"language_info": {"name": "julia"}}}, "for julia, and only Python"),
        ({"nbformat": 3, "cells": None, "worksheets": []}, "of format 3, and 4 is read"),
        ({"cells": None}, "it is JSON without cells"),
        ({"cells": [{"cell_type": "code", "source": "x = ("}]}, r"ipynb:cell 1:1: .*never closed"),
    ],
)
def test_notebook_that_cannot_be_read_is_an_error(
    parts: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=says):
        function_rules.examine(notebook(tmp_path, "x = 1", **parts))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_broken_notebook_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"broken.ipynb: this is no notebook"):
        function_rules.examine(str(tmp_path / "broken.ipynb"))


@pytest.mark.parametrize(
    "line", ["@cache", "def load(", "        ):", "e.submit(", "            load", "        )"]
)
def test_a_comment_may_stand_in_any_line_of_the_head_or_of_the_call(
    line: str, tmp_path: Path
) -> None:
    text = """
        from functools import cache
        @cache
        def load(
            x=1,
        ):
            return x
        with Executor() as e:
            e.submit(
                load
            )
        """
    path = Path(written(tmp_path, text))
    before = path.read_text()
    assert [problem.rule for problem in function_rules.examine(str(path))] == ["GCW102"]
    marked = [
        f"{each}  # gc-warm: ignore[GCW102]" if each.strip() == line.strip() else each
        for each in before.splitlines()
    ]
    assert "\n".join(marked) != before
    path.write_text("\n".join(marked))
    assert function_rules.examine(str(path)) == []


def test_packages_are_not_imported_to_find_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "package" / "inside.py").write_text("def f(seen=[]):\n    seen.append(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [problem.rule for problem in function_rules.examine("package.inside")] == ["GCW104"]


NESTED = """
def main(e):
    n = 0
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
    def count():
        nonlocal n
        n += 1
    e.submit(fibonacci, 5)
    e.submit(count)
"""


def test_nested_function_may_call_itself_and_may_not_take_what_is_around_it(tmp_path: Path) -> None:
    (found,) = function_rules.examine(written(tmp_path, NESTED), "AllCodeStrategies")
    assert found.rule == "GCW107"
    assert "count is sent as source by AllCodeStrategies, without n" in found.text


def test_function_that_python_would_not_take_is_an_error(tmp_path: Path) -> None:
    text = "def f(x, x):\n    return x\nwith Executor() as e:\n    e.submit(f)\n"
    with pytest.raises(SourceError, match="duplicate argument"):
        function_rules.examine(written(tmp_path, text))


def test_what_a_method_stores_for_one_call_is_a_warning(tmp_path: Path) -> None:
    text = """
        class A:
            def run(self):
                self.result = 1
                return self.result
        def main(e):
            e.submit(A().run)
        """
    (found,) = function_rules.examine(written(tmp_path, text))
    assert found.level == "warning"

    kept = text.replace("self.result = 1", "self.result += 1")
    (found,) = function_rules.examine(written(tmp_path, kept))
    assert found.level == "error"


def test_many_submissions_are_read_in_a_moment(tmp_path: Path) -> None:
    calls = "def f(x):\n    return x\ndef main(e):\n" + "    e.submit(f, 1)\n" * 2000
    assert function_rules.examine(written(tmp_path, calls)) == []


def test_class_that_inherits_from_itself_in_a_circle_ends(tmp_path: Path) -> None:
    circle = "class A(B):\n    pass\nclass B(A):\n    pass\ndef main(e):\n    e.submit(A().run)\n"
    assert function_rules.examine(written(tmp_path, circle)) == []


def test_what_is_nested_too_deeply_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="too deep"):
        function_rules.examine(written(tmp_path, "x = " + "1 + " * 20000 + "1"))


def test_cached_helper_with_arguments_is_a_warning_since_it_may_be_for_one_call(
    tmp_path: Path,
) -> None:
    text = """\
        def f(xs):
            import functools
            @functools.cache
            def g(x):
                return x
            return [g(x) for x in xs]
        """
    (found,) = function_rules.examine(written(tmp_path, text))
    assert (found.rule, found.level, found.line) == ("GCW101", "warning", 5)


def test_what_is_no_python_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mine.py:4: "):
        function_rules.examine(written(tmp_path, "\n\ndef f(:\n"))
    with pytest.raises(FileNotFoundError):
        function_rules.examine(str(tmp_path / "none.py"))
    with pytest.raises(SourceError, match="the module math has no source"):
        function_rules.examine("math")


def test_functions_without_a_source_are_passed_over() -> None:
    space: dict[str, object] = {}
    exec("def f(seen=[]):\n    seen.append(1)", space)
    assert function_rules.examine_functions([space["f"]], "PureSourceDill") == []  # type: ignore[list-item]


PLAIN = "class Settings:\n    path = 'a'\n"
IDENTITY: dict[str, tuple[str, str, str]] = {
    # classes, annotation, an argument
    "a class": (PLAIN, "Settings", "Settings()"),
    "quoted": (PLAIN, "'Settings'", "Settings()"),
    "one of two": (PLAIN, "Settings | None", "Settings()"),
    "quoted, one of two": (PLAIN, "'None | Settings'", "Settings()"),
    "Optional": (f"{PLAIN}from typing import Optional\n", "Optional[Settings]", "Settings()"),
    "Union": (f"{PLAIN}import typing as t\n", "t.Union[str, 'Settings']", "Settings()"),
    "Annotated": (
        f"{PLAIN}from typing import Annotated\n",
        "Annotated[Settings, 'of a run']",
        "Settings()",
    ),
    "in a tuple": (PLAIN, "tuple[str, Settings]", "('a', Settings())"),
    "in a tuple of any length": (PLAIN, "tuple[Settings, ...]", "(Settings(),)"),
    "in a set": (PLAIN, "frozenset[Settings]", "frozenset([Settings()])"),
    "a base that adds nothing": ("class Settings(object): pass\n", "Settings", "Settings()"),
    "a generic class": (
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Settings(Generic[T]): pass\n",
        "Settings[int]",
        "Settings()",
    ),
    "a loader that hands it on": (
        f"{PLAIN}@warm\ndef other(settings: Settings):  # gc-warm: ignore[GCW109]\n"
        "    return make(settings)\ndef make(settings: Settings):\n    return 1\n",
        "Settings",
        "Settings()",
    ),
    "a hash alone": (
        "class Settings:\n    def __hash__(self): return 1\n",
        "Settings",
        "Settings()",
    ),
    "a dataclass without comparison": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True, eq=False)\n"
        "class Settings:\n    path: str = 'a'\n",
        "Settings",
        "Settings()",
    ),
    "a class of another module": ("from others import Settings\n", "Settings", "Settings()"),
    "an attribute of another module": ("import others\n", "others.Settings", "others.Settings()"),
    "a class that a package passes on": ("import passing\n", "passing.Plain", "passing.Plain()"),
    "a partial": (
        "import functools\n",
        "functools.partial",
        "__import__('functools').partial(pow, 2)",
    ),
}
"""Annotations by which an argument compares by identity."""

BY_VALUE: dict[str, tuple[str, str, str]] = {
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Settings: pass\n",
        "Settings",
        "Settings()",
    ),
    "a dataclass that says eq=True": (
        "from dataclasses import dataclass\n@dataclass(frozen=True, eq=True)\n"
        "class Settings: pass\n",
        "Settings",
        "Settings()",
    ),
    "an enumeration": (
        "import enum\nclass Settings(enum.Enum):\n    A = 1\n",
        "Settings",
        "Settings.A",
    ),
    "a named tuple": (
        "from typing import NamedTuple\nclass Settings(NamedTuple):\n    a: int = 1\n",
        "Settings",
        "Settings()",
    ),
    "a model of pydantic": (
        "import pydantic\nclass Settings(pydantic.BaseModel, frozen=True):\n    a: int = 1\n",
        "Settings",
        "Settings()",
    ),
    "its own comparison": (
        "class Settings:\n    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 1\n",
        "Settings",
        "Settings()",
    ),
    "a comparison that is set later": (
        f"{PLAIN}Settings.__eq__ = lambda self, other: True\nSettings.__hash__ = lambda self: 1\n",
        "Settings",
        "Settings()",
    ),
    "a class decorator": (
        "def value(kind):\n    kind.__eq__ = lambda self, other: True\n"
        "    kind.__hash__ = lambda self: 1\n    return kind\n"
        "@value\nclass Settings: pass\n",
        "Settings",
        "Settings()",
    ),
    "one instance for all": (
        "class Settings:\n    def __reduce__(self): return 'settings'\nsettings = Settings()\n",
        "Settings",
        "settings",
    ),
    "an instance that the module keeps": (
        f"{PLAIN}settings = Settings()\n",
        "Settings",
        "KEPT settings",
    ),
    "an instance that a function keeps": (
        f"{PLAIN}def settings():\n    global _settings\n"
        "    if '_settings' not in globals():\n        _settings = Settings()\n"
        "    return _settings\n",
        "Settings",
        "KEPT settings()",
    ),
    "state that a loader returns": (
        f"{PLAIN}@warm\ndef tokenizer() -> Settings:\n    return Settings()\n",
        "Settings",
        "KEPT tokenizer()",
    ),
    "state of a loader that yields": (
        f"{PLAIN}@warm\ndef tokenizer() -> 'Iterator[Settings]':\n    yield Settings()\n",
        "Settings",
        "KEPT tokenizer()",
    ),
    "state of a loader without annotation": (
        f"{PLAIN}@warm\ndef tokenizer():\n    return Settings()\n",
        "Settings",
        "KEPT tokenizer()",
    ),
    "state that a loader has made elsewhere": (
        f"{PLAIN}def make():\n    return Settings()\n@warm\ndef tokenizer():\n    return make()\n",
        "Settings",
        "KEPT tokenizer()",
    ),
    "an instance that is kept under another name": (
        "from others import Settings as S\nkept = S()\n",
        "S",
        "KEPT kept",
    ),
    "a subclass": (
        f"{PLAIN}class Own(Settings):\n    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 1\n",
        "Settings",
        "Own()",
    ),
    "the class itself": (PLAIN, "type[Settings]", "Settings"),
    "a function": (
        "from collections.abc import Callable\n",
        "Callable[[int], int]",
        "__import__('math').sqrt",
    ),
    "a class of Python": ("from pathlib import Path\n", "Path", "Path('a')"),
    "a type variable": ("from typing import TypeVar\nT = TypeVar('T')\n", "T", "'a'"),
    "an annotation that is no Python": ("", "'1 +'", "1"),
    "an unknown name": ("", "'Nobody'", "1"),
    "a class that is not always this one": (
        "try:\n    from others import Valued as Settings\nexcept ImportError:\n"
        "    class Settings: pass\n",
        "Settings",
        "Settings()",
    ),
    "a class that another module compares": (
        "from others import Valued\n",
        "Valued",
        "Valued()",
    ),
}
"""Annotations by which a later task may find the state."""

OTHERS = f"""
{PLAIN}
class Valued:
    def __eq__(self, other): return True
    def __hash__(self): return 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that can be imported from, with a module and a package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "others.py").write_text(OTHERS)
    (tmp_path / "passing").mkdir()
    (tmp_path / "passing" / "__init__.py").write_text("from .inner.plain import Plain\n")
    (tmp_path / "passing" / "inner").mkdir()
    (tmp_path / "passing" / "inner" / "__init__.py").write_text("from . import plain\n")
    (tmp_path / "passing" / "inner" / "plain.py").write_text("class Plain: pass\n")

    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        home = getattr(sys.modules[name], "__file__", None) or ""
        if home.startswith(str(tmp_path)):
            del sys.modules[name]


def loader_of(folder: Path, classes: str, annotation: str, options: str = "") -> Path:
    path = folder / "mine.py"
    path.write_text(
        f"from gc_warm import warm\n{classes}"
        f"@warm{options}\ndef model(settings: {annotation}):\n    return [1]\n"
    )
    return path


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


def brought(module: ModuleType, argument: str) -> object:
    """Return an argument as a task brings it, or as it finds it there if it is said to be kept."""
    value = eval(argument.removeprefix("KEPT "), vars(module))
    return value if argument.startswith("KEPT ") else pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("form", IDENTITY)
def test_identity_is_found_where_workers_refuse_it(form: str, folder: Path) -> None:
    classes, annotation, argument = IDENTITY[form]
    path = loader_of(folder, classes, annotation)
    (found,) = function_rules.examine(str(path))
    level = "warning" if form == "a partial" else "error"
    assert (found.rule, found.level) == ("GCW109", level)

    module = imported("mine")
    with pytest.raises(TypeError, match=r"argument settings=.* compares by identity"):
        module.model(brought(module, argument))


def test_nothing_is_found_of_an_object_as_default(folder: Path) -> None:
    path = loader_of(folder, PLAIN, "Settings = Settings()")
    assert function_rules.examine(str(path)) == []

    model = imported("mine").model
    assert model() is model()


@pytest.mark.parametrize("form", BY_VALUE)
def test_nothing_is_found_where_workers_find_the_state(form: str, folder: Path) -> None:
    classes, annotation, argument = BY_VALUE[form]
    path = loader_of(folder, classes, annotation)
    assert function_rules.examine(str(path)) == []

    module = imported("mine")
    for _ in range(2):
        module.model(brought(module, argument))
    assert module.model.info().loads == 1


@pytest.mark.parametrize(
    ("options", "is_found"),
    [
        ("()", True),
        ("(maxsize=1)", True),
        ("(key=None)", True),
        ("(key=lambda settings: settings.path)", False),
        ("(**options)", False),
    ],
)
def test_own_key_is_taken_as_it_is(options: str, is_found: bool, folder: Path) -> None:
    own = "options = {'key': lambda settings: settings.path}\n"
    path = loader_of(folder, PLAIN + own, "Settings", options)
    assert bool(function_rules.examine(str(path))) == is_found

    model: Warm[..., object] = imported("mine").model
    settings = pickle.loads(pickle.dumps(imported("mine").Settings()))
    if is_found:
        with pytest.raises(TypeError, match="compares by identity"):
            model(settings)
    else:
        model(settings)


@pytest.mark.parametrize("decorator", ["gc_warm.warm", "w(maxsize=2)", "state.warm"])
def test_decorator_is_known_by_other_names(decorator: str, tmp_path: Path) -> None:
    text = f"""
        import gc_warm
        from gc_warm import warm as w
        from gc_warm.worker import state
        {textwrap.indent(PLAIN, " " * 8).strip()}
        @{decorator}
        def model(*, settings: Settings, other: int = 1, **more: Settings):
            return 1
        """
    (found,) = function_rules.examine(written(tmp_path, text))
    assert "model takes settings (Settings), more (Settings), by identity" in found.text


@pytest.mark.parametrize(
    "body",
    [
        "from mine import model\n    return model(x)",
        "import mine\n    with mine.model.lease(x) as it:\n        return it",
        "from passing_on import model as m\n    return m.load(x)",
    ],
)
def test_loaders_that_sent_functions_call_are_read(body: str, folder: Path) -> None:
    mine = loader_of(folder, PLAIN, "Settings")
    (folder / "passing_on.py").write_text("from mine import model\n")
    sent = f"{SDK}def predict(x):\n    {body}\n"
    script = folder / "script.py"
    script.write_text(f"{sent}with Executor() as e:\n    e.submit(predict, 1)\n")
    functions = folder / "functions_of_mine.py"
    functions.write_text(sent)

    (of_script,) = function_rules.examine(str(script))
    assert (of_script.rule, of_script.file, of_script.line) == ("GCW109", str(mine), 5)
    assert function_rules.examine("functions_of_mine") == [of_script]
    predict = imported("functions_of_mine").predict
    assert function_rules.examine_functions([predict]) == [of_script]

    text = mine.read_text().replace("@warm", "@warm  # gc-warm: ignore[GCW109]")
    mine.write_text(text)
    assert function_rules.examine(str(script)) == []


def test_imported_functions_that_are_sent_are_read(folder: Path) -> None:
    helpers = folder / "helpers.py"
    helpers.write_text(
        "import functools, math\n@functools.cache\ndef load():\n    return [1]\n"
        "def root(x):\n    return math.sqrt(x)\nasync def later():\n    return 1\n"
    )
    script = folder / "script.py"
    script.write_text(
        f"{SDK}import helpers\nfrom helpers import root\nwith Executor() as e:\n"
        "    e.submit(helpers.load)\n    e.submit(root, 1)\n    e.submit(helpers.later)\n"
    )
    found = function_rules.examine(str(script))
    assert [(each.rule, each.file) for each in found] == [
        ("GCW102", str(helpers)),
        ("GCW111", str(helpers)),
    ]
    as_source = function_rules.examine(str(script), "AllCodeStrategies")
    assert "GCW108" in {each.rule for each in as_source}

    silenced = script.read_text().replace(
        "(helpers.load)", "(helpers.load)  # gc-warm: ignore[GCW102]"
    )
    script.write_text(silenced)
    assert [each.rule for each in function_rules.examine(str(script))] == ["GCW111"]


def test_loader_that_is_called_beside_it_is_found_once(folder: Path) -> None:
    path = loader_of(folder, PLAIN, "Settings")
    with path.open("a") as file:
        file.write("def predict(x):\n    from mine import model\n    return model(x)\n")
    assert [found.line for found in function_rules.examine(str(path))] == [5]
    assert [found.line for found in function_rules.examine("mine")] == [5]


def test_imports_that_lead_nowhere_are_passed_over(folder: Path) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "around.py").write_text("from round_again import Settings\n")
    (folder / "round_again.py").write_text("from around import Settings\n")
    path = folder / "mine.py"
    path.write_text(
        "from gc_warm import warm\nimport broken, around, nowhere\n"
        f"from {'.' * 99}above import Above\nfrom .beside import Beside\nfrom . import sub\n"
        "@warm\ndef model(a: broken.A, b: around.Settings, c: nowhere.C, d: Above, e: Beside,\n"
        "          f: sub.F, g: broken, h: 'around.Settings[1].x'):\n    return 1\n"
    )
    assert function_rules.examine(str(path)) == []
