"""A minimal reproduction for Parsl: the free workers of a block that drains count as free slots.

Needs Parsl and nothing else; ends with status 0 if the fault is there, and 1 if it is not. Seen
with Parsl 2026.10.26.

    python draining_block.py

After ``drain_period``, the interchange gives a manager no more tasks, and its block ends with the
last of those that it has. Until then, the strategy takes the block for one that runs, and all its
workers for slots. With one long task on a draining block of two workers, a quick task finds "as
many slots as tasks": no block is asked for, although ``max_blocks`` would allow one, and the quick
task waits until the long one has ended.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from concurrent.futures import TimeoutError as NotInTime
from pathlib import Path

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

PATIENCE = 20  # seconds, of which another block needs two or three
DRAIN_PERIOD = 5
WORKERS = 2


def wait_for(path: str) -> None:
    """Wait for a file, on a worker: what the body needs has to be imported there."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def seconds_waited(executor: HighThroughputExecutor, gate: Path) -> float | None:
    """Return how long a quick task waits beside a block that drains; None if for too long."""
    long = executor.submit(wait_for, {}, str(gate))
    while not any(manager["draining"] for manager in executor.connected_managers()):
        time.sleep(0.1)

    begun = time.monotonic()
    quick = executor.submit(os.getpid, {})
    try:
        quick.result(PATIENCE)
        waited = time.monotonic() - begun
    except NotInTime:
        waited = None

    gate.touch()
    long.result(60)
    quick.result(60)
    return waited


def main() -> int:
    scripts = os.path.dirname(sys.executable)
    # where Parsl looks for its programs
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]

    executor = HighThroughputExecutor(
        label="two_workers",
        address="127.0.0.1",
        max_workers_per_node=WORKERS,
        cores_per_worker=0.01,
        drain_period=DRAIN_PERIOD,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=2),
        # Pip's way to start Parsl's two scripts does not work where the environment's path has a
        # blank.
        interchange_launch_cmd=[sys.executable, os.path.join(scripts, "interchange.py")],
        launch_cmd=DEFAULT_LAUNCH_CMD.replace(
            "process_worker_pool.py",
            "python3 -m parsl.executors.high_throughput.process_worker_pool",
        ),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        parsl.load(Config([executor], run_dir=folder, exit_mode="cleanup", strategy_period=1)),
    ):
        waited = seconds_waited(executor, Path(folder, "gate"))
        said = f"{PATIENCE} s later, a quick task has not begun"
        if waited is not None:
            said = f"a quick task was done {waited:.1f} s later"
        versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
        print(f"{versions}: one of {WORKERS} workers of a draining block was busy; {said}")
    return 0 if waited is None else 1


if __name__ == "__main__":
    sys.exit(main())
