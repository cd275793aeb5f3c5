"""Faults of programs: a call ends in time with an error that names them; the next call works."""

from __future__ import annotations

import os
import pickle
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from gc_warm import (
    ExternalProcess,
    Marker,
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
    ProgramError,
    json_lines,
)
from gc_warm.programs import pipe, protocols
from gc_warm.programs.protocols import Protocol
from gc_warm.worker import lifecycle
from tests.support import FAULTY, Clock, has_ended, wait_until

SECONDS = 0.5
"""The time for a call that is to run into its deadline, wherever it is by then."""

CALL, START = 30.0, 60.0
"""The time for a call, by a clock that is advanced, and that for the program's start on top."""


@pytest.fixture
def program() -> Iterator[ExternalProcess]:
    with ExternalProcess(FAULTY) as program:
        assert program.call("first", timeout=120) == "first"
        yield program


def failure(program: ExternalProcess, request: str, seconds: float = 120) -> ProcessError:
    """Return the error that a call ends with; it is the same after a journey to another process."""
    with pytest.raises(ProcessError) as caught:
        program.call(request, timeout=seconds)
    assert_travels(caught.value)
    return caught.value


def failure_at_the_deadline(
    program: ExternalProcess, request: str, clock: Clock, reached: Path
) -> ProcessError:
    """Return the error of a call whose time is over once the program has made the file *reached*.

    The clock stands still until then.
    """
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(program.call, request, timeout=CALL)
        wait_until(lambda: reached.exists() or call.done(), "the program has got there")

        clock.advance(CALL + START + 1)
        error = call.exception(120)
    assert isinstance(error, ProcessError)
    assert_travels(error)
    return error


