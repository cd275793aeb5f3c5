"""The remover of staged files: nothing of them outlives the job.

A process that is killed removes nothing, so whoever stages the first file on a node starts this
one, which waits

- for the end of the manager, so that a worker that replaces another finds the files, and
- for a lock that every process holds that has staged something, until it ends, however it ends;

and then removes the folder. It has left the family and the session of the worker, and ignores
signals that ask it to end. What it cannot do, if it is killed with all the rest, is done by the
next job of the user on that node that stages anything: of an abandoned folder, nobody holds the
locks.

The worker runs this file by its path, with nothing but the standard library and as little as
possible of that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time

USERS = "users"
"""The file in the folder on which its users have a shared lock."""

REMOVER = "remover"
"""The file in the folder on which its remover has a lock."""

# signals that ask a process to end
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

# seconds between looks at the manager where the kernel has no pidfd (Linux before 5.3)
_POLL_INTERVAL = 0.2


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    with contextlib.suppress(AttributeError, OSError):  # an old kernel or C library, or it is gone
        select.select([os.pidfd_open(pid)], [], [])
        return

    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(_POLL_INTERVAL)


def remove(folder: str, lock: int = fcntl.LOCK_EX) -> None:
    """Remove a folder of staged files that nobody uses.

    Args:
        folder: The folder.
        lock: How to take the lock of its users: by default, once there are none any more.

    Raises:
        OSError: There are users, and *lock* does not wait; or there is no such folder.
    """
    import shutil  # not before it is needed: its import would be a third of the start

    path = os.path.join(folder, USERS)
    with open(path, "ab") as users:
        fcntl.flock(users, lock)
        if not os.path.samestat(os.fstat(users.fileno()), os.stat(path)):
            return  # somebody has removed the folder, and there is another by that name

        # whoever waits for the lock meanwhile sees by the name that this folder is given up
        removed = f"{folder}-{time.time_ns()}"
        os.rename(folder, removed)
        shutil.rmtree(removed, ignore_errors=True)


def main() -> None:
    """Run ``remover.py FOLDER MANAGER``, and go on in a process that is nobody's child.

    MANAGER is the process id of the worker's manager, 0 for none. The lock of the remover is that
    of a descriptor which the worker has opened.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the thread that started this had one
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)

    folder, manager = sys.argv[1:]
    if int(manager):
        wait_for_end(int(manager))
    remove(folder)


if __name__ == "__main__":
    main()
