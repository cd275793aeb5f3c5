"""Says what a worker would find: versions, and whether modules can be imported.

Run by path, in a worker's environment.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from typing import Any

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


def imported(name: str) -> dict[str, str | float | bool]:
    """What an import comes to: its seconds, or its error and whether a module is missing."""
    begun = time.monotonic()
    try:
        importlib.import_module(name)
    except BaseException as error:
        # whatever an import does, also sys.exit, the others are still to be tried
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = (
            f" ({frame.filename}:{frame.lineno})"
            if not isinstance(error, ModuleNotFoundError)
            else ""
        )
        return {
            "error": f"{type(error).__name__}: {error}{place}",
            "missing": isinstance(error, ModuleNotFoundError),
        }
    return {"seconds": time.monotonic() - begun}


def main(answer: str, *modules: str) -> None:
    """Write what is found to the file *answer*, anew before each import: that can end this process, or never end."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        folder
        for folder in sys.path
        if folder and os.path.abspath(folder) not in (here, os.getcwd())
    ]
    found: dict[str, Any] = {"executable": sys.executable, "versions": versions(), "imports": {}}
    for name in [*modules, None]:
        found["importing"] = name
        with open(answer + ".part", "w") as file:
            json.dump(found, file)
        os.replace(answer + ".part", answer)
        if name is not None:
            found["imports"][name] = imported(name)
    os._exit(0)  # a thread that a module has started need not end


if __name__ == "__main__":
    main(*sys.argv[1:])
