"""MockExecutor and MockClient: the SDK's own classes on the service of this package.

All of it is in one process, but for the workers. Only the transport is replaced: HTTP requests are
handed to `gc_warm.local.service.Service.handle`, and results reach the SDK's result watcher through
a queue in place of AMQP. Batching, serialization, limits and errors are the SDK's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import globus_sdk
import requests
from globus_compute_common import messagepack
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import SerializationError
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.sdk.batch import Batch, create_user_runtime
from globus_compute_sdk.sdk.utils.uuid_like import as_optional_uuid
from pika import BasicProperties

from gc_warm.local.failed_preloads import FailedPreloads
from gc_warm.local.runners import SpawnedRunner, SpawnedWorker
from gc_warm.local.service import Service, ServiceError, TaskRunner
from gc_warm.testing.next_step import explain_refusal, failure, holds_state
from gc_warm.worker.ledger import describe

log = logging.getLogger("gc_warm")

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:
    from gc_warm.local.engine import EngineRunner

    class _TaskFuture(Future[T]):
        """The SDK's ComputeFuture, which is not generic."""

        task_id: str | None


class MockClient(Client):
    """A `globus_compute_sdk.Client` whose service, endpoint and workers are all on this machine.

    Lives until `close`; usable with ``with``. Several executors can share one, and with it the
    workers and their state.

    Args:
        config: Start the endpoint's real engine from this config (see `EngineRunner`) in place of
            spawned workers. An executor's ``user_endpoint_config`` holds the options of a config
            folder. The arguments of spawned workers are then refused.
        on: "local" to run a cluster's config on this machine.
        workers: Number of spawned workers; 2 if None.
        pythonpath: Folders with modules that the tasks import. Nothing of the client's own path is
            there.
        env: Environment variables to add in the workers.
        fresh_process_per_task: Use one process a task: everything is always cold, as under Work
            Queue.
        preload_node: Modules, and callables without arguments, to load once, in a template from
            which the spawned workers are forked: as the config's option.
        endpoint_id: Id of the client's one endpoint; a new one if None.
        **client_options: Options of the SDK's client, such as ``code_serialization_strategy``.

    Attributes:
        service: The service that answers the client's requests.
        endpoint_id: Id of the client's one endpoint.

    Raises:
        TypeError: Both *config* and an argument of the spawned workers are given, or *on* is given
            without *config*.

    Example:
        >>> from gc_warm import MockClient
        >>> with MockClient(workers=1) as client:
        ...     function_id = client.register_function(len)
        ...     client.get_function(function_id)["function_name"]
        'len'
    """

    def __init__(  # noqa: PLR0913 - options that one reads by their names
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        on: str | None = None,
        workers: int | None = None,
        pythonpath: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        fresh_process_per_task: bool = False,
        preload_node: Sequence[str] = (),
        endpoint_id: uuid.UUID | str | None = None,
        **client_options: Any,
    ) -> None:
        for_workers = pythonpath or env or fresh_process_per_task or preload_node
        if config is not None and (workers is not None or for_workers):
            raise TypeError(
                "workers, pythonpath, env, fresh_process_per_task and preload_node are for spawned "
                "workers; with config= write them into the config"
            )
        if on is not None and config is None:
            raise TypeError(f"on={on!r} says where to run a config: give config=, too")

        self._engines: list[EngineRunner] = []
        self._failed_preloads: dict[str, FailedPreloads] = {}
        self._looked_at = -math.inf

        def make_runner(
            user_endpoint_config: Mapping[str, Any], _runtime: Mapping[str, Any], _submitter: str
        ) -> TaskRunner:
            if config is not None:
                return self._start_engine(config, user_endpoint_config, on)

            return SpawnedRunner(
                workers=2 if workers is None else workers,
                pythonpath=pythonpath,
                env=env,
                fresh_process_per_task=fresh_process_per_task,
                preload_node=preload_node,
            )

        self.service = Service()
        self.endpoint_id = self.service.add_endpoint(make_runner, endpoint_id)
        self._spawns = config is None

        self._lock = threading.Lock()  # of what follows, and of who watches which task group
        self._executors: set[MockExecutor] = set()  # those that may still send tasks
        self._group: uuid.UUID | None = None
        self._has_successors = False  # a group has had more than one watcher at a time

        # so that its ids cannot pass for those of the real service
        client_options.setdefault("environment", "local")
        super().__init__(
            do_version_check=False, authorizer=globus_sdk.NullAuthorizer(), **client_options
        )
        for api in (self._compute_web_client.v2, self._compute_web_client.v3):
            api.transport.session.mount(api.base_url, _InProcess(self.service))

    def runner(self, user_endpoint_config: Mapping[str, Any] | None = None) -> TaskRunner:
        """Return the runner of the tasks of one user endpoint, started if there is none yet.

        Args:
            user_endpoint_config: The configuration that this process submits the tasks with.
        """
        runtime = asdict(create_user_runtime())
        return self.service.runner(self.endpoint_id, user_endpoint_config, runtime)

    def _start_engine(
        self, config: str | os.PathLike[str], options: Mapping[str, Any], on: str | None
    ) -> EngineRunner:
        # with Parsl, which takes as long to import as all the rest
        from gc_warm.local.engine import EngineRunner

        runner = EngineRunner(config, options, on)
        self._engines.append(runner)
        return runner

    def batch_run(self, endpoint_id: uuid.UUID | str, batch: Batch) -> dict[str, Any]:
        """Submit a batch as the SDK does, unless its executor has cancelled it meanwhile."""
        executor = getattr(_submitter, "executor", None)
        if executor is not None:
            executor._begin_sending()
        answer: dict[str, Any] = super().batch_run(endpoint_id, batch)
        return answer

    def _default_group(self) -> uuid.UUID:
        """Return the group of all executors that were given none, a new one at first."""
        with self._lock:
            self._group = self._group or uuid.uuid4()
            return self._group

    def _join(self, executor: MockExecutor) -> None:
        with self._lock:
            self._executors.add(executor)

    def _leave(self, executor: MockExecutor) -> None:
        with self._lock:
            self._executors.discard(executor)
        for watcher in self._watchers():
            watcher.wake()

    def _watchers(self) -> list[_Watcher]:
        """Return those who watch for results of this client."""
        watchers = list(sdk_executor._RESULT_WATCHERS.values())
        return [
            watcher
            for watcher in watchers
            if isinstance(watcher, _Watcher) and watcher.client is self
        ]

    def _tell_failed_preloads(self) -> None:
        """Log which preloads have failed on the workers of engines, which keep it to themselves."""
        for runner in self._engines:
            engine = runner._engine
            if engine is None:
                continue

            folder = engine._folder
            failed = self._failed_preloads.setdefault(folder, FailedPreloads(Path(folder)))
            with contextlib.suppress(OSError):  # the folder is just being removed
                for line in failed.news():
                    log.warning("%s", line)

    def _look_at_preloads(self) -> None:
        """Do so now and then, since a worker's preload is over when a result of it comes."""
        if self._engines and time.monotonic() > self._looked_at + _PRELOAD_INTERVAL:
            self._looked_at = time.monotonic()
            self._tell_failed_preloads()

    def close(self) -> None:
        """End the workers. Idempotent."""
        self._tell_failed_preloads()
        self.service.close()

    def __enter__(self) -> MockClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class MockExecutor(Executor):
    """A `globus_compute_sdk.Executor` that needs no account, no network and no endpoint.

    Tasks run as on an endpoint: each goes through the SDK's serialization to a worker process that
    shares nothing with the client. What is warm here is warm there, and what is cold here is cold
    there.

    The executor lives until `shutdown`; usable with ``with``. The workers are started by the
    constructor.

    Args:
        endpoint_id: Any id; whatever it is, the endpoint is this stand-in. So
            ``Executor(endpoint_id)`` need only change its name.
        client: Use this `MockClient`, which stays open, and not one of the executor's own. *config*
            to *preload_node* are then to be given to the client.
        config: Start the endpoint's real engine from this config: a folder (or the name of one that
            comes with gc_warm), to which *user_endpoint_config* gives the options; the YAML file of
            a user endpoint; or its text.
        on: "local" to run a cluster's config as processes of this machine.
        workers: Number of spawned workers; 2 if it is not given.
        pythonpath: Folders with modules that the tasks import.
        env: Environment variables to add in the workers.
        fresh_process_per_task: Use one process a task: everything is always cold.
        preload_node: Modules, and callables without arguments, to load once, in a template from
            which the spawned workers are forked.
        rate_limit: Keep the SDK's throttle, which delays more than 4 submissions in 16 s. Off by
            default: no service needs it here.
        user_endpoint_config: As for the SDK's executor.
        task_group_id: Id of the group that the tasks belong to; that of the client's other
            executors if None.
        **options: Options of the SDK's executor, such as ``serializer``.

    Raises:
        TypeError: Both *client* and an argument of a client of the executor's own are given.
        ValueError, FileNotFoundError, WorkerStartError: The workers cannot be started as asked for.

    Example:
        >>> from gc_warm import MockExecutor
        >>> from gc_warm.functions import count
        >>> with MockExecutor(workers=1) as executor:
        ...     [executor.submit(count).result() for _ in range(3)]
        [1, 2, 3]
    """

    def __init__(
        self,
        endpoint_id: uuid.UUID | str | None = None,
        client: MockClient | None = None,
        *,
        rate_limit: bool = False,
        user_endpoint_config: dict[str, Any] | None = None,
        task_group_id: uuid.UUID | str | None = None,
        **options: Any,
    ) -> None:
        task_group_id = as_optional_uuid(task_group_id)  # before there is anything to end
        client_options = {name: options.pop(name) for name in _CLIENT_OPTIONS if name in options}
        if client is not None and client_options:
            raise TypeError(
                f"{', '.join(sorted(client_options))}: the client that is passed already has its "
                "workers; give this to MockClient"
            )

        self._gate = threading.RLock()  # a signal's handler may submit, too; guards what follows
        self._closing = False
        self._cancelled = False
        self._ended = False  # nothing is sent any more
        self._submitting: dict[object, int] = {}  # submissions under way, and their threads
        self._unsent: set[Future[Any]] = set()
        self._in_hand: Sequence[Any] = ()  # futures of the batch that is being sent

        self._inside = threading.local()  # whether a thread is in a method of the SDK's
        self._stateful: set[str] = set()  # ids of @warm functions
        self._ending: threading.Thread | None = None

        self._own_client = client is None
        self._mock_client = client or MockClient(endpoint_id=endpoint_id, **client_options)
        self._chooses_group = False  # not yet: the constructor has the SDK's own default

        try:
            self._mock_client.runner(user_endpoint_config)
            super().__init__(
                endpoint_id=endpoint_id or self._mock_client.endpoint_id,
                client=self._mock_client,
                user_endpoint_config=user_endpoint_config,
                **options,
            )
        except BaseException:
            self._close_client()
            raise

        self._chooses_group = True
        self._task_group_id = self._mock_client._group
        self._shares_group = True
        if task_group_id:
            self.task_group_id = task_group_id

        self._mock_client._join(self)
        if not rate_limit:
            self.api_burst_window_s = 0

    if TYPE_CHECKING:  # the SDK's submit has no annotations

        def submit(  # type: ignore[override]
            self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
        ) -> _TaskFuture[T]:
            """Submit a function as the SDK's executor does."""

    @property
    def task_group_id(self) -> uuid.UUID | None:
        """Id of the group that the executor's tasks belong to; None before there is one.

        Executors of one client share theirs by default, as those of a process do with the SDK. One
        that is set is the default of those that are made later.
        """
        return self._task_group_id

    @task_group_id.setter
    def task_group_id(self, task_group_id: uuid.UUID | str | None) -> None:
        self._task_group_id = as_optional_uuid(task_group_id)
        self._shares_group = False
        if self._task_group_id and self._chooses_group:
            self._mock_client._group = self._task_group_id

    @property
    def workers(self) -> tuple[SpawnedWorker, ...]:
        """The workers: each has a ``rank``, a ``pid`` and ``kill()``.

        Raises:
            AttributeError: The workers belong to a real engine, which gives no access to them.
        """
        runner = self._mock_client.runner(self.user_endpoint_config)
        if not isinstance(runner, SpawnedRunner):
            raise AttributeError(
                "workers: the real engine gives no access to its workers; "
                "it is there with spawned workers only"
            )
        return runner.workers

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the executor and, unless a client was passed, its workers. Idempotent.

        Args:
            wait: Wait for the tasks that have been submitted; otherwise those that have not ended
                fail.
            cancel_futures: Cancel what has not been sent to the service yet.
        """
        # after an error, the SDK's own doing: what runs may still end
        if self._within_sdk():
            # in a callback of what could not be sent, the rest would wait for this very thread
            cancel_futures |= threading.current_thread() is self._task_submitter
            super().shutdown(wait, cancel_futures=cancel_futures)  # type: ignore[no-untyped-call]
            return

        if _interrupted():
            wait = False
            cancel_futures = True
        if wait and threading.current_thread() in self._mock_client._watchers():
            raise RuntimeError(
                "shutdown() in a callback of a future would wait for itself: "
                "call shutdown(wait=False) there"
            )

        try:
            self._refuse_submissions(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)  # type: ignore[no-untyped-call]
            if wait:
                # the SDK does not wait for what its submitter was about to send
                self._task_submitter.join()
                self._wait_for_results()
            else:
                self._leave_results()
        finally:
            self._end(wait)

    def register_function(
        self, fn: Callable[..., Any], function_id: str | None = None, **options: Any
    ) -> str:
        """Register a function as the SDK's executor does.

        Args:
            fn: The function.
            function_id: Its id, if it has been registered.
            **options: Options of the SDK's `Client.register_function`.

        Returns:
            The function's id.
        """
        try:
            with self._calling_sdk():
                own_id = str(super().register_function(fn, function_id, **options))
        except SerializationError as error:
            explain_refusal(fn, error)
            raise

        if holds_state(fn):
            self._stateful.add(own_id)
        return own_id

    def register_source_code(self, source: str, function_name: str, **options: Any) -> str:
        """Register source code as the SDK's executor does.

        Args:
            source: The source code.
            function_name: Name of the function in it to call.
            **options: Options of the SDK's `Client.register_source_code`.

        Returns:
            The function's id.
        """
        with self._calling_sdk():
            return str(super().register_source_code(source, function_name, **options))

    def submit_to_registered_function(
        self,
        function_id: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Submit a registered function as the SDK's executor does.

        Args:
            function_id: Id of the function.
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The SDK's future.

        Raises:
            RuntimeError: The executor has been shut down.
            ValueError: The executor has no ``endpoint_id``; it is shut down then.
        """
        submission = object()
        with self._gate:
            if self._closing:
                raise RuntimeError(f"{self!r} is shutdown; no new functions may be executed")
            self._submitting[submission] = threading.get_ident()

        # no lock is held: the SDK may shut the executor down
        try:
            with self._calling_sdk():
                future = super().submit_to_registered_function(function_id, args, kwargs)
            self._keep(future)
            return future
        finally:
            with self._gate:
                self._submitting.pop(submission, None)

    @contextlib.contextmanager
    def _calling_sdk(self) -> Iterator[None]:
        before = getattr(self._inside, "sdk", False)
        self._inside.sdk = True
        try:
            yield
        finally:
            self._inside.sdk = before

    def _within_sdk(self) -> bool:
        """Return whether a method of the SDK's calls, which does so after an error."""
        is_submitter = threading.current_thread() is self._task_submitter
        return is_submitter or getattr(self._inside, "sdk", False)

    def _keep(self, future: Any) -> None:
        """Remember a future until its task is sent, and cancel it if nothing is sent any more."""
        with self._gate:
            if _SENT in future._metadata:
                return
            self._unsent.add(future)
            ended = self._ended

        if ended:
            self._cancel_unsent()

    def _refuse_submissions(self, cancel: bool) -> None:
        """Refuse further tasks, and cancel those that wait, or let the submitter send them.

        The SDK's shutdown waits for the queue with a lock held that its submitter needs, for ever.
        """
        own_thread = threading.get_ident()
        with self._gate:
            self._closing = True
            self._cancelled = self._cancelled or cancel
            for submission, thread in list(self._submitting.items()):
                if thread == own_thread:  # in a handler of a signal
                    del self._submitting[submission]

        while self._submitting:
            time.sleep(_INTERVAL)
        if cancel:
            self._cancel_unsent()

        while self._task_submitter.is_alive() and not self._tasks_to_send.empty():
            if self._stopped:  # another shutdown has let it go, and its last word is there
                return
            time.sleep(_INTERVAL)

    def _cancel_unsent(self) -> None:
        """Cancel what has not been sent, also what the submitter has in hand."""
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self._tasks_to_send.get(block=False)
                if waiting[0] is None:  # the submitter's signal to end
                    self._tasks_to_send.put(waiting)
                    break
                with self._gate:
                    self._unsent.add(waiting[0])

        with self._gate:
            unsent = self._unsent
            self._unsent = set()

        with contextlib.ExitStack() as each:  # a callback of one may call sys.exit
            for future in unsent:
                each.callback(_is_wanted, future)
                each.callback(future.cancel)

    def _open_futures(self) -> list[Future[Any]]:
        return [
            future
            for watcher in self._mock_client._watchers()
            for future in watcher.get_open_futures(self).values()
        ]

    def _wait_for_results(self) -> None:
        wait_for(self._open_futures())

    def _leave_results(self) -> None:
        """Let the next executor reload the tasks that are under way, as after a restart."""
        for watcher in self._mock_client._watchers():
            if watcher.get_open_futures(self):
                watcher.step_aside()

    def _end(self, wait: bool) -> None:
        """End the workers of the executor's own client, so that what still runs fails."""
        if not self._own_client and not _interrupted():
            return

        with self._gate:
            if self._ending is None:
                # no daemon: a program ends with its workers
                self._ending = threading.Thread(target=self._end_workers, name="gc_warm-shutdown")
                self._ending.start()

        if wait:
            self._ending.join()
            for watcher in self._mock_client._watchers():
                watcher.shutdown()

    def _end_workers(self) -> None:
        self._mock_client.close()
        self._wait_for_results()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        # Ctrl-C means now, not after the tasks
        if kind is not None and not issubclass(kind, Exception):
            self.shutdown(wait=False, cancel_futures=True)
            if self._ending is not None:
                self._ending.join()
            return None
        return super().__exit__(kind, error, trace)

    def _close_client(self) -> None:
        if self._own_client:
            self._mock_client.close()

    def _task_submitter_impl(self) -> None:
        _submitter.executor = self
        try:
            super()._task_submitter_impl()
        finally:
            with self._gate:
                self._ended = True
            try:
                self._cancel_unsent()
            finally:
                self._mock_client._leave(self)

    def _begin_sending(self) -> None:
        """Let the batch in hand go to the service, from where no task comes back.

        Raises:
            CancelledError: The executor has cancelled it.
        """
        with self._gate:
            if self._cancelled:
                raise CancelledError
            for future in self._in_hand:
                future._metadata[_SENT] = True
            self._unsent.difference_update(self._in_hand)

    def _submit_tasks(self, *batch: Any) -> None:
        futures, tasks = batch[-2:]
        if self._cancelled:  # while they waited for the throttle
            return

        self._in_hand = futures
        for future, task in zip(futures, tasks, strict=True):
            future._metadata[_STATEFUL] = str(task.function_uuid) in self._stateful

        try:
            self._take_group(batch[0])
            super()._submit_tasks(*batch)  # type: ignore[no-untyped-call, unused-ignore]
            for future in futures:
                if future.cancelled():  # nobody watches for its result
                    _is_wanted(future)
        except Exception as error:
            # the futures show the error; the thread need not
            self._submitter_thread_exception_captured = True

            for future, task in zip(futures, tasks, strict=True):
                if not future.done():  # the SDK leaves it pending for ever
                    future.set_exception(self._explain(task, error))
            raise

    def _explain(self, task: Any, error: Exception) -> Exception:
        """Return an error that names the argument which cannot be sent, or *error* if all can."""
        positional = {
            f"argument {number}": value for number, value in enumerate(task.args, start=1)
        }
        for name, value in {**positional, **task.kwargs}.items():
            try:
                self.serializer.serialize(value)
            except Exception as cause:
                explained = SerializationError(
                    f"{name}={describe(value)} of the task cannot be sent "
                    f"({cause.__cause__ or cause}): send plain data or the path of a file. "
                    "The executor is no longer usable; a real one would not be either, "
                    "and this future would never end"
                )
                explained.__cause__ = cause
                return explained

        return error

    def _take_group(self, chosen: uuid.UUID | None) -> None:
        """Have a task group, and make sure that results of it can be watched for.

        Raises:
            ValueError: The group belongs to another client.
        """
        if chosen is None and self._shares_group:
            self._task_group_id = self._mock_client._default_group()

        group = chosen or self._task_group_id
        watcher = sdk_executor._RESULT_WATCHERS.get(group)  # type: ignore[arg-type]
        if watcher is not None and watcher.is_alive() and watcher.client is not self._mock_client:
            raise ValueError(
                f"task group {group} belongs to another client: "
                "pass that client, or another task group"
            )

    def _get_result_watcher(self) -> sdk_executor._ResultWatcher:
        self._take_group(self._task_group_id)
        group = self._task_group_id
        assert group is not None

        with self._mock_client._lock:
            watcher = sdk_executor._RESULT_WATCHERS.get(group)
            if watcher is None or not watcher.is_alive():
                watcher = _Watcher(group, self._mock_client)
                watcher.start()
            return watcher


