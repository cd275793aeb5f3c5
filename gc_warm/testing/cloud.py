"""LocalCloud: the service of this package on sockets, for the unmodified SDK and the unmodified endpoint daemon.

HTTP for requests and AMQP for commands, tasks and results, on loopback only. Each service has secrets of its own, which every request
and every connection has to bring; they are passed on in environment variables and in answers, and are in no command line and no log.

For one's own machine. The SDK's local mode is plain HTTP on one fixed port, so that on a shared login node another user could take
the port first and be sent what was meant for this service.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import logging
import math
import os
import secrets
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

from globus_compute_common import messagepack
from globus_compute_sdk.sdk.utils.uuid_like import as_uuid
from pika import BasicProperties

from gc_warm.testing import guard, worker_main
from gc_warm.testing.amqp import Broker
from gc_warm.testing.runners import remove, usable_folder
from gc_warm.testing.service import Service, ServiceError, TaskRunner

log = logging.getLogger("gc_warm")

PORT = 5000
"""The port that the SDK's local mode asks, and no other."""

_RESULT_QUEUES = "results-of-"  # before the id of a task group
_COMPUTE_SCOPE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"  # occurs in each of Globus Compute's own scopes
_ASK_AGAIN = 5.0  # seconds before a user endpoint that has not come is asked for again; it takes about as long to start
_LOST_AFTER = 30.0  # seconds: longer than the ten at most that an endpoint waits before it connects again
_SILENT_AFTER = 120.0  # seconds: four of the usual heartbeats, and longer than any start
_LOOK = 1.0  # seconds between looks at whether tasks wait for a user endpoint that is not there


