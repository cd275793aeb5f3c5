"""The configs for Slurm, given only options, on a real Slurm.

These tests say what starts, what stays warm, what ends, and what a failure says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deadlines
import logbook
import preloaded
import programs
import psutil
import pytest
import servers
import tasks

from gc_warm import MockExecutor, functions
from gc_warm.cli import main
from gc_warm.configs import folders, loading, meaning, rendering
from gc_warm.exceptions import ConfigError
from tests import slurm_cluster
from tests.slurm_cluster import SlurmCluster
from tests.support import (
    EXPORT_MODULES,
    MODULES,
    breaks,
    cli_runner,
    programs_end_with,
    remote_text,
    wait_until,
)

pytestmark = pytest.mark.slurm

OPTIONS = {"address": "127.0.0.1", "partition": "debug", "python_path": [str(MODULES)]}
NAMES = ["CUDA_VISIBLE_DEVICES", "PARSL_CORES", "PARSL_WORKER_POOL_ID", "PARSL_WORKER_RANK"]
NAMES += ["SLURM_JOB_ID", "SLURM_NODEID", "SLURM_STEP_GPUS", "SLURMD_NODENAME"]
STRICT = "KillOnBadExit=1\n"
"""A site's setting by which a lost node takes the others' workers along, if no config objects."""


@pytest.fixture(scope="module")
def real_cores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes with the cores of this machine."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("real")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes of a strict site, with two pretended GPUs and cores for all jobs, pretended too."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_cluster, "_NODE", slurm_cluster._NODE.replace("{cpus}", "16"))
        # there is no binding to cores that do not exist
        patch.setattr(slurm_cluster, "_TASK_PLUGINS", ("task/none",))
        patch.setattr(slurm_cluster, "_CONFIGURATION", STRICT + slurm_cluster._CONFIGURATION)
        cluster = SlurmCluster(tmp_path_factory.mktemp("roomy"), gpus_per_node=2)
        cluster.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(cluster)
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Restore what `on` sets, once no thread uses it any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", "")
        del os.environ["SLURM_CONF"]
        yield


@contextlib.contextmanager
def on(cluster: SlurmCluster, config: str = "slurm", **options: Any) -> Iterator[MockExecutor]:
    """An executor on a config whose jobs go to this cluster, as do those beside it."""
    os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
    given = {} if "\n" in config else OPTIONS | options  # a config as text takes none
    executor = MockExecutor(config=config, user_endpoint_config=given)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)  # a task may wait for a job that never starts
        assert executor._ending is not None
        executor._ending.join()  # which cancels the jobs of this cluster


SLURM = f"""
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: 1
  heartbeat_period: 5
  heartbeat_threshold: 60
  provider:
    type: SlurmProvider
    partition: debug
    exclusive: false
    cores_per_node: 1
    worker_init: |
      {EXPORT_MODULES}
"""
"""A config as people write it, on which rules have something to say."""


@dataclass(frozen=True)
class Worker:
    """A worker as a task sees it."""

    pid: int
    count: int
    cores: list[int]
    environment: dict[str, str]

    @property
    def node(self) -> str:
        return self.environment["SLURMD_NODENAME"]

    @property
    def job(self) -> str:
        return self.environment["SLURM_JOB_ID"]


def meet(executor: MockExecutor, number: int, folder: Path) -> list[Worker]:
    """Return all workers, in the order of nodes and ranks.

    Tasks that wait for each other reach all of them.
    """
    folder.mkdir()
    arguments = (str(folder), number, NAMES)
    futures = [executor.submit(tasks.meet_and_tell, *arguments) for _ in range(number)]
    workers = [Worker(*future.result(120)) for future in futures]
    return sorted(workers, key=lambda each: (each.node, each.environment["PARSL_WORKER_RANK"]))


def processes_of(cluster: SlurmCluster, job: str) -> set[int]:
    """Return all processes of a job: its own, and Slurm's for it."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            belongs = is_step(process, cluster, job) or is_own(process, cluster, job)
            if belongs and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def is_step(process: psutil.Process, cluster: SlurmCluster, job: str) -> bool:
    title = " ".join(process.cmdline())
    return title.startswith(f"slurmstepd: [{job}.") and process.cwd() == str(cluster.folder)


def is_own(process: psutil.Process, cluster: SlurmCluster, job: str) -> bool:
    environment = process.environ()
    is_on_cluster = environment.get("SLURM_CONF") == cluster.environment["SLURM_CONF"]
    return is_on_cluster and environment.get("SLURM_JOB_ID") == job


