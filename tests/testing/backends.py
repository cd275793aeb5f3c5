"""The backends of the conformance tests: spawned workers, and the endpoint's real engine.

Each of them is there with workers that are started, and with workers that are forked.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import EXPORT_MODULES, MODULES

LOADED = "template_loads:table"
LINE = (
    'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {} || echo echo failed >&2)"'
)

BACKENDS = [
    "spawned",
    *(pytest.param(name, marks=pytest.mark.engine) for name in ("engine", "forked", "stand-in")),
]
"""The names: "forked" is the engine, and "stand-in" are spawned workers, with `preload_node`."""


def workers(backend: str, number: int = 1) -> dict[str, Any]:
    """Return the arguments of `MockClient` for so many workers of a backend.

    The tests' modules are on their import path.
    """
    if backend == "engine":
        return {"config": engine_config(number)}
    if backend == "forked":
        return {"config": engine_config(number, LINE.format(f"--preload-node={LOADED}"))}

    spawned = {"workers": number, "pythonpath": [MODULES]}
    return spawned if backend == "spawned" else {**spawned, "preload_node": [LOADED]}


def engine_config(number: int, *lines: str) -> str:
    """Return a config of a user endpoint on this machine, with more workers than cores if need be.

    Args:
        number: Number of workers.
        *lines: Further lines of its ``worker_init``, which lets them import what the tests send.
    """
    worker_init = "".join(f"\n      {line}" for line in (EXPORT_MODULES, *lines))
    return f"""
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {number}
  cores_per_worker: 0.01
  run_in_sandbox: true
  address: 127.0.0.1
  heartbeat_period: 1
  heartbeat_threshold: 5
  job_status_kwargs:
    strategy_period: 0.2
    max_idletime: 600
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 0
    max_blocks: 1
    worker_init: |{worker_init}
"""
