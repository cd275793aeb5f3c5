"""An endpoint that `gc-warm configure` has made, on the real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon
from tests.support import client_environment, wait_until

pytestmark = pytest.mark.engine

# A task without options, and one with an option of its own: what each found on its worker.
CLIENT = """
import json, sys
from globus_compute_sdk import Executor

def found():
    import os
    return [os.environ.get(name) for name in ("MINE", "GC_TASK_TIMEOUT")]

answers = []
for options in ({}, {"task_timeout": 90}):
    with Executor(sys.argv[1], user_endpoint_config=options) as executor:
        answers.append(executor.submit(found).result(300))
print(json.dumps(answers))
"""


def test_tasks_have_the_defaults_of_their_endpoint(tmp_path: Path) -> None:
    value = 'caf\xe9 "quoted" \\ {{ name }} ${#HOME} %}\n\ttwo lines'
    options = {
        "environment": f"export MINE='{value}'\n",
        "keep_warm": 1,
        "task_timeout": 200,
        "workers_per_node": 1,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "gc_warm", "configure", "mine", "local"]
    subprocess.run(
        [*command, "--options", tmp_path / "mine.yaml"],
        env={**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(tmp_path)},
        check=True,
        timeout=120,
    )

    with LocalCloud() as cloud, EndpointDaemon(cloud, tmp_path / "mine") as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, endpoint.endpoint_id],
            env={**client_environment(), **cloud.environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=500,
        )
    assert json.loads(done.stdout) == [[value, "200"], [value, "90"]]


def test_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gc_warm", "configure", "mine", "local"],
        env={**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(tmp_path / "home")},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: bool(parent.children()), "the endpoint's own command runs")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "Interrupted\n")
    assert list(tmp_path.iterdir()) == []
