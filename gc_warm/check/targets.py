"""The targets of `gc-warm check`, and all that the rules find in them.

A target is a config, a rendered YAML, an endpoint of this user, a Python file, or a Python module.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_sdk.sdk.batch import create_user_runtime

from gc_warm.check import config_rules, folder_rules, function_rules, source
from gc_warm.check.rules import Finding
from gc_warm.check.task_facts import NUMBERS, Numbers
from gc_warm.configs import folders, options, rendering
from gc_warm.configs.text import Place, read_text
from gc_warm.exceptions import ConfigError

_ENDPOINT_PACKAGES = ("globus_compute_endpoint", "funcx_endpoint")


@dataclass(frozen=True)
class Target:
    """A target that was inspected.

    Attributes:
        name: The folder, the file, or the module.
        findings: The rules that it breaks, the worst first.
        text: The YAML of a user endpoint; None for functions.
        config: The config that the endpoint makes of the YAML; None for functions, and where it
            makes nothing that can be relied on.
        is_folder: Whether it is the folder of a config, from which an endpoint can be made.
        is_empty: Whether there is nothing in it that a rule could look at.
    """

    name: str
    findings: list[Finding]
    text: str | None = None
    config: UserEndpointConfig | None = None
    is_folder: bool = False
    is_empty: bool = False


def numbers(assignments: Sequence[str]) -> Numbers:
    """Return the numbers that a command line says of tasks.

    Args:
        assignments: The numbers, each as ``load_seconds=60``.

    Raises:
        ConfigError: There is no number of that name, or its value is no number from 0 on.
    """
    known = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in NUMBERS:
            raise ConfigError(
                f"--with {assignment}: there is no {name!r}; there are {', '.join(NUMBERS)}"
            )

        try:
            known[name] = float(value)
        except ValueError:
            known[name] = -1.0
        if not 0 <= known[name] < float("inf"):
            raise ConfigError(f"--with {assignment}: write {name}=NUMBER, not below 0")
    return Numbers(**known)


def inspect_target(
    name: str, assignments: Sequence[str], options_file: str | None, known: Numbers, strategy: str
) -> Target:
    """Hold one target against all rules that are for it.

    Args:
        name: The target, as it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: The numbers that are known of tasks.
        strategy: The serialization strategy by which functions travel.

    Raises:
        ConfigError: The options do not fit, or the template refuses them.
        SourceError: The target is named as Python, and is not.
        OSError: There is no such target.
    """
    if (in_python := _python_config(name)) is not None:
        raise ConfigError(
            f"{in_python} is an endpoint configuration in Python, which is only known by running "
            f"it: write it as YAML, as `engine:` and its settings in config.yaml"
        )
    if name.endswith(".py"):
        return _inspect_python(name, strategy)
    if file := _yaml_of(name):
        if assignments or options_file:
            raise ConfigError(f"{file} is no template, so that options would mean nothing")
        return _inspect_yaml(file, known)

    try:
        folder = folders.find_folder(name)
    except FileNotFoundError as error:
        if os.sep in name or not source.exists(name):
            raise FileNotFoundError(f"{error}; nor is there a Python module of that name") from None
        return _inspect_python(name, strategy)

    given, origin = _options(folder, assignments, options_file)
    return _inspect_folder(folder, given, origin, known)


def _inspect_python(name: str, strategy: str) -> Target:
    findings, number = function_rules.examine_all(name, strategy)
    return Target(name, findings, is_empty=number == 0)


def _inspect_yaml(file: Path, known: Numbers) -> Target:
    text = read_text(file)
    examined = config_rules.examine(text, file, known)
    return Target(str(file), examined.findings, text, examined.config)


def _inspect_folder(
    folder: Path, given: dict[str, object], origin: dict[str, Place | str], known: Numbers
) -> Target:
    runtime = _runtime()
    text = rendering.render(folder, given, origin, runtime)

    examined = config_rules.examine(
        text,
        folders.template_path(folder),
        known,
        lambda: rendering.template_lines(folder, given, text, runtime),
    )
    findings = [*examined.findings, *folder_rules.examine(folder)]
    return Target(str(folder), findings, text, examined.config, is_folder=True)


def _runtime() -> dict[str, object]:
    """Return the ``user_runtime`` that a client in this process sends, as it arrives."""
    runtime: dict[str, object] = json.loads(json.dumps(asdict(create_user_runtime())))
    return runtime


def _python_config(name: str) -> Path | None:
    """Return the file of an endpoint's configuration in Python; None if the target is no such.

    It is the file itself, or the one in the folder of an endpoint that has no other.
    """
    candidates = [Path(name)] if name.endswith(".py") else []
    candidates += [
        folder / "config.py"
        for folder in (Path(name), folders.user_folder() / name)
        if not (folder / folders.TEMPLATE).is_file()
    ]
    return next((path for path in candidates if _sets_a_config(path)), None)


def _sets_a_config(path: Path) -> bool:
    """Return whether a Python file makes what the endpoint takes for its configuration."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError):
        return False

    imports_endpoint = any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ENDPOINT_PACKAGES)
        for node in body
    )
    names = [
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return imports_endpoint and "config" in names


def _yaml_of(name: str) -> Path | None:
    """Return the YAML of a user endpoint; None if the target has none as it stands.

    It is the file itself, or the one in the folder of an endpoint which has no template.
    """
    path = Path(name)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return path

    for folder in (path, folders.user_folder() / name):
        inside = folder / "config.yaml"
        has_template = (folder / folders.TEMPLATE).is_file()
        if inside.is_file() and not has_template and folders.has_engine(inside):
            return inside
    return None


def _options(
    folder: Path, assignments: Sequence[str], file: str | None
) -> tuple[dict[str, object], dict[str, Place | str]]:
    """Return all options, and the place of each; the command line has the last word."""
    origin: dict[str, Place | str] = {}
    given, places = options.read(file) if file else ({}, {})
    origin.update(places)
    schema = options.schema_of(folders.schema_path(folder))
    for assignment in assignments:
        name, value = options.parse(assignment, schema)
        given[name] = value
        origin[name] = f"-o {name}"
    return given, origin
