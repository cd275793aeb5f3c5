"""A minimal reproduction for Parsl: a manager whose multiprocessing helper is killed is useless.

Needs Parsl and nothing else; ends with status 0 if the fault is there, and 1 if it is not.

    python helper_death.py

A manager keeps the tasks in progress in a ``multiprocessing.Manager``, a process of its own, which
the out-of-memory killer may choose as well as any other. Without it, a worker ends with the next
task that it takes, and the watchdog, which would replace the worker, by an exception. The thread
that waits for monitoring messages logs one exception after the other, without a pause. The manager
goes on to answer heartbeats and to take tasks, which wait for ever.
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
import psutil
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

PATIENCE = 15  # seconds, of which a lost manager's task and its successor need about ten


def without_helper(executor: HighThroughputExecutor) -> psutil.Process:
    """Kill the helper of the only manager, and return the manager."""
    worker = psutil.Process(executor.submit(os.getpid, {}).result(60))
    manager = worker.parent()
    assert manager is not None

    children = [child for child in manager.children() if child.cmdline()[-1].endswith("-fork")]
    helper = min(children, key=psutil.Process.create_time)
    assert helper != worker
    helper.kill()
    return manager


def main() -> int:
    scripts = os.path.dirname(sys.executable)
    # where Parsl looks for its programs
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]

    executor = HighThroughputExecutor(
        label="one_worker",
        address="127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=0.01,
        heartbeat_period=1,
        heartbeat_threshold=5,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
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
        parsl.load(Config([executor], run_dir=folder, exit_mode="cleanup", strategy="none")),
    ):
        manager = without_helper(executor)

        begun = time.monotonic()
        try:
            error = executor.submit(os.getpid, {}).exception(PATIENCE)
            said = f"a task ended {time.monotonic() - begun:.1f} s later ({error!r})"
            hangs = False
        except NotInTime:
            (log,) = Path(folder).rglob("manager.log")
            said = (
                f"{PATIENCE} s later, a task has not ended, the manager is "
                f"{'there' if manager.is_running() else 'gone'}, "
                f"and its log has {log.stat().st_size / 1e6:.0f} MB"
            )
            hangs = True

        versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
        print(f"{versions}: the manager's multiprocessing helper was killed; {said}")
    return 0 if hangs else 1


if __name__ == "__main__":
    sys.exit(main())
