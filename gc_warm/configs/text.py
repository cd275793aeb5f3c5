"""The text of a config's files, and YAML as data."""

from __future__ import annotations

import os
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
