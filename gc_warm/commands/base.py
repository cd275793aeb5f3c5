"""Base classes of the commands: their end by an interrupt or a missing package, and their list."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import click

from gc_warm.commands import interrupts


class Command(click.Command):
    """A command that tells in one line that it was interrupted, or which package it misses."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command, as `click.Command.invoke` does.

        Args:
            context: The context of the command.

        Raises:
            click.ClickException: A package is missing, or has a version that cannot be used.
        """
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            interrupts.tell()
            sys.exit(interrupts.STATUS)
        except (ImportError, AttributeError) as error:
            from gc_warm.commands import missing

            explanation = missing.explain(error, context.command_path)
            if explanation is None:
                raise
            raise click.ClickException(explanation) from error

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole first paragraph of the help.

        Click would cut it at the width of the terminal.

        Args:
            limit: Ignored.
        """
        summary = inspect.cleandoc(self.help or "").partition("\n\n")[0]
        return " ".join(summary.split())


class Group(click.Group):
    """A group of commands, each of which is a `Command`."""

    command_class = Command
