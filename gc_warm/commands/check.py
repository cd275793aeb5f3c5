"""``gc-warm check``: what the rules say of configs and functions, and what a config amounts to."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from gc_warm.check import rules, source, targets
from gc_warm.check.inspected import Target
from gc_warm.commands import interrupts
from gc_warm.configs import homes
from gc_warm.exceptions import ConfigError

if TYPE_CHECKING:  # else functions, which need none of it, would wait for the endpoint's loader
    from gc_warm.check import environment
    from gc_warm.check.mending import Key

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def run(
    names: tuple[str, ...],
    as_yaml: bool,
    as_json: bool,
    here: bool,
    modules: tuple[str, ...],
    is_fixing: bool,
    **given: Any,
) -> None:
    """Examine all targets and print the findings; exit with status 1 if one is an error.

    Args:
        names: The targets.
        as_yaml: Print the YAML of the only target's config, and nothing else.
        as_json: Print JSON.
        here: Also look whether this machine has what the configs need.
        modules: Warmable modules that workers have to import.
        is_fixing: Before that, make the mends that are one value on one literal line.
        **given: Options of the configs, numbers and strategy of the tasks; see `_examine`.
    """
    with interrupts.in_order():
        patches = [_mend(name, **given) if is_fixing else {} for name in names]
        examined = [_examine(name, **given) for name in names]
        if as_yaml:
            click.echo(examined[0].text)
            return

        answers = [_look_around(target, modules) if here else [] for target in examined]
        pairs = list(zip(examined, answers, strict=True))

        if as_json:
            click.echo(json.dumps({"targets": [_as_json(*pair) for pair in pairs]}, indent=2))
        else:
            for pair, own in zip(pairs, patches, strict=True):
                _show(*pair, own, given)
            _sum_up([finding for target in examined for finding in target.findings])

    levels: set[str] = {finding.level for target in examined for finding in target.findings}
    levels |= {answer.level for own in answers for answer in own}
    sys.exit(1 if "error" in levels else 0)


def _examine(
    name: str,
    assignments: tuple[str, ...],
    options_file: str | None,
    numbers: tuple[str, ...],
    strategy: str,
) -> Target:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that modules are found which lie here

    try:
        return targets.inspect_target(
            name, assignments, options_file, targets.numbers(numbers), strategy
        )
    except (ConfigError, source.SourceError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _mend(
    name: str,
    assignments: tuple[str, ...],
    options_file: str | None,
    numbers: tuple[str, ...],
    strategy: str,
) -> Mapping[Key, str]:
    """Mend what can be mended, print each line before and after, and return the other patches."""
    try:
        known = targets.numbers(numbers)
        mended = targets.mend_target(name, assignments, options_file, known)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{name}: nothing was changed: {error}") from error
    if mended is None:
        return {}

    for each in mended.mends:
        click.echo(f"{each.file}:{each.line}: {each.finding.rule}, mended")
        click.echo(f"- {each.before}\n+ {each.after}\n")
    return mended.patches


def _as_json(target: Target, answers: list[environment.Answer]) -> dict[str, Any]:
    profile: dict[str, Any] = {}
    if target.config is not None:
        from gc_warm.configs import meaning

        profile = dataclasses.asdict(meaning.warmth_profile(target.config))
    # JSON has no infinity
    figures = {name: None if value == math.inf else value for name, value in profile.items()}

    return {
        "target": target.name,
        **figures,
        "problems": [dataclasses.asdict(finding) for finding in target.findings],
        "findings": [dataclasses.asdict(answer) for answer in answers],
    }


def _look_around(target: Target, modules: tuple[str, ...]) -> list[environment.Answer]:
    """Look whether this machine has what a config needs; functions need nothing of it."""
    if target.text is None:
        return []

    from gc_warm.check import environment

    if target.config is None:
        unreliable = "not looked at, since the config cannot be relied on"
        return [environment.Answer("warning", "environment", unreliable)]

    with Console(stderr=True, highlight=False).status("looking at the worker's environment"):
        answers = list(environment.look(target.config, modules))
        answers += environment.hooks_left_out(Path(target.name))
        answers += environment.refused_jobs(Path(target.name))
        answers += environment.workers_not_forked(Path(target.name))
        if target.mapping is not None:
            answers += environment.for_users(Path(target.name))
    return answers


def _show(
    target: Target,
    answers: list[environment.Answer],
    patches: Mapping[Key, str],
    given: Mapping[str, Any],
) -> None:
    console = Console(highlight=False)
    sentences: list[tuple[str, str]] = []
    if target.config is not None:
        from gc_warm.configs import meaning

        known = targets.numbers(given["numbers"])
        profile = meaning.warmth_profile(target.config)
        sentences = meaning.in_words(profile, known.queue_seconds, known.load_seconds)
    _show_rows(console, target, sentences)

    if target.findings and (sentences or not target.is_seen_whole):
        console.print()
    for finding in target.findings:
        where = escape(finding.place)
        level = f"[{_COLOURS[finding.level]}]{finding.rule} {finding.level}[/]"
        console.print(f"{where}: {level}: {escape(finding.text)}", soft_wrap=True)
        if patch := patches.get((finding.rule, finding.option)):
            console.print(f"    not mended: {escape(patch)}", soft_wrap=True)

    for answer in answers:
        level = f"[{_COLOURS[answer.level]}]{answer.level:7}[/]"
        indented = answer.text.replace("\n", "\n    ")
        console.print(f"{level}  {escape(answer.about)}: {escape(indented)}", soft_wrap=True)

    _show_what_follows(console, target, bool(answers), given)


def _show_rows(console: Console, target: Target, sentences: list[tuple[str, str]]) -> None:
    """Print a target's name and what it amounts to, as two columns."""
    rows = [("functions" if target.text is None else "config", target.name), *sentences]
    if target.mapping is not None:
        words = "for whom it maps, each with user endpoints, jobs and state of their own: the rest"
        rows.insert(1, ("many users", f"run by root, {words} is of one user ({target.mapping})"))
    if not target.is_seen_whole:
        known = "known in part: the endpoint makes nothing of this that all rules could look at"
        rows.append(("rules broken", known))
    elif target.is_empty:
        rows.append(("rules broken", "none, since nothing is sent from here and no state is kept"))
    elif not target.findings:
        rows.append(("rules broken", "none"))

    width = max(len(heading) for heading, _ in rows)
    for heading, sentence in rows:
        console.print(f"[bold]{escape(heading):{width}}[/]  {escape(sentence)}", soft_wrap=True)


