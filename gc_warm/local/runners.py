"""Freshly spawned worker processes, as the light runner of an endpoint's tasks.

Like the real engine (see `gc_warm.local.engine`), `SpawnedRunner` is a
`gc_warm.local.service.TaskRunner`, and runs a task through the endpoint's own ``execute_task`` in a
process that has nothing of the client's memory. Threads or forked children would be falsely warm.
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
from gc_warm.exceptions import ConfigError, WorkerStartError
from gc_warm.hooks import boot
from gc_warm.local import worker_main
from gc_warm.local.forked import ForkedProcess, ForkingManager
from gc_warm.programs.server import end_servers

log = logging.getLogger("gc_warm")

_SHUT_DOWN = "the workers were shut down before the task began"
_STARTS = 3  # attempts to have a worker ready for a task
_START_TIMEOUT = 60  # seconds
_LOAD_TIMEOUT = 1800  # seconds, as a template has: a worker that was to be forked loads for itself
_LONGEST_FOLDER = 75  # bytes: 107 for a socket, less /pymp-12345678/listener-12345678
# seconds between looks at a busy worker, for the rare death that leaves its pipe open in a
# grandchild
_WATCH_INTERVAL = 0.2


class SpawnedWorker:
    """One worker of a `SpawnedRunner`: a rank with a process that is replaced when it has died.

    Attributes:
        rank: The worker's number, from 0, which it keeps when it is restarted.
    """

    def __init__(
        self,
        rank: int,
        environment: dict[str, str],
        run_dir: str,
        manager: ForkingManager | None = None,
    ) -> None:
        self.rank = rank
        self._environment = {**environment, "PARSL_WORKER_RANK": str(rank)}
        self._run_dir = run_dir
        self._manager = manager
        self._timeout = _START_TIMEOUT if manager is None else _LOAD_TIMEOUT

        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id, or None while there is no process.

        There is none before a restart, and between tasks with one process a task.
        """
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self) -> None:
        """End the process with SIGKILL, as the out-of-memory killer does.

        The worker's state is lost; its next task starts another process.
        """
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def start(self) -> None:
        """Start a process if none is alive, without waiting until it is ready."""
        with self._lock:
            if self._closed:
                raise RuntimeError(_SHUT_DOWN)
            if self.pid is not None:
                return

            self._discard()
            os.makedirs(self._run_dir, exist_ok=True)
            ours, theirs = socket.socketpair()
            try:
                self._process = self._start_process(theirs)
                self._connection = Connection(ours.detach())
                self._ready = False
            finally:
                ours.close()
                theirs.close()

    def _start_process(self, end: socket.socket) -> subprocess.Popen[bytes] | ForkedProcess:
        if self._manager is not None:
            return self._manager.start(self.rank, end)

        return subprocess.Popen(
            [sys.executable, worker_main.__file__, str(end.fileno()), self._run_dir],
            env=self._environment,
            cwd=self._run_dir,
            stdin=subprocess.DEVNULL,
            # what tasks print should neither be lost nor mix with the client's output
            stdout=2,
            pass_fds=[end.fileno()],
            start_new_session=True,  # Ctrl-C is for the client, which then ends its workers
        )

    def wait_ready(self) -> None:
        """Wait until the process can take a task.

        Raises:
            WorkerStartError: The process ended instead, or is not ready after a minute; where it
                may have to load something before, after half an hour.
        """
        if self._ready:
            return

        try:
            self._receive(time.monotonic() + self._timeout)
        except (EOFError, OSError) as error:
            self._see_off()
            status = None if self._process is None else self._process.returncode
            if isinstance(error, TimeoutError):
                what = f"was not ready after {self._timeout} s"
            else:
                what = f"ended with exit status {status}"
            raise WorkerStartError(
                f"worker {self.rank} {what} before it could take a task; "
                f"what it said is on stderr. It ran {sys.executable} "
                f"with PYTHONPATH={self._environment['PYTHONPATH']!r}"
            ) from None

        self._ready = True

    def run(self, task_id: uuid.UUID, packed: bytes, serializers: Sequence[str]) -> bytes:
        """Run one task.

        Args:
            task_id: Id of the task.
            packed: The packed `Task`.
            serializers: Names of the serialization strategies for the result.

        Returns:
            The packed `Result`, which is an error if the worker could not start or was lost.
        """
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
        """Start the process and wait until it is ready, again if it is lost meanwhile."""
        for attempts_left in reversed(range(_STARTS)):
            self.start()
            try:
                self.wait_ready()
                return
            except WorkerStartError:
                # killed while it started: a manager would start another, and the task has not been
                # given out
                if not attempts_left:
                    raise

    def _receive(self, deadline: float = math.inf) -> bytes:
        """Return the process's next message.

        Raises:
            EOFError: The process has ended.
            TimeoutError: There is none at *deadline*.
        """
        connection = self._connection
        process = self._process
        assert connection is not None
        assert process is not None

        while not connection.poll(_WATCH_INTERVAL):
            if process.poll() is not None and not connection.poll(0):
                raise EOFError
            if time.monotonic() > deadline:
                raise TimeoutError

        return connection.recv_bytes()

    def stop(self) -> None:
        """End the process as a manager does: SIGTERM, a second for its teardowns, SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            self._see_off()

    def _see_off(self) -> None:
        """Wait for the end of a process that is ending, and end the children of its tasks."""
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
        """Stop the worker for good. Idempotent."""
        with self._lock:
            self._closed = True
        self.stop()

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._process = None

    def __repr__(self) -> str:
        return f"<worker {self.rank}: pid {self.pid}>"


class SpawnedRunner:
    """A `TaskRunner` with spawned worker processes.

    A task goes to the least recently used worker, as a manager gives it. A worker's import path is
    what is installed, plus *pythonpath*: neither the client's ``sys.path`` nor its directory. The
    workers are ready when the constructor returns.

    Args:
        workers: Number of workers, 1 or more.
        pythonpath: Folders of modules that tasks may import.
        env: Environment variables to add to the client's.
        fresh_process_per_task: Use one process a task (as Work Queue does), in which nothing is
            ever warm.
        preload_node: Modules, and callables without arguments, that one template loads, from which
            workers are then forked: as the config's option.

    Attributes:
        workers: The workers, by rank.

    Raises:
        TypeError: *workers* is not a whole number, *pythonpath* is one folder and not a list, a
            value of *env* is not text, or both *fresh_process_per_task* and *preload_node* are
            given.
        ValueError: *workers* is below 1, *env* has a PYTHONPATH, or a folder of *pythonpath* cannot
            be on an import path.
        ConfigError: *preload_node* is none that the config's option could be.
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
        preload_node: Sequence[str] = (),
    ) -> None:
        _check_workers(workers)
        _check_env(env or {})
        _check_preload(preload_node, fresh_process_per_task)
        path = _import_path(pythonpath)

        self._fresh = fresh_process_per_task
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: deque[_Job] = deque()
        self._folder = tempfile.TemporaryDirectory(prefix="gc_warm-", ignore_cleanup_errors=True)

        self._pool = uuid.uuid4().hex[:12]
        environment = {
            **os.environ,
            **(env or {}),
            "PYTHONPATH": path,
            "PARSL_WORKER_COUNT": str(workers),
            "PARSL_WORKER_POOL_ID": self._pool,
            "PARSL_WORKER_BLOCK_ID": "0",
        }
        folder = self._folder.name
        self._manager: ForkingManager | None = None
        if preload_node:
            environment[boot.PRELOAD_NODE] = " ".join(preload_node)
            self._manager = ForkingManager(environment, folder)
        self.workers = tuple(
            SpawnedWorker(rank, environment, folder, self._manager) for rank in range(workers)
        )
        self._idle = deque(self.workers)  # the one that has waited longest comes first
        self._inboxes: dict[SpawnedWorker, queue.SimpleQueue[_Job | None]] = {
            worker: queue.SimpleQueue() for worker in self.workers
        }
        self._threads = [self._new_thread(worker) for worker in self.workers]

        self._start_workers()
        for thread in self._threads:
            thread.start()

    def _new_thread(self, worker: SpawnedWorker) -> threading.Thread:
        """Return the thread, not started yet, that gives a worker its tasks."""
        # a daemon: a client that forgets shutdown() still ends, and the workers with it
        return threading.Thread(
            target=self._serve, args=(worker,), name=f"gc_warm-worker-{worker.rank}", daemon=True
        )

    def _start_workers(self) -> None:
        """Start all workers, and wait until they are ready; if one fails, end all."""
        try:
            for worker in self.workers:
                worker.start()

            for worker in self.workers:
                worker.wait_ready()
        except BaseException:
            self.shutdown()
            raise

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """Run one task as `gc_warm.local.service.TaskRunner` does.

        Args:
            task_id: Id of the task.
            packed: The packed `Task`.
            function_id: Means nothing here.
            resources: The resource specification of the client, of which nothing is used; one that
                an endpoint's engine refuses is an error of the task.
            serializers: Names of the serialization strategies for the result.

        Returns:
            A future that always ends with a packed `Result`.
        """
        job = _Job(task_id, packed, serializers)
        if resources:
            try:
                _check_resources(resources)
            except Exception as error:
                job.future.set_result(worker_main.pack_failure(task_id, error))
                return job.future

        with self._lock:
            if self._closed:
                job.fail(_SHUT_DOWN)
            elif self._idle:
                self._inboxes[self._idle.popleft()].put(job)
            else:
                self._waiting.append(job)
        return job.future

    def _serve(self, worker: SpawnedWorker) -> None:
        """Run the tasks in a worker's inbox, until there is None in it."""
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
            waiting = self._waiting
            self._waiting = deque()

        for inbox in self._inboxes.values():
            inbox.put(None)
        if self._manager is not None:
            self._manager.hang_up()

        # their seconds of grace run side by side
        closing = [threading.Thread(target=worker.close) for worker in self.workers]
        for thread in closing:
            thread.start()

        for job in waiting:
            job.fail(_SHUT_DOWN)

        for thread in [*closing, *self._threads]:
            if thread.ident is not None:
                thread.join()

        for worker in self.workers:
            worker._discard()
        if self._manager is not None:
            self._manager.close()
        end_servers(self._pool)
        self._folder.cleanup()
        remove(self._folder.name)


