"""Endpoints and user endpoints, as the service knows them: who listens, and which tasks have no result yet."""

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


class CoreEndpoint:
    """An endpoint's daemon, as the service knows it: it listens for commands to start user endpoints."""

    def __init__(self, endpoint_id: str, broker: Broker, identity: Identity) -> None:
        self.id, self.broker, self._identity = endpoint_id, broker, identity
        self.user_endpoints: dict[str, UserEndpoint] = {}
        self.began = time.monotonic()
        self._commands = f"{endpoint_id}.commands"

    @property
    def online(self) -> bool:
        """Whether somebody listens for commands."""
        return self.broker.consumers(self._commands) > 0

    def begin(self) -> None:
        """Be ready for a daemon that is about to listen: it would refuse commands that are older than three minutes."""
        self.began = time.monotonic()
        self.broker.declare(self._commands)
        self.broker.purge(self._commands)

    def registered(self) -> dict[str, Any]:
        """What a daemon is told when it has registered."""
        return {
            **self.queues(self.id),
            "command_queue_info": {"connection_url": self.broker.url, "queue": self._commands},
        }

    def queues(self, endpoint_id: str) -> dict[str, Any]:
        """Where the endpoint or user endpoint of that id finds its tasks, and leaves results and heartbeats."""

        def towards(exchange: str) -> dict[str, Any]:
            how = {
                "exchange": exchange,
                "routing_key": endpoint_id,
                "mandatory": True,
                "properties": {"delivery_mode": 2},
            }
            return {
                "connection_url": self.broker.url,
                "exchange": exchange,
                "queue": exchange,
                "queue_publish_kwargs": how,
            }

        tasks = {
            "connection_url": self.broker.url,
            "exchange": "tasks",
            "queue": f"{endpoint_id}.tasks",
        }
        ways = {
            "task_queue_info": tasks,
            "result_queue_info": towards("results"),
            "heartbeat_queue_info": towards("heartbeats"),
        }
        return {"endpoint_id": endpoint_id, **ways}

    def make_runner(self, config: Mapping[str, Any], runtime: Mapping[str, Any]) -> TaskRunner:
        """See `gc_warm.local.service.MakeRunner`."""
        made = UserEndpoint(self, config, runtime)
        # a new mapping: others may just be looking through it
        self.user_endpoints = {**self.user_endpoints, made.id: made}
        log.info("tasks with %s are for %s", json.dumps(config), made.name)
        return made

    def ask_for(self, user_endpoint: UserEndpoint) -> None:
        """Tell the daemon to start a user endpoint; one that runs is left as it is."""
        opts = {
            "user_opts": user_endpoint.config,
            "user_runtime": user_endpoint.runtime,
            "amqp_creds": self.queues(user_endpoint.id),
        }
        command = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {"name": user_endpoint.name, **opts},
            "globus_effective_identity": self._identity.id,
            "globus_username": self._identity.person["username"],
            "globus_identity_set": [self._identity.person],
        }
        properties = BasicProperties(
            content_type="application/json", content_encoding="utf-8", timestamp=round(time.time())
        )
        self.broker.publish("", self._commands, json.dumps(command).encode(), properties)


@dataclass
class _OpenTask:
    """A task without a result: when it was submitted, and when its user endpoint first had nothing to do in spite of it."""

    future: Future[bytes] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    missed: float = math.inf


