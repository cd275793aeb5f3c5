"""The wait of quick tasks beside a node that preloads: ``python tests/benchmarks/gate.py``.

Two nodes with one worker each, on this machine. The first is warm and idle, and tasks are submitted
one after the other; the second starts meanwhile, and preloads for ten seconds of CPU time. First as
it is in stock (`GC_WARM_DISABLE=gate`), then with the gate.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gc_warm import MockExecutor

LIMIT = 1.0  # seconds that a task may wait beside a node that preloads

MODULE = """
import os
import time

def load():
    "Take so many seconds of CPU time, but on the first node."
    seconds = 0 if os.environ["PARSL_WORKER_BLOCK_ID"] == "0" else {seconds}
    while time.process_time() < seconds:
        pass

def block():
    import os

    return os.environ["PARSL_WORKER_BLOCK_ID"]
"""

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: 1
  cores_per_worker: 0.01
  address: 127.0.0.1
  heartbeat_period: 1
  job_status_kwargs: {{max_idletime: .inf, strategy_period: 0.2}}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
    worker_init: |
      export PYTHONPATH={folder} GC_WARM_DISABLE={disabled}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot preload_slowly:load)"
"""


def measure(folder: Path, disabled: str) -> list[float]:
    """Return the seconds of each task that ended from the second node's start to its first task."""
    block = importlib.import_module("preload_slowly").block
    config = CONFIG.format(folder=shlex.quote(str(folder)), disabled=disabled)
    with MockExecutor(config=config) as executor:
        for _ in range(3):
            executor.submit(block).result()
        runner: Any = executor._mock_client.runner()
        runner._engine._engine.executor.scale_out_facade(1)

        waits = []
        ran_in = "0"
        while ran_in == "0":
            begun = time.perf_counter()
            ran_in = executor.submit(block).result()
            waits.append(time.perf_counter() - begun)
    return waits


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="CPU time of the preload (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"fail if a task waits for more than {LIMIT} s"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "preload_slowly.py").write_text(MODULE.format(seconds=options.seconds))
        sys.path.insert(0, name)
        times = {
            "stock": measure(folder, "gate"),
            "with the gate": measure(folder, ""),
        }

    print("| | tasks | median | worst | of stock's |\n| --- | ---: | ---: | ---: | ---: |")
    stock = max(times["stock"])
    for way, waits in times.items():
        worst = max(waits)
        median = 1e3 * statistics.median(waits)
        print(f"| {way} | {len(waits)} | {median:.1f} ms | {worst:.2f} s | 1/{stock / worst:.0f} |")
    worst = max(times["with the gate"])
    too_long = options.check and worst > LIMIT
    return f"a task waited for {worst:.1f} s, more than {LIMIT} s" if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
