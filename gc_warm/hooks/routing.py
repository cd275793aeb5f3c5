"""Tasks go to workers that hold what they need, within a node.

A stock manager puts tasks into one pipe, and gives each to the worker that has waited longest: a
sequential client warms all workers of a node, and with several keys and little room all of them
take turns at being cold. With this, tasks that have a hint (`gc_warm.worker.hints`) are taken from
the pipe ahead, into a pool that the workers share, and each worker that has nothing to do looks
what is best for all that are idle, and takes its own part of that. `gc_warm.hooks.placement` has
the rules.

Tasks without a hint, and those that are too large to be copied, stay in the pipe, in their order.
Of the workers that are idle, only one waits for what comes into the pipe; it tells the others, by
a datagram, what is for them.

A kill at any moment loses nothing but the task that its worker runs, and doubles nothing:

- A task is copied to the pool, and marked as arriving, before it is read from the pipe. Whoever
  comes after a worker that died in between finds it at the head of the pipe, and reads it; or does
  not, and knows that it was read.
- A worker announces a task to its manager before it takes it from the pool. If it dies in between,
  its manager reports the task as lost, and the interchange drops the result of who takes it then:
  that is as in `gc_warm.hooks.queues`, on which all of this is built.
- The pool changes as a whole or not at all, and knows who lives, see `gc_warm.hooks.pool`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import SynchronizedBase
from typing import Any

from gc_warm.hooks import placement, registry
from gc_warm.hooks.pool import Needs, Pool, Seat, State, Waiting, descriptor_of, keep_latest
from gc_warm.hooks.queues import Announce, Head, TaskQueue, available, locked
from gc_warm.worker import hints, ledger

log = logging.getLogger("gc_warm")

_LOOK = 1.0  # seconds between looks of a worker that nobody tells anything
_WOKEN = 4  # workers that each one wakes where much waits
_STUCK = 1.0  # seconds in which a worker that was told of a task takes it, if it can


def install(arguments: Mapping[str, Any], announce: Announce) -> TaskQueue:
    """Return what a worker is to take its tasks from.

    Args:
        arguments: The arguments of Parsl's worker function, by name.
        announce: As for `gc_warm.hooks.queues.TaskQueue`.

    Raises:
        RuntimeError: This was not tested with this Parsl, or not with its MPI mode.
        OSError, AttributeError, TypeError, ValueError: This machine or those arguments lack what is
            needed.
    """
    if reason := registry.hook("warm_first").why_not():
        raise RuntimeError(reason)
    if "--enable_mpi_mode" in sys.argv:  # the manager's
        raise RuntimeError("a GlobusMPIEngine has given its tasks the nodes that they run on")
    shared = descriptor_of(arguments["ready_worker_count"])
    return RoutedQueue(arguments["task_queue"], announce, shared, arguments["worker_id"])


class RoutedQueue(TaskQueue):
    """A worker's end of the task queue that gives it what is best done here.

    Args:
        stock: The queue as the manager has made it.
        announce: Called with a task's id before the task leaves the pipe, or the pool.
        shared: The descriptor of the file that the manager's workers share.
        number: The worker's number among those of its manager.

    Raises:
        OSError, AttributeError, ValueError: This machine or that queue lacks what is needed.
    """

    def __init__(self, stock: Queue[Any], announce: Announce, shared: int, number: int) -> None:
        super().__init__(stock, announce)
        self._number = number
        self._pid = os.getpid()
        self._thread = threading.current_thread()
        self._uses = _Uses()
        self._hint: bytes | None = None  # of the task that runs here
        self._needs: dict[bytes, Needs] = {}  # what has been learned, and is to be told
        self._ended = False  # a task, since the pool was last told
        self._loads = 0  # that are under way, one within the other
        self._load_begun = 0.0
        self._load_seconds = 0.0

        with locked(self.pipe):
            self._pool = Pool(shared, number)
            with self._pool.opened() as state:
                self._bells = _Bells(state.token, number)
                state.seats[number] = Seat(self._pid, used=time.monotonic())
                self._pool.commit(state)
        ledger.watch_loads(self._note_load)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next task, as the queue it stands for does.

        Args:
            block: Whether to wait for a task.
            timeout: The most seconds to wait; None for no limit.

        Returns:
            The task.

        Raises:
            queue.Empty: No task has come.
            SystemExit: The manager has ended.
        """
        seconds = timeout if block else 0.0
        end = None if seconds is None else time.monotonic() + seconds
        self._end_task()

        while True:
            self._manager.require()
            with locked(self.pipe), self._pool.opened() as state:
                message = self._take_fast(state) or self._take_best(state)
                is_watcher = state.watcher == self._number
                alarm = state.alarm
            self._bells.ring_all()

            if message is not None:
                self._uses.begin()
                return ForkingPickler.loads(message)
            left = float("inf") if end is None else end - time.monotonic()
            if left <= 0:
                raise queue.Empty
            self._sleep(left, alarm if is_watcher else None)

    def _sleep(self, seconds: float, alarm: float | None) -> None:
        """Wait until there may be something to do.

        Args:
            seconds: The most seconds to wait.
            alarm: When to wake, for the worker that watches the pipe; None for the others.
        """
        sources: list[Any] = [self._bells.own, *self._manager.sentinels]
        longest = min(seconds, _LOOK)
        if alarm is not None:
            sources.append(self._reader)
            longest = min(longest, max(0.0, alarm - time.monotonic()))
        wait(sources, longest)
        self._bells.silence()

    def _end_task(self) -> None:
        """Learn from the task that has ended what its hint stands for."""
        if self._hint is not None:
            needs = self._uses.end()
            if needs is not None:
                self._needs[self._hint] = needs
        self._uses.look(self._hint)
        self._hint = None
        self._loads = 0
        self._load_seconds = 0.0
        self._ended = True

    def _take_fast(self, state: State) -> bytes | memoryview | None:
        """Return the task at the head of the pipe, if there is nothing to weigh up.

        That is so while nobody else is idle, nothing waits in the pool, and tasks have no hints.
        Then nothing has to be written, and what was written stays as it is.
        """
        me = state.seats.get(self._number)
        others = (seat for number, seat in state.seats.items() if number != self._number)
        if me is None or me.idle or me.doing or self._needs or state.needs or state.tasks:
            return None
        if state.arriving or any(seat.idle for seat in others) or not self._reader.poll(0):
            return None

        head = self._look()
        if self._hinted(head) is not None:
            return None
        self._announce(head.task_id)
        message = self._read(head)
        self._taken()
        return message

    def _take_best(self, state: State) -> bytes | memoryview | None:
        """Bring the pool up to date; return the task in it that this worker is to take, if any."""
        now = time.monotonic()
        self._sit_down(state, now)
        self._pool.forget_dead(state)
        self._finish_move(state)
        head = self._move(state, now)

        idle = [
            number
            for number, seat in state.seats.items()
            if seat.idle and not (seat.called and now - seat.called > _STUCK)
        ]
        more = head is not None and self._has_more(head)
        plan = placement.decide(state, idle, now, self._number if more else None)
        message = None
        mine = plan.given.get(self._number)
        if mine is not None:
            message = self._take_given(state, mine, head)

        self._tell(state, plan, now)
        if more:
            self._wake_some(state, now)
        self._pool.commit(state)
        return message

    def _has_more(self, head: Head) -> bool:
        """Return whether more than this task waits in the pipe."""
        return head.size is None or available(self._descriptor) > 4 + head.size

    def _wake_some(self, state: State, now: float) -> None:
        """Wake a few idle workers: to be woken one after the other would take too long."""
        asleep = [
            number
            for number, seat in state.seats.items()
            if seat.idle and not seat.called and number != self._number
        ]
        for number in asleep[:_WOKEN]:
            state.seats[number].called = now
            self._bells.add(number, state.seats[number])

    def _sit_down(self, state: State, now: float) -> None:
        """Note that this worker is idle, and what it has learned and holds."""
        for hint, needs in self._needs.items():
            state.note(hint, needs)
        self._needs = {}

        me = state.seats.setdefault(self._number, Seat(self._pid))
        me.pid = self._pid
        me.idle = True
        me.doing = None
        me.loading = False
        me.called = 0.0
        me.holds = self._uses.holds(state.needs)
        if self._ended:
            me.used = now
            self._ended = False

    def _finish_move(self, state: State) -> None:
        """Read the task from the pipe that a worker has copied before it died, if it is there."""
        if state.arriving is not None and self._reader.poll(0):
            head = self._look()
            if head.task_id == state.arriving:
                self._read(head)
                self._taken()
        state.arriving = None

    def _move(self, state: State, now: float) -> Head | None:
        """Move tasks from the pipe to the pool, up to one that stays; return that."""
        while self._reader.poll(0):
            head = self._look()
            message = self._hinted(head)
            place = None if message is None else self._pool.put(state, message)
            if message is None or place is None:
                if state.head is None or state.head.task_id != head.task_id:
                    state.head = Waiting(head.task_id, None, now)
                return head

            task = Waiting(head.task_id, hints.read(message), now, place, len(message))
            state.tasks.append(task)
            state.arriving = task.task_id
            self._pool.commit(state)
            self._read(head)
            self._taken()
            state.arriving = None

        state.head = None
        return None

    def _hinted(self, head: Head) -> bytes | None:
        """Return the message at the head of the pipe, if it has a hint and can be copied."""
        if head.size is None:
            return None
        self._wait_for(4 + head.size)
        seen = self._peek.whole(4 + head.size)
        if seen is None or hints.read(seen) is None:
            return None
        return seen[4:]

    def _take_given(self, state: State, task: Waiting, head: Head | None) -> bytes | memoryview:
        """Announce and take the task that the plan has for this worker."""
        me = state.seats[self._number]
        me.idle = False
        me.doing = task.hint
        self._hint = task.hint
        self._announce(task.task_id)

        if head is not None and task is state.head:
            state.head = None
            message = self._read(head)
            self._taken()
            return message
        state.tasks.remove(task)
        return self._pool.message(task)

    def _tell(self, state: State, plan: placement.Plan, now: float) -> None:
        """Tell other workers what is for them, and choose who watches the pipe from now on."""
        others = {number: task for number, task in plan.given.items() if number != self._number}
        for number in others:
            state.seats[number].called = state.seats[number].called or now
            self._bells.add(number, state.seats[number])

        # the one that is to take what is in the pipe; nobody else is to look there meanwhile
        takers = [number for number, task in others.items() if task is state.head]
        left = [
            number
            for number, seat in state.seats.items()
            if seat.idle and not seat.called and number not in others
        ]
        left.sort(key=lambda number: -state.seats[number].used)
        watcher = next(iter([*takers, *left]), None)

        is_news = watcher != state.watcher or plan.again < state.alarm
        state.watcher = watcher
        state.alarm = plan.again
        if watcher is not None and watcher != self._number and is_news:
            self._bells.add(watcher, state.seats[watcher])

    def _note_load(self, begins: bool) -> None:
        """Tell the others that a load has begun, or ended, in a task with a hint.

        Args:
            begins: Whether it has begun.
        """
        is_here = os.getpid() == self._pid and threading.current_thread() is self._thread
        if self._hint is None or not is_here:
            return
        self._loads = max(0, self._loads + (1 if begins else -1))
        if self._loads != (1 if begins else 0):
            return  # one within another

        now = time.monotonic()
        if begins:
            self._load_begun = now
        else:
            self._load_seconds += now - self._load_begun
        try:
            self._tell_of_load(self._hint, begins)
        except Exception:
            log.warning("other workers are not told of a load", exc_info=True)

    def _tell_of_load(self, hint: bytes, begins: bool) -> None:
        with locked(self.pipe), self._pool.opened() as state:
            state.seats[self._number].loading = begins
            if not begins:
                known = state.needs.get(hint)
                states = known.states if known is not None else frozenset()
                state.note(hint, Needs(states, self._load_seconds))
            self._pool.commit(state)

            watcher = state.watcher
            if watcher is not None and watcher in state.seats:
                self._bells.add(watcher, state.seats[watcher])
        self._bells.ring_all()


