"""The reproductions for upstream of what hooks mend, on this very Parsl.

When one of these tests fails, the fault has been mended there. That of an idle worker that is
killed is beside the test of the hook, and that of a suspended manager in the journeys.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import parsl
import pytest

UPSTREAM = Path(__file__).parents[1] / "upstream"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("draining_block", "a quick task has not begun"),
        ("early_capacity", "beside 4 idle workers, a quick task took "),
        ("tasks_and_state", "on 2 nodes needed "),
    ],
)
def test_stock_parsl_has_the_fault(name: str, said: str) -> None:
    # where a manager that is told to end leaves something
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = subprocess.run(
            [sys.executable, UPSTREAM / f"{name}.py"],
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout
    assert f"Python {platform.python_version()}, Parsl {parsl.__version__}: " in run.stdout
    assert said in run.stdout
