"""What workers have of gc_warm, whose files change under them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tasks


def version() -> str:
    """Return the version on this worker."""
    import gc_warm

    return gc_warm.__version__


def meet(folder: str, number: int) -> tuple[int, list[str]]:
    """Meet so many workers; return this one, and what it has imported of gc_warm."""
    Path(folder, str(os.getpid())).touch()
    tasks._wait_until(lambda: len(os.listdir(folder)) >= number)
    return os.getpid(), [name for name in sys.modules if name.startswith("gc_warm")]
