"""Templates as Jinja's own parser reads them: whether a text is one, and what it needs."""

from __future__ import annotations

import re

import jinja2
import jinja2.meta

from gc_warm.configs.folders import TEMPLATE

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


def template_complaint(text: str) -> tuple[int, str] | None:
    """Return line and text of what to say of a template that is given as YAML; None if it is none.

    Args:
        text: The text, which is no YAML.
    """
    names = variables(text)
    if not names:
        return None

    line = 1 + text.count("\n", 0, re.search(r"\{[{%]", text).start())  # type: ignore[union-attr]
    shown = ", ".join(f"{{{{ {name} }}}}" for name in names)
    why = (
        f"this is a template ({shown}): put it into a folder as {TEMPLATE}, check that, "
        f"and give options: -o {names[0]}=..."
    )
    return line, why
