"""``gc-warm demo``: run the demonstration, and show it as it goes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence

import click
from globus_compute_sdk.errors import TaskExecutionFailed
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

from gc_warm import demo, demo_routing
from gc_warm.commands import interrupts
from gc_warm.exceptions import WorkerStartError


def run(workers: int, engine: bool, as_json: bool) -> None:
    """Run the demonstration; exit with status 1 unless all of it was as it should be.

    Args:
        workers: Number of worker processes.
        engine: Use the endpoint's real engine in place of spawned workers.
        as_json: Print JSON.
    """
    with interrupts.in_order():
        parts = _run_parts(workers, engine, as_json)
        is_right = all(row.right for part in parts for row in part.rows)

        if as_json:
            shown = {"right": is_right, "parts": [dataclasses.asdict(part) for part in parts]}
            click.echo(json.dumps(shown, indent=2))
        elif is_right:
            _console().print(
                "Every result was right, and every call was cold or warm as it should be."
            )
        else:
            _console(stderr=True).print(
                "[bold red]Some calls, marked with !, did not give what they should have.[/]"
            )

    sys.exit(0 if is_right else 1)


def run_routing(workers: int, as_json: bool) -> None:
    """Run the demonstration of `warm_first`; exit with status 1 unless every result was right.

    Args:
        workers: Number of workers of each of the two engines.
        as_json: Print JSON.
    """
    console = _console(stderr=as_json)
    with interrupts.in_order():
        try:
            if console.is_terminal:
                with Live(console=console, auto_refresh=False) as live:
                    sides = demo_routing.run(
                        workers, lambda sides: live.update(_lanes(sides), refresh=True)
                    )
            else:
                sides = demo_routing.run(workers, lambda sides: None)
        except (TaskExecutionFailed, WorkerStartError, OSError) as error:
            raise click.ClickException(str(error)) from error

        if as_json:
            shown = [{**dataclasses.asdict(side), "loads": side.loads} for side in sides]
            click.echo(json.dumps({"right": _all_right(sides), "sides": shown}, indent=2))
        elif not console.is_terminal:
            console.print(_lanes(sides))

    sys.exit(0 if _all_right(sides) else 1)


def _all_right(sides: Sequence[demo_routing.Side]) -> bool:
    return all(side.right for side in sides)


def _lanes(sides: Sequence[demo_routing.Side]) -> Group:
    """Return both sides as they are to be shown: a lane for each worker, a letter for each call."""
    shown: list[RenderableType] = []
    for side in sides:
        table = Table.grid(padding=(0, 2))
        for rank, lane in sorted(side.lanes.items()):
            text = Text(overflow="fold")
            for letter in lane:
                text.append(letter, "blue bold" if letter == demo_routing.COLD else "green")
            table.add_row(f"worker {rank}", text)

        sum_of_it = (
            f"{len(side.waits)} of {side.expected} calls, {side.loads} cold ({demo_routing.COLD}); "
            f"19 of 20 took {side.longest:.2f} s at most\n"
        )
        shown += [Text(side.title, "bold"), table, Text(sum_of_it)]
    return Group(*shown)


def _run_parts(workers: int, engine: bool, as_json: bool) -> list[demo.Part]:
    """Run all parts, and show each when it is complete."""
    console = _console()
    # A terminal shows both, so that one console has to know of both; tables in a file leave the
    # progress to stderr.
    progress = console if console.is_terminal else _console(stderr=True)
    started = "the engine" if engine else f"{workers} worker{'s' * (workers > 1)}"

    parts: list[demo.Part] = []
    try:
        with progress.status(f"starting {started}") as status:
            running = demo.run(workers, engine, lambda part: _show_progress(status, part))
            # which ends the workers before anything else is cleared up
            with contextlib.closing(running):
                for part in running:
                    parts.append(part)
                    if not as_json:
                        _show(console, part)
    except (TaskExecutionFailed, WorkerStartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    return parts


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def _show_progress(status: Status, part: demo.Part) -> None:
    number = min(len(part.rows) + 1, part.expected)
    status.update(f"{escape(part.title.split(':')[0])}: call {number} of {part.expected}")


def _show(console: Console, part: demo.Part) -> None:
    console.print(f"[bold]{escape(part.title)}[/]", soft_wrap=True)
    if part.note:
        console.print(escape(part.note), soft_wrap=True)

    console.print(_table(part, box.SIMPLE_HEAD if console.is_terminal else box.ASCII))

    if part.ratio is not None:
        console.print(
            f"A cold call took {part.ratio:,.0f} times as long as a warm one.", soft_wrap=True
        )
    console.print()


def _table(part: demo.Part, style: box.Box) -> Table:
    table = Table(box=style)
    table.add_column("call", justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    table.add_column("worker", overflow="fold")
    table.add_column("seconds", justify="right", overflow="fold")
    table.add_column("result", justify="right", overflow="fold")

    for row in part.rows:
        state = "[green]warm[/]" if row.warm else "[blue]cold[/]"
        result = f"{row.result:.6f}" if isinstance(row.result, float) else str(row.result)
        mark = "" if row.right else " !"
        table.add_row(str(row.number), state, row.worker, f"{row.seconds:.6f}", result + mark)
    return table
