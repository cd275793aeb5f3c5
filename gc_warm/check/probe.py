"""A worker's view of its environment: versions, and whether modules can be imported.

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
    """Return the versions of Python and of each of `PACKAGES` in this process.

    Returns:
        Versions by name; None for a distribution that is not installed.
    """
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def imported(name: str) -> dict[str, str | float | bool]:
    """Import a module and return the result.

    Args:
        name: The module's dotted name.

    Returns:
        The import's ``seconds``; or its ``error``, and as ``missing`` whether a module is missing.
    """
    begun = time.monotonic()
    try:
        importlib.import_module(name)
    except BaseException as error:
        # whatever an import does, also sys.exit, the others are still to be tried
        is_missing = isinstance(error, ModuleNotFoundError)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if is_missing else f" ({frame.filename}:{frame.lineno})"
        return {"error": f"{type(error).__name__}: {error}{place}", "missing": is_missing}

    return {"seconds": time.monotonic() - begun}


def hooks_left_out() -> dict[str, str]:
    """Return the hooks that this environment asks for and its Parsl leaves out, and why.

    Nothing is known of those of a gc_warm that is not there, or of another version.
    """
    if "GC_WARM_PREPARED" not in os.environ:
        return {}
    try:
        installing = importlib.import_module("gc_warm.hooks.installing")
        return dict(installing.left_out("worker", "manager"))
    except (ImportError, AttributeError):
        return {}


def _before_imports() -> Any:
    """Return what tells whether imports leave something that must not be forked.

    None where the gc_warm of this environment cannot tell it.
    """
    try:
        from gc_warm.hooks import fork_safety

        return fork_safety.Before()
    except Exception:
        return None


def main(answer: str, number: str, *modules: str) -> None:
    """Write versions and the results of imports to a file, and end this process.

    The file is written anew before each import: an import can end this process, or never end.

    Args:
        answer: The path of the file.
        number: The number of modules, of the first ones, that workers are to be forked with.
        modules: Dotted names of the modules to be imported.
    """
    # modules that lie beside this file, or where it runs, are none that workers have
    hidden = (os.path.dirname(os.path.abspath(__file__)), os.getcwd())
    sys.path[:] = [
        folder for folder in sys.path if folder and os.path.abspath(folder) not in hidden
    ]

    found: dict[str, Any] = {
        "executable": sys.executable,
        "versions": versions(),
        "hooks": hooks_left_out(),
        "imports": {},
    }
    before = _before_imports() if int(number) else None
    for name in [*modules, None]:
        if before is not None and len(found["imports"]) == int(number):
            found["objections"] = before.objections()
            before = None
        found["importing"] = name
        with open(answer + ".part", "w") as file:
            json.dump(found, file)
        os.replace(answer + ".part", answer)

        if name is not None:
            found["imports"][name] = imported(name)

    os._exit(0)  # a thread that a module has started need not end


if __name__ == "__main__":
    main(*sys.argv[1:])
