"""A minimal reproduction for Parsl: a manager whose only idle worker is killed runs nothing more.

Needs Parsl and nothing else; ends with status 0 if the fault is there, and 1 if it is not.

    python idle_worker_kill.py

An idle worker waits for its next task inside ``multiprocessing.Queue.get``, which holds the queue's
reader lock, a POSIX semaphore, for as long as it waits. Nobody releases it when that process is
killed. The watchdog starts another worker, which waits for the lock for ever; and so do the tasks,
while the manager's heartbeats say that all is well.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
import time
from concurrent.futures import TimeoutError as NotInTime

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

PATIENCE = 15  # seconds, of which a new worker needs one or two
HEARTBEAT = 1  # seconds between the watchdog's looks


def main() -> int:
    scripts = os.path.dirname(sys.executable)
    # where Parsl looks for its programs
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]

    executor = HighThroughputExecutor(
        label="one_worker",
        address="127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=0.01,
        heartbeat_period=HEARTBEAT,
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
        worker = executor.submit(os.getpid, {}).result(60)
        time.sleep(2 * HEARTBEAT)  # idle by now, in its second wait
        os.kill(worker, signal.SIGKILL)

        begun = time.monotonic()
        try:
            successor = executor.submit(os.getpid, {}).result(PATIENCE)
            said = f"worker {successor} ran a task {time.monotonic() - begun:.1f} s later"
        except NotInTime:
            successor = None
            said = f"{PATIENCE} s later, a task has not begun"

        versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
        print(f"{versions}: the idle worker {worker} was killed; {said}")
    return 1 if successor else 0


if __name__ == "__main__":
    sys.exit(main())
