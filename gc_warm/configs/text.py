"""The text of a config's files, YAML as data, and the place of each setting in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gc_warm.exceptions import ConfigError

Setting = Sequence[str | int] | yaml.Node
"""A setting: its name after those of its sections, or the node of its name."""


@dataclass(frozen=True)
class Place:
    """The place where a setting is written.

    Attributes:
        file: The file.
        line: The line in that file, from 1.
        column: The column in that line, from 1.
        option: The setting's name after those of its sections, with dots between them; None where
            it is about no setting.
    """

    file: str
    line: int = 1
    column: int = 1
    option: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, text: str) -> ConfigError:
        """Return the error that something is wrong here.

        Args:
            text: What is wrong.
        """
        return ConfigError(f"{self}: {text}", self.file, self.line, self.column, self.option)


def all_of(errors: Sequence[ConfigError]) -> ConfigError:
    """Return one error for several, with the text of each in a line and the place of the first.

    Args:
        errors: The errors, at least one.
    """
    first = errors[0]
    text = "\n".join(map(str, errors))
    return ConfigError(text, first.file, first.line, first.column, first.option)


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
        raise ConfigError(f"{path} is not UTF-8 text: {error}", os.fspath(path)) from None


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


def nodes_of(text: str) -> yaml.Node | None:
    """Return the nodes of YAML, also where no values can be made of them; None if it is no YAML.

    Args:
        text: The YAML of an endpoint.
    """
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def node_at(root: yaml.Node | None, setting: Sequence[str | int]) -> yaml.Node | None:
    """Return the node of a setting's value; None if it is not there.

    Args:
        root: The nodes of a document.
        setting: The names of the sections that the setting is in, and its own.
    """
    found = [value for _, value in _along(root, setting)]
    return found[-1] if len(found) == len(setting) and found else None


def place_of(root: yaml.Node | None, setting: Setting, file: str | os.PathLike[str] = "") -> Place:
    """Return the place of a setting, or of the innermost section around it that there is.

    Args:
        root: The nodes of a document.
        setting: The setting.
        file: The file of the document.
    """
    if isinstance(setting, yaml.Node):
        around = [
            names
            for names, section in sections(root)
            if any(key is setting for key, _ in section.value)
        ]
        names = (*around[0], str(setting.value)) if around else ()
        return _place_of_node(setting, names, file)

    found = [key for key, _ in _along(root, setting)]
    return _place_of_node(found[-1] if found else None, setting, file)


def sections(
    root: yaml.Node | None,
) -> Iterator[tuple[tuple[str | int, ...], yaml.MappingNode]]:
    """Yield each section of a document once, with its name after those of the sections around it.

    Aliases may lead to a section by many ways, and in circles.

    Args:
        root: The nodes of a document.
    """
    seen: set[int] = set()
    nodes: list[tuple[tuple[str | int, ...], yaml.Node | None]] = [((), root)]
    for names, node in nodes:
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue

        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield names, node
        nodes += [((*names, name), value) for name, _, value in _children(node)]


def _place_of_node(
    node: yaml.Node | None, names: Sequence[str | int], file: str | os.PathLike[str]
) -> Place:
    option = ".".join(map(str, names)) or None
    if node is None:
        return Place(os.fspath(file), option=option)
    return Place(os.fspath(file), node.start_mark.line + 1, node.start_mark.column + 1, option)


def _children(node: yaml.Node | None) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    """Return name, key and value of each setting of a section.

    What is in a list is named by its number, and is its own key.
    """
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(number, value, value) for number, value in enumerate(node.value)]
    return []


def _along(
    root: yaml.Node | None, setting: Sequence[str | int]
) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return key and value of each section on the way to a setting, as far as they are there."""
    found: list[tuple[yaml.Node, yaml.Node]] = []
    node = root
    for wanted in setting:
        named = [(key, value) for name, key, value in _children(node) if name == wanted]
        if not named:
            break

        # of two, the last is the one that counts
        found.append(named[-1])
        node = named[-1][1]
    return found
