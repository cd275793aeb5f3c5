"""A staged file, as a worker finds it."""

from __future__ import annotations

import os

from gc_warm import stage


def copy(path: str) -> tuple[int, str, int]:
    """Return the worker's process id, and the path and the inode of its copy."""
    staged = stage(path)
    return os.getpid(), str(staged), staged.stat().st_ino
