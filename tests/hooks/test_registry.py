"""Hooks are done where they are asked for, with a Parsl that they were tested with, and only there.

When a new Parsl comes out, the engine's tests of this folder are run with it; then it is added to
`TESTED_PARSL`, and what ``tests/fingerprints.py`` prints for it to `FINGERPRINTS`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gc_warm.hooks import STARTUP, helper_watch, installing, registry, switch, versions
from tests.support import change_parsl

VERSION = importlib.metadata.version("parsl")
HELPER_WATCH = registry.hook("helper_watch")

FIRST_LINE = "gc_warm: helper_watch is not done in this manager, which is as it is without it: "


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two hooks of a manager, the first of which fails; the second notes that it was called."""
    called: list[str] = []

    def fail() -> None:
        raise LookupError("no such class")

    backoff = importlib.import_module("gc_warm.hooks.backoff")
    monkeypatch.setattr(helper_watch, "install", fail)
    monkeypatch.setattr(backoff, "install", lambda: called.append("second"))
    first = registry.Hook("helper_watch", "manager", "helper_watch")
    second = registry.Hook("backoff", "manager", "backoff")
    monkeypatch.setattr(registry, "HOOKS", (first, second))
    return called


def test_hook_that_fails_leaves_others(
    hooks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    installing.install("manager")
    assert hooks == ["second"]
    assert capsys.readouterr().err == f"{FIRST_LINE}LookupError: no such class\n"


def test_untested_parsl_is_left_alone(
    hooks: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = ("2026.7.28", "2026.8.11")
    untested = registry.Hook("helper_watch", "manager", "helper_watch", tested=tested)
    monkeypatch.setattr(registry, "HOOKS", (untested,))
    installing.install("manager")
    reason = f"it was tested with Parsl 2026.7.28, 2026.8.11, and this is {VERSION}"
    assert capsys.readouterr().err == f"{FIRST_LINE}{reason}\n"


def test_hooks_that_are_off_are_not_called(
    hooks: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(switch.DISABLE, "all")
    installing.install("manager")
    assert (hooks, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize("hook", registry.HOOKS, ids=lambda hook: hook.name)
def test_functions_of_tested_versions_are_known(hook: registry.Hook) -> None:
    assert set(hook.functions) <= versions.FINGERPRINTS.keys()
    if hook.tested is None or VERSION in hook.tested:
        assert hook.why_not() == ""
    if hook.module:
        assert callable(importlib.import_module(f"gc_warm.hooks.{hook.module}").install)


def test_functions_that_are_not_there_have_no_fingerprint() -> None:
    for name in ("parsl.dataflow.dflow:Nothing", "parsl.nothing:f", "no_such_package:f", "parsl:f"):
        assert versions.fingerprint(name) == ""


@pytest.mark.skipif(bool(HELPER_WATCH.why_not()), reason="hooks leave this Parsl alone anyway")
def test_changed_parsl_is_left_alone(tmp_path: Path) -> None:
    """A site has patched the manager; the version says nothing of it."""
    change_parsl(tmp_path)
    path = os.pathsep.join([STARTUP, str(tmp_path)])
    run = subprocess.run(
        [sys.executable, "-m", "parsl.executors.high_throughput.process_worker_pool", "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (changed,) = run.stderr.splitlines()
    assert changed == (
        f"{FIRST_LINE}this Parsl {VERSION} was changed by somebody, in "
        "parsl.executors.high_throughput.process_worker_pool:Manager.worker_watchdog"
    )
