"""Ends the processes of an engine whose client is gone: killed, crashed, or out of memory.

An engine puts each block into a process group of its own, and neither blocks nor interchange notice that the client has died; on
an endpoint that is right, since a restarted endpoint can do without them. A stand-in should leave nothing behind.

Run by path, as a small process that waits for its standard input to end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator

import psutil

MARK = "GC_WARM_ENGINE"
"""Environment variable that the blocks of one engine, and whatever they start, have in common."""

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL: what a manager grants its workers."""


SCRIPTS = "submit_scripts"
"""Where, in its folder, an engine keeps the scripts of its blocks."""

INTERCHANGE = "interchange.pid"
"""File in an engine's folder with the process id of its interchange, which overwrites its environment with its title."""

_ROUNDS = 10  # what is being ended may just have started something


def end_all(mark: str, folder: str | None = None) -> None:
    """End every process that carries *mark*, and what else belongs to the engine in *folder*."""
    for _ in range(_ROUNDS):
        found = list(_processes(mark, folder))
        if not found:
            return
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in found:
                with contextlib.suppress(psutil.Error):
                    end(process)
            found = _alive_after(GRACE, found)


def _alive_after(seconds: float, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that still run then; one that nobody has waited for does not."""
    end = time.monotonic() + seconds
    while processes and time.monotonic() < end:
        time.sleep(0.01)
        processes = [process for process in processes if _runs(process)]
    return processes


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes(mark: str, folder: str | None) -> Iterator[psutil.Process]:
    interchange = _written(os.path.join(folder, INTERCHANGE)) if folder else None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or belongs to somebody else
            words = process.cmdline()
            is_script = folder and any(word.startswith(os.path.join(folder, SCRIPTS, "")) for word in words)
            is_interchange = process.pid == interchange and any("interchange" in word for word in words)
            if _runs(process) and (is_script or is_interchange or process.environ().get(MARK) == mark):
                yield process


def _written(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # it was not started
        return None


def main(mark: str, folder: str) -> None:
    """Wait for the client's end of the pipe to close; a client that has cleaned up itself has said so before."""
    if not sys.stdin.read():
        end_all(mark, folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
