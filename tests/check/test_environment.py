"""The questions of the first hour, answered by a real shell, a real probe and real processes."""

from __future__ import annotations

import calendar
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gc_warm import cli
from gc_warm.check import environment
from gc_warm.check.environment import Answer
from gc_warm.configs import folders, loading, rendering
from gc_warm.hooks import STARTUP, backoff, registry
from tests.support import MODULES, change_parsl, cli_runner, has_ended, wait_until

SCRIPTS = os.path.dirname(sys.executable)


def findings(name: str, modules: list[str] | None = None, **options: object) -> dict[str, Answer]:
    folder = folders.find_folder(name)
    config = loading.load(rendering.render(folder, options), folders.template_path(folder))
    return {finding.about: finding for finding in environment.look(config, modules or [])}


@pytest.fixture(autouse=True)
def endpoint_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the endpoint's command on the path, as where the environment is activated."""
    monkeypatch.setenv("PATH", SCRIPTS, prepend=os.pathsep)


NO_MODULES = ["probe", "ledger", "gc_warm_probe"]
"""The probe and its neighbours: none of them can be imported by workers."""


def test_environment_is_that_of_the_workers(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    found = findings(
        "local",
        ["shapes", "exits", "no_such", "json", *NO_MODULES],
        python_path=[str(MODULES), str(tmp_path)],
        environment="echo hello",
    )
    assert found["environment"].text == "it says:\nhello"
    assert found["python"] == Answer("ok", "python", sys.version.split()[0])
    for package in ("dill", "parsl"):
        assert found[package] == Answer("ok", package, version_of(package))

    assert found["module shapes"].level == found["module json"].level == "ok"
    assert found["module exits"].text == f"SystemExit: 3 ({tmp_path / 'exits.py'}:1)"
    assert found["module no_such"].text.startswith(
        "ModuleNotFoundError: No module named 'no_such'; install it"
    )
    assert not {"sbatch", "qsub", "left behind"} & set(found)
    assert {found[f"module {name}"].level for name in NO_MODULES} == {"error"}


@pytest.mark.engine
@pytest.mark.skipif(bool(registry.hook("gate").why_not()), reason="this Parsl has less hooks")
def test_hooks_that_a_changed_parsl_leaves_out_are_named(tmp_path: Path) -> None:
    change_parsl(tmp_path)
    export = f"export PYTHONPATH={shlex.quote(str(tmp_path))}"
    found = findings("local", environment=export, survive_idle_kill=True, preload=["json"])
    left_out = {about for about, answer in found.items() if "does nothing" in answer.text}
    assert left_out == {"survive_idle_kill", "helper_watch"}  # the gate leans on other functions
    assert found["helper_watch"].level == "warning"
    assert "was changed by somebody, in " in found["helper_watch"].text


def test_hooks_of_user_endpoints_that_are_left_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backoff_of_another = registry.Hook("backoff", "user endpoint", "backoff", tested=("2031.1.1",))
    monkeypatch.setattr(registry, "HOOKS", [backoff_of_another])
    assert not list(environment.hooks_left_out(tmp_path)), "it has no hooks"

    (tmp_path / "user_environment.yaml").write_text(f"PYTHONPATH: '{STARTUP}:/elsewhere'\n")
    (answer,) = environment.hooks_left_out(tmp_path)
    assert (answer.level, answer.about) == ("warning", "backoff")
    assert answer.text.startswith("does nothing in user endpoints: it was tested with Parsl 2031.")


@pytest.mark.parametrize(
    ("name", "line"),
    [("kills", "import os; os.kill(os.getpid(), 9)"), ("leaves", "import os; os._exit(0)")],
)
def test_module_whose_import_does_not_come_back_is_named(
    name: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / f"{name}.py").write_text(line)
    found = findings("local", ["json", name, "shapes"], python_path=[str(tmp_path), str(MODULES)])

    assert found["module json"].level == "ok"
    said = found[f"module {name}"].text
    assert "its import does not come back: the process ended with status" in said
    assert "module shapes" not in found


def test_job_of_pbs_has_nothing_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    for name, value in (("pbs", "nothing"), ("slurm", "here")):
        found = findings(name, environment='echo "${MINE-nothing}"; exit 1')
        assert found["environment"].text.endswith(f"says:\n{value}")


def test_import_with_which_workers_could_not_be_forked_is_named(tmp_path: Path) -> None:
    (tmp_path / "opens.py").write_text("kept = open(__file__)\n")
    path = [str(tmp_path), str(MODULES)]
    found = findings(
        "local", ["shapes"], python_path=path, preload_node=["json", "opens:kept.read"]
    )
    assert found["module shapes"].level == "ok"
    assert found["preload_node"].level == "warning"
    assert found["preload_node"].text == (
        f"workers would not be forked, since it keeps open: {tmp_path / 'opens.py'}: "
        "leave what does that to preload, or to tasks"
    )


@pytest.mark.parametrize("lines", ["echo nodes are away >&2; exit 1", "exec sleep 1000"])
def test_slurm_that_does_not_answer(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, body in (("sinfo", f"{lines}\n"), ("squeue", "")):
        (tmp_path / command).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setattr(environment, "_SCHEDULER_TIMEOUT", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    # no probe of the environment, too
    found = findings("slurm", partition="debug", environment="exit 1")["Slurm"]
    assert found.level == "error"
    assert found.text.startswith("sinfo does not get an answer: ")


def version_of(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            "echo no such module; exit 3",
            "no workers could start in it: it ends with exit status 3, and says:\nno such module",
        ),
        ("PATH=/nowhere", "globus-compute-endpoint: not found"),
        ("kill -9 $$", "no workers could start in it: it ends with exit status -9"),
    ],
)
def test_environment_in_which_nothing_can_start(lines: str, text: str) -> None:
    found = findings("local", environment=lines)["environment"]
    assert found.level == "error"
    assert text in found.text


def test_what_an_environment_leaves_running_is_ended(tmp_path: Path) -> None:
    note = f"echo $! >> {tmp_path / 'pids'}"
    findings("local", environment=f"sleep 1000 & {note}; setsid sleep 1000 & {note}")
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    assert len(pids) == 2
    wait_until(lambda: all(map(has_ended, pids)), "they have ended")


def test_other_python_and_missing_packages_are_named(tmp_path: Path) -> None:
    other = tmp_path / "bin" / "globus-compute-endpoint"
    other.parent.mkdir()
    other.write_text(f'#!/bin/sh\nshift\nexec {shlex.quote(sys.executable)} -S -m "$@"\n')
    other.chmod(0o755)

    found = findings("local", environment=f"export PATH={other.parent}:$PATH")
    assert found["globus-compute-endpoint"].level == found["dill"].level == "error"
    assert found["gc-warm"] == Answer(
        "warning",
        "gc-warm",
        "not in the worker's environment: @warm cannot be used there; pip install it",
    )


@pytest.mark.parametrize(
    ("package", "here", "there", "level"),
    [
        ("python", "3.11.7", "3.11.9", "ok"),
        ("python", "3.11.7", "3.12.1", "warning"),
        ("dill", "0.3.9", "0.4.0", "warning"),
        ("parsl", "2026.1", "2025.1", "ok"),
    ],
)
def test_versions_that_differ(package: str, here: str, there: str, level: str) -> None:
    found = environment._compared(package, here, there)
    assert found.level == level
    assert f"{there} for workers, {here} here" in found.text


def test_interface_ports_and_scheduler_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    path = SCRIPTS
    if shutil.which("sbatch") is None:
        path += f":{os.path.dirname(shutil.which('bash') or '')}"
    monkeypatch.setenv("PATH", path)

    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        found = findings("pbs", interface="hsn0", worker_port_range=[port, port])

    assert found["interface hsn0"].text.startswith("this machine has only lo")
    assert found["ports for workers"] == Answer(
        "error", "ports for workers", f"{port} to {port}: all are taken"
    )
    assert found["qsub"] == Answer("error", "qsub", "not found: this machine submits no jobs")


@pytest.mark.parametrize(
    ("leads_to", "said"),
    [
        ("127.0.1.1", "leads to 127.0.1.1, at which compute nodes look for the endpoint on"),
        (OSError("no such name"), "no such name: give interface or address instead"),
        ("10.0.0.1", None),
    ],
)
def test_own_name_that_others_cannot_use(
    leads_to: str | OSError, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(name: str) -> str:
        if isinstance(leads_to, OSError):
            raise leads_to
        return leads_to

    monkeypatch.setattr(socket, "gethostbyname", look_up)
    found = [answer.text for answer in environment._own_name()]
    assert [text.startswith(said or "-") for text in found] == [True] * (said is not None)


@pytest.mark.parametrize(
    ("pid", "said"),
    [
        (os.getpid(), "uep.ours.1 tries again at 2026-11-30 04:00:20, or when a job of its ends"),
        (0, "uep.ours.1 has ended since"),
    ],
    ids=["waits", "has ended"],
)
def test_refused_job_is_shown(
    pid: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    now = calendar.timegm((2026, 11, 30, 4, 0, 0))
    refusal = backoff.Refusal("sbatch: error: no", 3, now, now + 20)
    for name in ("mine", "uep.ours.1", "uep.ours.2", "uep.another.1"):
        (tmp_path / name).mkdir()
    assert not list(environment.refused_jobs(tmp_path / "mine")), "it never ran"
    (tmp_path / "mine" / "endpoint.json").write_text('{"endpoint_id": "ours"}')
    assert not list(environment.refused_jobs(tmp_path / "mine")), "nothing was refused"

    for name in ("uep.ours.1", "uep.another.1"):
        backoff.write(tmp_path / name, refusal)
        (tmp_path / name / "daemon.pid").write_text(str(pid or ""))
    text = f"2026-11-30 04:00:00, refusal 3 in a row; {said}:\nsbatch: error: no"
    expected = [Answer("warning", "refused job", text)]
    assert list(environment.refused_jobs(tmp_path / "mine")) == expected


def test_interchange_whose_endpoint_is_gone_is_named() -> None:
    script = (
        "import setproctitle, sys, time; setproctitle.setproctitle('parsl: HTEX interchange'); "
        "print(flush=True); time.sleep(1000)"
    )

    def is_found() -> bool:
        mine = f"process {pid};"
        return any(mine in answer.text for answer in environment._left_behind())

    parent = subprocess.Popen(
        ["bash", "-c", '"$0" -c "$1" & echo $!; read', sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.stdout.readline()
        assert not is_found(), "its parent lives"

        parent.kill()
        parent.wait()
        try:
            wait_until(is_found, "it is an orphan")
        finally:
            psutil.Process(pid).kill()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder of an endpoint for many users, with a command that root alone can run."""
    folder = tmp_path / "shared"
    shutil.copytree(folders.shipped()["local"], folder)
    (folder / "mapping.json").write_text("[]")
    (folder / "config.yaml").write_text(f"identity_mapping_config_path: {folder}/mapping.json\n")

    command = tmp_path / "private" / "bin" / "globus-compute-endpoint"
    command.parent.mkdir(parents=True)
    command.touch(0o755)
    command.parents[1].chmod(0o700)
    (folder / "user_environment.yaml").write_text(f"PATH: {command.parent}\n")
    return folder


def test_users_cannot_run_what_only_root_can_enter(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = environment.for_users(shared)
    assert found.level == "error"
    assert f"no user can read {tmp_path}/private/bin/globus-compute-endpoint" in found.text

    (shared / "user_environment.yaml").write_text("PATH: /nowhere\n")
    (found,) = environment.for_users(shared)
    assert found.text == "globus-compute-endpoint is not on the PATH of user_environment.yaml"

    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/bin/sh")
    assert list(environment.for_users(shared)) == []


def test_figures_of_an_endpoint_for_many_are_of_one(shared: Path) -> None:
    shown = cli_runner().invoke(cli.main, ["check", str(shared)]).stdout
    assert "many users           run by root, for whom it maps, each with user endpoints" in shown
    assert f"the rest is of one user ({shared}/mapping.json)" in shown


def test_why_the_latest_workers_were_not_forked_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "endpoint.json").write_text('{"endpoint_id": "ours"}')
    said = "workers are not forked, since threads live: poller: each loads my_model for itself"

    for number, line in enumerate(["template 1 is ready after 2.00 s: 1 loaded", said]):
        assert not list(environment.workers_not_forked(tmp_path / "mine"))
        log = tmp_path / f"uep.ours.1/GlobusComputeEngine/block-{number}/5d0c/manager.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"1764 2026-11-30 04:00:00 MainProcess(1) gc_warm:9 _fork INFO: {line}\n")
        os.utime(log, (number, number))

    (answer,) = environment.workers_not_forked(tmp_path / "mine")
    assert (answer.level, answer.about) == ("warning", "preload_node")
    assert answer.text.endswith(f", uep.ours.1: {said}")
