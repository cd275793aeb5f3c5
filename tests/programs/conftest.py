"""Fixtures that make tests of programs independent of how busy the machine is, and a PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gc_warm.programs import pipe, process
from tests.support import Clock, wait_until


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


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A PostgreSQL that psql finds, if there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        yield
        return

    # Where a socket's path is short enough, and that user can enter
    folder = Path(tempfile.mkdtemp(prefix="gc_warm-postgres-", dir="/tmp"))
    become: list[str | Path] = []
    if os.getuid() == 0:
        become = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data = folder / "data"
    options = ["-D", str(data), "-U", "tester", "-A", "trust"]
    subprocess.run([*become, found[-1], *options], check=True, capture_output=True, cwd="/")
    server = found[-1].with_name("postgres")
    command = [*become, server, "-D", data, "-k", folder, "-h", ""]
    environment = {"PGHOST": str(folder), "PGUSER": "tester", "PGDATABASE": "postgres"}
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL) as postgres,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        wait_until((folder / ".s.PGSQL.5432").exists, "it listens")
        try:
            yield
        finally:
            postgres.terminate()
    shutil.rmtree(folder)