class _Uses:
    """The use that tasks of this worker make of the state that is loaded in it."""

    def __init__(self) -> None:
        self._mark = 0
        self._before: dict[tuple[int, float], int] = {}
        self._names: dict[tuple[int, float], bytes] = {}  # of the states that are loaded
        self._been: dict[bytes, None] = {}  # hints whose tasks have ended here, the latest last

    def begin(self) -> None:
        """Begin with a task."""
        self._mark = ledger.mark()
        self._before = {_key(holding): holding.used for holding in ledger.held()}

    def end(self) -> Needs | None:
        """Return what the task has used that has ended; None if it has lost some of that."""
        if any(event.kind in _LOSSES for event in ledger.events(since=self._mark)):
            return None

        names = set()
        seconds = 0.0
        for holding in ledger.held():
            key = _key(holding)
            loaded = holding.loaded()
            if loaded is not None and self._before.get(key) != holding.used:
                names.add(_name(loaded))
                seconds += loaded.seconds
        return Needs(frozenset(names), seconds)

    def look(self, hint: bytes | None) -> None:
        """Look what is loaded.

        Args:
            hint: The hint of the task that has ended; None if there is none.
        """
        names: dict[tuple[int, float], bytes] = {}
        for holding in ledger.held():
            key = _key(holding)
            known = self._names.get(key)
            loaded = None if known is not None else holding.loaded()
            if loaded is not None:
                known = _name(loaded)
            if known is not None:
                names[key] = known
        self._names = names

        if hint is not None:
            keep_latest(self._been, hint, None)

    def holds(self, needs: Mapping[bytes, Needs]) -> frozenset[bytes]:
        """Return the hints whose state is here.

        Where nothing is known of that state, this is so where their tasks have been.

        Args:
            needs: What is known of hints.
        """
        here = set(self._names.values())
        return frozenset(
            hint
            for hint, need in needs.items()
            if (need.states <= here if need.states else hint in self._been)
        )


