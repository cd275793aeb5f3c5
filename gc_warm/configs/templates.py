"""Templates as Jinja's own parser reads them: whether a text is one, and what it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes

from gc_warm.configs.homes import TEMPLATE
from gc_warm.configs.text import Place

_ENVIRONMENT = jinja2.Environment()
_ENVIRONMENT.filters["shell_escape"] = str  # the endpoint's own, without which no name is found


def variables(text: str) -> list[str]:
    """Return the names that a text has to be given, in order; none if it is no template.

    Args:
        text: The text.
    """
    if "{{" not in text and "{%" not in text:
        return []

    try:
        names = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except jinja2.TemplateError:
        return []
    return sorted(names, key=text.index)


def template_complaint(text: str, source: str | os.PathLike[str]) -> tuple[Place, str] | None:
    """Return place and text of what to say of a template that is given as YAML; None if it is none.

    Args:
        text: The text, which is no YAML.
        source: The file that it is from.
    """
    names = variables(text)
    if not names:
        return None

    kinds = ("variable_begin", "block_begin")
    line = next(line for line, kind, _ in _ENVIRONMENT.lex(text) if kind in kinds)
    shown = ", ".join(f"{{{{ {name} }}}}" for name in names)
    why = (
        f"this is a template ({shown}): put it into a folder as {TEMPLATE}, check that, "
        f"and give options: -o {names[0]}=..."
    )
    column = text.split("\n")[line - 1].find("{") + 1
    return Place(os.fspath(source), line, column), why


def defaults_of(text: str) -> Iterator[tuple[str, Any, int]]:
    """Yield name, value and line of each default that a template gives to an option.

    Such a default is written as ``{% set nodes = nodes | default(1) %}``, perhaps with ``| int``.
    One that is reckoned from other options is left out.

    Args:
        text: The template.

    Raises:
        TemplateSyntaxError: The text is no template. The error names the line, and the default if
            that is wrong.
    """
    try:
        tree = _ENVIRONMENT.parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise _wrong_default(text) or error from None

    for assignment in tree.find_all(nodes.Assign):
        target = assignment.target
        name = target.name if isinstance(target, nodes.Name) else ""
        default = _default_of(assignment.node, name)
        if default is None:
            continue

        try:
            yield name, _constant(default), assignment.lineno
        except nodes.Impossible:
            continue


def _constant(expression: nodes.Expr) -> Any:
    """Return the value of a default; of text that is written as it arrives, the text itself."""
    if isinstance(expression, nodes.Filter) and expression.name == "tojson":
        assert isinstance(expression.node, nodes.Expr)
        return _constant(expression.node)
    if isinstance(expression, nodes.List):
        return [_constant(item) for item in expression.items]
    return expression.as_const()


def _default_of(expression: nodes.Node, name: str) -> nodes.Expr | None:
    """Return the default in what a name is set to; None if that is none, or of something else."""
    value: nodes.Node | None = expression
    while isinstance(value, nodes.Filter) and value.name == "int":
        value = value.node
    if not isinstance(value, nodes.Filter) or value.name not in ("default", "d"):
        return None

    given = [*value.args, *(each.value for each in value.kwargs if each.key == "default_value")]
    is_own = isinstance(value.node, nodes.Name) and value.node.name == name
    return given[0] if is_own and given else None


def _wrong_default(text: str) -> jinja2.TemplateSyntaxError | None:
    """Return the error of the first default that cannot be read; None if that is not it.

    A quotation mark too few swallows the lines below, so that Jinja complains of one of those.
    """
    for number, line in enumerate(text.splitlines(), 1):
        tag, is_default, _ = line.partition("default(")
        name = tag.rpartition("set ")[2].partition(" ")[0]
        if not is_default or "set " not in tag:
            continue

        try:
            _ENVIRONMENT.parse(line)
        except jinja2.TemplateSyntaxError as error:
            message = f"default of {name}: {error.message}; text goes in quotes"
            return jinja2.TemplateSyntaxError(message, number)
    return None
