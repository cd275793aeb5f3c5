"""The Globus Compute web service as one state machine: functions, endpoints, tasks and their results.

It knows neither processes nor sockets. What runs the tasks of one user endpoint is a `TaskRunner` that it is given; who asks,
calls `handle` with what would be an HTTP request. The production service is closed: routes and bodies are those its published
SDK sends and reads, error codes are the documented ones, and the texts of errors are guesses.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk.sdk.utils.uuid_like import as_uuid

SUBMISSION_LIMIT = 10 * 1024 * 1024  # serialized arguments of one task, in characters (the documented 10 MB)

Deliver = Callable[[bytes], None]


class TaskRunner(Protocol):
    """What executes the tasks of one user endpoint."""

    def submit(self, task_id: uuid.UUID, packed: bytes, *, resources: Mapping[str, Any], serializers: Sequence[str]) -> Future[bytes]:
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
        return {"status": "Failed", "code": self.code, "reason": self.reason, "message": self.reason, "http_status_code": self.status}


@dataclass
class _TaskGroup:
    """Tasks submitted under one id, and the results nobody has taken yet."""

    task_ids: list[str] = field(default_factory=list)
    subscribers: list[Deliver] = field(default_factory=list)
    waiting: deque[bytes] = field(default_factory=deque)


class Service:
    """One service with one endpoint, for as long as the object lives.

    Args:
        make_runner: Called once for each distinct user endpoint configuration, with that configuration.
        endpoint_id: Id of the endpoint; a new one if None.

    Raises:
        ValueError: *endpoint_id* is not a UUID.
    """

    def __init__(self, make_runner: Callable[[Mapping[str, Any]], TaskRunner], endpoint_id: uuid.UUID | str | None = None) -> None:
        self.endpoint_id = str(as_uuid(endpoint_id or uuid.uuid4()))
        self._make_runner = make_runner
        self._functions: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, dict[str, Any]] = {}
        self._groups: defaultdict[str, _TaskGroup] = defaultdict(_TaskGroup)
        self._runners: dict[str, TaskRunner] = {}
        self._lock = threading.RLock()
        self._closed = False

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

    def runner(self, user_endpoint_config: Mapping[str, Any] | None = None) -> TaskRunner:
        """What runs the tasks submitted with this configuration; started if it is not there yet."""
        key = json.dumps(user_endpoint_config or {}, sort_keys=True)
        with self._lock:
            if self._closed:
                raise ServiceError(410, "SERVICE_CLOSED", "the stand-in for the service has been closed")
            if key not in self._runners:
                self._runners[key] = self._make_runner(user_endpoint_config or {})
            return self._runners[key]

    def close(self) -> None:
        """Shut down every runner. Idempotent."""
        with self._lock:
            self._closed = True
            runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            runner.shutdown()

    def _version(self, body: Any) -> dict[str, Any]:
        return {"api": "1.0.0", "min_sdk_version": "1.0.0", "min_ep_version": "1.0.0"}

    def _register_function(self, body: Any) -> dict[str, Any]:
        function_id = str(uuid.uuid4())
        code = body["function_code"]
        if not body.get("serialized", True):  # source code as text is wrapped by the service: strategy, name, source, length first
            source = f"st\n{body['function_name']}:{code}"
            code = f"{len(source)}\n{source}"
        with self._lock:
            self._functions[function_id] = {**body, "function_code": code}
        return {"function_uuid": function_id}

    def _get_function(self, function_id: str, body: Any) -> dict[str, Any]:
        found = self._function(function_id)
        told = {name: found.get(name) for name in ("function_name", "function_code", "description")}
        return {"function_uuid": function_id, **told, "metadata": found.get("meta")}

    def _delete_function(self, function_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            self._function(function_id)
            del self._functions[function_id]
        return {"result": 302}

    def _function(self, function_id: str) -> dict[str, Any]:
        found = self._functions.get(function_id)
        if found is None:
            raise ServiceError(404, "FUNCTION_NOT_FOUND", f"Function {function_id} could not be resolved")
        return found

    def _submit(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._check_endpoint(endpoint_id)
        group_id = body.get("task_group_id") or str(uuid.uuid4())
        code = {function_id: self._function(function_id)["function_code"] for function_id in body["tasks"]}
        for payload in (payload for payloads in body["tasks"].values() for payload in payloads):
            if len(payload) > SUBMISSION_LIMIT:
                reason = f"the arguments of a task are {len(payload)} bytes when serialized; the limit is {SUBMISSION_LIMIT}"
                raise ServiceError(413, "TASK_PAYLOAD_TOO_LARGE", reason)
        runner = self.runner(body.get("user_endpoint_config"))
        tasks = {
            function_id: [self._start(runner, group_id, code[function_id] + payload, body) for payload in payloads]
            for function_id, payloads in body["tasks"].items()
        }
        return {"request_id": str(uuid.uuid4()), "task_group_id": group_id, "endpoint_id": endpoint_id, "tasks": tasks}

    def _start(self, runner: TaskRunner, group_id: str, buffer: str, body: Any) -> str:
        task_id = uuid.uuid4()
        with self._lock:
            self._tasks[str(task_id)] = {"task_id": str(task_id), "status": "waiting-for-ep"}
            self._groups[group_id].task_ids.append(str(task_id))
        future = runner.submit(
            task_id,
            messagepack.pack(Task(task_id=task_id, task_buffer=buffer)),
            resources=body.get("resource_specification") or {},
            serializers=body.get("result_serializers") or (),
        )
        queued = bool(body.get("create_queue"))
        future.add_done_callback(lambda done: self._finish(str(task_id), group_id if queued else None, done.result()))
        return str(task_id)

    def _finish(self, task_id: str, group_id: str | None, packed: bytes) -> None:
        result: Any = messagepack.unpack(packed)
        outcome = {"status": "failed", "exception": result.data} if result.is_error else {"status": "success", "result": result.data}
        details = {name: None if value is None else str(value) for name, value in (result.details or {}).items()}
        with self._lock:
            self._tasks[task_id].update(outcome, completion_t=str(time.time()), details=details)
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
            return dict(self._tasks[task_id])

    def _batch_status(self, body: Any) -> dict[str, Any]:
        with self._lock:
            known = [task_id for task_id in body["task_ids"] if task_id in self._tasks]
            return {"response": "batch", "results": {task_id: dict(self._tasks[task_id]) for task_id in known}}

    def _task_group(self, group_id: str, body: Any) -> dict[str, Any]:
        with self._lock:
            if group_id not in self._groups:
                raise ServiceError(404, "TASK_GROUP_NOT_FOUND", f"Task Group {group_id} could not be resolved")
            return {"taskgroup_id": group_id, "tasks": [{"id": task_id} for task_id in self._groups[group_id].task_ids]}

    def _list_endpoints(self, body: Any) -> list[Any]:
        return [self._endpoint(self.endpoint_id, body)]

    def _endpoint(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._check_endpoint(endpoint_id)
        return {"uuid": endpoint_id, "name": "stand-in", "display_name": "stand-in", "multi_user": False}

    def _endpoint_status(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        self._check_endpoint(endpoint_id)
        return {"status": "offline" if self._closed else "online", "details": {}}

    def _check_endpoint(self, endpoint_id: str) -> None:
        if endpoint_id != self.endpoint_id:
            raise ServiceError(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} could not be resolved; here it is {self.endpoint_id}")


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
    ("GET", "/v2/endpoints/([^/]+)", Service._endpoint),
    ("GET", "/v2/endpoints/([^/]+)/status", Service._endpoint_status),
]
