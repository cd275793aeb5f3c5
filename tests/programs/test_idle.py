"""Programs that write while nobody calls them: they go on, and calls miss nothing."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gc_warm import ExternalProcess, Marker
from gc_warm.programs import idle
from gc_warm.programs.pipe import Pipe
from tests.support import wait_until

SHELL = Marker("echo {marker}")
FLOOD = (
    "(until [ -e {path}.go ]; do sleep 0.01; done; "
    "head -c 4000000 /dev/zero | tee /dev/stderr; touch {path}.done) &"
)


def flood(shell: ExternalProcess, path: Path) -> None:
    """Have a program write much on both streams once the call is over, until it is done."""
    shell.call(FLOOD.format(path=path))
    path.with_suffix(".go").touch()
    wait_until(path.with_suffix(".done").exists, "it has written all of it")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gc_warm-idle"]


def test_idle_programs_are_read_by_one_thread(tmp_path: Path) -> None:
    shells = [ExternalProcess(["sh"], SHELL) for _ in range(3)]
    for number, shell in enumerate(shells):
        flood(shell, tmp_path / str(number))
    assert len(threads()) == 1

    for shell in shells:
        assert shell._program is not None
        pipe = shell._program._pipe
        assert len(pipe._out.unread) + len(pipe._err.unread) < 2**17
        assert shell.call("echo fine") == "fine"

    for shell in shells:
        shell.close()
    assert threads() == []


NOISY = r"""
import json, os, sys, threading
def make_noise():
    while True:
        os.write(1, b"noise " * 100 + b"\n")
threading.Thread(target=make_noise, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    os.write(1, json.dumps({"id": message["id"], "reply": message["request"]}).encode() + b"\n")
"""


def test_calls_miss_nothing_of_a_program_that_never_stops_writing() -> None:
    with ExternalProcess([sys.executable, "-c", NOISY]) as program:
        assert [program.call(number) for number in range(100)] == list(range(100))


def test_a_call_that_talks_in_another_way_is_read_meanwhile() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def over_http(pipe: Pipe, requests: int) -> int:
        wait_until(lambda: listens(port), "it listens")
        for _ in range(requests):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{'x' * 1000}")
            caught.value.close()
        return requests

    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with ExternalProcess(command, over_http) as server_program:
        # each leaves a kilobyte on stderr, of which a pipe holds 64
        assert [server_program.call(count) for count in (80, 80)] == [80, 80]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_the_last_words_of_an_idle_program_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go = tmp_path / "go"
    with ExternalProcess(["sh"], SHELL) as shell:
        shell.call(f"(until [ -e {go} ]; do sleep 0.01; done; echo licence lost >&2; kill $$) &")
        go.touch()
        assert shell._program is not None
        pipe = shell._program._pipe
        wait_until(lambda: pipe.over, "the end is seen without a call")
        assert shell.call("echo again") == "again"
    assert "was killed by SIGTERM while it was idle; it is started again\nlicence lost" in (
        caplog.text
    )


def test_a_fork_leaves_the_thread_to_the_parent(tmp_path: Path) -> None:
    with ExternalProcess(["sh"], SHELL) as shell:
        shell.call("count=7")
        reader = idle.reader
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there may be other threads
            child = os.fork()
        if child == 0:
            try:
                assert not threads()
                assert idle.reader is not reader
                assert shell.call("echo ${count:-new}") == "new"
                shell.close()
            except BaseException:
                os._exit(1)
            os._exit(0)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        flood(shell, tmp_path / "flood")
        assert shell.call("echo $count") == "7"


def test_programs_of_many_threads_begin_and_end() -> None:
    """The thread begins with the first of them and ends with the last, over and over."""

    def live(number: int) -> list[str]:
        replies = []
        for _ in range(5):
            with ExternalProcess(["sh"], SHELL) as shell:
                replies += [shell.call(f"echo {number}"), shell.call("echo again")]
        return replies

    with ThreadPoolExecutor(4) as pool:
        for number, replies in enumerate(pool.map(live, range(4))):
            assert replies == [str(number), "again"] * 5
    assert threads() == []


def test_end_is_heard_by_the_thread_that_is_to_end() -> None:
    """Where the next one has begun already: of two that wait, the kernel wakes one."""
    ours, theirs = socket.socketpair()

    class Silent:
        def fileno(self) -> int:
            return ours.fileno()

        def read_idle(self) -> None:
            raise AssertionError("there is nothing to read")

    pipe = Silent()
    reader = idle.IdleReader()
    with ours, theirs:
        reader.add(pipe)
        for _ in range(20):
            leaving = reader._thread
            assert leaving is not None
            reader._thread = None
            reader._leaving = [leaving]
            reader.resume()
            reader._awaken()
            leaving.join(5)
            assert not leaving.is_alive()
        reader.remove(pipe)


def test_it_works_without_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """There can be too many threads, or the interpreter ends."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with ExternalProcess(["sh"], SHELL) as shell:
        assert [shell.call("echo 1"), shell.call("echo 2")] == ["1", "2"]


def test_garbage_may_end_the_program_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector runs wherever it likes, and so in the thread that reads."""
    with ExternalProcess(["sh"], SHELL) as shell:
        shell.call(f"(until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo late) &")
        program = shell._program
        assert program is not None
        monkeypatch.setattr(program._pipe._out, "add", lambda data: program.end())

        (tmp_path / "go").touch()
        wait_until(lambda: program.pid is None and not threads(), "the thread has ended it")


def test_garbage_may_end_the_last_pipe_while_one_is_added() -> None:
    reader = idle.IdleReader()

    class Pipe:
        def __init__(self) -> None:
            self.end, self.other = socket.socketpair()
            self.before: Pipe | None = None

        def fileno(self) -> int:
            if self.before is not None:
                before, self.before = self.before, None
                reader.remove(before)
            return self.end.fileno()

        def read_idle(self) -> None:
            self.end.recv(1)

        def close(self) -> None:
            reader.remove(self)
            self.end.close()
            self.other.close()

    first = Pipe()
    second = Pipe()
    reader.add(first)
    second.before = first
    reader.add(second)
    second.close()
    first.close()
    assert threads() == []
