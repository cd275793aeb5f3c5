"""LocalCloud: this package's service on sockets, for the SDK and the endpoint daemon, unmodified.

HTTP for requests and AMQP for commands, tasks and results, on loopback only. Each service has
secrets of its own, which every request and every connection has to bring; they are passed on in
environment variables and in answers, and are in no command line and no log.

For one's own machine. The SDK's local mode is plain HTTP on one fixed port, so that on a shared
login node another user could take the port first and be sent what was meant for this service.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

from globus_compute_common import messagepack
from globus_compute_sdk.sdk.utils.uuid_like import as_uuid
from pika import BasicProperties

from gc_warm import processes
from gc_warm.local.amqp import Broker
from gc_warm.local.auth import Identity
from gc_warm.local.http import PORT_ADVICE, HttpServer, has_ipv6
from gc_warm.local.runners import remove, usable_folder
from gc_warm.local.service import SUBMITTER, Service
from gc_warm.local.user_endpoints import CoreEndpoint, UserEndpoint

log = logging.getLogger("gc_warm")

PORT = 5000
"""The port that the SDK's local mode asks, and no other."""

_RESULT_QUEUES = "results-of-"  # before the id of a task group
# seconds between looks at whether tasks wait for a user endpoint that is not there
_WATCH_INTERVAL = 1.0


