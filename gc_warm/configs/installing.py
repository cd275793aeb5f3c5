"""An endpoint made of a config, with options as its defaults: whole, or not at all.

The endpoint's own command makes its files, in a folder that is thrown away; from there they are
moved to their place by renaming. One file more is the record, with a hash of each file as it was
written: by it is known later whether the endpoint is one of these, and what was edited since. It
lies beside the others, so that a copy of the folder has it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from globus_compute_endpoint.endpoint.endpoint import Endpoint
from globus_compute_endpoint.endpoint.utils import is_privileged

from gc_warm.configs import folders
from gc_warm.configs.defaults import with_defaults
from gc_warm.configs.options import Options, schema_of
from gc_warm.configs.text import parse_config, read_text
from gc_warm.exceptions import ConfigError
from gc_warm.hooks import STARTUP

RECORD = "gc_warm.json"
ENVIRONMENT = "user_environment.yaml"
_COMMAND = "globus-compute-endpoint"
_FOR_THE_ENDPOINT = ("config.yaml", ENVIRONMENT)
"""Files that say nothing of options, and that people edit: an edit stays where nothing changes."""
_PATHS = ("user_config_template_path", "user_config_schema_path")
"""Settings of a config that lead to files which an endpoint has a copy of."""
_SEVERAL = ("multi_user", "identity_mapping_config_path")
"""Settings of a config by which an endpoint serves several users."""
_IN_BOTH = ("amqp_port",)
"""Options that the endpoint itself needs as well, in its `config.yaml`."""


@dataclass
class Plan:
    """The difference between the files of an endpoint and what they are to be.

    Attributes:
        folder: The folder of the endpoint.
        files: What the files are to hold, by name; the record among them.
        is_new: Whether there is no such endpoint yet.
        changed: Names of the files to be written, without the record.
        edited: Names of the files that would have to be written, and were edited since.
        kept: Names of the files that were edited since, and can stay as they are.
    """

    folder: Path
    files: dict[str, bytes]
    is_new: bool
    changed: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def present(self, name: str) -> bytes | None:
        """Return what a file of the endpoint holds; None if there is none.

        Args:
            name: Its name.
        """
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def holds(self, name: str) -> bool:
        """Return whether a file of the endpoint is as it is to be.

        Args:
            name: Its name.
        """
        return self.present(name) == self.files[name]


def endpoint_folder(name: str) -> Path:
    """Return the folder that an endpoint of this name has, or would have.

    Args:
        name: The name.

    Raises:
        ConfigError: An endpoint cannot have this name, or there is no home directory.
    """
    try:
        Endpoint.validate_endpoint_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None

    home = folders.user_folder()
    if home.parts[:1] and home.parts[0].startswith("~"):
        raise ConfigError(
            f"{home}: there is no home directory for the endpoint; set HOME, or "
            "GLOBUS_COMPUTE_USER_DIR"
        )
    return home / name


def plan(folder: Path, source: Path, options: Options) -> Plan:
    """Return what has to be written to make, or to update, an endpoint.

    Args:
        folder: The folder of the endpoint.
        source: The folder of its config.
        options: The options to be its defaults, which fit the schema.

    Raises:
        ConfigError: The folder is not one that was made so, the config cannot be read, or an option
            cannot be a default.
        OSError: A file cannot be read, or there is no place for temporary ones.
    """
    is_new = not os.path.lexists(folder)
    recorded = {} if is_new else _recorded(folder)

    files = _files(folder.name, source, options)
    hashes = {name: _hash(data) for name, data in files.items()}
    record = {"written by": "gc-warm configure", "config": source.name, "sha256": hashes}
    planned = Plan(folder, files, is_new)
    for name in files:
        if planned.holds(name):
            continue

        present = planned.present(name)
        if present is None or _hash(present) == recorded.get(name):
            planned.changed.append(name)
        elif name in _FOR_THE_ENDPOINT and hashes[name] == recorded.get(name):
            planned.kept.append(name)
        else:
            planned.edited.append(name)

    files[RECORD] = (json.dumps(record, indent=2) + "\n").encode()
    return planned


def write(planned: Plan) -> None:
    """Write the files that have to be written.

    All are written beside their places first, and then renamed in one go, the record last. What is
    interrupted before has changed nothing.

    Args:
        planned: What has to be written.

    Raises:
        OSError: The files cannot be written, or somebody else has made the endpoint meanwhile.
    """
    folder = planned.folder
    parent = folder.parent if planned.is_new else folder
    names = [name for name in (*planned.changed, RECORD) if not planned.holds(name)]
    if not names:
        return

    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gc-warm-", dir=parent) as place:
        beside = Path(place, folder.name)
        beside.mkdir(mode=0o700)
        for name in names:
            write_beside(beside / name, planned.files[name], folder / name)

        with _signals_held():
            if planned.is_new:
                beside.rename(folder)
            else:
                for name in names:
                    os.replace(beside / name, folder / name)


def is_for_root_alone(folder: Path) -> bool:
    """Return whether an endpoint of root maps nobody to a local user, so that tasks run as root.

    Args:
        folder: The folder of the endpoint.
    """
    return not os.geteuid() and not _read_mapping(folder / "config.yaml").get(
        "identity_mapping_config_path"
    )


def start_command() -> str:
    """Return the command by which this environment's endpoint is started."""
    return str(_own_command()) if _needs_path() else _COMMAND


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _recorded(folder: Path) -> dict[str, str]:
    """Return the hashes in an endpoint's record."""
    try:
        recorded = json.loads((folder / RECORD).read_bytes())["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder} is there already, and was not made by `gc-warm configure` (which leaves a "
            f"{RECORD} in it): choose another name"
        ) from None
    except (ValueError, LookupError, TypeError):
        recorded = None

    if not isinstance(recorded, dict):
        path = folder / RECORD
        raise ConfigError(
            f"{path} is not as `gc-warm configure` wrote it: choose another name", os.fspath(path)
        )
    return recorded


