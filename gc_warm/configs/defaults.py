"""A template with options as its defaults: values for the tasks that bring none of their own.

They are a block before the template, which stays as it is. An option that a task brings wins, and
is checked by the schema as ever. A text is written with ``tojson``, since that is how it arrives
with a task: so it is rendered as the option of a task would be, whatever is in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gc_warm.configs.options import Options
from gc_warm.exceptions import ConfigError

_HEAD = """\
{#- Written by `gc-warm configure`: its options, as defaults for the tasks that bring none of their
    own. To change one, call it again: what is edited here, it does not write over. -#}
"""
_DELIMITER = re.compile(r"[{}%#](?=[{}%#])")


def with_defaults(template: str, options: Options, schema: Mapping[str, Any]) -> str:
    """Return a template that renders without options what it rendered with these.

    Args:
        template: The template.
        options: The options, which fit the schema.
        schema: The schema of the config.

    Raises:
        ConfigError: An option has a name that no template can use, or a value that no task can
            bring, such as a date.
    """
    if not options:
        return template

    either = schema.get("not", {}).get("required", [])
    lines = []
    for name, value in options.items():
        if not name.isidentifier():
            raise ConfigError(f"{name!r}: no template can use an option of this name", option=name)

        line = f"{{%- set {name} = {name} | default({_literal(name, value)}) -%}}"
        if name in either:
            # a task that brings the other one does not mean both
            others = " and ".join(f"{other} is undefined" for other in either if other != name)
            line = f"{{%- if {others} -%}}{line}{{%- endif -%}}"
        lines.append(line)
    return "\n".join([_HEAD.rstrip("\n"), *lines, template])


def _literal(name: str, value: Any) -> str:
    """Return the expression of Jinja for what arrives in a template as the value of an option."""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if value is None:
        return '"null"'  # which is what the endpoint makes of it

    if isinstance(value, str):
        return f"{_quoted(value)} | tojson"
    if isinstance(value, list):
        return f"[{', '.join(_literal(name, item) for item in value)}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items = (f"{_quoted(key)}: {_literal(name, item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    raise ConfigError(
        f"{name}: {value!r} cannot be sent with a task: write it in quotes", option=name
    )


def _quoted(text: str) -> str:
    """Return text as a string of Jinja in one line, in which nothing looks like the end of a tag.

    It is ASCII: the endpoint reads the file in whatever encoding its locale has.
    """
    words = json.dumps(text, ensure_ascii=False)
    plain = "".join(
        character if " " <= character <= "~" else character.encode("unicode_escape").decode()
        for character in words
    )
    return _DELIMITER.sub(lambda found: f"\\x{ord(found[0]):02x}", plain)