def all_have_ended(cluster: SlurmCluster, job: str, seconds: float = 120) -> None:
    what = f"all processes of job {job} have ended"
    wait_until(lambda: not processes_of(cluster, job), what, seconds)


def jobs_of_the_engine_of(cluster: SlurmCluster, job: str) -> list[str]:
    """Return this job and its engine's others: their scripts lie side by side."""
    options = ("--noheader", "--states=all", "--sort=i", "--format=%i %o")
    folders = {}
    for line in cluster.command("squeue", *options).splitlines():
        number, script = line.strip().split(maxsplit=1)
        folders[number] = os.path.dirname(script)
    return [number for number, folder in folders.items() if folder == folders[job]]


def profile_of(config: str, **options: Any) -> meaning.WarmthProfile:
    folder = folders.find_folder(config)
    text = rendering.render(folder, OPTIONS | options)
    return meaning.warmth_profile(loading.load(text, folders.template_path(folder)))


def run_seconds(cluster: SlurmCluster, job: str) -> int:
    """Return how long a job that has ended has run."""
    found = re.search(r"RunTime=(\d+):(\d+):(\d+)", cluster.command("scontrol", "show", "job", job))
    assert found
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core only")
def test_gcw039_all_workers_of_a_node_share_a_core(
    real_cores: SlurmCluster, tmp_path: Path
) -> None:
    launcher = "launcher: {type: SrunLauncher, overrides: --exact}"
    text = SLURM.replace("cores_per_node: 1", f"cores_per_node: 2\n    {launcher}")
    text = text.replace("max_workers_per_node: 1", "max_workers_per_node: 2\n  drain_period: 60")
    with on(real_cores, breaks(text, "GCW039")) as executor:
        assert [worker.cores for worker in meet(executor, 2, tmp_path / "all")] == [[0], [0]]


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core only")
@pytest.mark.parametrize(
    "binding",
    [{}, {"bind_cores": True}, {"cpu_affinity": "list:1:0"}],
    ids=["free", "bound", "listed"],
)
def test_each_node_has_its_workers_with_the_cores_asked_for_until_shutdown(
    real_cores: SlurmCluster, binding: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"nodes": 2, "workers_per_node": 2, **binding}
    profile = profile_of("slurm", **options)
    path = tmp_path / "logbook"
    assert profile.copies == 4
    with on(real_cores, **options) as executor:
        workers = meet(executor, profile.copies, tmp_path / "all")
        (job,) = {worker.job for worker in workers}
        assert executor.submit(logbook.note, str(path)).result(120) == 1
        assert len(processes_of(real_cores, job)) > profile.copies
        asked = real_cores.command("scontrol", "show", "job", job)

    assert (profile.walltime, profile.nodes_per_job) == (3600, 2)
    assert "TimeLimit=01:00:00" in asked
    assert "NumNodes=2 " in asked
    assert [worker.node for worker in workers] == ["n1", "n1", "n2", "n2"]
    assert [worker.environment["SLURM_NODEID"] for worker in workers] == ["0", "0", "1", "1"]
    assert [worker.environment["PARSL_WORKER_RANK"] for worker in workers] == ["0", "1", "0", "1"]
    managers = {worker.environment["PARSL_WORKER_POOL_ID"] for worker in workers}
    assert len(managers) == 2, "one on each node"
    assert {worker.environment["PARSL_CORES"] for worker in workers} == {"2"}

    if "cpu_affinity" in binding:
        assert [list(worker.cores) for worker in workers] == [[1], [0], [1], [0]]
    elif binding:
        assert [len(worker.cores) for worker in workers] == [1] * 4
        assert workers[0].cores != workers[1].cores
        assert workers[2].cores != workers[3].cores
    elif real_cores.binds_cores:
        assert [len(worker.cores) for worker in workers] == [2] * 4
        assert cores_of_a_step_that_does_not_ask(real_cores, tmp_path) == 1

    all_have_ended(real_cores, job)
    assert real_cores.wait_for_state(job, "CANCELLED").ended
    assert path.read_text() == "loaded\ntorn down after 1\n"


def cores_of_a_step_that_does_not_ask(cluster: SlurmCluster, folder: Path) -> int:
    """Return the cores that managers would have without -c, in a job of this size on one node."""
    size = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2")
    script = "#!/bin/sh\nsrun nproc\n"
    cluster.command("sbatch", "--wait", f"--output={folder}/cores", *size, text=script)
    return int((folder / "cores").read_text())


