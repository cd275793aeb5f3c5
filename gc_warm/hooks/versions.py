"""The Parsl that hooks were tested with: versions, and the text of the functions they lean on."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTED_PARSL = (
    "2026.7.27",  # the oldest that endpoint 4.19 takes
    "2026.8.10",
    "2026.9.7",
    "2026.9.14",
    "2026.9.28",
    "2026.10.5",
    "2026.10.12",
    "2026.10.19",
    "2026.10.26",
)
"""Versions whose workers and managers were found to be as hooks assume."""

FINGERPRINTS: Mapping[str, Sequence[str]] = {
    "parsl.executors.high_throughput.executor:HighThroughputExecutor.connected_blocks": (
        "4a6d17820c22",
    ),
    "parsl.executors.high_throughput.executor:HighThroughputExecutor.connected_managers": (
        "8b3eb578f25b",
    ),
    "parsl.executors.high_throughput.executor:HighThroughputExecutor.outstanding": (
        "31ad097b0445",
    ),
    "parsl.executors.high_throughput.interchange:Interchange.process_manager_socket_message": (
        "4c2d7c62ecd3",
        "fe2bb6b424d0",
        "e55b69c45d67",
        "d2197136afdf",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.__init__": (
        "a8d920b6e633",
        "f3975d62cad6",
        "290ed528cc33",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager._start_worker": (
        "ecdcf3d897fb",
        "8d320fd9414f",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.create_reg_message": (
        "dde5d4a56b81",
        "2d96fc3ad9c2",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.ferry_result": (
        "e7d3494b7e76",
        "8817d093cf03",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.interchange_communicator": (
        "da1250f4f07a",
        "5b5c41deeb6b",
        "c9c1ca7f1621",
        "1b7d4bc9b451",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.start": (
        "767176677da7",
        "d2e4e29a066b",
        "7c5a63d36863",
    ),
    "parsl.executors.high_throughput.process_worker_pool:Manager.worker_watchdog": (
        "bf297b657adf",
        "aaaf05caec58",
    ),
    "parsl.executors.high_throughput.process_worker_pool:worker": (
        "c5e43a9e2c92",
        "13e7de925d73",
    ),
    "parsl.executors.status_handling:BlockProviderExecutor.handle_errors": ("71519b94f4db",),
    "parsl.executors.status_handling:BlockProviderExecutor.scale_out_facade": (
        "612da1515e7c",
        "4d7cb7f9325e",
    ),
    "parsl.executors.status_handling:BlockProviderExecutor.status_facade": ("9f8761304390",),
    "parsl.jobs.job_status_poller:JobStatusPoller.poll": ("e4f6c7e9ee96",),
    "parsl.jobs.strategy:Strategy.__init__": ("0ac5ff8a6917",),
    "parsl.jobs.strategy:Strategy._general_strategy": (
        "b457e85d9ee4",
        "4180e9900136",
    ),
}
"""The fingerprints that functions of Parsl had in the tested versions, the oldest one first.

``tests/hooks/test_registry.py`` says how to add those of a new version.
"""


def since(version: str) -> Sequence[str]:
    """Return the tested versions from one of them on."""
    return TESTED_PARSL[TESTED_PARSL.index(version) :]


def why_untested(tested: Sequence[str]) -> str:
    """Return why this Parsl is none that something was tested with; empty if it is one.

    Args:
        tested: The versions that it was tested with.
    """
    version = importlib.metadata.version("parsl")
    if version in tested:
        return ""
    return f"it was tested with Parsl {', '.join(tested)}, and this is {version}"


def why_changed(functions: Sequence[str]) -> str:
    """Return which functions of this Parsl are none that were tested; empty if all are.

    Args:
        functions: Keys of `FINGERPRINTS`.
    """
    changed = [name for name in functions if fingerprint(name) not in FINGERPRINTS[name]]
    if not changed:
        return ""

    version = importlib.metadata.version("parsl")
    return f"this Parsl {version} was changed by somebody, in {', '.join(changed)}"


def fingerprint(function: str) -> str:
    """Return the fingerprint of a function's source, without an import of its module.

    Args:
        function: The function, as ``package.module:Class.method``.

    Returns:
        The start of a hash of its text; empty where there is no such function, or no source.
    """
    module, _, path = function.partition(":")
    try:
        lines, tree = _parsed(module)
    except (OSError, SyntaxError, ValueError):
        return ""

    node: Any = tree
    for name in path.split("."):
        inner = [each for each in getattr(node, "body", ()) if getattr(each, "name", "") == name]
        if not inner:
            return ""
        node = inner[-1]

    text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=4)
def _parsed(module: str) -> tuple[Sequence[str], ast.Module]:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(module)

    path = Path(spec.submodule_search_locations[0], *rest).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    return source.splitlines(), ast.parse(source)
