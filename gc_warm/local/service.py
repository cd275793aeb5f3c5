"""The Globus Compute web service as one state machine: functions, endpoints, tasks and results.

The service knows neither processes nor sockets. The tasks of one user endpoint are run by a
`TaskRunner` that its endpoint makes; clients call `handle` with what would be an HTTP request.

The production service is closed. Routes and bodies are those that its published SDK and endpoint
send and read, and the codes ``FUNCTION_NOT_PERMITTED`` and ``TASK_PAYLOAD_TOO_LARGE`` are
documented. These points had to be guessed, here and in `gc_warm.local.cloud`:

- the other codes, the texts of all errors, and that a request which cannot be read gets 422;
- that 10 MB is a limit of each task's serialized arguments, and not of a request;
- that the user endpoint of a task is found by the identity that submits it, by its
  ``user_endpoint_config`` and the client's Python and SDK versions;
- that deleted functions still run in tasks submitted before, and deleted endpoints fail their
  tasks;
- that an endpoint is online while it listens for commands, and may register again under an id that
  is not known;
- when a user endpoint is asked for: with a submission, and again while tasks wait for the user
  endpoint and its endpoint is online;
- that the tasks of a user endpoint that cannot start fail with the error that it reports, and are
  not tried again;
- that tasks fail which their user endpoint took and no longer has, or whose user endpoint is not
  heard of any more (`gc_warm.local.cloud` says when); on the real service they may wait for ever;
- the names of queues and exchanges, which clients are told.

Functions are kept until they are deleted. Results are not kept for good, other than on the real
service: see `gc_warm.local.task_table`.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk.sdk.utils.uuid_like import as_uuid

from gc_warm.local.task_table import LIMITS, Deliver, TaskTable

# serialized arguments of one task, in characters (the documented 10 MB)
SUBMISSION_LIMIT = 10 * 1024 * 1024


class TaskRunner(Protocol):
    """The part of a user endpoint that executes its tasks."""

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """Run one task.

        Args:
            task_id: Id of the task.
            packed: The packed `Task`.
            function_id: Id of the function that the task calls.
            resources: The resource specification of the client, which may be empty.
            serializers: Names of the serialization strategies that the client asks for its results.

        Returns:
            A future that always ends with a packed `Result`, also when the task or its worker
            fails.
        """

    def shutdown(self) -> None:
        """End the workers; tasks that have not ended fail. Idempotent."""


class ServiceError(Exception):
    """An error that the service answers instead of 200.

    Attributes:
        status: HTTP status.
        code: The service's code of the error, such as ``FUNCTION_NOT_FOUND``.
        reason: A sentence.
    """

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(status, code, reason)
        self.status = status
        self.code = code
        self.reason = reason

    def body(self) -> dict[str, Any]:
        """Return the answer's body, as the SDK expects it."""
        return {
            "status": "Failed",
            "code": self.code,
            "reason": self.reason,
            "message": self.reason,
            "http_status_code": self.status,
        }


MakeRunner = Callable[[Mapping[str, Any], Mapping[str, Any], str], TaskRunner]
"""Makes the runner of one user endpoint.

It takes a ``user_endpoint_config``, a ``user_runtime`` and the id of the identity whose tasks these
are, which is empty where nobody has one."""

SUBMITTER = "submitted_by"
"""Name in the body of a submission for the id of the identity that has proven to be its own."""


@dataclass
class _Endpoint:
    """An endpoint, and the runner of each of its user endpoints."""

    make_runner: MakeRunner
    is_online: Callable[[], bool]
    registration: Mapping[str, Any]
    runners: dict[str, TaskRunner] = field(default_factory=dict)
    # of `runners` and `deleted`: a runner may take its time to start
    lock: threading.Lock = field(default_factory=threading.Lock)
    deleted: bool = False