@dataclass(frozen=True)
class Kept:
    """A job that ends because there has been no task for long enough."""

    counts: list[int]
    first: Worker
    state: str
    seconds: float
    notes: str
    second: Worker


def keeps_warm_and_ends(cluster: SlurmCluster, folder: Path) -> Kept:
    path = folder / "logbook"
    with on(cluster, keep_warm=0.1) as executor:
        first = meet(executor, 1, folder / "first")[0]
        counts = [executor.submit(functions.count).result(120) for _ in range(100)]
        # before the last task, and not when this thread has come to know of its end
        begun = time.monotonic()
        executor.submit(logbook.note, str(path)).result(120)
        wait_until(lambda: cluster.job(first.job).ended, "the job has ended")
        seconds = time.monotonic() - begun
        all_have_ended(cluster, first.job)
        state = cluster.job(first.job).state
        notes = path.read_text()
        second = meet(executor, 1, folder / "second")[0]
        return Kept(counts, first, state, seconds, notes, second)


@dataclass(frozen=True)
class Drained:
    """Tasks of a second each, which outlast their job; each with its job, its begin and its end."""

    runs: list[tuple[str, float, float]]
    states: dict[str, str]
    notes: str


def drains(cluster: SlurmCluster, folder: Path) -> Drained:
    path = folder / "logbook"
    with on(cluster, walltime="00:01:00") as executor:
        executor.submit(logbook.note, str(path)).result(120)
        futures = [executor.submit(tasks.work, 1.0) for _ in range(60)]
        runs = [future.result(600) for future in futures]
        jobs = jobs_of_the_engine_of(cluster, runs[0][0])
        return Drained(runs, {job: cluster.job(job).state for job in jobs}, path.read_text())


@dataclass(frozen=True)
class Ended:
    """A job that ends under a task, with the programs of its worker.

    It says how long the job ran, how much later the task has failed, and with which text.
    """

    job: str
    state: str
    run_seconds: int
    seconds_until_failed: float
    text: str
    notes: str
    next: Worker


def is_ended(
    cluster: SlurmCluster,
    folder: Path,
    options: dict[str, Any],
    end: Callable[[str], None],
    patience: float,
) -> Ended:
    path = folder / "logbook"
    begun = folder / "begun"
    with on(cluster, **options) as executor:
        executor.submit(logbook.note, str(path)).result(120)
        mark = secrets.token_hex(8)
        worker, _ = executor.submit(programs.start, mark).result(120)
        future = executor.submit(tasks.for_ever, str(begun))
        wait_until(lambda: begun.exists() or future.done(), "the task has begun")
        job = psutil.Process(int(begun.read_text())).environ()["SLURM_JOB_ID"]

        end(job)
        programs_end_with(worker, mark, patience)
        all_have_ended(cluster, job, patience)
        gone = time.monotonic()
        text = remote_text(future, 300)
        seconds = time.monotonic() - gone

        state = cluster.wait_for_state(job, "CANCELLED", "TIMEOUT").state
        ran = run_seconds(cluster, job)
        notes = path.read_text()
        next_worker = meet(executor, 1, folder / "next")[0]
        return Ended(job, state, ran, seconds, text, notes, next_worker)


def is_cancelled(cluster: SlurmCluster, folder: Path) -> Ended:
    return is_ended(cluster, folder, {}, cluster.cancel, 120)


def reaches_its_walltime(cluster: SlurmCluster, folder: Path) -> Ended:
    return is_ended(cluster, folder, {"walltime": "00:01:00"}, lambda job: None, 300)


@dataclass(frozen=True)
class Halved:
    """A job of two nodes that loses all processes on the second.

    It has what tasks gave after that, and how long it took until all had ended.
    """

    survivor: Worker
    lost: Worker
    answers: list[tuple[int, int]]
    failures: list[str]
    seconds: float


def loses_a_node(cluster: SlurmCluster, folder: Path, **options: Any) -> Halved:
    with on(cluster, nodes=2, **options) as executor:
        survivor, lost = meet(executor, 2, folder / "before")
        kill_manager_of(lost)
        wait_until(
            lambda: "Exited with exit code 137" in errors_of(cluster, lost.job), "srun knows"
        )

        begun = time.monotonic()
        # one each, as far as the engine knows
        futures: list[Future[Any]] = [executor.submit(tasks.work, 5.0) for _ in range(2)]
        futures += [executor.submit(tasks.pid_and_count) for _ in range(10)]
        failures = [remote_text(future, 300) for future in futures if future.exception(300)]
        answers = [future.result() for future in futures[2:] if not future.exception()]
        return Halved(survivor, lost, answers, failures, time.monotonic() - begun)