class LocalCloud:
    """A Globus Compute service of one's own, on this machine, for as long as the object lives; usable with ``with``.

    `environment` makes any script, and ``globus-compute-endpoint``, use it. `gc_warm.testing.daemon.EndpointDaemon` starts an endpoint.

    Args:
        port: Where HTTP is answered. The SDK knows no other than the default; 0 takes any that is free.

    Attributes:
        service: What answers.
        broker: What carries commands, tasks and results.
        folder: The user directory of endpoints and clients, which is removed at the end.
        mark: What the processes of its endpoints have in common, in the variable `gc_warm.testing.guard.MARK`.
        port: Where HTTP is answered.
        environment: The variables that an unmodified program needs. They hold secrets.

    Raises:
        OSError: The port is taken.

    Example:
        >>> from gc_warm.testing.cloud import LocalCloud
        >>> with LocalCloud(port=0) as cloud:
        ...     cloud.environment["GLOBUS_SDK_ENVIRONMENT"]
        'local'
    """

    def __init__(self, port: int = PORT) -> None:
        self.service = Service()
        self._pid = os.getpid()
        self._cores: dict[str, _CoreEndpoint] = {}
        self._groups: set[str] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._closing = contextlib.ExitStack()  # from the last to the first, each whatever comes of the others
        self.mark = uuid.uuid4().hex
        try:
            self.folder = tempfile.mkdtemp(prefix="gc_warm-")
            self._closing.callback(remove, self.folder)
            usable_folder(self.folder)
            self._closing.callback(guard.dismiss, guard.start(self.mark, self.folder))
            self._closing.callback(guard.end_all, self.mark, self.folder)
            self._identity = _Identity()
            self.broker = Broker("local", secrets.token_urlsafe(24))
            self._closing.callback(self.broker.close)
            for queue, take in (("results", self._take_result), ("heartbeats", self._take_heartbeat)):
                self.broker.bind(queue, "#", queue)
                self.broker.tap(queue, take)
            self._closing.callback(self.service.close)
            self._thread(self._tend)
            self._closing.callback(self._ending.set)
            self.port = self._listen(port)
        except BaseException:
            self._closing.close()
            raise
        self.environment = {
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"http://localhost:{self.port}",
            "GLOBUS_COMPUTE_CLIENT_ID": self._identity.id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": self._identity.secret,
            "GLOBUS_COMPUTE_USER_DIR": self.folder,
            **_without_proxy(),
        }

    def close(self) -> None:
        """End the service; what waits for it fails. Idempotent. A forked child has none to end."""
        if os.getpid() == self._pid:
            self._closing.close()

    def __enter__(self) -> LocalCloud:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def online(self, endpoint_id: str) -> bool:
        """Whether an endpoint has registered and listens for commands."""
        with self._lock:
            core = self._cores.get(endpoint_id)
        return core is not None and core.online

    def _thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"gc_warm-cloud-{target.__name__}", daemon=True)
        thread.start()
        self._closing.callback(thread.join)

    def _listen(self, port: int) -> int:
        """On both loopback addresses, since programs ask "localhost", and nobody else is to answer at the other one."""
        taken = None
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            if family == socket.AF_INET6 and not _has_ipv6():
                continue
            try:
                server = _HttpServer(family, (address, taken or port), self)
            except OSError as error:
                raise OSError(f"port {taken or port} on {address} cannot be had ({error.strerror}): {_PORT_ADVICE}") from error
            self._closing.callback(server.server_close)
            self._thread(server.serve_forever)
            self._closing.callback(server.shutdown)
            taken = server.server_port
        assert taken
        return taken

    def answer(self, method: str, path: str, query: str, body: Any) -> Any:
        """What `Service.handle` answers, and what needs to know of sockets.

        Raises:
            ServiceError: The service would answer with an error.
        """
        if path == "/v2/get_amqp_result_connection_url":
            return {"queue_prefix": _RESULT_QUEUES, "connection_url": self.broker.url}
        if method == "POST" and path == "/v3/endpoints":
            return self._register(str(uuid.uuid4()), body)
        if method == "PUT" and path.startswith("/v3/endpoints/"):
            return self._register(path.rpartition("/")[2], body)
        answer: Any = self.service.handle(method, path, query, body)
        if path.endswith("/submit") and body.get("create_queue"):
            self._deliver_results(answer["task_group_id"])
        return answer

    def _register(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        endpoint_id = str(as_uuid(endpoint_id))
        body = {**body, "metadata": dict(body.get("metadata") or {})}
        with self._lock:
            core = self._cores.setdefault(endpoint_id, _CoreEndpoint(endpoint_id, self.broker, self._identity))
        core.begin()
        self.service.add_endpoint(core.make_runner, endpoint_id, registration=body, is_online=lambda: core.online)
        log.info("endpoint %s (%s) has registered", endpoint_id, body.get("endpoint_name"))
        return core.registered()

    def _deliver_results(self, group_id: str) -> None:
        with self._lock:
            if group_id in self._groups:
                return
            self._groups.add(group_id)
        queue = _RESULT_QUEUES + group_id
        self.broker.declare(queue)

        def deliver(packed: bytes) -> None:
            self.broker.publish("", queue, packed, BasicProperties(timestamp=int(time.time()), headers={}))

        self.service.subscribe(group_id, deliver)

    def _user_endpoints(self) -> list[_UserEndpoint]:
        with self._lock:
            return [user_endpoint for core in self._cores.values() for user_endpoint in core.user_endpoints.values()]

    def _take_result(self, _properties: BasicProperties, body: bytes) -> None:
        result: Any = messagepack.unpack(body)
        task_id = str(result.task_id)
        if not any(user_endpoint.finish(task_id, body) for user_endpoint in self._user_endpoints()):
            log.debug("task %s has already ended: this result of it is one too many", task_id)

    def _take_heartbeat(self, _properties: BasicProperties, body: bytes) -> None:
        report: Any = messagepack.unpack(body)
        for user_endpoint in self._user_endpoints():
            if user_endpoint.id == str(report.endpoint_id):
                user_endpoint.hear(report.global_state)

    def _tend(self) -> None:
        """Look after user endpoints for which tasks wait."""
        while not self._ending.wait(_LOOK):
            for user_endpoint in self._user_endpoints():
                user_endpoint.tend()


class _Identity:
    """Who one is for this service, with the secrets that prove it."""

    def __init__(self) -> None:
        self.id, self.secret = str(uuid.uuid4()), secrets.token_urlsafe(32)
        self._tokens = {server: secrets.token_urlsafe(32) for server in ("auth.globus.org", "funcx_service")}
        self.person = {"sub": self.id, "id": self.id, "username": f"{self.id}@local", "name": "local", "email": "local@localhost"}

    def is_proven(self, path: str, authorization: str) -> bool:
        """Whether a request to *path* with this header comes from somebody who knows the secret."""
        if path == "/v2/oauth2/token":
            expected = "Basic " + base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()
        else:
            expected = "Bearer " + self._tokens["auth.globus.org" if path.startswith(("/v2/oauth2/", "/v2/api/")) else "funcx_service"]
        return hmac.compare_digest(authorization.encode(), expected.encode())

    def answer(self, path: str, body: Any) -> Any:
        """The part of Globus Auth that a client with a secret asks for."""
        if path == "/v2/oauth2/token":
            return self._grant(set(body.get("scope", [""])[0].split()))
        if path == "/v2/oauth2/userinfo":
            return {**self.person, "identity_set": [self.person]}
        if path == "/v2/api/identities":
            return {"identities": [self.person]}
        return {"consents": []}

    def _grant(self, scopes: set[str]) -> dict[str, Any]:
        """Exactly one token for each resource server of which a scope was asked for: the SDK insists."""
        compute = {scope for scope in scopes if _COMPUTE_SCOPE in scope}
        asked = {"auth.globus.org": scopes - compute, "funcx_service": compute}
        first, *others = [self._token(server, found) for server, found in asked.items() if found] or [self._token("auth.globus.org", set())]
        return {**first, "other_tokens": others}

    def _token(self, server: str, scopes: set[str]) -> dict[str, Any]:
        words = {"scope": " ".join(sorted(scopes)), "token_type": "Bearer", "resource_server": server}
        return {**words, "access_token": self._tokens[server], "expires_in": 172800, "refresh_token": None, "state": None}


class _CoreEndpoint:
    """An endpoint's daemon, as the service knows it: it listens for commands to start user endpoints."""

    def __init__(self, endpoint_id: str, broker: Broker, identity: _Identity) -> None:
        self.id, self.broker, self._identity = endpoint_id, broker, identity
        self.user_endpoints: dict[str, _UserEndpoint] = {}
        self.began = time.monotonic()
        self._commands = f"{endpoint_id}.commands"

    @property
    def online(self) -> bool:
        """Whether somebody listens for commands."""
        return self.broker.consumers(self._commands) > 0

    def begin(self) -> None:
        """Be ready for a daemon that is about to listen: it would refuse commands that are older than three minutes."""
        self.began = time.monotonic()
        self.broker.declare(self._commands)
        self.broker.purge(self._commands)

    def registered(self) -> dict[str, Any]:
        """What a daemon is told when it has registered."""
        return {**self.queues(self.id), "command_queue_info": {"connection_url": self.broker.url, "queue": self._commands}}

    def queues(self, endpoint_id: str) -> dict[str, Any]:
        """Where the endpoint or user endpoint of that id finds its tasks, and leaves results and heartbeats."""

        def towards(exchange: str) -> dict[str, Any]:
            how = {"exchange": exchange, "routing_key": endpoint_id, "mandatory": True, "properties": {"delivery_mode": 2}}
            return {"connection_url": self.broker.url, "exchange": exchange, "queue": exchange, "queue_publish_kwargs": how}

        tasks = {"connection_url": self.broker.url, "exchange": "tasks", "queue": f"{endpoint_id}.tasks"}
        ways = {"task_queue_info": tasks, "result_queue_info": towards("results"), "heartbeat_queue_info": towards("heartbeats")}
        return {"endpoint_id": endpoint_id, **ways}

    def make_runner(self, config: Mapping[str, Any], runtime: Mapping[str, Any]) -> TaskRunner:
        """See `gc_warm.testing.service.MakeRunner`."""
        made = _UserEndpoint(self, config, runtime)
        self.user_endpoints = {**self.user_endpoints, made.id: made}  # a new mapping: others may just be looking through it
        log.info("tasks with %s are for %s", json.dumps(config), made.name)
        return made

    def ask_for(self, user_endpoint: _UserEndpoint) -> None:
        """Tell the daemon to start a user endpoint; one that runs is left as it is."""
        opts = {"user_opts": user_endpoint.config, "user_runtime": user_endpoint.runtime, "amqp_creds": self.queues(user_endpoint.id)}
        command = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {"name": user_endpoint.name, **opts},
            "globus_effective_identity": self._identity.id,
            "globus_username": self._identity.person["username"],
            "globus_identity_set": [self._identity.person],
        }
        properties = BasicProperties(content_type="application/json", content_encoding="utf-8", timestamp=round(time.time()))
        self.broker.publish("", self._commands, json.dumps(command).encode(), properties)


