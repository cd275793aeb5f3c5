"""The walls of the house: which room may import which, and which packages from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.conftest import PORT_5000

ROOT = Path(__file__).parents[1]
BESIDE_STANDARD_LIBRARY = {
    "exceptions": set[str](),
    "worker": set[str](),
    "programs": {"mpi4py"},  # in a program that has imported it itself
    "hooks": {"parsl", "psutil"},  # which Parsl brings
}


def test_arrows_go_down_only() -> None:
    command = [os.path.join(os.path.dirname(sys.executable), "lint-imports"), "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("room", BESIDE_STANDARD_LIBRARY)
def test_nodes_need_the_standard_library_only(room: str) -> None:
    graph = grimp.build_graph("gc_warm", include_external_packages=True, cache_dir=None)
    modules = {f"gc_warm.{room}", *graph.find_descendants(f"gc_warm.{room}")}
    imported = {
        name for module in modules for name in graph.find_modules_directly_imported_by(module)
    }
    outside = {name for name in imported if not name.startswith("gc_warm")}
    assert outside - sys.stdlib_module_names <= BESIDE_STANDARD_LIBRARY[room]


def test_tests_of_the_one_port_are_named() -> None:
    """A `LocalCloud` takes the port that the SDK's local mode asks, unless it is given another."""
    for path in Path(__file__).parent.rglob("test_*.py"):
        if "LocalCloud" + "()" in path.read_text(encoding="utf-8"):
            name = str(path.relative_to(ROOT))
            assert any(known.startswith(name) for known in PORT_5000), name
