"""A minimal reproduction for Parsl: a manager announces workers that are not up yet.

Needs Parsl and nothing else; ends with status 0 if the fault is there, and 1 if it is not. Seen
with Parsl 2026.10.26.

    python early_capacity.py

A manager registers with the interchange as soon as it has started its worker processes, and as
having all of their capacity. Until these have come up, which takes long where Python is imported
from a busy shared file system, tasks that are given to it wait, while workers of other blocks are
idle. The manager itself does know how many of its workers are ready, ``ready_worker_count``.

Here the slow file system is a ``sitecustomize`` that sleeps in the processes of the second block.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

PAUSE = 6  # seconds that a process of the second block takes to start
WORKERS = 4
TASKS = 20  # one after the other; each is given to either block by chance

SLOW_START = """
import os, sys, time
if "--multiprocessing-fork" in sys.orig_argv and os.path.exists({flag!r}):
    time.sleep({pause})
"""


def slowest(executor: HighThroughputExecutor, flag: Path) -> float:
    """Return the seconds that the slowest of some tasks took, beside workers that are idle."""
    executor.submit(os.getpid, {}).result(60)

    flag.touch()
    executor.scale_out_facade(1)
    while len(executor.connected_managers()) < 2:
        time.sleep(0.01)

    longest = 0.0
    for _ in range(TASKS):
        begun = time.monotonic()
        executor.submit(os.getpid, {}).result(60)
        longest = max(longest, time.monotonic() - begun)
        if longest > PAUSE / 2:
            break
    return longest


def main() -> int:
    scripts = os.path.dirname(sys.executable)
    # where Parsl looks for its programs
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]

    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "slow")
        code = SLOW_START.format(flag=str(flag), pause=PAUSE)
        Path(folder, "sitecustomize.py").write_text(code)

        executor = HighThroughputExecutor(
            label="two_blocks",
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            cores_per_worker=0.01,
            encrypted=False,
            provider=LocalProvider(
                init_blocks=1,
                min_blocks=1,
                max_blocks=2,
                worker_init=f"export PYTHONPATH={shlex.quote(folder)}",
            ),
            # Pip's way to start Parsl's two scripts does not work where the environment's path has
            # a blank.
            interchange_launch_cmd=[sys.executable, os.path.join(scripts, "interchange.py")],
            launch_cmd=DEFAULT_LAUNCH_CMD.replace(
                "process_worker_pool.py",
                "python3 -m parsl.executors.high_throughput.process_worker_pool",
            ),
        )
        config = Config([executor], run_dir=folder, exit_mode="cleanup", strategy="none")
        with parsl.load(config):
            longest = slowest(executor, flag)

    versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
    print(
        f"{versions}: a second block's workers took {PAUSE} s to start; "
        f"beside {WORKERS} idle workers, a quick task took {longest:.1f} s"
    )
    return 0 if longest > PAUSE / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