def _show_what_follows(
    console: Console, target: Target, was_looked_at: bool, given: Mapping[str, Any]
) -> None:
    """Print where an endpoint's logs are, and how to make one of a config that is none yet."""
    folder = Path(target.name)
    is_installed = not target.is_folder or (folder / "user_environment.yaml").exists()

    if was_looked_at:
        from gc_warm.check import environment

        home = str(folder) if is_installed else "~/.globus_compute/my-endpoint"
        heading = f"[bold]what the logs in {escape(home)} know[/]"
        console.print(f"\n{heading}\n{escape(environment.LOGS)}", soft_wrap=True)
    if not is_installed:
        words = _configure_command(folder, **given)
        heading = "[bold]make an endpoint of it, with these options as its defaults[/]"
        console.print(f"\n{heading}\n{escape(shlex.join(words))}", soft_wrap=True)


def _configure_command(
    folder: Path, assignments: tuple[str, ...], options_file: str | None, **_: Any
) -> list[str]:
    """Return the words of the command that makes an endpoint of a config and options."""
    brought = homes.shipped().get(folder.name)
    words = ["gc-warm", "configure", "my-endpoint"]
    words.append(folder.name if folder == brought else str(folder))
    if options_file:
        words += ["--options", options_file]
    return words + [word for assignment in assignments for word in ("-o", assignment)]


def _sum_up(findings: list[rules.Finding]) -> None:
    if not findings:
        return

    counts = []
    for level in ("error", "warning"):
        number = sum(finding.level == level for finding in findings)
        if number:
            counts.append(f"{number} {level}{'s' * (number > 1)}")

    advice = f"`gc-warm check --explain {findings[0].rule}` says why, and how it is known."
    click.echo(f"\n{', '.join(counts)}. {advice}")
