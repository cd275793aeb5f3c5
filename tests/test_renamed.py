"""Names that earlier versions use are still there, and those that will go say so."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gc_warm
from gc_warm import ExternalProcess

FORMER_NAMES = {
    "gc_warm.testing.cloud": "gc_warm.local.cloud",
    "gc_warm.testing.daemon": "gc_warm.local.daemon",
    "gc_warm.testing.engine": "gc_warm.local.engine",
    "gc_warm.testing.runners": "gc_warm.local.runners",
    "gc_warm.testing.service": "gc_warm.local.service",
    "gc_warm.worker.pipe": "gc_warm.programs.pipe",  # and gc_warm.exceptions
    "gc_warm.worker.process": "gc_warm.programs.process",
    "gc_warm.worker.protocols": "gc_warm.programs.protocols",
}


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_former_name_warns(former: str) -> None:
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} is now {FORMER_NAMES[former]}"):
        module = importlib.import_module(former)
    present = importlib.import_module(FORMER_NAMES[former])
    assert module is present or module.Pipe is present.Pipe


def test_every_former_name_is_tested() -> None:
    package = Path(gc_warm.__file__).parent
    former = [path for path in package.rglob("*.py") if "Former name of" in path.read_text()[:20]]
    names = {".".join(path.relative_to(package.parent).with_suffix("").parts) for path in former}
    assert names == FORMER_NAMES.keys()


@pytest.mark.parametrize(
    "name", ["gc_warm.worker.calls", "gc_warm.worker.boot", "gc_warm.worker.program"]
)
def test_meeting_point_of_versions_does_not_warn(name: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"import {name}"]
    subprocess.run(command, check=True)


def test_program_of_an_earlier_version_is_kept_alive(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from gc_warm.worker.program import serve\nserve(lambda request: request + 1)\n"
    )
    with ExternalProcess([sys.executable, "-W", "error", program]) as engine:
        assert [engine.call(number) for number in (1, 2)] == [2, 3]


def test_module_of_an_earlier_version_still_finds_its_names(tmp_path: Path) -> None:
    names = {
        "gc_warm.worker.process": "ExternalProcess",
        "gc_warm.worker.pipe": "ProgramError",
        "gc_warm.worker.protocols": "Marker",
        "gc_warm.testing.daemon": "EndpointDaemon",
        "gc_warm.testing.cloud": "LocalCloud",
    }
    lines = [f"from {former} import {name}" for former, name in names.items()]
    lines += ["import gc_warm", *(f"assert {name} is gc_warm.{name}" for name in names.values())]
    script = tmp_path / "earlier.py"
    script.write_text("\n".join(lines))

    command = [sys.executable, "-W", "always", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for former in names:
        assert (
            f"earlier.py:{[*names].index(former) + 1}: DeprecationWarning: {former}" in done.stderr
        )
