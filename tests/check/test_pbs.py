"""The PBS config on the real engine and Parsl's own PBS provider.

Only the commands of PBS, and mpiexec, are recorded ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer
from parsl.jobs.states import JobState
from parsl.providers.errors import SubmitException

from gc_warm import MockExecutor, functions
from gc_warm.configs import folders, loading, meaning, rendering
from tests.support import MODULES, remote_text, wait_until

pytestmark = pytest.mark.engine

PROGRAMS = Path(__file__).parents[1] / "executables" / "pbs"
ADDRESS = "127.0.0.1"
CORES = os.cpu_count() or 1
FULL: dict[str, Any] = {
    "address": ADDRESS,
    "keep_warm": 0.2,
    "nodes": 2,
    "workers_per_node": 2,
    "cores_per_worker": CORES,  # by the cores of this machine, a manager would start one worker
    "gpus_per_node": 2,
    "memory": 16,
    "walltime": "02:30:00",
    "account": "climate",
    "queue": "debug",
    "task_timeout": 600,
    "environment": "export GREETING=hello",
    "scheduler_options": "#PBS -l filesystems=home:grand\n#PBS -W umask=027",
    "launcher_overrides": "--no-vni",
    "python_path": [str(MODULES)],
}


@dataclass
class Pbs:
    """The recorded commands, and all that they were asked for since this was made.

    Attributes:
        folder: Where they keep it.
        seen: How much there was before, by command.
    """

    folder: Path
    seen: dict[str, int]

    def all(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def records(self, name: str) -> list[dict[str, Any]]:
        return self.all(name)[self.seen[name] :]

    def deleted(self) -> list[str]:
        return [word for record in self.records("qdel") for word in record["arguments"]]

    def jobs_of(self, queue: str) -> list[str]:
        return [job["id"] for job in self.records("jobs") if job["queue"] == queue]

    def looked_at(self, queue: str) -> bool:
        """Whether qstat was asked about a job of this queue."""
        return any(
            job in look["arguments"]
            for look in self.records("qstat")
            for job in self.jobs_of(queue)
        )

    def job(self) -> str:
        """The id of the only job."""
        (job,) = self.records("jobs")
        return str(job["id"])

    def job_folder(self, job: str) -> Path:
        return self.folder / "jobs" / job.split(".")[0]

    def wait_for_end(self, job: str) -> int:
        """Its exit status, of which PBS adds 256 to the number of a signal."""
        path = self.job_folder(job) / "exit_status"
        wait_until(path.exists, f"{job} has ended")
        return int(path.read_text())

    def processes(self) -> list[psutil.Process]:
        """Return all processes of jobs, and those that watch over them."""
        ids = {record["id"] for record in self.records("jobs")}
        folders = {str(self.job_folder(job)) for job in ids}

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_of_job = process.environ().get("PBS_JOBID") in ids
                if is_of_job or folders.intersection(process.cmdline()[-1:]):
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill what is left of all jobs."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def looking_at(folder: Path) -> Iterator[Pbs]:
    pbs = Pbs(folder, {})
    for name in ("qsub", "qstat", "qdel", "jobs", "mpiexec", "ranks"):
        pbs.seen[name] = len(pbs.all(name))

    try:
        yield pbs
    finally:
        pbs.end()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """PBS's commands on the path; the folder of their records."""
    folder = tmp_path_factory.mktemp("pbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(PROGRAMS), prepend=os.pathsep)
        patch.setenv("STANDIN_FOLDER", str(folder))
        patch.setenv("STANDIN_PYTHON", sys.executable)
        patch.setenv("STANDIN_MPIEXEC", "pals")
        yield folder


@pytest.fixture
def pbs(commands: Path) -> Iterator[Pbs]:
    with looking_at(commands) as pbs:
        yield pbs


@dataclass(frozen=True)
class Answer:
    """A worker, as it describes itself."""

    pool: str
    rank: int
    pid: int
    count: int
    environment: dict[str, str]


def introduce(folder: str, number: int) -> tuple[str, int, int, int, dict[str, str]]:
    """Wait in *folder* for the others, which takes a worker for each of them, and answer.

    A node may be up long before the other.
    """
    import os
    import time
    from pathlib import Path

    from gc_warm import functions
    from gc_warm.worker import lifecycle

    Path(folder, os.environ["GC_TASK_UUID"]).touch()
    end = time.monotonic() + 120
    while len(os.listdir(folder)) < number:
        if time.monotonic() > end:
            raise TimeoutError("waited for two minutes")
        time.sleep(0.01)

    worker = lifecycle.worker()
    return (
        worker.pool or "",
        -1 if worker.rank is None else worker.rank,
        worker.pid,
        functions.count(),
        dict(os.environ),
    )


def ask_each(executor: MockExecutor, number: int, folder: Path) -> list[Answer]:
    folder.mkdir()
    futures = [executor.submit(introduce, str(folder), number) for _ in range(number)]
    answers = [Answer(*future.result(120)) for future in futures]
    return sorted(answers, key=lambda answer: (answer.environment["STANDIN_HOST"], answer.rank))


def pbs_executor(**options: Any) -> MockExecutor:
    """Return an executor that sends functions as source: workers cannot import this file."""
    given = {"address": ADDRESS, **options}
    return MockExecutor(
        config="pbs",
        user_endpoint_config=given,
        serializer=ComputeSerializer(strategy_code=AllCodeStrategies()),
    )


@dataclass
class Life:
    """The life of an executor with all options.

    It was used, used again, left idle, given one more task, and shut down.
    """

    pbs: Pbs
    answers: list[Answer]
    again: list[Answer]
    deleted_when_idle: list[str]
    count_after: int


@pytest.fixture(scope="module")
def life(commands: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("meetings")
    with looking_at(commands) as pbs:
        with pbs_executor(**FULL) as executor:
            answers = ask_each(executor, 4, folder / "first")
            again = ask_each(executor, 4, folder / "again")

            wait_until(lambda: bool(pbs.deleted()), "an idle job is deleted")
            deleted = pbs.deleted()
            wait_until(
                lambda: not any(psutil.pid_exists(answer.pid) for answer in answers),
                "its workers are gone",
            )
            count = executor.submit(functions.count).result(120)

        yield Life(pbs, answers, again, deleted, count)


def test_job_script_asks_for_what_the_options_say(life: Life) -> None:
    job = life.pbs.records("jobs")[0]
    shell, name, mail, walltime, select, stdout, stderr, *others = job["directives"]
    assert (shell, mail, walltime) == ("-S /bin/bash", "-m n", "-l walltime=02:30:00")
    assert select == f"-l select=2:ncpus={2 * CORES}:ngpus=2:mem=16gb"
    assert others == ["-l filesystems=home:grand", "-W umask=027", "-l place=scatter"]
    assert [stdout.split("/")[0], stderr.split("/")[0]] == ["-o ", "-e "]
    assert name.startswith("-N parsl.GlobusComputeEngine-")


def test_account_and_queue_are_on_the_command_line_of_qsub(life: Life) -> None:
    assert [job["arguments"][:-1] for job in life.pbs.records("qsub")] == [
        ["-q", "debug", "-A", "climate"]
    ] * 2


def test_each_host_has_one_manager_and_all_together_as_many_workers_as_check_says(
    life: Life,
) -> None:
    config = loading.load(rendering.render(folders.find_folder("pbs"), FULL), "pbs")
    profile = meaning.warmth_profile(config)
    hosts = [rank["host"] for rank in life.pbs.records("ranks")]
    assert hosts == ["node1", "node2"] * 2, "of two jobs"

    workers = [(answer.environment["STANDIN_HOST"], answer.rank) for answer in life.answers]
    assert workers == [("node1", 0), ("node1", 1), ("node2", 0), ("node2", 1)]
    pools = [answer.pool for answer in life.answers]
    assert pools[0] == pools[1] != pools[2] == pools[3]

    assert profile.nodes_per_job == 2
    assert profile.copies_per_node == 2
    assert profile.copies == len(life.answers)


def test_each_worker_is_pinned_to_one_of_the_gpus_of_its_node(life: Life) -> None:
    devices = [answer.environment["CUDA_VISIBLE_DEVICES"] for answer in life.answers]
    assert devices == ["0", "1", "0", "1"]


def test_managers_count_the_cores_of_the_job_and_not_those_of_the_machine(life: Life) -> None:
    assert {answer.environment["PARSL_CORES"] for answer in life.answers} == {str(2 * CORES)}
    options = life.pbs.records("mpiexec")[0]["arguments"]
    expected = f"--cpu-bind none --ppn 1 --depth {2 * CORES} --no-vni -n 2"
    assert options[: options.index("--hostfile")] == expected.split()


def test_what_is_exported_before_the_workers_reaches_those_of_every_node(life: Life) -> None:
    for answer in life.answers:
        environment = answer.environment
        assert environment["GREETING"] == "hello"
        assert environment["GC_TASK_TIMEOUT"] == "600"
        assert environment["PYTHONPATH"].split(":")[0] == str(MODULES)


def test_state_stays_warm_from_task_to_task(life: Life) -> None:
    assert [answer.pid for answer in life.again] == [answer.pid for answer in life.answers]
    assert [answer.count for answer in life.answers] == [1] * 4
    assert [answer.count for answer in life.again] == [2] * 4


def test_fraction_of_a_minute_of_idleness_ends_the_job(life: Life) -> None:
    first = life.pbs.records("jobs")[0]["id"]
    assert life.deleted_when_idle == [first]
    assert life.pbs.wait_for_end(first) != 0, "it did not end by itself"


def test_task_after_that_gets_another_job_and_is_cold(life: Life) -> None:
    assert len(life.pbs.records("jobs")) == 2
    assert life.count_after == 1


def test_shutdown_deletes_the_job_and_nothing_of_it_remains(life: Life) -> None:
    jobs = [job["id"] for job in life.pbs.records("jobs")]
    assert life.pbs.deleted() == jobs
    life.pbs.wait_for_end(jobs[-1])  # by qdel, or because its workers were told to end before
    wait_until(lambda: not life.pbs.processes(), "no process of its jobs is left")


@dataclass
class Trouble:
    """The words of three executors with the same PBS, none of which got a worker.

    Attributes:
        waiting: Whether the future was still open after a look at the job that waits in its queue.
    """

    pbs: Pbs
    waiting: bool
    shut_down: str
    refused_by_qsub: str
    refused_by_mpiexec: str


@pytest.fixture(scope="module")
def trouble(commands: Path) -> Iterator[Trouble]:
    site = {"STANDIN_ACCOUNTS": "ocean", "STANDIN_BUSY": "busy", "STANDIN_MPIEXEC": "mpich"}
    troubles: list[dict[str, str]] = [
        {"account": "climate"},
        {"account": "ocean", "mpiexec": "openmpi"},
    ]
    with looking_at(commands) as pbs:
        with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
            for name, value in site.items():
                patch.setenv(name, value)
            queued = stack.enter_context(pbs_executor(account="ocean", queue="busy"))
            others = [stack.enter_context(pbs_executor(**options)) for options in troubles]

            future, *futures = [executor.submit(functions.count) for executor in (queued, *others)]
            texts = [remote_text(future) for future in futures]
            wait_until(lambda: pbs.looked_at("busy"), "the job that waits has been looked at")
            waiting = not future.done()
            queued.shutdown(wait=False)

        yield Trouble(pbs, waiting, remote_text(future), *texts)


def test_job_that_waits_in_the_queue_is_no_failure_and_is_deleted_at_shutdown(
    trouble: Trouble,
) -> None:
    assert trouble.waiting
    assert "the engine was shut down" in trouble.shut_down
    assert trouble.pbs.jobs_of("busy")[0] in trouble.pbs.deleted()


def test_job_that_qsub_refuses_is_told_in_the_words_of_qsub(trouble: Trouble) -> None:
    assert "WorkerStartError: no worker can start: block 0" in trouble.refused_by_qsub
    assert (
        "qsub: Request rejected.  Reason: No active allocation found for project climate."
        in trouble.refused_by_qsub
    )


def test_job_whose_mpiexec_refuses_is_told_in_the_words_of_mpiexec(trouble: Trouble) -> None:
    assert "WorkerStartError: no worker can start: block 0" in trouble.refused_by_mpiexec
    assert "mpiexec: unrecognized option '--bind-to'" in trouble.refused_by_mpiexec


def provider(folder: Path, **options: Any) -> Any:
    """The provider that the engine has with these options."""
    given = {"address": ADDRESS, **options}
    config: Any = loading.load(rendering.render(folders.find_folder("pbs"), given), "pbs")
    config.engine.executor.provider.script_dir = str(folder)
    return config.engine.executor.provider


@pytest.mark.parametrize("family", ["pals", "openmpi", "mpich"])
def test_each_mpiexec_starts_one_process_on_each_host(
    family: str, pbs: Pbs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STANDIN_MPIEXEC", family)
    job = provider(tmp_path, nodes=3, mpiexec=family).submit("true", 1)
    assert job == pbs.job()
    assert pbs.wait_for_end(job) == 0
    assert [rank["host"] for rank in pbs.records("ranks")] == ["node1", "node2", "node3"]


@pytest.mark.parametrize(
    ("wanted", "there"), [("pals", "openmpi"), ("openmpi", "mpich"), ("mpich", "pals")]
)
def test_mpiexec_of_another_family_refuses(
    wanted: str, there: str, pbs: Pbs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STANDIN_MPIEXEC", there)
    assert pbs.wait_for_end(provider(tmp_path, mpiexec=wanted).submit("true", 1)) == 255
    assert not pbs.records("ranks")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#PBS --queue debug", "qsub: directive error: --queue debug"),
        ("#PBS -A climate  # ours", "qsub: directive error: -A climate  # ours"),
        ("#PBS -l filesystem=home", "qsub: Unknown resource Resource_List.filesystem"),
        (
            "#PBS -l mem=16gb",
            'qsub: "-lresource=" cannot be used with "select" or "place", resource is: mem',
        ),
        ("#PBS -l walltime=1h", "qsub: Illegal attribute or resource value Resource_List.walltime"),
    ],
)
def test_line_that_qsub_refuses_is_an_error_in_the_words_of_qsub(
    line: str, words: str, pbs: Pbs, tmp_path: Path
) -> None:
    with pytest.raises(SubmitException) as caught:
        provider(tmp_path, scheduler_options=line).submit("true", 1)
    assert words in str(caught.value)
    assert not pbs.records("jobs")


def test_what_qstat_says_of_a_job_is_what_the_engine_sees(
    pbs: Pbs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pbs_provider = provider(tmp_path)
    running = pbs_provider.submit("sleep 600", 1)
    short = pbs_provider.submit("true", 1)
    monkeypatch.setenv("STANDIN_BUSY", "workq")
    waiting = pbs_provider.submit("true", 1)
    assert pbs.wait_for_end(short) == 0
    states = [status.state for status in pbs_provider.status([running, short, waiting])]
    assert states == [JobState.RUNNING, JobState.COMPLETED, JobState.PENDING]

    assert pbs_provider.cancel([running, waiting]) == [True, True]
    assert [pbs.wait_for_end(job) for job in (running, waiting)] == [271, 271]
    states = [status.state for status in pbs_provider.status([running, waiting])]
    assert states == [JobState.COMPLETED] * 2


@pytest.mark.parametrize(
    "scheduler_options",
    [
        "",
        "#PBS -l place=scatter",
    ],
)
def test_nodes_are_different_hosts_where_one_has_room_for_all_of_them(
    scheduler_options: str, pbs: Pbs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STANDIN_NODE_CPUS", "64")
    job = provider(tmp_path, nodes=2, scheduler_options=scheduler_options).submit("true", 1)
    pbs.wait_for_end(job)
    assert (pbs.job_folder(job) / "nodefile").read_text().split() == ["node1", "node2"]


def test_job_leaves_nothing_in_the_home_directory(pbs: Pbs, tmp_path: Path) -> None:
    job = provider(tmp_path).submit("true", 1)
    pbs.wait_for_end(job)
    assert os.listdir(pbs.job_folder(job) / "home") == []
