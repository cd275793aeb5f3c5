"""A local service's HTTP server on one loopback address, for clients that know its secrets."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from gc_warm.local.auth import Identity, is_for_auth
from gc_warm.local.complaints import OUT_OF_DESCRIPTORS, Complaints
from gc_warm.local.service import ServiceError

log = logging.getLogger("gc_warm")

Answer = Callable[[Identity, str, str, str, Any], Any]
"""Returns the document of the answer to a request.

It takes the identity that asks, and method, path, query and body of the request."""

PORT_ADVICE = (
    "end what uses it, another `gc-warm up` or test perhaps; the SDK's local mode knows no other"
)
"""The advice for a user whose port is taken."""

_STRANGER = (
    "the request does not bring the secrets that were printed when this service was started, "
    "the last time"
)
_REQUEST_LIMIT = 2**31  # bytes
_STRANGER_LIMIT = 2**16  # bytes, of a client that has not proven its identity
_STRANGER_TIMEOUT = 10  # seconds, for all of the request of such a client
_STRANGERS = 128  # connections of such clients at once, each with a thread
_FRESH = 1  # second, in which an honest client proves its identity
_IDLE_TIMEOUT = 600  # seconds that an idle connection is kept


class HttpServer(ThreadingHTTPServer):
    """HTTP on one loopback address; closing it also ends the connections that clients keep.

    Clients that have not proven their identity are few at once, and not for long: where there are
    too many, the one that came first is cut off. While all have only just come, others wait.

    Args:
        family: The family of the address.
        address: The address and port to listen on; 0 for any port that is free.
        identities: The identities of which requests have to prove one; it answers for Globus Auth
            itself. There may be more of them later.
        answer: Called for each other request, on the thread of its connection.
    """

    daemon_threads = False  # they are waited for
    request_queue_size = 128

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        identities: Sequence[Identity],
        answer: Answer,
    ) -> None:
        self.address_family = family
        self.identities = identities
        self.answer = answer
        self._connections: set[socket.socket] = set()
        self._strangers: dict[socket.socket, float] = {}  # and when each has come, in this order
        self._fewer_strangers = threading.Condition()
        self._complaints = Complaints("HTTP")
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of a host name, which may take its time."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; where there is no descriptor left for it, say so, and try later.

        Raises:
            OSError: There is none; the caller takes it for a client that has gone.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._complaints.add(OUT_OF_DESCRIPTORS)
                with self._fewer_strangers:
                    self._cut_off_first(_FRESH)
                time.sleep(_FRESH / 10)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, as `ThreadingHTTPServer` does, and remember it.

        Args:
            request: The connection's socket.
            client_address: The client's address and port.
        """
        self._connections.add(request)
        with self._fewer_strangers:
            while len(self._strangers) >= _STRANGERS and not self._cut_off_first(_FRESH):
                self._fewer_strangers.wait(_FRESH / 10)
            self._strangers[request] = time.monotonic()

        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut off clients that take too long to prove their identity.

        `serve_forever` calls this at least twice a second.
        """
        with self._fewer_strangers:
            while self._cut_off_first(_STRANGER_TIMEOUT):
                pass

    def trust(self, request: Any) -> None:
        """Count a connection no longer among those of strangers.

        Args:
            request: The connection's socket, whose client has proven its identity, or has gone.
        """
        with self._fewer_strangers:
            self._strangers.pop(request, None)
            self._fewer_strangers.notify()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, as `ThreadingHTTPServer` does, and forget it.

        Args:
            request: The connection's socket.
        """
        self._connections.discard(request)
        self.trust(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log quietly that a client went away in the middle, which is no news.

        Args:
            request: The connection's socket.
            client_address: The client's address and port.
        """
        log.debug("a connection ended early", exc_info=True)

    def server_close(self) -> None:
        """Close the server and all its connections, and wait for their threads."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def _cut_off_first(self, age: float) -> bool:
        """Cut off the stranger who came first, if that was so many seconds ago."""
        stranger = next(iter(self._strangers), None)
        if stranger is None or time.monotonic() - self._strangers[stranger] < age:
            return False

        del self._strangers[stranger]
        with contextlib.suppress(OSError):  # it has just ended by itself
            stranger.shutdown(socket.SHUT_RDWR)

        return True


def has_ipv6() -> bool:
    """Return whether this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False

    return True


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_TIMEOUT
    server: HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the service logs what matters."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        authorization = self.headers.get("Authorization") or ""
        proven = [each for each in self.server.identities if each.is_proven(path, authorization)]

        try:
            body = self._receive(bool(proven))
            document = self._document(proven[0], path, query, body)
            status = 200
        except ServiceError as error:
            if error.status in (401, 413):  # there may be more of the request
                self.close_connection = True
            status = error.status
            document = error.body()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__}: {error}"
            reason = f"{self.command} {path} cannot be read: {problem}"
            refusal = ServiceError(422, "REQUEST_INVALID", reason)
            status = refusal.status
            document = refusal.body()

        self._send(status, document)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _receive(self, proven: bool) -> Any:
        """Return the decoded body of the request, if it is one to answer."""
        length = int(self.headers.get("Content-Length") or 0)
        limit = _REQUEST_LIMIT if proven else _STRANGER_LIMIT
        if proven:
            self.server.trust(self.connection)
        # also that of a stranger, who may look for the answer only then
        encoded = self.rfile.read(min(max(length, 0), limit))

        if not proven:
            raise ServiceError(401, "UNAUTHORIZED", _STRANGER)
        if not 0 <= length <= limit or "Transfer-Encoding" in self.headers:
            reason = f"a request has to say how long it is, and at most {limit} bytes"
            raise ServiceError(413, "REQUEST_TOO_LARGE", reason)

        if encoded and "json" in self.headers.get("Content-Type", ""):
            return json.loads(encoded)
        return parse_qs(encoded.decode())

    def _document(self, identity: Identity, path: str, query: str, body: Any) -> Any:
        if is_for_auth(path):
            return identity.answer(path, body)
        return self.server.answer(identity, self.command, path, query, body)

    def _send(self, status: int, document: Any) -> None:
        encoded = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)
