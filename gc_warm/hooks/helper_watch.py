"""A manager whose multiprocessing helper dies ends, too, and its job is replaced.

The helper is the process of the `multiprocessing.managers.SyncManager` that keeps, among others,
the tasks in progress. Without it, no worker gets through a task: each ends with its next one, and
the thread that would replace it has ended by an error. A stock manager stays nevertheless, answers
heartbeats, takes tasks that never end, and writes megabytes of log a second.

With this hook, a thread of the manager waits for the helper. When that ends without having been
asked to, the manager says so in its log and in the output of the block, ends its workers as it does
when it is shut down, and then itself. From there on all is as it is when a manager is killed: its
job is replaced, and once heartbeats have been missed, its tasks end with ``ManagerLost``.

The exit status is 0. Parsl gives an engine up, with all of its tasks, when all its jobs so far have
failed, and one is enough for that; and launchers that take a job's other managers down with one
that fails leave them alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.managers import SyncManager
from typing import Any

_GRACE = 1.0  # seconds from SIGTERM to SIGKILL for workers, as when a manager is shut down

# its records go to manager.log, as those of Parsl do
log = logging.getLogger("parsl.gc_warm")


def install() -> None:
    """Watch over the helper that this process is going to start, the first one."""

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        del SyncManager.start
        self.start(*args, **kwargs)
        _watch(self)

    SyncManager.start = start  # type: ignore[method-assign]


def _watch(manager: Any) -> None:
    """Wait in a thread for the end of a helper, unless it is not as it is known here."""
    try:
        process = manager._process
        was_asked_to_end = manager.shutdown
        was_asked_to_end.still_active()

        threading.Thread(
            target=_wait,
            args=(process, was_asked_to_end),
            name="gc_warm-helper-watch",
            daemon=True,
        ).start()
    except Exception:
        print("gc_warm: helper_watch is not done in this manager", file=sys.stderr, flush=True)


def _wait(process: Any, shutdown: Any) -> None:
    connection.wait([process.sentinel])
    if not shutdown.still_active():
        return

    process.join()
    message = (
        f"the multiprocessing helper of this manager, process {process.pid}, has ended with exit "
        f"code {process.exitcode}: without it no task can be run, and the manager ends"
    )
    log.critical(message)
    print(f"gc_warm: {message}", file=sys.stderr, flush=True)
    logging.disable()  # other threads of the manager log nothing but errors from here on

    _end_workers()
    os._exit(0)


def _end_workers() -> None:
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()

    end = time.monotonic() + _GRACE
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        if worker.exitcode is None:
            worker.kill()
