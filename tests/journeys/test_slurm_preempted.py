"""What becomes of tasks, workers and programs when a real Slurm takes a job away, or stops it."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
import psutil
import pytest
import servers
import tasks
from parsl.providers import SlurmProvider

from gc_warm import MockExecutor
from gc_warm.configs import folders, rendering
from tests import slurm_cluster
from tests.journeys.test_slurm import OPTIONS, all_have_ended, on
from tests.slurm_cluster import SlurmCluster
from tests.support import carriers, programs_end_with, remote_text, wait_until

pytestmark = pytest.mark.slurm

PREEMPTION = "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
PARTITIONS = """\
PartitionName=low Nodes=n2,n3 PriorityTier=1 State=UP
PartitionName=high Nodes=n2,n3 PriorityTier=2 PreemptMode=OFF State=UP
"""
UPSTREAM = Path(__file__).parents[1] / "upstream" / "suspended_manager.py"
LOST = "ManagerLost"
FIRST = -1
LONG = 0
QUEUED = range(1, 6)
LATER = 6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A node with cores for all, pretended, and two on which jobs take each other's place."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        text = slurm_cluster._CONFIGURATION.replace("Nodes=ALL", "Nodes=n1")
        patch.setattr(slurm_cluster, "_CONFIGURATION", PREEMPTION + text + PARTITIONS)
        patch.setattr(slurm_cluster, "_NODE", slurm_cluster._NODE.replace("{cpus}", "16"))
        patch.setattr(slurm_cluster, "_TASK_PLUGINS", ("task/none",))
        # the engine asks every minute what has become of a job
        patch.setattr(SlurmProvider, "status_polling_interval", 1)
        with SlurmCluster(tmp_path_factory.mktemp("cluster"), nodes=3) as cluster:
            # for all threads: the first of them to end would take it away
            patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
            yield cluster


def config(**options: Any) -> str:
    """Return our config, with an engine that misses a manager after 8 seconds."""
    text = rendering.render(folders.find_folder("slurm"), OPTIONS | options)
    text = text.replace("heartbeat_threshold: 60", "heartbeat_threshold: 8")
    return text.replace("  heartbeat_period: 5", "  heartbeat_period: 1")


class UnderWay:
    """An executor's numbered tasks, on a worker that is warm and keeps programs and a server."""

    def __init__(self, executor: MockExecutor, folder: Path) -> None:
        self._executor = executor
        self._folder = folder
        self._futures: dict[int, Future[Any]] = {}
        self._mark = secrets.token_hex(8)

        self.submit(FIRST)
        _, self.job, self.worker, _ = self._futures[FIRST].result(120)
        executor.submit(programs.start, self._mark).result(120)
        executor.submit(servers.start, self._mark, "node").result(120)
        assert self.kept()

    def submit(self, number: int, gate: str = "") -> None:
        """Submit a task that waits for a file in the folder, or for nothing."""
        arguments = (str(self._folder / "record"), number, str(self._folder / gate))
        self._futures[number] = self._executor.submit(tasks.note_and_wait, *arguments)

    def begun(self) -> Counter[int]:
        """Return how often each task has begun."""
        return Counter(map(int, (self._folder / "record").read_text().split()))

    def begin_long(self) -> None:
        self.submit(LONG, "gate")
        wait_until(lambda: LONG in self.begun(), "the long task runs")

    def end_long(self) -> None:
        (self._folder / "gate").touch()

    def kept(self) -> dict[int, str]:
        """Return the processes of the programs and of the server."""
        return carriers(programs.MARK, self._mark) | carriers("GC_WARM_SERVERS_OF", self._mark)

    def ends(self) -> None:
        """Wait until the worker has ended, and all that it kept."""
        programs_end_with(self.worker, self._mark)
        wait_until(lambda: not self.kept(), "the server has ended")

    def outcome(self, number: int) -> tuple[str, int, int] | str:
        """Return the job, worker and count of a task, or how it was lost."""
        if self._futures[number].exception(300):
            text = remote_text(self._futures[number])
            assert "errors.ManagerLost: Task failure due to loss of manager" in text
            return LOST

        own_number, *outcome = self._futures[number].result()
        assert own_number == number
        return tuple(outcome)

    def outcomes(self) -> dict[int, Any]:
        return {number: self.outcome(number) for number in self._futures}


