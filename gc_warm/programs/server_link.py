"""Connections of those who use a server to its supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

from gc_warm.programs import commands
from gc_warm.programs.server_address import ServerAddress, receive

_DYING_SECONDS = 2.0  # in which a server that refuses connections is found to have ended
_PROBE_SECONDS = 0.1  # in which one that dies closes a connection that it had still accepted

ANSWER_TIMEOUT = 5.0
"""Seconds; a supervisor that ends its server does not answer for one."""


class Link:
    """A connection to the supervisor of a server.

    Args:
        connection: The connected socket; closed with the link.
        timeout: Seconds for the first status.

    Attributes:
        status: The last status that the supervisor has told; empty if it ended before.
        is_over: Whether the server has ended, with all that it had started.
    """

    def __init__(self, connection: socket.socket, timeout: float = ANSWER_TIMEOUT) -> None:
        self.status: dict[str, Any] = {}
        self.is_over = False
        self._connection = connection
        self._pid = os.getpid()
        self._unread = b""
        self.wait(timeout, for_news=True)

    @property
    def is_ended(self) -> bool:
        """Whether the server has ended, or is being ended."""
        return self.is_over or bool(self.status["state"] == "ended")

    @property
    def address(self) -> ServerAddress:
        """The address of the server."""
        return ServerAddress.of(self.status)

    def wait(self, seconds: float, *, for_news: bool = False) -> None:
        """Read what the supervisor tells, until all is over or the time is.

        Args:
            seconds: The time.
            for_news: End with the first status that is told, unless it is the last one.
        """
        deadline = time.monotonic() + seconds
        while not self.is_over:
            try:
                read = receive(self._connection, deadline)
            except TimeoutError:
                return
            except ConnectionError:
                read = b""

            self.is_over = not read
            *lines, self._unread = (self._unread + read).split(b"\n")
            if lines:
                self.status = json.loads(lines[-1])
                if for_news and self.status["state"] != "ended":
                    return

    def say(self, line: str) -> None:
        """Tell the supervisor a line."""
        with contextlib.suppress(OSError):  # it has ended
            self._connection.sendall(f"{line}\n".encode())

    def end(self, why: str) -> None:
        """Have the supervisor end the server."""
        self.say(f"end {why}")

    def is_ending(self) -> bool:
        """Return whether the server has ended, or closes what connects to it, and ends then."""
        self.wait(0.001)
        if self.is_over:
            return True

        try:
            with self.address.connect(_DYING_SECONDS) as probe:
                probe.settimeout(_PROBE_SECONDS)
                if probe.recv(1):
                    return False
        except TimeoutError:  # it waits for a request
            return False
        except OSError:
            pass
        self.wait(_DYING_SECONDS)
        return self.is_over

    def ending(self) -> str:
        """Return how the server ended, in words."""
        status = self.status["exit"]
        if self.status["why"]:
            return str(self.status["why"])
        if status is None:
            return "has lost its supervisor"
        if status < 0:
            return f"was ended by {commands.signal_name(-status)}"
        return f"ended with exit status {status}"

    def log_end(self) -> str:
        """Return the end of the server's log, as it is quoted in messages."""
        return quoted(self.status["tail"])

    def close(self) -> None:
        """Close the connection, also where a forked child has it, too."""
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):  # the supervisor has closed it
                self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def quoted(text: str) -> str:
    """Return the end of a log, as it stands in messages.

    Args:
        text: The end of the log.
    """
    return f"\n--- the end of its log ---\n{text}" if text.strip() else ""
