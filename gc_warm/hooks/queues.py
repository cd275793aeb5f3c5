"""The queues between a manager and its workers, with locks that end with their holder.

The fault: a stock worker waits for its next task with the lock of the task queue in its hands. That
lock is a POSIX semaphore, which nobody releases when its holder is killed: the other workers, and
the one that replaces it, then wait for ever, while the block looks well. With one worker a node,
*every* kill of the idle worker (the out-of-memory killer chooses by size, not by activity) does
that.

The remedy, in the workers alone, since the manager cannot be changed:

- The locks become record locks (``fcntl``) on the queues' own pipes. They belong to a process, the
  kernel releases them when it ends, and they need no file.
- A worker that waits holds no lock: it waits for the pipe to be readable, and takes the lock for
  the moment of reading.
- A task is announced to the manager *before* it is taken from the pipe, so that there is no moment
  in which it is only in the memory of a process that may be killed. A worker that dies in between
  has its task reported as lost although another will run it; the interchange drops the second
  result.
- Task and result cross the pipe in one system call each, which does not wait, and so is not divided
  by a kill: a task is read when all of it has come, a result is written when there is room for all
  of it. That is up to about the mebibyte that a pipe holds. Beyond that, a kill in the very middle
  of reading or writing still leaves the pipe out of step.
- The manager writes to the result pipe, too, under the stock lock: a result that may not fit at
  once, so that its parts could be interleaved with the manager's, takes that lock as well. A stock
  lock that is not to be had was left by a worker that was killed; the worker that replaces it makes
  the lock free again.

- A worker that waits, for a task, for the manager's lock or for room in a pipe, looks at its
  manager, and ends when that has ended. The pipes do not tell: workers hold both ends of each.

In Parsl's MPI mode a task with two results has its nodes freed twice. Its worker died between
announcing and reading it, or after its result; the latter is so without gc_warm, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import logging
import multiprocessing
import os
import pickletools
import queue
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any

log = logging.getLogger("gc_warm")

# bytes of a pipe: the most that a user may ask for unless the machine says otherwise
_CAPACITY = 1 << 20
_PEEK = 1024  # bytes; a task's id is among the first hundred

# bytes that a pipe may hold less than its size says, since it counts in pages
_PAGES = 2 * os.sysconf("SC_PAGE_SIZE")

# the same for a pipe that is not empty, with something small that the manager may add
_MARGIN = 4 * os.sysconf("SC_PAGE_SIZE")

# seconds, after which a lock that the manager takes for moments belongs to nobody any more
_ORPHANED = 10.0

# seconds between looks at a manager whose lock is waited for
_MANAGER_INTERVAL = 0.5
_NONBLOCK = 2  # SPLICE_F_NONBLOCK

# seconds between looks at a message of which the manager has written a part, or at how much it has
# read
_ARRIVING = 0.0005

Announce = Callable[[int], None]


@dataclass(frozen=True)
class Head:
    """The task at the head of a pipe.

    Attributes:
        task_id: The interchange's number of it.
        size: The bytes of its message; None if a pipe does not hold them.
    """

    task_id: int
    size: int | None


class TaskQueue:
    """A worker's end of the task queue, in place of the `multiprocessing.Queue` it stands for.

    Args:
        stock: The queue as the manager has made it.
        announce: Called with a task's id before the task leaves the pipe.

    Attributes:
        pipe: The descriptor that the lock is on.

    Raises:
        OSError, AttributeError: This machine or that queue lacks what is needed.
    """

    def __init__(self, stock: Queue[Any], announce: Announce) -> None:
        self._stock = stock  # it closes the pipe when nobody refers to it any more
        self._reader: Any = stock._reader  # type: ignore[attr-defined]
        self._taken: Callable[[], None] = stock._sem.release  # type: ignore[attr-defined]
        self._announce = announce

        self._descriptor = self._reader.fileno()
        self.pipe = stock._writer.fileno()  # type: ignore[attr-defined]
        self._capacity = widen(self.pipe)
        if self._capacity < _PAGES:
            raise OSError(
                f"the task queue's pipe holds {self._capacity} bytes, "
                "since this user's pipes have all that they may"
            )

        self._peek = _Peek(self._descriptor)
        self._manager = _Manager()

        # another worker may have the lock; what matters is that there are such locks here
        with contextlib.suppress(BlockingIOError):
            fcntl.lockf(self.pipe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(self.pipe, fcntl.LOCK_UN)

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

        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not wait([self._reader, *self._manager.sentinels], left):
                raise queue.Empty
            self._manager.require()

            with locked(self.pipe):
                # another worker may have been quicker
                message = self._take() if self._reader.poll(0) else None

            if message is not None:
                self._taken()
                return ForkingPickler.loads(message)

    def _take(self) -> bytes | memoryview:
        """Announce the task at the head of the pipe, then read it."""
        head = self._look()
        self._announce(head.task_id)
        return self._read(head)

    def _look(self) -> Head:
        """Return what is to be seen of the task at the head of the pipe, where there is one."""
        self._wait_for(4)
        (size,) = struct.unpack_from("!i", self._peek())

        # Connection.send_bytes() writes -1 and eight bytes more where four do not hold the size
        is_huge = size < 0
        header = 12 if is_huge else 4
        visible = _PEEK - 4 if is_huge else min(size, _PEEK - 4)
        self._wait_for(4 + visible)
        task_id = _task_id(self._peek()[header:])

        is_large = is_huge or size + 4 > self._capacity - _PAGES
        return Head(task_id, None if is_large else size)

    def _read(self, head: Head) -> bytes | memoryview:
        """Read the task at the head of the pipe.

        Args:
            head: As `_look` has returned it.
        """
        if head.size is None:
            return bytes(self._reader.recv_bytes())

        self._wait_for(4 + head.size)
        return memoryview(os.read(self._descriptor, head.size + 4))[4:]

    def _wait_for(self, size: int) -> None:
        """Wait until so many bytes have arrived: the manager writes what is large in parts."""
        while available(self._descriptor) < size:
            self._manager.require()
            time.sleep(_ARRIVING)


class ResultQueue:
    """A worker's end of the result queue: a result has been written when `put` returns.

    Args:
        stock: The queue as the manager has made it.

    Raises:
        OSError, AttributeError: This machine or that queue lacks what is needed.
    """

    def __init__(self, stock: Queue[Any]) -> None:
        self._stock = stock  # see TaskQueue
        self._descriptor = stock._writer.fileno()  # type: ignore[attr-defined]
        self._counted: Callable[[], bool] = stock._sem.acquire  # type: ignore[attr-defined]
        self._managers: Any = stock._wlock  # type: ignore[attr-defined]
        self._capacity = widen(self._descriptor)
        self._manager = _Manager()

        # frees the manager's lock: no worker has it now, unless one that this one replaces
        with locked(self._descriptor), self._managers_lock():
            pass

    def put(self, result: bytes) -> None:
        """Write a result as the manager will read it.

        Args:
            result: A serialized result.

        Raises:
            SystemExit: The manager has ended.
        """
        message = ForkingPickler.dumps(result)
        size = len(message)
        # as multiprocessing.connection does
        header = struct.pack("!i", size) if size <= 0x7FFFFFFF else struct.pack("!iQ", -1, size)

        self._counted()
        rest = memoryview(header + bytes(message))
        with locked(self._descriptor), contextlib.ExitStack() as held:
            self._wait_for_room(len(rest))
            if max(len(rest), available(self._descriptor)) > self._capacity // 4:
                held.enter_context(self._managers_lock())

            while rest:
                self._wait_for_room(len(rest))
                rest = rest[os.write(self._descriptor, rest[: self._capacity]) :]

    def _wait_for_room(self, size: int) -> None:
        """Wait until a message, or as much of it as a pipe holds, can be written at once.

        The bytes that are in the pipe may fill their pages by half.

        Args:
            size: The bytes of the message.
        """
        room = self._capacity - _MARGIN
        while (unread := available(self._descriptor)) and 2 * unread + size > room:
            self._manager.require()
            time.sleep(_ARRIVING)

    @contextlib.contextmanager
    def _managers_lock(self) -> Iterator[None]:
        end = time.monotonic() + _ORPHANED
        while not self._managers.acquire(timeout=_MANAGER_INTERVAL) and time.monotonic() < end:
            self._manager.require()

        try:
            yield
        finally:
            # where the manager was only slow, it has released the lock itself
            with contextlib.suppress(ValueError):
                self._managers.release()


def leave_results_of_dead_manager(results: Queue[Any]) -> None:
    """Have this process end although stock results wait in it for a manager that has ended.

    Python waits at the end until they are in the pipe, which nobody empties any more.

    Args:
        results: The result queue as the manager has made it.
    """
    manager = _Manager()

    def leave() -> None:
        feeder: threading.Thread | None = results._thread  # type: ignore[attr-defined]
        while feeder is not None and feeder.is_alive():
            if wait(manager.sentinels, 0):
                results.cancel_join_thread()
                return
            feeder.join(_MANAGER_INTERVAL)

    # after the queue was told that there will be no more of them, which is at 10, and before it
    # waits, which is at -5
    Finalize(None, leave, exitpriority=0)


class ReadyCount:
    """The number of idle workers that a manager logs, counted under the lock of a pipe.

    Args:
        stock: The shared number as the manager has made it; its own lock is not used.
        pipe: The descriptor whose lock is used.
    """

    def __init__(self, stock: Any, pipe: int) -> None:
        self._number = stock.get_obj()
        self._pipe = pipe

    def get_lock(self) -> contextlib.AbstractContextManager[None]:
        """Return the lock to hold while `value` changes."""
        return locked(self._pipe)

    @property
    def value(self) -> int:
        """The number, which other workers change, too."""
        return int(self._number.value)

    @value.setter
    def value(self, number: int) -> None:
        self._number.value = number


class _Manager:
    """The manager of this worker, as far as its end is concerned.

    Attributes:
        sentinels: The descriptor that is readable once the manager has ended; none in a process
            that no other one of multiprocessing has started.
    """

    def __init__(self) -> None:
        parent = multiprocessing.parent_process()
        self.sentinels = [] if parent is None else [parent.sentinel]

    def require(self) -> None:
        """End this worker if the manager has ended.

        Raises:
            SystemExit: It has.
        """
        if wait(self.sentinels, 0):
            log.critical("the manager of this worker has ended, and so does the worker")
            raise SystemExit(0)


class _Peek:
    """A look at the first bytes in a pipe, which leaves them there."""

    def __init__(self, descriptor: int) -> None:
        self._tee: Any = ctypes.CDLL(None, use_errno=True).tee
        self._tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
        self._tee.restype = ctypes.c_ssize_t

        self._source = descriptor
        self._out, self._in = Pipe(duplex=False)
        try:
            self(_NONBLOCK)  # a machine that forbids the call is to say so now
        except BlockingIOError:
            return

    def __call__(self, flags: int = 0, size: int = _PEEK) -> bytes:
        copied = self._tee(self._source, self._in.fileno(), size, flags)
        if copied < 0:
            raise OSError(ctypes.get_errno(), "the task queue's pipe cannot be looked into")
        return os.read(self._out.fileno(), copied)

    def whole(self, size: int) -> bytes | None:
        """Return so many bytes, which are there; None where a pipe for them is not to be had.

        Args:
            size: The bytes.
        """
        seen = self(size=size)
        if len(seen) < size:
            widen(self._in.fileno())
            seen = self(size=size)
        return seen if len(seen) == size else None


@contextlib.contextmanager
def locked(pipe: int) -> Iterator[None]:
    """Hold the lock on a pipe; it is released when this process dies, too.

    Args:
        pipe: A descriptor that the pipe can be written to with.
    """
    fcntl.lockf(pipe, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(pipe, fcntl.LOCK_UN)


def widen(pipe: int) -> int:
    """Let a pipe hold as much as may be, and return how many bytes that is."""
    # the pipe stays as it is where this user's pipes have all that they may
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CAPACITY)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def available(descriptor: int) -> int:
    """Return the bytes that are in a pipe.

    Args:
        descriptor: The pipe.
    """
    number = bytearray(4)
    fcntl.ioctl(descriptor, termios.FIONREAD, number)
    return int(struct.unpack("i", number)[0])


def _task_id(beginning: bytes) -> int:
    """Return the id in a pickled task, which comes first.

    Args:
        beginning: The first bytes of the task.

    Raises:
        ValueError: There is no id in them.
    """
    named = False
    for _, argument, _ in pickletools.genops(io.BytesIO(beginning)):
        if named and isinstance(argument, int) and argument >= 0:
            return argument
        named = named or argument == "task_id"
    raise ValueError(f"a task without an id: {beginning[:100]!r}")
