"""Parts of servers by themselves: their addresses, folders and logs."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import servers

from gc_warm.programs import server as server_module
from gc_warm.programs import server_address, server_supervisor, supervisor
from gc_warm.programs.server_address import ServerAddress
from tests.worker.injection import TaskTimeout


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


def ask(listener: socket.socket, *answers: bytes, is_closed: bool = True) -> int:
    """Return the status of a server that gives these answers, and then closes or does nothing."""

    def serve() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(4096)
        for answer in answers:
            connection.sendall(answer)
        if is_closed:
            connection.close()
        return connection

    address = ServerAddress.of({"socket": listener.getsockname(), "port": None, "token": None})
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        try:
            return address.ask("/health", 0.2)
        finally:
            serving.result().close()


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"], 302),
        ([b"HTTP/1.0 503\r\n\r\nloading"], 503),
        ([b"HT", b"TP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"ff\r\n"], 200),
    ],
)
def test_reads_the_status_of_an_answer(
    listener: socket.socket, answers: list[bytes], status: int
) -> None:
    assert ask(listener, *answers) == status
    assert ask(listener, *answers, is_closed=False) == status


@pytest.mark.parametrize("answer", [b"", b"hello, this is no HTTP", b"HTTP/0.9 200 OK\r\n\r\n"])
def test_refuses_what_is_not_http(listener: socket.socket, answer: bytes) -> None:
    with pytest.raises(OSError, match="this is not HTTP"):
        ask(listener, answer)


def test_an_answer_has_a_deadline(listener: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        ask(listener, b"HTTP/1.1 ", is_closed=False)


def test_a_task_is_timed_out_while_it_waits() -> None:
    silent, other = socket.socketpair()
    begun = threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            begun.set()
            server_address.receive(silent, time.monotonic() + 600)
        except TaskTimeout as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    begun.wait()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_in(ctypes.c_ulong(waiting.ident or 0), ctypes.py_object(TaskTimeout))
    waiting.join(60)
    assert len(ended) == 1
    silent.close()
    other.close()


def test_a_program_whose_supervisor_is_gone_is_not_started() -> None:
    child = os.fork()
    if not child:
        try:
            supervisor._become(["true"], parent=0)
        except ProcessLookupError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_port_of_processes_that_are_hidden_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert server_address.is_taken(port, [])
        assert not server_address.is_taken(port, [os.getpid()])

        def hidden(*args: Any) -> None:
            raise PermissionError

        monkeypatch.setattr("gc_warm.programs.server_address.os.listdir", hidden)
        assert not server_address.is_taken(port, [os.getpid()])


def test_a_folder_is_where_sockets_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for folder, found in [
        (str(tmp_path), tmp_path),
        (str(long), Path("/tmp")),
        (str(tmp_path / "missing"), Path("/tmp")),
        ("relative", Path("/tmp")),
        ("", Path("/tmp")),
    ]:
        monkeypatch.setenv("TMPDIR", folder)
        assert Path(server_module._folder_of("k")).parent == found


def test_without_descriptors_it_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("gc_warm.programs.server.socket.socket", none_left)
    assert servers.make().pid is None  # as reports ask, which are no reason for a task to fail


def test_a_folder_loses_its_name_before_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    removed: list[str] = []

    def remove(path: str) -> None:
        assert not folder.exists()
        removed.extend(os.listdir(tmp_path))
        os.rmdir(path)

    monkeypatch.setattr("gc_warm.programs.supervisor.remove", remove)
    server_supervisor.give_up(str(folder))
    assert len(removed) == 1
    assert not list(tmp_path.iterdir())


def test_a_log_goes_on_where_another_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_supervisor, "_LOG_SIZE", 10)
    path = tmp_path / "log"
    log = server_supervisor._Log(str(path))
    log.write(b"the first")

    with monkeypatch.context() as full:
        full.setattr(log, "_open", lambda: os.open("/nowhere/log", os.O_WRONLY))
        log.write(b"lost on a full disk")
    log.write(b"the next")

    assert path.read_bytes() == b"the next"
    assert path.with_name("log.1").read_bytes() == b"the first"
    assert log.tail.endswith(b"disk" + b"the next")
    os.close(log._file)
