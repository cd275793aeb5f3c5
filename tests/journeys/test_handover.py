"""Jobs that hand over, on the real daemon: on this machine, and on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gc_warm.configs import folders
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon
from tests.slurm_cluster import SlurmCluster
from tests.support import MODULES, client_environment, wait_until

DRAIN = 40  # seconds
HANDOVERS = 3

# Quick tasks all the time, until there is a file: the block of each, and whether it was warm.
CLIENT = """
import json, os, sys, time
from globus_compute_sdk import Executor

def quick():
    import os
    from preloaded import place

    block, _, is_warm = place()
    return block, is_warm, [name for name in os.environ if "gc_warm/hooks" in os.environ[name]]

with Executor(sys.argv[1]) as executor:
    tasks = []
    while not os.path.exists(sys.argv[2]):
        tasks.append(executor.submit(quick))
        time.sleep(0.2)
    print(json.dumps([task.result(300) for task in tasks]))
"""


class Endpoint:
    """An endpoint that `gc-warm configure` has made, with jobs that drain soon."""

    def __init__(self, folder: Path, config: str, changes: dict[str, str], *options: str) -> None:
        source = folder / "source"
        shutil.copytree(folders.shipped()[config], source)
        template = source / folders.TEMPLATE
        text = template.read_text()
        for found, changed in changes.items():
            assert text.count(found) == 1, found
            text = text.replace(found, changed)
        template.write_text(text)

        more = [f"python_path=[{MODULES}]", "preload=[preloaded:after_a_while]", *options]
        words = [word for option in more for word in ("-o", option)]
        subprocess.run(
            [sys.executable, "-m", "gc_warm", "configure", "mine", source, *words],
            env={**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(folder)},
            check=True,
            timeout=120,
        )
        self.folder = folder
        self.tasks: list[list[Any]] = []
        self._home: Path | None = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have a client submit quick tasks meanwhile."""
        stop = self.folder / "stop"
        with LocalCloud() as cloud, EndpointDaemon(cloud, self.folder / "mine") as endpoint:
            self._home = Path(cloud.folder)
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, endpoint.endpoint_id, stop],
                env={**client_environment(), **cloud.environment},
                stdout=subprocess.PIPE,
                text=True,
            )
            with client:
                try:
                    yield
                finally:
                    stop.touch()
                output, _ = client.communicate(timeout=400)
        self.tasks = json.loads(output)

    def said(self, words: str) -> list[str]:
        """Return the lines of the user endpoint's log that have these words."""
        assert self._home is not None
        logs = list(self._home.glob("uep.*/endpoint.log"))
        lines = logs[0].read_text().splitlines() if logs else []
        return [line for line in lines if re.search(words, line)]

    def in_time(self) -> int:
        """Return how many jobs were ready when the last one drained.

        One that was not, on a machine that is very busy, was late by a line that says so.
        """
        ready = self.said(r"job \d+ \(block \d+\) was ready")
        return len(ready) - 1 - len(self.said("is not ready"))

    def check_tasks(self) -> None:
        """Check that none was lost or cold, and that none has seen a hook."""
        assert all(is_warm and not hooks for _, is_warm, hooks in self.tasks)
        blocks = [int(block) for block, *_ in self.tasks]
        assert max(blocks) >= HANDOVERS
        assert set(blocks) == set(range(max(blocks) + 1)), "each job had tasks"


@pytest.mark.engine
def test_quick_tasks_outlive_jobs(tmp_path: Path) -> None:
    changes = {"heartbeat_threshold: 30": f"heartbeat_threshold: 30\n  drain_period: {DRAIN}"}
    options = ["environment=# gc_warm.hooks.handover overlap_jobs=1", "workers_per_node=1"]
    endpoint = Endpoint(tmp_path, "local", changes, *options)
    with endpoint.in_use():
        wait_until(lambda: endpoint.in_time() >= HANDOVERS, "three jobs have handed over", 500)
    endpoint.check_tasks()


@pytest.mark.slurm
def test_quick_tasks_outlive_jobs_of_slurm(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with two nodes, and then with one, on which the next job waits for the last."""
    if reason := SlurmCluster.missing():
        pytest.skip(reason)
    changes = {
        "drain_period: {{ drain_period }}": f"drain_period: {DRAIN}",
        "strategy_period: 5": "strategy_period: 1",
    }
    options = [
        "handover=true",
        "overlap_jobs=1",
        "address=127.0.0.1",
        f"cores_per_worker={os.cpu_count()}",
    ]
    endpoint = Endpoint(tmp_path, "slurm", changes, *options)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=2) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        with endpoint.in_use():
            wait_until(lambda: endpoint.in_time() >= HANDOVERS, "three jobs have handed over", 500)
            before = len(endpoint.said("is not ready"))

            def running() -> list[tuple[str, ...]]:
                return [job.nodes for job in cluster.jobs() if job.state == "RUNNING"]

            wait_until(lambda: len(running()) == 1, "one job runs", 300)
            (used,) = running()
            (other,) = set(cluster.nodes) - set(used)
            drain = ("State=DRAIN", "Reason=test")
            cluster.command("scontrol", "update", f"NodeName={other}", *drain)
            jobs = len(cluster.jobs())
            wait_until(lambda: len(endpoint.said("is not ready")) > before, "it is said", 300)
            wait_until(lambda: len(endpoint.said("was ready")) > jobs, "the next job runs", 300)
    endpoint.check_tasks()
