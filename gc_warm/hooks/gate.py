"""A manager that asks for tasks once its workers have preloaded, and not before.

A stock manager registers with the interchange as soon as it has started its workers, and asks for a
task for each of them. The interchange gives it tasks from then on, which wait behind the preload
while workers of other nodes are idle; if the manager dies in the meantime, they are lost.

With this hook, the manager still registers at that time, but has room for no task. It is known, so
that heartbeats, drain, scale-in, the reports of the endpoint and the count of failed blocks are as
they always are. A worker that is ready leaves a mark in the dictionary of tasks in progress, which
the manager keeps for its workers. When all have, the manager registers once more, now with its
room. The message takes the way of the results, which leads to the thread that owns the socket.

A registration replaces all that the interchange knows of a manager, its tasks included. That is
right while it has none, and so there is no opening by degrees.

The gate opens in any case: after `BOUND`, or earlier where the job ends or drains before twice that
time, or when anything here raises. Then the manager is as it is without the hook.
"""

from __future__ import annotations

import functools
import logging
import pickle
import threading
import time
from collections.abc import Callable
from multiprocessing.managers import DictProxy
from multiprocessing.queues import Queue
from typing import Any

from gc_warm.hooks import boot
from gc_warm.worker import deadline

BOUND = 1200.0
"""The most seconds that a gate is shut: twice what is usual for large models on GPUs."""

_WATCH_INTERVAL = 0.1  # seconds between looks at the marks
# seconds in which a manager ends that has lost the process which keeps the marks; see helper_watch
_HELPER_LOSS = 3.0
_THREAD = "Interchange-Communicator"

# its records go to manager.log, as those of Parsl do
log = logging.getLogger("parsl.gate")


def install() -> None:
    """Shut the gate of this manager, whose workers have something to preload."""
    stock = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == _THREAD:
            threading.Thread.start = stock  # type: ignore[method-assign]
            _shut(self)
        stock(self)

    threading.Thread.start = start  # type: ignore[method-assign]


def _shut(thread: Any) -> None:
    """Change how the manager registers whose thread this is, unless it is not as it is known."""
    try:
        manager = thread._target.__self__
        gate = _Gate(manager)
        register = manager.create_reg_message
        manager.create_reg_message = functools.partial(gate.register, register)
    except Exception as error:
        log.warning("this manager is not as gc_warm knows it, and has no gate: %r", error)


class _Gate:
    """Keeps a manager from asking for tasks until its workers are ready.

    Args:
        manager: Parsl's manager.

    Raises:
        AttributeError, TypeError: It is not as it is known here.
    """

    def __init__(self, manager: Any) -> None:
        self._workers = range(manager.worker_count)
        self._drain_time: float = manager.drain_time  # inf where the job does not drain
        self._stop: threading.Event = manager._stop_event
        self._marks = manager._tasks_in_progress
        self._outgoing = manager.pending_result_queue

        for attribute, kind in ((self._marks, DictProxy), (self._outgoing, Queue)):
            if not isinstance(attribute, kind):
                raise TypeError(f"{attribute!r} is no {kind.__name__}")

    def register(self, stock: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the message that the manager registers with, which has room for no task.

        Args:
            stock: The manager's own method.
        """
        message = stock()
        try:
            if "max_capacity" not in message:
                raise KeyError("max_capacity")

            threading.Thread(
                target=self._open, args=(message,), name="gc_warm-gate", daemon=True
            ).start()
        except Exception as error:
            log.warning("this manager has no gate, and asks for tasks at once: %r", error)
            return message
        return {**message, "max_capacity": 0}

    def _open(self, message: dict[str, Any]) -> None:
        """Register with the room that there is, once the workers are ready."""
        try:
            self._wait()
        except Exception as error:
            log.warning("tasks are asked for: who is ready cannot be seen any more: %r", error)
            self._stop.wait(_HELPER_LOSS)

        if not self._stop.is_set():
            self._outgoing.put(pickle.dumps(message))

    def _wait(self) -> None:
        begun = time.monotonic()
        bound = self._bound()
        log.info(
            "no tasks are asked for until %d workers have preloaded, or for %.0f s",
            len(self._workers),
            bound,
        )

        while late := self._late():
            if time.monotonic() - begun >= bound:
                log.warning(
                    "tasks are asked for after %.0f s, although there are workers that have not "
                    "preloaded: %s",
                    bound,
                    ", ".join(map(str, late)),
                )
                return
            if self._stop.wait(_WATCH_INTERVAL):
                return

        log.info(
            "ready %d: tasks are asked for after %.1f s",
            len(self._workers),
            time.monotonic() - begun,
        )

    def _bound(self) -> float:
        """Return for how many seconds the gate may be shut.

        Half of a job's time is left for tasks: a worker that is never ready, in one job after the
        other, would keep them waiting for ever.
        """
        until_drain = self._drain_time - time.time()
        left = deadline.time_left()
        until_end = until_drain if left is None else min(until_drain, left)
        return max(0.0, min(BOUND, until_end / 2))

    def _late(self) -> list[int]:
        """Return the workers that have not said that they are ready."""
        marks = set(self._marks.keys())
        return [number for number in self._workers if boot.ready_mark(number) not in marks]
