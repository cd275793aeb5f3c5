"""The command that makes an endpoint of a config, as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from globus_compute_endpoint.endpoint.endpoint import Endpoint

from gc_warm import cli
from gc_warm.configs import folders, installing
from gc_warm.hooks import STARTUP
from tests.support import cli_runner

TEMPLATE = "user_config_template.yaml.j2"
SCHEMA = "user_config_schema.json"
MINE: dict[str, Any] = {
    "keep_warm": 15,
    "walltime": "00:30:00",
    "interface": "eth6.560",
    "amqp_port": 443,
    "bind_cores": True,
    "python_path": ["/a", "/b c's"],
    "environment": "module load anaconda3\necho \"caf\xe9\" '$PATH' ${#a} {{ b }} \\\n",
}
OPTIONS = {
    "--core-config": "endpoint_config",
    "--manager-config": "endpoint_config",
    "--template-config": "user_config_template",
    "--schema-config": "user_config_schema",
    "--user-env-config": "user_environment",
}


def configure_here(name: str, given: Mapping[str, Path], home: Path) -> None:
    """Do what the endpoint's own command does, by its own function and without a process."""
    files = {OPTIONS[option]: path for option, path in given.items()}
    Endpoint.init_endpoint_dir(home / name, **files)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's endpoints, which the first of them makes."""
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "home"))
    scripts = os.path.dirname(sys.executable)
    monkeypatch.setenv("PATH", os.pathsep.join([scripts, os.environ["PATH"]]))
    monkeypatch.setattr(installing, "_configure", configure_here)
    return tmp_path / "home"


