"""What the endpoint's loader complains of: the settings, the reasons, and the line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from click import ClickException

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    CORE_CONFIG = "--manager-config"


def complaint_of(error: ClickException) -> str:
    """Return what the loader says; of pydantic's words, the setting and the reason."""
    places = _refused_settings(error)
    return (
        "\n".join(f"{'.'.join(place)}: {reason}" for place, reason in places)
        if places
        else error.message
    )


def _refused_settings(error: ClickException) -> list[tuple[list[str], str]]:
    """Return the path of names to each setting that pydantic refuses, and the reason; nothing where somebody else refuses."""
    if not isinstance(error.__cause__, ValueError) or not hasattr(error.__cause__, "errors"):
        return []
    return [([str(name) for name in each["loc"]], each["msg"]) for each in error.__cause__.errors()]


def line_of(error: ClickException, text: str, source: str | os.PathLike[str]) -> int:
    """Return the line of the source that the loader's complaint is about.

    That is the line of the setting whose name the complaint uses, the innermost if there are
    several, or to which its path leads.
    """
    mark = getattr(error.__cause__, "problem_mark", None)
    lines = (
        Path(source).read_text(encoding="utf-8").splitlines()
        if os.path.isfile(source)
        else text.splitlines()
    )
    if mark is not None:
        rendered = text.splitlines()
        wanted = rendered[min(mark.line, len(rendered) - 1)].strip()
        return next(
            (number for number, line in enumerate(lines, 1) if line.strip() == wanted),
            mark.line + 1,
        )

    places = _refused_settings(error)
    words = " ".join(reason for _, reason in places) if places else error.message
    # a word of many complaints, and of many sections
    named = set(re.findall(r"\w+", words)) - {"type"}
    keys = [
        (key, number)
        for number, line in enumerate(lines, 1)
        if (key := re.match(r"(\s*)(?:- )?(\w+):", line)) and key[2] in named
    ]
    if keys:
        return max(keys, key=lambda found: (len(found[0][2]), len(found[0][1]), -found[1]))[1]
    return _line_of_setting(places[0][0], lines) if places else 1


def _line_of_setting(path: Sequence[str], lines: Sequence[str]) -> int:
    """Return the line of a setting, by the names of the sections that it is in and its own."""
    at = 0
    for name in path:
        if name != "type":  # which says of the section around it what that is
            at = next(
                (
                    number
                    for number in range(at, len(lines))
                    if re.match(rf"\s*(- )?{re.escape(name)}:", lines[number])
                ),
                at,
            )
    return at + 1
