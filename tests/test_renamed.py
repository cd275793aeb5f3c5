"""What programs, configs and clients of earlier versions name is still there, and what will go says so."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gc_warm

FORMER_NAMES = {
    "gc_warm.testing.cloud": "gc_warm.local.cloud",
    "gc_warm.testing.daemon": "gc_warm.local.daemon",
    "gc_warm.testing.engine": "gc_warm.local.engine",
    "gc_warm.testing.runners": "gc_warm.local.runners",
    "gc_warm.testing.service": "gc_warm.local.service",
    "gc_warm.worker.pipe": "gc_warm.programs.pipe",
    "gc_warm.worker.process": "gc_warm.programs.process",
    "gc_warm.worker.protocols": "gc_warm.programs.protocols",
}


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_former_name_warns(former: str) -> None:
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} is now {FORMER_NAMES[former]}"):
        module = importlib.import_module(former)
    assert module is importlib.import_module(FORMER_NAMES[former])


def test_every_former_name_is_tested() -> None:
    package = Path(gc_warm.__file__).parent
    redirecting = [
        path for path in package.rglob("*.py") if "redirect(__name__" in path.read_text()
    ]
    names = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts) for path in redirecting
    }
    assert names == FORMER_NAMES.keys()


@pytest.mark.parametrize(
    "name", ["gc_warm.worker.calls", "gc_warm.worker.boot", "gc_warm.worker.program"]
)
def test_meeting_point_of_versions_does_not_warn(name: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"import {name}"]
    subprocess.run(command, check=True)
