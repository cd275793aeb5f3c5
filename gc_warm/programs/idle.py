"""The thread that reads what programs write between calls.

A program that nobody reads stands still once the pipe is full. One thread, for all programs of the
process, reads them while they are idle, and in a call until its protocol begins to read or write;
it is there as long as there is a program. The thread that calls takes a pipe out of its hands by a
lock and one system call, without waking it.

The thread ends before a fork and begins again after it: a process without other threads may be
forked without harm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import weakref
from typing import Protocol

log = logging.getLogger("gc_warm")

# seconds that the thread waits at a time; an exception may have kept it from being told to end
_LONGEST_WAIT = 10.0

_END_TIMEOUT = 5.0  # seconds for the thread to end; it never waits for anything but output


class Readable(Protocol):
    """A pipe that the thread reads."""

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is output."""

    def read_idle(self) -> None:
        """Read the output that is there, unless a call does that."""


class IdleReader:
    """The thread of one process, and the pipes that it reads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # garbage may be collected in the middle, and end a program
        self._pipes: dict[int, weakref.ref[Readable]] = {}
        self._epoll: select.epoll | None = None
        self._bell: socket.socket | None = None  # can always be written to, which wakes the thread
        self._thread: threading.Thread | None = None
        self._leaving: list[threading.Thread] = []  # have been told to end

    def add(self, pipe: Readable) -> None:
        """Take in a pipe, which is not read yet."""
        with self._lock:
            # first: from here on, no other pipe that garbage may take along is the last one
            self._pipes[pipe.fileno()] = weakref.ref(pipe, self._note_lost)

            epoll = self._epoll
            if epoll is None:
                epoll = select.epoll()
                self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                epoll.register(self._bell, 0)
                self._epoll = epoll
            epoll.register(pipe.fileno(), 0)
            self._run_thread()

    def remove(self, pipe: Readable) -> None:
        """Give up a pipe, before its descriptor is closed."""
        with self._lock:
            known = self._pipes.get(pipe.fileno())
            if known is None or known() is not pipe or self._epoll is None:
                return
            self.change(pipe.fileno(), None)
            del self._pipes[pipe.fileno()]
            is_last = not self._pipes

        if is_last:
            self.stop()
            self._close()
            self.resume()  # for one that has come meanwhile

    def change(self, descriptor: int, events: int | None) -> None:
        """Change whether a pipe is read.

        Args:
            descriptor: That of the pipe; one that is closed or unknown does no harm.
            events: ``EPOLLIN`` to read it, 0 to leave it alone, None to forget it.
        """
        epoll = self._epoll
        try:
            if epoll is None:
                return
            if events is None:
                epoll.unregister(descriptor)
            else:
                epoll.modify(descriptor, events)
        except (OSError, ValueError):
            return

    def _note_lost(self, reference: weakref.ref[Readable]) -> None:
        """Note that a pipe was given up by an exception, and collected as garbage."""
        for descriptor, known in list(self._pipes.items()):
            if known is reference:
                self._pipes.pop(descriptor, None)
        self._awaken()

    def _awaken(self) -> None:
        bell = self._bell
        if bell is not None:
            self.change(bell.fileno(), select.EPOLLOUT)

    def _run_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="gc_warm-idle", daemon=True)
            # there can be no more threads, or the interpreter ends: then it goes without
            with contextlib.suppress(RuntimeError):
                self._thread.start()

    def _run(self) -> None:
        epoll = self._epoll
        while epoll is not None and self._pipes and threading.current_thread() is self._thread:
            for descriptor, _ in epoll.poll(_LONGEST_WAIT):
                self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        known = self._pipes.get(descriptor)
        pipe = None if known is None else known()
        try:
            if pipe is not None:
                pipe.read_idle()
                return
        except Exception:
            log.exception("the output of an idle program cannot be read")

        # nobody is there any more; or it is the bell, which rings until all have heard it
        self._leaving = [thread for thread in self._leaving if thread.is_alive()]
        if not self._leaving:
            self.change(descriptor, 0)

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        with self._lock:
            thread = self._thread
            self._thread = None
            if thread is None or thread is threading.current_thread() or not thread.is_alive():
                return
            self._leaving = [*self._leaving, thread]

        self._awaken()
        thread.join(_END_TIMEOUT)

    def resume(self) -> None:
        """Run the thread again after `stop`."""
        with self._lock:
            if self._pipes:
                self._run_thread()

    def _close(self) -> None:
        with self._lock:
            epoll = self._epoll
            bell = self._bell
            if epoll is None or bell is None or self._pipes:
                return

            self._epoll = None
            epoll.close()
            bell.close()

    def abandon(self) -> None:
        """Close a forked child's copies of the descriptors; the pipes are the parent's."""
        # without the lock, which no thread is left to release
        if self._epoll is not None and self._bell is not None:
            self._epoll.close()
            self._bell.close()


reader = IdleReader()
"""That of this process."""


def _before_fork() -> None:
    reader.stop()


def _after_fork_in_parent() -> None:
    reader.resume()


def _after_fork_in_child() -> None:
    global reader
    reader.abandon()
    reader = IdleReader()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
