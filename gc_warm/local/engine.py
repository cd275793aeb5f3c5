"""The endpoint's own engine, started from a config, as the runner of an endpoint's tasks.

The engine is left as it is. Three additions make it fit for tests: its processes begin in a folder
of their own; they end with the client, however the client ends; and when no worker can start, that
is noticed and explained, where the engine would wait for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gc_warm import processes
from gc_warm.configs import folders, loading, rendering
from gc_warm.configs.options import Options
from gc_warm.exceptions import WorkerStartError
from gc_warm.local import startup_diagnosis, worker_main
from gc_warm.local.manager_logs import ManagerLogs
from gc_warm.local.runners import remove, usable_folder

log = logging.getLogger("gc_warm")

_ENGINE_SECONDS = 20  # for an engine to shut down: it grants its interchange ten
_WATCH_INTERVAL = 1.0  # seconds between looks at whether an engine is of use
_JOB_WATCH_INTERVAL = 5.0  # the same, where a look asks a scheduler, which others use, too
_WARN_AFTER = 60  # seconds without a worker, after which a warning is logged
_SHUT_DOWN = "the engine has been shut down"
# in the result of a task to an engine all of whose blocks have failed
_GAVE_UP = b"parsl.executors.errors.BadStateException"


class EngineRunner:
    """A `TaskRunner` with the endpoint's own engine, started from a config as an endpoint does.

    The engine's processes begin in a directory of their own, so that modules which happen to lie in
    the client's directory are not importable. Tasks wait until the first worker is there. When no
    worker can start, tasks fail with a `WorkerStartError` that quotes the log with the cause.

    Like an endpoint, the runner stops its engine when that has been idle for long enough, and
    starts another for the next task.

    Args:
        config: The folder of a config (or the name of one that comes with gc_warm), the YAML file
            of a user endpoint, or its text (several lines).
        options: The options that a folder's template is rendered with. A file and a text have none.
        on: "local" to run a cluster's config as processes of this machine; None to run it where the
            config says.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: *on* is neither, the options do not fit, the endpoint's loader refuses the
            config, or it has no engine.
    """

    def __init__(
        self, config: str | os.PathLike[str], options: Options | None = None, on: str | None = None
    ) -> None:
        text, self._source = _read_config(config, options or {})
        self._text = _place(text, on)
        self._lock = threading.Lock()
        # of starts; the futures of an engine that is ended before may have callbacks that shut down
        self._starting = threading.RLock()
        self._closed = threading.Event()
        self._used = False
        self._moved = threading.Event()  # a task or a result, since the last heartbeat

        loaded = _load_config(self._text, self._source)
        self._engine: _Engine | None = _Engine(loaded.engine)

        heartbeat_period = min(loaded.heartbeat_period, threading.TIMEOUT_MAX)
        self._idle_watch = threading.Thread(
            target=self._stop_when_idle,
            args=(heartbeat_period, loaded.idle_heartbeats_soft),
            name="gc_warm-engine-idle",
            daemon=True,
        )
        self._idle_watch.start()

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
            resources: The resource specification of the client.
            serializers: Names of the serialization strategies for the result.

        Returns:
            A future that always ends with a packed `Result`.
        """
        self._used = True
        self._moved.set()
        try:
            future = self._submit(task_id, packed, dict(resources), list(serializers) or None)
        except Exception as error:  # an engine could not be started once more
            future = Future()
            future.set_result(worker_main.pack_failure(task_id, error))

        future.add_done_callback(lambda _: self._moved.set())
        return future

    def _submit(self, *task: Any) -> Future[bytes]:
        while True:
            engine = self._usable_engine()
            with self._lock:
                if engine is self._engine:  # and has not just been stopped
                    return engine.submit(*task)

    def _usable_engine(self) -> _Engine:
        """Return the engine, or a new one if it has been stopped or lost.

        Submissions that need the same start wait for it; nothing else does.
        """
        if self._closed.is_set():
            raise RuntimeError(_SHUT_DOWN)

        with self._starting:
            if self._closed.is_set():
                raise RuntimeError(_SHUT_DOWN)

            engine = self._engine
            if engine is not None and not engine.lost:
                return engine

            if engine is not None:
                engine.shutdown()
            engine = _Engine(_load_config(self._text, self._source).engine)

            with self._lock:
                if not self._closed.is_set():
                    self._engine = engine
                    return engine

            engine.shutdown()
            raise RuntimeError(_SHUT_DOWN)

    def _stop_when_idle(self, heartbeat_period: float, limit: int) -> None:
        """Stop the engine by the endpoint's own rule, once it has been idle for some heartbeats.

        Args:
            heartbeat_period: Seconds between two heartbeats.
            limit: Number of heartbeats without any movement, and with no task under way, after
                which the engine is stopped. With 0 it never is.
        """
        idle = 0
        while not self._closed.wait(heartbeat_period):
            with self._lock:
                engine = self._engine
                moved = self._moved.is_set()
                self._moved.clear()

                if engine is None or engine.busy or moved or not self._used:
                    idle = 0
                    continue

                idle += 1
                if not limit or idle < limit:
                    continue
                self._engine = None

            engine.shutdown()

    def shutdown(self) -> None:
        """End the engine with all its processes. Tasks that have not ended fail. Idempotent."""
        with self._lock:
            self._closed.set()
            engine = self._engine
            self._engine = None

        if engine is not None:
            engine.shutdown()
        _join(self._idle_watch)

        # whoever is just starting an engine ends it
        if self._starting.acquire(timeout=_ENGINE_SECONDS):
            self._starting.release()


