"""What stands behind an endpoint, in its light form: freshly spawned worker processes.

Like the real engine (see `gc_warm.local.engine`), they are a `gc_warm.local.service.TaskRunner`,
and run a task through the endpoint's own ``execute_task`` in a process that has nothing of the
client's memory. Threads or forked children would be falsely warm.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import platform
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

import psutil

from gc_warm import processes
from gc_warm.exceptions import WorkerStartError
from gc_warm.local import worker_main

log = logging.getLogger("gc_warm")

_STARTS = 3
_START_TIMEOUT = 60
_LONGEST_FOLDER = 75  # bytes: 107 for a socket, less /pymp-12345678/listener-12345678
# seconds between looks at a busy worker, for the rare death that leaves its pipe open in a
# grandchild
_WATCH_INTERVAL = 0.2


class SpawnedWorker:
    """One worker of a `SpawnedRunner`: a rank with a process that is replaced when it has died.

    Attributes:
        rank: Its number, from 0; a restarted worker keeps it.
    """

    def __init__(self, rank: int, environment: dict[str, str], run_dir: str) -> None:
        self.rank = rank
        self._environment = {**environment, "PARSL_WORKER_RANK": str(rank)}
        self._run_dir = run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process (before a restart, or between tasks with one process a task)."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self) -> None:
        """End the process with SIGKILL, as the out-of-memory killer does.

        Its state is lost; the next task starts another.
        """
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def start(self) -> None:
        """Have a living process, without waiting until it is ready."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers have been shut down")
            if self.pid is not None:
                return
            self._discard()
            os.makedirs(self._run_dir, exist_ok=True)
            ours, theirs = socket.socketpair()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, worker_main.__file__, str(theirs.fileno()), self._run_dir],
                    env=self._environment,
                    cwd=self._run_dir,
                    stdin=subprocess.DEVNULL,
                    # what tasks print should neither be lost nor mix with the client's output
                    stdout=2,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the client, which then ends its workers
                )
                self._connection = Connection(ours.detach())
                self._ready = False
            finally:
                ours.close()
                theirs.close()

    def wait_ready(self) -> None:
        """Wait until the process can take a task.

        Raises:
            WorkerStartError: It ended instead, or it is not ready after a minute.
        """
        if self._ready:
            return
        try:
            self._receive(time.monotonic() + _START_TIMEOUT)
        except (EOFError, OSError) as error:
            self._see_off()
            status = None if self._process is None else self._process.returncode
            what = (
                f"was not ready after {_START_TIMEOUT} s"
                if isinstance(error, TimeoutError)
                else f"ended with exit status {status}"
            )
            raise WorkerStartError(
                f"worker {self.rank} {what} before it could take a task; what it said is on stderr. "
                f"It ran {sys.executable} with PYTHONPATH={self._environment['PYTHONPATH']!r}"
            ) from None
        self._ready = True

    def run(self, task_id: uuid.UUID, packed: bytes, serializers: Sequence[str]) -> bytes:
        """Run one task; the packed Result says so if the worker was lost."""
        try:
            self._get_ready()
        except (RuntimeError, OSError) as error:
            return worker_main.pack_failure(task_id, error)
        try:
            assert self._connection is not None
            self._connection.send_bytes(pickle.dumps((task_id, packed, list(serializers) or None)))
            return self._receive()
        except (EOFError, OSError):
            from parsl.executors.high_throughput.errors import WorkerLost

            self._see_off()
            return worker_main.pack_failure(task_id, WorkerLost(self.rank, platform.node()))

    def _get_ready(self) -> None:
        for attempts_left in reversed(range(_STARTS)):
            self.start()
            try:
                return self.wait_ready()
            except WorkerStartError:
                # killed while it started: a manager would start another, and the task has not been
                # given out
                if not attempts_left:
                    raise
        return None

    def _receive(self, deadline: float = math.inf) -> bytes:
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        while not connection.poll(_WATCH_INTERVAL):
            if process.poll() is not None and not connection.poll(0):
                raise EOFError
            if time.monotonic() > deadline:
                raise TimeoutError
        return connection.recv_bytes()

    def stop(self) -> None:
        """End the process in the manager's way: SIGTERM, a second for its teardowns, SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            self._see_off()

    def _see_off(self) -> None:
        """Wait for the end of a process that is ending."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and been waited for
            processes.kill_after(processes.GRACE, [psutil.Process(process.pid)])
        process.wait()
        # plain children of its tasks: a block takes them along too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop for good; idempotent."""
        with self._lock:
            self._closed = True
        self.stop()

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._process = None

    def __repr__(self) -> str:
        return f"<worker {self.rank}: pid {self.pid}>"


