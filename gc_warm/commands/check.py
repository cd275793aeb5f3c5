"""``gc-warm check``: what the rules say of configs and functions, and what a config amounts to."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from gc_warm.check import configs, environment, options, rules, source, targets
from gc_warm.commands import interrupts

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def run(
    names: tuple[str, ...],
    as_yaml: bool,
    as_json: bool,
    here: bool,
    modules: tuple[str, ...],
    **given: Any,
) -> None:
    """Examine all targets and print what was found; exit with status 1 if that is an error."""
    with interrupts.in_order():
        examined = [_examine(name, **given) for name in names]
        if as_yaml:
            click.echo(examined[0].text)
            return

        findings = [_look_around(target, modules) if here else [] for target in examined]
        pairs = list(zip(examined, findings, strict=True))
        if as_json:
            click.echo(json.dumps({"targets": [_as_json(*pair) for pair in pairs]}, indent=2))
        else:
            for pair in pairs:
                _show(*pair)
            _sum_up([problem for target in examined for problem in target.problems])

    levels: set[str] = {problem.level for target in examined for problem in target.problems}
    levels |= {finding.level for found in findings for finding in found}
    sys.exit(1 if "error" in levels else 0)


def _examine(
    name: str,
    assignments: tuple[str, ...],
    options_file: str | None,
    numbers: tuple[str, ...],
    strategy: str,
) -> targets.Target:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that modules are found which lie here

    try:
        return targets.look_at(name, assignments, options_file, targets.numbers(numbers), strategy)
    except (options.ConfigError, source.SourceError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _as_json(target: targets.Target, findings: list[environment.Finding]) -> dict[str, Any]:
    meaning = {} if target.config is None else dataclasses.asdict(configs.meaning(target.config))
    figures = {name: None if value == math.inf else value for name, value in meaning.items()}
    return {
        "target": target.name,
        **figures,
        "problems": [dataclasses.asdict(problem) for problem in target.problems],
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _look_around(target: targets.Target, modules: tuple[str, ...]) -> list[environment.Finding]:
    """Look whether this machine has what a config needs; functions need nothing of it."""
    if target.text is None:
        return []
    if target.config is None:
        unreliable = "not looked at, since the config cannot be relied on"
        return [environment.Finding("warning", "environment", unreliable)]

    with Console(stderr=True, highlight=False).status("looking at the worker's environment"):
        return list(environment.look(target.config, modules))


def _show(target: targets.Target, findings: list[environment.Finding]) -> None:
    console = Console(highlight=False)
    meaning = [] if target.config is None else configs.in_words(configs.meaning(target.config))
    _show_rows(console, target, meaning)

    if target.problems and meaning:
        console.print()
    for problem in target.problems:
        where = escape(f"{problem.file}:{problem.line}")
        level = f"[{_COLOURS[problem.level]}]{problem.rule} {problem.level}[/]"
        console.print(f"{where}: {level}: {escape(problem.text)}", soft_wrap=True)

    for finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level:7}[/]"
        indented = finding.text.replace("\n", "\n    ")
        console.print(f"{level}  {escape(finding.about)}: {escape(indented)}", soft_wrap=True)

    _show_what_follows(console, target, bool(findings))


def _show_rows(console: Console, target: targets.Target, meaning: list[tuple[str, str]]) -> None:
    """Print what was examined and what it amounts to, as two columns."""
    rows = [("functions" if target.text is None else "config", target.name), *meaning]
    if not target.problems:
        rows.append(("rules broken", "none"))

    width = max(len(heading) for heading, _ in rows)
    for heading, sentence in rows:
        console.print(f"[bold]{escape(heading):{width}}[/]  {escape(sentence)}", soft_wrap=True)


def _show_what_follows(console: Console, target: targets.Target, was_looked_at: bool) -> None:
    """Print where the endpoint's logs are, and how to make an endpoint of a config that is none yet."""
    folder = Path(target.name)
    is_installed = not target.is_folder or (folder / "user_environment.yaml").exists()

    if was_looked_at:
        home = str(folder) if is_installed else "~/.globus_compute/my-endpoint"
        heading = f"[bold]what the logs in {escape(home)} know[/]"
        console.print(f"\n{heading}\n{escape(environment.LOGS)}", soft_wrap=True)
    if not is_installed:
        heading = "[bold]make an endpoint of it (options are not part of it) with[/]"
        console.print(f"\n{heading}\n{configs.deploy_command(folder)}", soft_wrap=True)


def _sum_up(problems: list[rules.Problem]) -> None:
    if not problems:
        return

    counts = []
    for level in ("error", "warning"):
        number = sum(problem.level == level for problem in problems)
        if number:
            counts.append(f"{number} {level}{'s' * (number > 1)}")

    advice = f"`gc-warm check --explain {problems[0].rule}` says why, and how it is known."
    click.echo(f"\n{', '.join(counts)}. {advice}")
