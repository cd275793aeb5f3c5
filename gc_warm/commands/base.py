"""How every command ends that is interrupted or lacks a package, and how it is listed."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import click

from gc_warm.commands import interrupts


class Command(click.Command):
    """A command that tells in one line that it was interrupted, or which package it misses."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; see `click.Command.invoke`."""
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
        """Return the whole first paragraph of the help, where click would cut it at the width of the terminal."""
        summary = inspect.cleandoc(self.help or "").partition("\n\n")[0]
        return " ".join(summary.split())


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
