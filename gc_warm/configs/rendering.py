"""Render the template of an endpoint config with the endpoint's own function.

The result is the YAML that the endpoint would make for a task with these options. Before that, all
options are held against the schema, and so are the defaults at the top of the template, which the
endpoint never checks.
"""

from __future__ import annotations

import os
import pwd
import re
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from globus_compute_endpoint.endpoint.config.utils import (
    load_user_config_template,
    render_config_user_template,
)
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

from gc_warm.configs.folders import TEMPLATE, CoreEndpointConfig, files_of
from gc_warm.configs.options import Options, described, misfits, schema_of
from gc_warm.configs.templates import defaults_of
from gc_warm.configs.text import Place, all_of
from gc_warm.exceptions import ConfigError

_MARK = "\ue000"  # of private use, so that nobody else means anything by it
_NUMBERED_MARK = re.compile(f"{_MARK}(\\d+){_MARK}")

_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_STATEMENT = re.compile(r"\{%.*?%\}")
_SETTING = re.compile(r"\s*(- )?[\w.\"'{}| -]+:(\s|$)")
_EATS_LINE_END = re.compile(r"-[%}#]\}\s*$")


def render(
    folder: Path,
    options: Options,
    origin: Mapping[str, Place | str] | None = None,
    runtime: Options | None = None,
    template_text: str | None = None,
) -> str:
    """Return the YAML that the endpoint makes of a config and options.

    Args:
        folder: The config's folder.
        options: The ``user_endpoint_config`` of a task.
        origin: The place that each option comes from, for messages.
        runtime: The client's ``user_runtime``, for templates that ask for it; none if not given.
        template_text: The template, where it is not as its file has it.

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
    places = origin or {}
    wrong = [
        _misfit(name, why, places.get(name, "options"))
        for name, why in misfits(options, schema, rules)
    ]
    try:
        text = _template_text(template, template_text)
        lines, defaults = _defaults(text, schema)
        wrong += [
            Place(os.fspath(template), lines[name], option=name).error(f"default of {why}")
            for name, why in misfits(defaults, schema, rules)
        ]
        if wrong:
            raise all_of(wrong)
        return _filled_in(parent, template, text, schema, (options, runtime or {}))
    except ConfigError:
        raise
    except Exception as error:  # a template can end in any
        place = Place(os.fspath(template), _template_line(error))
        raise _complaint(error, place) from error


def _template_text(path: Path, given: str | None) -> str:
    return str(load_user_config_template(path)) if given is None else given


def _misfit(option: str, why: str, origin: Place | str) -> ConfigError:
    if isinstance(origin, Place):
        return origin.error(why)
    return ConfigError(f"{origin}: {why}", option=option or None)


def template_lines(
    folder: Path,
    options: Options,
    rendered: str,
    runtime: Options | None = None,
    template_text: str | None = None,
) -> list[int]:
    """Return the line of the template that each line of a rendered YAML comes from.

    The template is rendered once more, with marks where a setting ends its line. What has no mark
    of its own, since it was included say, belongs to the last one before it. A template that uses
    its own output cannot be marked: then every line comes from line 1.

    Args:
        folder: The config's folder.
        options: The options that it was rendered with.
        rendered: The YAML that `render` has made of both.
        runtime: The client's ``user_runtime`` that it was rendered with.
        template_text: The template, where it is not as its file has it.

    Raises:
        ConfigError: The schema, or the endpoint's own configuration, cannot be read.
    """
    without = rendered.splitlines()
    parent, path, rules = files_of(folder)
    text = _template_text(path, template_text)
    schema = schema_of(rules)
    try:
        given = (options, runtime or {})
        with_marks = _filled_in(parent, path, _marked(text), schema, given).splitlines()
    except Exception:  # the template reckons with its output, so that marks are in its way
        return [1] * len(without)

    if [_NUMBERED_MARK.sub("", line) for line in with_marks] != without:
        return [1] * len(without)
    return _marked_lines(with_marks)


def _filled_in(
    parent: CoreEndpointConfig,
    path: Path,
    template: str,
    schema: Mapping[str, Any],
    given: tuple[Options, Options],
) -> str:
    """Return a template's text filled in with options and runtime, for this process's user."""
    options, runtime = map(dict, given)
    user = MappedPosixIdentity(_user(), [], uuid.UUID(int=0))
    return str(
        render_config_user_template(parent, template, path, user, dict(schema), options, runtime)
    )


def _user() -> pwd.struct_passwd:
    """Return this user's entry, or a made one where there is none."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:  # in a container, say, that is run with some number
        home = os.path.expanduser("~")
        return pwd.struct_passwd((str(uid), "x", uid, os.getgid(), "", home, "/bin/sh"))


def _marked(template: str) -> str:
    """Return a template with the number of each line at its end, where a setting ends there.

    No mark is put in a tag, nor in the blanks that a tag eats.
    """
    tags = [tag.span() for tag in _TAG.finditer(template)]

    lines = []
    end = -1
    for number, line in enumerate(template.split("\n"), 1):
        end += len(line) + 1
        is_setting = _SETTING.match(_STATEMENT.sub("", line)) and not _EATS_LINE_END.search(line)
        is_in_tag = any(first < end < last for first, last in tags)
        if is_setting and not is_in_tag:
            lines.append(f"{line}{_MARK}{number}{_MARK}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _marked_lines(rendered: Sequence[str]) -> list[int]:
    """Return the number in the mark of each line; without a mark, that of the line before."""
    numbers = []
    last = 1
    for line in rendered:
        mark = _NUMBERED_MARK.search(line)
        if mark:
            last = int(mark[1])
        numbers.append(last)
    return numbers


def _defaults(text: str, schema: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the lines and the values of the defaults at the top of a template, by option.

    There people edit them, and no schema looks at them. Of several for an option, the first counts.
    A default that stands for "not given", such as none, is left out.
    """
    lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    known = described(schema)
    for name, value, line in defaults_of(text):
        # else it means: not given
        if (
            name in known
            and name not in values
            and (value or (value is not None and "default" in known[name]))
        ):
            lines[name] = line
            values[name] = value
    return lines, values


def _template_line(error: Exception) -> int:
    """Return the line of the template that an error is from; 1 if that cannot be told."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno

    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == "<template>":
            return frame.lineno or 1
    return 1


def _complaint(error: Exception, place: Place) -> ConfigError:
    """Return a template's error, at a place; of a variable that is undefined, with its option.

    A template that refuses puts its message into a key that is missing.
    """
    missing = re.fullmatch(r"'dict object' has no attribute '(.+ .+)'", str(error))
    if missing:
        return place.error(missing[1])

    undefined = re.fullmatch(r"'([A-Za-z]\w*)' is undefined", str(error))
    if undefined and isinstance(error, jinja2.UndefinedError):
        name = undefined[1]
        advice = (
            f"give it as an option, -o {name}=..., or have a default in the template: "
            f"{{{{ {name} | default(...) }}}}"
        )
        return replace(place, option=name).error(f"{error}; {advice}")
    return place.error(str(error) or type(error).__name__)
