"""The text of a config's files, and YAML as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from gc_warm.exceptions import ConfigError

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    CORE_CONFIG = "--manager-config"


def read_text(path: str | os.PathLike[str]) -> str:
    """What is in a file.

    Raises:
        ConfigError: It is not text.
        OSError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None


def parse_config(text: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A document and its engine, None where there is none: the endpoint's loader is to say so."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, None
    engine = document.get("engine") if isinstance(document, dict) else None
    return document, engine if isinstance(engine, dict) else None
