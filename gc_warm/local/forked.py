"""Workers of a `gc_warm.local.runners.SpawnedRunner` that are forked from one warm template."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import psutil

from gc_warm import processes
from gc_warm.exceptions import WorkerStartError
from gc_warm.local import forked_main

_LAST_SECONDS = 10.0  # for the teardowns of what a template holds
_WATCH_INTERVAL = 0.01  # seconds


class ForkedProcess:
    """A forked worker, with what a `subprocess.Popen` has of it.

    Args:
        manager: The manager that has had it forked.
        rank: The worker's number.
        pid: Its process id.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, manager: ForkingManager, rank: int, pid: int) -> None:
        self.pid = pid
        self._manager = manager
        self._rank = rank
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    @property
    def returncode(self) -> int | None:
        """The exit code; None where nobody knows it."""
        return self._manager.exit_code(self._rank)

    def poll(self) -> int | None:
        """Return None while it runs."""
        return None if self._process is not None and processes.runs(self._process) else -1

    def wait(self) -> None:
        """Wait for its end."""
        while self.poll() is None:
            time.sleep(_WATCH_INTERVAL)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)


class ForkingManager:
    """The process that has workers forked: see `gc_warm.local.forked_main`.

    It is started with the first worker, and again where it has died.

    Args:
        environment: The environment of workers, with what their template is to load.
        run_dir: The folder that tasks run in.
    """

    def __init__(self, environment: dict[str, str], run_dir: str) -> None:
        self._environment = environment
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    def start(self, rank: int, end: socket.socket) -> ForkedProcess:
        """Have a worker forked; the first one waits until its template has loaded.

        Args:
            rank: The worker's number.
            end: Its end of the connection to this process.

        Raises:
            WorkerStartError: The process that was to do it has ended.
            OSError: No worker can be started.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start_process()
            answer = self._ask(rank, [end.fileno()])

        if answer is None:
            status = self._process.wait() if self._process is not None else None
            raise WorkerStartError(
                f"worker {rank} cannot be forked: what was to do it ended with exit status "
                f"{status}; what it said is on stderr. It ran {sys.executable} "
                f"with PYTHONPATH={self._environment['PYTHONPATH']!r}"
            )
        if "error" in answer:
            raise OSError(answer["error"])
        return ForkedProcess(self, rank, answer["pid"])

    def exit_code(self, rank: int) -> int | None:
        """Return how a worker has ended; None where nobody knows.

        Args:
            rank: The worker's number.
        """
        with self._lock:
            answer = self._ask(rank, [])
        return None if answer is None else answer["exitcode"]

    def _start_process(self) -> None:
        self._discard()
        if self._closed:
            return

        os.makedirs(self._run_dir, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._control = ours
            self._process = subprocess.Popen(
                [sys.executable, forked_main.__file__, str(theirs.fileno()), self._run_dir],
                env=self._environment,
                cwd=self._run_dir,
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _ask(self, rank: int, files: list[int]) -> dict[str, Any] | None:
        """Return the answer to an order; None if there is nobody to give it."""
        if self._control is None:
            return None
        try:
            socket.send_fds(self._control, [json.dumps(rank).encode()], files)
            text = self._control.recv(1 << 16)
        except OSError:
            return None
        return json.loads(text) if text else None

    def hang_up(self) -> None:
        """Have no more workers forked; who waits for one is told.

        The process ends when all workers have.
        """
        self._closed = True
        control = self._control
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wait for the end of the process and its template, whose workers have ended."""
        self.hang_up()
        with self._lock:
            process = self._process
            if process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has been waited for
                    processes.kill_after(_LAST_SECONDS, [psutil.Process(process.pid)])
                process.wait()
                with contextlib.suppress(ProcessLookupError):  # a template that goes on
                    os.killpg(process.pid, signal.SIGKILL)
            self._discard()

    def _discard(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = None
