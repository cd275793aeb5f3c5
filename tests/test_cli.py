"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from gc_warm import cli, demo
from gc_warm.configs import folders
from tests.support import cli_runner, wait_until

GC_WARM = [sys.executable, "-m", "gc_warm"]


def shown(arguments: list[str], tmp_path: Path) -> dict[str, Any]:
    """Return what the demo prints with --json, run in an empty directory that stays empty."""
    done = subprocess.run(
        [*GC_WARM, "demo", "--json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    parts: dict[str, Any] = json.loads(done.stdout)
    return parts


def check(report: dict[str, Any], workers: int) -> None:
    counted, tabulated, simulated, killed, fresh = report["parts"]
    assert report["right"]
    assert all(row["right"] for part in report["parts"] for row in part["rows"])

    cold = [row["worker"] for row in tabulated["rows"] if not row["warm"]]
    assert len(set(cold)) == len(cold) <= workers
    ratios = [tabulated["ratio"], simulated["ratio"]]
    assert None not in ratios, "there were cold and warm calls to compare"

    assert [row["warm"] for row in simulated["rows"]].count(False) <= workers
    assert [row["warm"] for row in counted["rows"]].count(False) <= workers
    assert [row["warm"] for row in killed["rows"]].count(False) == 1
    assert "WorkerLost" in killed["note"]
    assert [row["warm"] for row in fresh["rows"]] == [False] * 2
    energies = [row["result"] for part in (tabulated, killed, fresh) for row in part["rows"]]
    assert energies == [pytest.approx(-44.326801, abs=2e-6)] * len(energies)


@pytest.mark.engine
@pytest.mark.parametrize("where", [[], ["--engine"]], ids=["spawned", "engine"])
def test_demo(where: list[str], tmp_path: Path) -> None:
    check(shown(["--workers", "2", *where], tmp_path), 2)


@pytest.mark.engine
def test_demo_of_routing_loads_less(tmp_path: Path) -> None:
    stock, warm_first = shown(["--routing", "--workers", "3"], tmp_path)["sides"]
    for side in (stock, warm_first):
        assert side["right"]
        assert len(side["waits"]) == side["expected"] == sum(map(len, side["lanes"].values()))
    assert 6 <= warm_first["loads"] < stock["loads"]


def test_demo_without_terminal_is_plain_text_and_tells_a_wrong_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "LJ13_ENERGY", -44.0)
    monkeypatch.setattr(demo, "_ERROR", 1e-6)  # for shorter loads
    result = cli_runner().invoke(cli.main, ["demo", "--workers", "1"])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert result.stdout.isascii()
    assert "-44.3268" in result.stdout
    assert " !" in result.stdout
    assert "marked with !" in result.stderr


def test_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    """Two interrupts in a row: the second comes while the workers are being ended."""
    process = subprocess.Popen(
        [*GC_WARM, "demo", "--workers", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdout is not None
        assert "counter" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=120)
    assert (process.returncode, complaint) == (130, "Interrupted\n")


def test_help_and_bad_options() -> None:
    runner = cli_runner()
    assert "cold to warm" in runner.invoke(cli.main, ["demo", "-h"]).stdout
    refused = runner.invoke(cli.main, ["demo", "--workers", "0"])
    assert refused.exit_code == 2
    assert "0 is not in the range 1<=x<=64" in refused.stderr


def checked(*arguments: str) -> Result:
    return cli_runner().invoke(cli.main, ["check", *arguments])


def test_check_says_what_a_config_means() -> None:
    result = checked(
        "slurm-gpu",
        "-o",
        "gpus_per_node=2",
        "-o",
        "workers_per_node=4",
        "-o",
        "nodes=2",
        "-o",
        "walltime=10:00:00",
    )
    assert result.exit_code == 0
    said, _, last = result.stdout.rstrip("\n").partition("\n\n")
    assert last.splitlines()[-1] == (
        "gc-warm configure my-endpoint slurm-gpu -o gpus_per_node=2 -o workers_per_node=4 "
        "-o nodes=2 -o walltime=10:00:00"
    )
    lines = dict(re.split("  +", line, maxsplit=1) for line in said.splitlines())
    assert lines.pop("config").endswith("/slurm-gpu")
    assert lines == {
        "rules broken": "none",
        "copies of the state": "4 on each node, 8 in all (2 nodes a job, 1 job at most)",
        "devices of a node's workers": "0, 0, 1, 1; 2 workers share a device, and its memory",
        "stays warm": "for 10 min without any task; "
        "the endpoint stops after 10 min, and starts again for the next task",
        "a job ends": "after 10 h at the latest; it takes no new tasks after 9 h 44 min, "
        "and what comes then can wait for the last that it has",
        "a worker that dies": "is replaced, cold, within 5 s; its task fails",
        "a task": "may take 16 min, less what worker_init takes: "
        "a longer one is lost if its job ends first",
        "being idle costs": "8 core-hours and 4 GPU-hours an hour; "
        "from the last task until cold, 1.4 core-hours and 0.7 GPU-hours at most",
        "the worst case costs": "80 core-hours and 40 GPU-hours, "
        "if every job runs to its walltime; "
        "jobs that follow cost as much again",
    }


def test_check_prints_what_the_endpoint_makes_of_it_and_figures() -> None:
    rendered = checked("slurm", "--yaml", "-o", "nodes=3")
    assert yaml.safe_load(rendered.stdout)["engine"]["provider"]["nodes_per_block"] == 3

    printed = checked("slurm", "--json", "-o", "nodes=3", "-o", "max_jobs=2").stdout
    (figures,) = json.loads(printed)["targets"]
    assert (figures["copies"], figures["idle_hour"], figures["worst_case"]) == (6, 6, 6)
    assert figures["findings"] == []


def test_check_takes_options_from_a_file_and_the_command_line_has_the_last_word(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("workers_per_node: 2\nnodes: 2\nwalltime: 1:00\n")
    result = checked("slurm", "--options", str(path), "-o", "workers_per_node=0")
    assert result.exit_code == 1
    assert f"{path}:3: walltime: 60 is not text: write it in quotes." in result.stderr
    complaint = "-o workers_per_node: workers_per_node: 0 is less than the minimum of 1."
    assert complaint in result.stderr

    fine = checked("slurm", "--options", str(path), "-o", "walltime=01:00:00", "--json")
    assert json.loads(fine.stdout)["targets"][0]["copies"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere"],
            "there is no folder 'nowhere', no endpoint of that name, "
            "and gc_warm has only local, pbs, slurm, slurm-gpu",
        ),
        (["local", "-o", "nodes=2"], "-o nodes: there is no option 'nodes'"),
        (
            ["slurm", "-o", "task_timeout=7200"],
            "task_timeout (7200 s) leaves no time before walltime (01:00:00)",
        ),
        (["/tmp"], "/tmp is not the folder of a config: it has no user_config_template.yaml.j2"),
    ],
)
def test_check_of_what_cannot_be(arguments: list[str], message: str) -> None:
    result = checked(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""


BAD = """\
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: 0
  prefetch_capacity: 3
  provider:
    type: LocalProvider
    max_blocks: 2
"""


def test_check_tells_which_rules_are_broken_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "endpoint.yaml").write_text(BAD)
    result = checked(str(tmp_path / "endpoint.yaml"))
    assert result.exit_code == 1
    where = tmp_path / "endpoint.yaml"
    said, _, last = result.stdout.rstrip("\n").partition("\n\n")[2].partition("\n\n")
    assert said.splitlines() == [
        f"{where}:4:3: GCW005 error: max_workers_per_node 0 means one for each core; "
        "write a number above 0",
        f"{where}:5:3: GCW017 warning: prefetch_capacity 3: "
        "tasks wait on one of 2 nodes though others are free; set it to 0",
    ]
    advice = "`gc-warm check --explain GCW005` says why, and how it is known."
    assert last == f"1 error, 1 warning. {advice}"

    (tmp_path / "endpoint.yaml").write_text(BAD.replace(": 0", ": 2"))
    assert checked(str(tmp_path / "endpoint.yaml")).exit_code == 0, "a warning is no error"


def test_environment_of_a_config_that_cannot_be_relied_on_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "endpoint.yaml").write_text(BAD.replace("prefetch_capacity", "prefetch"))
    said = checked(str(tmp_path / "endpoint.yaml"), "--here").stdout
    assert "environment: not looked at, since the config cannot be relied on" in said


