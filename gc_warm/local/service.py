"""The Globus Compute web service as one state machine: functions, endpoints, tasks and their results.

It knows neither processes nor sockets. What runs the tasks of one user endpoint is a `TaskRunner`
that its endpoint makes; who asks, calls `handle` with what would be an HTTP request.

The production service is closed. Routes and bodies are those that its published SDK and endpoint
send and read, and the codes ``FUNCTION_NOT_PERMITTED`` and ``TASK_PAYLOAD_TOO_LARGE`` are
documented. What had to be guessed, here and in `gc_warm.local.cloud`:

- the other codes, the texts of all errors, and that a request it cannot read gets 422;
- that 10 MB is a limit of each task's serialized arguments, and not of a request;
- that the user endpoint of a task is found by its ``user_endpoint_config`` and the client's Python
  and SDK versions;
- that results are kept for good, deleted functions still run in tasks submitted before, and deleted
  endpoints fail theirs;
- that an endpoint is online while it listens for commands, and may register again under an id that
  is not known;
- when a user endpoint is asked for: with a submission, and again while tasks wait for it and its
  endpoint is online;
- that the tasks of a user endpoint that cannot start fail with its words, and are not tried again;
- that tasks fail which their user endpoint took and no longer has, or when nothing is heard of it
  (`gc_warm.local.cloud` says when); the real ones may wait for ever;
- the names of queues and exchanges, which clients are told.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk.sdk.utils.uuid_like import as_uuid

log = logging.getLogger("gc_warm")

# serialized arguments of one task, in characters (the documented 10 MB)
SUBMISSION_LIMIT = 10 * 1024 * 1024

Deliver = Callable[[bytes], None]


class TaskRunner(Protocol):
    """What executes the tasks of one user endpoint."""

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """Run a packed `Task`; the future always ends, with a packed `Result`, also when the task or its worker fails."""

    def shutdown(self) -> None:
        """End the workers; tasks that have not ended fail. Idempotent."""


class ServiceError(Exception):
    """What the service answers instead of 200.

    Attributes:
        status: HTTP status.
        code: The service's word for it, such as ``FUNCTION_NOT_FOUND``.
        reason: A sentence.
    """

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(status, code, reason)
        self.status, self.code, self.reason = status, code, reason

    def body(self) -> dict[str, Any]:
        """The answer as the SDK expects it."""
        return {
            "status": "Failed",
            "code": self.code,
            "reason": self.reason,
            "message": self.reason,
            "http_status_code": self.status,
        }


MakeRunner = Callable[[Mapping[str, Any], Mapping[str, Any]], TaskRunner]
"""Makes what runs the tasks of one user endpoint, from its ``user_endpoint_config`` and the client's ``user_runtime``."""


@dataclass
class _Endpoint:
    """An endpoint, and what runs the tasks of each of its user endpoints."""

    make_runner: MakeRunner
    is_online: Callable[[], bool]
    registration: Mapping[str, Any]
    runners: dict[str, TaskRunner] = field(default_factory=dict)
    # of its runners: one may take its time to start
    lock: threading.Lock = field(default_factory=threading.Lock)
    deleted: bool = False


@dataclass
class _Task:
    """One task: what a client is told of it, and what it was."""

    status: dict[str, Any]
    function: str
    submitted: float = field(default_factory=time.monotonic)


@dataclass
class _TaskGroup:
    """Tasks submitted under one id, and the results nobody has taken yet."""

    task_ids: list[str] = field(default_factory=list)
    subscribers: list[Deliver] = field(default_factory=list)
    waiting: deque[bytes] = field(default_factory=deque)