class UserEndpoint:
    """The tasks of one user endpoint, which takes them from a queue; a `TaskRunner`.

    A task ends with its result; when the user endpoint cannot be started; when that has had nothing
    to do for a while, although it took the task; or when nothing has been heard of it for long,
    although its endpoint is online.
    """

    def __init__(
        self, core: CoreEndpoint, config: Mapping[str, Any], runtime: Mapping[str, Any]
    ) -> None:
        self.id, self.config, self.runtime = str(uuid.uuid4()), config, runtime
        self.name = f"uep.{core.id}.{self.id}"
        self._core, self._broker = core, core.broker
        self._queue = f"{self.id}.tasks"
        self._broker.declare(self._queue)
        self._lock = threading.Lock()
        self._open: dict[str, _OpenTask] = {}
        self._asked = self._heard = -math.inf
        self._patience = _SILENT_AFTER
        self._life: tuple[Any, Any] = (None, None)
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
        """See `gc_warm.local.service.TaskRunner`."""
        task = _OpenTask()
        with self._lock:
            self._open[str(task_id)] = task
        about = {
            "function_uuid": function_id,
            "task_uuid": str(task_id),
            "resource_specification": json.dumps(resources or None),
        }
        headers = {**about, **({"result_serializers": list(serializers)} if serializers else {})}
        self._broker.publish(
            "",
            self._queue,
            packed,
            BasicProperties(
                content_type="application/json", content_encoding="utf-8", headers=headers
            ),
        )
        self._ask()
        return task.future

    def tend(self) -> None:
        """Have it started if tasks wait for it, and fail those that have waited too long without a word of it."""
        now = time.monotonic()
        with self._lock:
            tasks = dict(self._open)
        if tasks and not self._broker.consumers(self._queue):
            self._ask()
        if self._core.online:
            last = max(self._heard, self._core.began)
            self._fail(
                [
                    task_id
                    for task_id, task in tasks.items()
                    if now - max(last, task.submitted) > self._patience
                ],
                _SILENT,
            )

    def _ask(self) -> None:
        """Have it started, if the endpoint is online and has not just been asked."""
        now = time.monotonic()
        if self._core.online and now - self._asked >= _ASK_AGAIN:
            self._asked = now
            self._core.ask_for(self)

    def finish(self, task_id: str, packed: bytes) -> bool:
        """Hand on a task's result; whether there was such a task, and this is its first."""
        with self._lock:
            task = self._open.pop(task_id, None)
        if task is not None:
            task.future.set_result(packed)
        return task is not None

    def hear(self, state: Mapping[str, Any]) -> None:
        """Take notice of a heartbeat, or of the message that it could not be started."""
        self._heard = now = time.monotonic()
        self._patience = max(_SILENT_AFTER, 4 * state.get("heartbeat_period", 0))
        if "error" in state:
            self._fail_all(f"the user endpoint could not be started: {state['error']}")
            return
        life = state.get("posix_pid"), state.get("start_unix")
        # its first heartbeat may be older than the tasks that it has taken meanwhile
        if life != self._life:
            self._life = life
            self._miss(lambda task: math.inf)
        elif "outstanding_tasks" in state:
            self._compare(state["outstanding_tasks"] + self._broker.depth(self._queue), now)
            self._warn_without_workers(
                bool(state["outstanding_tasks"]) and state.get("total_workers") == 0
            )

    def _warn_without_workers(self, without: bool) -> None:
        if without and not self._warned:
            log.warning(
                "%s has tasks, and no worker yet. What its blocks have to say is in %s/submit_scripts",
                self.name,
                self.name,
            )
        self._warned = without

    def _compare(self, held: int, now: float) -> None:
        """A task that is not there when nothing is, and a while later again, is lost.

        Among others, none can be told from them.
        """
        with self._lock:
            tasks = dict(self._open)
        if held >= len(tasks):
            self._miss(lambda task: math.inf)
        elif held == 0:
            self._fail(
                [task_id for task_id, task in tasks.items() if now - task.missed > _LOST_AFTER],
                _LOST,
            )
            self._miss(
                lambda task: (
                    min(task.missed, now) if now - task.submitted > _LOST_AFTER else math.inf
                )
            )

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

    def shutdown(self) -> None:
        """See `gc_warm.local.service.TaskRunner`."""
        self._fail_all("the endpoint was deleted, or its service closed")


_LOST = "the user endpoint took the task and no longer has it: it was ended meanwhile, or the result was lost on its way"
_SILENT = "nothing has been heard of the user endpoint for a long time: it hangs, or cannot start; its logs may know why"
