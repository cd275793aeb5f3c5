"""What is set up in a program: at every start, for a session, or lost with a word."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gc_warm import (
    ExternalProcess,
    Marker,
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
    ProgramError,
    warm,
)
from gc_warm.programs.pipe import Pipe
from gc_warm.worker import ledger
from tests.programs.test_in_step import numbered
from tests.support import Clock, has_ended, observe, wait_until

SHELL = Marker("echo {marker}")


def set_up(pipe: Pipe) -> None:
    SHELL(pipe, "g=9.81")


@pytest.fixture
def lasting() -> Iterator[ExternalProcess]:
    with ExternalProcess(["sh"], SHELL, restart=False) as shell:
        yield shell


@pytest.fixture
def shell() -> Iterator[ExternalProcess]:
    with ExternalProcess(["sh"], SHELL) as shell:
        yield shell


def test_every_start_is_followed_by_the_setup() -> None:
    with ExternalProcess(["sh"], SHELL, on_start=set_up) as shell:
        for _ in range(3):
            assert shell.call("echo $g") == "9.81"
            with pytest.raises(ProcessDiedError):
                shell.call("kill -KILL $$")


def test_a_greeting_is_read() -> None:
    loop = (
        "echo welcome to the solver; while read -r line; do sleep 0.02; "
        "[ $line -lt 5 ] && echo ok $line || echo bad $line; done"
    )
    with ExternalProcess(["sh", "-c", loop], numbered, on_start=Pipe.readline) as program:
        assert [program.call(number) for number in ("1", "2", "3")] == ["1", "2", "3"]
        with pytest.raises(ProgramError, match=r"^9$"):
            program.call("9")
        assert program.call("4") == "4"

    twice = ["sh", "-c", "echo hello; echo and welcome; cat"]
    with (
        ExternalProcess(twice, numbered, on_start=Pipe.readline) as program,
        pytest.raises(ProcessError, match="'and welcome', which no call has read"),
    ):
        program.call("1")


def wrong(pipe: Pipe) -> None:
    SHELL(pipe, "no-such-command")


def broken(pipe: Pipe) -> None:
    raise KeyError("g")


@pytest.mark.parametrize(
    ("on_start", "error", "words"),
    [
        (wrong, ProcessStartError, "could not be set up by on_start: sh complained: .*not found"),
        (broken, KeyError, "g"),
    ],
)
def test_a_setup_that_fails_is_a_failed_start(
    on_start: Callable[[Pipe], None], error: type[Exception], words: str
) -> None:
    with ExternalProcess(["sh"], SHELL, on_start=on_start) as shell:
        for _ in range(2):
            with pytest.raises(error, match=words):
                shell.call("echo 1")
            assert shell.pid is None
        assert ledger.events()[-1].kind == "failed"


def test_the_setup_has_the_time_of_the_start(clock: Clock, tmp_path: Path) -> None:
    up = tmp_path / "up"

    def hang(pipe: Pipe) -> None:
        SHELL(pipe, f"touch {up}; sleep 1000")

    shell = ExternalProcess(["sh"], SHELL, on_start=hang, start_timeout=60, call_timeout=300)
    with ThreadPoolExecutor(1) as pool, shell:
        call = pool.submit(shell.call, "echo 1")
        wait_until(up.exists, "it is being set up")
        clock.advance(61)
        with pytest.raises(ProcessTimeoutError, match="did not answer within 60 s, and was ended"):
            call.result(120)


def test_without_restart_a_loss_is_told_until_close(lasting: ExternalProcess) -> None:
    lasting.call("g=9.81")
    with pytest.raises(ProcessTimeoutError):
        lasting.call("sleep 1000", timeout=0.1)

    words = (
        r"sh was ended after ProcessTimeoutError, and what was set up in it is lost; .*"
        r"\(restart=False\): close\(\) it, and set it up anew"
    )
    for _ in range(2):
        with pytest.raises(ProcessDiedError, match=words):
            lasting.call("echo $g")
    assert lasting.pid is None

    lasting.close()
    assert lasting.call("echo ${g:-new}") == "new"


def test_without_restart_a_death_between_calls_is_told(lasting: ExternalProcess) -> None:
    pid = int(lasting.call("echo $$"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), "it has ended")
    with pytest.raises(ProcessDiedError, match="sh was killed by SIGKILL while it was idle, and"):
        lasting.call("")


def test_without_restart_an_error_reply_loses_nothing(lasting: ExternalProcess) -> None:
    lasting.call("g=9.81")
    with pytest.raises(ProgramError):
        lasting.call("no-such-command")
    assert lasting.call("echo $g") == "9.81"


def test_without_restart_a_failed_start_is_tried_again(tmp_path: Path) -> None:
    there = tmp_path / "there"
    command = ["sh", "-c", f"[ -e {there} ] && exec sh"]
    with ExternalProcess(command, SHELL, restart=False) as shell:
        with pytest.raises(ProcessStartError):
            shell.call("echo 1")
        there.touch()
        assert shell.call("echo 1") == "1"


def test_without_restart_a_forked_child_is_told(lasting: ExternalProcess) -> None:
    lasting.call("g=9.81")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be other threads
        child = os.fork()
    if child == 0:
        try:
            lasting.call("echo $g")
        except ProcessDiedError as error:
            os._exit(0 if "belongs to the process that this one was forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lasting.call("echo $g") == "9.81"


def test_without_restart_a_close_before_a_fork_counts(lasting: ExternalProcess) -> None:
    lasting.call("g=9.81")
    lasting.close()
    lasting._renew_in_child()
    assert lasting.call("echo $g") == ""


def test_state_with_restart_false_is_never_silently_new() -> None:
    """A program that is the state of a loader."""

    @warm(maxsize=1)
    def calculator(g: str) -> Generator[ExternalProcess, None, None]:
        with ExternalProcess(["sh"], SHELL, restart=False) as program:
            program.call(f"g={g}")
            yield program

    assert calculator("9.81").call("echo $g") == "9.81"
    with pytest.raises(ProcessDiedError):
        calculator("9.81").call("exit 3")
    with pytest.raises(ProcessDiedError, match="what was set up in it is lost"):
        calculator("9.81").call("echo $g")
    calculator.clear()
    assert calculator("9.81").call("echo $g") == "9.81"
    calculator.clear()


def test_a_session_is_one_life(shell: ExternalProcess) -> None:
    with shell.session() as call:
        call("g=9.81")
        assert call("echo $g") == "9.81"
        with pytest.raises(ProcessTimeoutError):
            call("sleep 1000", timeout=0.1)
        for _ in range(2):
            with pytest.raises(ProcessDiedError, match="what was set up in this session is lost"):
                call("echo $g")

    assert shell.call("echo ${g:-new}") == "new"
    with pytest.raises(RuntimeError, match="a session is called within its block"):
        call("echo 1")


def test_a_session_notices_that_the_program_was_closed(shell: ExternalProcess) -> None:
    with shell.session() as call:
        call("g=9.81")
        shell.close()
        assert shell.call("echo ${g:-new}") == "new", "this thread may call it in other ways"
        with pytest.raises(ProcessDiedError, match="sh was closed, and what was set up in this"):
            call("echo $g")


def test_other_callers_wait_for_the_end_of_a_session(shell: ExternalProcess) -> None:
    entered = threading.Event()
    leave = threading.Event()

    def hold() -> str:
        with shell.session() as call:
            call("g=mine")
            entered.set()
            leave.wait(120)
            return str(call("echo $g"))

    def take(value: str) -> str:
        with shell.session() as call:
            call(f"g={value}")
            return str(call("echo $g"))

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(hold)
        assert entered.wait(120)
        others = [
            pool.submit(shell.call, "g=theirs"),
            pool.submit(take, "a"),
            pool.submit(take, "b"),
        ]
        assert not any(other.done() for other in others)
        leave.set()
        assert first.result(120) == "mine"
        assert [other.result(120) for other in others] == ["", "a", "b"]


def test_a_session_that_never_began_keeps_nobody_waiting(shell: ExternalProcess) -> None:
    session = shell.session()
    session.__enter__()
    del session  # as an exception at the beginning of the block does
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shell.call, "echo 1").result(120) == "1"


def test_one_thread_has_one_session(shell: ExternalProcess) -> None:
    with shell.session(), pytest.raises(RuntimeError, match="this thread has a session"):
        shell.session().__enter__()


def test_a_restart_is_told_as_the_reason_of_a_load() -> None:
    shell = ExternalProcess(["sh", "-s", "restarted"], SHELL)

    def reasons(request: str) -> list[Any]:
        _, record = observe(shell.call, request)
        return [load["why"] for load in record["loads"]]

    assert reasons("echo 1") == ["first on this worker"]
    with pytest.raises(ProcessDiedError):
        shell.call("exit 3")
    assert reasons("echo 1") == ["program restarted"]
    shell.close()
    assert reasons("echo 1") == ["cleared"]
    shell.close()
