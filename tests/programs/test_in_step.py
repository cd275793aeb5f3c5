"""A reply belongs to its request: what no call has read, is an error of the next one at latest."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gc_warm import ExternalProcess, ProcessError, ProgramError, json_lines
from gc_warm.programs import evidence
from gc_warm.programs.pipe import Pipe
from gc_warm.programs.protocols import chatty
from tests.support import wait_until


def numbered(pipe: Pipe, request: str) -> str:
    """The README's own protocol."""
    pipe.write(f"{request}\n")
    status, _, text = pipe.readline().partition(" ")
    if status != "ok":
        raise ProgramError(text)
    return text


LOOP = "while read -r line; do {}[ $line -lt 5 ] && echo ok $line || echo bad $line; done"


def sh(script: str, *words: Any) -> list[Any]:
    return ["sh", "-c", script, "sh", *words]


@pytest.mark.parametrize("pause", ["", "sleep 0.02; "])
def test_a_greeting_is_no_reply(pause: str) -> None:
    with ExternalProcess(sh("echo welcome to the solver; " + LOOP.format(pause)), numbered) as sut:
        for request in ("1", "2", "9"):
            with pytest.raises(
                ProcessError, match="wrote 'welcome to the solver' before its first"
            ):
                sut.call(request)
            assert sut.pid is None


def test_a_program_that_starts_slowly_is_waited_for(tmp_path: Path) -> None:
    """It computes while it starts, and then greets."""
    counting = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo welcome; "
    with (
        ExternalProcess(sh(counting + LOOP.format("")), numbered) as sut,
        pytest.raises(ProcessError, match="wrote 'welcome' before its first request"),
    ):
        sut.call("1")


def test_a_reply_that_is_not_read_to_its_end() -> None:
    twice = "while read -r line; do echo ok $line; echo and more; done"
    with ExternalProcess(sh(twice), numbered) as sut:
        with pytest.raises(ProcessError, match=r"is out of step.*'and more'"):
            [sut.call("1"), sut.call("2")]  # the second, where it came too late for the first
        assert sut.pid is None


