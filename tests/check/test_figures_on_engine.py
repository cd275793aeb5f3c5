"""The figures of `check`, observed on the real engine for options of our own configs.

The jobs of Slurm run as processes of this machine, and those of PBS on the stand-in for its
commands. Both have the stand-in for `nvidia-smi`, by which Parsl decides who shares a GPU.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from gc_warm import MockExecutor
from gc_warm.cli import main
from tests.check.test_on_engine import workers_of
from tests.check.test_pbs import PROGRAMS, looking_at
from tests.support import MODULES, cli_runner, has_ended, remote_text, wait_until

pytestmark = pytest.mark.engine

START = 150  # seconds that tasks may take with several engines on a busy machine
GPUS = 2  # of this machine, and of each node, where an option set asks for any
VARIABLES = [
    "PARSL_WORKER_POOL_ID",
    "PARSL_WORKER_BLOCK_ID",
    "PARSL_WORKER_RANK",
    "CUDA_VISIBLE_DEVICES",
    "GC_TASK_TIMEOUT",
    "GC_WARM_SECONDS_LEFT",
]

OPTION_SETS: list[tuple[str, dict[str, Any]]] = [
    ("local", {"workers_per_node": 2, "keep_warm": 0.2, "task_timeout": 400}),
    ("local", {"gpus_per_node": GPUS, "workers_per_node": 4}),
    ("slurm", {"workers_per_node": 2, "cores_per_worker": 3, "task_timeout": 300}),
    ("slurm", {"workers_per_node": 2, "nodes": 2, "bind_cores": True}),
    ("slurm", {"workers_per_node": 1, "max_jobs": 2, "walltime": "02:00:00"}),
    ("slurm-gpu", {"gpus_per_node": GPUS, "interface": "hsn0", "max_jobs": 2}),
    ("slurm-gpu", {"gpus_per_node": GPUS, "workers_per_node": 4}),
    ("slurm-gpu", {"accelerators": ["MIG-a", "MIG-b"], "gpus_per_node": 1, "nodes": 2}),
    ("pbs", {"workers_per_node": 3, "cores_per_worker": 2, "walltime": "00:50:00"}),
    ("pbs", {"gpus_per_node": GPUS, "nodes": 2, "task_timeout": 900}),
]
NUMBERS = pytest.mark.parametrize(
    "number",
    range(len(OPTION_SETS)),
    ids=lambda number: "-".join([OPTION_SETS[number][0], *OPTION_SETS[number][1]]),
)


@dataclass(frozen=True)
class Seen:
    """A worker, as one of its tasks sees it."""

    pid: int
    count: int
    variables: dict[str, str]

    @property
    def place(self) -> tuple[str, int]:
        """Its manager, and its rank there."""
        return self.variables["PARSL_WORKER_POOL_ID"], int(self.variables["PARSL_WORKER_RANK"])


@dataclass(frozen=True)
class Observation:
    """An option set on the engine, and the figures of `check` for it.

    Attributes:
        figures: The output of `check --json`.
        seen: All workers.
        settings: The command line of each manager.
        workers: The number of workers of each manager.
        error: The words for the task whose worker was killed.
        victim: The process of that worker.
        after: All workers after that.
        warm_for: Seconds from the last tasks until the first worker had ended.
        walltimes: The walltime of each job, as the commands of PBS were asked for it.
    """

    figures: dict[str, Any]
    seen: list[Seen]
    settings: list[list[str]]
    workers: list[int]
    error: str
    victim: int
    after: list[Seen]
    warm_for: float
    walltimes: list[str]


def figures_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    words = ["check", name, "--json"]
    for key, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["-o", f"{key}={text}"]

    result = cli_runner().invoke(main, words, catch_exceptions=False)
    figures: dict[str, Any] = json.loads(result.output)["targets"][0]
    return figures


def meet_all(executor: MockExecutor, folder: Path, number: int) -> list[Seen]:
    """Return so many workers, by tasks that wait for each other."""
    folder.mkdir()
    futures = [
        executor.submit(tasks.meet_and_tell, str(folder), number, VARIABLES) for _ in range(number)
    ]
    answers = [future.result(START) for future in futures]
    return [Seen(pid, count, variables) for pid, count, _, variables in answers]


def kill_one(executor: MockExecutor, started: Path) -> tuple[int, str]:
    """End a worker that has a task, wait for another in its place, and return what was said."""
    running = executor.submit(tasks.for_ever, str(started))
    wait_until(started.exists, "the task has begun")
    victim = int(started.read_text())
    manager = manager_of(victim)
    before = workers_of(manager)

    psutil.Process(victim).kill()
    error = remote_text(running, START)
    wait_until(
        lambda: len(workers_of(manager) - {victim}) == len(before), "the worker has been replaced"
    )
    return victim, error


def manager_of(worker: int) -> psutil.Process:
    manager = psutil.Process(worker).parent()
    assert manager is not None
    return manager


def observe(name: str, given: dict[str, Any], figures: dict[str, Any], folder: Path) -> Observation:
    place = None if name == "pbs" else "local"
    with MockExecutor(config=name, user_endpoint_config=given, on=place) as executor:
        seen = meet_all(executor, folder / "meeting", figures["copies"])
        managers = {manager_of(worker.pid) for worker in seen}
        settings = [manager.cmdline() for manager in managers]
        workers = [len(workers_of(manager)) for manager in managers]
        victim, error = kill_one(executor, folder / "victim")

        # before the last tasks, and not when this thread has come to know of their ends
        last = time.monotonic()
        after = meet_all(executor, folder / "last", figures["copies"])
        wait_until(
            lambda: any(has_ended(worker.pid) for worker in after),
            "a worker has ended",
            figures["keep_warm"] + 120,
        )
        warm_for = time.monotonic() - last
        wait_until(lambda: all(has_ended(worker.pid) for worker in after), "all have ended")

    walltimes = asked_of_pbs(given["queue"]) if name == "pbs" else []
    return Observation(figures, seen, settings, workers, error, victim, after, warm_for, walltimes)


def asked_of_pbs(queue: str) -> list[str]:
    records = Path(os.environ["STANDIN_FOLDER"], "jobs.jsonl").read_text().splitlines()
    jobs = [job for job in map(json.loads, records) if job["queue"] == queue]
    return [
        line.partition("walltime=")[2]
        for job in jobs
        for line in job["directives"]
        if "walltime=" in line
    ]


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[Observation]]]:
    """All of them side by side, since most of the time is waiting."""
    records = tmp_path_factory.mktemp("pbs")
    with pytest.MonkeyPatch.context() as patch, looking_at(records):
        patch.setenv("PATH", str(PROGRAMS), prepend=os.pathsep)
        patch.setenv("STANDIN_FOLDER", str(records))
        patch.setenv("STANDIN_PYTHON", sys.executable)
        patch.setenv("STANDIN_MPIEXEC", "pals")
        patch.setenv("STANDIN_GPUS", str(GPUS))

        calls = []
        for number, (name, chosen) in enumerate(OPTION_SETS):
            given = {"keep_warm": 0.1, "python_path": [str(MODULES)], **chosen}
            if name == "pbs":
                given |= {"address": "127.0.0.1", "queue": f"q{number}"}
            calls.append((name, given, figures_of(name, given), tmp_path_factory.mktemp("set")))

        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(observe, *call) for call in calls]
        yield futures


@NUMBERS
def test_copies_are_where_it_says(observations: list[Future[Observation]], number: int) -> None:
    observed = observations[number].result()
    figures = observed.figures
    assert len({worker.pid for worker in observed.seen}) == figures["copies"]
    assert set(observed.workers) == {figures["workers_per_manager"]}, "there are no others"

    managers = Counter(worker.place[0] for worker in observed.seen)
    assert set(managers.values()) == {figures["workers_per_manager"]}
    assert len(managers) == figures["managers_per_job"] * figures["max_jobs"]

    of_jobs = {
        (worker.variables["PARSL_WORKER_BLOCK_ID"], worker.place[0]) for worker in observed.seen
    }
    jobs = Counter(job for job, _ in of_jobs)
    assert len(jobs) == figures["max_jobs"]
    assert set(jobs.values()) == {figures["managers_per_job"]}

    # one manager a node
    assert figures["managers_per_job"] == figures["nodes_with_workers"] == figures["nodes_per_job"]
    assert figures["copies_per_node"] == figures["workers_per_manager"]


@NUMBERS
def test_worker_has_the_device_that_it_says(
    observations: list[Future[Observation]], number: int
) -> None:
    observed = observations[number].result()
    pinned = {
        (worker.place[1], worker.variables.get("CUDA_VISIBLE_DEVICES"))
        for worker in observed.seen + observed.after
    }
    devices = observed.figures["devices"]
    workers = observed.figures["workers_per_manager"]
    assert pinned == set(enumerate(devices or [None] * workers))


@NUMBERS
def test_worker_that_dies_is_replaced_cold(
    observations: list[Future[Observation]], number: int
) -> None:
    observed = observations[number].result()
    assert "WorkerLost" in observed.error, "its task fails"
    assert all(f"--hb_period={observed.figures['restart']}" in each for each in observed.settings)

    before = {worker.place: worker.pid for worker in observed.seen}
    after = {worker.place: worker for worker in observed.after}
    assert before.keys() == after.keys()
    for place, worker in after.items():
        if before[place] == observed.victim:
            assert worker.pid != observed.victim
            assert worker.count == 1
        else:
            assert worker.pid == before[place]
            assert worker.count == 2, "the others stay warm"


@NUMBERS
def test_state_stays_warm_for_as_long_as_it_says(
    observations: list[Future[Observation]], number: int
) -> None:
    observed = observations[number].result()
    figures = observed.figures
    assert observed.warm_for >= figures["keep_warm"] == figures["endpoint_idle"]
    assert figures["job_idle"] is None, "which would have ended them before"


@NUMBERS
def test_job_and_task_have_the_time_that_it_says(
    observations: list[Future[Observation]], number: int
) -> None:
    observed = observations[number].result()
    figures = observed.figures
    drain = figures["drain"]
    assert all(f"--drain_period={drain}" in each for each in observed.settings)

    timeouts = {worker.variables.get("GC_TASK_TIMEOUT") for worker in observed.seen}
    timeout = figures["task_timeout"]
    assert timeouts == {None if timeout is None else f"{timeout:g}"}

    walltime = figures["walltime"]
    left = [worker.variables.get("GC_WARM_SECONDS_LEFT") for worker in observed.seen]
    if walltime is None:
        assert set(left) == {None}
        assert figures["task_limit"] == figures["movement_limit"], "no job ends a task"
        return

    # half of it is more than the start of a job ever takes
    assert all(walltime / 2 < int(each or 0) <= walltime for each in left)
    assert figures["task_limit"] == walltime - drain
    for asked in observed.walltimes:
        hours, minutes, seconds = map(int, re.findall(r"\d+", asked))
        assert 3600 * hours + 60 * minutes + seconds == walltime


@NUMBERS
def test_nodes_are_billed_as_it_says(observations: list[Future[Observation]], number: int) -> None:
    observed = observations[number].result()
    figures = observed.figures
    if figures["walltime"] is None:
        assert figures["idle_hour"] is figures["idle_cost"] is figures["worst_case"] is None
        return

    nodes = len({worker.place[0] for worker in observed.seen})
    assert figures["idle_hour"] == nodes
    assert figures["worst_case"] == pytest.approx(nodes * figures["walltime"] / 3600)
    assert figures["idle_cost"] >= nodes * figures["keep_warm"] / 3600
