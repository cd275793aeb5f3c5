"""Endpoint configurations in Python, which are known by name only: to read one is to run it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from gc_warm.exceptions import ConfigError

_ENDPOINT_PACKAGES = ("globus_compute_endpoint", "funcx_endpoint")


def refuse(path: Path) -> None:
    """Raise an error if a file is the configuration of an endpoint.

    Args:
        path: A Python file, if there is one.

    Raises:
        ConfigError: It is such a configuration.
    """
    if _sets_a_config(path):
        raise ConfigError(
            f"{path} is an endpoint configuration in Python, which is only known by running "
            f"it: write it as YAML, as `engine:` and its settings in config.yaml",
            os.fspath(path),
        )


def _sets_a_config(path: Path) -> bool:
    """Return whether a Python file makes what the endpoint takes for its configuration."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError):
        return False

    imports_endpoint = any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ENDPOINT_PACKAGES)
        for node in body
    )
    names = [
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return imports_endpoint and "config" in names
