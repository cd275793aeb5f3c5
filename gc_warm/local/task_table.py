"""The tasks of a service and their results, in memory that does not grow with their number.

A result goes to whoever subscribes to its task group, or waits for that. It is kept afterwards, for
a script that is started again and reloads its tasks. Beyond `KEPT_BYTES` in all, results are
dropped: those that were delivered or asked for first, the oldest first. A result that waits is not
dropped before it has waited for a while: an executor that has just submitted a batch may not be
listening yet. A task whose result was dropped has failed, for whoever asks for it or still waits
for it, with an error that says so.

Beyond `KEPT_TASKS`, ended tasks are forgotten in the same order, those without a result first. A
task group that has forgotten tasks lists the last of them, so that whoever reloads it is told.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from globus_compute_common import messagepack

from gc_warm.local import worker_main

log = logging.getLogger("gc_warm")

KEPT_BYTES = 32 * 1024 * 1024
"""The most that all results together take."""

KEPT_TASKS = 5_000
"""The number of ended tasks that are known at most."""

_SUBSCRIBER_TIMEOUT = 60.0  # seconds; an executor connects, also again, within ten or twenty

LIMITS = (
    f"this stand-in for the service keeps at most {KEPT_BYTES >> 20} MiB of results and "
    f"{KEPT_TASKS} tasks that have ended, and forgets those first that were delivered, then those "
    "that have waited longest; submit the task again"
)
"""What whoever asks for a result that is gone is told."""

Deliver = Callable[[bytes], None]
"""Takes one packed result, from any thread, and must not block."""


@dataclass(slots=True)
class _Task:
    """A task; once it has ended, with its packed `Result` unless that was dropped."""

    function: str
    group_id: str
    submitted: float = field(default_factory=time.monotonic)
    ended_at: str = ""  # seconds since the epoch
    packed: bytes | None = None
    waiting_since: float = 0.0


@dataclass(slots=True)
class _TaskGroup:
    """The tasks submitted under one id, in order, and those of them whose results wait here."""

    task_ids: dict[str, None] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    subscribers: list[Deliver] = field(default_factory=list)
    forgotten: str | None = None  # the last task that was


class TaskTable:
    """The tasks of one service. Its methods may be called from any thread.

    One line is logged for each task that ends.

    Attributes:
        has_forgotten: Whether there have been tasks that are not known any more.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._groups: dict[str, _TaskGroup] = {}
        # the ended ones among the tasks, each the oldest first
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._undelivered: OrderedDict[str, None] = OrderedDict()
        self._without_result: OrderedDict[str, None] = OrderedDict()

        self._bytes = 0  # that results take
        self.has_forgotten = False
        self._lock = threading.RLock()

    def add(self, task_id: str, function: str, group_id: str) -> None:
        """Add a task that has been submitted.

        Args:
            task_id: The task's id.
            function: The name of its function.
            group_id: The id of its task group, which may be new.
        """
        with self._lock:
            self._tasks[task_id] = _Task(function, group_id)
            self._group(group_id).task_ids[task_id] = None

    def finish(self, task_id: str, packed: bytes, *, queued: bool) -> None:
        """Record a task's result, and deliver it.

        Args:
            task_id: The id of a task that has not ended.
            packed: The packed `Result`.
            queued: Whether the result is for the subscribers of its task group; otherwise it is
                only for those who ask for it.
        """
        result: Any = messagepack.unpack(packed)

        with self._lock:
            task = self._tasks[task_id]
            task.ended_at = str(time.time())
            _log_end(task_id, task, result)
            self._hold(task_id, packed)

            group = self._groups[task.group_id]
            if queued:
                group.waiting[task_id] = None
                self._deliver_waiting(group, group.subscribers)
            self._trim()

    def subscribe(self, group_id: str, deliver: Deliver) -> Callable[[], None]:
        """Have the results of a task group delivered, those that have been waiting first.

        Several subscribers each get every result.

        Args:
            group_id: The group's id.
            deliver: Called once for each result.

        Returns:
            A function that ends the subscription. Results that come later wait for the next one.
        """
        with self._lock:
            group = self._group(group_id)
            group.subscribers.append(deliver)
            self._deliver_waiting(group, [deliver])
            self._trim()

        return lambda: self._unsubscribe(group_id, deliver)

    def take_back(self, results: Iterable[bytes]) -> None:
        """Have results wait once more, which were delivered and did not arrive.

        Args:
            results: The packed results.
        """
        with self._lock:
            for packed in results:
                result: Any = messagepack.unpack(packed)
                task_id = str(result.task_id)
                task = self._tasks.get(task_id)
                if task is None or not task.ended_at:  # forgotten meanwhile, or no result of ours
                    continue

                self._drop_result(task_id)
                del self._without_result[task_id]
                self._hold(task_id, packed)
                self._groups[task.group_id].waiting[task_id] = None
            self._trim()

    def result(self, task_id: str) -> bytes | None:
        """Return the packed `Result` of a task; None as long as it has not ended.

        Args:
            task_id: The task's id.
        """
        with self._lock:
            task = self._tasks.get(task_id)
            if task is not None and not task.ended_at:
                return None
            return (task and task.packed) or _pack_gone(task_id)

    def status(self, task_id: str) -> dict[str, Any] | None:
        """Describe a task, as the service's answers do; its result counts as asked for.

        Args:
            task_id: The task's id.

        Returns:
            The description, or None if no such task is known.
        """
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None:
                return None
            if not task.ended_at:
                return {"task_id": task_id, "status": "waiting-for-ep"}
            if task.packed is None:
                return _failed(task_id, f"the result of task {task_id} is gone", task.ended_at)

            status = {"task_id": task_id, "completion_t": task.ended_at, **_outcome(task.packed)}
            if task_id not in self._groups[task.group_id].waiting:
                self._mark_delivered(task_id)
                self._trim()
            return status

    def statuses(self, task_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Describe several tasks.

        Args:
            task_ids: Their ids.

        Returns:
            The descriptions by ids. Unknown tasks are left out; once tasks have been forgotten,
            they have failed, since whoever reloads tasks would wait for those left out for ever.
        """
        with self._lock:
            found = {}
            for task_id in task_ids:
                status = self.status(task_id)
                if status is None and self.has_forgotten:
                    reason = f"task {task_id} is unknown, or has been forgotten"
                    status = _failed(task_id, reason, str(time.time()))
                if status is not None:
                    found[task_id] = status
            return found

    def task_group(self, group_id: str) -> list[str] | None:
        """Return the ids of a group's tasks, in order, or None if no such group is known.

        Args:
            group_id: The group's id.

        Returns:
            The ids; the first is that of a forgotten task, if the group has any.
        """
        with self._lock:
            group = self._groups.get(group_id)
            if group is None:
                return None

            forgotten = [] if group.forgotten is None else [group.forgotten]
            return [*forgotten, *group.task_ids]

    def group_ids(self) -> set[str]:
        """Return the ids of the task groups that are known."""
        with self._lock:
            return set(self._groups)

    def _group(self, group_id: str) -> _TaskGroup:
        return self._groups.setdefault(group_id, _TaskGroup())

    def _unsubscribe(self, group_id: str, deliver: Deliver) -> None:
        with self._lock:
            self._groups[group_id].subscribers.remove(deliver)
            self._remove_if_empty(group_id)

    def _remove_if_empty(self, group_id: str) -> None:
        group = self._groups[group_id]
        if not group.task_ids and not group.subscribers:
            del self._groups[group_id]

    def _deliver_waiting(self, group: _TaskGroup, subscribers: list[Deliver]) -> None:
        if not subscribers:
            return

        for task_id in group.waiting:
            packed = self._tasks[task_id].packed or _pack_gone(task_id)
            for deliver in subscribers:
                deliver(packed)
            self._mark_delivered(task_id)
        group.waiting.clear()

    def _hold(self, task_id: str, packed: bytes) -> None:
        task = self._tasks[task_id]
        task.packed = packed
        task.waiting_since = time.monotonic()
        self._undelivered[task_id] = None
        self._bytes += len(packed)

    def _mark_delivered(self, task_id: str) -> None:
        if task_id in self._undelivered:
            del self._undelivered[task_id]
            self._delivered[task_id] = None

    def _trim(self) -> None:
        """Drop results, and forget tasks, as long as there are too many."""
        while self._bytes > KEPT_BYTES:
            task_id = self._oldest(self._delivered)
            if task_id is None:
                break
            self._drop_result(task_id)

        ended = (self._without_result, self._delivered, self._undelivered)
        while sum(map(len, ended)) > KEPT_TASKS:
            task_id = self._oldest(self._without_result, self._delivered)
            if task_id is None:
                break
            self._forget(task_id)

    def _oldest(self, *tables: OrderedDict[str, None]) -> str | None:
        """Return the first task of the first table that has any, or one that waits for too long."""
        for table in tables:
            if table:
                return next(iter(table))

        waiting = next(iter(self._undelivered), None)
        if waiting is None:
            return None
        waited = time.monotonic() - self._tasks[waiting].waiting_since
        return waiting if waited > _SUBSCRIBER_TIMEOUT else None

    def _drop_result(self, task_id: str) -> None:
        task = self._tasks[task_id]
        if task.packed is not None:
            self._bytes -= len(task.packed)
            task.packed = None

        self._delivered.pop(task_id, None)
        self._undelivered.pop(task_id, None)
        self._without_result[task_id] = None

    def _forget(self, task_id: str) -> None:
        self._drop_result(task_id)
        del self._without_result[task_id]
        task = self._tasks.pop(task_id)
        self.has_forgotten = True

        group = self._groups[task.group_id]
        del group.task_ids[task_id]
        group.waiting.pop(task_id, None)
        group.forgotten = task_id
        self._remove_if_empty(task.group_id)


def _outcome(packed: bytes) -> dict[str, Any]:
    """Return the part of a task's description that its packed `Result` gives."""
    result: Any = messagepack.unpack(packed)
    items = (result.details or {}).items()
    details = {name: None if value is None else str(value) for name, value in items}

    if result.is_error:
        return {"status": "failed", "exception": result.data, "details": details}
    return {"status": "success", "result": result.data, "details": details}


def _failed(task_id: str, reason: str, ended_at: str) -> dict[str, Any]:
    """Return the description of a task that there is nothing of."""
    return {
        "task_id": task_id,
        "status": "failed",
        "exception": f"{reason}: {LIMITS}",
        "completion_t": ended_at,
        "details": {},
    }


def _pack_gone(task_id: str) -> bytes:
    error = RuntimeError(f"the result of task {task_id} is gone: {LIMITS}")
    return worker_main.pack_failure(uuid.UUID(task_id), error)


def _log_end(task_id: str, task: _Task, result: Any) -> None:
    error = f": {_last_line(result.data)}" if result.is_error else ""
    outcome = "failed" if result.is_error else "success"
    seconds = time.monotonic() - task.submitted
    log.info("task %s %s: %s after %.2f s%s", task_id, task.function, outcome, seconds, error)


def _last_line(traceback: str) -> str:
    """Return the line of a traceback that names the error, at most 200 characters of it."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip(" -+")]
    return f"{lines[-1]:.200}" if lines else ""
