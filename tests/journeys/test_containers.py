"""Workers in containers of podman: what of a config, and of its job, is there.

The image is empty: it has the programs of this machine, mounted.
"""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest

from gc_warm import MockExecutor
from gc_warm.configs import containers, folders, loading, rendering
from tests.support import MODULES, has_ended, wait_until

pytestmark = pytest.mark.programs

IMAGE = "localhost/gc-warm-empty"
ROOT = Path(__file__).parents[2]
START = 150  # seconds that tasks may take on a busy machine


def podman(*words: str) -> str:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options that give a container the programs of this machine, for a podman of the tests' own.

    It keeps its images in a folder of the tests, raises no limits, and needs no systemd.
    """
    for name in ("podman", "runc"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")

    folder = tmp_path_factory.mktemp("podman")
    limits = [
        f"{name}={most}:{most}"
        for name, most in (
            ("nofile", min(1024, *resource.getrlimit(resource.RLIMIT_NOFILE))),
            ("nproc", 4096),
        )
    ]
    (folder / "containers.conf").write_text(
        f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
    )
    (folder / "nothing").mkdir()
    subprocess.run(["tar", "-C", folder / "nothing", "-cf", folder / "empty.tar", "."], check=True)

    # whole folders of the root, whose names have no blanks
    needed = {Path(path).parts[1] for path in (sys.base_prefix, sys.prefix, ROOT, folder)}
    needed |= {"usr", "bin", "lib", "lib64", "etc"}
    found = [f"--volume=/{name}:/{name}" for name in sorted(needed) if Path("/", name).exists()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
        patch.setenv("CONTAINERS_STORAGE_CONF", str(folder / "storage.conf"))
        podman("import", str(folder / "empty.tar"), IMAGE)
        try:
            podman("run", "--rm", "--init", "--network=host", *found, IMAGE, "/bin/true")
        except AssertionError as error:
            pytest.skip(f"podman cannot run here: {error}")
        yield found
        podman("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def workers(
    mounts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The workers of a job with two GPUs, as a task on each finds itself."""
    meeting = tmp_path_factory.mktemp("meeting")
    modules = tmp_path_factory.mktemp("modules")
    shutil.copytree(MODULES, modules, dirs_exist_ok=True)
    path = shlex.quote(f"{sys.prefix}/bin:/usr/bin:/bin")
    options = {
        "container_uri": IMAGE,
        "container_cmd_options": " ".join([*mounts, "--env PATH"]),
        "environment": f"export PATH={path} OF_THE_JOB=1",
        "python_path": [str(modules)],
        "preload": ["preloaded:table"],
        "survive_idle_kill": True,
        "task_timeout": 600,
        "gpus_per_node": 2,
    }
    text = loading.localize(rendering.render(folders.shipped()["slurm-gpu"], options))
    with MockExecutor(config=text) as executor:
        futures = [executor.submit(preloaded.use, str(meeting), 2) for _ in range(2)]
        states = [future.result(START) for future in futures]
        running = podman("ps", "--format", "{{.Pid}}").split()
        states.sort(key=lambda state: state.rank)
        seen = SimpleNamespace(states=states, modules=modules)
        yield seen

    wait_until(lambda: all(has_ended(int(pid)) for pid in running), "the container has ended")
    wait_until(lambda: not podman("ps", "--quiet"), "no container runs")
    # what podman remembers of one whose monitor was ended before it could forget it
    podman("rm", "--all", "--force")


def test_each_worker_is_pinned_before_it_preloads(workers: SimpleNamespace) -> None:
    found = [(state.device, state.loads) for state in workers.states]
    assert found == [("0", 1), ("1", 1)]
    assert [state.environment["CUDA_VISIBLE_DEVICES"] for state in workers.states] == ["0", "1"]


def test_what_the_config_exports_is_there(workers: SimpleNamespace) -> None:
    for state in workers.states:
        assert state.environment["GC_TASK_TIMEOUT"] == "600"
        assert 0 < int(state.environment["GC_WARM_SECONDS_LEFT"]) <= 3600
        assert state.environment["PARSL_CORES"] == "2"
        assert state.environment["PYTHONPATH"].split(":")[0] == str(workers.modules)


def test_nothing_else_of_the_job_and_of_the_hook_is(workers: SimpleNamespace) -> None:
    for state in workers.states:
        left = {"OF_THE_JOB", "GC_WARM_PRELOAD", "GC_WARM_SURVIVE_IDLE_KILL"}
        assert left.isdisjoint(state.environment)


@pytest.mark.parametrize(
    "options",
    ["", "--env A", "-e A", "--env=B --env=A", "--env AB", "--env A=2", "--env-host", "-e B"],
)
def test_check_knows_which_variables_podman_hides(options: str, mounts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A", "1")
        show = ["/bin/sh", "-c", "echo ${A-none}"]
        said = podman("run", "--rm", *mounts, "--network=none", *options.split(), IMAGE, *show)
    engine = SimpleNamespace(container_type="podman", container_cmd_options=options)
    assert containers.hides(engine, "A") is (said.strip() == "none")
