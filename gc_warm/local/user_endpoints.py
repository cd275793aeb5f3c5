"""Endpoints and user endpoints, as the service knows them: by their queues and their heartbeats."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pika import BasicProperties

from gc_warm.local import worker_main
from gc_warm.local.amqp import Broker
from gc_warm.local.auth import Identity
from gc_warm.local.service import TaskRunner

log = logging.getLogger("gc_warm")

# seconds before a user endpoint that has not come is asked for again; it takes about as long to
# start
_ASK_AGAIN = 5.0
# seconds: longer than the ten at most that an endpoint waits before it connects again
_LOST_AFTER = 30.0
_SILENT_AFTER = 120.0  # seconds: four of the usual heartbeats, and longer than any start

_LOST = (
    "the user endpoint took the task and no longer has it: it was ended meanwhile, or the result "
    "was lost on its way"
)
_SILENT = (
    "nothing has been heard of the user endpoint for a long time: it hangs, or cannot start; its "
    "logs may know why"
)


class CoreEndpoint:
    """An endpoint's daemon, as the service knows it: it listens for commands.

    A command has the daemon start a user endpoint.

    Args:
        endpoint_id: The endpoint's id.
        broker: The broker that carries commands, tasks and results.
        identities: The identities for which user endpoints are started.

    Attributes:
        id: The endpoint's id.
        broker: The broker.
        user_endpoints: Its user endpoints by their ids; replaced, and never changed.
        began: The time of its latest registration, on the monotonic clock.
    """

    def __init__(self, endpoint_id: str, broker: Broker, identities: Sequence[Identity]) -> None:
        self.id = endpoint_id
        self.broker = broker
        self.user_endpoints: dict[str, UserEndpoint] = {}
        self.began = time.monotonic()
        self._identities = identities
        self._commands = f"{endpoint_id}.commands"

    @property
    def online(self) -> bool:
        """Whether a daemon listens for commands."""
        return self.broker.consumers(self._commands) > 0

    def begin(self) -> None:
        """Drop old commands for a daemon that is about to listen.

        It would refuse commands that are older than three minutes.
        """
        self.began = time.monotonic()
        self.broker.declare(self._commands)
        self.broker.purge(self._commands)

    def registered(self) -> dict[str, Any]:
        """Return the answer to a daemon that has registered."""
        return {
            **self.queues(self.id),
            "command_queue_info": {"connection_url": self.broker.url, "queue": self._commands},
        }

    def queues(self, endpoint_id: str) -> dict[str, Any]:
        """Describe the queues for an endpoint's tasks, and for its results and heartbeats.

        Args:
            endpoint_id: The id of this endpoint, or of one of its user endpoints.

        Returns:
            The description, as an endpoint reads it.
        """
        tasks = {
            "connection_url": self.broker.url,
            "exchange": "tasks",
            "queue": f"{endpoint_id}.tasks",
        }
        return {
            "endpoint_id": endpoint_id,
            "task_queue_info": tasks,
            "result_queue_info": self._publishing_to("results", endpoint_id),
            "heartbeat_queue_info": self._publishing_to("heartbeats", endpoint_id),
        }

    def make_runner(
        self, config: Mapping[str, Any], runtime: Mapping[str, Any], submitter: str
    ) -> TaskRunner:
        """Make a user endpoint, as `gc_warm.local.service.MakeRunner` says.

        Args:
            config: The ``user_endpoint_config`` of its tasks.
            runtime: The client's ``user_runtime``.
            submitter: The id of the identity whose tasks these are.

        Returns:
            The user endpoint.
        """
        identity = next(each for each in self._identities if each.id == submitter)
        made = UserEndpoint(self, config, runtime, identity)
        # a new mapping: others may just be looking through it
        self.user_endpoints = {**self.user_endpoints, made.id: made}
        log.info("tasks with %s are for %s", json.dumps(config), made.name)
        return made

    def ask_for(self, user_endpoint: UserEndpoint) -> None:
        """Tell the daemon to start a user endpoint; one that runs is left as it is.

        Args:
            user_endpoint: One of this endpoint's user endpoints.
        """
        options = {
            "name": user_endpoint.name,
            "user_opts": user_endpoint.config,
            "user_runtime": user_endpoint.runtime,
            "amqp_creds": self.queues(user_endpoint.id),
        }
        command = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": options,
            "globus_effective_identity": user_endpoint.identity.id,
            "globus_username": user_endpoint.identity.person["username"],
            "globus_identity_set": [user_endpoint.identity.person],
        }

        properties = BasicProperties(
            content_type="application/json", content_encoding="utf-8", timestamp=round(time.time())
        )
        self.broker.publish("", self._commands, json.dumps(command).encode(), properties)

    def _publishing_to(self, exchange: str, endpoint_id: str) -> dict[str, Any]:
        publish_options = {
            "exchange": exchange,
            "routing_key": endpoint_id,
            "mandatory": True,
            "properties": {"delivery_mode": 2},
        }
        return {
            "connection_url": self.broker.url,
            "exchange": exchange,
            "queue": exchange,
            "queue_publish_kwargs": publish_options,
        }


class UserEndpoint:
    """The tasks of one user endpoint, which takes them from a queue; a `TaskRunner`.

    A task ends with its result; when the user endpoint cannot be started; when that has had nothing
    to do for a while, although it took the task; or when nothing has been heard of it for long,
    although its endpoint is online.

    Args:
        core: The endpoint that is to start the user endpoint.
        config: The ``user_endpoint_config`` of its tasks.
        runtime: The client's ``user_runtime``.
        identity: The identity whose tasks these are.

    Attributes:
        id: The user endpoint's id.
        name: The name under which its endpoint starts it.
        config: The ``user_endpoint_config`` of its tasks.
        runtime: The client's ``user_runtime``.
        identity: The identity whose tasks these are.
    """

    def __init__(
        self,
        core: CoreEndpoint,
        config: Mapping[str, Any],
        runtime: Mapping[str, Any],
        identity: Identity,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.name = f"uep.{core.id}.{self.id}"
        self.config = config
        self.runtime = runtime
        self.identity = identity

        self._core = core
        self._broker = core.broker
        self._queue = f"{self.id}.tasks"
        self._broker.declare(self._queue)

        self._lock = threading.Lock()
        self._open: dict[str, _OpenTask] = {}
        self._asked = -math.inf
        self._heard = -math.inf
        self._silent_after = _SILENT_AFTER
        self._life: tuple[Any, Any] = (None, None)  # process id and start of who was heard last
        self._warned = False

    def submit(
        self,
        task_id: uuid.UUID,
        packed: bytes,
        *,
        function_id: str,
        resources: Mapping[str, Any],
        serializers: Sequence[str],
    ) -> Future[bytes]:
        """Queue a task, as `gc_warm.local.service.TaskRunner` says, and ask for the user endpoint.

        Args:
            task_id: The task's id.
            packed: The packed `Task`.
            function_id: The id of its function.
            resources: Its resource specification.
            serializers: The strategies that its result may be serialized with; empty for any.

        Returns:
            The future of its packed `Result`.
        """
        task = _OpenTask()
        with self._lock:
            self._open[str(task_id)] = task

        headers: dict[str, Any] = {
            "function_uuid": function_id,
            "task_uuid": str(task_id),
            "resource_specification": json.dumps(resources or None),
        }
        if serializers:
            headers["result_serializers"] = list(serializers)
        properties = BasicProperties(
            content_type="application/json", content_encoding="utf-8", headers=headers
        )
        self._broker.publish("", self._queue, packed, properties)

        self._ask()
        return task.future

    def tend(self) -> None:
        """Ask for the user endpoint if tasks wait for it, and fail tasks after a long silence."""
        now = time.monotonic()
        with self._lock:
            tasks = dict(self._open)
        if tasks and not self._broker.consumers(self._queue):
            self._ask()

        if self._core.online:
            last = max(self._heard, self._core.began)
            silent = [
                task_id
                for task_id, task in tasks.items()
                if now - max(last, task.submitted) > self._silent_after
            ]
            self._fail(silent, _SILENT)

    def finish(self, task_id: str, packed: bytes) -> bool:
        """Hand on a task's result.

        Args:
            task_id: The task's id.
            packed: The packed `Result`.

        Returns:
            Whether there was such a task, and this is its first result.
        """
        with self._lock:
            task = self._open.pop(task_id, None)
        if task is not None:
            task.future.set_result(packed)
        return task is not None

    def hear(self, state: Mapping[str, Any]) -> None:
        """Take notice of a heartbeat, or of the message that the user endpoint could not start.

        Args:
            state: The message's ``global_state``.
        """
        now = time.monotonic()
        self._heard = now
        self._silent_after = max(_SILENT_AFTER, 4 * state.get("heartbeat_period", 0))
        if "error" in state:
            self._fail_all(f"the user endpoint could not be started: {state['error']}")
            return

        life = (state.get("posix_pid"), state.get("start_unix"))
        # its first heartbeat may be older than the tasks that it has taken meanwhile
        if life != self._life:
            self._life = life
            self._miss(lambda task: math.inf)
        elif "outstanding_tasks" in state:
            outstanding = state["outstanding_tasks"]
            self._compare(outstanding + self._broker.depth(self._queue), now)
            self._warn_without_workers(bool(outstanding) and state.get("total_workers") == 0)

    def shutdown(self) -> None:
        """Fail all open tasks, as `gc_warm.local.service.TaskRunner` says."""
        self._fail_all("the endpoint was deleted, or its service closed")

    def _ask(self) -> None:
        """Have the user endpoint started, if its endpoint is online and has not just been asked."""
        now = time.monotonic()
        if self._core.online and now - self._asked >= _ASK_AGAIN:
            self._asked = now
            self._core.ask_for(self)

    def _warn_without_workers(self, without: bool) -> None:
        if without and not self._warned:
            log.warning(
                "%s has tasks, and no worker yet. "
                "What its blocks have to say is in %s/submit_scripts",
                self.name,
                self.name,
            )
        self._warned = without

    def _compare(self, held: int, now: float) -> None:
        """Find lost tasks: open here while the user endpoint and its queue hold none, for a while.

        While they hold some, fewer than are open, a lost task cannot be told from the others.
        """
        with self._lock:
            tasks = dict(self._open)

        if held >= len(tasks):
            self._miss(lambda task: math.inf)
        elif held == 0:
            lost = [task_id for task_id, task in tasks.items() if now - task.missed > _LOST_AFTER]
            self._fail(lost, _LOST)
            self._miss(lambda task: task.missed_since(now))

    def _miss(self, since: Callable[[_OpenTask], float]) -> None:
        with self._lock:
            for task in self._open.values():
                task.missed = since(task)

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            tasks = list(self._open)
        self._broker.purge(self._queue)
        self._fail(tasks, reason)

    def _fail(self, tasks: list[str], reason: str) -> None:
        for task_id in tasks:
            self.finish(task_id, worker_main.pack_failure(uuid.UUID(task_id), RuntimeError(reason)))


@dataclass
class _OpenTask:
    """A task without a result.

    Attributes:
        future: The future of its packed `Result`.
        submitted: The time of its submission.
        missed: The time when its user endpoint first had nothing to do in spite of the task, or
            infinity if it is not missed.
    """

    future: Future[bytes] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    missed: float = math.inf

    def missed_since(self, now: float) -> float:
        """Return the value for `missed` if the user endpoint has nothing to do now."""
        if now - self.submitted > _LOST_AFTER:
            return min(self.missed, now)
        return math.inf
