"""Servers: started once, ready before they are used, healthy or an error, and never left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers

from gc_warm import (
    ExternalServer,
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
)
from gc_warm.programs import server as server_module
from gc_warm.programs import server_address
from gc_warm.worker import ledger, lifecycle
from tests.support import client_environment, wait_until
from tests.worker.injection import TaskTimeout


@pytest.fixture
def made() -> Iterator[Any]:
    """Make servers that are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(*behaviours: str, **options: Any) -> ExternalServer:
            server = servers.make(*behaviours, **options)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(made: Any) -> ExternalServer:
    server: ExternalServer = made("child")
    server.start()
    return server


def kill(server: ExternalServer) -> None:
    """Kill a server, and wait until it is over."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pid is None, "it is over")


def family(server: ExternalServer) -> list[psutil.Process]:
    pid = server.pid
    assert pid is not None
    found = psutil.Process(pid)
    return [found, *found.children(recursive=True)]


def loaded() -> list[ledger.Loaded]:
    """Return the records of servers, and of no state that other tests have left."""
    return [each for each in ledger.loaded() if each.name.endswith("[worker]")]


def test_answers_many_uses(made: Any) -> None:
    server = made()
    mark = ledger.mark()
    pids = {servers.ask(server, "/pid") for _ in range(3)}
    assert pids == {server.pid}
    (load,) = ledger.events(since=mark)
    assert (load.kind, load.seconds > 0) == ("loaded", True)
    assert [each.name for each in loaded()] == [load.name]
    assert load.name.endswith("[worker]")

    server.close()
    assert server.pid is None
    assert not server.log_file.parent.exists()
    assert [event.kind for event in ledger.events(since=mark)] == ["loaded", "cleared"]
    assert loaded() == []


def test_closes_what_it_has_started(server: ExternalServer) -> None:
    processes = family(server)
    assert len(processes) == 2
    server.close()
    assert not any(each.is_running() for each in processes)


def test_threads_share_one(made: Any) -> None:
    server = made()
    mark = ledger.mark()
    with ThreadPoolExecutor(8) as pool:
        pids = set(pool.map(lambda _: servers.ask(server, "/pid"), range(16)))
    assert len(pids) == 1
    assert {event.kind for event in ledger.events(since=mark)} == {"loaded"}
    assert len(loaded()) == 1


def test_listens_on_a_port_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # a port that somebody takes between the choice and the start: the server is given another
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = squatter.getsockname()[1]
        ports = iter([taken, server_address.free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(ports))
        command = [sys.executable, "-I", "-S", servers.PROGRAM, "--port", "{port}"]
        server = ExternalServer(command, ready="/health", env={"TOKEN": "{token}"})
        with server.connect() as address:
            assert address == f"http://127.0.0.1:{address.port}"
            assert address.port != taken
            assert address.token is not None
            assert address.token not in " ".join(psutil.Process(server.pid).cmdline())
            first = address.token
            assert address.ask("/health", 60) == 200
            connection = address.http()
            connection.request("GET", "/health")
            assert connection.getresponse().status == 401  # without the token
            connection.close()
        server.close()
        monkeypatch.undo()
        with server.connect() as address:
            assert address.token != first
        server.close()


def test_no_free_port_is_an_error_that_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        monkeypatch.setattr(server_module, "free_port", lambda: port)
        monkeypatch.setattr(server_module, "_PORT_ATTEMPTS", 1)
        command = [sys.executable, "-I", "-S", servers.PROGRAM, "--port", "{port}"]
        with pytest.raises(ProcessStartError, match=f"found its port {port} taken") as failure:
            ExternalServer(command, ready="/health").start()
    assert type(pickle.loads(pickle.dumps(failure.value))) is ProcessStartError


def test_ready_by_a_line_of_its_log(made: Any) -> None:
    server = made("noisy", ready=re.compile("^ listening $ # a line of many", re.VERBOSE))
    assert servers.ask(server, "/pid") == server.pid


@pytest.mark.engine
def test_a_pattern_without_end_is_given_up() -> None:
    server = ExternalServer(
        ["sh", "-c", f"echo {'a' * 60}!; sleep 1000000 # {{socket}}"],
        ready=re.compile("^(a+)+$"),
        start_timeout=3,
    )
    with pytest.raises(ProcessTimeoutError, match="it has printed no line that match") as failure:
        server.start()
    assert "has given up the search for the pattern" in str(failure.value)
    assert server.pid is None


def test_one_that_is_never_ready_is_ended(made: Any) -> None:
    server = made("mute", "child", start_timeout=0.5)
    words = r"was not ready within 0.5 s: it does not answer: .*, and it was ended"
    with pytest.raises(ProcessTimeoutError, match=words) as failure:
        server.start()
    assert "loading for ever" in str(failure.value)
    assert server.pid is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "echo no model; exit 3 # {socket}"], "exit status 3 before .*no model"),
        (["no-such-server", "{socket}"], "there is no program no-such-server"),
        (["sh", "-c", "kill -9 $$ # {socket}"], "ended by SIGKILL before it was ready"),
        (["sh", "-c", "sleep 1000000 & # {socket}"], "foreground, not as a daemon"),
    ],
)
def test_one_that_cannot_start_is_an_error(command: list[str], words: str) -> None:
    server = ExternalServer(command, ready="/health")
    with pytest.raises(ProcessStartError, match=re.compile(words, re.DOTALL)):
        server.start()
    assert not server.log_file.parent.exists()


def test_a_missing_directory_is_an_error(made: Any) -> None:
    with pytest.raises(ProcessStartError, match="No such file or directory: '/nowhere'"):
        made(cwd="/nowhere").start()


def test_a_manager_that_has_ended_is_an_error(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    server = made(scope="node")
    monkeypatch.setattr(lifecycle, "manager", lambda: process.pid)
    with pytest.raises(ProcessStartError, match="manager of this worker has ended"):
        server.start()
    assert not server.log_file.parent.exists()


def test_starts_anew_after_its_supervisor_was_killed(server: ExternalServer) -> None:
    everyone = family(server)
    supervisor = everyone[0].parent()
    assert supervisor is not None
    supervisor.kill()
    wait_until(lambda: not everyone[0].is_running(), "the server has ended")
    assert servers.ask(server, "/pid") == server.pid != everyone[0].pid
    everyone[1].kill()  # which is beyond reach


def test_a_start_needs_no_end_of_its_pipe(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []  # as a child has them that another thread forks at that moment
    launch = server_module._supervisor

    def launch_with_copy(*args: Any) -> Any:
        pipe = launch(*args)
        copies.append(os.dup(pipe.fileno()))
        return pipe

    monkeypatch.setattr(server_module, "_supervisor", launch_with_copy)
    made().start()
    os.close(copies.pop())


def test_one_that_died_idle_is_started_again(server: ExternalServer) -> None:
    first = server.pid
    mark = ledger.mark()
    (child,) = family(server)[1:]
    kill(server)
    assert not child.is_running()
    assert servers.ask(server, "/pid") == server.pid != first
    assert [event.kind for event in ledger.events(since=mark)] == ["ended", "loaded"]


def test_a_death_in_a_use_is_an_error(server: ExternalServer) -> None:
    with pytest.raises(ProcessDiedError, match="ended by SIGKILL while it was used") as failure:
        servers.ask(server, "/die")
    assert isinstance(failure.value.__cause__, (http.client.HTTPException, OSError))
    assert "listening" in str(failure.value)
    assert failure.value.status == -signal.SIGKILL
    assert servers.ask(server, "/pid") == server.pid


def test_an_error_in_a_block_stays_as_it_is(server: ExternalServer) -> None:
    with pytest.raises(ZeroDivisionError), server.connect():
        raise ZeroDivisionError
    with pytest.raises(TaskTimeout), server.connect():
        raise TaskTimeout


def test_one_that_hangs_is_ended_unless_others_use_it(made: Any) -> None:
    server = made(health_timeout=0.2)
    with server.connect() as address:
        with pytest.raises(TimeoutError):
            address.ask("/hang", 0.1)
        with pytest.raises(ProcessTimeoutError, match=r"did not answer .*, and goes on, since"):
            server.start()
        child = os.fork()
        if not child:  # it has the connection, too
            signal.pause()

    first = server.pid
    asking = server._dial()  # nor is this a use
    assert asking is not None

    def is_ended() -> bool:
        with pytest.raises(ProcessTimeoutError, match="did not answer within") as failure:
            server.start()
        return "was ended" in str(failure.value)

    wait_until(is_ended, "the supervisor has noticed that nobody else uses it")
    asking.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert servers.ask(server, "/pid") == server.pid != first


def test_one_that_answers_with_an_error_is_ended(server: ExternalServer) -> None:
    servers.ask(server, "/sick")
    with pytest.raises(ProcessError, match="answers /health with status 503, and was ended"):
        server.start()
    server.start()


def test_its_log_is_read_while_idle_and_bounded(server: ExternalServer) -> None:
    for _ in range(3):
        servers.ask(server, "/flood/1000000")
    files = [server.log_file, server.log_file.with_name("log.1")]
    wait_until(files[1].exists, "another file was begun")
    assert sum(path.stat().st_size for path in files) <= 2 * 4 * 2**20
    assert servers.ask(server, "/pid") == server.pid


def test_many_connections_leave_it_as_it_is(made: Any) -> None:
    server = made("child")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, limits[1]))  # which the supervisor inherits
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    first = server.pid
    with contextlib.ExitStack() as stack:
        links = iter(server._dial, None)
        assert len([stack.enter_context(link) for link in links]) > 10
    wait_until(lambda: server.pid is not None, "there are descriptors again")
    assert servers.ask(server, "/pid") == first
    processes = family(server)
    server.close()
    assert not any(each.is_running() for each in processes)
    assert not server.log_file.parent.exists()


def test_an_interrupted_start_is_found_by_the_next(made: Any, tmp_path: Path) -> None:
    server = made("file", str(tmp_path / "loaded"))

    def interrupt(*args: object) -> None:
        raise TaskTimeout

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TaskTimeout):
            server.start()
    finally:
        signal.signal(signal.SIGALRM, previous)

    wait_until(lambda: server.pid is not None, "it starts")
    pid = server.pid
    (tmp_path / "loaded").touch()
    assert servers.ask(server, "/pid") == pid


def test_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = "import servers; print(servers.ask_of('node')[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=client_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        processes = [psutil.Process(pid), *psutil.Process(pid).children()]
        process.kill()
        wait_until(lambda: not any(each.is_running() for each in processes), "all have ended")


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_another_user_cannot_connect(server: ExternalServer) -> None:
    with server.connect() as address:
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({address.socket!r})"
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-I", "-S", "-c", code],
            user="nobody",
            group="nogroup",
            extra_groups=[],
            cwd="/",
            stderr=subprocess.PIPE,
            text=True,
        )
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_another_is_refused(kind: str, made: Any) -> None:
    """Nor is anybody asked who listens there as a supervisor does."""
    server = made()
    folder = server.log_file.parent
    trap = folder if kind == "folder" else Path(tempfile.mkdtemp())
    if kind == "link":
        folder.symlink_to(trap)
    else:
        folder.mkdir()
        folder.chmod(0o777)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(trap / "control"))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(ProcessStartError, match="only you may enter: remove it"):
            server.start()
        assert server.pid is None
        with pytest.raises(BlockingIOError):
            listener.accept()

    shutil.rmtree(trap)
    folder.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": ["serve"]}, "there is none of them"),
        ({"command": ["serve", "{socket}", "{port}"]}, "there is {port} and {socket}"),
        ({"command": ["serve", "{port}", "{token}"]}, "all users of a node can read command lines"),
        ({"command": ["serve", "{port}"], "scope": "block"}, "not 'block'"),
        ({"command": ["serve", "{port}"], "ready": "health"}, "not 'health'"),
        ({"command": ["serve", "{port}"], "ready": "/a b"}, "not '/a b'"),
        ({"command": ["serve", "{port}"], "start_timeout": 0}, "positive number of seconds"),
    ],
)
def test_refuses_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ExternalServer(**{"ready": "/health", **options})


def test_is_not_sent() -> None:
    with pytest.raises(pickle.PicklingError, match="import, and use it from there"):
        pickle.dumps(servers.node)