def assert_travels(error: ProcessError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


@pytest.fixture
def no_time_for_the_exit_status(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wait for no exit status of programs that close their streams and go on: there is none."""
    words = request.getfixturevalue("words")
    if "closed its" in words:
        monkeypatch.setattr(pipe, "_LAST_WORDS", 0.1)


@pytest.mark.parametrize(
    ("fault", "kind", "status", "words"),
    [
        (
            "exit_with_last_words",
            ProcessDiedError,
            7,
            "ended with exit status 7 in the middle of a call.*stderr.*thermostat: not converged",
        ),
        ("crash", ProcessDiedError, -11, "was killed by SIGSEGV in the middle of a call"),
        (
            "write_half_a_line_and_exit",
            ProcessDiedError,
            1,
            'ended with exit status 1 in the middle of a call.*stdout.*"rep',
        ),
        ("close_stdout", ProcessDiedError, None, "closed its output in the middle of a call"),
        (
            "answer_in_invalid_json",
            ProcessError,
            None,
            r"answered in invalid JSON: \{.*'reply': None\}",
        ),
        (
            "answer_in_pythons_own_form",
            ProcessError,
            None,
            r"answered in invalid JSON: \{'id': \d+, 'reply': None\}",
        ),
        (
            "answer_with_nan",
            ProcessError,
            None,
            r'answered in invalid JSON: \{"id": \d+, "reply": -nan\}',
        ),
    ],
)
@pytest.mark.usefixtures("no_time_for_the_exit_status")
def test_a_call_fails_and_the_next_one_works(
    fault: str, kind: type[ProcessError], status: int | None, words: str, program: ExternalProcess
) -> None:
    pid = program.pid
    error = failure(program, fault)
    assert (type(error), error.status) == (kind, status)
    assert re.search(words, str(error), re.DOTALL), str(error)
    assert program.pid is None
    assert program.call("next") == "next"
    assert program.pid != pid


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang_and_ignore_signals", ""),
        ("answer_without_reply", r'stdout.*"result": 1'),
        ("write_half_a_line_and_hang", 'stdout.*"rep.*stderr.*KeyboardInterrupt'),
        ("never_become_ready", "stderr.*in hang.*KeyboardInterrupt"),
    ],
)
def test_a_call_without_answer_ends_at_its_deadline(
    fault: str, words: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "KeyboardInterrupt" in words:
        request.getfixturevalue("patient_supervisor")
    reached = tmp_path / "reached"
    with ExternalProcess(FAULTY, env={"REACHED": str(reached)}) as program:
        assert program.call("first") == "first"

        error = failure_at_the_deadline(program, fault, clock, reached)
        assert type(error) is ProcessTimeoutError
        pattern = r"faulty\.py'? did not answer within 30 s, and was ended.*" + words
        assert re.search(pattern, str(error), re.DOTALL), str(error)
        assert program.pid is None
        assert program.call("next") == "next"


@pytest.mark.parametrize(
    "fault",
    ["write_100_mb_to_stderr", "print_noise", "answer_twice", "answer_again_during_the_next"],
)
def test_what_else_a_program_writes_is_no_part_of_a_reply(
    fault: str, program: ExternalProcess
) -> None:
    pid = program.pid
    assert program.call(fault, timeout=120) == fault
    assert [program.call(number) for number in range(3)] == [0, 1, 2]
    assert program.pid == pid


@pytest.mark.engine
def test_a_reply_of_50_mb_in_one_line(program: ExternalProcess) -> None:
    assert program.call("answer_with_50_mb", timeout=120) == "x" * 50_000_000
    assert program.call("next") == "next"


@pytest.mark.engine
def test_a_request_of_50_mb_in_one_line(program: ExternalProcess) -> None:
    assert program.call("x" * 50_000_000, timeout=120) == "x" * 50_000_000


def test_a_request_to_a_program_that_does_not_read() -> None:
    with pytest.raises(ProcessTimeoutError):
        ExternalProcess(["sleep", "1000"], start_timeout=0.4).call("x" * 10**6, timeout=0.6)


def test_a_program_that_closes_its_input(
    program: ExternalProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "_LAST_WORDS", 0.1)  # it goes on, and has no exit status
    assert program.call("close_stdin") == "close_stdin"
    assert program.call("next") == "next"
    assert "closed its input while it was idle; it is started again" in caplog.text


def test_a_line_without_end_does_not_fill_the_memory(
    program: ExternalProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "_OUTPUT_LIMIT", 20 * 2**20)
    error = failure(program, "write_without_end")
    words = "wrote 20 MiB that are no reply, or too long a one: send large data through files"
    assert words in str(error)
    assert len(error.stdout) == 8192
    assert program.call("next") == "next"


@pytest.mark.parametrize(
    ("protocol", "request_text"),
    [(json_lines, "x" * 10**6), (Marker("{marker}"), "x")],
    ids=["writing", "reading"],
)
def test_lines_without_end_do_not_either(
    protocol: Protocol, request_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "_OUTPUT_LIMIT", 20 * 2**20)
    with ExternalProcess(["yes"], protocol) as program:
        assert "wrote 20 MiB that are no reply" in str(failure(program, request_text))


class CountingDecoder:
    """Counts how often it is asked for the JSON at a place in a line."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.tries = 0

    def raw_decode(self, line: str, start: int) -> Any:
        self.tries += 1
        return self._decoder.raw_decode(line, start)


def test_a_long_line_of_noise_takes_no_time(
    program: ExternalProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = CountingDecoder(protocols._decoder)
    monkeypatch.setattr(protocols, "_decoder", decoder)
    assert program.call("print_much_noise", timeout=120) == "print_much_noise"
    assert decoder.tries <= 50, "of 300,000 places in the line where a reply might begin"


def test_an_error_reply_leaves_the_program_warm(program: ExternalProcess) -> None:
    pid = program.pid
    error = failure(program, "answer_with_an_error")
    assert type(error) is ProgramError
    words = r"faulty\.py'? answered with an error: unknown pair style lj/cutt$"
    assert re.search(words, str(error))

    long = failure(program, "answer_with_a_long_error")
    assert type(long) is ProgramError
    assert 10_000 > len(str(long)) > 8192

    assert program.call("answer_with_null_error") == "answer_with_null_error"
    assert program.call("next") == "next"
    assert program.pid == pid


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            "exit_with_last_words",
            ProcessStartError,
            "ended with exit status 7 before its first answer.*thermostat: not converged",
        ),
        ("crash", ProcessStartError, "was killed by SIGSEGV before its first answer"),
        ("close_stdout", ProcessStartError, "closed its output before its first answer"),
    ],
)
@pytest.mark.usefixtures("no_time_for_the_exit_status")
def test_a_program_that_fails_at_its_start_is_tried_again(
    fault: str, kind: type[ProcessError], words: str, tmp_path: Path
) -> None:
    with ExternalProcess([*FAULTY, fault, tmp_path / "started"]) as program:
        error = failure(program, "first")
        assert type(error) is kind
        assert re.search(words, str(error), re.DOTALL), str(error)
        assert program.call("next") == "next"


