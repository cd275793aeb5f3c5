"""Templates on a real Slurm: one for each node of a job, and none after it, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from tests import slurm_cluster
from tests.journeys.test_slurm import Worker, all_have_ended, meet, on
from tests.slurm_cluster import SlurmCluster
from tests.support import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes with cores for all jobs, pretended."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_cluster, "_NODE", slurm_cluster._NODE.replace("{cpus}", "16"))
        patch.setattr(slurm_cluster, "_TASK_PLUGINS", ("task/none",))
        with SlurmCluster(tmp_path_factory.mktemp("cluster")) as cluster:
            # for all threads: the first of them to end would take it away
            patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
            yield cluster


@dataclass(frozen=True)
class Ended:
    """A job that has ended, with no process left.

    It has the nodes of its workers and of their templates, how workers were born, and which
    processes have torn down what was loaded.
    """

    nodes: dict[str, set[int]]
    nodes_of_templates: dict[int, str]
    born: tuple[int | None, str | None]
    state: str
    torn_down: set[int]


def run(
    cluster: SlurmCluster,
    folder: Path,
    end: Callable[[SlurmCluster, list[Worker]], Any],
    **options: Any,
) -> Ended:
    given: dict[str, Any] = {
        "nodes": 2,
        "workers_per_node": 2,
        "preload_node": ["template_loads:load_logbook"],
        "environment": f"export TEMPLATE_FOLDER={folder}",
    }
    with on(cluster, **given, **options) as executor:
        workers = meet(executor, 4, folder / "all")
        born = executor.submit(tasks.birth).result(120)

        nodes: dict[str, set[int]] = {}
        for worker in workers:
            nodes.setdefault(worker.node, set()).add(psutil.Process(worker.pid).ppid())
        templates = set().union(*nodes.values())
        own_nodes = {pid: psutil.Process(pid).environ()["SLURMD_NODENAME"] for pid in templates}

        end(cluster, workers)
        (job,) = {worker.job for worker in workers}
        all_have_ended(cluster, job, 300)
        torn_down = (folder / "ended").read_text().split()
        assert len(torn_down) == len(set(torn_down))
        state = cluster.wait_for_state(job, *STATES, seconds=300).state
        return Ended(nodes, own_nodes, born, state, set(map(int, torn_down)))


def cancel(cluster: SlurmCluster, workers: list[Worker]) -> None:
    cluster.cancel(workers[0].job)


def requeue(cluster: SlurmCluster, workers: list[Worker]) -> None:
    cluster.command("scontrol", "requeue", workers[0].job)


def suspend_and_cancel(cluster: SlurmCluster, workers: list[Worker]) -> None:
    templates = {psutil.Process(worker.pid).ppid() for worker in workers}

    cluster.command("scontrol", "suspend", workers[0].job)
    wait_until(lambda: stopped(templates) == templates, "the templates are stopped")
    cluster.command("scontrol", "resume", workers[0].job)
    wait_until(lambda: not stopped(templates), "the templates go on")
    cancel(cluster, workers)


def stopped(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.Process(pid).status() == psutil.STATUS_STOPPED}


def wait_for_walltime(cluster: SlurmCluster, workers: list[Worker]) -> None:
    pass


STATES = ("CANCELLED", "PENDING", "TIMEOUT", "COMPLETED")
JOURNEYS: dict[str, tuple[Callable[[SlurmCluster, list[Worker]], Any], dict[str, str], str]] = {
    "cancelled": (suspend_and_cancel, {}, STATES[0]),
    "requeued": (requeue, {}, STATES[1]),
    "walltime": (wait_for_walltime, {"walltime": "00:01:00"}, STATES[2]),
}


@pytest.fixture(scope="module")
def side_by_side(
    cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Ended]]:
    """Run all of them at the same time: most of it is waiting."""
    with ThreadPoolExecutor(len(JOURNEYS)) as pool:
        return {
            name: pool.submit(run, cluster, tmp_path_factory.mktemp(name), end, **options)
            for name, (end, options, _) in JOURNEYS.items()
        }


@pytest.mark.parametrize("name", JOURNEYS)
def test_each_node_has_its_template_until_the_end(
    side_by_side: dict[str, Future[Ended]], name: str
) -> None:
    ended = side_by_side[name].result()
    assert [len(templates) for templates in ended.nodes.values()] == [1, 1]
    own = {pid: node for node, templates in ended.nodes.items() for pid in templates}
    assert ended.nodes_of_templates == own
    assert ended.born == (1, None)

    # a job may have drained, and ended, a moment before its walltime
    expected = JOURNEYS[name][2]
    assert ended.state in {expected, "COMPLETED" if expected == "TIMEOUT" else expected}
    assert ended.torn_down == set(own), "once, in each template"
