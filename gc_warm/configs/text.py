"""The text of a config's files, and YAML as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gc_warm.exceptions import ConfigError


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is not UTF-8 text.
        OSError: The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None


def parse_config(text: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the document that YAML holds, and the engine in it.

    Text that is no YAML gives no engine and no error: the endpoint's loader is to say what is wrong
    with it.

    Args:
        text: The YAML of an endpoint.

    Returns:
        The document, and its `engine` section; None in its place where there is none.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, None

    engine = document.get("engine") if isinstance(document, dict) else None
    return document, engine if isinstance(engine, dict) else None


def parse_with_nodes(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the document, and its nodes as they are written; None for both if it is no YAML.

    The nodes are composed anew: making a document of nodes merges each `<<` into them.

    Args:
        text: The YAML of an endpoint.
    """
    try:
        return yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        # the endpoint's loader complains about it
        return None, None


def node_at(root: yaml.Node | None, place: Sequence[str]) -> yaml.Node | None:
    """Return the node of a setting's value; None if it is not there.

    Args:
        root: The nodes of a document.
        place: The names of the sections that the setting is in, and its own.
    """
    found = [value for _, value in _along(root, place)]
    return found[-1] if len(found) == len(place) and found else None


def line_at(root: yaml.Node | None, place: Sequence[str]) -> int:
    """Return the line of a setting, or of the innermost section around it that there is.

    Args:
        root: The nodes of a document.
        place: The names of the sections that the setting is in, and its own.
    """
    found = [key.start_mark.line + 1 for key, _ in _along(root, place)]
    return found[-1] if found else 1


def _along(root: yaml.Node | None, place: Sequence[str]) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return key and value of each section on the way to a setting, as far as they are there."""
    found: list[tuple[yaml.Node, yaml.Node]] = []
    node = root
    for name in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        named = [(key, value) for key, value in pairs if key.value == name]
        if not named:
            break

        # of two, the last is the one that counts
        found.append(named[-1])
        node = named[-1][1]
    return found
