"""The rules for functions: as right as the persistence table, and silent on what is as it should be."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from types import FunctionType

import pytest
import shapes

import gc_warm
from gc_warm.check import functions
from gc_warm.check.functions import SourceError
from gc_warm.check.rules import Problem
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
]


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(SDK + textwrap.dedent(text))
    return str(folder / name)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{rule}-{strategy}" for rule, strategy, *_ in CASES])
def test_each_rule_finds_its_miniature_and_is_content_with_the_warm_one(number: int, tmp_path: Path) -> None:
    rule, strategy, bad, warm, says = CASES[number]
    path = written(tmp_path, bad)
    found = [problem for problem in functions.examine(path, strategy) if problem.rule == rule]
    assert [(problem.level, problem.file) for problem in found] == [("error", path)]
    assert says in found[0].text
    assert functions.examine(written(tmp_path, warm), strategy) == []
    written(tmp_path, bad)
    lines = Path(path).read_text().splitlines()
    lines[found[0].line - 1] += f"  # gc-warm: ignore[{rule}]"
    Path(path).write_text("\n".join(lines))
    assert [problem for problem in functions.examine(path, strategy) if problem.rule == rule] == []


def test_every_rule_has_a_miniature() -> None:
    assert {rule for rule, *_ in CASES} == set(functions.RULES)


SUBMITTED = {  # what is not a function, as a client would write it
    "bound method": "Counter().increase",
    "callable instance with a __name__": "NamedCounter()",
    "lru_cache function itself": "lru_cached",
    "@warm function itself": "warm_itself",
    "decorator class with __reduce__": "decorated_by_reference",
}
RUNS = [1, 1, 1]
FINE = {"@warm function itself": RUNS} | {row: RUNS for row in TABLE if row.startswith("client-only") and "self-contained" in row}
"""What a row shows when all is well, where that is not three warm calls."""
NOT_WRITTEN = {"client-only function, self-contained", "client-only function with a global"}
"""Whether workers can import a module is not in its source."""


def said_of(row: str, strategy: str, folder: Path) -> list[Problem]:
    if row in SUBMITTED:
        path = folder / "submits.py"
        path.write_text(f"{inspect.getsource(shapes)}\n{SDK}__all__ = []\ndef main(executor):\n    executor.submit({SUBMITTED[row]})\n")
        return functions.examine(str(path), strategy)
    function = persistence_client.callables()[row]
    if row.startswith("__main__"):
        path = folder / "script.py"
        shape = inspect.getsource(function)
        path.write_text(f"{SDK}\ncount = 0\n{shape}\nwith Executor() as executor:\n    executor.submit({function.__name__})\n")
        return functions.examine(str(path), strategy)
    assert isinstance(function, FunctionType)
    return functions.examine_functions([function], strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("row", [row for row in TABLE if row != "callable instance"])  # which the SDK itself refuses
def test_what_is_said_is_what_the_persistence_table_has_measured(
    row: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(persistence_client.__file__).parent))  # as it is for that script
    measured = TABLE[row][STRATEGIES.index(strategy)]
    levels = {problem.level for problem in said_of(row, strategy, tmp_path)}
    is_whole = strategy == "DillCode" or ("lambda" in row and strategy == "AllCodeStrategies")
    if is_whole and row.startswith("client-only"):
        assert levels == (set() if row in NOT_WRITTEN else {"warning"}), "it fails where workers lack the module"
    else:
        is_fine = measured == FINE.get(row, WARM) and row != "lru_cache function itself"  # which counts its loads
        assert ("error" in levels) != is_fine, measured


@pytest.mark.parametrize("strategy", ["DillCode", "AllCodeStrategies", "CombinedCode", "PureSourceDill"])
def test_own_functions_break_no_rule(strategy: str) -> None:
    assert functions.examine("gc_warm.functions", strategy) == []
    for path in sorted((Path(gc_warm.__file__).parent / "warmables").glob("*.py")):
        assert functions.examine(str(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from concurrent.futures import ThreadPoolExecutor as P\nN = 1\ndef f():\n    return N\nwith P() as pool:\n    pool.submit(f)\n",
        "N = 1\ndef f():\n    return [N for N in range(3)] + [len('a')]\nwith Executor() as e:\n    e.submit(f)\n",
        "from my_model import energy\nwith Executor() as e:\n    e.submit(energy, 1)\n    e.submit(unknown.thing)\n    e.submit()\n",
        "from globus_compute_sdk import ShellFunction\nwith Executor() as e:\n    e.submit(ShellFunction('date'))\n",
        "def f(seen=None, names=()):\n    seen = seen or []\n    seen.append(1)\n    return seen\n",
        "def f(options={}):\n    return options.get('a')\n",
        "import functools\n@functools.cache\ndef model():\n    return 1\ndef f():\n    return model()\n",
        "class Model:\n    def run(self):\n        return 1\ndef main(e):\n    e.submit(Model().run)\n",
        "__all__ = ['f']\ndef g(seen=[]):\n    seen.append(1)\ndef f():\n    return 1\n",
        "",
    ],
)
def test_nothing_is_said_of_what_is_as_it_should_be(text: str, tmp_path: Path) -> None:
    assert functions.examine(written(tmp_path, text)) == []


def test_cached_helper_with_arguments_is_a_warning_since_it_may_be_for_one_call(tmp_path: Path) -> None:
    text = "def f(xs):\n    import functools\n    @functools.cache\n    def g(x):\n        return x\n    return [g(x) for x in xs]\n"
    (found,) = functions.examine(written(tmp_path, text))
    assert (found.rule, found.level, found.line) == ("GCW101", "warning", 5)


def test_what_is_no_python_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mine.py:4: "):
        functions.examine(written(tmp_path, "\n\ndef f(:\n"))
    with pytest.raises(FileNotFoundError):
        functions.examine(str(tmp_path / "none.py"))
    with pytest.raises(SourceError, match="the module math has no source"):
        functions.examine("math")


def test_functions_without_a_source_are_passed_over() -> None:
    space: dict[str, object] = {}
    exec("def f(seen=[]):\n    seen.append(1)", space)
    assert functions.examine_functions([space["f"]], "PureSourceDill") == []  # type: ignore[list-item]
