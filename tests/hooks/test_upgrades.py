"""The package replaced, and removed, under a block: those that replace a dead worker work."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import preloaded
import programs
import pytest
import servers
import tasks
import upgraded

import gc_warm
from gc_warm import MockExecutor, hooks
from gc_warm.hooks import boot
from tests.hooks.test_boot import LINE, engine, logs, output, python
from tests.support import carriers, programs_end_with, remote_text, wait_until

PACKAGE = Path(gc_warm.__file__).parent


def copy(folder: Path, **changes: str) -> Path:
    """Make a copy of the package in *folder*: a version whose words are others, if any."""
    package = folder / "gc_warm"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.rglob("*.py"):
        text = path.read_text()
        for name, value in changes.items():
            text = re.sub(name, value, text)
        path.write_text(text)
    return package


def former(folder: Path) -> Path:
    """Make an older version, which can do what this cannot."""
    gpus = {"GC_WARM_AMD_GPUS": "GC_WARM_OLD_GPUS"}
    return copy(folder, **gpus, **{re.escape(f'"{gc_warm.__version__}"'): '"0.0.1"'})


def replace(package: Path, other: Path) -> None:
    package.rename(package.with_name("replaced"))
    other.rename(package)


def lines(executor: MockExecutor) -> list[str]:
    """What the block has said of us."""
    return [line for line in output(executor).splitlines() if "gc_warm" in line]


def kill_while_busy(executor: MockExecutor, started: Path) -> None:
    busy = executor.submit(tasks.for_ever, str(started))
    wait_until(started.exists, "it is busy")
    os.kill(int(started.read_text()), signal.SIGKILL)
    assert "WorkerLost" in remote_text(busy)


@pytest.mark.engine
def test_replaced_then_half_removed(tmp_path: Path) -> None:
    """What was asked for and is not known any more is named; what is gone is told once."""
    package = former(tmp_path / "site")
    said = f"gc_warm 0.0.1 has prepared this block, and this worker has {gc_warm.__version__}"
    unknown = f"{said}, which does not know and do GC_WARM_OLD_GPUS"

    line = LINE.format("--amd-gpus preloaded:table")
    with engine(line, package.parent, number=1) as executor:
        assert executor.submit(upgraded.version).result(120) == "0.0.1"
        assert lines(executor) == []

        replace(package, copy(tmp_path / "newer"))
        kill_while_busy(executor, tmp_path / "first")
        assert executor.submit(upgraded.version).result(120) == gc_warm.__version__
        assert executor.submit(tasks.environment, "GC_WARM_OLD_GPUS").result(120) is None
        assert lines(executor) == [unknown]
        assert logs(executor).count("preloaded preloaded:table in ") == 2

        shutil.rmtree(package / "hooks", ignore_errors=False)
        (package / "hooks").mkdir()
        shutil.copytree(hooks.STARTUP, package / "hooks" / "startup")
        for started in ("second", "third"):
            kill_while_busy(executor, tmp_path / started)
            assert executor.submit(tasks.environment, boot.PRELOAD).result(120) is None
        first, second = lines(executor)
        assert first == unknown
        assert second.startswith(f"gc_warm: {package / 'hooks'}")
        assert "is gone, so gc_warm was removed or replaced while this job runs" in second
        assert logs(executor).count("preloaded preloaded:table in ") == 2


@pytest.mark.engine
@pytest.mark.parametrize("word", ["--survive-idle-kill", "--warm-first"])
def test_removed_with_queues_of_ours_all_workers_are_replaced(word: str, tmp_path: Path) -> None:
    """A stock worker beside one with our queues would read its tasks in pieces.

    What the workers of the older version have started ends with them.
    """
    package = copy(tmp_path / "site")
    line = LINE.format(f"{word} preloaded:table")
    meeting = tmp_path / "meeting"
    met = tmp_path / "met"
    meeting.mkdir()
    met.mkdir()
    mark = str(tmp_path)

    with engine(line, package.parent) as executor:
        states = [executor.submit(preloaded.use, str(meeting), 2) for _ in range(2)]
        first = {state.pid for state in (future.result(120) for future in states)}
        worker, _ = executor.submit(programs.start, mark).result(120)
        server_of = executor.submit(servers.start, mark, "worker").result(120)

        shutil.rmtree(package)
        os.kill(worker, signal.SIGKILL)
        programs_end_with(worker, mark)
        ids = [executor.submit(upgraded.meet, str(met), 2) for _ in range(2)]
        second = set()
        for pid, modules in (future.result(120) for future in ids):
            second.add(pid)
            assert modules == []
        assert len(second) == 2
        assert not second & first
        wait_until(lambda: not carriers("GC_WARM_SERVERS_OF", mark), "the server has ended")
        assert server_of in first

        (said,) = lines(executor)
        assert said.startswith(f"gc_warm: {package / 'hooks' / 'startup'}")
        for rank in range(2):
            assert logs(executor, rank).count("preloaded preloaded:table in ") == 1


def test_start_that_fails_is_one_line(tmp_path: Path) -> None:
    package = copy(tmp_path)
    (package / "hooks" / "switch.py").write_text("import no_such_module\n")
    startup = package / "hooks" / "startup"
    code = (
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print, args=('runs',))\n"
        "    process.start(); process.join()\n"
    )
    (tmp_path / "script.py").write_text(code)
    run = python(
        f"import runpy; runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__')",
        startup,
        tmp_path,
    )
    assert run.stdout == "runs\n"
    (said,) = run.stderr.splitlines()
    failed = "gc_warm: its start failed, and this process goes on without it, cold: "
    assert said.startswith(f"{failed}ModuleNotFoundError: No module named 'no_such_module' (")
