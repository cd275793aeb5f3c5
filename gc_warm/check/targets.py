"""The targets of `gc-warm check`, and all that the rules find in them.

A target is a config, a rendered YAML, an endpoint of this user, a Python file, or a Python module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.check import config_rules, function_rules, source
from gc_warm.check.rules import Finding
from gc_warm.check.task_facts import NUMBERS, Numbers
from gc_warm.configs import folders, options, rendering
from gc_warm.configs.text import read_text
from gc_warm.exceptions import ConfigError


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
    """

    name: str
    findings: list[Finding]
    text: str | None = None
    config: UserEndpointConfig | None = None
    is_folder: bool = False


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
    if name.endswith(".py"):
        return Target(name, function_rules.examine(name, strategy))
    if file := _yaml_of(name):
        if assignments or options_file:
            raise ConfigError(f"{file} is no template, so that options would mean nothing")
        return _inspect_yaml(file, known)

    try:
        folder = folders.find_folder(name)
    except FileNotFoundError as error:
        if os.sep in name or not source.exists(name):
            raise FileNotFoundError(f"{error}; nor is there a Python module of that name") from None
        return Target(name, function_rules.examine(name, strategy))

    given, origin = _options(folder, assignments, options_file)
    return _inspect_folder(folder, given, origin, known)


def _inspect_yaml(file: Path, known: Numbers) -> Target:
    text = read_text(file)
    examined = config_rules.examine(text, file, known)
    return Target(str(file), examined.findings, text, examined.config)


def _inspect_folder(
    folder: Path, given: dict[str, object], origin: dict[str, str], known: Numbers
) -> Target:
    text = rendering.render(folder, given, origin)

    examined = config_rules.examine(
        text,
        folders.template_path(folder),
        known,
        lambda: rendering.template_lines(folder, given, text),
    )
    return Target(str(folder), examined.findings, text, examined.config, is_folder=True)


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
) -> tuple[dict[str, object], dict[str, str]]:
    """Return all options, and the place of each; the command line has the last word."""
    given, origin = options.read(file) if file else ({}, {})
    schema = options.schema_of(folders.schema_path(folder))
    for assignment in assignments:
        name, value = options.parse(assignment, schema)
        given[name] = value
        origin[name] = f"-o {name}"
    return given, origin
