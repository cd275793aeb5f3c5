"""Refused jobs: when they are asked for again, with Parsl's own executor and providers."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider

from gc_warm.hooks import STARTUP, backoff, endpoint
from tests.support import Clock

PBS = Path(__file__).parents[1] / "executables" / "pbs"
SBATCH = """#!/bin/sh
echo >> {folder}/calls
[ $(wc -l < {folder}/calls) -le $(cat {folder}/room) ] && echo "Submitted batch job $$" && exit
echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2
echo 'sbatch: error: Batch job submission failed' >&2
exit 1
"""
REFUSED = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed"


class Slurm:
    """A scheduler's commands on the path: the first *room* of all jobs are accepted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (
            ("sbatch", SBATCH.format(folder=folder)),
            ("sacct", "#!/bin/sh\nexit 1"),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "calls").touch()
        self.set_room(0)

    def set_room(self, jobs: int) -> None:
        (self.folder / "room").write_text(str(jobs))

    @property
    def calls(self) -> int:
        return (self.folder / "calls").read_text().count("\n")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return Slurm(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The hook, with a time of its own."""
    stock = BlockProviderExecutor.scale_out_facade
    monkeypatch.setattr(BlockProviderExecutor, "scale_out_facade", stock)
    clock = Clock()
    monkeypatch.setattr(backoff, "time", clock)
    backoff.install()
    return clock


def executor_on(
    provider: ExecutionProvider, folder: Path, **options: Any
) -> HighThroughputExecutor:
    """An executor that was not started, and asks for blocks all the same."""
    executor = HighThroughputExecutor(
        address="127.0.0.1", encrypted=False, provider=provider, **options
    )
    executor.run_dir = str(folder)
    executor.launch_cmd = "true {block_id}"
    provider.script_dir = str(folder)
    return executor


def test_delays_double_up_to_ten_minutes(clock: Clock, slurm: Slurm, tmp_path: Path) -> None:
    executor = executor_on(SlurmProvider(), tmp_path)
    asked = []
    for second in range(0, 3600, 5):  # as Parsl's strategy does
        before = slurm.calls
        assert executor.scale_out_facade(3) == []
        assert slurm.calls - before <= 1, "a refusal ends the round"
        if slurm.calls > before:
            asked.append(second)
        clock.advance(5)

    assert asked == [0, 5, 15, 35, 75, 155, 315, 635, 1235, 1835, 2435, 3035]


def test_accepted_job_ends_the_row(
    clock: Clock, slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = executor_on(SlurmProvider(), tmp_path)
    for _ in range(3):
        executor.scale_out_facade(1)
        clock.advance(600)
    said = [record.getMessage() for record in caplog.records if record.name == "parsl.gc_warm"]
    assert said == [
        f"the scheduler has refused a job (refusal {tries} in a row; the next try is in {delay} s, "
        f"or when a job of this endpoint ends): {REFUSED}"
        for tries, delay in ((1, 5), (2, 10), (3, 20))
    ]
    refusal = backoff.read(tmp_path)
    assert refusal is not None
    assert (refusal.text, refusal.tries) == (REFUSED, 3)
    assert refusal.next_try - refusal.time == 20

    slurm.set_room(slurm.calls + 2)
    assert len(executor.scale_out_facade(3)) == 2, "and one was refused"
    refusal = backoff.read(tmp_path)
    assert refusal is not None
    assert refusal.tries == 1

    slurm.set_room(slurm.calls + 1)
    clock.advance(5)
    assert len(executor.scale_out_facade(1)) == 1
    assert backoff.read(tmp_path) is None


def test_end_of_an_own_job_may_have_made_room(clock: Clock, slurm: Slurm, tmp_path: Path) -> None:
    executor = executor_on(SlurmProvider(), tmp_path)
    slurm.set_room(1)
    (block,) = executor.scale_out_facade(2)
    assert (slurm.calls, executor.scale_out_facade(1)) == (2, [])
    assert slurm.calls == 2, "it waits"

    executor.status_facade[block] = JobStatus(JobState.COMPLETED)
    slurm.set_room(3)
    assert len(executor.scale_out_facade(1)) == 1


def test_pbs_is_told_in_the_words_of_qsub(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(PBS), prepend=os.pathsep)
    monkeypatch.setenv("STANDIN_FOLDER", str(tmp_path))
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)
    monkeypatch.setenv("STANDIN_ACCOUNTS", "ocean")
    executor = executor_on(PBSProProvider(account="climate"), tmp_path)
    for _ in range(2):
        assert executor.scale_out_facade(1) == []
    assert len((tmp_path / "qsub.jsonl").read_text().splitlines()) == 1

    refusal = backoff.read(tmp_path)
    assert refusal is not None
    words = "qsub: Request rejected.  Reason: No active allocation found for project climate."
    assert refusal.text.startswith(words)


def test_where_refusals_fail_all_tasks_they_say_why(
    clock: Clock, slurm: Slurm, tmp_path: Path
) -> None:
    """As without the hook: with Parsl's own error handler, which our configs switch off."""
    executor = executor_on(SlurmProvider(), tmp_path, block_error_handler=True)
    executor.scale_out_facade(1)
    executor.handle_errors(executor.status_facade)
    assert REFUSED in str(executor.executor_exception)


def test_local_provider_is_left_alone(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = LocalProvider()
    executor = executor_on(provider, tmp_path)
    asked = []

    def refuse(*arguments: Any) -> None:
        asked.append(arguments)
        raise OSError("no processes left")

    monkeypatch.setattr(provider, "submit", refuse)
    executor.scale_out_facade(2)
    executor.scale_out_facade(2)
    assert len(asked) == 4
    assert not (tmp_path / backoff.RECORD).exists()


def test_failure_of_the_hook_leaves_parsls_own_way(
    clock: Clock, slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = executor_on(SlurmProvider(), tmp_path)
    executor.run_dir = None  # type: ignore[assignment]
    for _ in range(3):
        executor.scale_out_facade(2)
    assert slurm.calls == 6
    (record,) = [record for record in caplog.records if record.name == "parsl.gc_warm"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "refused jobs are tried again every few seconds from here"


def test_other_parsl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockProviderExecutor, "scale_out_facade", lambda self, blocks: [])
    changed = BlockProviderExecutor.scale_out_facade
    with pytest.raises(TypeError, match=re.escape("not as gc_warm knows it: (self, blocks)")):
        backoff.install()
    assert BlockProviderExecutor.scale_out_facade is changed


def test_another_users_endpoint_has_no_hooks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    stock = BlockProviderExecutor.scale_out_facade
    endpoint.install()
    assert BlockProviderExecutor.scale_out_facade is stock
    assert capsys.readouterr().err == (
        "gc_warm: no hooks, since this user endpoint runs as another user than its daemon\n"
    )


FOUND = """
import os, sys
facade = None
if "parsl" in sys.modules:
    from parsl.executors.status_handling import BlockProviderExecutor
    facade = BlockProviderExecutor.scale_out_facade.__module__
print([facade, os.environ.get("PYTHONPATH"), os.environ.get("SITE")])
"""
OFF = "GC_WARM_DISABLE='backoff handover': switched off: backoff, handover"


@pytest.mark.parametrize(
    ("word", "switch", "found", "said"),
    [
        ("_start-user-endpoint", "", ["gc_warm.hooks.backoff", "SITE", "ran"], ""),
        ("--die-with-parent", "backoff handover", [None, "SITE", "ran"], f"gc_warm: {OFF}\n"),
        ("start", "", [None, f"{STARTUP}:SITE", "ran"], ""),
    ],
    ids=["user endpoint", "switched off", "any other"],
)
def test_hook_is_in_user_endpoints_and_in_nothing_else(
    word: str, switch: str, found: list[str | None], said: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['SITE'] = 'ran'\n")
    path = os.pathsep.join([STARTUP, str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "GC_WARM_DISABLE": switch}
    done = subprocess.run(
        [sys.executable, "-c", FOUND, word], env=environment, capture_output=True, text=True
    )
    expected = [value and value.replace("SITE", str(tmp_path)) for value in found]
    assert (done.stdout, done.stderr) == (f"{expected}\n", said)


def test_environment_without_gc_warm_is_left_as_it_is(tmp_path: Path) -> None:
    """The folder is that of another environment, which the endpoint has been moved from."""
    (tmp_path / "gc_warm.py").write_text("raise ModuleNotFoundError('No gc_warm here')\n")
    path = os.pathsep.join([STARTUP, str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", FOUND, "_start-user-endpoint"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{[None, str(tmp_path), None]}\n"
    assert "its start failed, and this process goes on without it" in done.stderr
    assert "No gc_warm here" in done.stderr
