"""The command ``gc-warm``."""

from __future__ import annotations

import dataclasses
import json
import sys

import click
from globus_compute_sdk.errors import TaskExecutionFailed
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

import gc_warm
from gc_warm import demo
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


if __name__ == "__main__":
    main()
