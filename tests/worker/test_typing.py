"""The types that users see, checked by mypy on files full of ``assert_type``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check_types(file: Path) -> list[str]:
    """What mypy says about *file*, line by line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize("file", ["worker/typing_warm.py", "client/typing_executor.py"])
def test_types(file: str) -> None:
    assert check_types(ROOT / "tests" / file) == ["Success: no issues found in 1 source file"]


def test_a_wrong_type_is_found(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "from typing_extensions import assert_type\n"
        "from tests.worker.typing_warm import connection, table\n"
        "assert_type(table, object)\n"
        "connection('a')  # type: ignore[arg-type]\n"
    )
    first, second, _ = check_types(file)
    assert 'wrong.py:3: error: Expression is of type "Warm[' in first
    assert 'wrong.py:4: error: Unused "type: ignore" comment' in second
