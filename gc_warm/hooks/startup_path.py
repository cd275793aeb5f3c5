"""The folder of our ``sitecustomize``, and its end in the environment of what a process starts."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = str(Path(__file__).with_name("startup"))


def leave() -> None:
    """Take the folder out of this process's PYTHONPATH, which then is as it is without hooks."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = os.pathsep.join(folder for folder in folders if folder != FOLDER)
    if others:
        os.environ["PYTHONPATH"] = others
    else:
        os.environ.pop("PYTHONPATH", None)
