"""Say in one line which package a command misses, or has in a version that it cannot use.

An environment lacks what gc_warm requires where it was installed with ``pip install --no-deps``,
say, beside an older endpoint. The requirements are read from the metadata of gc_warm, so that the
bounds in pyproject.toml are the only ones.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from types import ModuleType

_OTHER_NAMES = {"yaml": "pyyaml"}
"""Distributions that have another name than their module, by that of the module.

Needed where they are not installed.
"""


def explain(error: ImportError | AttributeError, command: str) -> str | None:
    """Return a line on the package that is missing or cannot be used, and on what is needed.

    Args:
        error: The error of an import, or of a look-up of a name in a module.
        command: The command that the error ends.

    Returns:
        The line, or None if the fault is not in what is installed.
    """
    package = _module_of(error).partition(".")[0]
    if package in ("", "gc_warm", "__main__"):
        return None

    distribution = _distribution_of(package)
    needed = _requirements_on(distribution)
    here = f"beside {sys.executable}"

    if isinstance(error, ModuleNotFoundError) and error.name == package:
        advice = f": pip install {' '.join(map(repr, needed))}" if needed else ""
        return f"{command} needs the package {distribution}, which is not installed {here}{advice}"

    reason = str(error).partition(" (/")[0]  # without the file, for which the version says more
    bounds = f"; gc_warm needs {', '.join(needed)}" if needed else ""
    version = _version_of(distribution)
    return f"{command} cannot use {distribution} {version} {here}: {reason}{bounds}"


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


def _requirements_on(distribution: str) -> list[str]:
    """Return the requirements of gc_warm on a distribution; if there is none, all requirements."""
    requirements = _requirements()
    name = _normal(distribution)
    return [text for text in requirements if _normal(_name_of(text)) == name] or requirements


def _requirements() -> list[str]:
    """Return the requirements of gc_warm, without those of its extras, as they are written for pip.

    There are none where it is used without having been installed.
    """
    try:
        requirements = metadata.requires("gc-warm") or []
    except metadata.PackageNotFoundError:
        return []
    return [text.partition(";")[0].strip() for text in requirements if "extra ==" not in text]


def _name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
