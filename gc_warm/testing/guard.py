"""Ends the processes of an engine whose client is gone: killed, crashed, or out of memory.

An engine puts each block into a process group of its own, and neither blocks nor interchange notice that the client has died; on
an endpoint that is right, since a restarted endpoint can do without them. A stand-in should leave nothing behind.

Run by path, as a small process that waits for its standard input to end.
"""

from __future__ import annotations

import contextlib
import shutil
import sys

import psutil

MARK = "GC_WARM_ENGINE"
"""Environment variable that the blocks of one engine, and whatever they start, have in common."""

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL: what a manager grants its workers."""


def end_all(mark: str, interchange: psutil.Process | None) -> None:
    """End every process that carries *mark*, and the interchange, which overwrites its environment with its title."""
    found = [] if interchange is None else [interchange]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or belongs to somebody else
            if process.environ().get(MARK) == mark:
                found.append(process)
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=GRACE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE)


def main(mark: str, interchange_pid: int, folder: str) -> None:
    """Wait for the client's end of the pipe to close; a client that has cleaned up itself has said so before."""
    interchange = None
    with contextlib.suppress(psutil.NoSuchProcess):  # gone before this began
        interchange = psutil.Process(interchange_pid)
    if not sys.stdin.read():
        end_all(mark, interchange)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