class Service:
    """One service, for as long as the object lives. It logs one line for each task that ends."""

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}
        self._functions: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, _Task] = {}
        self._groups: defaultdict[str, _TaskGroup] = defaultdict(_TaskGroup)
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
        """Register an endpoint, or register it again, which leaves its user endpoints and their tasks as they are.

        Args:
            make_runner: Called once for each of its user endpoints.
            endpoint_id: Its id; a new one if None.
            registration: What it says of itself: the body of the request that registers it.
            is_online: Whether it would take tasks now. Tasks are accepted anyhow, and wait.

        Returns:
            Its id.

        Raises:
            ValueError: *endpoint_id* is not a UUID.
        """
        found = str(as_uuid(endpoint_id or uuid.uuid4()))
        with self._lock:
            known = self._endpoints.setdefault(found, _Endpoint(make_runner, is_online, {}))
            known.registration = registration or {"endpoint_name": "stand-in"}
        return found

    def handle(self, method: str, path: str, query: str, body: Any) -> dict[str, Any] | list[Any]:
        """Answer one request.

        Args:
            method: GET, POST, ...
            path: With its leading slash, such as ``/v3/functions``.
            query: What follows the question mark, undecoded.
            body: The decoded JSON body, or None.

        Returns:
            What the answer's JSON body holds.

        Raises:
            ServiceError: The service would answer with an error.
        """
        for verb, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path) if verb == method else None
            if match:
                return answer(self, *match.groups(), body=body)
        raise ServiceError(404, "RESOURCE_NOT_FOUND", f"there is nothing at {method} {path}")

    def subscribe(self, task_group: str, deliver: Deliver) -> Callable[[], None]:
        """Have the packed results of *task_group* delivered, those that have been waiting first; to each subscriber, if several.

        Args:
            task_group: Its id.
            deliver: Called once for each result, from any thread; must not block.

        Returns:
            A function that ends the subscription; results that come later wait for the next one.
        """
        with self._lock:
            group = self._groups[task_group]
            group.subscribers.append(deliver)
            while group.waiting:
                deliver(group.waiting.popleft())
        return lambda: self._unsubscribe(group, deliver)

    def _unsubscribe(self, group: _TaskGroup, deliver: Deliver) -> None:
        with self._lock:
            group.subscribers.remove(deliver)

    def runner(
        self,
        endpoint_id: str,
        config: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
    ) -> TaskRunner:
        """What runs the tasks submitted with this user endpoint configuration and runtime; started if it is not there yet."""
        config, runtime = config or {}, runtime or {}
        key = json.dumps(
            [config, runtime.get("python_version"), runtime.get("globus_compute_sdk_version")],
            sort_keys=True,
        )
        endpoint = self._found_endpoint(endpoint_id)
        with endpoint.lock:
            if self._closed or endpoint.deleted:
                raise ServiceError(
                    410,
                    "ENDPOINT_GONE",
                    f"Endpoint {endpoint_id} has been deleted, or the service closed",
                )
            if key not in endpoint.runners:
                endpoint.runners[key] = endpoint.make_runner(config, runtime)
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
            runners, endpoint.runners = list(endpoint.runners.values()), {}
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
        with self._lock:
            self._functions[function_id] = {
                **body,
                "function_uuid": function_id,
                "function_code": code,
            }
        return {"function_uuid": function_id}

    def _get_function(self, function_id: str, body: Any) -> dict[str, Any]:
        found = self._function(function_id)
        told = {
            name: found.get(name)
            for name in ("function_uuid", "function_name", "function_code", "description")
        }
        return {**told, "metadata": found.get("meta")}

    def _delete_function(self, function_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            self._function(function_id)
            del self._functions[function_id]
        return {"result": 302}

    def _function(self, function_id: str) -> dict[str, Any]:
        found = self._functions.get(function_id)
        if found is None:
            raise ServiceError(
                404, "FUNCTION_NOT_FOUND", f"Function {function_id} could not be resolved"
            )
        return found

    def _submit(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._check_allowed(endpoint_id, body["tasks"])
        functions = {function_id: self._function(function_id) for function_id in body["tasks"]}
        for payload in (payload for payloads in body["tasks"].values() for payload in payloads):
            if len(_text(payload)) > SUBMISSION_LIMIT:
                reason = f"the arguments of a task are {len(payload)} bytes when serialized; the limit is {SUBMISSION_LIMIT}"
                raise ServiceError(413, "TASK_PAYLOAD_TOO_LARGE", reason)
        group_id = str(as_uuid(body.get("task_group_id") or uuid.uuid4()))
        for name in body.get("result_serializers") or ():
            _text(name)
        runner = self.runner(
            endpoint_id, body.get("user_endpoint_config"), body.get("user_runtime")
        )
        tasks = {
            function_id: [
                self._start(runner, group_id, functions[function_id], payload, body)
                for payload in payloads
            ]
            for function_id, payloads in body["tasks"].items()
        }
        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": group_id,
            "endpoint_id": endpoint_id,
            "tasks": tasks,
        }

    def _start(
        self,
        runner: TaskRunner,
        group_id: str,
        function: Mapping[str, Any],
        payload: str,
        body: Any,
    ) -> str:
        task_id = uuid.uuid4()
        with self._lock:
            self._tasks[str(task_id)] = _Task(
                {"task_id": str(task_id), "status": "waiting-for-ep"}, function["function_name"]
            )
            self._groups[group_id].task_ids.append(str(task_id))
        future = runner.submit(
            task_id,
            messagepack.pack(
                Task(task_id=task_id, task_buffer=function["function_code"] + payload)
            ),
            function_id=function["function_uuid"],
            resources=body.get("resource_specification") or {},
            serializers=body.get("result_serializers") or (),
        )
        queued = bool(body.get("create_queue"))
        future.add_done_callback(
            lambda done: self._finish(str(task_id), group_id if queued else None, done.result())
        )
        return str(task_id)

    def _finish(self, task_id: str, group_id: str | None, packed: bytes) -> None:
        result: Any = messagepack.unpack(packed)
        outcome = (
            {"status": "failed", "exception": result.data}
            if result.is_error
            else {"status": "success", "result": result.data}
        )
        details = {
            name: None if value is None else str(value)
            for name, value in (result.details or {}).items()
        }
        with self._lock:
            task = self._tasks[task_id]
            task.status.update(outcome, completion_t=str(time.time()), details=details)
            seconds, error = (
                time.monotonic() - task.submitted,
                f": {_last_line(result.data)}" if result.is_error else "",
            )
            log.info(
                "task %s %s: %s after %.2f s%s",
                task_id,
                task.function,
                outcome["status"],
                seconds,
                error,
            )
            if group_id is None:
                return
            group = self._groups[group_id]
            if not group.subscribers:
                group.waiting.append(packed)
            for deliver in group.subscribers:
                deliver(packed)

    def _get_task(self, task_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            if task_id not in self._tasks:
                raise ServiceError(404, "TASK_NOT_FOUND", f"Task {task_id} could not be resolved")
            return dict(self._tasks[task_id].status)

    def _batch_status(self, body: Any) -> dict[str, Any]:
        with self._lock:
            known = [task_id for task_id in body["task_ids"] if task_id in self._tasks]
            return {
                "response": "batch",
                "results": {task_id: dict(self._tasks[task_id].status) for task_id in known},
            }

    def _task_group(self, group_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            if group_id not in self._groups:
                raise ServiceError(
                    404, "TASK_GROUP_NOT_FOUND", f"Task Group {group_id} could not be resolved"
                )
            return {
                "taskgroup_id": group_id,
                "tasks": [{"id": task_id} for task_id in self._groups[group_id].task_ids],
            }

    def _list_endpoints(self, body: Any) -> list[Any]:
        with self._lock:
            return [self._get_endpoint(endpoint_id, body) for endpoint_id in self._endpoints]

    def _get_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        told = self._found_endpoint(endpoint_id).registration
        name = told.get("endpoint_name")
        shown = {
            "uuid": endpoint_id,
            "name": name,
            "display_name": told.get("display_name") or name,
            "multi_user": told.get("multi_user", False),
        }
        return {**told.get("metadata", {}), **shown}

    def _delete_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            endpoint = self._found_endpoint(endpoint_id)
            del self._endpoints[endpoint_id]
        self._retire(endpoint)
        return {"result": 302}

    def _endpoint_status(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        online = self._found_endpoint(endpoint_id).is_online() and not self._closed
        return {"status": "online" if online else "offline", "details": {}}

    def _lock_endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._found_endpoint(endpoint_id)
        return {
            "endpoint_id": endpoint_id,
            "lock_expiration_timestamp": "2099-01-01T00:00:00.000000",
        }

    def _allowed_functions(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        allowed = self._found_endpoint(endpoint_id).registration.get("allowed_functions")
        return {
            "endpoint_id": endpoint_id,
            "restricted": allowed is not None,
            "functions": allowed or [],
        }

    def _check_allowed(self, endpoint_id: str, functions: Iterable[str]) -> None:
        told = self._allowed_functions(endpoint_id, None)
        refused = sorted(set(functions) - set(told["functions"])) if told["restricted"] else []
        if refused:
            raise ServiceError(
                403,
                "FUNCTION_NOT_PERMITTED",
                f"Function {refused[0]} not permitted on endpoint {endpoint_id}",
            )

    def _found_endpoint(self, endpoint_id: str) -> _Endpoint:
        with self._lock:
            found = self._endpoints.get(endpoint_id)
            if found is None:
                here = ", ".join(self._endpoints) or "none"
                raise ServiceError(
                    404,
                    "ENDPOINT_NOT_FOUND",
                    f"Endpoint {endpoint_id} could not be resolved; there is {here}",
                )
            return found


def _last_line(traceback: str) -> str:
    """What a traceback comes to."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip(" -+")]
    return f"{lines[-1]:.200}" if lines else ""


def _text(value: Any) -> str:
    """The value, if it is text that can travel."""
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
