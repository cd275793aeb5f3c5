"""``gc-warm report``: the report on a file of records."""

from __future__ import annotations

import click
from rich.console import Console

from gc_warm.client.report import Report
from gc_warm.commands import interrupts


def run(file: str, as_json: bool, picture: str | None) -> None:
    """Print the report, and draw the picture if one is asked for.

    Args:
        file: File of records.
        as_json: Print JSON.
        picture: File of the picture; None for no picture.
    """
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
