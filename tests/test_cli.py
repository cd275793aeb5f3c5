"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gc_warm import cli, demo

GC_WARM = [sys.executable, "-m", "gc_warm.cli"]


def shown(arguments: list[str], tmp_path: Path) -> dict[str, Any]:
    """What the demo prints with --json, run in an empty directory that stays empty."""
    done = subprocess.run([*GC_WARM, "demo", "--json", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    parts: dict[str, Any] = json.loads(done.stdout)
    return parts


def check(report: dict[str, Any], workers: int) -> None:
    counted, tabulated, killed, fresh = report["parts"]
    assert report["right"]
    assert all(row["right"] for part in report["parts"] for row in part["rows"])
    assert (
        len({row["worker"] for row in tabulated["rows"] if not row["warm"]}) == sum(not row["warm"] for row in tabulated["rows"]) <= workers
    )
    assert tabulated["ratio"] > 100
    assert [row["warm"] for row in counted["rows"]].count(False) <= workers
    assert [row["warm"] for row in killed["rows"]].count(False) == 1
    assert "WorkerLost" in killed["note"]
    assert [row["warm"] for row in fresh["rows"]] == [False] * 2
    energies = [row["result"] for part in (tabulated, killed, fresh) for row in part["rows"]]
    assert energies == [pytest.approx(-44.326801, abs=2e-6)] * len(energies)


def test_demo(tmp_path: Path) -> None:
    check(shown(["--workers", "2"], tmp_path), 2)


@pytest.mark.engine
def test_demo_on_the_engine(tmp_path: Path) -> None:
    check(shown(["--workers", "2", "--engine"], tmp_path), 2)


def test_demo_without_terminal_is_plain_text_and_tells_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LJ13_ENERGY", -44.0)
    result = CliRunner().invoke(cli.main, ["demo", "--workers", "1"])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert result.stdout.isascii()
    assert "-44.326801 !" in result.stdout
    assert "marked with !" in result.stderr


def test_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([*GC_WARM, "demo"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
    with process:
        assert process.stdout is not None
        assert "counter" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert complaint.strip() == "Aborted!"


def test_help_and_bad_options() -> None:
    runner = CliRunner()
    assert "cold to warm" in runner.invoke(cli.main, ["demo", "-h"]).stdout
    refused = runner.invoke(cli.main, ["demo", "--workers", "0"])
    assert refused.exit_code == 2
    assert "0 is not in the range 1<=x<=64" in refused.stderr
