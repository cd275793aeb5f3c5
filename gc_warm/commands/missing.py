"""Say in one line which package a command misses, or has in a version that it cannot use.

An environment lacks what gc_warm asks for where it was installed with ``pip install --no-deps``,
say, beside an older endpoint. What is asked for is read from the metadata of gc_warm, so that the
bounds in pyproject.toml are the only ones.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from types import ModuleType

_OTHER_NAMES = {"yaml": "pyyaml"}
"""Distributions that are not called like their module, for where they are not installed."""


def explain(error: ImportError | AttributeError, command: str) -> str | None:
    """Return what is missing and what is needed, or None where the fault is not in what is installed.

    Args:
        error: What an import raised, or a look-up of a name in a module.
        command: The command that it ends.
    """
    package = _module_of(error).partition(".")[0]
    if package in ("", "gc_warm", "__main__"):
        return None

    distribution = _distribution_of(package)
    requirements = _requirements()
    needed = [
        text for text in requirements if _normal(_name_of(text)) == _normal(distribution)
    ] or requirements
    here = f"beside {sys.executable}"

    if isinstance(error, ModuleNotFoundError) and error.name == package:
        advice = f": pip install {' '.join(map(repr, needed))}" if needed else ""
        return f"{command} needs the package {distribution}, which is not installed {here}{advice}"

    reason = str(error).partition(" (/")[0]  # without the file, for which the version says more
    bounds = f"; gc_warm needs {', '.join(needed)}" if needed else ""
    return (
        f"{command} cannot use {distribution} {_version_of(distribution)} {here}: {reason}{bounds}"
    )


def _module_of(error: ImportError | AttributeError) -> str:
    """Return the module that is missing, or lacks a name; empty if it is not known."""
    if isinstance(error, ImportError):
        return error.name or ""
    return error.obj.__name__ if isinstance(error.obj, ModuleType) else ""


def _distribution_of(package: str) -> str:
    installed = metadata.packages_distributions().get(package)
    if installed:
        return installed[0]
    return _OTHER_NAMES.get(package, package.replace("_", "-"))


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"


def _requirements() -> list[str]:
    """Return what gc_warm needs to run, as it is written for pip; empty where it is used without having been installed."""
    try:
        found = metadata.requires("gc-warm") or []
    except metadata.PackageNotFoundError:
        return []
    return [text.partition(";")[0].strip() for text in found if "extra ==" not in text]


def _name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