def kill_manager_of(worker: Worker) -> None:
    """Kill all of it, as a lack of memory would: srun is not told while a child of it is left."""
    manager = psutil.Process(worker.pid).parent()
    assert manager
    for process in [manager, *manager.children(recursive=True)]:
        process.kill()


def errors_of(cluster: SlurmCluster, job: str) -> str:
    found = re.search("StdErr=(.*)", cluster.command("scontrol", "show", "job", job))
    assert found
    return Path(found[1]).read_text()


def loses_a_node_where_srun_does_not_wait(cluster: SlurmCluster, folder: Path) -> Halved:
    return loses_a_node(cluster, folder, environment="export SLURM_WAIT=2")


@dataclass(frozen=True)
class Lost:
    """A job without a drain at its walltime: its state, and what became of its last task."""

    state: str
    text: str


def loses_a_task(cluster: SlurmCluster, folder: Path) -> Lost:
    """Tasks follow each other, as they do in a job that drains."""
    text = SLURM + '    walltime: "00:01:00"\n    scheduler_options: "#SBATCH --cpus-per-task=1"\n'
    with on(cluster, breaks(text, "GCW016")) as executor:
        job, _, _ = executor.submit(tasks.work, 0.1).result(120)
        while True:
            future = executor.submit(tasks.work, 3.0)
            if future.exception(600) is not None:
                return Lost(cluster.job(job).state, remote_text(future))
            assert future.result()[0] == job, "it takes tasks until it is killed"


@dataclass(frozen=True)
class Preloaded:
    """What the first task of every worker found, and the next after one worker was killed.

    It has the seconds until the worker was replaced, too.
    """

    first: list[preloaded.State]
    second: list[preloaded.State]
    killed: int
    error: str
    seconds: float


