"""End the processes that a stand-in has started, even if the process that started them has died.

An engine puts each block into a process group of its own, and neither blocks nor interchange notice
that their client has died: on an endpoint that is right, since a restarted endpoint can do without
them. A stand-in should leave nothing behind. So all processes of one engine or endpoint carry a
mark in their environment, and a small process, the *reaper*, waits for the end of the client and
then ends every process that carries the mark. The reaper runs this file by its path.

Programs of a worker have a supervisor instead (`gc_warm.programs.supervisor`), which finds them by
descent and needs the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

MARK = "GC_WARM_ENGINE"
"""Environment variable that the processes of one engine or endpoint, and their children, share."""

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL, as many as a manager grants its workers."""

SCRIPTS = "submit_scripts"
"""Name of the folder, in that of an engine, with the scripts of its blocks."""

_ROUNDS = 10  # of ending: a process may have started another just before its end
_ENDPOINT_SECONDS = 20  # for an endpoint's own end: five to say goodbye, ten for its engine
_WATCH_INTERVAL = 0.01  # seconds


def marked_environment(mark: str) -> dict[str, str]:
    """Return the variables that all processes of one engine or endpoint start with.

    Endpoints and interchanges give themselves a title; the second variable keeps that from
    overwriting the mark.
    """
    return {MARK: mark, "SPT_NOENV": "1"}


def start_reaper(mark: str, folder: str) -> subprocess.Popen[bytes]:
    """Start the process that calls `end_all` and removes *folder* once this process has died.

    Args:
        mark: The mark of the processes to end.
        folder: The folder of the engine or the endpoint.
    """
    command = [sys.executable, __file__, mark, folder, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def dismiss_reaper(reaper: subprocess.Popen[bytes]) -> None:
    """End a reaper, since there is nothing left for it to end."""
    reaper.communicate(b"all of it has ended\n")


def endpoints(mark: str, folder: str, names: str = "*") -> list[psutil.Process]:
    """Return the daemons and user endpoints in *folder* that carry *mark*.

    Args:
        mark: The mark that `marked_environment` gave them.
        folder: The user directory that they run in.
        names: A pattern of their names there.
    """
    files = Path(folder).glob(f"{names}/daemon.pid")
    pids = {int(text) for text in map(_text, files) if text.isdecimal()}
    return [process for process in _processes(mark, None) if process.pid in pids]


def end_endpoints(mark: str, folder: str) -> None:
    """Give endpoints some seconds to end by themselves, and with them their jobs at a scheduler.

    Args:
        mark: The mark of the endpoints.
        folder: The user directory that they run in.
    """
    ending = endpoints(mark, folder)
    _terminate(ending)
    _wait_for(ending, _ENDPOINT_SECONDS)


def end_all(mark: str, folder: str | None = None) -> None:
    """End every process that carries a mark, and the scripts of blocks.

    Args:
        mark: The mark of the processes.
        folder: The folder of the engine whose blocks' scripts end, too; None for no scripts.
    """
    for _ in range(_ROUNDS):
        left = list(_processes(mark, folder))
        if not left:
            return

        _terminate(left)
        kill_after(GRACE, left)


def kill_after(seconds: float, processes: Sequence[psutil.Process]) -> None:
    """Wait for the end of processes that are ending, and kill those that do not end.

    Args:
        seconds: Seconds to wait.
        processes: The processes, which have been asked to end.
    """
    alive = _wait_for(processes, seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()

    _wait_for(alive, GRACE)


def _terminate(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for the end of processes, and return those that still run; a zombie does not."""
    alive = [process for process in processes if runs(process)]
    end = time.monotonic() + seconds
    while alive and time.monotonic() < end:
        time.sleep(_WATCH_INTERVAL)
        alive = [process for process in alive if runs(process)]
    return alive


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs, as a zombie does not.

    Args:
        process: The process.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes(mark: str, folder: str | None) -> Iterator[psutil.Process]:
    """Yield the processes that carry *mark*, and the scripts of blocks in *folder*."""
    for process in psutil.process_iter():
        # it has ended meanwhile, or belongs to somebody else
        with contextlib.suppress(psutil.Error):
            if not runs(process):
                continue
            if _is_script(process, folder) or process.environ().get(MARK) == mark:
                yield process


def _is_script(process: psutil.Process, folder: str | None) -> bool:
    if folder is None:
        return False

    scripts = os.path.join(folder, SCRIPTS, "")
    return any(word.startswith(scripts) for word in process.cmdline())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:  # it has just been removed
        return ""


def _wait_for_client(client: int) -> bool:
    """Wait for a word on standard input or the client's end, and return whether it was its end.

    The end of standard input alone would not do: the client's forked children may keep the pipe
    open for longer.
    """
    watch = select.poll()
    watch.register(sys.stdin, select.POLLIN)
    try:
        watch.register(os.pidfd_open(client), select.POLLIN)
    except ProcessLookupError:
        return True

    ready = [descriptor for descriptor, _ in watch.poll()]
    return ready != [sys.stdin.fileno()] or not sys.stdin.readline()


def main(mark: str, folder: str, client: str) -> None:
    """Wait until the client has died, and end the processes that it has left.

    A client that has ended them itself dismisses the reaper before.

    Args:
        mark: The mark of the processes.
        folder: The folder of the engine or the endpoint, which is removed.
        client: The process id of the client.
    """
    if _wait_for_client(int(client)):
        end_endpoints(mark, folder)
        end_all(mark, folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
