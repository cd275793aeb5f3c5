"""State that is still there for the next task: the same table on every backend.

The cold and the failing cells are included. And the same through a `WarmExecutor`, whose results
and errors are those of the executor inside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import MODULES
from tests.testing.backends import BACKENDS

WARM = [1, 2, 3]
COLD = [1, 1, 1]
LOADED_ONCE, LOADED_EACH_TIME = COLD, WARM  # for those that count their own loads
RUNS = [1, 1, 1]  # it has no state to keep

NAME = "worker: NameError"  # source code has nothing of its module around it
IMPORT = "worker: ModuleNotFoundError"
INDENT = "worker: IndentationError"  # PureSourceTextInspect sends indented source as it stands
ARGUMENT = "worker: TypeError"  # the source of a method has lost its instance
UNNAMED = "worker: KeyError"  # the source that was sent does not define that name
UNSENT = "client: SerializationError"  # refused when it is registered

STRATEGIES = ("DillCode", "AllCodeStrategies", "PureSourceTextInspect", "PureSourceDill")
TABLE: dict[str, tuple[Any, Any, Any, Any]] = {
    "import in the body": (WARM, WARM, WARM, WARM),
    "import of a @warm function in the body": (WARM, WARM, WARM, WARM),
    "gc_warm.functions.count": (WARM, WARM, WARM, WARM),
    "module function with a global": (WARM, NAME, NAME, NAME),
    "module function wrapped by a closure": (WARM, WARM, NAME, NAME),
    "decorator class with __reduce__": (WARM, WARM, UNSENT, UNNAMED),
    "@warm function itself": (LOADED_ONCE, LOADED_ONCE, UNSENT, UNSENT),
    "lru_cache function itself": (LOADED_EACH_TIME, LOADED_EACH_TIME, NAME, UNSENT),
    "module function that calls an lru_cache loader": (WARM, NAME, NAME, NAME),
    "bound method": (COLD, ARGUMENT, INDENT, ARGUMENT),
    "callable instance": ("client: AttributeError",) * 4,  # the SDK registers what has a __name__
    "callable instance with a __name__": (COLD, COLD, UNSENT, UNNAMED),
    "helper nested in the function": (COLD, COLD, COLD, COLD),
    "function attribute": (WARM, COLD, COLD, COLD),
    "mutable default": (WARM, COLD, COLD, COLD),
    "__main__ function with a global": (NAME, NAME, NAME, NAME),
    "__main__ function with globals()": (WARM, COLD, COLD, COLD),
    "client-only function, self-contained": (IMPORT, RUNS, RUNS, RUNS),
    "client-only function with a global": (IMPORT, NAME, NAME, NAME),
    "client-only closure, self-contained": (IMPORT, RUNS, INDENT, RUNS),
    "client-only closure": (IMPORT, NAME, INDENT, NAME),
    "client-only lambda, self-contained": (
        IMPORT,
        "worker: DeserializationError",
        UNNAMED,
        UNNAMED,
    ),
}


@pytest.fixture(scope="module", params=BACKENDS)
def both(request: pytest.FixtureRequest) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what a client's script saw in each way, for each callable and each strategy."""
    script = Path(__file__).with_name("persistence_client.py")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(MODULES)])
    run = subprocess.run(
        [sys.executable, script, request.param],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    seen: dict[str, dict[str, dict[str, Any]]] = json.loads(run.stdout)
    return seen


@pytest.fixture(params=["itself", "recorded"])
def observed(
    both: dict[str, dict[str, dict[str, Any]]], request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    return both[request.param]


@pytest.mark.parametrize("row", TABLE)
def test_three_calls(observed: dict[str, dict[str, Any]], row: str) -> None:
    assert observed[row] == dict(zip(STRATEGIES, TABLE[row], strict=True))


def test_no_row_is_missing(observed: dict[str, dict[str, Any]]) -> None:
    assert observed.keys() == TABLE.keys()