class Service:
    """A web service that lives as long as the object.

    One line is logged for each task that ends.

    Attributes:
        tasks: The tasks and their results.
    """

    def __init__(self) -> None:
        self.tasks = TaskTable()
        self._endpoints: dict[str, _Endpoint] = {}
        self._functions: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._closed = False

    def add_endpoint(
        self,
        make_runner: MakeRunner,
        endpoint_id: uuid.UUID | str | None = None,
        *,
        registration: Mapping[str, Any] | None = None,
        is_online: Callable[[], bool] = lambda: True,
    ) -> str:
        """Register an endpoint, for the first time or again.

        Registering it again leaves its user endpoints and their tasks as they are; those that come
        later are made by the new *make_runner*.

        Args:
            make_runner: Called once for each user endpoint of this endpoint.
            endpoint_id: Id of the endpoint; a new one if None.
            registration: The endpoint's own description: the body of the request that registers it.
            is_online: Whether the endpoint would take tasks now. Tasks are accepted anyhow, and
                wait.

        Returns:
            The endpoint's id.

        Raises:
            ValueError: *endpoint_id* is not a UUID.
        """
        own_id = str(as_uuid(endpoint_id or uuid.uuid4()))
        with self._lock:
            endpoint = self._endpoints.setdefault(own_id, _Endpoint(make_runner, is_online, {}))
            endpoint.make_runner = make_runner
            endpoint.is_online = is_online
            endpoint.registration = registration or {"endpoint_name": "stand-in"}
        return own_id

    def handle(self, method: str, path: str, query: str, body: Any) -> dict[str, Any] | list[Any]:
        """Answer one request.

        Args:
            method: GET, POST, ...
            path: With its leading slash, such as ``/v3/functions``.
            query: The text after the question mark, undecoded.
            body: The decoded JSON body, or None.

        Returns:
            The content of the answer's JSON body.

        Raises:
            ServiceError: The service would answer with an error.
        """
        for verb, pattern, answer in _ROUTES:
            if verb != method:
                continue
            match = re.fullmatch(pattern, path)
            if match:
                return answer(self, *match.groups(), body=body)

        raise ServiceError(404, "RESOURCE_NOT_FOUND", f"there is nothing at {method} {path}")

    def subscribe(self, task_group: str, deliver: Deliver) -> Callable[[], None]:
        """Have the packed results of a task group delivered, those that have been waiting first.

        Several subscribers each get every result.

        Args:
            task_group: Id of the group.
            deliver: Called once for each result, from any thread; must not block.

        Returns:
            A function that ends the subscription. Results that come later wait for the next one.
        """
        return self.tasks.subscribe(task_group, deliver)

    def runner(
        self,
        endpoint_id: str,
        config: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
        submitter: str = "",
    ) -> TaskRunner:
        """Return the runner of one user endpoint, started if there is none yet.

        Args:
            endpoint_id: Id of the endpoint that the user endpoint belongs to.
            config: The ``user_endpoint_config`` that tasks are submitted with.
            runtime: The client's ``user_runtime``, of which the versions of Python and of the SDK
                count.
            submitter: The id of the identity that submits tasks, if it has one.

        Returns:
            The runner that its tasks with this configuration and these versions share.

        Raises:
            ServiceError: There is no such endpoint, it has been deleted, or the service is closed.
        """
        config = config or {}
        runtime = runtime or {}
        versions = [runtime.get("python_version"), runtime.get("globus_compute_sdk_version")]
        key = json.dumps([submitter, config, *versions], sort_keys=True)

        endpoint = self._find_endpoint(endpoint_id)
        with endpoint.lock:
            if self._closed or endpoint.deleted:
                reason = f"Endpoint {endpoint_id} has been deleted, or the service closed"
                raise ServiceError(410, "ENDPOINT_GONE", reason)

            if key not in endpoint.runners:
                endpoint.runners[key] = endpoint.make_runner(config, runtime, submitter)
            return endpoint.runners[key]

    def close(self) -> None:
        """Shut down every runner. Idempotent."""
        self._closed = True
        with self._lock:
            endpoints = list(self._endpoints.values())

        for endpoint in endpoints:
            self._retire(endpoint)

    def _retire(self, endpoint: _Endpoint) -> None:
        with endpoint.lock:
            runners = list(endpoint.runners.values())
            endpoint.runners = {}
            endpoint.deleted = True

        for runner in runners:
            runner.shutdown()

    def _version(self, body: Any) -> dict[str, Any]:
        return {"api": "1.0.0", "min_sdk_version": "1.0.0", "min_ep_version": "1.0.0"}

    def _register_function(self, body: Any) -> dict[str, Any]:
        function_id = str(uuid.uuid4())
        code = _text(body["function_code"])

        # source code as text is wrapped by the service: strategy, name, source, length first
        if not body.get("serialized", True):
            source = f"st\n{body['function_name']}:{code}"
            code = f"{len(source)}\n{source}"

        function = {**body, "function_uuid": function_id, "function_code": code}
        with self._lock:
            self._functions[function_id] = function
        return {"function_uuid": function_id}

    def _get_function(self, function_id: str, body: Any) -> dict[str, Any]:
        function = self._find_function(function_id)
        names = ("function_uuid", "function_name", "function_code", "description")
        shown = {name: function.get(name) for name in names}
        return {**shown, "metadata": function.get("meta")}

    def _delete_function(self, function_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            self._find_function(function_id)
            del self._functions[function_id]
        return {"result": 302}

    def _find_function(self, function_id: str) -> dict[str, Any]:
        function = self._functions.get(function_id)
        if function is None:
            reason = f"Function {function_id} could not be resolved"
            raise ServiceError(404, "FUNCTION_NOT_FOUND", reason)
        return function

    def _submit(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._check_allowed(endpoint_id, body["tasks"])
        functions = {function_id: self._find_function(function_id) for function_id in body["tasks"]}
        for payloads in body["tasks"].values():
            for payload in payloads:
                _check_size(payload)

        group_id = str(as_uuid(body.get("task_group_id") or uuid.uuid4()))
        for name in body.get("result_serializers") or ():
            _text(name)

        config = body.get("user_endpoint_config")
        submitter = body.get(SUBMITTER, "")
        runner = self.runner(endpoint_id, config, body.get("user_runtime"), submitter)

        tasks = {}
        for function_id, payloads in body["tasks"].items():
            function = functions[function_id]
            tasks[function_id] = [
                self._start_task(runner, group_id, function, payload, body) for payload in payloads
            ]

        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": group_id,
            "endpoint_id": endpoint_id,
            "tasks": tasks,
        }

    def _start_task(
        self,
        runner: TaskRunner,
        group_id: str,
        function: Mapping[str, Any],
        payload: str,
        body: Any,
    ) -> str:
        task_id = uuid.uuid4()
        self.tasks.add(str(task_id), function["function_name"], group_id)

        task = Task(task_id=task_id, task_buffer=function["function_code"] + payload)
        future = runner.submit(
            task_id,
            messagepack.pack(task),
            function_id=function["function_uuid"],
            resources=body.get("resource_specification") or {},
            serializers=body.get("result_serializers") or (),
        )

        queued = bool(body.get("create_queue"))
        future.add_done_callback(
            lambda done: self.tasks.finish(str(task_id), done.result(), queued=queued)
        )
        return str(task_id)

    def _get_task(self, task_id: str, body: Any) -> dict[str, Any]:
        status = self.tasks.status(task_id)
        if status is None:
            raise self._not_found("TASK_NOT_FOUND", f"Task {task_id}")
        return status

    def _batch_status(self, body: Any) -> dict[str, Any]:
        return {"response": "batch", "results": self.tasks.statuses(body["task_ids"])}

    def _task_group(self, group_id: str, body: Any) -> dict[str, Any]:
        task_ids = self.tasks.task_group(group_id)
        if task_ids is None:
            raise self._not_found("TASK_GROUP_NOT_FOUND", f"Task Group {group_id}")
        return {"taskgroup_id": group_id, "tasks": [{"id": task_id} for task_id in task_ids]}

    def _not_found(self, code: str, what: str) -> ServiceError:
        reason = f"{what} could not be resolved"
        if self.tasks.has_forgotten:
            reason = f"{reason}, or has been forgotten: {LIMITS}"
        return ServiceError(404, code, reason)

    def _list_endpoints(self, body: Any) -> list[Any]:
        with self._lock:
            return [self._get_endpoint(endpoint_id, body) for endpoint_id in self._endpoints]

    def _get_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        registration = self._find_endpoint(endpoint_id).registration
        name = registration.get("endpoint_name")

        shown = {
            "uuid": endpoint_id,
            "name": name,
            "display_name": registration.get("display_name") or name,
            "multi_user": registration.get("multi_user", False),
        }
        return {**registration.get("metadata", {}), **shown}

    def _delete_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            endpoint = self._find_endpoint(endpoint_id)
            del self._endpoints[endpoint_id]
        self._retire(endpoint)
        return {"result": 302}

    def _endpoint_status(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        online = self._find_endpoint(endpoint_id).is_online() and not self._closed
        return {"status": "online" if online else "offline", "details": {}}

    def _lock_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._find_endpoint(endpoint_id)
        return {
            "endpoint_id": endpoint_id,
            "lock_expiration_timestamp": "2099-01-01T00:00:00.000000",
        }

    def _allowed_functions(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        allowed = self._find_endpoint(endpoint_id).registration.get("allowed_functions")
        return {
            "endpoint_id": endpoint_id,
            "restricted": allowed is not None,
            "functions": allowed or [],
        }

    def _check_allowed(self, endpoint_id: str, functions: Iterable[str]) -> None:
        allowed = self._allowed_functions(endpoint_id, None)
        if not allowed["restricted"]:
            return

        refused = sorted(set(functions) - set(allowed["functions"]))
        if refused:
            reason = f"Function {refused[0]} not permitted on endpoint {endpoint_id}"
            raise ServiceError(403, "FUNCTION_NOT_PERMITTED", reason)

    def _find_endpoint(self, endpoint_id: str) -> _Endpoint:
        with self._lock:
            endpoint = self._endpoints.get(endpoint_id)
            if endpoint is None:
                here = ", ".join(self._endpoints) or "none"
                reason = f"Endpoint {endpoint_id} could not be resolved; there is {here}"
                raise ServiceError(404, "ENDPOINT_NOT_FOUND", reason)
            return endpoint


def _check_size(payload: Any) -> None:
    """Raise a `ServiceError` if the serialized arguments of a task are too large."""
    if len(_text(payload)) > SUBMISSION_LIMIT:
        reason = (
            f"the arguments of a task are {len(payload)} bytes when serialized; "
            f"the limit is {SUBMISSION_LIMIT}"
        )
        raise ServiceError(413, "TASK_PAYLOAD_TOO_LARGE", reason)


def _text(value: Any) -> str:
    """Return the value, if it is text that can travel."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is not text")
    value.encode()
    return value


_ROUTES: list[tuple[str, str, Callable[..., dict[str, Any] | list[Any]]]] = [
    ("GET", "/v2/version", Service._version),
    ("POST", "/v3/functions", Service._register_function),
    ("GET", "/v2/functions/([^/]+)", Service._get_function),
    ("DELETE", "/v2/functions/([^/]+)", Service._delete_function),
    ("POST", "/v3/endpoints/([^/]+)/submit", Service._submit),
    ("GET", "/v2/tasks/([^/]+)", Service._get_task),
    ("POST", "/v2/batch_status", Service._batch_status),
    ("GET", "/v2/taskgroup/([^/]+)", Service._task_group),
    ("GET", "/v2/endpoints", Service._list_endpoints),
    ("GET", "/v2/endpoints/([^/]+)", Service._get_endpoint),
    ("DELETE", "/v2/endpoints/([^/]+)", Service._delete_endpoint),
    ("GET", "/v2/endpoints/([^/]+)/status", Service._endpoint_status),
    ("POST", "/v3/endpoints/([^/]+)/lock", Service._lock_endpoint),
    ("GET", "/v3/endpoints/([^/]+)/allowed_functions", Service._allowed_functions),
]
