"""Targets of `gc-warm check` that are configs: folders, rendered YAML, endpoints of this user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from globus_compute_sdk.sdk.batch import create_user_runtime

from gc_warm.check import config_rules, folder_rules, python_configs
from gc_warm.check.inspected import Target
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, options, rendering
from gc_warm.configs.text import Place, read_text
from gc_warm.exceptions import ConfigError


def inspect(
    name: str, assignments: Sequence[str], options_file: str | None, known: Numbers
) -> Target:
    """Hold a config against all rules for configs.

    Args:
        name: The config, as it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: The numbers that are known of tasks.

    Raises:
        ConfigError: The options do not fit, or the template refuses them.
        FileNotFoundError: There is no such config.
        OSError: One of its files cannot be read.
    """
    homes = (Path(name), folders.user_folder() / name)
    for home in homes:
        if not (home / folders.TEMPLATE).is_file():
            python_configs.refuse(home / "config.py")

    if file := _yaml_of(name):
        if assignments or options_file:
            raise ConfigError(
                f"{file} is no template, so that options would mean nothing", str(file)
            )
        return _inspect_yaml(file, known)

    folder = folders.find_folder(name)
    schema = options.schema_of(folders.schema_path(folder))
    given, origin = options.gather(schema, assignments, options_file)
    return _inspect_folder(folder, given, origin, known)


def _inspect_yaml(file: Path, known: Numbers) -> Target:
    text = read_text(file)
    examined = config_rules.examine(text, file, known)
    return Target(
        str(file),
        examined.findings,
        text,
        examined.config,
        is_seen_whole=examined.is_seen_whole,
    )


def _inspect_folder(
    folder: Path, given: dict[str, object], origin: dict[str, Place | str], known: Numbers
) -> Target:
    runtime = client_runtime()
    text = rendering.render(folder, given, origin, runtime)

    examined = config_rules.examine(
        text,
        folders.template_path(folder),
        known,
        lambda: rendering.template_lines(folder, given, text, runtime),
    )
    findings = [*examined.findings, *folder_rules.examine(folder)]
    return Target(
        str(folder),
        findings,
        text,
        examined.config,
        is_folder=True,
        is_seen_whole=examined.is_seen_whole,
    )


def client_runtime() -> dict[str, object]:
    """Return the ``user_runtime`` that a client in this process sends, as it arrives."""
    runtime: dict[str, object] = json.loads(json.dumps(asdict(create_user_runtime())))
    return runtime


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