class SpawnedRunner:
    """Tasks in spawned worker processes, given to the least recently used worker as a manager does.

    A worker's import path is what is installed, plus *pythonpath*: not the client's ``sys.path``,
    not its directory. Ready when the constructor returns.

    Args:
        workers: How many, 1 or more.
        pythonpath: Folders of modules that tasks may import.
        env: Environment variables to add to the client's.
        fresh_process_per_task: One process a task (as Work Queue does it), in which nothing is ever
            warm.

    Raises:
        ValueError: *workers* is below 1, or *env* has a PYTHONPATH.
        FileNotFoundError: A folder of *pythonpath* is not there.
        WorkerStartError: The workers cannot start.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        pythonpath: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        fresh_process_per_task: bool = False,
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise TypeError(f"workers must be a whole number, not {workers!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if env and "PYTHONPATH" in env:
            raise ValueError(
                f"env: PYTHONPATH={env['PYTHONPATH']!r} would replace the workers' import path; give its folders as pythonpath=[...]"
            )
        for name, value in (env or {}).items():
            if not isinstance(value, str):
                raise TypeError(f"env: {name} must be text, not {value!r}")
        path = _folders(pythonpath)
        self._fresh = fresh_process_per_task
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: deque[_Job] = deque()
        self._folder = tempfile.TemporaryDirectory(prefix="gc_warm-", ignore_cleanup_errors=True)
        environment = {
            **os.environ,
            **(env or {}),
            "PYTHONPATH": path,
            "PARSL_WORKER_COUNT": str(workers),
            "PARSL_WORKER_POOL_ID": uuid.uuid4().hex[:12],
            "PARSL_WORKER_BLOCK_ID": "0",
        }
        self.workers = tuple(
            SpawnedWorker(rank, environment, self._folder.name) for rank in range(workers)
        )
        self._idle = deque(self.workers)  # the one that has waited longest comes first
        self._inboxes: dict[SpawnedWorker, queue.SimpleQueue[_Job | None]] = {
            worker: queue.SimpleQueue() for worker in self.workers
        }
        # daemons: a client that forgets shutdown() still ends, and the workers with it
        self._threads = [
            threading.Thread(
                target=self._serve,
                args=(worker,),
                name=f"gc_warm-worker-{worker.rank}",
                daemon=True,
            )
            for worker in self.workers
        ]
        try:
            for worker in self.workers:
                worker.start()
            for worker in self.workers:
                worker.wait_ready()
        except BaseException:
            self.shutdown()
            raise
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """See `gc_warm.local.service.TaskRunner`; *function_id* and *resources* mean nothing here."""
        job = _Job(task_id, packed, serializers)
        with self._lock:
            if self._closed:
                job.fail("the workers have been shut down")
            elif self._idle:
                self._inboxes[self._idle.popleft()].put(job)
            else:
                self._waiting.append(job)
        return job.future

    def _serve(self, worker: SpawnedWorker) -> None:
        inbox = self._inboxes[worker]
        while (job := inbox.get()) is not None:
            try:
                result = worker.run(job.task_id, job.packed, job.serializers)
            except Exception as error:  # whatever it is, the future has to end
                result = worker_main.pack_failure(job.task_id, error)
            if self._fresh:
                worker.stop()
            # before the result is out, so that a client's next task finds this worker at the end of
            # the line
            with self._lock:
                if self._waiting:
                    inbox.put(self._waiting.popleft())
                else:
                    self._idle.append(worker)
            job.future.set_result(result)

    def shutdown(self) -> None:
        """End the workers with SIGTERM and, a second later, SIGKILL.

        Tasks that have not ended fail. Idempotent.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for inbox in self._inboxes.values():
            inbox.put(None)
        # their seconds of grace run side by side
        closing = [threading.Thread(target=worker.close) for worker in self.workers]
        for thread in closing:
            thread.start()
        for job in waiting:
            job.fail("the workers were shut down before the task began")
        for thread in [*closing, *self._threads]:
            if thread.ident is not None:
                thread.join()
        for worker in self.workers:
            worker._discard()
        self._folder.cleanup()
        remove(self._folder.name)


class _Job:
    """A task on its way to a worker."""

    def __init__(self, task_id: uuid.UUID, packed: bytes, serializers: Sequence[str]) -> None:
        self.task_id, self.packed, self.serializers = task_id, packed, serializers
        self.future: Future[bytes] = Future()

    def fail(self, reason: str) -> None:
        self.future.set_result(worker_main.pack_failure(self.task_id, RuntimeError(reason)))


def remove(folder: str) -> None:
    """Remove the folder of something whose processes have ended."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        log.warning("could not remove %s: something still writes there", folder)


def usable_folder(folder: str) -> str:
    """The same, if an engine can work there.

    Raises:
        ValueError: Its name holds what a shell would split, or is too long.
    """
    advice = f"set TMPDIR to another than {os.path.dirname(folder)!r}"
    if shlex.quote(folder) != folder:
        raise ValueError(f"Parsl cannot work in a folder whose name a shell would split: {advice}")
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        raise ValueError(f"Parsl cannot make its sockets in a folder with so long a name: {advice}")
    return folder


def _folders(paths: Sequence[str | os.PathLike[str]]) -> str:
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"pythonpath takes a list of folders: write [{str(paths)!r}]")
    for folder in paths:
        if os.pathsep in os.fspath(folder):
            raise ValueError(
                f"pythonpath: a folder with {os.pathsep!r} in its name, {os.fspath(folder)!r}, cannot be on an import path"
            )
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"pythonpath: there is no folder {os.fspath(folder)!r}")
    return os.pathsep.join(os.path.abspath(folder) for folder in paths)