def test_words_before_the_first_request_are_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may be held up after it has started a program, until that has ended."""
    ended = tmp_path / "ended"
    arm = lifecycle.arm

    def arm_late() -> None:
        wait_until(ended.exists, "the program is about to end")
        arm()

    monkeypatch.setattr(lifecycle, "arm", arm_late)
    with ExternalProcess(["sh", "-c", f"echo no licence >&2; touch {ended}; exit 7"]) as program:
        assert failure(program, "first").stderr == "no licence"


@pytest.mark.usefixtures("patient_supervisor")
def test_a_program_that_is_not_up_in_time_is_tried_again(clock: Clock, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    command = [*FAULTY, "never_become_ready", str(tmp_path / "started")]

    with ExternalProcess(command, start_timeout=START, env={"REACHED": str(reached)}) as program:
        error = failure_at_the_deadline(program, "first", clock, reached)
        assert type(error) is ProcessTimeoutError
        words = "did not answer within 30 s and 60 s for its start, and was ended.*stderr.*in hang"
        assert re.search(words, str(error), re.DOTALL), str(error)
        assert program.call("next") == "next"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["no-such-program"],
            "no-such-program cannot be started: "
            "there is no program no-such-program on this worker's PATH",
        ),
        (
            ["/no/such/program", "-x"],
            "program -x cannot be started: there is no program /no/such/program, "
            "or not the interpreter that its first line names",
        ),
        (["/etc/passwd"], "passwd cannot be started: Permission denied: /etc/passwd"),
        (["sh", "-c", "exit 3"], "sh -c 'exit 3' ended with exit status 3 before its first answer"),
    ],
)
def test_a_program_that_cannot_be_started(command: list[str], words: str) -> None:
    error = failure(ExternalProcess(command), "first")
    assert type(error) is ProcessStartError
    assert str(error) == words


def test_a_folder_that_does_not_exist() -> None:
    error = failure(ExternalProcess(["cat"], cwd="/no/such/folder"), "first")
    assert type(error) is ProcessStartError
    words = "cat cannot be started: [Errno 2] No such file or directory: '/no/such/folder'"
    assert words in str(error)


def test_a_program_that_ends_between_calls_is_started_again(
    program: ExternalProcess, caplog: pytest.LogCaptureFixture
) -> None:
    assert program.pid is not None
    before = program.pid
    psutil.Process(before).kill()
    wait_until(lambda: has_ended(before), "it has ended")
    assert program.call("next") == "next"
    assert "was killed by SIGKILL while it was idle; it is started again" in caplog.text


def test_a_program_that_gives_its_output_to_another_and_ends(tmp_path: Path) -> None:
    """It is out of the supervisor's reach, and has the program's output still open."""
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        command = [sys.executable, "-I", "-S", "-c", GIVE_AWAY, address]
        error = failure(ExternalProcess(command), "first")
        assert "ended with exit status 3 before its first answer" in str(error)

        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            os.close(descriptors[0])


GIVE_AWAY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as to:
    to.connect(sys.argv[1])
    socket.send_fds(to, [b"x"], [1])
sys.exit(3)
"""


@pytest.fixture
def shell() -> Iterator[ExternalProcess]:
    """A program as it is, which everybody has."""
    with ExternalProcess(["sh"], Marker("echo {marker}")) as shell:
        shell.call("count=0")
        yield shell


def test_an_interactive_program_keeps_its_state(shell: ExternalProcess) -> None:
    assert [shell.call("count=$((count+1)); echo $count") for _ in range(3)] == ["1", "2", "3"]
    assert shell.call("echo one\necho\necho '  three  '\n") == "one\n\n  three  "
    assert shell.call("") == ""
    assert shell.call("printf 'no end'") == "no end"


def test_a_complaint_is_an_error_and_leaves_the_program_warm(shell: ExternalProcess) -> None:
    error = failure(shell, "echo half a result; no-such-command; count=7")
    assert type(error) is ProgramError
    assert re.fullmatch("sh complained: .*no-such-command.*not found", str(error))
    assert error.stdout == "half a result"
    assert shell.call("echo $count") == "7"


def test_what_an_interactive_program_writes_late_is_no_part_of_the_next_reply(
    shell: ExternalProcess, tmp_path: Path
) -> None:
    late, done = tmp_path / "late", tmp_path / "done"
    shell.call(
        f"(until [ -e {late} ]; do sleep 0.01; done; echo late; echo late >&2; touch {done}) &"
    )
    late.touch()
    wait_until(done.exists, "it has been written")
    assert shell.call("echo new") == "new"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "echo last words; exit 3",
            "sh ended with exit status 3 in the middle of a call\n"
            "--- the end of its stdout ---\nlast words",
        ),
        ("kill -KILL $$", "sh was killed by SIGKILL in the middle of a call"),
        ("exec >&-; sleep 1000", "sh closed its output in the middle of a call"),
    ],
)
@pytest.mark.usefixtures("no_time_for_the_exit_status")
def test_an_interactive_program_that_ends(command: str, words: str, shell: ExternalProcess) -> None:
    assert words in str(failure(shell, command))
    assert shell.call("echo ${count:-new}") == "new"


def test_an_interactive_program_that_repeats_its_input() -> None:
    with (
        ExternalProcess(["sh", "-v"], Marker("echo {marker}")) as shell,
        pytest.raises(ProgramError, match="complained"),
    ):
        shell.call("echo 1")  # it repeats it on stderr

    repeating = ["sh", "-c", 'while read -r line; do echo "$line"; eval "$line"; done']
    with ExternalProcess(repeating, Marker("echo {marker}")) as shell:
        assert shell.call("echo 1") == "echo 1\n1"


@pytest.mark.parametrize("request_text", ["cat", "echo 'never closed", "if true", "(", "read line"])
def test_an_unfinished_request_fails_at_once(request_text: str, shell: ExternalProcess) -> None:
    error = failure(shell, request_text)
    assert (type(error), error.stdout, error.stderr) == (ProcessError, "", "")
    assert "sh waits for more input, and was ended: the request is not finished" in str(error)
    assert shell.call("echo ${count:-new}") == "new"


def test_an_interactive_program_that_hangs(
    shell: ExternalProcess, clock: Clock, tmp_path: Path
) -> None:
    reached = tmp_path / "reached"
    request = f"echo begun; touch {reached}; sleep 1000"
    error = failure_at_the_deadline(shell, request, clock, reached)
    assert type(error) is ProcessTimeoutError
    assert error.stdout.endswith("begun")
    assert shell.call("echo ${count:-new}") == "new"
