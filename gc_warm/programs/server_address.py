"""Addresses of servers on this node, and whom a port of theirs belongs to."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

_Socket = socket.socket  # in the class below, the name means the path of one

_REST_SIZE = 2**16  # bytes of an answer of which only the status is asked
_REST_SECONDS = 0.1  # and seconds for them
_WAIT_INTERVAL = 0.25  # seconds

_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


class ServerAddress(str):
    """The address of a server, as a URL.

    Attributes:
        socket: Path of its Unix socket, for a server that was given ``{socket}``; else None.
        port: Its port on 127.0.0.1, for one that was given ``{port}``; else None.
        token: The secret that was made at its start, for one that was given ``{token}``; else None.
    """

    socket: str | None
    port: int | None
    token: str | None

    @classmethod
    def of(cls, address: Mapping[str, Any]) -> ServerAddress:
        """Return the address in a supervisor's status."""
        path = address["socket"]
        url = f"http://127.0.0.1:{address['port']}"
        if path:
            url = f"http+unix://{urllib.parse.quote(path, safe='')}"

        made = cls(url)
        made.socket = path
        made.port = address["port"]
        made.token = address["token"]
        return made

    def http(self, timeout: float = 60.0) -> http.client.HTTPConnection:
        """Return a connection to the server, as of `http.client`.

        Args:
            timeout: Seconds for each wait for the server.
        """
        if self.socket is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        return _UnixConnection(self, timeout)

    def ask(self, path: str, timeout: float) -> int:
        """Return the status of the server's answer to a path.

        Args:
            path: The path, such as ``/health``.
            timeout: Seconds for the answer.

        Raises:
            OSError: The server does not answer, or not as HTTP has it.
        """
        deadline = time.monotonic() + timeout
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")

        with self.connect(timeout) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            answer = _read(connection, len("HTTP/1.1 200"), deadline)
            status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
            if status is None:
                raise OSError(f"this is not HTTP: {answer[:80]!r}")

            # the rest may come slowly, or never end; but most servers log what they cannot send
            with contextlib.suppress(OSError):
                _read(connection, _REST_SIZE, min(deadline, time.monotonic() + _REST_SECONDS))
        return int(status[1])

    def connect(self, timeout: float | None) -> _Socket:
        """Return a socket that is connected to the server.

        Args:
            timeout: Seconds for each wait for the server; None for any time.
        """
        if self.socket is None:
            return socket.create_connection(("127.0.0.1", self.port or 0), timeout)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(self.socket)
        except BaseException:
            connection.close()
            raise
        return connection


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, address: ServerAddress, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = self._address.connect(self.timeout)


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Read until there are so many bytes, or more, or the connection is closed."""
    read = b""
    while len(read) < size:
        chunk = receive(connection, deadline)
        if not chunk:
            break
        read += chunk
    return read


def receive(connection: socket.socket, deadline: float) -> bytes:
    """Return what comes next on a connection; nothing if it is closed.

    The waits are short, so that the time-out of a task, an asynchronous exception, comes in time.

    Args:
        connection: The connection.
        deadline: The time, of `time.monotonic`, until which something is waited for.

    Raises:
        TimeoutError: Nothing has come.
        OSError: The connection was reset.
    """
    while True:
        left = deadline - time.monotonic()
        connection.settimeout(max(0.001, min(left, _WAIT_INTERVAL)))
        try:
            return connection.recv(65536)
        except TimeoutError:
            if left <= _WAIT_INTERVAL:
                raise


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def is_taken(port: int, processes: Iterable[int]) -> bool:
    """Return whether somebody listens on a port, and none of these processes does.

    Where the system does not show what a process has open, it may be that one.

    Args:
        port: The port, on whichever address of this machine.
        processes: Process ids.
    """
    listeners = _listeners(port)
    try:
        return bool(listeners) and not any(listeners & _sockets_of(pid) for pid in processes)
    except PermissionError:
        return False


def _listeners(port: int) -> set[str]:
    """Return the sockets that listen on a port, by their numbers in /proc."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:  # there may be no IPv6
            continue
        found |= {row[9] for row in rows if row[3] == _LISTENS and _port_of(row[1]) == port}
    return found


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _sockets_of(pid: int) -> set[str]:
    """Return the numbers of the sockets that a process has open."""
    found = set()
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("socket:["):
                found.add(target[len("socket:[") : -1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or has just closed one
        pass
    return found
