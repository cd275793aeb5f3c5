"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import client_environment

CLEARED = """
import pytest
from gc_warm import warm
from gc_warm.worker import ledger

torn_down = []

@warm
def table(size):
    yield [0] * size
    torn_down.append(size)

def test_state_is_left_behind():
    table(1)

def test_state_of_others_is_gone(clear_warm_state):
    assert torn_down == [1]
    assert table.info().size == 0
    table(2)
    assert table.info().size == 1

def test_own_state_is_gone():
    assert torn_down == [1, 2]
    assert ledger.loaded() == ()

@pytest.mark.xfail(strict=True)
def test_that_fails(clear_warm_state):
    table(3)
    raise RuntimeError

def test_state_of_one_that_failed_is_gone():
    assert torn_down == [1, 2, 3]

def test_leased_state(clear_warm_state):
    lease = table.lease(4)
    lease.__enter__()
    globals()["lease"] = lease

def test_leased_state_is_torn_down_at_its_end():
    assert torn_down == [1, 2, 3]
    lease.__exit__(None, None, None)
    assert torn_down == [1, 2, 3, 4]
"""

NOT_IMPORTED = """
import sys
import pytest

pytestmark = pytest.mark.usefixtures("clear_warm_state")

def test_nothing_is_imported_for_it():
    assert "gc_warm.worker.state" not in sys.modules

def test_state_that_is_imported_in_a_test():
    from gc_warm import warm
    table = warm(lambda: [1])
    table()
    globals()["table"] = table

def test_it_is_gone():
    assert table.info().size == 0
"""


@pytest.mark.parametrize(
    ("text", "passed"), [(CLEARED, "6 passed, 1 xfailed"), (NOT_IMPORTED, "3 passed")]
)
def test_warm_state_is_cleared_around_a_test(text: str, passed: str, tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sample.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=client_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed in done.stdout