def test_what_comes_between_calls(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    late = (
        "read -r line; echo ok $line; "
        "(until [ -e $1 ]; do sleep 0.01; done; echo late; touch $2) <&- & " + LOOP.format("")
    )
    with ExternalProcess(sh(late, go, done), numbered) as sut:
        assert sut.call("1") == "1"
        go.touch()
        wait_until(done.exists, "it has been written")
        words = "is out of step, and was ended: before this request, it had written 'late'"
        with pytest.raises(ProcessError, match=words):
            sut.call("2")


def test_a_program_that_answers_before_it_has_read_all() -> None:
    """The reply of the first call comes late, in the middle of the second."""
    early = "while read -r line; do echo ok early; sleep 0.02; echo ok $line; done"
    with ExternalProcess(sh(early), numbered) as sut:
        assert sut.call("1") == "early"
        with pytest.raises(ProcessError, match=r"is out of step.*'ok 1'"):
            sut.call("2")


def test_a_protocol_may_say_that_it_skips_noise() -> None:
    @chatty
    def second_line(pipe: Pipe, request: str) -> str:
        pipe.write(f"{request}\n")
        while not (line := pipe.readline()).startswith("ok"):
            pass
        return line

    with ExternalProcess(sh("echo hello; " + LOOP.format("echo noise; ")), second_line) as sut:
        assert [sut.call("1"), sut.call("2")] == ["ok 1", "ok 2"]


def test_without_evidence_what_is_unread_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_READ", -1)
    monkeypatch.setattr("gc_warm.programs.pipe._UNSEEN", 0.001)
    twice = "while read -r line; do printf 'ok\\nand more\\n'; done"
    with (
        ExternalProcess(sh(twice), numbered) as sut,
        pytest.raises(ProcessError, match=r"'and more'.*which no call has read"),
    ):
        sut.call("1")


RESTLESS = """
import os, threading
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
while line := os.read(0, 100):
    os.write(1, b"ok " + line)
os._exit(0)
"""


def test_a_program_that_never_sleeps_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose MPI ranks wait in a loop: nothing shows that it waits for a request."""
    monkeypatch.setattr("gc_warm.programs.pipe._RESTLESS", 0.05)
    command = [sys.executable, "-S", "-c", RESTLESS]
    with ExternalProcess(command, numbered, start_timeout=0.2) as sut:
        assert sut.call("1") == "1"
        pid = sut.pid
        assert [sut.call("2"), sut.call("3")] == ["2", "3"]
        assert sut.pid == pid
    with ExternalProcess(command, numbered, on_start=lambda pipe: None) as sut:
        assert sut.call("1") == "1"


@pytest.fixture
def asking() -> Iterator[ExternalProcess]:
    """A program with a prompt after which no line ends."""
    source = "while True: print('got', input('more? '), flush=True)"

    def ask(pipe: Pipe, request: str) -> str:
        if not pipe.answered:
            assert pipe.read_until("more? ", line=False) == ""
        pipe.write(f"{request}\n")
        return pipe.read_until("more? ", line=False)

    with ExternalProcess([sys.executable, "-c", source], ask) as program:
        yield program


def test_a_prompt_without_a_lines_end(asking: ExternalProcess) -> None:
    assert [asking.call("x"), asking.call("y")] == ["got x\n", "got y\n"]


def framed(pipe: Pipe, request: bytes) -> bytes:
    pipe.write(struct.pack("<i", len(request)) + request)
    (size,) = struct.unpack("<i", pipe.read(4))
    return pipe.read(size)


def test_frames_of_bytes() -> None:
    with ExternalProcess(["cat"], framed) as cat:
        assert [cat.call(b"\x00\xff\n"), cat.call(b"")] == [b"\x00\xff\n", b""]


def test_a_line_that_is_no_text() -> None:
    def line(pipe: Pipe, request: bytes) -> str:
        pipe.write(request)
        return pipe.readline()

    with ExternalProcess(["cat"], line) as cat:
        assert cat.call("grün\n".encode()) == "grün"
        with pytest.raises(ProcessError, match=re.escape("wrote what is no utf-8: b'gr\\xfcn'")):
            cat.call("grün\n".encode("latin-1"))


def test_a_reply_in_json_that_is_no_text() -> None:
    source = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    message = json.loads(line)\n"
        "    text = json.dumps({'id': message['id'], 'reply': 'x'})\n"
        "    text = 'noise, ü: ' + text.replace('x', message['request'])\n"
        "    sys.stdout.buffer.write(text.encode('latin-1') + b'\\n')\n"
        "    sys.stdout.flush()"
    )
    with ExternalProcess([sys.executable, "-c", source], json_lines) as program:
        assert program.call("noise does no harm") == "noise does no harm"
        with pytest.raises(ProcessError, match="wrote what is no utf-8"):
            program.call("ü")


@pytest.mark.skipif(shutil.which("stdbuf") is None, reason="stdbuf is not installed")
def test_evidence_tells_computing_from_waiting() -> None:
    """It is asked in the midst of a call, and once the program is idle."""
    seen: list[bool] = []

    @chatty
    def look(pipe: Pipe, request: str) -> str:
        pipe.write("echo begun; n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; echo done\n")
        pipe.readline()
        seen.append(pipe._see().waits_for_input())
        pipe.readline()
        wait_until(lambda: pipe._see().waits_for_input(), "it waits")
        return ""

    with ExternalProcess(["sh"], look) as shell:
        shell.call("")
    assert seen == [False]


def test_a_child_that_has_ended_is_no_sign_of_work() -> None:
    """Nobody may ever wait for it."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert evidence._places(Path(f"/proc/{child.pid}")) == {}
    finally:
        child.wait()
