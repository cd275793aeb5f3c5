"""What stands behind an endpoint, in its true form: the endpoint's own engine, started from a config.

The engine is left as it is. What is added makes it fit for tests: its processes begin in a folder
of their own, end with the client however that ends, and when none of its workers can start, that is
noticed and explained, where the engine would wait for ever.
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
from gc_warm.local.runners import remove, usable_folder

log = logging.getLogger("gc_warm")

_ENGINE_SECONDS = 20  # it grants its interchange ten
_WATCH_INTERVAL = 1.0  # seconds between looks at whether an engine is of use
_JOB_WATCH_INTERVAL = 5.0  # where a look asks a scheduler, which others use, too
# in the result of a task to an engine all of whose blocks have failed
_GAVE_UP = b"parsl.executors.errors.BadStateException"
_WARN_AFTER = 60  # seconds, after which a wait is worth a word


class EngineRunner:
    """Tasks in the endpoint's own engine, started from a config as an endpoint starts it.

    Its processes begin in a directory of their own, so that what happens to lie in the client's is
    not importable. Tasks wait until the first worker is there. When none can start, tasks fail with
    a `WorkerStartError` that quotes the log that knows why.

    Like an endpoint, it stops its engine when it has been idle for long enough, and starts another
    for the next task.

    Args:
        config: The folder of a config (or the name of one that comes with gc_warm), the YAML file
            of a user endpoint, or its text (several lines).
        options: What a folder's template is rendered with; the others have none.
        on: "local" to run a cluster's config as processes of this machine; None for where it says.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: *on* is neither, the options do not fit, the endpoint's loader refuses the
            config, or it has no engine.
    """

    def __init__(
        self, config: str | os.PathLike[str], options: Options | None = None, on: str | None = None
    ) -> None:
        text, self._source = _read(config, options or {})
        self._text = _placed(text, on)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._used = False
        self._moved = threading.Event()  # a task or a result, since the last heartbeat
        loaded = _load(self._text, self._source)
        self._engine: _Engine | None = _Engine(loaded.engine)
        self._idle = threading.Thread(
            target=self._stop_when_idle,
            args=(min(loaded.heartbeat_period, threading.TIMEOUT_MAX), loaded.idle_heartbeats_soft),
            name="gc_warm-engine-idle",
            daemon=True,
        )
        self._idle.start()

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """See `gc_warm.local.service.TaskRunner`; *function_id* means nothing here."""
        with self._lock:
            self._used = True
            self._moved.set()
            try:
                future = self._usable_engine().submit(
                    task_id, packed, dict(resources), list(serializers) or None
                )
            except Exception as error:  # it could not be started once more
                future = Future()
                future.set_result(worker_main.pack_failure(task_id, error))
        future.add_done_callback(lambda _: self._moved.set())
        return future

    def _usable_engine(self) -> _Engine:
        if self._closed.is_set():
            raise RuntimeError("the engine has been shut down")
        if self._engine is not None and self._engine.lost:
            self._engine.shutdown()
            self._engine = None
        if self._engine is None:
            self._engine = _Engine(_load(self._text, self._source).engine)
        return self._engine

    def _stop_when_idle(self, heartbeat_period: float, limit: int) -> None:
        """The endpoint's own rule: so many heartbeats without any movement, and nothing under way.

        With 0 it never stops.
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
                if limit and idle >= limit:
                    self._engine = None
                    engine.shutdown()

    def shutdown(self) -> None:
        """End the engine with all its processes. Tasks that have not ended fail. Idempotent."""
        self._closed.set()
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
        _join(self._idle)


