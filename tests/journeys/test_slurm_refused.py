"""A job that a real Slurm refuses: what the endpoint does, what `check` says, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gc_warm.cli import main
from gc_warm.hooks import backoff
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon
from tests.slurm_cluster import SlurmCluster
from tests.support import cli_runner, client_environment, wait_until

pytestmark = pytest.mark.slurm

CLIENT = """
import json, sys
from globus_compute_sdk import Executor

def ours():
    import os
    return {name: value for name, value in os.environ.items() if "gc_warm/hooks" in value}

with Executor(sys.argv[1]) as executor:
    print(json.dumps(executor.submit(ours).result(300)))
"""
WORDS = "sbatch: error: invalid partition specified: later"


def test_refused_job_is_said_and_asked_for_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that is there only later: the task waits, and no hook is in its environment."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "gc_warm", "configure", "mine", "slurm"]
    options = ["-o", "partition=later", "-o", "address=127.0.0.1"]
    home = {"GLOBUS_COMPUTE_USER_DIR": str(tmp_path)}
    subprocess.run([*command, *options], env={**os.environ, **home}, check=True, timeout=120)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)

    with SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=1) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        with LocalCloud() as cloud, EndpointDaemon(cloud, tmp_path / "mine") as endpoint:
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, endpoint.endpoint_id],
                env={**client_environment(), **cloud.environment},
                stdout=subprocess.PIPE,
                text=True,
            )

            def refused() -> list[Path]:
                return list(Path(cloud.folder).glob(f"uep.*/{backoff.RECORD}"))

            with client:
                wait_until(lambda: bool(refused()), "the job was refused")
                (user_endpoint,) = {path.parent for path in refused()}
                shown = cli_runner().invoke(
                    main, ["check", str(endpoint.folder), "--here", "--json"]
                )
                cluster.command("scontrol", "create", "PartitionName=later", "Nodes=ALL")
                output, _ = client.communicate(timeout=300)
            assert json.loads(output) == {}
            assert not refused()
            log = (user_endpoint / "endpoint.log").read_text()

    (target,) = json.loads(shown.stdout)["targets"]
    (found,) = [each for each in target["findings"] if each["about"] == "refused job"]
    assert "in a row; uep." in found["text"]
    assert WORDS in found["text"]
    assert "the scheduler has refused a job (refusal 1 in a row; the next try is in 5 s, or " in log
    assert log.count(f"job of this endpoint ends): {WORDS}") == log.count("STDERR:sbatch: error:")
    assert "the scheduler has accepted a job (refusals before: " in log
