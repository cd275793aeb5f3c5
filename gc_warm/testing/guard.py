"""Ends the processes of an engine or an endpoint whose client is gone: killed, crashed, or out of memory.

An engine puts each block into a process group of its own, and neither blocks nor interchange notice that the client has died; on
an endpoint that is right, since a restarted endpoint can do without them. A stand-in should leave nothing behind.

Run by path, as a small process that waits for its client's end.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "GC_WARM_ENGINE"
"""Environment variable that all processes of one engine or endpoint, and whatever they start, have in common."""

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL: what a manager grants its workers."""


SCRIPTS = "submit_scripts"
"""Where, in its folder, an engine keeps the scripts of its blocks."""

_ROUNDS = 10  # what is being ended may just have started something
_ENDPOINT_SECONDS = 20  # for an endpoint's own end: five to say goodbye, ten for its engine


def environment(mark: str) -> dict[str, str]:
    """What all these processes start with.

    Endpoints and interchanges give themselves a title, which the second variable keeps from overwriting the mark.
    """
    return {MARK: mark, "SPT_NOENV": "1"}


def start(mark: str, folder: str) -> subprocess.Popen[bytes]:
    """Start the process that calls `end_all` and removes *folder* when this one has died."""
    command = [sys.executable, __file__, mark, folder, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """Send it home: all of it has been ended."""
    guard.communicate(b"all of it has ended\n")


def endpoints(mark: str, folder: str, names: str = "*") -> list[psutil.Process]:
    """The daemons and user endpoints that run in *folder*, of those that carry *mark*; *names* is a pattern of their names there."""
    pids = {int(text) for text in map(_text, Path(folder).glob(f"{names}/daemon.pid")) if text.isdecimal()}
    return [process for process in _processes(mark, None) if process.pid in pids]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:  # it has just been removed
        return ""


def end_endpoints(mark: str, folder: str) -> None:
    """Let the endpoints in *folder* end by themselves, for a while: so they also end the jobs that they have at a scheduler."""
    found = endpoints(mark, folder)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _alive_after(_ENDPOINT_SECONDS, found)


def end_all(mark: str, folder: str | None = None) -> None:
    """End every process that carries *mark*, and the scripts of blocks in *folder*."""
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
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or belongs to somebody else
            is_script = folder and any(word.startswith(os.path.join(folder, SCRIPTS, "")) for word in process.cmdline())
            if _runs(process) and (is_script or process.environ().get(MARK) == mark):
                yield process


def _has_died(client: int) -> bool:
    """Wait for a word on standard input, or the client's end: its forked children may keep the pipe open for longer."""
    watch = select.poll()
    watch.register(sys.stdin, select.POLLIN)
    try:
        watch.register(os.pidfd_open(client), select.POLLIN)
    except ProcessLookupError:
        return True
    return [descriptor for descriptor, _ in watch.poll()] != [sys.stdin.fileno()] or not sys.stdin.readline()


def main(mark: str, folder: str, client: str) -> None:
    """Wait until the client has died; one that has cleaned up itself says so before."""
    if _has_died(int(client)):
        end_endpoints(mark, folder)
        end_all(mark, folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