def preloads(cluster: SlurmCluster, folder: Path) -> Preloaded:
    """Four workers on two nodes, with a site's own sitecustomize."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import os, pathlib\npathlib.Path({str(folder)!r}, f'site-{{os.getpid()}}').touch()\n"
    )
    options = {
        "nodes": 2,
        "gpus_per_node": 2,
        "preload": ["preloaded:table"],
        "survive_idle_kill": True,
    }
    (folder / "meeting").mkdir()
    with on(cluster, "slurm-gpu", **options, python_path=[str(site), str(MODULES)]) as executor:
        first = [executor.submit(preloaded.use, str(folder / "meeting"), 4) for _ in range(4)]
        wait(first, 300)

        busy = executor.submit(tasks.for_ever, str(folder / "started"))
        wait_until((folder / "started").exists, "it is busy")
        killed = int((folder / "started").read_text())
        os.kill(killed, signal.SIGKILL)

        begun = time.monotonic()
        second = [executor.submit(preloaded.use, str(folder / "meeting"), 8) for _ in range(4)]
        wait(second, 300)
        seconds = time.monotonic() - begun
        return Preloaded(
            first=[future.result(0) for future in first],
            second=[future.result(0) for future in second],
            killed=killed,
            error=remote_text(busy),
            seconds=seconds,
        )


JOURNEYS = (
    drains,
    loses_a_task,
    reaches_its_walltime,
    is_cancelled,
    loses_a_node,
    loses_a_node_where_srun_does_not_wait,
    keeps_warm_and_ends,
    preloads,
)


@pytest.fixture(scope="module")
def side_by_side(
    roomy: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Any]]:
    """Run all that takes minutes of waiting, at the same time."""
    folders = {journey.__name__: tmp_path_factory.mktemp(journey.__name__) for journey in JOURNEYS}
    with ThreadPoolExecutor(len(JOURNEYS)) as pool:
        first = pool.submit(drains, roomy, folders["drains"])
        # Its short job has to start in the time that the config grants a start, so the others leave
        # it alone.
        wait_until(
            lambda: (folders["drains"] / "logbook").exists() or first.done(),
            "the first of them runs",
        )
        running: dict[str, Future[Any]] = {"drains": first}
        others: list[Callable[[SlurmCluster, Path], Any]] = list(JOURNEYS[1:])
        for journey in others:
            name = journey.__name__
            running[name] = pool.submit(journey, roomy, folders[name])
        return running


def test_preload_has_every_worker_of_two_nodes_warm_before_its_first_task(
    side_by_side: dict[str, Future[Any]],
) -> None:
    found: Preloaded = side_by_side["preloads"].result()
    pids = {state.pid for state in found.first}
    assert len(pids) == 4
    assert len({state.environment["PARSL_WORKER_POOL_ID"] for state in found.first}) == 2
    for state in found.first:
        assert (state.loads, state.hits) == (1, 1), "loaded before the first task, and found by it"
        pinned_to = state.environment["CUDA_VISIBLE_DEVICES"]
        assert state.device == pinned_to, "pinned when it was loaded"
    assert sorted(state.device or "" for state in found.first) == ["0", "0", "1", "1"]

    site = Path(found.first[0].environment["PYTHONPATH"].split(os.pathsep)[0])
    paths = site.parent.glob("site-*")
    assert pids <= {int(path.name.removeprefix("site-")) for path in paths}

    assert "WorkerLost" in found.error
    (new,) = (state for state in found.second if state.pid not in pids)
    assert (new.loads, new.hits) == (1, 1), "warm before its first task, too"
    assert found.killed not in {state.pid for state in found.second}
    seconds = f"{found.seconds:.1f} s"
    print(f"replaced, and warm, {seconds} after its death; the engine's heartbeat is 5 s")


def test_a_worker_stays_warm_for_a_hundred_tasks_until_there_are_none(
    side_by_side: dict[str, Future[Any]],
) -> None:
    kept: Kept = side_by_side["keeps_warm_and_ends"].result()
    assert kept.counts == list(range(1, 101))
    assert (kept.state, kept.notes) == ("CANCELLED", "loaded\ntorn down after 1\n")
    assert kept.seconds >= 6, "a tenth of a minute without a task"
    seconds = f"{kept.seconds:.1f} s"
    print(f"its job had ended {seconds} after the last task, of which it stays warm for 6")
    assert kept.second.job != kept.first.job
    assert kept.second.count == 1


def test_a_job_that_drains_loses_no_task(side_by_side: dict[str, Future[Any]]) -> None:
    drained: Drained = side_by_side["drains"].result()
    first, second = drained.states
    jobs = [job for job, _, _ in drained.runs]
    assert jobs == sorted(jobs, key=[first, second].index)
    # the first ended by itself, and not for its walltime
    assert drained.states == {first: "COMPLETED", second: "RUNNING"}
    assert drained.notes == "loaded\ntorn down after 1\n"
    begins = [begun for job, begun, _ in drained.runs if job == second]
    ends = [ended for job, _, ended in drained.runs if job == first]
    print(
        f"{begins[0] - ends[-1]:.0f} s between two jobs; "
        "the engine asks Slurm every 60 s what has become of one"
    )


def test_gcw016_a_job_that_does_not_drain_loses_a_task(
    side_by_side: dict[str, Future[Any]],
) -> None:
    lost: Lost = side_by_side["loses_a_task"].result()
    assert lost.state == "TIMEOUT"
    assert "errors.ManagerLost: Task failure due to loss of manager" in lost.text


def test_a_cancelled_job_leaves_no_process_and_its_task_fails(
    side_by_side: dict[str, Future[Any]],
) -> None:
    ended: Ended = side_by_side["is_cancelled"].result()
    assert ended.state == "CANCELLED"
    assert "errors.ManagerLost: Task failure due to loss of manager" in ended.text
    print(
        f"its task failed {ended.seconds_until_failed:.0f} s after its job's end; "
        "the engine misses a manager after 60 s"
    )
    assert ended.notes == "loaded\ntorn down after 1\n"
    assert ended.next.job != ended.job
    assert ended.next.count == 1


def test_a_job_at_its_walltime_leaves_no_process_and_its_task_fails(
    side_by_side: dict[str, Future[Any]],
) -> None:
    ended: Ended = side_by_side["reaches_its_walltime"].result()
    assert ended.state == "TIMEOUT"
    assert ended.run_seconds >= 60
    assert "errors.ManagerLost: Task failure due to loss of manager" in ended.text
    print(
        f"its task failed {ended.seconds_until_failed:.0f} s after its job's end; "
        "the engine misses a manager after 60 s"
    )
    assert ended.notes == "loaded\ntorn down after 1\n"
    assert ended.next.job != ended.job
    assert ended.next.count == 1


def check_that_the_other_node_stayed_warm(halved: Halved) -> None:
    assert (halved.survivor.node, halved.lost.node) == ("n1", "n2")
    counts = range(2, 2 + len(halved.answers))
    assert halved.answers == [(halved.survivor.pid, count) for count in counts]
    # the engine believes in the lost manager until it has missed it for long enough
    (failure,) = halved.failures
    assert "errors.ManagerLost: Task failure due to loss of manager" in failure
    print(
        f"all tasks had ended {halved.seconds:.0f} s after the loss; "
        "the engine misses a manager after 60 s"
    )


def test_the_loss_of_one_node_leaves_the_workers_of_the_other_warm(
    side_by_side: dict[str, Future[Any]],
) -> None:
    check_that_the_other_node_stayed_warm(side_by_side["loses_a_node"].result())


def test_the_loss_of_one_node_leaves_the_workers_of_the_other_warm_where_srun_does_not_wait(
    side_by_side: dict[str, Future[Any]],
) -> None:
    halved = side_by_side["loses_a_node_where_srun_does_not_wait"].result()
    check_that_the_other_node_stayed_warm(halved)


def seconds_left(executor: MockExecutor, folder: Path, number: int) -> dict[str, float | None]:
    """Return how long is left on each node, by a task on every worker."""
    folder.mkdir()
    arguments = (str(folder), number)
    futures = [executor.submit(deadlines.seconds_left_on_each, *arguments) for _ in range(number)]
    return dict(sorted(future.result(120) for future in futures))


def test_tasks_know_how_long_their_job_has_left(roomy: SlurmCluster, tmp_path: Path) -> None:
    with on(roomy, nodes=2, walltime="00:05:00", preload=["preloaded:too_long"]) as executor:
        first = seconds_left(executor, tmp_path / "first", 2)
        second = seconds_left(executor, tmp_path / "second", 2)
        text = remote_text(executor.submit(deadlines.look_up, 301))
        assert executor.submit(deadlines.look_up, 5).result(120) == "took 5 s"

    assert [*first] == [*second] == ["n1", "n2"]
    for node, left in first.items():
        later = second[node]
        assert left is not None
        assert later is not None
        assert 300 >= left > later > 0
    print(f"of 300 s there are left: {first}")
    said = r"NotEnoughTimeError: 301\.0 s are needed, and this worker's job ends in [12]\d\d\.\d s"
    assert re.search(said, text), text


def test_each_node_of_a_job_has_a_server(roomy: SlurmCluster, tmp_path: Path) -> None:
    with on(roomy, nodes=2, workers_per_node=2, preload=["servers:node.start"]) as executor:
        arguments = (str(tmp_path), 4)
        futures = [executor.submit(servers.meet_and_ask, *arguments) for _ in range(4)]
        pids = sorted({future.result(120) for future in futures})
        assert [node for node, _ in pids] == ["n1", "n2"]
    wait_until(lambda: not any(psutil.pid_exists(pid) for _, pid in pids), "they have ended")


CANNOT_START: list[tuple[dict[str, Any], str]] = [
    ({"partition": "nowhere"}, "sbatch: error: invalid partition specified: nowhere"),
    ({"memory": 90000}, "sbatch: error: Memory specification can not be satisfied"),
    (
        {"environment": "exit 3"},
        "block 0: ended before its workers were ready. There is no more in its logs",
    ),
    ({"environment": "module load nothing; exit 3"}, "module: command not found"),
]


def test_a_config_that_cannot_start_says_so_in_the_words_of_sbatch_or_of_the_job(
    roomy: SlurmCluster,
) -> None:
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(on(roomy, **options)) for options, _ in CANNOT_START]
        futures = [executor.submit(tasks.rank) for executor in executors]
        texts = [remote_text(future, 300) for future in futures]
    for text, (_, words) in zip(texts, CANNOT_START, strict=True):
        assert "WorkerStartError: no worker can start" in text
        assert words in text


def test_a_job_that_never_starts_is_waited_for_until_shutdown(roomy: SlurmCluster) -> None:
    before = roomy.jobs()
    with on(roomy, cores_per_worker=100) as executor:
        future = executor.submit(tasks.rank)
        wait_until(lambda: len(roomy.jobs()) > len(before), "there is a job")
        job = roomy.jobs()[-1]
        # Slurm says that it is pending, as for one that will start in an hour
        assert not wait([future], 5).done
        assert (job.state, job.nodes) == ("PENDING", ())
    assert "the engine was shut down" in remote_text(future)
    assert roomy.job(job.id).state == "CANCELLED"


NVIDIA_SMI = """#!/bin/sh
echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)'
echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-0f2d4b1e-7c1a-9e55-6a3f-8d1c2b7e4a90)'
"""
GPUS: list[tuple[dict[str, Any], bool, list[str]]] = [
    ({}, False, ["0", "1"]),
    ({"gpu_type": "h100"}, False, ["0", "1"]),
    (
        {"workers_per_node": 4, "accelerators": ["tile0", "tile1"]},
        False,
        ["tile0", "tile0", "tile1", "tile1"],
    ),
    ({"workers_per_node": 4}, True, ["0", "0", "1", "1"]),
]


@pytest.mark.parametrize(
    ("options", "nvidia_smi", "devices"), GPUS, ids=["one-each", "of-a-type", "named", "shared"]
)
def test_workers_share_the_gpus_of_a_job(
    roomy: SlurmCluster,
    options: dict[str, Any],
    nvidia_smi: bool,
    devices: list[str],
    tmp_path: Path,
) -> None:
    if nvidia_smi:
        (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
        (tmp_path / "nvidia-smi").chmod(0o700)
        options = options | {"environment": f"export PATH={tmp_path}:$PATH"}
    profile = profile_of("slurm-gpu", gpus_per_node=2, **options)
    assert list(profile.devices) == devices
    with on(roomy, "slurm-gpu", gpus_per_node=2, **options) as executor:
        workers = meet(executor, len(devices), tmp_path / "all")
        asked = roomy.command("scontrol", "show", "job", workers[0].job)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers] == devices
    cores = re.search(r"NumCPUs=(\d+)", asked)
    kind = f"{options['gpu_type']}:" if "gpu_type" in options else ""
    gpus = re.search(rf"TresPerNode=gres[:/]gpu:{kind}(\d+)", asked)
    assert cores, asked
    assert gpus, asked
    assert profile.part_of_node == (int(cores[1]), int(gpus[1])) == (len(devices), 2)


def test_devices_are_counted_from_the_first_so_that_a_site_has_to_hide_those_of_others(
    roomy: SlurmCluster, tmp_path: Path
) -> None:
    sleeper = "#!/bin/sh\nexec sleep 300\n"
    size = ("--nodes=2", "--gpus-per-node=1")
    command = ["sbatch", "--parsable", *size, f"--output={tmp_path}/out"]
    other = roomy.command(*command, text=sleeper).strip()
    roomy.wait_for_state(other, "RUNNING")
    try:
        with on(roomy, "slurm-gpu") as executor:
            (worker,) = meet(executor, 1, tmp_path / "all")
    finally:
        roomy.cancel(other)
        roomy.wait_for_state(other, "CANCELLED")
    assert worker.environment["SLURM_STEP_GPUS"] == "1"
    # on a site with ConstrainDevices, that is the one it was granted
    assert worker.environment["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_program_in_a_job_step_of_its_own_has_to_share_the_workers_cores(
    real_cores: SlurmCluster,
) -> None:
    """An MPI program inside a warm worker needs that."""
    with on(real_cores) as executor:
        # as the README has it
        shared = "env -u SLURM_LABELIO srun --overlap --ntasks=1 --cpus-per-task=1 echo ran"
        assert executor.submit(tasks.run, *shared.split()).result(120) == (0, "ran\n")
        alone = "srun --immediate=2 --ntasks=1 --cpus-per-task=1 echo ran"
        status, said = executor.submit(tasks.run, *alone.split()).result(120)
    assert status != 0
    assert "ran\n" not in said, said


def test_workers_that_cannot_share_the_gpus_evenly_are_refused_before_anything_starts(
    roomy: SlurmCluster,
) -> None:
    before = roomy.jobs()
    refusal = r"workers_per_node \(3\) has to be a multiple of the number of devices \(2\)"
    with (
        pytest.raises(ConfigError, match=refusal),
        on(roomy, "slurm-gpu", gpus_per_node=2, workers_per_node=3),
    ):
        pass
    assert roomy.jobs() == before


def test_gcw010_all_managers_are_on_the_first_node(roomy: SlurmCluster, tmp_path: Path) -> None:
    text = SLURM.replace("  provider:", "  drain_period: 300\n  provider:")
    text += "    nodes_per_block: 2\n"
    with on(roomy, breaks(text, "GCW010")) as executor:
        workers = meet(executor, 2, tmp_path / "meeting")
    assert len({worker.environment["PARSL_WORKER_POOL_ID"] for worker in workers}) == 2
    assert [worker.node for worker in workers] == ["n1", "n1"]


def test_gcw022_a_program_in_the_background_is_on_the_first_node_only(
    roomy: SlurmCluster, tmp_path: Path
) -> None:
    text = SLURM.replace("  provider:", "  drain_period: 300\n  provider:")
    text += f"      echo $SLURMD_NODENAME >> {tmp_path / 'started'} &\n"
    text += "    nodes_per_block: 2\n"
    text += "    launcher:\n      type: SrunLauncher\n      overrides: --overlap\n"
    with on(roomy, breaks(text, "GCW022")) as executor:
        workers = meet(executor, 2, tmp_path / "meeting")
    assert [worker.node for worker in workers] == ["n1", "n2"]
    assert (tmp_path / "started").read_text() == "n1\n"


def test_gcw035_a_signal_ends_a_job_before_its_walltime(roomy: SlurmCluster) -> None:
    text = SLURM.replace("  provider:", "  drain_period: 60\n  provider:")
    text = text.replace("heartbeat_threshold: 60", "heartbeat_threshold: 10")
    text += "    walltime: '00:02:00'\n    launcher: {type: SrunLauncher}\n"
    text += "    scheduler_options: '#SBATCH --signal=USR1@100'\n"
    with on(roomy, breaks(text, "GCW035")) as executor:
        future = executor.submit(tasks.wait_for_file, "/never")
        assert "ManagerLost" in remote_text(future, 300)
        job = roomy.jobs()[-1]
    roomy.wait_for_state(job.id, "COMPLETED", "FAILED")
    assert run_seconds(roomy, job.id) < 120


def test_gcw036_a_job_is_run_again_and_its_task_is_not(roomy: SlurmCluster, tmp_path: Path) -> None:
    text = SLURM.replace("  provider:", "  drain_period: 300\n  provider:")
    text = text.replace("heartbeat_threshold: 60", "heartbeat_threshold: 10")
    text += "    scheduler_options: '#SBATCH --requeue'\n"
    with on(roomy, breaks(text, "GCW036")) as executor:
        (first,) = meet(executor, 1, tmp_path / "first")
        begun = tmp_path / "begun"
        lost = executor.submit(tasks.begin_and_wait, str(begun), "/never")
        wait_until(begun.exists, "the task runs")

        roomy.command("scontrol", "requeue", first.job)
        assert "ManagerLost" in remote_text(lost, 300)
        # two minutes later, by itself
        roomy.command("scontrol", "update", f"JobId={first.job}", "StartTime=now")
        (again,) = meet(executor, 1, tmp_path / "again")
    assert (again.job, again.count) == (first.job, 1)
    assert again.pid != first.pid


def findings(*words: str) -> tuple[int, list[dict[str, str]]]:
    """Return the exit status of ``gc-warm check slurm --here``, and what it finds."""
    arguments = ["check", "slurm", "--here", "--json", *words]
    result = cli_runner().invoke(main, arguments, catch_exceptions=False)
    found: list[dict[str, str]] = json.loads(result.stdout)["targets"][0]["findings"]
    return result.exit_code, found


def test_check_looks_at_the_scheduler_and_finds_the_jobs_of_endpoints_that_are_gone(
    roomy: SlurmCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", roomy.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    script = tmp_path / "endpoint" / "submit_scripts" / "script"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    job = roomy.command("sbatch", "--parsable", f"--output={tmp_path}/out", str(script)).strip()
    roomy.wait_for_state(job, "RUNNING")
    try:
        status, found = findings("-o", "partition=debug")
        there = {finding["about"]: finding["level"] for finding in found}
        assert status == 0
        assert [there[command] for command in ("sbatch", "squeue", "scancel")] == ["ok"] * 3
        assert "partition debug" not in there, "only one that is not there is worth a word"

        left = [finding["text"] for finding in found if finding["about"] == "left behind"]
        jobs_left = [text for text in left if text.startswith("job")]
        assert jobs_left == [text for text in left if f"job {job}, of the endpoint in" in text]
        endpoint = tmp_path / "endpoint"
        gone = f"of the endpoint in {endpoint}, which does not run on this machine"
        assert any(gone in text for text in left)
    finally:
        roomy.cancel(job)
        roomy.wait_for_state(job, "CANCELLED")

    status, found = findings("-o", "partition=nowhere")
    about_partition = [each["text"] for each in found if each["about"] == "partition nowhere"]
    assert status == 1
    assert about_partition == ["there are debug"]
    assert not [finding for finding in found if finding["text"].startswith("job")]