@dataclass(frozen=True)
class Taken:
    """A job that was taken away under a long task, with others behind it, and what came of all."""

    job: str
    worker: int
    state: str
    outcomes: dict[int, Any]
    begun: Counter[int]


def take(
    cluster: SlurmCluster, folder: Path, text: str, end: Callable[[str], Any], again: bool = False
) -> Taken:
    with on(cluster, text) as executor:
        under_way = UnderWay(executor, folder)
        under_way.begin_long()
        for number in QUEUED:
            under_way.submit(number)

        end(under_way.job)
        under_way.ends()
        under_way.end_long()
        if again:
            cluster.wait_for_state(under_way.job, "PENDING")
            # two minutes later, by itself
            cluster.command("scontrol", "update", f"JobId={under_way.job}", "StartTime=now")

        under_way.submit(LATER)
        outcomes = under_way.outcomes()
        state = cluster.job(under_way.job).state
        return Taken(under_way.job, under_way.worker, state, outcomes, under_way.begun())


def requeued_with_retries(cluster: SlurmCluster, folder: Path) -> Taken:
    text = config().replace("engine:\n", "engine:\n  max_retries_on_system_failure: 1\n")
    return take(
        cluster, folder, text, lambda job: cluster.command("scontrol", "requeue", job), True
    )


