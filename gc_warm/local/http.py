"""The service's HTTP on a loopback address."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from gc_warm.local.auth import Identity
from gc_warm.local.service import ServiceError

log = logging.getLogger("gc_warm")

Answer = Callable[[str, str, str, Any], Any]
"""Takes method, path, query and body of a request, and returns the document of the answer."""


class HttpServer(ThreadingHTTPServer):
    """HTTP on one loopback address; closing it also ends the connections that clients keep."""

    daemon_threads = False  # they are waited for
    request_queue_size = 128

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        identity: Identity,
        answer: Answer,
    ) -> None:
        self.address_family, self.identity, self.answer = family, identity, answer
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the look-up of a host name, which may take its time."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """As its base does, in a thread."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """As its base does."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""
        log.debug("a connection ended early", exc_info=True)

    def server_close(self) -> None:
        """End all connections, too, and wait for their threads."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds, for who has not proven who he is
    server: HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the service logs what matters."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        identity = self.server.identity
        proven = identity.is_proven(path, self.headers.get("Authorization") or "")
        try:
            length, limit = (
                int(self.headers.get("Content-Length") or 0),
                _REQUEST_LIMIT if proven else 2**16,
            )
            # also of a stranger, who may look for the answer only then
            sent = self.rfile.read(min(max(length, 0), limit))
            if not proven:
                raise ServiceError(401, "UNAUTHORIZED", _STRANGER)
            if not 0 <= length <= limit or "Transfer-Encoding" in self.headers:
                raise ServiceError(
                    413,
                    "REQUEST_TOO_LARGE",
                    f"a request has to say how long it is, and at most {limit} bytes",
                )
            self.connection.settimeout(_IDLE_TIMEOUT)
            body = self._read(sent)
            local = path.startswith(("/v2/oauth2/", "/v2/api/"))
            status, document = (
                200,
                identity.answer(path, body)
                if local
                else self.server.answer(self.command, path, query, body),
            )
        except ServiceError as error:
            self.close_connection = error.status in (401, 413)  # there may be more of it
            status, document = error.status, error.body()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            refusal = ServiceError(
                422,
                "REQUEST_INVALID",
                f"{self.command} {path} cannot be read: {type(error).__name__}: {error}",
            )
            status, document = refusal.status, refusal.body()
        self._send(status, document)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _read(self, sent: bytes) -> Any:
        if sent and "json" in self.headers.get("Content-Type", ""):
            return json.loads(sent)
        return parse_qs(sent.decode())

    def _send(self, status: int, document: Any) -> None:
        encoded = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


_STRANGER = "the request does not bring the secrets that were printed when this service was started, the last time"
_REQUEST_LIMIT = 2**31  # bytes
_IDLE_TIMEOUT = 600  # seconds that an idle connection is kept
PORT_ADVICE = (
    "end what uses it, another `gc-warm up` or test perhaps; the SDK's local mode knows no other"
)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