class LocalCloud:
    """A Globus Compute service of one's own, on this machine, for as long as the object lives.

    Usable with ``with``. `environment` makes any script, and ``globus-compute-endpoint``, use the
    service. `gc_warm.local.daemon.EndpointDaemon` starts an endpoint.

    Args:
        port: The port on which HTTP is answered. The SDK knows no other than the default; 0 takes
            any that is free.

    Attributes:
        service: The service itself, which answers requests.
        broker: The AMQP broker, which carries commands, tasks and results.
        folder: The user directory of endpoints and clients, which is removed at the end.
        mark: The value that the processes of its endpoints have in common, in the variable
            `gc_warm.processes.MARK`.
        port: The port on which HTTP is answered.
        environment: The variables that an unmodified program needs. They hold secrets.

    Raises:
        OSError: The port is taken.

    Example:
        >>> from gc_warm.local.cloud import LocalCloud
        >>> with LocalCloud(port=0) as cloud:
        ...     cloud.environment["GLOBUS_SDK_ENVIRONMENT"]
        'local'
    """

    def __init__(self, port: int = PORT) -> None:
        self.service = Service()
        self.mark = uuid.uuid4().hex
        self._pid = os.getpid()
        self._cores: dict[str, CoreEndpoint] = {}
        self._lock = threading.Lock()
        self._groups: set[str] = set()  # that have a queue for their results
        self._groups_lock = threading.Lock()
        self._ending = threading.Event()
        # from the last to the first, each whatever comes of the others
        self._closing = contextlib.ExitStack()

        try:
            self.folder = tempfile.mkdtemp(prefix="gc_warm-")
            self._closing.callback(remove, self.folder)
            usable_folder(self.folder)

            reaper = processes.start_reaper(self.mark, self.folder)
            self._closing.callback(processes.dismiss_reaper, reaper)
            self._closing.callback(processes.end_all, self.mark, self.folder)

            self._identity = Identity()
            self._identities = [self._identity]
            self.broker = Broker("local", secrets.token_urlsafe(24))
            self._closing.callback(self.broker.close)
            self.broker.bind("results", "#", "results")
            self.broker.tap("results", self._take_result)
            self.broker.bind("heartbeats", "#", "heartbeats")
            self.broker.tap("heartbeats", self._take_heartbeat)

            self._closing.callback(self.service.close)
            self._start_thread(self._tend)
            self._closing.callback(self._ending.set)
            self.port = self._listen(port)
        except BaseException:
            self._closing.close()
            raise

        self.environment = self._environment_of(self._identity)

    def close(self) -> None:
        """End the service; tasks that wait for it fail. Idempotent.

        In a forked child this does nothing: the service is the parent's.
        """
        if os.getpid() == self._pid:
            self._closing.close()

    def __enter__(self) -> LocalCloud:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_identity(self, username: str) -> dict[str, str]:
        """Add an identity, as whom other clients submit tasks and get results.

        The endpoints that it uses are started by `environment`; one that maps identities to local
        users finds this one by its name. Queues are shared: whoever knows an identity's secrets can
        read what others send.

        Args:
            username: The name of the identity, such as ``alice@example.org``.

        Returns:
            The variables that its clients need. They hold secrets.
        """
        identity = Identity(username)
        self._identities.append(identity)
        return self._environment_of(identity)

    def online(self, endpoint_id: str) -> bool:
        """Return whether an endpoint has registered and listens for commands.

        Args:
            endpoint_id: The endpoint's id.

        Returns:
            True if it has registered and listens.
        """
        with self._lock:
            core = self._cores.get(endpoint_id)
        return core is not None and core.online

    def answer(self, identity: Identity, method: str, path: str, query: str, body: Any) -> Any:
        """Answer one request: as `Service.handle` does, or here if that needs to know of sockets.

        Args:
            identity: The identity that asks.
            method: GET, POST, ...
            path: The path with its leading slash, such as ``/v3/functions``.
            query: The part of the URL that follows the question mark, undecoded.
            body: The decoded body.

        Returns:
            The document of the answer.

        Raises:
            ServiceError: The service would answer with an error.
        """
        if path == "/v2/get_amqp_result_connection_url":
            return {"queue_prefix": _RESULT_QUEUES, "connection_url": self.broker.url}
        if method == "POST" and path == "/v3/endpoints":
            return self._register(str(uuid.uuid4()), body)
        if method == "PUT" and path.startswith("/v3/endpoints/"):
            return self._register(path.rpartition("/")[2], body)

        if path.endswith("/submit"):
            body = {**body, SUBMITTER: identity.id}
        answer: Any = self.service.handle(method, path, query, body)
        if path.endswith("/submit") and body.get("create_queue"):
            self._make_result_queue(answer["task_group_id"])
        if method == "DELETE" and path.startswith("/v2/endpoints/"):
            with self._lock:
                self._cores.pop(path.rpartition("/")[2], None)
        return answer

    def _environment_of(self, identity: Identity) -> dict[str, str]:
        return {
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"http://localhost:{self.port}",
            "GLOBUS_COMPUTE_CLIENT_ID": identity.id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": identity.secret,
            "GLOBUS_COMPUTE_USER_DIR": self.folder,
            **_without_proxy(),
        }

    def _listen(self, port: int) -> int:
        """Answer HTTP on both loopback addresses, and return the port.

        Programs ask "localhost", and nobody else is to answer at the other address.
        """
        taken = None
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            if family == socket.AF_INET6 and not has_ipv6():
                continue

            wanted = taken or port
            try:
                server = HttpServer(family, (address, wanted), self._identities, self.answer)
            except OSError as error:
                reason = f"port {wanted} on {address} cannot be had ({error.strerror})"
                if error.errno == errno.EADDRINUSE:
                    reason = f"{reason}: {PORT_ADVICE}"
                raise OSError(reason) from error

            self._closing.callback(server.server_close)
            self._start_thread(server.serve_forever)
            self._closing.callback(server.shutdown)
            taken = server.server_port

        assert taken
        return taken

    def _start_thread(self, target: Callable[[], None]) -> None:
        name = f"gc_warm-cloud-{target.__name__}"
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._closing.callback(thread.join)

    def _register(self, endpoint_id: str, body: Any) -> dict[str, Any]:
        endpoint_id = str(as_uuid(endpoint_id))
        body = {**body, "metadata": dict(body.get("metadata") or {})}
        with self._lock:
            core = self._cores.setdefault(
                endpoint_id, CoreEndpoint(endpoint_id, self.broker, self._identities)
            )

        core.begin()
        self.service.add_endpoint(
            core.make_runner, endpoint_id, registration=body, is_online=lambda: core.online
        )
        log.info("endpoint %s (%s) has registered", endpoint_id, body.get("endpoint_name"))
        return core.registered()

    def _make_result_queue(self, group_id: str) -> None:
        """Make the queue of a task group, unless there is one.

        Results are put into it while somebody consumes it. Otherwise they wait in the service,
        which does not keep more than it has room for.
        """
        queue = _RESULT_QUEUES + group_id
        with self._groups_lock:
            if group_id not in self._groups:
                self.broker.follow(queue, self._feed(group_id, queue))
                self._groups.add(group_id)

    def _feed(self, group_id: str, queue: str) -> Callable[[bool, list[bytes]], None]:
        """Return the function that subscribes to a task group while its queue is consumed."""
        subscription = contextlib.ExitStack()

        def deliver(packed: bytes) -> None:
            properties = BasicProperties(timestamp=int(time.time()), headers={})
            self.broker.publish("", queue, packed, properties)

        def report(is_consumed: bool, left: list[bytes]) -> None:
            subscription.close()
            self.service.tasks.take_back(left)
            if is_consumed:
                subscription.callback(self.service.subscribe(group_id, deliver))

        return report

    def _drop_idle_queues(self) -> None:
        """Delete the queues of task groups that the service has forgotten."""
        with self._groups_lock:
            forgotten = self._groups - self.service.tasks.group_ids()
            for group_id in forgotten:
                self.broker.delete(_RESULT_QUEUES + group_id)
            self._groups -= forgotten

    def _user_endpoints(self) -> list[UserEndpoint]:
        with self._lock:
            return [
                user_endpoint
                for core in self._cores.values()
                for user_endpoint in core.user_endpoints.values()
            ]

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
        """Look after user endpoints for which tasks wait, and after queues."""
        while not self._ending.wait(_WATCH_INTERVAL):
            self._drop_idle_queues()
            for user_endpoint in self._user_endpoints():
                user_endpoint.tend()


def _without_proxy() -> dict[str, str]:
    """Return variables that keep the secrets from a proxy, where one is set.

    They say that "localhost" is meant literally.
    """
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        return {}

    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = ",".join(filter(None, ["localhost,127.0.0.1", others]))
    return {"NO_PROXY": value, "no_proxy": value}
