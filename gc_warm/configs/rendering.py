"""Render the template of an endpoint config with the endpoint's own function."""

from __future__ import annotations

import functools
import os
import pwd
import re
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from globus_compute_endpoint.endpoint.config.utils import (
    load_user_config_template,
    render_config_user_template,
)
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

from gc_warm.configs.folders import TEMPLATE, files_of
from gc_warm.configs.options import Options, misfits, schema_of
from gc_warm.exceptions import ConfigError

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    from globus_compute_endpoint.endpoint.config import ManagerEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--manager-config"


def render(folder: Path, options: Options, origin: Mapping[str, str] | None = None) -> str:
    """The YAML that the endpoint makes of a config and options.

    Args:
        folder: The config's folder.
        options: What a task's ``user_endpoint_config`` holds.
        origin: Where each option comes from, for messages: ``{"walltime": "options.yaml:3"}``.

    Raises:
        ConfigError: The options do not fit the schema, or the template refuses them. All that do
            not fit are named.
        FileNotFoundError: The folder has no template.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not the folder of a config: it has no {TEMPLATE}")
    parent, template, rules = files_of(folder)
    if not template.is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a config: it has no {template.name}"
        )
    schema = schema_of(rules)
    wrong = [
        f"{(origin or {}).get(name, 'options')}: {what}"
        for name, what in misfits(options, schema, rules)
    ]
    try:
        text = load_user_config_template(template)
        places, defaults = _defaults(text, schema)
        wrong += [
            f"{template}:{places[name]}: default of {what}"
            for name, what in misfits(defaults, schema, rules)
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))
        return _filled_in(parent, template, text, schema, options)
    except ConfigError:
        raise
    except Exception as error:  # a template can end in any
        raise ConfigError(f"{template}:{_template_line(error)}: {_refusal(error)}") from error


def _filled_in(
    parent: CoreEndpointConfig,
    path: Path,
    template: str,
    schema: Mapping[str, Any],
    options: Options,
) -> str:
    user = MappedPosixIdentity(_user(), [], uuid.UUID(int=0))
    return str(
        render_config_user_template(parent, template, path, user, dict(schema), dict(options), {})
    )


def template_lines(folder: Path, options: Options, rendered: str) -> list[int]:
    """For each line of what `render` has given, the line of the template that it comes from; 1 where that cannot be told.

    The template is rendered once more, with marks where a setting ends its line. What has no mark
    of its own, since it was included say, belongs to the last one before it.
    """
    without = rendered.splitlines()
    parent, path, rules = files_of(folder)
    text, schema = load_user_config_template(path), schema_of(rules)
    try:
        with_marks = _filled_in(parent, path, _marked(text), schema, options).splitlines()
    except Exception:  # it reckons with what it has rendered, so that marks are in its way
        return [1] * len(without)
    lines: list[int] = []
    for line in with_marks:
        found = re.search(f"{_MARK}(\\d+){_MARK}", line)
        lines.append(int(found[1]) if found else lines[-1] if lines else 1)
    is_same = [re.sub(f"{_MARK}\\d+{_MARK}", "", line) for line in with_marks] == without
    return lines if is_same else [1] * len(without)


_MARK = "\ue000"  # of private use, so that nobody else means anything by it


def _marked(template: str) -> str:
    """A template with the number of each line at its end, where a setting ends there: not in a tag, nor in the blanks that it eats."""
    tags = [
        found.span()
        for found in re.finditer(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", template, re.DOTALL)
    ]
    lines, end = [], -1
    for number, line in enumerate(template.split("\n"), 1):
        end += len(line) + 1
        words = re.sub(r"\{%.*?%\}", "", line)
        is_setting = re.match(r"\s*(- )?[\w.\"'{}| -]+:(\s|$)", words) and not re.search(
            r"-[%}#]\}\s*$", line
        )
        is_in_tag = any(first < end < last for first, last in tags)
        lines.append(f"{line}{_MARK}{number}{_MARK}" if is_setting and not is_in_tag else line)
    return "\n".join(lines)


def _defaults(text: str, schema: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Lines and values of the defaults at the top of a template, where people edit them and no schema looks."""
    lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found = re.fullmatch(
            r"\{%-? set (\w+) = \1 \| default\((.*)\)(?: \| int)? -?%\}", line.strip()
        )
        if found is None or found[1] not in schema.get("properties", {}):
            continue
        try:
            value = _default(found[2])
        except jinja2.TemplateSyntaxError as error:
            raise jinja2.TemplateSyntaxError(
                f"default of {found[1]}: {error.message}; text goes in quotes", number
            ) from None
        # else it means: not given
        if value or (value is not None and "default" in schema["properties"][found[1]]):
            lines[found[1]], values[found[1]] = number, value
    return lines, values


@functools.cache
def _default(expression: str) -> Any:
    """The value of a default, which has no variables; there are many, and Jinja compiles each."""
    return jinja2.sandbox.SandboxedEnvironment().compile_expression(expression)()


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:  # in a container, say, that is run with some number
        return pwd.struct_passwd(
            (
                str(os.getuid()),
                "x",
                os.getuid(),
                os.getgid(),
                "",
                os.path.expanduser("~"),
                "/bin/sh",
            )
        )


def _template_line(error: Exception) -> int:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    return next(
        (
            frame.lineno or 1
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == "<template>"
        ),
        1,
    )


def _refusal(error: Exception) -> str:
    """The words of a template that refuses: it can only ask for a key that is missing."""
    said = re.fullmatch(r"'dict object' has no attribute '(.+ .+)'", str(error))
    return said[1] if said else str(error) or type(error).__name__
