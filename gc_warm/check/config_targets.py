"""Targets of `gc-warm check` that are configs: folders, rendered YAML, endpoints of this user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from globus_compute_sdk.sdk.batch import create_user_runtime

from gc_warm.check import config_rules, folder_rules, python_configs
from gc_warm.check.inspected import Target
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, options, rendering
from gc_warm.configs.text import Place, read_text
from gc_warm.exceptions import ConfigError


@dataclass(frozen=True)
class Config:
    """A config, and what it is looked at with.

    Attributes:
        file: The file that people edit: the YAML, or the template.
        known: The numbers that are known of tasks.
        folder: The config's folder; None for a YAML without a template.
        options: Options of the folder's template.
        origin: The place that each option comes from.
    """

    file: Path
    known: Numbers
    folder: Path | None = None
    options: dict[str, object] = field(default_factory=dict)
    origin: dict[str, Place | str] = field(default_factory=dict)

    def inspect(self, text: str | None = None) -> Target:
        """Hold the config against all rules for configs.

        Args:
            text: What the file is to hold; without, what it holds.

        Raises:
            ConfigError: The template refuses the options.
            OSError: A file cannot be read.
        """
        if self.folder is None:
            return self._inspect_yaml(read_text(self.file) if text is None else text)
        return self._inspect_folder(self.folder, text)

    def source_lines(self, rendered: str, text: str | None = None) -> list[int]:
        """Return the line of the file that each line of the YAML comes from.

        Args:
            rendered: The YAML.
            text: What the file is to hold; without, what it holds.
        """
        if self.folder is None:
            return list(range(1, len(rendered.splitlines()) + 1))
        return rendering.template_lines(self.folder, self.options, rendered, client_runtime(), text)

    def _inspect_yaml(self, text: str) -> Target:
        examined = config_rules.examine(text, self.file, self.known)
        return Target(
            str(self.file),
            examined.findings,
            text,
            examined.config,
            is_seen_whole=examined.is_seen_whole,
        )

    def _inspect_folder(self, folder: Path, template: str | None) -> Target:
        runtime = client_runtime()
        text = rendering.render(folder, self.options, self.origin, runtime, template)

        examined = config_rules.examine(
            text, self.file, self.known, lambda: self.source_lines(text, template)
        )
        findings = [*examined.findings, *folder_rules.examine(folder, examined.config)]
        parent, _, _ = folders.files_of(folder)
        return Target(
            str(folder),
            findings,
            text,
            examined.config,
            is_folder=True,
            mapping=parent.identity_mapping_config_path,
            is_seen_whole=examined.is_seen_whole,
        )


def find(name: str, assignments: Sequence[str], options_file: str | None, known: Numbers) -> Config:
    """Return a config.

    Args:
        name: The config, as it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: The numbers that are known of tasks.

    Raises:
        ConfigError: The options do not fit.
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
        return Config(file, known)

    folder = folders.find_folder(name)
    schema = options.schema_of(folders.schema_path(folder))
    given, origin = options.gather(schema, assignments, options_file)
    return Config(folders.template_path(folder), known, folder, given, origin)


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