_CLIENT_OPTIONS = (
    "config",
    "on",
    "workers",
    "pythonpath",
    "env",
    "fresh_process_per_task",
    "preload_node",
)
_INTERVAL = 0.001  # seconds between looks at what is still to be sent
_PRELOAD_INTERVAL = 1.0  # seconds between looks at the logs of an engine's workers

# in the metadata of a future: whether its task has gone to the service, and is that of a @warm
# function
_SENT = "gc_warm_sent"
_STATEFUL = "gc_warm_stateful"

_submitter = threading.local()  # in the thread of a submitter: its executor


def _is_wanted(future: Future[Any]) -> bool:
    """Return whether a future takes a result, and from now on cannot be cancelled any more.

    If it has been cancelled, whoever waits for it is told, which the SDK leaves out.
    """
    if wait_for([future], timeout=0).done:
        return False
    return future.set_running_or_notify_cancel()


def _interrupted() -> bool:
    """Return whether Ctrl-C has ended the program, which the SDK's threads still hold up."""
    if threading.main_thread().is_alive() or hasattr(sys, "ps1"):  # a prompt has gone on since
        return False
    unhandled = getattr(sys, "last_type", None)
    return isinstance(unhandled, type) and issubclass(unhandled, KeyboardInterrupt)


class _Watcher(sdk_executor._ResultWatcher):
    """The SDK's result watcher, fed by the service in this process and not by AMQP.

    It ends with the last executor of its client, but not before the last of its futures.
    """

    client: MockClient

    def __init__(self, task_group_id: uuid.UUID, client: MockClient) -> None:
        super().__init__(task_group_id, client)
        self.daemon = True
        # results, and ids of tasks whose result may have come before; None to look again
        self._inbox: queue.SimpleQueue[bytes | str | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread; from here on, no result of the group is missed."""
        service = self.client.service
        self._unsubscribe = service.subscribe(str(self.task_group_id), self._inbox.put)
        super().start()

    def wake(self) -> None:
        """Have the thread look again at whether there is anything left to do."""
        self._inbox.put(None)

    def step_aside(self) -> None:
        """Be no longer the one who is found by the id of the group.

        Under another id, the SDK still waits at the end of the program for what is watched here.
        """
        with self.client._lock:
            if sdk_executor._RESULT_WATCHERS.get(self.task_group_id) is self:
                del sdk_executor._RESULT_WATCHERS[self.task_group_id]
                sdk_executor._RESULT_WATCHERS[uuid.uuid4()] = self
                self.client._has_successors = True

    def watch_for_task_results(self, executor: Executor, futures: list[Any]) -> int:
        """Watch for results as the SDK does, and look again at those that came before.

        Those of a task that was sent before this watcher began may have gone to the one before.
        """
        watched: int = super().watch_for_task_results(executor, futures)
        if self.client._has_successors:
            for future in futures:
                self._inbox.put(future.task_id)
        self.wake()
        return watched

    def run(self) -> None:
        """Match results to futures until there is nothing left to do."""
        self._thread_id = threading.get_ident()
        while not self._retire():
            try:
                self._take_in()
            except Exception:
                log.exception("a result could not be read")
            self._deliver()

    def _retire(self) -> bool:
        """Take the last step if no future is left, and nobody who might bring one."""
        if self._open_futures or not self._inbox.empty():
            return False

        # An executor that is made after this finds no trace of this watcher. One that was made
        # before keeps it, also while it waits for the answer to what it has sent. One that has
        # stepped aside is found by nobody.
        with self.client._lock, self._new_futures_lock:
            is_found = sdk_executor._RESULT_WATCHERS.get(self.task_group_id) is self
            is_kept = is_found and self.client._executors and not self._closed
            if self._open_futures or is_kept:
                return False
            self._closed = True

            self._unsubscribe()
            for key, watcher in list(sdk_executor._RESULT_WATCHERS.items()):
                if watcher is self:
                    del sdk_executor._RESULT_WATCHERS[key]
            return True

    def _take_in(self) -> None:
        packed = self._inbox.get()
        if isinstance(packed, str):  # a second copy would be kept for ever
            is_open = packed in self._open_futures
            packed = self.client.service.tasks.result(packed) if is_open else None
        if packed is None:
            return

        self.client._look_at_preloads()
        result: Any = messagepack.unpack(packed)
        self._received_results[str(result.task_id)] = (BasicProperties(headers={}), result)

    def _deliver(self) -> None:
        """Give the results that are there to their futures, each on its own.

        A callback that calls sys.exit costs the others nothing.
        """
        received = self._received_results
        with self._new_futures_lock:
            task_ids = self._open_futures.keys() & received.keys()

        for task_id in task_ids:
            future = self._open_futures[task_id]
            self._received_results = {task_id: received.pop(task_id)}
            try:
                self._end_future(task_id, future)
            except BaseException as error:
                log.exception("a result could not be delivered")
                if future.running():  # reading it has called sys.exit, say
                    future.set_exception(RuntimeError(f"the result cannot be read: {error!r}"))
        self._received_results = received

    def _end_future(self, task_id: str, future: Any) -> None:
        """End a future as the SDK does, with the next step if its error asks for one."""
        _, result = self._received_results[task_id]
        error = None
        if result.is_error:
            stateful = future._metadata.get(_STATEFUL, False)
            error = failure(result.data, spawned=self.client._spawns, stateful=stateful)

        is_wanted = _is_wanted(future)
        if is_wanted and error is None:
            self._match_results_to_futures()  # type: ignore[no-untyped-call]
            return

        with self._new_futures_lock:
            del self._open_futures[task_id]
        if is_wanted:
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the watcher after the last of its futures, or at once if Ctrl-C ends the program.

        Args:
            wait: Wait for that.
            cancel_futures: Means nothing here.
        """
        if _interrupted():
            self.client.close()

        self._closed = True
        self.wake()
        if wait and threading.current_thread() is not self:
            self.join()


class _InProcess(requests.adapters.BaseAdapter):
    """A transport adapter that hands the requests of a `requests` session to the service."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    def send(
        self, request: requests.PreparedRequest, *_args: Any, **_options: Any
    ) -> requests.Response:
        """Answer as an HTTP server would."""
        path, _, query = str(request.path_url).partition("?")
        sent: Any = request.body
        body: Any
        try:
            content = json.loads(sent) if sent else None
            body = self._service.handle(str(request.method), path, query, content)
            status = 200
        except ServiceError as error:
            body = error.body()
            status = error.status

        response = requests.Response()
        response.status_code = status
        response.request = request
        response.url = str(request.url)
        response.headers["Content-Type"] = "application/json"
        response.encoding = "utf-8"
        response._content = json.dumps(body).encode()
        return response

    def close(self) -> None:
        """Do nothing, since nothing is open."""