@dataclass
class _OpenTask:
    """A task without a result: when it was submitted, and when its user endpoint first had nothing to do in spite of it."""

    future: Future[bytes] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    missed: float = math.inf


class _UserEndpoint:
    """The tasks of one user endpoint, which takes them from a queue; a `TaskRunner`.

    A task ends with its result; when the user endpoint cannot be started; when that has had nothing to do for a while, although it
    took the task; or when nothing has been heard of it for long, although its endpoint is online.
    """

    def __init__(self, core: _CoreEndpoint, config: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
        self.id, self.config, self.runtime = str(uuid.uuid4()), config, runtime
        self.name = f"uep.{core.id}.{self.id}"
        self._core, self._broker = core, core.broker
        self._queue = f"{self.id}.tasks"
        self._broker.declare(self._queue)
        self._lock = threading.Lock()
        self._open: dict[str, _OpenTask] = {}
        self._asked = self._heard = -math.inf
        self._patience = _SILENT_AFTER
        self._life: tuple[Any, Any] = (None, None)
        self._warned = False

    def submit(
        self, task_id: uuid.UUID, packed: bytes, *, function_id: str, resources: Mapping[str, Any], serializers: Sequence[str]
    ) -> Future[bytes]:
        """See `gc_warm.testing.service.TaskRunner`."""
        task = _OpenTask()
        with self._lock:
            self._open[str(task_id)] = task
        about = {"function_uuid": function_id, "task_uuid": str(task_id), "resource_specification": json.dumps(resources or None)}
        headers = {**about, **({"result_serializers": list(serializers)} if serializers else {})}
        self._broker.publish(
            "", self._queue, packed, BasicProperties(content_type="application/json", content_encoding="utf-8", headers=headers)
        )
        self._ask()
        return task.future

    def tend(self) -> None:
        """Have it started if tasks wait for it, and fail those that have waited too long without a word of it."""
        now = time.monotonic()
        with self._lock:
            tasks = dict(self._open)
        if tasks and not self._broker.consumers(self._queue):
            self._ask()
        if self._core.online:
            last = max(self._heard, self._core.began)
            self._fail([task_id for task_id, task in tasks.items() if now - max(last, task.submitted) > self._patience], _SILENT)

    def _ask(self) -> None:
        """Have it started, if the endpoint is online and has not just been asked."""
        now = time.monotonic()
        if self._core.online and now - self._asked >= _ASK_AGAIN:
            self._asked = now
            self._core.ask_for(self)

    def finish(self, task_id: str, packed: bytes) -> bool:
        """Hand on a task's result; whether there was such a task, and this is its first."""
        with self._lock:
            task = self._open.pop(task_id, None)
        if task is not None:
            task.future.set_result(packed)
        return task is not None

    def hear(self, state: Mapping[str, Any]) -> None:
        """Take notice of a heartbeat, or of the message that it could not be started."""
        self._heard = now = time.monotonic()
        self._patience = max(_SILENT_AFTER, 4 * state.get("heartbeat_period", 0))
        if "error" in state:
            self._fail_all(f"the user endpoint could not be started: {state['error']}")
            return
        life = state.get("posix_pid"), state.get("start_unix")
        if life != self._life:  # its first heartbeat may be older than the tasks that it has taken meanwhile
            self._life = life
            self._miss(lambda task: math.inf)
        elif "outstanding_tasks" in state:
            self._compare(state["outstanding_tasks"] + self._broker.depth(self._queue), now)
            self._warn_without_workers(bool(state["outstanding_tasks"]) and state.get("total_workers") == 0)

    def _warn_without_workers(self, without: bool) -> None:
        if without and not self._warned:
            log.warning("%s has tasks, and no worker yet. What its blocks have to say is in %s/submit_scripts", self.name, self.name)
        self._warned = without

    def _compare(self, held: int, now: float) -> None:
        """A task that is not there when nothing is, and a while later again, is lost. Among others, none can be told from them."""
        with self._lock:
            tasks = dict(self._open)
        if held >= len(tasks):
            self._miss(lambda task: math.inf)
        elif held == 0:
            self._fail([task_id for task_id, task in tasks.items() if now - task.missed > _LOST_AFTER], _LOST)
            self._miss(lambda task: min(task.missed, now) if now - task.submitted > _LOST_AFTER else math.inf)

    def _miss(self, since: Callable[[_OpenTask], float]) -> None:
        with self._lock:
            for task in self._open.values():
                task.missed = since(task)

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            tasks = list(self._open)
        self._broker.purge(self._queue)
        self._fail(tasks, reason)

    def _fail(self, tasks: list[str], reason: str) -> None:
        for task_id in tasks:
            self.finish(task_id, worker_main.pack_failure(uuid.UUID(task_id), RuntimeError(reason)))

    def shutdown(self) -> None:
        """See `gc_warm.testing.service.TaskRunner`."""
        self._fail_all("the endpoint was deleted, or its service closed")


_LOST = "the user endpoint took the task and no longer has it: it was ended meanwhile, or the result was lost on its way"
_SILENT = "nothing has been heard of the user endpoint for a long time: it hangs, or cannot start; its logs may know why"


class _HttpServer(ThreadingHTTPServer):
    """HTTP on one loopback address; closing it also ends the connections that clients keep."""

    daemon_threads = False  # they are waited for
    request_queue_size = 128

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], cloud: LocalCloud) -> None:
        self.address_family, self.cloud = family, cloud
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
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the service logs what matters."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        identity = self.server.cloud._identity
        proven = identity.is_proven(path, self.headers.get("Authorization") or "")
        try:
            length, limit = int(self.headers.get("Content-Length") or 0), _REQUEST_LIMIT if proven else 2**16
            sent = self.rfile.read(min(max(length, 0), limit))  # also of a stranger, who may look for the answer only then
            if not proven:
                raise ServiceError(401, "UNAUTHORIZED", _STRANGER)
            if not 0 <= length <= limit or "Transfer-Encoding" in self.headers:
                raise ServiceError(413, "REQUEST_TOO_LARGE", f"a request has to say how long it is, and at most {limit} bytes")
            self.connection.settimeout(_KEPT)
            body = self._read(sent)
            local = path.startswith(("/v2/oauth2/", "/v2/api/"))
            status, document = 200, identity.answer(path, body) if local else self.server.cloud.answer(self.command, path, query, body)
        except ServiceError as error:
            self.close_connection = error.status in (401, 413)  # there may be more of it
            status, document = error.status, error.body()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            refusal = ServiceError(422, "REQUEST_INVALID", f"{self.command} {path} cannot be read: {type(error).__name__}: {error}")
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
_KEPT = 600  # seconds that an idle connection is kept
_PORT_ADVICE = "end what uses it, another `gc-warm up` or test perhaps; the SDK's local mode knows no other"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _without_proxy() -> dict[str, str]:
    """What keeps the secrets from a proxy, where one is set: "localhost" is meant literally."""
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        return {}
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = ",".join(filter(None, ["localhost,127.0.0.1", others]))
    return {"NO_PROXY": value, "no_proxy": value}