class _Job:
    """A task on its way to a worker."""

    def __init__(self, task_id: uuid.UUID, packed: bytes, serializers: Sequence[str]) -> None:
        self.task_id = task_id
        self.packed = packed
        self.serializers = serializers
        self.future: Future[bytes] = Future()

    def fail(self, reason: str) -> None:
        """End the future with a packed `Result` that is an error."""
        self.future.set_result(worker_main.pack_failure(self.task_id, RuntimeError(reason)))


def remove(folder: str) -> None:
    """Remove a folder whose processes have ended, and log a warning if that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        log.warning("could not remove %s: something still writes there", folder)


def usable_folder(folder: str) -> str:
    """Return *folder*, if an engine can work there.

    Raises:
        ValueError: The folder's name holds what a shell would split, or is too long.
    """
    advice = f"set TMPDIR to another than {os.path.dirname(folder)!r}"
    if shlex.quote(folder) != folder:
        raise ValueError(f"Parsl cannot work in a folder whose name a shell would split: {advice}")
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        raise ValueError(f"Parsl cannot make its sockets in a folder with so long a name: {advice}")
    return folder


def _check_resources(resources: Mapping[str, Any]) -> None:
    """Raise the error that a GlobusComputeEngine raises for a resource specification.

    Raises:
        InvalidResourceSpecification: It has other names than the engine knows.
        TypeError: Its priority is no number.
    """
    # with all of Parsl, for which no other task has to wait
    from parsl.executors import HighThroughputExecutor

    validate: Any = HighThroughputExecutor.validate_resource_spec  # which needs no executor
    validate(None, dict(resources))
    priority = resources["priority"]
    if not isinstance(priority, (int, float)):
        raise TypeError(
            f"resource_specification: priority must be a number, not {priority!r}; "
            "a real endpoint's interchange would end, and with it all tasks"
        )


def _check_workers(workers: int) -> None:
    """Raise an error unless *workers* is a whole number of at least 1."""
    if not isinstance(workers, int) or isinstance(workers, bool):
        raise TypeError(f"workers must be a whole number, not {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")


def _check_env(env: Mapping[str, str]) -> None:
    """Raise an error if *env* cannot be added to the environment of workers."""
    if "PYTHONPATH" in env:
        raise ValueError(
            f"env: PYTHONPATH={env['PYTHONPATH']!r} would replace the workers' import path; "
            "give its folders as pythonpath=[...]"
        )

    for name, value in env.items():
        if not isinstance(value, str):
            raise TypeError(f"env: {name} must be text, not {value!r}")


def _check_preload(specs: Sequence[str], fresh: bool) -> None:
    """Raise an error if *specs* is none that a config's ``preload_node`` could be."""
    if isinstance(specs, Sequence) and not specs:
        return
    if fresh:
        raise TypeError(
            f"preload_node={specs!r} has processes born warm, and fresh_process_per_task=True has "
            "all of them cold: give one of them"
        )

    # with the endpoint's loader, for which no other runner has to wait
    from gc_warm.configs import folders, homes, options

    path = folders.schema_path(homes.shipped()["local"])
    given = {"preload_node": list(specs) if isinstance(specs, tuple) else specs}
    for _, why in options.misfits(given, options.schema_of(path), path):
        raise ConfigError(why, option="preload_node")


def _import_path(folders: Sequence[str | os.PathLike[str]]) -> str:
    """Return the value of PYTHONPATH that holds these folders."""
    if isinstance(folders, (str, os.PathLike)):
        raise TypeError(f"pythonpath takes a list of folders: write [{str(folders)!r}]")

    for folder in folders:
        name = os.fspath(folder)
        if os.pathsep in name:
            raise ValueError(
                f"pythonpath: a folder with {os.pathsep!r} in its name, {name!r}, "
                "cannot be on an import path"
            )
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"pythonpath: there is no folder {name!r}")

    return os.pathsep.join(os.path.abspath(folder) for folder in folders)
