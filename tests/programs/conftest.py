"""Fixtures that make tests of programs independent of how busy the machine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gc_warm.programs import pipe, process
from tests.support import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all deadlines of programs."""
    clock = Clock()
    monkeypatch.setattr(pipe, "time", clock)
    monkeypatch.setattr(process, "time", clock)
    return clock


@pytest.fixture
def patient_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give programs two minutes to obey, in place of parts of a second.

    So a busy machine cuts none short that is about to obey.
    """
    text = Path(process._SUPERVISOR).read_text()
    for stock in ("_END_OF_FILE_GRACE = 0.5", "_SIGNAL_GRACE = 0.25"):
        assert stock in text
        text = text.replace(stock, f"{stock.split()[0]} = 120.0")
    patient = tmp_path / "patient_supervisor.py"
    patient.write_text(text)
    monkeypatch.setattr(process, "_SUPERVISOR", str(patient))


@pytest.fixture(autouse=True)
def time_for_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait two minutes for the exit status of a program whose output has ended.

    After the usual half a second, a program is said to have closed its output, though on a busy
    machine it may have ended.
    """
    monkeypatch.setattr(pipe, "_LAST_WORDS", 120.0)
