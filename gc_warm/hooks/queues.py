"""The queues between a manager and its workers, with locks that the kernel releases when their holder dies.

The fault. A stock worker waits for its next task with the lock of the task queue in its hands. That
lock is a POSIX semaphore, which nobody releases when its holder is killed: the others, and whoever
replaces it, then wait for ever, while the block looks well. With one worker a node, *every* kill of
the idle worker (the out-of-memory killer chooses by size, not by activity) does that.

What is done about it, in the workers alone, where the manager cannot be changed:

- The locks become record locks (``fcntl``) on the queues' own pipes. They belong to a process and
  end with it, and they need no file.
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
  once, so that its parts could be interleaved with the manager's, takes that lock as well. One that
  is not to be had was left by a worker that was killed; whoever replaces it makes it free again.

In Parsl's MPI mode a task with two results (its worker died between its announcement and its
reading, or after its result) has its nodes freed twice; the latter is so without us, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import pickletools
import queue
import struct
import termios
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from typing import Any

TESTED_PARSL = (
    "2026.7.27",  # the oldest that endpoint 4.19 takes
    "2026.8.10",
    "2026.9.7",
    "2026.9.14",
    "2026.9.28",
    "2026.10.5",
    "2026.10.12",
    "2026.10.19",
    "2026.10.26",
)
"""The versions of Parsl whose workers and managers were found to use their queues as is assumed here."""

# bytes of a pipe: the most that a user may ask for unless the machine says otherwise
_CAPACITY = 1 << 20
_PEEK = 1024  # bytes; a task's id is among the first hundred
# what a pipe may hold less than its size says, since it counts in pages
_PAGES = 2 * os.sysconf("SC_PAGE_SIZE")
# the same for a pipe that is not empty, with something small that the manager may add
_MARGIN = 4 * os.sysconf("SC_PAGE_SIZE")
# seconds, after which a lock that the manager takes for moments belongs to nobody any more
_ORPHANED = 10.0
_NONBLOCK = 2  # SPLICE_F_NONBLOCK
# seconds between looks at a message of which the manager has written a part, or at how much it has
# read
_ARRIVING = 0.0005

Announce = Callable[[int], None]


class TaskQueue:
    """A worker's end of the task queue, in place of the `multiprocessing.Queue` it stands for.

    Args:
        stock: The queue as the manager has made it.
        announce: Called with a task's id before the task leaves the pipe.

    Attributes:
        pipe: The descriptor that its lock is on.

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
        self._capacity = _widen(self.pipe)
        if self._capacity < _PAGES:
            raise OSError(
                f"the task queue's pipe holds {self._capacity} bytes, since this user's pipes have all that they may"
            )
        self._peek = _Peek(self._descriptor)
        self._manager = os.getppid()
        # another has it; what matters is that there is such a lock
        with contextlib.suppress(BlockingIOError):
            fcntl.lockf(self.pipe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(self.pipe, fcntl.LOCK_UN)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """As that of the queue it stands for.

        Raises:
            queue.Empty: No task has come.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 0.0 if not block else None if end is None else max(0.0, end - time.monotonic())
            if not self._reader.poll(left):
                raise queue.Empty
            with _locked(self.pipe):
                # another may have been quicker
                message = self._take() if self._reader.poll(0) else None
            if message is not None:
                self._taken()
                return ForkingPickler.loads(message)

    def _take(self) -> bytes | memoryview:
        self._wait_for(4)
        (size,) = struct.unpack_from("!i", self._peek())
        self._wait_for(4 + (min(size, _PEEK - 4) if size >= 0 else _PEEK - 4))
        self._announce(_task_id(self._peek()[4 if size >= 0 else 12 :]))
        if size < 0 or size + 4 > self._capacity - _PAGES:
            return bytes(self._reader.recv_bytes())
        self._wait_for(4 + size)
        return memoryview(os.read(self._descriptor, size + 4))[4:]

    def _wait_for(self, size: int) -> None:
        """Wait until so many bytes have arrived: the manager writes what is large in parts."""
        while _available(self._descriptor) < size:
            if os.getppid() != self._manager:
                raise queue.Empty
            time.sleep(_ARRIVING)


class ResultQueue:
    """A worker's end of the result queue: what is put has been written when `put` returns.

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
        self._capacity = _widen(self._descriptor)
        self._manager = os.getppid()
        # no worker has it now, unless one that this one replaces
        with _locked(self._descriptor), self._managers_lock():
            pass

    def put(self, result: bytes) -> None:
        """Write *result* as the manager will read it; where the manager has ended, nobody will."""
        message = ForkingPickler.dumps(result)
        size = len(message)
        # as multiprocessing.connection does
        header = struct.pack("!i", size) if size <= 0x7FFFFFFF else struct.pack("!iQ", -1, size)
        self._counted()
        rest = memoryview(header + bytes(message))
        with _locked(self._descriptor), contextlib.ExitStack() as held:
            if not self._wait_for_room(len(rest)):
                return
            if max(len(rest), _available(self._descriptor)) > self._capacity // 4:
                held.enter_context(self._managers_lock())
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def _wait_for_room(self, size: int) -> bool:
        """Wait until *size* bytes can be written at once, if they ever can: what is there may fill its pages by half."""
        while (
            there := _available(self._descriptor)
        ) and 2 * there + size > self._capacity - _MARGIN:
            if os.getppid() != self._manager:
                return False
            time.sleep(_ARRIVING)
        return True

    @contextlib.contextmanager
    def _managers_lock(self) -> Iterator[None]:
        self._managers.acquire(timeout=_ORPHANED)
        try:
            yield
        finally:
            # it has been released by the manager, which was only slow
            with contextlib.suppress(ValueError):
                self._managers.release()


class ReadyCount:
    """The number of idle workers that a manager logs, counted under a lock of *pipe* and not of its own."""

    def __init__(self, stock: Any, pipe: int) -> None:
        self._number = stock.get_obj()
        self._pipe = pipe

    def get_lock(self) -> contextlib.AbstractContextManager[None]:
        """To be held while `value` changes."""
        return _locked(self._pipe)

    @property
    def value(self) -> int:
        """The number, which other workers change, too."""
        return int(self._number.value)

    @value.setter
    def value(self, number: int) -> None:
        self._number.value = number


class _Peek:
    """Looks at the beginning of what is in a pipe, and leaves it there."""

    def __init__(self, descriptor: int) -> None:
        self._tee: Any = ctypes.CDLL(None, use_errno=True).tee
        self._tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
        self._tee.restype = ctypes.c_ssize_t
        self._source = descriptor
        self._out, self._in = Pipe(duplex=False)
        try:
            self(_NONBLOCK)  # a machine that forbids this is to say so now
        except BlockingIOError:
            return

    def __call__(self, flags: int = 0) -> bytes:
        copied = self._tee(self._source, self._in.fileno(), _PEEK, flags)
        if copied < 0:
            raise OSError(ctypes.get_errno(), "the task queue's pipe cannot be looked into")
        return os.read(self._out.fileno(), copied)


@contextlib.contextmanager
def _locked(pipe: int) -> Iterator[None]:
    """Hold the lock on a pipe that it can be written to with; it is released when this process dies, too."""
    fcntl.lockf(pipe, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(pipe, fcntl.LOCK_UN)


def _widen(pipe: int) -> int:
    """Let the pipe hold as much as may be; returns how many bytes that is."""
    # it stays as it is where this user's pipes have all that they may
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CAPACITY)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def _available(descriptor: int) -> int:
    number = bytearray(4)
    fcntl.ioctl(descriptor, termios.FIONREAD, number)
    return int(struct.unpack("i", number)[0])


def _task_id(beginning: bytes) -> int:
    """The id in a pickled task, of which the *beginning* is enough: it comes first.

    Raises:
        ValueError: It does not.
    """
    named = False
    for _, argument, _ in pickletools.genops(io.BytesIO(beginning)):
        if named and isinstance(argument, int) and argument >= 0:
            return argument
        named = named or argument == "task_id"
    raise ValueError(f"a task without an id: {beginning[:100]!r}")
