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
    if rule in function_rules.RULES:
        click.echo(function_rules.RULES[rule].explanation())
        return

    # with Parsl and the SDK, which rules for function_rules need not wait for
    from gc_warm.check import config_rules

    if rule not in config_rules.RULES:
        known = [*config_rules.RULES, *function_rules.RULES]
        raise click.BadParameter(f"there is no rule {rule}; there are {', '.join(known)}")
    click.echo(config_rules.RULES[rule].explanation())