_LOSSES = ("failed", "cleared", "ended", "discarded", "invalid")


def _key(holding: ledger.Holding) -> tuple[int, float]:
    """Return what tells a holding from others, and holds nothing of it."""
    return id(holding), holding.order


def _name(loaded: ledger.Loaded) -> bytes:
    """Return what is the same for the same state in all workers."""
    named = f"{loaded.name}\0{loaded.key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(named, digest_size=8).digest()


class _Bells:
    """The sockets by which workers wake each other.

    They have no file: their names are known to the network of this node only, and hold a number
    that is in the pool. Who finds one out can wake a worker, and nothing else.

    Args:
        token: What the names of this manager's workers have in common.
        number: The worker's own number.

    Attributes:
        own: The worker's own.
    """

    def __init__(self, token: str, number: int) -> None:
        self._token = token
        self._to_ring: set[bytes] = set()
        self.own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.own.setblocking(False)
        self.own.bind(self._name(number, os.getpid()))

    def add(self, number: int, seat: Seat) -> None:
        """Note that a worker is to be woken.

        Args:
            number: Its number.
            seat: Its seat.
        """
        self._to_ring.add(self._name(number, seat.pid))

    def ring_all(self) -> None:
        """Wake those that were noted."""
        for name in self._to_ring:
            with contextlib.suppress(OSError):  # it has ended, or has been woken often enough
                self.own.sendto(b"!", name)
        self._to_ring.clear()

    def silence(self) -> None:
        """Forget that this worker was woken."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.own.recv(1)

    def _name(self, number: int, pid: int) -> bytes:
        return f"\0gc_warm-{self._token}-{number}-{pid}".encode()


def give_back(arguments: Iterable[Any]) -> None:
    """Put what waits in the pool back into the pipe, for workers that know nothing of a pool.

    Args:
        arguments: Those of the manager's workers, all of which have ended.
    """
    known = list(arguments)
    stock = next(each for each in known if isinstance(each, Queue))
    shared = next(each for each in known if isinstance(each, SynchronizedBase))
    pipe = TaskQueue(stock, lambda _: None)
    pool = Pool(descriptor_of(shared))

    with pool.opened() as state:
        in_pipe = pipe._look().task_id if pipe._reader.poll(0) else None
        left = [task for task in state.tasks if state.arriving is None or task.task_id != in_pipe]
        tasks = [pickle.loads(pool.message(task)) for task in left]
        pool.commit(State(state.token))
    for task in tasks:
        stock.put(task)
