"""``gc-warm check --explain``: all there is to say about one rule."""

from __future__ import annotations

import click

from gc_warm.check import function_rules


def run(rule: str) -> None:
    """Print the explanation of a rule.

    Args:
        rule: Name of the rule.

    Raises:
        click.BadParameter: There is no such rule.
    """
    known = function_rules.RULES
    if rule not in known:
        # with Parsl and the SDK, which rules for functions need not wait for
        from gc_warm.check import rulebook

        known = rulebook.RULES

    if rule not in known:
        raise click.BadParameter(f"there is no rule {rule}; there are {', '.join(known)}")
    click.echo(known[rule].explanation())
