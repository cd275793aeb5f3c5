"""Installing gc_warm into an environment that has an endpoint, and what works there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from gc_warm.configs import folders, rendering

pytestmark = pytest.mark.environments

ROOT = Path(__file__).parents[2]
PARSL_ALONE = Path(__file__).with_name("parsl_alone.py")


def lowest_python() -> str:
    """Return a Python for which the packages of older endpoints have wheels."""
    found = (shutil.which(f"python3.{minor}") for minor in range(10, sys.version_info.minor))
    return next((python for python in found if python and runs(python)), sys.executable)


def runs(python: str) -> bool:
    command = [python, "-c", "import ensurepip, venv"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Environment:
    """A virtual environment with that endpoint, as a site may have it."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.scripts = folder / "bin"
        subprocess.run([lowest_python(), "-m", "venv", folder], check=True)
        self.run("pip", "install", "--quiet", f"globus-compute-endpoint=={endpoint}")

    def run(
        self, script: str, *arguments: str | Path, status: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the environment, in its folder, with nothing of ours but the PATH."""
        done = subprocess.run(
            [self.scripts / script, *arguments],
            cwd=self.scripts.parent,
            env={
                "PATH": f"{self.scripts}:{os.environ['PATH']}",
                "HOME": os.environ["HOME"],
                "TMPDIR": os.environ["TMPDIR"],
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def packages(self) -> set[str]:
        """Return what is installed, with its versions."""
        return set(self.run("pip", "freeze", "--all").stdout.splitlines())


@pytest.fixture(scope="module")
def oldest_for_workers(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Endpoint 3.16, to which the manual's line has added gc_warm."""
    environment = Environment(tmp_path_factory.mktemp("endpoint") / "3.16", "3.16.*")
    before = environment.packages()

    text = (ROOT / "gc_warm" / "worker" / "README.md").read_text()
    (line,) = re.findall(r"^pip (install --no-deps) /path/to/gc_warm$", text, re.MULTILINE)
    environment.run("pip", *line.split(), "--quiet", ROOT)

    changed = environment.packages() ^ before
    assert {package.partition(" @ ")[0] for package in changed} == {"gc-warm"}
    return environment


def test_installing_beside_the_oldest_endpoint_replaces_nothing(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "4.10", "4.10.*")
    said = environment.run("pip", "install", "--quiet", "--dry-run", "--report", "-", ROOT).stdout
    assert [each["metadata"]["name"] for each in json.loads(said)["install"]] == ["gc-warm"]


def test_all_that_workers_import_is_there_beside_an_older_endpoint(
    oldest_for_workers: Environment,
) -> None:
    code = (
        "import importlib, pkgutil, gc_warm.worker, gc_warm.warmables, gc_warm.functions\n"
        "for room in (gc_warm.worker, gc_warm.warmables):\n"
        "    for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
    )
    oldest_for_workers.run("python", "-c", code)


def test_workers_of_an_older_endpoint_preload_and_stay_warm(
    oldest_for_workers: Environment, tmp_path: Path
) -> None:
    (tmp_path / "early.py").write_text(
        "from gc_warm import warm\n\n\n@warm\ndef table():\n    return 42\n"
    )
    rendered = rendering.render(
        folders.shipped()["local"], {"preload": ["early:table"], "python_path": [str(tmp_path)]}
    )
    worker_init = yaml.safe_load(rendered)["engine"]["provider"]["worker_init"]

    # in which Parsl's manager leaves the folder of its sockets
    with tempfile.TemporaryDirectory() as place:
        arguments = (PARSL_ALONE, tmp_path, worker_init)
        run = oldest_for_workers.run("python", *arguments, TMPDIR=place)
    records = json.loads(run.stdout)
    counts = [(record["loads"], record["uses"], record["failures"]) for record in records]
    assert counts == [([], 1, 0)] * 3, "warm from the first on"


def test_a_command_says_which_package_is_missing_beside_an_older_endpoint(
    oldest_for_workers: Environment,
) -> None:
    said = oldest_for_workers.run("gc-warm", "demo", status=1).stderr
    assert re.fullmatch(r"[^\n]*globus-compute-sdk[^\n]*3\.16[^\n]*4\.10[^\n]*\n", said), said
