"""Hooks that reach into Parsl's workers and user endpoints; loaded only where that is asked for."""

import os
from pathlib import Path

STARTUP = str(Path(__file__).with_name("startup"))
"""The folder of the ``sitecustomize`` that loads them."""


def leave_path() -> None:
    """Have what this process starts find the PYTHONPATH that is there without hooks.

    ``startup/sitecustomize.py`` does the same for itself, also where gc_warm is gone.
    """
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    left = os.pathsep.join(folder for folder in folders if folder != STARTUP)
    if left:
        os.environ["PYTHONPATH"] = left
    else:
        os.environ.pop("PYTHONPATH", None)
