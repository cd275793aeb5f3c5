"""Errors of the endpoint's loader, as a message and a line of the file that people edit.

The loader raises a `ClickException`, whose cause is an error of YAML, with a mark, or one of
pydantic, with the path of names to each setting that it refuses. Any other cause has words only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click import ClickException


def complaint_of(error: ClickException) -> str:
    """Return the message of the loader; from pydantic's, only each setting and the reason.

    Args:
        error: The error that the loader raised.
    """
    refused = _refused_settings(error)
    if not refused:
        return error.message
    return "\n".join(f"{'.'.join(path)}: {reason}" for path, reason in refused)


def line_of(error: ClickException, text: str, source: str | os.PathLike[str]) -> int:
    """Return the line of the source that the loader's complaint is about.

    Where YAML itself is wrong, that is the marked line. Else it is the line of a setting whose name
    the complaint uses (of several, the one with the longest name, and then the innermost), or the
    line to which the setting's path leads. A complaint that leads nowhere is about line 1.

    Args:
        error: The error that the loader raised.
        text: The YAML that it refused.
        source: The file that the YAML is from; if there is no such file, the text is taken for it.
    """
    lines = _lines_of(text, source)
    mark = getattr(error.__cause__, "problem_mark", None)
    if mark is not None:
        return _line_of_mark(mark, text.splitlines(), lines)

    refused = _refused_settings(error)
    reasons = " ".join(reason for _, reason in refused) if refused else error.message
    named = _line_of_name(reasons, lines)
    if named is not None:
        return named
    if not refused:
        return 1
    # a type says of the section around it what that is
    place = [name for name in refused[0][0] if name != "type"]
    return line_of_setting(place, text, source)


def line_of_setting(place: Sequence[str], text: str, source: str | os.PathLike[str]) -> int:
    """Return the line of the source to which the names of a setting and its sections lead.

    Args:
        place: The names of the sections that the setting is in, and its own.
        text: The YAML.
        source: The file that the YAML is from; if there is no such file, the text is taken for it.
    """
    lines = _lines_of(text, source)
    at = 0
    for name in place:
        setting = re.compile(rf"(.*[{{,])?\s*(- )?{re.escape(name)}:")
        below = (number for number in range(at, len(lines)) if setting.match(lines[number]))
        at = next(below, at)
    return at + 1


def _lines_of(text: str, source: str | os.PathLike[str]) -> list[str]:
    if os.path.isfile(source):
        return Path(source).read_text(encoding="utf-8").splitlines()
    return text.splitlines()


def _refused_settings(error: ClickException) -> list[tuple[list[str], str]]:
    """Return the path of names to each setting that pydantic refuses, and the reason.

    The list is empty where somebody else refuses.
    """
    cause = error.__cause__
    if not isinstance(cause, ValueError) or not hasattr(cause, "errors"):
        return []
    return [([str(name) for name in each["loc"]], each["msg"]) for each in cause.errors()]


def _line_of_mark(mark: Any, rendered: Sequence[str], lines: Sequence[str]) -> int:
    """Return the first line of the source that reads as the marked line of the YAML does."""
    marked = rendered[min(mark.line, len(rendered) - 1)].strip()
    for number, line in enumerate(lines, 1):
        if line.strip() == marked:
            return number
    return int(mark.line) + 1


def _line_of_name(reasons: str, lines: Sequence[str]) -> int | None:
    """Return the line of a setting whose name the complaint uses; None if there is none."""
    # "type" is a word of many complaints, and the name of a setting in many sections
    words = set(re.findall(r"\w+", reasons)) - {"type"}

    ranked = []
    for number, line in enumerate(lines, 1):
        setting = re.match(r"(\s*)(?:- )?(\w+):", line)
        if setting and setting[2] in words:
            ranked.append((len(setting[2]), len(setting[1]), -number))
    return -max(ranked)[2] if ranked else None
