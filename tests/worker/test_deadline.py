"""How long is left: real processes, each of which says when it believes that its job ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deadlines
import pytest
import tasks

from gc_warm import MockExecutor, NotEnoughTimeError, time_left
from gc_warm.worker import deadline
from tests.support import MODULES, remote_text, wait_until
from tests.testing.backends import engine_config

LEFT = deadline.SECONDS_LEFT
ROOT = Path(__file__).parents[2]
TICK = 1 / os.sysconf("SC_CLK_TCK")

SAY = "from gc_warm.worker import deadline; print(deadline.job_end(), flush=True)"
SAY_AND_OBEY = f"""
import os, subprocess, sys, time
{SAY}
for line in sys.stdin:
    exec(line)
"""
OBEY_AND_SAY_IN_A_FORK = f"""
import os, sys
sys.stdin.readline()
child = os.fork()
if child:
    os.waitpid(child, 0)
{SAY}
"""


class Process:
    """A Python that says when its job ends, and then does what it is told, a line at a time."""

    def __init__(self, code: str, environment: dict[str, str], wrapper: Sequence[str]) -> None:
        self.popen = subprocess.Popen(
            [*wrapper, sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        self.started = int(fields[19]) * TICK
        """On the clock that counts from the boot of the machine."""

    def answer(self) -> float | None:
        """Return the end that it says next."""
        assert self.popen.stdout
        line = self.popen.stdout.readline().strip()
        return None if line == "None" else float(line)

    def tell(self, command: str) -> None:
        """Have it do something, once a process that starts now has another start time."""
        assert self.popen.stdin
        later = self.started + 2 * TICK
        wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > later, "it is later")
        self.popen.stdin.write(f"{command}\n")
        self.popen.stdin.flush()

    def run(self, code: str) -> None:
        """Have it run another Python to its end."""
        self.tell(f"subprocess.run([sys.executable, '-c', {code!r}])")


Start = Callable[..., Process]


def at(seconds: float) -> Any:
    """Return what equals this time, by whatever way it was calculated."""
    return pytest.approx(seconds, rel=0, abs=TICK / 100)


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a process with these variables, until the end of the test."""
    with ExitStack() as stack:

        def begin(
            code: str = SAY_AND_OBEY, wrapper: Sequence[str] = (), **variables: str
        ) -> Process:
            process = Process(code, environment(**variables), wrapper)
            stack.enter_context(process.popen)
            stack.callback(process.popen.kill)
            return process

        yield begin


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which no end of a job is known but by these variables."""
    named = (LEFT, "JOBNAME", "SLURM_", "PBS_")
    others = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    return {**others, "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The patch of a process in which nothing is known, and nothing was found yet."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(deadline, "_ends", {})
    return monkeypatch


def test_nothing_is_known_where_nobody_says(start: Start, bare: pytest.MonkeyPatch) -> None:
    assert start().answer() is None
    assert time_left() is None


def test_counts_from_the_oldest_process(start: Start) -> None:
    manager = start(**{LEFT: "1000"})
    assert manager.answer() == at(manager.started + 1000)

    for _ in range(2):  # the second as a worker that is replaced
        manager.run(SAY)
        assert manager.answer() == at(manager.started + 1000)


def test_shrinks(start: Start) -> None:
    left = "print(f'{deadline.time_left():.9f}', flush=True)"
    worker = start(**{LEFT: "1000.5"})
    worker.answer()
    worker.tell(left)
    worker.tell(left)
    first, second = worker.answer(), worker.answer()
    assert first is not None
    assert second is not None
    assert 1000.5 > first > second > 0


@pytest.mark.parametrize("told", ["0", "-30"])
def test_is_never_below_nothing(told: str, bare: pytest.MonkeyPatch) -> None:
    bare.setenv(LEFT, told)
    assert time_left() == 0


def test_forked_child_has_the_same_end(start: Start) -> None:
    manager = start(**{LEFT: "1000"})
    end = manager.answer()
    say = "print(deadline.job_end(), flush=True)"
    manager.tell(f"os.waitpid(os.fork() or {say} or os._exit(0), 0)")
    assert manager.answer() == end


def test_child_forked_before_anybody_asked_has_the_same_end(start: Start) -> None:
    manager = start(OBEY_AND_SAY_IN_A_FORK, **{LEFT: "1000"})
    manager.tell("")
    assert manager.answer() == manager.answer() == at(manager.started + 1000)


def test_orphan_has_the_same_end(start: Start) -> None:
    manager = start(**{LEFT: "1000"})
    end = manager.answer()
    orphan = f"import os, time\nwhile os.getppid() == parent: time.sleep(0.01)\n{SAY}"
    manager.run(
        "import os, subprocess, sys\n"
        f"code = f'parent = {{os.getpid()}}\\n' + {orphan!r}\n"
        "subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
    )
    assert manager.answer() == end


def test_another_job_on_the_node_is_another(start: Start) -> None:
    manager = start(SLURM_JOB_ID="7", **{LEFT: "1000"})
    manager.tell("")
    others = [
        start(SLURM_JOB_ID="8", **{LEFT: "1000"}),
        start(PBS_JOBID="7.server", **{LEFT: "1000"}),
        start(JOBNAME="parsl.block-0", **{LEFT: "1000"}),
    ]
    assert manager.answer() == at(manager.started + 1000)
    for other in others:
        assert other.answer() == at(other.started + 1000)
        assert other.started > manager.started


def test_endpoint_inside_a_job_ends_with_it(start: Start) -> None:
    job = start(SLURM_JOB_ID="7", **{LEFT: "1000"})
    job.tell("")
    block = start(SLURM_JOB_ID="7", JOBNAME="parsl.block-0", **{LEFT: "1000"})
    assert block.answer() == job.answer() == at(job.started + 1000)


def slurm(start: int, end: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_START_TIME": str(start),
        "SLURM_JOB_END_TIME": str(end),
    }


@pytest.mark.parametrize("controllers_clock", [0, 10**9, 10**11])
def test_slurms_clock_is_not_compared_with_ours(start: Start, controllers_clock: int) -> None:
    worker = start(**slurm(controllers_clock, controllers_clock + 1000))
    assert worker.answer() == at(worker.started + 1000)


@pytest.mark.parametrize(("told", "granted"), [(500, 1000), (1000, 500)])
def test_job_ends_with_the_first_of_its_limits(start: Start, told: int, granted: int) -> None:
    worker = start(**slurm(10**9, 10**9 + granted), **{LEFT: str(told)})
    assert worker.answer() == at(worker.started + 500)


def test_part_of_slurms_variables_says_nothing(start: Start) -> None:
    for name in slurm(0, 1):
        variables = slurm(10**9, 10**9 + 1000)
        del variables[name]
        assert start(**variables).answer() is None
    assert start(**slurm(0, 1) | {"SLURM_JOB_END_TIME": "Unknown"}).answer() is None


def test_process_ids_of_a_container(start: Start) -> None:
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces can be made here")

    outside = start(**{LEFT: "1000"})
    outside.tell("")
    inside = start(wrapper=unshare, **{LEFT: "1000"})
    end = inside.answer()
    assert end is not None
    left_at_start = round(end - inside.started, 2)  # ticks are hundredths of a second
    assert left_at_start >= 1000, "what is outside cannot be seen, and is no part of it"


def test_variable_that_a_process_sets_itself_begins_then(bare: pytest.MonkeyPatch) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    bare.setenv(LEFT, "1000")
    end = deadline.job_end()
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert end is not None
    assert before + 1000 <= end <= after + 1000
    assert deadline.job_end() == end


@pytest.mark.parametrize("told", ["", "1h", "01:00:00", "nan", "inf", "\u0661"])
def test_what_is_no_number_is_named_once(
    told: str, bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setenv(LEFT, told)
    assert [time_left(), time_left()] == [None, None]
    (message,) = caplog.messages
    assert f"{LEFT}={told} is no number of seconds" in message
    assert f"export {LEFT}=$((3600 - SECONDS))" in message


@pytest.mark.parametrize("files", [None, {}], ids=["no proc", "an empty one"])
def test_without_proc_nothing_is_known_and_the_log_says_why(
    files: dict[str, str] | None,
    bare: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    if files is not None:
        (tmp_path / "proc").mkdir()
    bare.setattr(deadline, "_PROC", tmp_path / "proc")
    bare.setenv(LEFT, "1000")
    assert [time_left(), time_left()] == [None, None]
    (message,) = caplog.messages
    assert f"nothing is known of this job's end: when {LEFT}=1000 began" in message
    assert "FileNotFoundError" in message


def test_system_without_a_clock_from_the_boot(
    bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setattr(deadline, "time", SimpleNamespace())
    assert time_left() is None
    assert not caplog.messages
    bare.setenv(LEFT, "1000")
    assert time_left() is None
    assert "AttributeError" in caplog.text


def test_processes_that_cannot_be_read_are_passed_over(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def process(name: str, starts: int, variables: str, title: str = "python") -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "environ").write_bytes(variables.encode().replace(b" ", b"\0"))
        (tmp_path / name / "stat").write_text(f"{name} ({title}) S " + "0 " * 18 + f"{starts} 0")

    ours = f"A=1 {LEFT}=1000 JOBNAME=ours "
    process("2", 3000, ours, title="a) S 1 (b 7")
    process("3", 4000, ours)
    process("4", 1000, ours.replace("1000", "10000"))
    process("5", 1000, f"{LEFT}=1000 JOBNAME=other")
    process("6", 1000, "\0\0\0")  # as a program leaves it that writes a title there
    process("fs", 1000, ours)
    process("7", 1000, ours)
    (tmp_path / "7" / "stat").unlink()  # ended meanwhile
    process("8", 1000, ours)
    (tmp_path / "8" / "environ").unlink()
    (tmp_path / "8" / "environ").mkdir()  # cannot be read

    bare.setattr(deadline, "_PROC", tmp_path)
    bare.setenv(LEFT, "1000")
    bare.setenv("JOBNAME", "ours")
    assert deadline.job_end() == 3000 * TICK + 1000


def test_error_says_both_and_travels() -> None:
    error = NotEnoughTimeError(600, 59.96)
    assert str(error).startswith("600.0 s are needed, and this worker's job ends in 60.0 s: ")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.needed, copy.left, str(copy)) == (600, 59.96, str(error))
    assert isinstance(copy, RuntimeError)


def test_loader_that_cannot_finish_fails_with_both_figures() -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES], env={LEFT: "300"}) as executor:
        text = remote_text(executor.submit(deadlines.look_up, 600))
        assert "NotEnoughTimeError: 600.0 s are needed, and this worker's job ends in 2" in text
        assert executor.submit(deadlines.look_up, 10).result(120) == "took 10 s"


def test_program_of_a_worker_has_its_end() -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES], env={LEFT: "300"}) as executor:
        _, end = executor.submit(deadlines.job_end).result(120)
        assert end is not None
        assert executor.submit(deadlines.job_end_in_a_program).result(120) == end


@pytest.mark.engine
def test_line_in_a_config_of_ones_own_tells_replaced_workers_too(tmp_path: Path) -> None:
    config = engine_config(1, f"export {LEFT}=$((3600 - SECONDS))")
    with MockExecutor(config=config) as executor:
        pid, end = executor.submit(deadlines.job_end).result(120)
        left = executor.submit(deadlines.seconds_left).result(120)
        assert end is not None
        assert left is not None
        assert 0 < left < 3600

        busy = executor.submit(tasks.for_ever, str(tmp_path / "started"))
        wait_until((tmp_path / "started").exists, "it is busy")
        os.kill(pid, signal.SIGKILL)
        assert "WorkerLost" in remote_text(busy)
        new_pid, new_end = executor.submit(deadlines.job_end).result(120)
        assert new_pid != pid
        assert new_end == end