def preempt(cluster: SlurmCluster, job: str) -> None:
    """Run a job of more weight on the node of this one."""
    (node,) = cluster.job(job).nodes
    where = ("--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
    cluster.command("sbatch", "--wait", *where, text="#!/bin/sh\n")


def preempted(cluster: SlurmCluster, folder: Path) -> Taken:
    text = config(partition="low", scheduler_options="#SBATCH --exclusive --nodelist=n2")
    return take(cluster, folder, text, lambda job: preempt(cluster, job), True)


def preempted_without_requeue(cluster: SlurmCluster, folder: Path) -> Taken:
    options = "#SBATCH --exclusive --nodelist=n3 --no-requeue"
    text = config(partition="low", scheduler_options=options)
    return take(cluster, folder, text, lambda job: preempt(cluster, job))


def told_to_end(cluster: SlurmCluster, folder: Path) -> Taken:
    """SIGTERM to all processes of the job's step, and none to its shell."""
    return take(
        cluster, folder, config(), lambda job: cluster.command("scancel", "--signal=TERM", job)
    )


def signalled(cluster: SlurmCluster, folder: Path) -> Taken:
    """A signal to the job's shell only, as that of ``--signal=B:USR1`` is."""
    words = ("scancel", "--signal=USR1", "--batch")
    return take(cluster, folder, config(), lambda job: cluster.command(*words, job))


def suspend(cluster: SlurmCluster, under_way: UnderWay) -> None:
    cluster.command("scontrol", "suspend", under_way.job)
    worker = psutil.Process(under_way.worker)
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker is stopped")


def suspended_shortly(cluster: SlurmCluster, folder: Path) -> Taken:
    with on(cluster, config()) as executor:
        under_way = UnderWay(executor, folder)
        under_way.begin_long()

        suspend(cluster, under_way)
        under_way.end_long()
        cluster.command("scontrol", "resume", under_way.job)

        outcomes = under_way.outcomes()
        state = cluster.job(under_way.job).state
        return Taken(under_way.job, under_way.worker, state, outcomes, under_way.begun())


def suspended(cluster: SlurmCluster, folder: Path) -> Taken:
    """Resume it when the engine has given it up, and has another job."""
    with on(cluster, config()) as executor:
        under_way = UnderWay(executor, folder)
        under_way.begin_long()

        suspend(cluster, under_way)
        for number in (*QUEUED, LATER):
            under_way.submit(number)
        outcomes = under_way.outcomes()
        assert cluster.job(under_way.job).state == "SUSPENDED"

        cluster.command("scontrol", "resume", under_way.job)
        under_way.ends()
        all_have_ended(cluster, under_way.job)
        state = cluster.wait_for_state(under_way.job, "COMPLETED", "FAILED").state
        return Taken(under_way.job, under_way.worker, state, outcomes, under_way.begun())


def goes_on_with_a_result(cluster: SlurmCluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the reproduction for upstream, on this very Parsl, without a cluster."""
    command = [sys.executable, str(UPSTREAM)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )


ENDS = {
    "preempted_without_requeue": "PREEMPTED",
    "told_to_end": "FAILED",
    "signalled": "FAILED",
    "suspended": "COMPLETED",
}
JOURNEYS = (
    requeued_with_retries,
    preempted,
    preempted_without_requeue,
    told_to_end,
    signalled,
    suspended_shortly,
    suspended,
    goes_on_with_a_result,
)


@pytest.fixture(scope="module")
def side_by_side(
    cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Any]]:
    """Run all of them at the same time: most of it is waiting."""
    with ThreadPoolExecutor(len(JOURNEYS)) as pool:
        running = {}
        for journey in JOURNEYS:
            folder = tmp_path_factory.mktemp(journey.__name__)
            running[journey.__name__] = pool.submit(journey, cluster, folder)
        return running


def check_that_one_new_worker_served(taken: Taken, job: str, numbers: list[int]) -> None:
    """Check that these tasks ran once on it, which was cold."""
    served = [taken.outcomes[number] for number in numbers]
    assert {outcome[0] for outcome in served} == {job}
    (worker,) = {outcome[1] for outcome in served}
    assert worker != taken.worker
    assert sorted(outcome[2] for outcome in served) == list(range(1, 1 + len(served)))
    assert all(taken.begun[number] == 1 for number in numbers if number != LONG)


def test_a_job_that_runs_again_loses_what_ran(side_by_side: dict[str, Future[Any]]) -> None:
    taken: Taken = side_by_side["preempted"].result()
    assert (taken.outcomes[LONG], taken.begun[LONG]) == (LOST, 1)
    assert taken.state == "RUNNING"
    check_that_one_new_worker_served(taken, taken.job, [*QUEUED, LATER])


def test_a_retried_task_runs_twice(side_by_side: dict[str, Future[Any]]) -> None:
    taken: Taken = side_by_side["requeued_with_retries"].result()
    assert taken.begun[LONG] == 2
    check_that_one_new_worker_served(taken, taken.job, [LONG, *QUEUED, LATER])


@pytest.mark.parametrize("name", ENDS)
def test_a_job_that_ends_loses_what_ran(side_by_side: dict[str, Future[Any]], name: str) -> None:
    taken: Taken = side_by_side[name].result()
    assert (taken.outcomes[LONG], taken.begun[LONG]) == (LOST, 1)
    assert taken.state == ENDS[name]
    job = taken.outcomes[LATER][0]
    assert job != taken.job
    check_that_one_new_worker_served(taken, job, [*QUEUED, LATER])


def test_a_short_suspension_loses_nothing(side_by_side: dict[str, Future[Any]]) -> None:
    taken: Taken = side_by_side["suspended_shortly"].result()
    assert taken.outcomes[LONG] == (taken.job, taken.worker, 2), "warm"
    assert taken.begun[LONG] == 1
    assert taken.state == "RUNNING"


def test_stock_a_manager_that_goes_on_with_a_result_hangs(
    side_by_side: dict[str, Future[Any]],
) -> None:
    """The README says so; once it does not, that is to go."""
    done: subprocess.CompletedProcess[str] = side_by_side["goes_on_with_a_result"].result()
    print(done.stdout)
    assert done.returncode == 0, done.stdout
