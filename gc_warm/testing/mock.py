"""MockExecutor and MockClient: the SDK's own classes on the service of this package.

All of it is in one process, but for the workers. Only the transport is replaced: HTTP requests are
handed to `gc_warm.local.service.Service.handle`, and results reach the SDK's result watcher through
a queue in place of AMQP. Batching, serialization, limits and errors are the SDK's.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import globus_sdk
import requests
from globus_compute_common import messagepack
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import SerializationError
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.sdk.batch import create_user_runtime
from globus_compute_sdk.sdk.utils.uuid_like import as_optional_uuid
from pika import BasicProperties

from gc_warm.local.runners import SpawnedRunner, SpawnedWorker
from gc_warm.local.service import Service, ServiceError, TaskRunner
from gc_warm.worker.ledger import describe

log = logging.getLogger("gc_warm")

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:

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

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        on: str | None = None,
        workers: int | None = None,
        pythonpath: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        fresh_process_per_task: bool = False,
        endpoint_id: uuid.UUID | str | None = None,
        **client_options: Any,
    ) -> None:
        for_workers = workers is not None or pythonpath or env or fresh_process_per_task
        if config is not None and for_workers:
            raise TypeError(
                "workers, pythonpath, env and fresh_process_per_task are for spawned workers; "
                "with config= write them into the config"
            )
        if on is not None and config is None:
            raise TypeError(f"on={on!r} says where to run a config: give config=, too")

        def make_runner(
            user_endpoint_config: Mapping[str, Any], _runtime: Mapping[str, Any]
        ) -> TaskRunner:
            if config is not None:
                # with Parsl, which takes as long to import as all the rest
                from gc_warm.local.engine import EngineRunner

                return EngineRunner(config, user_endpoint_config, on)

            return SpawnedRunner(
                workers=2 if workers is None else workers,
                pythonpath=pythonpath,
                env=env,
                fresh_process_per_task=fresh_process_per_task,
            )

        self.service = Service()
        self.endpoint_id = self.service.add_endpoint(make_runner, endpoint_id)

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

    def close(self) -> None:
        """End the workers. Idempotent."""
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
            to *fresh_process_per_task* are then to be given to the client.
        config: Start the endpoint's real engine from this config: a folder (or the name of one that
            comes with gc_warm), to which *user_endpoint_config* gives the options; the YAML file of
            a user endpoint; or its text.
        on: "local" to run a cluster's config as processes of this machine.
        workers: Number of spawned workers; 2 if it is not given.
        pythonpath: Folders with modules that the tasks import.
        env: Environment variables to add in the workers.
        fresh_process_per_task: Use one process a task: everything is always cold.
        rate_limit: Keep the SDK's throttle, which delays more than 4 submissions in 16 s. Off by
            default: no service needs it here.
        user_endpoint_config: As for the SDK's executor.
        task_group_id: Id of the group that the tasks belong to; a new one if None.
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
        client_options = {name: options.pop(name) for name in _CLIENT_OPTIONS if name in options}
        if client is not None and client_options:
            given = ", ".join(sorted(client_options))
            raise TypeError(
                f"{given}: the client that is passed already has its workers; "
                "give this to MockClient"
            )

        self._gate = threading.Lock()  # of submissions against shutdown
        self._closing = False
        self._own_client = client is None
        self._mock_client = client or MockClient(endpoint_id=endpoint_id, **client_options)

        try:
            self._mock_client.runner(user_endpoint_config)
            super().__init__(
                endpoint_id=endpoint_id or self._mock_client.endpoint_id,
                client=self._mock_client,
                task_group_id=task_group_id or uuid.uuid4(),
                user_endpoint_config=user_endpoint_config,
                **options,
            )
        except BaseException:
            self._close_client()
            raise

        if not rate_limit:
            self.api_burst_window_s = 0

    if TYPE_CHECKING:  # the SDK's submit has no annotations

        def submit(  # type: ignore[override]
            self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
        ) -> _TaskFuture[T]:
            """Submit a function as the SDK's executor does."""

    @property
    def task_group_id(self) -> uuid.UUID | None:
        """Id of the group that the executor's tasks belong to.

        Each executor has a group of its own, where the SDK's executors share that of the first.
        """
        return self._task_group_id

    @task_group_id.setter
    def task_group_id(self, task_group_id: uuid.UUID | str | None) -> None:
        self._task_group_id = as_optional_uuid(task_group_id)

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
        if threading.current_thread() is self._task_submitter:
            super().shutdown(wait, cancel_futures=cancel_futures)  # type: ignore[no-untyped-call]
            return

        if wait and threading.current_thread() is sdk_executor._RESULT_WATCHERS.get(self._group):
            raise RuntimeError(
                "shutdown() in a callback of a future would wait for itself: "
                "call shutdown(wait=False) there"
            )

        watcher = None
        try:
            self._send_all(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)  # type: ignore[no-untyped-call]
            self._task_submitter.join()

            watcher = sdk_executor._RESULT_WATCHERS.get(self._group)
            # the SDK does not wait for what its submitter was about to send
            if wait and watcher is not None:
                wait_for(watcher.get_open_futures(self).values())
        finally:
            self._close_client()  # whatever still runs fails, so that every future ends
            if watcher is not None:
                watcher.shutdown(wait=wait or self._own_client)

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
        """
        with self._gate:
            if self._closing:
                raise RuntimeError(f"{self!r} is shutdown; no new functions may be executed")
            return super().submit_to_registered_function(function_id, args, kwargs)

    def _send_all(self, cancel_futures: bool) -> None:
        """Refuse further tasks, and let the submitter empty its queue unless tasks are cancelled.

        The SDK's shutdown waits for the queue with a lock held that its submitter needs, for ever.
        """
        with self._gate:
            self._closing = True
        if cancel_futures:
            return

        while self._task_submitter.is_alive() and not self._tasks_to_send.empty():
            time.sleep(0.001)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        # Ctrl-C means now, not after the tasks
        if kind is not None and not issubclass(kind, Exception):
            self.shutdown(wait=False, cancel_futures=True)
            return None
        return super().__exit__(kind, error, trace)

    @property
    def _group(self) -> uuid.UUID:
        assert self._task_group_id is not None
        return self._task_group_id

    def _close_client(self) -> None:
        if self._own_client:
            self._mock_client.close()

    def _submit_tasks(self, *batch: Any) -> None:
        try:
            super()._submit_tasks(*batch)  # type: ignore[no-untyped-call, unused-ignore]
        except Exception as error:
            # the futures show the error; the thread need not
            self._submitter_thread_exception_captured = True

            futures, tasks = batch[-2:]
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

    def _get_result_watcher(self) -> sdk_executor._ResultWatcher:
        watcher = sdk_executor._RESULT_WATCHERS.get(self._group)
        if watcher is not None and watcher.is_alive() and watcher.client is not self._mock_client:
            raise ValueError(
                f"task group {self._group} belongs to another client: "
                "pass that client, or another task group"
            )

        if watcher is None or not watcher.is_alive():
            watcher = _Watcher(self._group, self._mock_client)
            watcher.start()
        return watcher


_CLIENT_OPTIONS = ("config", "on", "workers", "pythonpath", "env", "fresh_process_per_task")


class _Watcher(sdk_executor._ResultWatcher):
    """The SDK's result watcher, fed by the service in this process and not by AMQP."""

    def __init__(self, task_group_id: uuid.UUID, client: MockClient) -> None:
        super().__init__(task_group_id, client)
        self.daemon = True
        self._service = client.service
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def watch_for_task_results(self, executor: Executor, futures: list[Any]) -> int:
        """Watch for results as the SDK does, and look again at those that came before."""
        watched: int = super().watch_for_task_results(executor, futures)
        self._inbox.put(None)
        return watched

    def run(self) -> None:
        """Match results to futures until the watcher is stopped."""
        self._thread_id = threading.get_ident()
        unsubscribe = self._service.subscribe(str(self.task_group_id), self._inbox.put)

        try:
            # the failures of tasks that were running at the end have still to be delivered
            while not (self._time_to_stop and self._inbox.empty()):
                try:
                    self._take_in()
                    self._match_results_to_futures()  # type: ignore[no-untyped-call]
                except Exception:
                    # a future that its owner cancelled, say: the others still want their results
                    log.exception("a result could not be delivered")
        finally:
            unsubscribe()

    def _take_in(self) -> None:
        try:
            packed = self._inbox.get(timeout=_STOP_INTERVAL)
        except queue.Empty:
            return

        if packed is not None:
            result: Any = messagepack.unpack(packed)
            self._received_results[str(result.task_id)] = (BasicProperties(headers={}), result)

    def _stop_ioloop(self) -> None:
        self._time_to_stop = True


_STOP_INTERVAL = 0.05  # seconds between looks at whether to stop


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
