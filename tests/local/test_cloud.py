"""The service on sockets: the SDK's unmodified classes over HTTP and AMQP.

Real workers are behind it, and nothing is on a port of others.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import globus_sdk
import pika
import psutil
import pytest
import requests
import tasks
from globus_compute_common import messagepack
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.sdk import client as sdk_client
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.sdk.batch import create_user_runtime
from pika.adapters.select_connection import IOLoop
from urllib3.connection import HTTPConnection

from gc_warm import functions
from gc_warm.local import http, task_table
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.complaints import OUT_OF_DESCRIPTORS
from gc_warm.local.runners import SpawnedRunner
from gc_warm.local.service import TaskRunner
from tests.support import MODULES, remote_text, wait_until

NOBODY = str(uuid.UUID(int=0))


class Site(LocalCloud):
    """A service on any free port, with an endpoint that spawns a worker for each user endpoint."""

    def __init__(self) -> None:
        super().__init__(port=0)
        self.endpoint_id = self.service.add_endpoint(self.make)

    def __enter__(self) -> Site:
        return self

    def make(self, *_: Any) -> TaskRunner:
        return SpawnedRunner(workers=1, pythonpath=[MODULES])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """With the worker of the user endpoint that has no options."""
    with Site() as site:
        runtime = asdict(create_user_runtime())
        site.service.runner(site.endpoint_id, {}, runtime, site._identity.id)
        yield site


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The SDK's own client.

    Only the port, which the SDK does not let one choose, is another one.
    """
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sdk_client, "get_web_service_url", lambda *_: f"http://localhost:{site.port}"
    )
    monkeypatch.setattr(Executor, "_default_task_group_id", None)
    client = Client()
    yield client

    for watcher in list(sdk_executor._RESULT_WATCHERS.values()):
        watcher.shutdown()
    assert client.app is not None
    client.app.token_storage.close()
    closable = (requests.Session, HTTPConnection, IOLoop)
    for left in [found for found in gc.get_objects() if issubclass(type(found), closable)]:
        left.close()  # which the SDK never does


@pytest.fixture
def executor(site: Site, client: Client) -> Iterator[Executor]:
    with Executor(site.endpoint_id, client=client, batch_size=1000) as executor:
        executor.api_burst_window_s = 0  # not its own throttle is looked at here
        yield executor


def test_warm_through_the_sdks_own_classes(executor: Executor) -> None:
    first, second, third = [executor.submit(functions.count).result(120) for _ in range(3)]
    assert (second, third) == (first + 1, first + 2)
    with pytest.raises(TaskExecutionFailed, match="ZeroDivisionError"):
        executor.submit(tasks.invert, 0).result(120)


CLIENT = """
import os, sys
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.sdk import client
client.get_web_service_url = lambda *_: "http://localhost:{port}"
import tasks
executor = Executor("{endpoint}")
futures = [executor.submit(tasks.same, number) for number in range(3)]
futures.append(executor.submit(tasks.invert, 0))
while not all(future.task_id for future in futures):
    pass
print(executor.task_group_id, flush=True)
os._exit(0)
"""


def test_results_are_kept_and_found_by_a_new_process(site: Site, executor: Executor) -> None:
    program = CLIENT.format(port=site.port, endpoint=site.endpoint_id)
    path = os.pathsep.join([str(MODULES), str(MODULES.parents[1])])
    group = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout

    executor.task_group_id = group.strip()
    futures = list(executor.reload_tasks())
    assert len(futures) == 4
    ends = [future.exception(120) or future.result() for future in futures]
    assert sorted(end for end in ends if isinstance(end, int)) == [0, 1, 2]
    failures = [str(end) for end in ends if isinstance(end, TaskExecutionFailed)]
    assert ["ZeroDivisionError" in failure for failure in failures] == [True]


