"""The knowledge that the workers of a manager share, and the tasks that wait between them.

It is in memory that they share already: Parsl counts idle workers in a number of multiprocessing,
which is in a file without a name, whose descriptor each worker inherits. Behind that number there
is room for more. So nothing has to be found by a name, nothing is left behind, and the last process
that has it takes it along.

A state is written as a whole, to the one of two places that holds no valid one; then eight bytes
say which is valid. A kill leaves the old state or the new one. What a task holds is written before
the state that names it, to where nothing else is.

Who reads or writes has the lock of the task queue, see `gc_warm.hooks.queues`. That a worker lives
is shown by a lock of its own, on one byte of the file, which the kernel releases when it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

_FORMAT = b"gcwarm01"  # changes when a worker of another version could not read the state

# places in the file, far behind what multiprocessing has in it
_HEADER = 1 << 24
_STATES = _HEADER + 4096
_STATE_SIZE = 1 << 20
_PAYLOADS = _STATES + 2 * _STATE_SIZE
_LIVES = 1 << 40  # of locks, which need no bytes

_PAYLOADS_SIZE = 64 << 20
"""The most bytes of tasks that wait here: /dev/shm may be small, and what is in it is memory."""

_HINTS_KEPT = 256

_Value = TypeVar("_Value")


@dataclass
class Waiting:
    """A task that waits in the pool.

    Attributes:
        task_id: The interchange's number of it.
        hint: The fingerprint of its hint; None for a task that has none, which waits in the pipe.
        since: When it was first seen, on the clock that all processes of a node share.
        place: Where its message begins in the file.
        size: The bytes of the message.
        left: When it was first left though a worker was idle; 0.0 if that never was so.
        passed: When a later one was first preferred to it; 0.0 if that never was so.
    """

    task_id: int
    hint: bytes | None
    since: float
    place: int = 0
    size: int = 0
    left: float = 0.0
    passed: float = 0.0


@dataclass(frozen=True)
class Needs:
    """The state that a hint stands for, as its last task has shown.

    Attributes:
        states: Fingerprints of the state that it used; none where nothing is known of that.
        seconds: How long the loads of that state took.
    """

    states: frozenset[bytes]
    seconds: float


@dataclass
class Seat:
    """A worker, as the others know it.

    Attributes:
        pid: Its process.
        idle: Whether it waits for a task.
        used: When its latest task ended.
        holds: The hints whose state it holds.
        doing: The hint of the task that it runs.
        loading: Whether that task loads state now.
        called: When it was told of a task that it has not taken yet; 0.0 if there is none.
    """

    pid: int
    idle: bool = False
    used: float = 0.0
    holds: frozenset[bytes] = frozenset()
    doing: bytes | None = None
    loading: bool = False
    called: float = 0.0


@dataclass
class State:
    """All that the workers of a manager share.

    Attributes:
        token: What their sockets have in their names.
        tasks: The tasks that wait here, in the order in which they came.
        arriving: The task that is being moved from the pipe; None if there is none.
        head: The task at the head of the pipe, if it stays there until a worker takes it.
        seats: The workers, by their numbers.
        needs: What tasks with a hint have used.
        watcher: The number of the idle worker that waits for what comes into the pipe.
        alarm: When somebody has to look at the tasks again, though nothing has come.
    """

    token: str
    tasks: list[Waiting] = field(default_factory=list)
    arriving: int | None = None
    head: Waiting | None = None
    seats: dict[int, Seat] = field(default_factory=dict)
    needs: dict[bytes, Needs] = field(default_factory=dict)
    watcher: int | None = None
    alarm: float = float("inf")

    def note(self, hint: bytes, needs: Needs) -> None:
        """Note what the last task with a hint has used.

        Args:
            hint: The fingerprint of the hint.
            needs: What it has used.
        """
        keep_latest(self.needs, hint, needs)


class Pool:
    """The state that is shared, and the messages of the tasks in it.

    Args:
        descriptor: The file, open for reading and writing.
        number: The worker's own number; None for a reader that is no worker.

    Raises:
        OSError: There is no room for it.
        ValueError: Another version of gc_warm has begun it in another form.
    """

    def __init__(self, descriptor: int, number: int | None = None) -> None:
        self._file = descriptor
        self._number = number
        self._generation = 0
        self._state: State | None = None  # as in the file, in that generation

        os.posix_fallocate(descriptor, _HEADER, _PAYLOADS - _HEADER)
        written = os.pread(descriptor, len(_FORMAT), _HEADER + 8)
        if not written.strip(b"\0"):
            self.commit(State(secrets.token_hex(16)))
            os.pwrite(descriptor, _FORMAT, _HEADER + 8)
        elif written != _FORMAT:
            raise ValueError(f"the workers of this manager share a state in the form {written!r}")

        if number is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LIVES + number)

    @contextlib.contextmanager
    def opened(self) -> Iterator[State]:
        """Give the state, for whoever has the lock; what was not committed is forgotten."""
        try:
            yield self._read()
        except BaseException:
            self._generation = -1
            raise

    def _read(self) -> State:
        (generation,) = struct.unpack("<Q", os.pread(self._file, 8, _HEADER))
        if self._state is None or generation != self._generation:
            place = _STATES + generation % 2 * _STATE_SIZE
            (size,) = struct.unpack("<Q", os.pread(self._file, 8, place))
            self._state = pickle.loads(os.pread(self._file, size, place + 8))
            self._generation = generation
        return self._state

    def commit(self, state: State) -> None:
        """Make a state the one that all see.

        Args:
            state: The state.

        Raises:
            OSError: It is too large.
        """
        written = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        if len(written) + 8 > _STATE_SIZE:
            raise OSError(f"the state of the workers has grown to {len(written)} bytes")

        (generation,) = struct.unpack("<Q", os.pread(self._file, 8, _HEADER))
        place = _STATES + (generation + 1) % 2 * _STATE_SIZE
        _write(self._file, struct.pack("<Q", len(written)) + written, place)

        # eight bytes in one page are written as a whole
        os.pwrite(self._file, struct.pack("<Q", generation + 1), _HEADER)
        self._generation = generation + 1
        self._state = state

    def put(self, state: State, message: bytes) -> int | None:
        """Write a message to where there is none.

        Args:
            state: The state, which is to name it then.
            message: The message.

        Returns:
            Its place; None if there is no room.
        """
        place = _PAYLOADS
        for task in sorted(state.tasks, key=lambda task: task.place):
            if place + len(message) <= task.place:
                break
            place = task.place + task.size
        if place + len(message) > _PAYLOADS + _PAYLOADS_SIZE:
            return None

        try:
            _write(self._file, message, place)
        except OSError:  # the file system is full
            return None
        return place

    def message(self, task: Waiting) -> bytes:
        """Return the message of a task that waits here.

        Args:
            task: The task.
        """
        return os.pread(self._file, task.size, task.place)

    def forget_dead(self, state: State) -> bool:
        """Strike out workers that have ended.

        Args:
            state: The state.

        Returns:
            Whether there were any.
        """
        dead = [number for number in state.seats if not self._lives(number)]
        for number in dead:
            del state.seats[number]
        return bool(dead)

    def _lives(self, number: int) -> bool:
        if number == self._number:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LIVES + number)
        except OSError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _LIVES + number)
        return False


def keep_latest(kept: dict[bytes, _Value], hint: bytes, value: _Value) -> None:
    """Put something that belongs to a hint last into a dictionary, which forgets the oldest.

    Args:
        kept: The dictionary.
        hint: The fingerprint of the hint.
        value: What belongs to it.
    """
    kept.pop(hint, None)
    kept[hint] = value
    if len(kept) > _HINTS_KEPT:
        del kept[next(iter(kept))]


def descriptor_of(shared: Any) -> int:
    """Return the descriptor of the file that a number of multiprocessing is in.

    Args:
        shared: The number, as a `multiprocessing.Value` with a lock.

    Raises:
        AttributeError, TypeError, ValueError: It is not as it is known here.
    """
    (arena, _, _), _ = shared.get_obj()._wrapper._state
    if arena.fd < 0 or arena.size > _HEADER:
        raise ValueError("the shared number is in no file, or in one of another kind")
    return int(arena.fd)


def _write(descriptor: int, data: bytes, place: int) -> None:
    """Write all of the data: one call may write a part."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, place)
        place += written
        rest = rest[written:]
