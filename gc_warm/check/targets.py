"""What `gc-warm check` looks at: a config, a rendered YAML, an endpoint, or functions; and all that can be said of it beforehand."""

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
    """Something that was looked at.

    Attributes:
        name: What it is: a folder, or a file.
        findings: The rules that it breaks, the worst first.
        text: The YAML of a user endpoint; None for functions.
        config: What the endpoint makes of that; None for functions, and where it makes nothing that
            can be relied on.
        is_folder: Whether it is the folder of a config, from which an endpoint can be made.
    """

    name: str
    findings: list[Finding]
    text: str | None = None
    config: UserEndpointConfig | None = None
    is_folder: bool = False


def numbers(assignments: Sequence[str]) -> Numbers:
    """From a command line: ``load_seconds=60``.

    Raises:
        ConfigError: There is no such number, or it is none.
    """
    found = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in NUMBERS:
            raise ConfigError(
                f"--with {assignment}: there is no {name!r}; there are {', '.join(NUMBERS)}"
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise ConfigError(f"--with {assignment}: write {name}=NUMBER, not below 0")
    return Numbers(**found)


def inspect_target(
    name: str, assignments: Sequence[str], options_file: str | None, known: Numbers, strategy: str
) -> Target:
    """Look at one target.

    Args:
        name: As it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: What is known of the tasks.
        strategy: How functions travel.

    Raises:
        ConfigError: The options do not fit, or the template refuses them.
        SourceError: It is not Python.
        OSError: There is no such thing.
    """
    if name.endswith(".py"):
        return Target(name, function_rules.examine(name, strategy))
    if file := _yaml_of(name):
        if assignments or options_file:
            raise ConfigError(f"{file} is no template, so that options would mean nothing")
        text = read_text(file)
        examined = config_rules.examine(text, file, known)
        return Target(str(file), examined.findings, text, examined.config)
    try:
        folder = folders.find_folder(name)
    except FileNotFoundError as error:
        if os.sep in name or not source.exists(name):
            raise FileNotFoundError(f"{error}; nor is there a Python module of that name") from None
        return Target(name, function_rules.examine(name, strategy))
    given, origin = _options(folder, assignments, options_file)
    text = rendering.render(folder, given, origin)
    examined = config_rules.examine(
        text,
        folders.template_path(folder),
        known,
        lambda: rendering.template_lines(folder, given, text),
    )
    return Target(str(folder), examined.findings, text, examined.config, is_folder=True)


def _yaml_of(name: str) -> Path | None:
    """The YAML of a user endpoint: the file itself, or that in the folder of an endpoint which has no template."""
    path = Path(name)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return path
    for folder in (path, folders.user_folder() / name):
        inside = folder / "config.yaml"
        if (
            inside.is_file()
            and not (folder / folders.TEMPLATE).is_file()
            and folders.has_engine(inside)
        ):
            return inside
    return None


def _options(
    folder: Path, assignments: Sequence[str], file: str | None
) -> tuple[dict[str, object], dict[str, str]]:
    """All options, and where each comes from; the command line has the last word."""
    given, origin = options.read(file) if file else ({}, {})
    schema = options.schema_of(folders.schema_path(folder))
    for name, value in (options.parse(assignment, schema) for assignment in assignments):
        given[name], origin[name] = value, f"-o {name}"
    return given, origin
