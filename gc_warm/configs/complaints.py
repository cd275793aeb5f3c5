"""Errors of the endpoint's loader, as a message and a place in the file that people edit.

The loader raises a `ClickException`, whose cause is an error of YAML, with a mark, or one of
pydantic, with the path of names to each setting that it refuses. Any other cause has words only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from click import ClickException

from gc_warm.configs.text import Place, Setting, node_at, nodes_of, place_of, sections


def complaint_of(error: ClickException) -> str:
    """Return the message of the loader; from pydantic's, only each setting and the reason.

    Args:
        error: The error that the loader raised.
    """
    refused = _refused_settings(error)
    if not refused:
        return error.message
    return "\n".join(f"{'.'.join(map(str, names))}: {reason}" for names, reason in refused)


def place_of_complaint(error: ClickException, text: str, source: str | os.PathLike[str]) -> Place:
    """Return the place in the source that the loader's complaint is about.

    Where YAML itself is wrong, that is the mark. Else it is the setting to which the complaint's
    path of names leads, or one in there whose name the complaint uses: of several, the one with the
    longest name, and then the innermost. A complaint that leads nowhere is about line 1.

    Args:
        error: The error that the loader raised.
        text: The YAML that it refused.
        source: The file that the YAML is from, or is rendered from.
    """
    mark = getattr(error.__cause__, "problem_mark", None)
    if mark is None:
        return place_in_source(_subject(error, text), text, source)

    last = max(len(text.splitlines()), 1)
    place = Place(os.fspath(source), min(mark.line + 1, last), mark.column + 1)
    return _in_template(place, text)


def place_in_source(setting: Setting, text: str, source: str | os.PathLike[str]) -> Place:
    """Return the place of a setting in the file that its YAML is from, or is rendered from.

    Args:
        setting: The setting.
        text: The YAML.
        source: The file; if there is none, the place is that in the text.
    """
    return _in_template(place_of(nodes_of(text), setting, source), text)


def _refused_settings(error: ClickException) -> list[tuple[tuple[str | int, ...], str]]:
    """Return the path of names to each setting that pydantic refuses, and the reason.

    The list is empty where somebody else refuses.
    """
    cause = error.__cause__
    if not isinstance(cause, ValueError) or not hasattr(cause, "errors"):
        return []
    return [(tuple(each["loc"]), each["msg"]) for each in cause.errors()]


def _subject(error: ClickException, text: str) -> Sequence[str | int]:
    """Return the setting that a complaint is about; an empty path if it does not say."""
    root = nodes_of(text)
    refused = _refused_settings(error)
    path, reason = refused[0] if refused else ((), error.message)
    # a type says of the section around it what that is
    within = tuple(name for name in path if name != "type")
    while within and node_at(root, within) is None:
        within = within[:-1]

    # "type" is a word of many complaints, and the name of a setting in many sections
    words = set(re.findall(r"\w+", reason)) - {"type"}
    named = [
        (*names, str(key.value))
        for names, section in sections(root)
        for key, _ in section.value
        if names[: len(within)] == within and str(key.value) in words
    ]
    named += [] if named or within else _impossible_values(root)
    return max(named, key=lambda names: (len(str(names[-1])), len(names)), default=within)


def _impossible_values(root: yaml.Node | None) -> list[tuple[str | int, ...]]:
    """Return the settings of whose text YAML cannot make the value that it takes it for."""
    found: list[tuple[str | int, ...]] = []
    for names, section in sections(root):
        for key, value in section.value:
            try:
                if isinstance(value, yaml.ScalarNode):
                    yaml.SafeLoader("").construct_object(value)
            except (ValueError, yaml.YAMLError):
                found.append((*names, str(key.value)))
    return found


def _in_template(place: Place, text: str) -> Place:
    """Return where in the template a place of the YAML comes from, as far as its lines tell.

    That is the first line that reads the same, or else the one to which the setting's names lead.
    """
    lines = _lines_of(place.file)
    rendered = text.splitlines()
    if not lines or lines == rendered:
        return place

    marked = rendered[place.line - 1].strip() if rendered else ""
    same = (number for number, line in enumerate(lines) if line.strip() == marked)
    at = next(same, None)
    if at is None:
        at = 0
        for name in place.option.split(".") if place.option else ():
            below = range(at, len(lines))
            at = next((one for one in below if lines[one].strip(" -").startswith(f"{name}:")), at)

    column = len(lines[at]) - len(lines[at].lstrip()) + 1
    return replace(place, line=at + 1, column=column)


def _lines_of(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if os.path.isfile(file) else []