def _files(name: str, source: Path, options: Options) -> dict[str, bytes]:
    """Return the files that the endpoint's own command makes of a config, by name."""
    template, rules = folders.template_path(source), folders.schema_path(source)
    core = _read_mapping(source / "config.yaml")
    core = {setting: value for setting, value in core.items() if setting not in _PATHS}
    core |= {option: options[option] for option in _IN_BOTH if option in options}

    with tempfile.TemporaryDirectory(prefix="gc-warm-") as place:
        scratch = Path(place)
        given = {
            folders.CORE_CONFIG: _put(scratch / "core.yaml", yaml.safe_dump(core, sort_keys=False)),
            "--template-config": _put(
                scratch / "template", with_defaults(read_text(template), options, schema_of(rules))
            ),
        }
        if rules.exists():
            given["--schema-config"] = rules
        variables = _variables(source / ENVIRONMENT, any(map(core.get, _SEVERAL)))
        if variables is not None:
            given["--user-env-config"] = _put(scratch / "environment", variables)

        made = scratch / "made"
        _configure(name, given, made)
        return {
            path.name: path.read_bytes()
            for path in sorted((made / name).iterdir())
            if path.is_file()
        }


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; none if there is no such file."""
    settings, _ = parse_config(read_text(path)) if path.is_file() else ({}, None)
    return settings or {}


def _put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def _configure(name: str, given: Mapping[str, Path], home: Path) -> None:
    """Run the endpoint's own command, for a home directory of its own."""
    command = [sys.executable, "-m", "globus_compute_endpoint.cli", "configure", name]
    command += ["--multi-user", "false"]
    for option, path in given.items():
        command += [option, str(path)]

    done = subprocess.run(
        command,
        cwd=home.parent,
        env={**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for this process, which ends it
        check=False,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()
        raise ConfigError(f"`{_COMMAND} configure` ended with {done.returncode}: {said}")


def _variables(path: Path, is_for_several: bool) -> str | None:
    """Return the text of an endpoint's environment file; None if it needs none.

    The daemon starts user endpoints as ``globus-compute-endpoint``: where that is not found, or is
    that of another environment, they need a PATH. Hooks in their own process come by a PYTHONPATH;
    an endpoint for several users has none.

    Args:
        path: The file that comes with the config.
        is_for_several: Whether the endpoint is for several users.

    Raises:
        ConfigError: Others than the user can write where the hooks are.
    """
    text = read_text(path) if path.is_file() else ""
    given = _read_mapping(path)
    more = []

    if _needs_path() and "PATH" not in given:
        found = os.pathsep.join([str(_own_command().parent), os.environ.get("PATH", os.defpath)])
        why = f"so that user endpoints find this {_COMMAND}, which was not the first on the PATH"
        more.append(_line("PATH", found, why))

    if not is_for_several:
        _refuse_writable(Path(STARTUP))
        former = _own_python_path()
        if "PYTHONPATH" in given:  # which cannot be there twice
            former = str(given.pop("PYTHONPATH"))
            text = yaml.safe_dump(given, width=float("inf")) if given else ""
        paths = os.pathsep.join(filter(None, [STARTUP, former]))
        why = "gc_warm's hooks in user endpoints, which take the first folder away again"
        more.append(_line("PYTHONPATH", paths, why))

    if text and more:
        text = text.rstrip() + "\n"
    return text + "".join(more) or None


def _line(name: str, value: str, why: str) -> str:
    return f"# {why}\n{yaml.safe_dump({name: value}, width=float('inf'))}"


def _own_python_path() -> str:
    """Return the PYTHONPATH that a user endpoint would have: a daemon of root gives none."""
    return "" if is_privileged() else os.environ.get("PYTHONPATH", "")


def _refuse_writable(folder: Path) -> None:
    for path in [folder, *folder.glob("*.py")]:
        if path.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"{path} can be written by everybody, and would run in your endpoints: chmod o-w"
            )


def _own_command() -> Path:
    return Path(sys.executable).with_name(_COMMAND)


def _needs_path() -> bool:
    """Return whether this environment's command is not the one that is found by its name."""
    own = _own_command()
    found = shutil.which(_COMMAND)
    return own.exists() and (found is None or not os.path.samefile(found, own))


def write_beside(path: Path, data: bytes, target: Path) -> None:
    """Write a file with the mode of the one that it is to replace; private if there is none.

    Args:
        path: The file.
        data: What it is to hold.
        target: The file that it is to replace.

    Raises:
        OSError: The file cannot be written.
    """
    path.touch(mode=0o600)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk may be known only then

    if target.exists():
        shutil.copymode(target, path)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back the signals that end a command until a few renames are done.

    They are not masked: another thread would take them, and Python raise them in this one.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: came.append(number))

    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
