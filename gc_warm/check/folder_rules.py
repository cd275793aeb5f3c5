"""Rules for the folder of a config: for what its endpoint lets a task's options do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.check.rules import Finding, Rule, RuleSet, is_silenced
from gc_warm.configs import folders, meaning, options, templates
from gc_warm.configs.text import parse_with_nodes, place_of, read_text

_RUN_CODE = (
    "environment",
    "worker_init",
    "requirements",
    "python_path",
    "preload",
    "preload_node",
    "endpoint_setup",
    "launch_cmd",
    "container_uri",
    "container_cmd_options",
)
"""Options that run what they say, or say where modules are found, by the names that are in use."""


@dataclass(frozen=True)
class _Folder:
    """A config's folder.

    Attributes:
        allowed: The functions that its endpoint is restricted to; None if it takes any.
        offered: The options that its template looks at and its schema lets in.
        is_for_several: Whether it maps identities to local users.
        hands_over: Whether its jobs are to hand over.
        variables: The environment of its user endpoints, as far as it is written; None if there is
            no file of it.
    """

    allowed: tuple[str, ...] | None
    offered: frozenset[str]
    is_for_several: bool
    hands_over: bool
    variables: str | None


_RULES: RuleSet[_Folder] = RuleSet()


def examine(folder: Path, config: UserEndpointConfig | None = None) -> list[Finding]:
    """Hold the folder of a config against all rules for folders.

    Args:
        folder: The folder.
        config: What the endpoint makes of its template; None if that cannot be relied on.

    Raises:
        ConfigError: The folder's own configuration, or its schema, cannot be read.
    """
    parent, template, rules = folders.files_of(folder)
    schema = options.schema_of(rules)
    looked_at = templates.variables(read_text(template))
    is_open = schema.get("additionalProperties", True) is not False
    offered = [name for name in looked_at if is_open or name in options.described(schema)]
    variables = folder / "user_environment.yaml"
    subject = _Folder(
        parent.allowed_functions,
        frozenset(offered),
        parent.identity_mapping_config_path is not None,
        config is not None and meaning.warmth_profile(config).overlap_jobs is not None,
        read_text(variables) if variables.is_file() else None,
    )

    source = folder / "config.yaml"
    text = read_text(source) if source.is_file() else ""
    _, root = parse_with_nodes(text)
    lines = text.splitlines() or [""]

    findings = []
    for rule, level, setting, message, fix in _RULES.broken(subject):
        place = place_of(root, setting, source)
        if not is_silenced(rule, lines[place.line - 1]):
            where = (place.file, place.line, place.column, place.option)
            findings.append(Finding(rule, level, *where, message, fix))
    return findings


@_RULES.rule(
    "GCW033",
    "warning",
    "read in globus_compute_endpoint/endpoint/core_endpoint.py: "
    "options reach the template whatever function comes with them",
)
def restriction_undone(folder: _Folder) -> Iterator[tuple[Any, ...]]:
    """A restriction to some functions, and options that run any code.

    With `allowed_functions` an endpoint takes tasks of these functions only. But options come with
    each task, and some of them are shell commands (`environment`, `worker_init`), or say where the
    modules lie that a function imports (`python_path`, `preload`): whoever may send a task can run
    anything by them. Remove them from the schema, which has to let in no others, and fix their
    values in the template.
    """
    if folder.allowed is None:
        return

    undoing = [name for name in _RUN_CODE if name in folder.offered]
    if undoing:
        text = (
            f"allowed_functions restricts functions, and the options {', '.join(undoing)} run "
            "any code all the same: remove them from the schema, with additionalProperties false, "
            "and fix them in the template"
        )
        yield ("allowed_functions",), text


@_RULES.rule(
    "GCW042",
    "error",
    "read in globus_compute_endpoint/endpoint/core_endpoint.py: "
    "its user endpoints run as the users whom it maps",
)
def no_hooks_for_several(folder: _Folder) -> Iterator[tuple[Any, ...]]:
    """Jobs that are to hand over, of an endpoint for several users.

    What hands over lives in the user endpoint's own process, which would have it from a file of
    the endpoint's owner: it does nothing in one that runs as another user. Leave it out of the
    template there.
    """
    if folder.is_for_several and folder.hands_over:
        text = (
            "an endpoint for several users has no hooks in its user endpoints, so that their jobs "
            "do not hand over: leave gc_warm.hooks.handover out of worker_init"
        )
        yield ("identity_mapping_config_path",), text


@_RULES.rule(
    "GCW043",
    "warning",
    "read in globus_compute_endpoint/endpoint/core_endpoint.py: "
    "user endpoints have the variables of this file",
)
def no_hooks_in_environment(folder: _Folder) -> Iterator[tuple[Any, ...]]:
    """Jobs that are to hand over, of an endpoint without the hook for it.

    What hands over lives in the user endpoint's own process. It comes there by a PYTHONPATH in
    `user_environment.yaml`, which `gc-warm configure` writes; an endpoint that was made before has
    none, and then the option changes nothing.
    """
    if folder.is_for_several or not folder.hands_over or folder.variables is None:
        return

    if not re.search(r"^PYTHONPATH:.*/gc_warm/hooks/startup\b", folder.variables, re.MULTILINE):
        text = (
            "user_environment.yaml has no PYTHONPATH with gc_warm's hooks, so jobs do not hand "
            "over: call `gc-warm configure` again, and restart the endpoint"
        )
        yield (), text


RULES: Mapping[str, Rule[Any]] = _RULES.rules
"""All rules for folders, by id."""
