"""A minimal reproduction for Parsl: a manager that was suspended for long hangs when it goes on.

Needs Parsl and nothing else; ends with status 0 if the fault is there, and 1 if it is not.

    python suspended_manager.py

When a batch system stops a job for longer than ``heartbeat_threshold``, the manager's communicator
thread finds at its resume that it has heard nothing for too long, and ends, and with it the socket
that takes results. A result that comes before the manager has asked its other threads to end is
sent to that socket by the result-shovel, which waits there for ever, and so does the manager, which
joins it. Its workers stay, and so does its job.

Here the processes go on in the order for which this always happens. Where all go on at once, it
happens to about every second manager one of whose tasks has ended by then.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
import psutil
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import ManagerLost
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

PATIENCE = 15  # seconds, of which a manager needs one or two to end its workers
THRESHOLD = 3


def wait_for(path: str) -> None:
    """Wait for a file, on a worker: what the body needs has to be imported there."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def hangs(executor: HighThroughputExecutor, gate: Path) -> bool:
    """Return whether a manager that was suspended is still there long after it has gone on."""
    worker = psutil.Process(executor.submit(os.getpid, {}).result(60))
    manager = worker.parent()
    assert manager is not None
    others = [child for child in manager.children(recursive=True) if child != worker]

    lost: Future[Any] = executor.submit(wait_for, {}, str(gate))
    time.sleep(1)
    for process in (manager, worker, *others):
        process.suspend()
    assert isinstance(lost.exception(60), ManagerLost)  # the interchange has given it up

    gate.touch()
    for process in (manager, worker, *others):
        process.resume()
        time.sleep(0.5)

    _, left = psutil.wait_procs([manager], PATIENCE)
    for process in (*left, *others):
        if process.is_running():
            process.kill()
    return bool(left)


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
        heartbeat_threshold=THRESHOLD,
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
        hung = hangs(executor, Path(folder, "gate"))
        said = f"is still there {PATIENCE} s later" if hung else "has ended"
        versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
        print(f"{versions}: the manager was suspended for {THRESHOLD} s, went on, and {said}")
    return 0 if hung else 1


if __name__ == "__main__":
    sys.exit(main())
