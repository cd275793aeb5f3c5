"""What is there when a machine has no room, no descriptors, or no folder for temporary files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tasks

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.client.report import Report
from tests.testing.backends import engine_config

GC_WARM = Path(sys.executable).with_name("gc-warm")
BOOT = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot preloaded:table)"'


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that holds thirty megabytes, with a short name."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")

    folder = Path(tempfile.mkdtemp(prefix="d"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], check=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.engine
def test_tasks_end_on_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine's folder is on it, and so are the logs of workers and the file of records."""
    records = small_disk / "calls.jsonl"
    filler = small_disk / "filler"

    with WarmExecutor(MockExecutor(config=engine_config(2, BOOT)), records=records) as executor:
        assert executor.submit(tasks.rank).result(120) in (0, 1)
        with pytest.raises(OSError, match="No space"):
            fill(filler)

        futures = [executor.submit(tasks.rank) for _ in range(20)]
        assert {future.result(120) for future in futures} <= {0, 1}
        filler.unlink()
        assert executor.submit(tasks.rank).result(120) in (0, 1)

    assert caplog.text.count(f"no more records are written to {records}") == 1
    *whole, last = records.read_text().split("\n")
    assert all(json.loads(line)["warmth"] for line in whole)
    assert Report.read(records).calls == len(whole), f"not {last!r}"


@pytest.mark.engine
@pytest.mark.parametrize("limit", [8, 12, 16, 24, 40])
@pytest.mark.parametrize(
    "command", [["check", "local", "-o", "keep_warm=2"], ["configure", "a", "local", "--dry-run"]]
)
def test_few_descriptors_are_enough_or_an_error_in_a_line(
    command: list[str], limit: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(tmp_path / "endpoints")}
    run = subprocess.run(
        ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", str(GC_WARM), *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in run.stderr
    assert run.returncode == 0 or len(run.stderr.splitlines()) == 1, run.stderr


@pytest.mark.engine
@pytest.mark.parametrize("variable", ["TMPDIR", "HOME"])
@pytest.mark.parametrize("kind", ["missing", "not writable"])
def test_a_demo_does_without_a_folder(variable: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "missing" if kind == "missing" else Path("/proc")
    run = subprocess.run(
        [GC_WARM, "demo"],
        capture_output=True,
        text=True,
        env={**os.environ, variable: str(folder)},
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "warm" in run.stdout
