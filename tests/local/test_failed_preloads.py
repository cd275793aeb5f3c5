"""What is told of preloads that failed on an engine's workers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import tasks

from gc_warm import MockExecutor
from gc_warm.local.failed_preloads import FailedPreloads
from tests.testing.backends import engine_config

START = "1795984982.47 2026-11-29 20:43:02 HTEX-Worker-0-9451 MainThread-1"
FAILED = f"""{START} parsl:662 worker INFO: Worker 0 started
{START} gc_warm:306 _load INFO: preloaded os:getcwd in 0.00 s
{START} gc_warm:300 _load ERROR: preload of model:load failed after 0.25 s: this worker starts cold
Traceback (most recent call last):
  File "model.py", line 2, in load
ModuleNotFoundError: No module named 'parts'
"""
DIED = f"""{START} gc_warm:270 _preload ERROR: the worker before this one died in its preload of m
"""


def test_each_failure_is_told_once(tmp_path: Path) -> None:
    failed = FailedPreloads(tmp_path)
    assert failed.news() == []

    for rank in range(2):
        (tmp_path / f"worker_{rank}.log").write_text(FAILED)
    (tmp_path / "block-0").mkdir()
    (tmp_path / "block-0" / "worker_0.log").write_text(DIED)
    assert failed.news() == [
        "the worker before this one died in its preload of m",
        "preload of model:load failed: this worker starts cold "
        "(ModuleNotFoundError: No module named 'parts')",
    ]
    assert failed.news() == []


@pytest.mark.engine
def test_executor_tells_of_a_failed_preload(caplog: pytest.LogCaptureFixture) -> None:
    boot = f"{shlex.quote(sys.executable)} -m gc_warm.worker.boot no_such_module:load"
    with MockExecutor(config=engine_config(1, f'eval "$({boot})"')) as executor:
        assert executor.submit(tasks.same, 1).result(120) == 1
    assert "preload of no_such_module:load failed: this worker starts cold (Module" in caplog.text
