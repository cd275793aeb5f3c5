"""Says what a worker would find: versions, and whether modules can be imported. Run by path, in a worker's environment."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterable

PACKAGES = ("globus-compute-endpoint", "globus-compute-sdk", "parsl", "dill", "gc-warm")
"""Distributions whose versions matter to what is sent and how it is run."""


def versions() -> dict[str, str | None]:
    """Version of Python and of each of `PACKAGES` in this process; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def imports(modules: Iterable[str]) -> dict[str, str | float]:
    """For each module the seconds that its import takes, or the error that it ends with."""
    found: dict[str, str | float] = {}
    for name in modules:
        begun = time.monotonic()
        try:
            importlib.import_module(name)
        except BaseException as error:  # whatever an import does, also sys.exit, the others are still to be tried
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = time.monotonic() - begun
    return found


def main(answer: str, *modules: str) -> None:
    """Write what is found to the file *answer*."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder and os.path.abspath(folder) not in (here, os.getcwd())]
    found = {"executable": sys.executable, "versions": versions(), "imports": imports(modules)}
    with open(answer, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
