"""Rules for the YAML of a user endpoint.

They find what makes state cold, loses tasks, or gives no workers at all. Each rule is a thing that
the endpoint's loader lets pass. What a rule claims has been seen on the real engine, or is read in
the source that the rule names; the versions are those that this package asks for. Each family of
rules has a module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.check import (
    folder_rules,
    gpu_rules,
    life_rules,
    script_rules,
    size_rules,
    written_rules,
)
from gc_warm.check.config_subjects import (
    WORKERS,
    WRITTEN,
    Workers,
    Written,
)
from gc_warm.check.rules import Broken, Finding, Rule, is_silenced
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import loading, templates
from gc_warm.configs.text import Place, parse_with_nodes, place_of
from gc_warm.exceptions import ConfigError

FAMILIES = (written_rules, size_rules, gpu_rules, life_rules, script_rules)
"""The modules of the rules for configs, each of which enters its own."""


@dataclass(frozen=True)
class Examined:
    """The result of all rules for a config.

    Attributes:
        findings: All that are not silenced, the worst first.
        config: The config as the endpoint loads it; None where the endpoint cannot load it, or
            where what it loads cannot be relied on.
        is_seen_whole: Whether the rules for workers could look, too.
    """

    findings: list[Finding]
    config: UserEndpointConfig | None
    is_seen_whole: bool


_UNRELIABLE = ("GCW000", "GCW001", "GCW003", "GCW019")


def examine(
    text: str,
    source: str | os.PathLike[str],
    numbers: Numbers | None = None,
    source_lines: Callable[[], list[int]] | None = None,
) -> Examined:
    """Hold a config against all rules.

    Args:
        text: The YAML, rendered.
        source: The file of the YAML, or of the template it was rendered from: findings are shown
            there.
        numbers: What is known of the tasks.
        source_lines: For each line of *text*, the line of *source* it comes from; without, they are
            the same.

    Returns:
        The findings, and the config as the endpoint loads it.
    """
    _, root = parse_with_nodes(text)
    loaded = loading.load_repaired(text)
    refusal = _refusal(loaded.refusal, root, text, source) if loaded.refusal else None

    is_rendered = source_lines is not None
    written = Written(loaded.document, root, loaded.repairs, refusal, is_rendered)
    broken = list(WRITTEN.broken(written))
    unreliable = sum(rule in _UNRELIABLE for rule, *_ in broken)
    # each repair is a finding, and no reason not to look at the rest
    is_seen_whole = unreliable == len(loaded.repairs)
    if loaded.config is not None and is_seen_whole:
        broken += WORKERS.broken(Workers(loaded.document, loaded.config, numbers or Numbers()))
    config = None if unreliable else loaded.config

    findings = list(_findings(broken, root, text, source, source_lines))
    # "error" comes before "warning"
    findings.sort(key=lambda finding: (finding.level, finding.rule))
    return Examined(findings, config, loaded.config is not None and is_seen_whole)


def _findings(
    broken: Sequence[Broken],
    root: yaml.Node | None,
    text: str,
    source: str | os.PathLike[str],
    source_lines: Callable[[], list[int]] | None,
) -> Iterator[Finding]:
    """Yield the findings that no comment silences, each at its line of the source."""
    rendered = _numbered(text)
    original = _numbered(_source_text(source))
    origins = source_lines() if source_lines and broken else list(rendered)

    for rule, level, setting, message, fix in broken:
        place = setting if isinstance(setting, Place) else place_of(root, setting, source)
        origin = origins[place.line - 1] if place.line <= len(origins) else 1

        lines = (rendered.get(place.line, ""), original.get(origin, ""))
        if not any(is_silenced(rule, each) for each in lines):
            column = _column(place.column, *lines) if source_lines else place.column
            one_line = " ".join(message.split())
            yield Finding(rule, level, place.file, origin, column, place.option, one_line, fix)


def _column(column: int, rendered: str, original: str) -> int:
    """Return the column of a template's line in which a setting of a rendered line stands.

    Where its name is made by the template, that is the line's first.
    """
    name = rendered[column - 1 :].partition(":")[0]
    found = original.find(name) if name else -1
    return (found if found >= 0 else len(original) - len(original.lstrip())) + 1


def _refusal(
    error: ConfigError, root: yaml.Node | None, text: str, source: str | os.PathLike[str]
) -> tuple[Place, str] | None:
    """Return the place and the text of the loader's complaint; None if there is just no engine.

    What is no YAML may be a template.
    """
    if error.line is None:
        return None

    if root is None and (template := templates.template_complaint(text, source)):
        return template

    complaint = str(error).removeprefix(f"{error.file}:{error.line}: ")
    return Place(os.fspath(source), error.line, error.column or 1, error.option), complaint


def _numbered(text: str) -> dict[int, str]:
    return dict(enumerate(text.splitlines(), 1))


def _source_text(source: str | os.PathLike[str]) -> str:
    return Path(source).read_text(encoding="utf-8") if os.path.isfile(source) else ""


_ALL: dict[str, Rule[Any]] = {**WRITTEN.rules, **WORKERS.rules, **folder_rules.RULES}
RULES: Mapping[str, Rule[Any]] = dict(sorted(_ALL.items()))
"""All rules for configs, by id."""
