"""``python -m gc_warm.client.report``: the report on a file of records."""

from __future__ import annotations

import click
from rich.console import Console

from gc_warm.client.report import Report
from gc_warm.commands import interrupts
from gc_warm.commands.base import Command


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False),
    help="Draw the calls over time into this file (PNG, SVG or PDF).",
)
def main(file: str, as_json: bool, picture: str | None) -> None:
    """Show what was warm, where, and what cold calls cost, from a FILE that a WarmExecutor wrote (records=...)."""
    with interrupts.in_order():
        try:
            report = Report.read(file)
            if picture:
                report.picture(picture)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise click.ClickException(str(error)) from None

        if as_json:
            click.echo(report.json())
        else:
            Console(highlight=False).print(report)
