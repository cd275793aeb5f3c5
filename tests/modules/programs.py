"""Programs that a worker keeps alive: one for each way in which a program may take its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gc_warm import ExternalProcess

BEHAVIOURS = ("obeys", "stubborn", "child", "session", "daemon")
MARK = "GC_WARM_PROGRAMS_OF"

_SCRIPT = Path(__file__).parents[1] / "executables" / "behaviours.py"
_programs = {
    name: ExternalProcess([sys.executable, "-I", "-S", str(_SCRIPT), name]) for name in BEHAVIOURS
}


def start(mark: str) -> tuple[int, list[int]]:
    """Start all of them with *mark* in their environment.

    Returns the worker, and all processes that are to end with it.
    """
    os.environ[MARK] = mark
    return os.getpid(), [pid for program in _programs.values() for pid in program.call("who")]


def stay_in_a_call(begun: str) -> None:
    """Call the stubborn one, which never answers, but leaves the file *begun* at the request."""
    os.environ["BEGUN"] = begun
    _programs["stubborn"].close()  # so that the next one has the new environment
    _programs["stubborn"].call("stay")
