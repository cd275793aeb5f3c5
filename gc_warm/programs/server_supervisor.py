"""The supervisor of a server, which may serve several workers and outlive the one that started it.

It is the supervisor of a program (`gc_warm.programs.supervisor`) with three differences:

- the server belongs to an *owner*, a process that need not be the parent of the supervisor: a
  worker, or the manager of a node's workers. The server ends with it.
- The supervisor listens on a socket in the server's folder. Whoever connects is told the status of
  the server, a line of JSON, and again whenever it changes. Words that can be said to it, a line
  each: ``ready`` (the server has answered, and is used until the connection is closed), ``end
  WHY``, and ``end-unused WHY``, which is done if nobody else uses it.
- What the server prints goes to a log file of bounded size. The end of it is in the last status.

At the end the folder is removed, and then connections are closed: all that the server had is given
back by then. The supervisor holds a lock on a file in the folder as long as the folder has its
name, so that nobody starts the server anew before that.

A worker runs `main` in a Python that has nothing but the standard library and this package, with
two descriptors, the socket and the lock, and the folder as arguments, and writes to its standard
input what is to be started, as a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

from gc_warm.programs import supervisor

_LOG_SIZE = 4 * 2**20  # bytes, of this file and the one before it
_TAIL_SIZE = 4000  # bytes of the log in the last status
_CHUNK = 65536
_SPARE_DESCRIPTORS = 16
_LONGEST_LINE = 4096  # bytes, the last of a line, in which the pattern is looked for
_PATTERN_TIMEOUT = 1.0  # seconds of processor time; some patterns never come to an end


class ServerSupervisor(supervisor.Supervisor):
    """One server with everything that descends from it.

    Args:
        listener: A socket, bound in the server's folder.
        folder: The server's folder.
        launch: What is to be started, as `gc_warm.programs.server` describes it.
    """

    def __init__(self, listener: socket.socket, folder: str, launch: dict[str, Any]) -> None:
        self._started = launch["owner_started"]
        super().__init__(listener, launch["owner"])
        self._asked = "interrupt"  # a server does not read its input
        self._connections: dict[int, socket.socket] = {}
        # some are needed to see the owner, and to end everything
        self._most_descriptors = os.sysconf("SC_OPEN_MAX") - _SPARE_DESCRIPTORS
        self._users: set[int] = set()  # those of the connections whose other ends use the server
        self._status: dict[str, Any] = {
            "state": "starting",
            "supervisor": os.getpid(),
            "pid": None,
            "exit": None,
            "why": "",
            "tail": "",
            **launch["address"],
        }

        self._launch = launch
        pattern = launch["pattern"]
        self._pattern = re.compile(*pattern) if pattern else None
        self._line = b""  # what has come of a line, while the pattern is looked for
        self._log = _Log(os.path.join(folder, "log"))

        self._output, self._write_end = os.pipe()
        os.set_blocking(self._output, False)
        os.dup2(self._write_end, 1)
        os.dup2(self._write_end, 2)
        os.close(self._write_end)
        self._poll.register(self._output, select.POLLIN)

        listener.setblocking(False)

    def serve(self) -> None:
        """Run the server to its end, and tell everybody how it ended."""
        try:
            os.chdir(self._launch["cwd"])
            if self._launch["cpus"]:
                os.sched_setaffinity(0, self._launch["cpus"])
        except OSError as error:
            self.say(f"failed {error}")
        else:
            self.run(self._launch["command"])

        self._pattern = None  # too late
        self._drain()
        self._accept()
        tail = self._log.tail.decode(errors="replace")
        self._status.update(state="ended", tail=tail)
        self._tell(self._connections.values())

    def say(self, line: str) -> None:
        """Note what has become of the server; its end is told once all of it is over."""
        what, _, detail = line.partition(" ")
        if what == "started":
            self._status["pid"] = int(detail)
        elif what == "failed":
            self._status["why"] = f"cannot be started: {detail}"
        elif not self._status["why"]:  # it has ended by itself
            self._status["exit"] = int(detail)

    def _worker_waits(self) -> bool:
        """Return whether the owner is there, and nobody has asked for the end."""
        self._drain()
        new = self._accept()
        # what was said before they came is heard before they are told anything
        for connection in list(self._connections.values()):
            if connection not in new and self._hear(connection):
                return False
        self._tell(new)
        # what has ended has no start time, and so had an owner that ended before the launch
        return bool(start_time(self._worker) == self._started != "")

    def _accept(self) -> list[socket.socket]:
        """Return the connections that have come, which are not told anything yet."""
        new: list[socket.socket] = []
        while True:
            try:
                connection, _ = self._control.accept()
            except OSError:  # there is nobody else
                return new
            if connection.fileno() >= self._most_descriptors:
                connection.close()  # the other end tries again
                continue
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection, select.POLLIN)
            new.append(connection)

    def _hear(self, connection: socket.socket) -> bool:
        """Do what a connection asks for; return whether it is to end the server."""
        try:
            said = connection.recv(4096).decode(errors="replace")
        except BlockingIOError:
            return False
        except OSError:
            said = ""
        if not said:
            self._poll.unregister(connection)
            del self._connections[connection.fileno()]
            self._users.discard(connection.fileno())
            connection.close()
            return False

        for line in said.split("\n"):
            word, _, why = line.partition(" ")
            if word == "ready":
                self._status["state"] = "ready"
                self._users.add(connection.fileno())
            is_unused = not self._users - {connection.fileno()}
            if word == "end" or (word == "end-unused" and is_unused):
                self._status["why"] = why
                return True
            if word == "end-unused":
                self._tell([connection])
        return False

    def _drain(self) -> None:
        """Write what the server has printed to the log, and look for the pattern in it."""
        for _ in range(64):  # then others have their turn
            try:
                chunk = os.read(self._output, _CHUNK)
            except OSError:
                return
            if not chunk:  # the server has closed it
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._output)
                return

            self._log.write(chunk)
            if self._pattern is not None:
                self._look_for_pattern(self._pattern, chunk)

    def _look_for_pattern(self, pattern: re.Pattern[str], chunk: bytes) -> None:
        """Look for the pattern in each line, also in one that has no end yet."""
        lines = (self._line + chunk).split(b"\n")
        self._line = lines[-1][-_LONGEST_LINE:]
        texts = [line[-_LONGEST_LINE:].decode(errors="replace").rstrip("\r") for line in lines]

        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _PATTERN_TIMEOUT)
            is_found = any(map(pattern.search, texts))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except TimeoutError as error:
            self._pattern = None
            self._log.write(f"\n{error}: {pattern.pattern!r}\n".encode(errors="replace"))
            return

        if is_found:
            self._pattern = None
            self._status["state"] = "ready"
            self._tell(self._connections.values())

    def _tell(self, connections: Iterable[socket.socket]) -> None:
        """Tell connections the status."""
        line = (json.dumps(self._status) + "\n").encode()
        for connection in connections:
            with contextlib.suppress(OSError):  # it is gone, or does not listen
                connection.sendall(line)


class _Log:
    """A log file of bounded size, and the end of it in memory.

    Args:
        path: The file; with ``.1`` behind it, the one before.
    """

    def __init__(self, path: str) -> None:
        self.tail = b""
        self._path = path
        self._file = self._open()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Write to the file, if there is room, and begin another one when it is full."""
        self.tail = (self.tail + chunk)[-_TAIL_SIZE:]
        with contextlib.suppress(OSError):  # a full disk keeps nobody from serving
            if self._size + len(chunk) > _LOG_SIZE:
                self._begin_another()
            self._size += os.write(self._file, chunk)

    def _begin_another(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # there was no room for another, before
            os.replace(self._path, f"{self._path}.1")
        full = self._file
        self._file = self._open()
        self._size = 0
        os.close(full)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def start_time(pid: int) -> str:
    """Return when a process began, in ticks since the boot; nothing if it has ended.

    With the process id it tells a process from a later one of the same id.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def give_up(folder: str) -> None:
    """Remove a server's folder, whose name is free for the next server at once.

    What is in it goes one by one, and would take files of the next server with it.

    Args:
        folder: The folder.
    """
    given_up = f"{folder}-{time.time_ns()}"
    with contextlib.suppress(OSError):
        os.rename(folder, given_up)
        supervisor.remove(given_up)


def _stop_search(*args: object) -> None:
    raise TimeoutError("gc_warm has given up the search for the pattern `ready`, which takes long")


def main() -> None:
    """Supervise what is to be started; the last arguments are two descriptors and the folder."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in supervisor.IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _stop_search)

    *descriptors, folder = sys.argv[-3:]
    for descriptor in descriptors:
        os.set_inheritable(int(descriptor), False)
    listener = socket.socket(fileno=int(descriptors[0]))
    supervisor.become_subreaper()

    try:
        # a line, since a child of the worker may keep the pipe open
        launch = json.loads(sys.stdin.readline())

        # its connections stay open until the folder is gone
        server = ServerSupervisor(listener, folder, launch)
        server.serve()
    finally:
        os.chdir("/")
        give_up(folder)
