"""The Slurm of the tests is one: what it grants, runs and ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm_cluster import SlurmCluster
from tests.support import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), gpus_per_node=2) as cluster:
        yield cluster


def submit(cluster: SlurmCluster, folder: Path, script: str, *options: str) -> str:
    command = ["sbatch", "--parsable", f"--output={folder}/out", *options]
    return cluster.command(*command, text=f"#!/bin/sh\n{script}\n").strip()


def test_a_job_runs_on_two_nodes_with_the_gpus_it_was_granted(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    script = "srun sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
    job_id = submit(
        cluster, tmp_path, script, "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2"
    )
    job = cluster.wait_for_state(job_id, "COMPLETED")
    assert job.nodes == ("n1", "n2")
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["n1 0,1", "n2 0,1"]


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core only")
def test_a_step_is_bound_to_the_cores_it_asks_for(cluster: SlurmCluster, tmp_path: Path) -> None:
    if not cluster.binds_cores:
        pytest.skip("slurmd cannot bind cores here")
    script = "srun nproc; srun --cpus-per-task=2 nproc"
    job_id = submit(cluster, tmp_path, script, "--ntasks=1", "--cpus-per-task=2")
    cluster.wait_for_state(job_id, "COMPLETED")
    assert (tmp_path / "out").read_text().split() == ["1", "2"]


def test_a_cancelled_job_ends_and_can_still_be_asked_about(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    job_id = submit(cluster, tmp_path, "exec sleep 300", "--job-name=sleeper")
    assert cluster.wait_for_state(job_id, "RUNNING").name == "sleeper"
    cluster.cancel(job_id)
    assert cluster.wait_for_state(job_id, "CANCELLED").ended
    assert "JobState=CANCELLED" in cluster.command("scontrol", "show", "job", job_id)


def test_two_clusters_at_a_time_have_jobs_of_their_own_and_end_them(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    with SlurmCluster(tmp_path / "other", nodes=1) as other:
        # Both processes ignore the polite signal, and Slurm does not find the one that left the
        # family.
        job_id = submit(other, tmp_path, "trap '' TERM; setsid -f sleep 300; echo both; sleep 300")
        wait_until(
            lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == "both\n",
            "both processes run",
        )
        assert [job.id for job in other.jobs()] == [job_id]
        assert [job for job in cluster.jobs() if not job.ended] == []
    # The check for what tests leave behind looks for the job's own processes, but cannot tell whose
    # a slurmstepd is.
    folders = [process.info["cwd"] for process in psutil.process_iter(["cwd"])]
    assert str(other.folder) not in folders


def test_a_cluster_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    monkeypatch.setattr("tests.slurm_cluster._TASK_PLUGINS", ("task/nonsense",))
    with (
        pytest.raises(RuntimeError, match="cannot find task plugin for task/nonsense"),
        SlurmCluster(tmp_path),
    ):
        pass
    with pytest.raises(ValueError, match="too long"):
        SlurmCluster(tmp_path / ("x" * 100))
