"""A manager and its multiprocessing helper end with each other.

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

The other way round, the helper of a manager that is killed would stay for ever, and so would the
resource tracker that serves both. With this hook, it ends.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.managers import SyncManager
from typing import Any

from gc_warm.hooks import workers

_GRACE = 1.0  # seconds from SIGTERM to SIGKILL for workers, as when a manager is shut down
_SERVES_SOON = 0.01  # seconds

# its records go to manager.log, as those of Parsl do
log = logging.getLogger("parsl.gc_warm")


def install() -> None:
    """Tie the helper that this process is going to start, the first one, to this process."""

    def start(self: Any) -> None:
        del SyncManager.start
        self.start(initializer=_end_with_manager)
        _watch(self)

    SyncManager.start = start  # type: ignore


def _watch(manager: Any) -> None:
    """Wait in a thread for the end of a helper, unless it is not as it is known here."""
    try:
        process = manager._process
        shutdown = manager.shutdown
        shutdown.still_active()

        threading.Thread(
            target=_wait,
            args=(process, shutdown, str(manager.address)),
            name="gc_warm-helper-watch",
            daemon=True,
        ).start()
    except Exception:
        print("gc_warm: helper_watch is not done in this manager", file=sys.stderr, flush=True)


def _wait(process: Any, shutdown: Any, address: str) -> None:
    connection.wait([process.sentinel])

    # not if it was asked to end
    if shutdown.still_active():
        process.join()
        _end(process, address)


def _end(helper: Any, address: str) -> None:
    """End this manager, whatever may fail on the way."""
    message = (
        f"the multiprocessing helper of this manager, process {helper.pid}, has ended with exit "
        f"code {helper.exitcode}: without it no task can be run, and the manager ends"
    )

    # run from the last to the first
    with contextlib.ExitStack() as steps:
        steps.callback(os._exit, 0)
        steps.callback(_remove_folder_of, address)
        steps.callback(workers.end, _GRACE)
        # other threads of the manager log nothing but errors from here on
        steps.callback(logging.disable)

        log.critical(message)
        print(f"gc_warm: {message}", file=sys.stderr, flush=True)


def _remove_folder_of(address: str) -> None:
    """Remove the folder that a helper has made for its socket, and that it cannot remove."""
    folder = os.path.dirname(address)
    if os.path.basename(folder).startswith("pymp-"):
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_manager() -> None:
    """Have the helper, in which this is called, end when the manager has ended."""
    threading.Thread(target=_wait_for_manager, name="gc_warm-manager-watch", daemon=True).start()


def _wait_for_manager() -> None:
    manager: Any = multiprocessing.parent_process()
    connection.wait([manager.sentinel])

    # as it is asked to by a manager that shuts down: its socket and the folder of that are removed
    helper: Any = multiprocessing.current_process()
    while not hasattr(helper, "_manager_server"):  # it has said where it serves, and is about to
        time.sleep(_SERVES_SOON)
    helper._manager_server.stop_event.set()
