"""The command ``gc-warm``."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import click
from globus_compute_sdk.errors import TaskExecutionFailed
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

import gc_warm
from gc_warm import demo
from gc_warm.check import configs, environment, options
from gc_warm.testing.runners import WorkerStartError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gc_warm.__version__, prog_name="gc-warm")
def main() -> None:
    """Warm state on Globus Compute workers: loaded once, there for the next task."""


@main.command("demo")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Number of worker processes.")
@click.option("--engine", is_flag=True, help="Use the endpoint's real engine in place of spawned workers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def demo_command(workers: int, engine: bool, as_json: bool) -> None:
    """Watch real computations go from cold to warm, on this machine, with no account.

    Exit status 0 means that every result was right, and every call cold or warm as it should be.
    """
    parts: list[demo.Part] = []
    console, error_console = Console(highlight=False), Console(stderr=True, highlight=False)
    begun = "starting the engine" if engine else f"starting {workers} worker{'s' * (workers > 1)}"
    try:
        # A terminal shows both, so that one console has to know of both; tables in a file leave the progress to stderr.
        with (console if console.is_terminal else error_console).status(begun) as status:
            for part in demo.run(workers, engine, lambda part: _tell(status, part)):
                parts.append(part)
                if not as_json:
                    _show(console, part)
    except (TaskExecutionFailed, WorkerStartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    right = all(row.right for part in parts for row in part.rows)
    if as_json:
        click.echo(json.dumps({"right": right, "parts": [dataclasses.asdict(part) for part in parts]}, indent=2))
    elif right:
        console.print("Every result was right, and every call was cold or warm as it should be.")
    else:
        error_console.print("[bold red]Some calls, marked with !, did not give what they should have.[/]")
    sys.exit(0 if right else 1)


def _tell(status: Status, part: demo.Part) -> None:
    status.update(f"{escape(part.title.split(':')[0])}: call {min(len(part.rows) + 1, part.expected)} of {part.expected}")


def _show(console: Console, part: demo.Part) -> None:
    console.print(f"[bold]{escape(part.title)}[/]", soft_wrap=True)
    if part.note:
        console.print(escape(part.note), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)
    for heading in ("call", "", "worker", "seconds", "result"):
        table.add_column(heading, justify="right" if heading in ("call", "seconds", "result") else "left", overflow="fold")
    for row in part.rows:
        state = "[green]warm[/]" if row.warm else "[blue]cold[/]"
        shown = f"{row.result:.6f}" if isinstance(row.result, float) else str(row.result)
        table.add_row(str(row.number), state, row.worker, f"{row.seconds:.6f}", shown + ("" if row.right else " !"))
    console.print(table)
    if part.ratio is not None:
        console.print(f"A cold call took {part.ratio:,.0f} times as long as a warm one.", soft_wrap=True)
    console.print()


@main.command("check")
@click.argument("folder")
@click.option("-o", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the config; can be repeated.")
@click.option("--options", "options_file", type=click.Path(exists=True, dir_okay=False), help="YAML or JSON file of options.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print what the endpoint makes of it, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--here", is_flag=True, help="Also look whether this machine has what the config needs. Runs its `environment`.")
@click.option("--module", "modules", multiple=True, help="Warmable module that workers have to import; implies --here.")
def check_command(
    folder: str, assignments: tuple[str, ...], options_file: str | None, as_yaml: bool, as_json: bool, here: bool, modules: tuple[str, ...]
) -> None:
    """What the config in FOLDER means for warm state, and what it costs.

    FOLDER is that of a config, of an endpoint (~/.globus_compute/NAME), or the name of a config that comes with gc_warm: local, slurm,
    slurm-gpu or pbs. Nothing is submitted. Exit status 1 means that something cannot work.
    """
    if as_yaml and (as_json or here or modules):
        raise click.UsageError("--yaml prints the YAML and nothing else: leave the others away")
    try:
        found = configs.find_folder(folder)
        text = configs.render(found, *_options(found, assignments, options_file))
        config = configs.load(text, configs.template_path(found))
        meaning = configs.meaning(config)
    except (options.ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_yaml:
        click.echo(text)
        return
    findings = list(_look(config, modules)) if here or modules else []
    if as_json:
        figures = {name: None if value == math.inf else value for name, value in dataclasses.asdict(meaning).items()}
        looked = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"folder": str(found), **figures, "findings": looked}, indent=2))
    else:
        _explain(found, meaning, findings)
    sys.exit(1 if any(finding.level == "error" for finding in findings) else 0)


def _options(folder: Path, assignments: tuple[str, ...], file: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """All options, and where each comes from; the command line has the last word."""
    given, origin = options.read(file) if file else ({}, {})
    schema = options.schema_of(configs.schema_path(folder))
    for name, value in (options.parse(assignment, schema) for assignment in assignments):
        given[name], origin[name] = value, f"-o {name}"
    return given, origin


def _look(config: Any, modules: tuple[str, ...]) -> list[environment.Finding]:
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in ends}  # what was started is ended, too
    try:
        with Console(stderr=True, highlight=False).status("looking at the worker's environment"):
            return list(environment.look(config, modules))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(folder: Path, meaning: configs.Meaning, findings: list[environment.Finding]) -> None:
    console = Console(highlight=False)
    rows = [("config", str(folder)), *configs.in_words(meaning)]
    width = max(len(heading) for heading, _ in rows)
    for heading, sentence in rows:
        console.print(f"[bold]{escape(heading):{width}}[/]  {escape(sentence)}", soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        indented = finding.text.replace("\n", "\n    ")
        console.print(f"[{colours[finding.level]}]{finding.level:7}[/]  {escape(finding.about)}: {escape(indented)}", soft_wrap=True)
    installed = (folder / "user_environment.yaml").exists()
    if findings:
        home = folder if installed else "~/.globus_compute/my-endpoint"
        console.print(f"\n[bold]what the logs in {escape(str(home))} know[/]\n{escape(environment.LOGS)}", soft_wrap=True)
    if not installed:
        console.print(
            f"\n[bold]make an endpoint of it (options are not part of it) with[/]\n{configs.deploy_command(folder)}", soft_wrap=True
        )


if __name__ == "__main__":
    main()