class _Engine:
    """One life of an engine, from its start to the end of its last process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._logs = ManagerLogs(engine.executor)
        self._lock = threading.Lock()
        self._closed = False
        self._failure: Exception | None = None
        self._open: dict[uuid.UUID, Future[bytes]] = {}
        # results of an engine that gives up before it has had a worker, until it is known why
        self._held: dict[uuid.UUID, bytes] = {}
        self._proven = False  # a worker has done a task

        # the reaper removes the folder when this process dies
        self._folder = tempfile.mkdtemp(prefix="gc_warm-")
        self._mark = uuid.uuid4().hex
        self._reaper: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._watch = threading.Thread(
            target=self._watch_over, name="gc_warm-engine-watch", daemon=True
        )

        try:
            _prepare(self._engine, usable_folder(self._folder), self._mark)
            self._reaper = processes.start_reaper(self._mark, self._folder)
            self._engine.start(endpoint_id=uuid.uuid4(), run_dir=self._folder)
            self._watch.start()
        except BaseException:
            self.shutdown()
            raise

    @property
    def busy(self) -> bool:
        """Whether a task has been submitted and has not ended."""
        return bool(self._open)

    @property
    def lost(self) -> bool:
        """Whether this engine is of no use any more, while another one might be."""
        return not isinstance(self._failure, WorkerStartError) and not self._interchange_lives()

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        resources: dict[str, Any],
        serializers: list[str] | None,
    ) -> Future[bytes]:
        """Give the engine a task, and return a future that always ends, with a packed `Result`."""
        from globus_compute_endpoint.engines.base import GCFuture

        future: Future[bytes] = Future()
        with self._lock:
            if self._failure is not None:
                future.set_result(worker_main.pack_failure(task_id, self._failure))
                return future
            self._open[task_id] = future

        inner = GCFuture(task_id)
        inner.add_done_callback(lambda done: self._take(task_id, done.result()))
        self._engine.submit(inner, packed, resources, result_serializers=serializers)
        return future

    def _interchange_lives(self) -> bool:
        """Return whether there is an interchange.

        Without an interchange, the engine waits for ever in whatever it is asked for.
        """
        process = self._engine.executor.interchange_proc
        return process is not None and process.poll() is None

    def _take(self, task_id: uuid.UUID, result: bytes) -> None:
        """Take the engine's result, or hold it back if the engine gave up without any worker.

        A result that is held back is replaced by a failure that says why, in our words, if the next
        look at the engine tells.
        """
        gave_up = _GAVE_UP in result
        self._proven = self._proven or not gave_up

        if gave_up and not self._proven:
            self._held[task_id] = result
        else:
            self._finish(task_id, result)

    def _finish(self, task_id: uuid.UUID, result: bytes) -> None:
        """End a task's future with the engine's result or with a failure, whichever comes first."""
        with self._lock:
            future = self._open.pop(task_id, None)

        if future is not None:
            future.set_result(result)

    def _fail_open(self, error: Exception) -> None:
        with self._lock:
            self._failure = self._failure or error

        for task_id in list(self._open):
            self._finish(task_id, worker_main.pack_failure(task_id, error))

    def _watch_over(self) -> None:
        """Give up once the interchange is lost, or no worker will ever come.

        An engine notices neither by itself, nor that a manager is of no use any more.
        """
        is_local = type(self._engine.executor.provider).__name__ == "LocalProvider"
        interval = _WATCH_INTERVAL if is_local else _JOB_WATCH_INTERVAL
        waited = 0.0

        while not self._ending.wait(interval):
            if not self._interchange_lives():
                loss = "the engine's interchange has died, and with it what its workers were doing"
                self._give_up(RuntimeError(loss))
                return

            if self._open and not self._proven:
                waited += interval
            else:
                waited = 0.0

            held = list(self._held)
            reason = self._diagnose(waited)
            if reason and not self._ending.is_set():
                self._give_up(WorkerStartError(reason))
                return

            for task_id in held:
                self._finish(task_id, self._held.pop(task_id))

    def _diagnose(self, waited: float) -> str | None:
        """Return why no worker will ever come, or None if one may.

        After `_WARN_AFTER` seconds of waiting, log the states of the blocks: whether they wait in a
        queue, or for a request that can never be granted, only the scheduler knows.
        """
        try:
            executor = self._engine.executor
            if waited == _WARN_AFTER:
                states = startup_diagnosis.states(executor)
                log.warning("no worker after %d s; blocks: %s", _WARN_AFTER, states)

            managers = executor.connected_managers()
            self._replace_blocks_without_helper(managers)
            if self._open:
                return startup_diagnosis.why_no_worker(executor, managers, self._logs)
        except Exception:  # the engine is just changing, or its logs are just being written
            log.debug("could not look at the engine", exc_info=True)
        return None

    def _replace_blocks_without_helper(self, managers: Sequence[Mapping[str, Any]]) -> None:
        """End the blocks of managers whose multiprocessing helper has died.

        Such a manager answers heartbeats, so that what it is given would wait for ever, and writes
        megabytes of log a second. `gc_warm.hooks.helper_watch` ends it; this is for configs that do
        not load that.
        """
        executor = self._engine.executor
        for manager in managers:
            if not manager["active"] or not self._logs.read(manager).is_of_no_use:
                continue

            block = manager["block_id"]
            log.warning("a manager of block %s has lost its multiprocessing helper: it ends", block)
            executor.provider.cancel([executor.blocks_to_job_id[block]])
            executor._hold_block(block)

    def _give_up(self, error: Exception) -> None:
        self._fail_open(error)
        # else the engine would start one job after the other, for ever
        self._shut_down_engine()

    def _shut_down_engine(self) -> None:
        """Call the engine's own shutdown, and leave it to itself if it does not end in time.

        That shutdown waits for ever where the interchange has died.
        """
        shutdown = threading.Thread(
            target=self._engine.shutdown, name="engine-shutdown", daemon=True
        )
        lives = self._interchange_lives()

        shutdown.start()
        shutdown.join(_ENGINE_SECONDS if lives else processes.GRACE)
        if shutdown.is_alive():
            log.warning("the engine does not shut down by itself; its processes are ended")

    def shutdown(self) -> None:
        """End the engine with all its processes. Tasks that have not ended fail. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._ending.set()

        # run from the last to the first, each whatever comes of the others
        with contextlib.ExitStack() as steps:
            steps.callback(remove, self._folder)
            steps.callback(self._fail_open, RuntimeError("the engine was shut down"))
            steps.callback(self._dismiss_reaper)
            steps.callback(processes.end_all, self._mark, self._folder)
            if self._failure is None:
                steps.callback(self._shut_down_engine)
            steps.callback(_join, self._watch)

    def _dismiss_reaper(self) -> None:
        if self._reaper is not None:
            processes.dismiss_reaper(self._reaper)