def test_results_wait_in_the_service_until_consumed(
    site: Site, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = uuid.uuid4()
    queue = f"results-of-{group}"
    batch = client.create_batch(task_group_id=group, create_websocket_queue=True)
    function_id = client.register_function(tasks.same)
    batch.add(function_id, ("first",))
    task_ids: Any = client.batch_run(site.endpoint_id, batch)["tasks"]
    (task_id,) = task_ids[function_id]
    waiting = site.service.tasks._groups[str(group)].waiting
    wait_until(lambda: list(waiting) == [task_id], "the task has ended")
    assert site.broker.depth(queue) == 0

    def consume(acknowledge: bool) -> str:
        with pika.BlockingConnection(pika.URLParameters(site.broker.url)) as connection:
            channel = connection.channel()
            method, _, body = next(channel.consume(queue))
            if acknowledge:
                channel.basic_ack(method.delivery_tag)
            channel.close()
        result: Any = messagepack.unpack(body)
        return str(result.task_id)

    assert consume(acknowledge=False) == task_id
    wait_until(lambda: list(waiting) == [task_id], "it waits again")
    assert consume(acknowledge=True) == task_id

    monkeypatch.setattr(task_table, "KEPT_TASKS", 0)
    assert site.service.tasks.status(task_id) is not None
    assert str(group) not in site.service.tasks.group_ids()
    wait_until(lambda: queue not in site.broker._host.queues, "the queue has gone, too")


def test_reload_says_which_results_are_gone(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_table, "KEPT_BYTES", 0)
    assert executor.submit(tasks.same, 1).result(120) == 1
    (reloaded,) = executor.reload_tasks()
    assert task_table.LIMITS in remote_text(reloaded)


def test_deleted_endpoint_is_forgotten(site: Site) -> None:
    endpoint_id = site.answer(site._identity, "POST", "/v3/endpoints", "", {"endpoint_name": "x"})[
        "endpoint_id"
    ]
    assert endpoint_id in site._cores
    site.answer(site._identity, "DELETE", f"/v2/endpoints/{endpoint_id}", "", None)
    assert endpoint_id not in site._cores


def test_what_is_unknown_or_deleted(site: Site, client: Client) -> None:
    function_id = client.register_function(tasks.same)
    assert client.get_function(function_id)["function_name"] == "same"
    client.delete_function(function_id)
    batch = client.create_batch()
    batch.add(function_id, (1,))

    for call, code in (
        (lambda: client.get_function(function_id), "FUNCTION_NOT_FOUND"),
        (lambda: client.batch_run(site.endpoint_id, batch), "FUNCTION_NOT_FOUND"),
        (lambda: client.get_endpoint_status(NOBODY), "ENDPOINT_NOT_FOUND"),
        (lambda: client.get_task(NOBODY), "TASK_NOT_FOUND"),
    ):
        with pytest.raises(globus_sdk.GlobusAPIError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert (caught.value.http_status, caught.value.code) == (404, code)


def test_an_endpoint_that_allows_some_functions_and_is_deleted(site: Site, client: Client) -> None:
    allowed = client.register_function(tasks.same)
    other = client.register_function(tasks.rank)
    endpoint_id = site.service.add_endpoint(
        site.make, registration={"endpoint_name": "strict", "allowed_functions": [allowed]}
    )
    assert client.get_allowed_functions(endpoint_id)["functions"] == [allowed]

    batch = client.create_batch()
    batch.add(other)
    with pytest.raises(globus_sdk.GlobusAPIError, match="not permitted"):
        client.batch_run(endpoint_id, batch)

    assert {found["uuid"] for found in client.get_endpoints()} >= {endpoint_id, site.endpoint_id}
    client.delete_endpoint(endpoint_id)
    with pytest.raises(globus_sdk.GlobusAPIError, match="could not be resolved"):
        client.get_endpoint_status(endpoint_id)


ROUTES = [
    ("GET", "/v2/version"),
    ("POST", "/v3/functions"),
    ("GET", f"/v2/functions/{NOBODY}"),
    ("POST", f"/v3/endpoints/{NOBODY}/submit"),
    ("GET", "/v2/get_amqp_result_connection_url"),
    ("POST", "/v2/batch_status"),
    ("GET", f"/v2/taskgroup/{NOBODY}"),
    ("POST", "/v3/endpoints"),
    ("PUT", f"/v3/endpoints/{NOBODY}"),
    ("DELETE", f"/v2/endpoints/{NOBODY}"),
    ("POST", "/v2/oauth2/token"),
    ("GET", "/v2/oauth2/userinfo"),
    ("GET", "/no/such/thing"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_secrets_every_request_is_refused(site: Site, method: str, path: str) -> None:
    identity = site._identity
    strangers = [
        "",
        "Bearer",
        "Bearer ",
        "Basic Og==",
        f"Bearer {identity.id}",
        f"Bearer {identity.secret}",
        "Bearer \xe9",
    ]
    # the tokens open the other doors, and the right name without its secret none
    if "oauth2/token" in path:
        strangers += [f"Bearer {token}" for token in identity._tokens.values()]
        strangers.append("Basic " + base64.b64encode(f"{identity.id}:".encode()).decode())

    for stranger in strangers:
        answer = requests.request(
            method,
            f"http://127.0.0.1:{site.port}{path}",
            headers={"Authorization": stranger.encode()},
            json={},
            timeout=10,
        )
        assert answer.status_code == 401, stranger
        assert answer.json()["code"] == "UNAUTHORIZED"
        assert not any(secret in answer.text for secret in secrets_of(site))


def secrets_of(site: LocalCloud) -> list[str]:
    return [
        site._identity.secret,
        *site._identity._tokens.values(),
        site.broker.url.partition("local:")[2].partition("@")[0],
    ]


@pytest.mark.parametrize(
    "credentials", ["guest:guest", "local:guest", "local:", "other:{password}"]
)
def test_without_the_secrets_every_connection_is_refused(site: Site, credentials: str) -> None:
    password = secrets_of(site)[-1]
    url = f"amqp://{credentials.format(password=password)}@127.0.0.1:{site.broker.port}/%2F"
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(pika.URLParameters(url))


def test_the_secrets_are_in_no_log_no_process_list_and_no_text(
    site: Site,
    executor: Executor,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG, logger="gc_warm"):
        executor.submit(functions.count).result(120)
        answer = requests.put(
            f"http://127.0.0.1:{site.port}/v3/endpoints/{NOBODY}",
            headers=bearer(site),
            data=b"{",
            timeout=120,
        )

    commands = []
    for process in psutil.process_iter():
        try:
            commands.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue

    seen = "\n".join(
        [caplog.text, *capfd.readouterr(), *commands, repr(site), repr(site.broker), answer.text]
    )
    assert "count: success" in seen
    assert not [secret for secret in secrets_of(site) if secret in seen]


def bearer(site: LocalCloud) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {site._identity._tokens['funcx_service']}",
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v3/functions", b"{"),
        ("POST", "/v3/functions", b"[]"),
        ("POST", "/v3/functions", b"\xff"),
        ("POST", "/v3/functions", b"{}"),
        ("POST", "/v3/endpoints/{endpoint}/submit", b'{"tasks": 1}'),
        ("POST", "/v3/endpoints/{endpoint}/submit", b'{"tasks": {}, "task_group_id": "x"}'),
        ("POST", "/v2/batch_status", b"{}"),
        ("POST", "/v3/functions", b'{"function_name": "f", "function_code": 5}'),
        ("POST", "/v3/functions", b"[" * 100_000),
        ("PUT", "/v3/endpoints/x", b"{}"),
        ("POST", "/v3/endpoints", b'{"metadata": [1]}'),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_harms_nobody(
    site: Site, method: str, path: str, body: bytes
) -> None:
    url = f"http://127.0.0.1:{site.port}{path.format(endpoint=site.endpoint_id)}"
    answer = requests.request(method, url, headers=bearer(site), data=body, timeout=120)
    assert answer.status_code == 422, answer.text
    assert path.split("/")[2] in answer.json()["reason"]


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_it_does_not_start_where_its_port_is_taken(
    family: socket.AddressFamily, address: str
) -> None:
    """At the other loopback address, too: programs ask "localhost".

    They would send somebody else their secrets.
    """
    threads = set(threading.enumerate())
    with socket.socket(family) as other:
        other.bind((address, 0))
        other.listen()
        port = other.getsockname()[1]
        problem = f"port {port} on {address} cannot be had (Address already in use)"
        with pytest.raises(OSError, match=re.escape(f"{problem}: end what uses it")):
            LocalCloud(port=port)

    assert set(threading.enumerate()) == threads


def test_closing_does_not_wait_for_clients() -> None:
    """Neither for one that keeps its connection, nor for one that stops within a request."""
    with (
        LocalCloud(port=0) as cloud,
        requests.Session() as session,
        socket.create_connection(("127.0.0.1", cloud.port)) as silent,
    ):
        url = f"http://127.0.0.1:{cloud.port}/v2/version"
        assert session.get(url, headers=bearer(cloud), timeout=120).ok
        silent.sendall(b"POST /v3/functions HTTP/1.1\r\nContent-Length: 100\r\n")

        closing = threading.Thread(target=cloud.close)
        closing.start()
        closing.join(120)
        assert not closing.is_alive()
        assert not os.path.exists(cloud.folder)


def test_a_forked_child_leaves_the_service_alone() -> None:
    with LocalCloud(port=0) as cloud:
        child = os.fork()
        if child == 0:
            cloud.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

        assert os.path.isdir(cloud.folder)
        url = f"http://127.0.0.1:{cloud.port}/v2/version"
        assert requests.get(url, headers=bearer(cloud), timeout=120).ok


def call(site: LocalCloud) -> socket.socket:
    return socket.create_connection(("127.0.0.1", site.port), timeout=120)


def handlers() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def ask_for_version(site: LocalCloud, connection: socket.socket) -> None:
    authorization = bearer(site)["Authorization"]
    head = f"GET /v2/version HTTP/1.1\r\nAuthorization: {authorization}\r\n\r\n"
    connection.sendall(head.encode())


def status(connection: socket.socket) -> bytes:
    """Return the status of an answer, which comes in parts, and ends with a brace."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return answer.split()[1]


def test_strangers_hold_few_threads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_STRANGERS", 3)
    monkeypatch.setattr(http, "_FRESH", 0)
    with contextlib.ExitStack() as stack:
        friend = stack.enter_context(call(site))
        ask_for_version(site, friend)
        assert status(friend) == b"200"

        known = handlers()
        strangers = [stack.enter_context(call(site)) for _ in range(40)]
        for stranger in strangers[:-3]:
            assert stranger.recv(1) == b"", "it has been cut off"
        wait_until(lambda: handlers() <= known + 3, "nobody has a thread for those")

        ask_for_version(site, friend)
        assert status(friend) == b"200"


def test_a_stranger_who_drips_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quickly each byte follows the one before."""
    monkeypatch.setattr(http, "_STRANGER_TIMEOUT", 0.2)

    def drip(stranger: socket.socket) -> None:
        stranger.sendall(b"POST /v3/functions HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(60_000):
            stranger.sendall(b"x")
            threading.Event().wait(0.01)

    with call(site) as stranger, pytest.raises(ConnectionError):
        drip(stranger)


def test_a_crowd_of_clients_is_served(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_STRANGERS", 2)
    monkeypatch.setattr(http, "_FRESH", 60)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(call(site)) for _ in range(60)]
        for connection in crowd:
            ask_for_version(site, connection)
        assert {status(connection) for connection in crowd} == {b"200"}


@pytest.mark.engine
def test_without_descriptors_a_line_says_so(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, socket.socket() as other:
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            client.connect(("127.0.0.1", site.port))
            other.connect(("127.0.0.1", site.broker.port))
            wait_until(lambda: caplog.text.count(OUT_OF_DESCRIPTORS) == 2, "both servers say so")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        ask_for_version(site, client)
        assert status(client) == b"200"


@pytest.mark.parametrize("length", [b"abc", b"-1", b"99999999999999"])
def test_a_request_that_does_not_say_how_long_it_is(site: Site, length: bytes) -> None:
    secret = bearer(site)["Authorization"].encode()
    for authorization, expected in (
        (b"Bearer guessed", (b"401", b"422")),
        (secret, (b"413", b"422")),
    ):
        with socket.create_connection(("127.0.0.1", site.port), timeout=120) as connection:
            head = b"POST /v3/functions HTTP/1.1\r\nAuthorization: %s\r\nContent-Length: %s\r\n\r\n"
            connection.sendall(head % (authorization, length))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert answer.split()[1] in expected
        assert secret not in answer


def test_a_proxy_is_not_shown_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    with LocalCloud(port=0) as cloud:
        values = {cloud.environment[name] for name in ("no_proxy", "NO_PROXY")}
    assert values == {"localhost,127.0.0.1,intranet.example"}