class _Engine:
    """One life of an engine, from its start to the end of its last process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._closed = False
        self._failure: Exception | None = None
        self._open: dict[uuid.UUID, Future[bytes]] = {}
        # results of an engine that gives up before it has had a worker, until it is known why
        self._held: dict[uuid.UUID, bytes] = {}
        self._proven = False  # a worker has done a task
        # which the guard removes when this process dies
        self._folder = tempfile.mkdtemp(prefix="gc_warm-")
        self._mark = uuid.uuid4().hex
        self._reaper: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._watch = threading.Thread(
            target=self._watch_over, name="gc_warm-engine-watch", daemon=True
        )
        try:
            _settle(self._engine, usable_folder(self._folder), self._mark)
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
        """Whether it is of no use any more, and another one might be."""
        return not isinstance(self._failure, WorkerStartError) and not self._interchange_lives()

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        resources: dict[str, Any],
        serializers: list[str] | None,
    ) -> Future[bytes]:
        """Give the engine a task; the future always ends, with a packed Result."""
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
        """Without it, the engine waits for ever in whatever it is asked for."""
        process = self._engine.executor.interchange_proc
        return process is not None and process.poll() is None

    def _take(self, task_id: uuid.UUID, result: bytes) -> None:
        """Take the engine's result; where it has given up without a worker, the next look is to say why, in our words."""
        if _GAVE_UP in result and not self._proven:
            self._held[task_id] = result
        else:
            self._finish(task_id, result)

    def _finish(self, task_id: uuid.UUID, result: bytes) -> None:
        """The engine's result, or the failure that there is for it: whichever comes first."""
        with self._lock:
            future = self._open.pop(task_id, None)
        if future is not None:
            self._proven = self._proven or self._failure is None
            future.set_result(result)

    def _fail_open(self, error: Exception) -> None:
        with self._lock:
            self._failure = self._failure or error
        for task_id in list(self._open):
            self._finish(task_id, worker_main.pack_failure(task_id, error))

    def _watch_over(self) -> None:
        """Notice what an engine does not: that its interchange is gone, or that no worker will ever come."""
        waited = 0.0
        look = (
            _WATCH_INTERVAL
            if type(self._engine.executor.provider).__name__ == "LocalProvider"
            else _JOB_WATCH_INTERVAL
        )
        while not self._ending.wait(look):
            if not self._interchange_lives():
                return self._give_up(
                    RuntimeError(
                        "the engine's interchange has died, and with it what its workers were doing"
                    )
                )
            waited = waited + look if self._open and not self._proven else 0.0
            held, reason = list(self._held), None
            try:
                # a queue, or a request that can never be granted: only the scheduler knows
                if waited == _WARN_AFTER:
                    log.warning(
                        "no worker after %d s; blocks: %s",
                        _WARN_AFTER,
                        startup_diagnosis.states(self._engine.executor),
                    )
                reason = (
                    startup_diagnosis.why_no_worker(self._engine.executor, Path(self._folder))
                    if self._open
                    else None
                )
            except Exception:  # the engine is just changing, or its logs are just being written
                log.debug("could not look at the engine", exc_info=True)
            if reason and not self._ending.is_set():
                return self._give_up(WorkerStartError(reason))
            for task_id in held:
                self._finish(task_id, self._held.pop(task_id))
        return None

    def _give_up(self, error: Exception) -> None:
        self._fail_open(error)
        self._shut_down_engine()  # else it would start one job after the other, for ever

    def _shut_down_engine(self) -> None:
        """The engine's own shutdown, which waits for ever where the interchange has died; its thread is then left to itself."""
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
        # from the last to the first, each whatever comes of the others
        with contextlib.ExitStack() as steps:
            steps.callback(remove, self._folder)
            steps.callback(self._fail_open, RuntimeError("the engine was shut down"))
            steps.callback(self._dismiss_guard)
            steps.callback(processes.end_all, self._mark, self._folder)
            if self._failure is None:
                steps.callback(self._shut_down_engine)
            steps.callback(_join, self._watch)

    def _dismiss_guard(self) -> None:
        if self._reaper is not None:
            processes.dismiss_reaper(self._reaper)


def _join(thread: threading.Thread) -> None:
    """Wait for a thread's end, for a while; a thread that ends itself, in a future's callback, does not wait."""
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(_ENGINE_SECONDS)


def _load(text: str, source: str) -> Any:
    """A user endpoint's configuration, with an engine that has not been started."""
    config: Any = loading.load_to_start(text, source)
    engine = config.engine
    if getattr(getattr(engine, "executor", None), "provider", None) is None:
        engine.shutdown()
        raise ValueError(
            f"{source}: with {type(engine).__name__}, tasks would see the client's memory and be falsely warm; use GlobusComputeEngine"
        )
    return config


def _read(config: str | os.PathLike[str], options: Options) -> tuple[str, str]:
    """The YAML, and what to call it in messages."""
    is_text = isinstance(config, str) and "\n" in config
    if not is_text and not os.path.isfile(config):
        folder = folders.find_folder(config)
        return rendering.render(folder, options), os.fspath(folders.template_path(folder))
    source = "the config given as text" if is_text else os.fspath(config)
    if options:
        raise ValueError(
            f"{source} takes no options, so user_endpoint_config={dict(options)!r} would mean nothing; only a folder has a template"
        )
    return str(config) if is_text else Path(config).read_text(), source


def _placed(text: str, on: str | None) -> str:
    if on not in (None, "local"):
        raise ValueError(
            f"on: {on!r} is no place to run a config; there is 'local', and None for where the config says"
        )
    return text if on is None else loading.localize(text)


def _settle(engine: Any, folder: str, mark: str) -> None:
    """Let a block start in *folder*, carry *mark*, and find the endpoint's command also where the environment is not activated."""
    provider = engine.executor.provider
    scripts = os.path.dirname(sys.executable)
    # Without these, the endpoint's command would make a folder in the home directory, and each
    # manager one where temporary files are.
    variables = {
        "GLOBUS_COMPUTE_USER_DIR": folder,
        "TMPDIR": folder,
        **processes.marked_environment(mark),
    }
    exports = [f"{name}={value}" for name, value in variables.items()]
    before = [
        f"cd {shlex.quote(folder)}",
        *(f"export {shlex.quote(export)}" for export in exports),
        f'export PATH={shlex.quote(scripts)}:"$PATH"',
    ]
    provider.worker_init = "\n".join([*before, provider.worker_init])
    command, *arguments = engine.executor.interchange_launch_cmd
    # and not that of another environment which happens to be active
    beside_python = os.path.join(scripts, command)
    if os.path.exists(beside_python):
        command = beside_python
    # In a session of its own: Ctrl-C is for the client, and an interchange that is gone makes the
    # engine's shutdown wait for ever.
    engine.executor.interchange_launch_cmd = ["setsid", "env", *exports, command, *arguments]