def _join(thread: threading.Thread) -> None:
    """Wait for a thread's end, for a while.

    A thread that ends itself, in the callback of a future, does not wait.
    """
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(_ENGINE_SECONDS)


def _load_config(text: str, source: str) -> Any:
    """Return a user endpoint's configuration, with an engine that has not been started."""
    config: Any = loading.load_to_start(text, source)
    engine = config.engine

    if getattr(getattr(engine, "executor", None), "provider", None) is None:
        engine.shutdown()
        raise ValueError(
            f"{source}: with {type(engine).__name__}, tasks would see the client's memory "
            "and be falsely warm; use GlobusComputeEngine"
        )
    return config


def _read_config(config: str | os.PathLike[str], options: Options) -> tuple[str, str]:
    """Return the config's YAML, and the name of its source for messages."""
    is_text = isinstance(config, str) and "\n" in config
    if not is_text and not os.path.isfile(config):
        folder = folders.find_folder(config)
        return rendering.render(folder, options), os.fspath(folders.template_path(folder))

    source = "the config given as text" if is_text else os.fspath(config)
    if options:
        raise ValueError(
            f"{source} takes no options, so user_endpoint_config={dict(options)!r} "
            "would mean nothing; only a folder has a template"
        )

    text = str(config) if is_text else Path(config).read_text()
    return text, source


def _place(text: str, on: str | None) -> str:
    """Return the config's YAML, changed to run at the place that *on* names."""
    if on not in (None, "local"):
        raise ValueError(
            f"on: {on!r} is no place to run a config; "
            "there is 'local', and None for where the config says"
        )
    return text if on is None else loading.localize(text)


def _prepare(engine: Any, folder: str, mark: str) -> None:
    """Have an engine's blocks and interchange begin in *folder*, and carry *mark*.

    They find the endpoint's command also where its environment is not activated.
    """
    scripts = os.path.dirname(sys.executable)
    # Without these, the endpoint's command would make a folder in the home directory, and each
    # manager one where temporary files are.
    variables = {
        "GLOBUS_COMPUTE_USER_DIR": folder,
        "TMPDIR": folder,
        **processes.marked_environment(mark),
    }
    exports = [f"{name}={value}" for name, value in variables.items()]

    provider = engine.executor.provider
    provider.worker_init = "\n".join(
        [
            f"cd {shlex.quote(folder)}",
            *(f"export {shlex.quote(export)}" for export in exports),
            f'export PATH={shlex.quote(scripts)}:"$PATH"',
            provider.worker_init,
        ]
    )

    # the command beside this Python, not that of another environment which happens to be active
    command, *arguments = engine.executor.interchange_launch_cmd
    beside_python = os.path.join(scripts, command)
    if os.path.exists(beside_python):
        command = beside_python

    # In a session of its own: Ctrl-C is for the client, and an interchange that is gone makes the
    # engine's shutdown wait for ever.
    engine.executor.interchange_launch_cmd = ["setsid", "env", *exports, command, *arguments]