SILENT = "  # gc-warm: ignore[GCW000, GCW019]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BAD.replace("LocalProvider", "MyProvider"), "in part"),
        (f"engine:\n  type: ThreadPoolEngine{SILENT}\n", "in part"),
        (f"engine:\n  type: ProcessPoolEngine{SILENT}\n", "in part"),
        ("engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n", "none"),
        (
            "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n  encrypted: false\n"
            "  provider: {type: KubernetesProvider, image: a, min_blocks: 0}\n",
            "none",
        ),
    ],
    ids=["refused", "threads", "pool", "plain", "pods without their modules"],
)
def test_none_is_said_only_where_all_rules_could_look(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "endpoint.yaml").write_text(text)
    shown = checked(str(tmp_path / "endpoint.yaml")).stdout
    assert ("rules broken" in shown, "known in part" in shown) == (True, said == "in part"), shown
    assert (" none\n" in shown) == (said == "none"), shown


def test_check_takes_configs_and_functions_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(x, seen=[]):\n    seen.append(x)\n")
    printed = checked("slurm", str(tmp_path / "mine.py"), "gc_warm.functions", "--json").stdout
    said = json.loads(printed)["targets"]
    assert [len(target["problems"]) for target in said] == [0, 1, 0]
    assert said[0]["copies"] == 1
    assert said[1]["problems"][0] == {
        "rule": "GCW104",
        "level": "warning",
        "file": str(tmp_path / "mine.py"),
        "line": 1,
        "column": 1,
        "option": None,
        "text": said[1]["problems"][0]["text"],
        "fix": None,
    }

    cold = checked("slurm", str(tmp_path / "mine.py"), "--strategy", "PureSourceDill")
    assert (cold.exit_code, "GCW104 error" in cold.stdout) == (1, True)