@pytest.fixture
def mine(home: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of an endpoint that was made with options, beside which nothing is left."""
    assert configured("mine", "slurm", options_file(tmp_path)).exit_code == 0
    yield home / "mine"
    assert [path.name for path in home.iterdir()] == ["mine"]
    assert sorted(path.name for path in (home / "mine").iterdir() if path.suffix != ".pid") == [
        "config.yaml",
        "gc_warm.json",
        SCHEMA,
        TEMPLATE,
        "user_environment.yaml",
    ]


def options_file(folder: Path) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE))
    return f"--options={folder / 'mine.yaml'}"


def configured(*arguments: str) -> Result:
    return cli_runner().invoke(cli.main, ["configure", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def difference(result: Result) -> list[str]:
    """Return the lines that a difference in the output adds and takes away."""
    return [
        line
        for line in result.stdout.splitlines()
        if line[:1] in "+-" and not line.startswith(("---", "+++"))
    ]


def figures(*target: str) -> dict[str, Any]:
    shown = cli_runner().invoke(cli.main, ["check", "--json", *target])
    of_target = dict(json.loads(shown.stdout)["targets"][0])
    del of_target["target"]
    return of_target


@pytest.mark.engine
def test_real_command_makes_what_its_function_makes(
    home: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = contents(mine)
    shutil.rmtree(mine)
    monkeypatch.undo()
    command = [sys.executable, "-m", "gc_warm", "configure", "mine", "slurm"]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        [*command, options_file(tmp_path)],
        env={**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"{mine}: made, with 7 options as defaults\n\n"
        "    gc-warm check mine --here\n    globus-compute-endpoint start mine\n"
    )
    assert contents(mine) == made
    assert {oct(path.stat().st_mode)[-3:] for path in [mine, *mine.iterdir()]} == {"700", "600"}


def test_endpoint_is_what_the_config_is_with_options(mine: Path, tmp_path: Path) -> None:
    assert figures("mine") == figures("slurm", options_file(tmp_path))
    assert (mine / SCHEMA).read_bytes() == folders.schema_path(
        folders.shipped()["slurm"]
    ).read_bytes()
    assert yaml.safe_load((mine / "config.yaml").read_text()) == {
        "display_name": None,
        "amqp_port": 443,
    }
    assert "keep_warm | default(15)" in (mine / TEMPLATE).read_text()


def test_dry_run_writes_nothing(home: Path, tmp_path: Path) -> None:
    result = configured("mine", "slurm", options_file(tmp_path), "--dry-run")
    assert (result.exit_code, home.exists()) == (0, False)
    assert f"--- /dev/null\n+++ {home / 'mine' / TEMPLATE}\n@@ " in result.stdout
    assert "+{%- set keep_warm = keep_warm | default(15) -%}" in result.stdout
    assert result.stdout.endswith(f"{home / 'mine'}: nothing was written\n")


def test_second_call_updates_what_it_wrote(mine: Path, tmp_path: Path) -> None:
    given = ("mine", "slurm", options_file(tmp_path))
    before = contents(mine)
    assert configured(*given).stdout.startswith(f"{mine}: up to date\n")
    assert contents(mine) == before

    shown = configured(*given, "-o", "keep_warm=20", "--dry-run")
    assert difference(shown) == [
        "-{%- set keep_warm = keep_warm | default(15) -%}",
        "+{%- set keep_warm = keep_warm | default(20) -%}",
    ]
    assert contents(mine) == before

    updated = configured(*given, "-o", "keep_warm=20")
    assert updated.stdout.startswith(f"{mine}: updated, {TEMPLATE}\n")
    assert figures("mine")["keep_warm"] == 1200
    assert configured(*given).exit_code == 0
    assert contents(mine) == before


def test_newer_template_comes_with_the_next_call(tmp_path: Path) -> None:
    config = tmp_path / "config"
    shutil.copytree(folders.shipped()["local"], config)
    assert configured("mine", str(config), "-o", "keep_warm=20").exit_code == 0

    with (config / TEMPLATE).open("a") as template:
        template.write("\n# newer\n")
    shown = configured("mine", str(config), "-o", "keep_warm=20", "--dry-run")
    assert difference(shown) == ["+", "+# newer"]
    assert configured("mine", str(config), "-o", "keep_warm=20").exit_code == 0


def test_edited_file_is_not_written_over(mine: Path, tmp_path: Path) -> None:
    for name in (SCHEMA, TEMPLATE):
        with (mine / name).open("a") as file:
            file.write("# mine\n")
    before = contents(mine)

    for more in (["-o", "nodes=2"], ["--dry-run"]):
        refused = configured("mine", "slurm", options_file(tmp_path), *more)
        assert refused.exit_code == 1
        assert difference(refused).count("-# mine") == 2
        assert f": edited since it was written, and nothing was changed: {SCHEMA}, {TEMPLATE}." in (
            refused.stderr
        )
        assert contents(mine) == before

    (mine / SCHEMA).unlink()
    (mine / TEMPLATE).unlink()
    assert configured("mine", "slurm", options_file(tmp_path)).exit_code == 0
    assert b"# mine" not in (mine / TEMPLATE).read_bytes()


def test_edit_of_the_endpoint_itself_stays(mine: Path, tmp_path: Path) -> None:
    (mine / "config.yaml").write_text("display_name: Mine\namqp_port: 443\n")
    updated = configured("mine", "slurm", options_file(tmp_path), "-o", "nodes=2")
    assert updated.exit_code == 0
    assert f"{mine / 'config.yaml'}: edited since, and left as it is\n" in updated.stdout
    assert "Mine" in (mine / "config.yaml").read_text()

    refused = configured("mine", "slurm", options_file(tmp_path), "-o", "amqp_port=5671")
    assert difference(refused) == [
        "-display_name: Mine",
        "-amqp_port: 443",
        "+display_name: null",
        "+amqp_port: 5671",
    ]
    assert refused.exit_code == 1


def test_root_is_told_as_whom_tasks_run(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("mine", "slurm", options_file(tmp_path))
    words = f"it needs an `email` in {mine / 'config.yaml'}, and its tasks run as root, too"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert words in configured(*given).stdout

    (mine / "config.yaml").write_text("identity_mapping_config_path: /etc/mapping.json\n")
    assert words not in configured(*given).stdout
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (mine / "config.yaml").write_text("display_name: mine\n")
    assert words not in configured(*given).stdout


def test_copy_of_an_endpoint_can_be_updated(mine: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(mine, home / "copy")
    updated = configured("copy", "slurm", options_file(tmp_path), "-o", "nodes=2")
    assert updated.stdout.startswith(f"{home / 'copy'}: updated, {TEMPLATE}\n")
    shutil.rmtree(home / "copy")


def test_endpoint_that_runs_has_to_be_restarted(mine: Path, tmp_path: Path) -> None:
    (mine / "daemon.pid").touch()
    given = ("mine", "slurm", options_file(tmp_path))
    assert "start" not in configured(*given).stdout
    said = configured(*given, "-o", "nodes=2").stdout
    assert "    globus-compute-endpoint restart mine\n" in said
    assert "what runs keeps what it has started with" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/b", "slurm"], "Invalid endpoint name: "),
        (["mine", "nothing"], "there is no folder 'nothing'"),
        (["taken", "slurm"], "/taken is there already, and was not made by `gc-warm configure`"),
        (["taken", "taken"], "taken is the endpoint itself"),
        (["mine", "slurm", "-o", "nodes"], "-o nodes: write -o name=value"),
        (
            ["mine", "slurm", "-o", "nodes=0", "-o", "memory=0"],
            "\n-o nodes: nodes: 0 is less than the minimum of 1. Nodes of each job. (",
        ),
    ],
)
def test_refuses(arguments: list[str], message: str, home: Path) -> None:
    shutil.copytree(folders.shipped()["local"], home / "taken")
    before = contents(home / "taken")
    refused = configured(*arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert message in refused.stderr
    assert [path.name for path in home.iterdir()] == ["taken"]
    assert contents(home / "taken") == before


def test_record_that_is_none_is_named(mine: Path) -> None:
    for text in ("", "[]", '{"sha256": 1}'):
        (mine / "gc_warm.json").write_text(text)
        refused = configured("mine", "slurm")
        assert f"{mine / 'gc_warm.json'} is not as `gc-warm configure` wrote it" in refused.stderr


def test_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "file" / "home"))
    refused = configured("mine", "slurm")
    assert "/mine cannot be written, and nothing was changed: Not a directory\n" in refused.stderr


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.delenv("GLOBUS_COMPUTE_USER_DIR")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "there is no home directory for the endpoint" in configured("mine", "slurm").stderr
    assert cli_runner().invoke(cli.main, ["check", "slurm"]).exit_code == 0, "that needs none"


def interrupt(_: int) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("event", "status"), [(interrupt, 130), (fill_disk, 1)])
@pytest.mark.parametrize("number", [1, 2])
def test_end_while_writing_changes_nothing(
    event: Any, status: int, number: int, mine: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    before = contents(mine)
    calls = iter(range(1, 100))
    monkeypatch.setattr(os, "fsync", lambda file: next(calls) == number and event(file))
    given = (options_file(tmp_path), "-o", "amqp_port=5671", "-o", "nodes=2")

    assert configured("mine", "slurm", *given).exit_code == status
    assert contents(mine) == before
    calls = iter(range(1, 100))
    assert configured("new", "slurm", *given).exit_code == status
    monkeypatch.undo()


def test_interrupt_while_renaming_comes_after(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replace_and_interrupt(*paths: Path) -> None:
        replace(*paths)
        interrupt(0)

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    given = ("mine", "slurm", options_file(tmp_path), "-o", "amqp_port=5671", "-o", "nodes=2")
    assert configured(*given).exit_code == 130
    assert configured(*given).stdout.startswith(f"{mine}: up to date\n")


def variables(folder: Path) -> dict[str, str] | None:
    found: dict[str, str] | None = yaml.safe_load((folder / "user_environment.yaml").read_text())
    return found


def test_user_endpoints_find_an_environment_that_is_not_on_the_path(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (variables(mine) or {}).keys() == {"PYTHONPATH"}
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    said = configured("mine", "slurm", options_file(tmp_path)).stdout
    scripts = os.path.dirname(sys.executable)
    assert (variables(mine) or {})["PATH"] == f"{scripts}:/usr/bin:/bin"
    assert f"    {scripts}/globus-compute-endpoint start mine\n" in said


@pytest.mark.parametrize(
    ("given", "is_root", "kept"),
    [
        ("", True, {}),
        ("", False, {"PYTHONPATH": "/shell"}),
        ("# mine\nSITE: here\n", True, {"SITE": "here"}),
        ("SITE: here\nPYTHONPATH: /a:/b\n", False, {"SITE": "here", "PYTHONPATH": "/a:/b"}),
    ],
    ids=["nothing", "of the shell", "other variables", "of the config"],
)
def test_hooks_come_before_a_python_path_that_is_there(
    given: str,
    is_root: bool,
    kept: dict[str, str],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A daemon of root, and no other, keeps the variables of its shell from user endpoints."""
    monkeypatch.setenv("PYTHONPATH", "/shell")
    monkeypatch.setattr(installing, "is_privileged", lambda: is_root)
    shutil.copytree(folders.shipped()["local"], tmp_path / "config")
    (tmp_path / "config" / "user_environment.yaml").write_text(given)

    assert configured("mine", str(tmp_path / "config")).exit_code == 0
    paths = [STARTUP, *filter(None, [kept.get("PYTHONPATH")])]
    assert variables(home / "mine") == {**kept, "PYTHONPATH": ":".join(paths)}
    assert ("# mine" in (home / "mine" / "user_environment.yaml").read_text()) == ("#" in given)


def test_endpoint_for_several_users_has_no_hooks(tmp_path: Path, home: Path) -> None:
    shutil.copytree(folders.shipped()["slurm"], tmp_path / "config")
    with (tmp_path / "config" / "config.yaml").open("a") as file:
        file.write(f"identity_mapping_config_path: {tmp_path / 'users.json'}\n")
    (tmp_path / "users.json").write_text("[]")
    assert configured("mine", str(tmp_path / "config")).exit_code == 0
    assert variables(home / "mine") is None


def test_hooks_that_everybody_can_write_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "STARTUP", str(tmp_path / "startup"))
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup").chmod(0o777)
    said = configured("mine", "slurm").stderr
    assert f"{tmp_path / 'startup'} can be written by everybody, and would run in your" in said