def test_check_reasons_with_numbers() -> None:
    slow = checked("slurm", "--with", "load_seconds=600", "--with", "queue_seconds=60")
    finding = "workers end after 600 s without tasks, and it takes 660 s to be warm again"
    assert f"GCW011 warning: {finding}" in slow.stdout
    slower = checked("slurm", "--with", "load_seconds=4000", "--with", "task_seconds=1")
    assert slower.exit_code == 1, "no walltime is enough"

    unknown = checked("slurm", "--with", "load=3")
    assert "there is no 'load'; there are load_seconds" in unknown.stderr
    for value in ("", "x", "-1", "nan", "inf"):
        refused = checked("slurm", "--with", f"load_seconds={value}")
        assert "write load_seconds=NUMBER, not below 0" in refused.stderr


def test_check_explains_a_rule() -> None:
    said = checked("--explain", "GCW016")
    title = "GCW016 (warning): Tasks that still run at the walltime are lost"
    assert (said.exit_code, said.stdout.splitlines()[0]) == (0, title)
    assert "there is no rule GCW999; there are GCW000, " in checked("--explain", "GCW999").stderr


def test_check_of_an_endpoint_of_the_old_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(BAD)
    for name in ("old", str(tmp_path / "old")):
        assert f"{tmp_path / 'old' / 'config.yaml'}:4:3: GCW005 error" in checked(name).stdout
    refused = checked("old", "-o", "nodes=2")
    assert "is no template, so that options would mean nothing" in refused.stderr


def test_check_runs_no_python(tmp_path: Path) -> None:
    shutil.copytree(folders.shipped()["local"], tmp_path / "mine")
    (tmp_path / "mine" / "config.py").write_text("raise SystemExit('run')\n")
    result = checked(str(tmp_path / "mine"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a configuration in Python is only known by running it" in result.stderr


def test_check_names_a_configuration_in_python(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / "config.py"
    path.write_text(
        "from globus_compute_endpoint.endpoint.config import UserEndpointConfig\n"
        "config = UserEndpointConfig()\n"
    )
    for name in (path, path.parent):
        result = checked(str(name))
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{path} is an endpoint configuration in Python" in result.stderr

    path.write_text("config = dict()\n")
    assert "none, since nothing is sent from here" in checked(str(path)).stdout


def test_check_finds_a_template_that_lies_elsewhere(tmp_path: Path) -> None:
    template = tmp_path / "template.yaml.j2"
    template.write_text(BAD)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(f"user_config_template_path: {template}\n")
    assert f"{template}:4:3: GCW005 error" in checked(str(tmp_path / "mine")).stdout


@pytest.mark.parametrize("name", ["a.yaml", "mine/config.yaml", "mine/user_config_schema.json"])
def test_check_of_what_is_not_text(name: str, tmp_path: Path) -> None:
    shutil.copytree(folders.shipped()["local"], tmp_path / "mine")
    (tmp_path / name).write_bytes(b"caf\xe9: \x80")
    result = checked(str(tmp_path / name if name == "a.yaml" else tmp_path / "mine"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{tmp_path / name} is not UTF-8 text" in result.stderr


def test_check_says_so_when_state_cannot_live_as_long_as_asked_for() -> None:
    said = checked("slurm", "-o", "keep_warm=90", "-o", "walltime=00:30:00").stdout
    sentence = "stays warm +until its job ends after 30 min, which is sooner than its idle time;"
    assert re.search(sentence, said)


def test_check_of_an_endpoint_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    shutil.copytree(folders.shipped()["slurm"], tmp_path / "mine")
    (tmp_path / "mine" / "user_environment.yaml").touch()
    said = checked("mine", "-o", "nodes=2").stdout
    assert str(tmp_path / "mine") in said
    assert "configure" not in said


def test_sigterm_ends_what_check_has_started(tmp_path: Path) -> None:
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    (tmp_path / "sleeps.py").write_text(f"import os, pathlib, time\n{write}\ntime.sleep(1000)\n")
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path}
    arguments = ["check", "local", "--module", "sleeps", "-o", f"python_path=[{tmp_path}]"]
    process = subprocess.Popen([*GC_WARM, *arguments], env=environment, stderr=subprocess.DEVNULL)
    wait_until(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "",
        "the module is being imported",
    )
    process.terminate()
    assert process.wait(120) == 143


def test_check_with_a_module_looks_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    result = checked("local", "--module", "no_such")
    assert result.exit_code == 1
    assert "error    module no_such: ModuleNotFoundError" in result.stdout
    assert "endpoint.log" in result.stdout
