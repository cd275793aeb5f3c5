"""Marker with programs as they are: replies exactly as written, errors where they belong."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gc_warm import ExternalProcess, Marker, ProcessError, ProgramError

THROUGH_SED = ["bash", "-c", "exec sh 2> >(sed -u s/^/sh:/ >&2)"]
BOTH = Marker("echo {marker}; echo {error_marker} >&2")


@pytest.fixture(scope="module")
def shells() -> Iterator[dict[str, ExternalProcess]]:
    protocols = {
        "plain": Marker("echo {marker}"),
        "bytes": Marker("echo {marker}", encoding=None),
        "latin": Marker("echo {marker}", encoding="latin-1"),
        "notice": Marker("echo {marker}", notice="^(NOTICE|WARNING):"),
        "error": Marker("echo {marker}", error="^ERROR:"),
        "both": BOTH,
    }
    shells = {name: ExternalProcess(["sh"], protocol) for name, protocol in protocols.items()}
    for shell in shells.values():
        shell.call("")
    yield shells
    for shell in shells.values():
        shell.close()


@pytest.mark.parametrize(
    ("kind", "command", "reply"),
    [
        ("plain", "printf 'a\\tb\\t\\t\\n1\\t\\t\\t\\n'", "a\tb\t\t\n1\t\t\t"),
        ("plain", "printf '\\n  no end'", "\n  no end"),
        ("plain", "printf 'a\\n\\n'", "a\n"),
        ("plain", "printf 'a\\r\\n'", "a\r"),
        ("plain", "echo grün", "grün"),
        ("latin", "printf 'gr\\374n'", "grün"),
        ("bytes", "printf '\\377\\n'", b"\xff\n"),
        ("bytes", b"printf '\\377'", b"\xff"),
        ("plain", "head -c 10000000 /dev/zero | tr '\\0' x", "x" * 10_000_000),
        ("both", "echo fine", "fine"),
    ],
)
def test_replies_are_what_was_written(
    kind: str, command: Any, reply: Any, shells: dict[str, ExternalProcess]
) -> None:
    assert shells[kind].call(command) == reply


@pytest.mark.parametrize(
    ("kind", "command", "words"),
    [
        ("plain", "echo part; echo 'NOTICE: skipped' >&2", "complained: NOTICE: skipped"),
        ("notice", "echo 'NOTICE: skipped' >&2; echo no disk >&2", "complained: no disk"),
        ("error", "echo part; echo ERROR: no disk", "complained: ERROR: no disk$"),
        ("error", "echo 'ERROR: no disk' >&2; echo fine", "complained: ERROR: no disk"),
        ("plain", "printf 'gr\\374n'", r"wrote what is no utf-8: b'gr\\xfcn'; see Marker\(encod"),
        ("both", "echo half; echo bad >&2", "complained: bad"),
    ],
)
def test_errors_leave_the_program_warm(
    kind: str, command: str, words: str, shells: dict[str, ExternalProcess]
) -> None:
    shell = shells[kind]
    pid = shell.pid
    with pytest.raises(ProgramError, match=words):
        shell.call(command)
    assert shell.call("echo $$") == str(pid)


def test_an_early_error_is_not_lost_in_a_flood(shells: dict[str, ExternalProcess]) -> None:
    flood = "echo no disk >&2; n=0; while [ $n -lt 2000 ]; do echo NOTICE: $n >&2; n=$((n+1)); done"
    with pytest.raises(ProgramError, match=r"complained: no disk\nNOTICE: 0\n"):
        shells["notice"].call(flood)


@pytest.mark.parametrize(
    ("kind", "command"),
    [("notice", "echo NOTICE: x >&2; echo fine"), ("error", "echo x >&2; echo fine")],
)
def test_a_notice_is_no_error(kind: str, command: str, shells: dict[str, ExternalProcess]) -> None:
    assert shells[kind].call(command) == "fine"


def test_a_terminator_ends_what_is_not_finished() -> None:
    with ExternalProcess(["sh"], Marker("echo {marker}", terminator="\n")) as shell:
        assert shell.call("echo one \\") == "one"
        assert shell.call("echo two") == "two"


def test_errors_that_take_another_way_are_refused() -> None:
    with (
        ExternalProcess(THROUGH_SED, Marker("echo {marker}")) as shell,
        pytest.raises(ProcessError, match="the errors of sh take another way than its replies"),
    ):
        shell.call("echo 1")


@pytest.mark.parametrize("calls", [40, pytest.param(2000, marks=pytest.mark.programs)])
@pytest.mark.parametrize(
    "launcher", [pytest.param("mpiexec", marks=pytest.mark.programs), "sed", "none"]
)
def test_errors_of_either_way_belong_to_their_calls(launcher: str, calls: int) -> None:
    command = {"mpiexec": MPIEXEC, "sed": THROUGH_SED, "none": ["sh"]}[launcher]
    with ExternalProcess(command, BOTH) as shell:
        for number in range(calls):
            if number % 2:
                assert shell.call(f"echo {number}") == str(number)
            else:
                with pytest.raises(ProgramError, match=f"complained: (sh:)?bad {number}$"):
                    shell.call(f"echo half; echo bad {number} >&2")


MPIEXEC = ["mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "1", "sh"]


@pytest.mark.programs
def test_a_launcher_is_refused_without_a_marker_for_errors() -> None:
    with (
        ExternalProcess(MPIEXEC, Marker("echo {marker}")) as shell,
        pytest.raises(ProcessError, match="the errors of sh take another way than its replies"),
    ):
        shell.call("echo 1")


def test_a_marker_on_stderr_is_named() -> None:
    source = "import sys\nfor line in sys.stdin: print(line.split('\"')[1], file=sys.stderr)"
    with (
        ExternalProcess(
            [sys.executable, "-u", "-c", source], Marker('print "{marker}"')
        ) as program,
        pytest.raises(ProcessError, match="printed the marker on its standard error, and not on"),
    ):
        program.call("1+1")


def test_a_silent_computation_is_no_unfinished_request() -> None:
    with ExternalProcess(["sh"], Marker("echo {marker}")) as shell:
        counting = "n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; sleep 0.2; echo $n"
        assert shell.call(counting) == "200000"


READING_AHEAD = """
import queue, sys, threading, time
lines = queue.Queue()

def work():
    while (line := lines.get()) is not None:
        time.sleep(0.5 if "slow" in line else 0)
        print(line, end="", flush=True)

threading.Thread(target=work).start()
for line in sys.stdin:
    lines.put(line)
lines.put(None)
"""


def test_a_program_that_reads_ahead_is_not_taken_for_idle() -> None:
    with ExternalProcess([sys.executable, "-c", READING_AHEAD], Marker("{marker}")) as program:
        assert [program.call("quick"), program.call("slow"), program.call("quick")] == [
            "quick",
            "slow",
            "quick",
        ]


@pytest.mark.parametrize(
    ("command", "options", "error", "words"),
    [
        (
            "echo",
            {},
            ValueError,
            r"Marker\('echo'\): the command that prints the marker must contain",
        ),
        ("\\echo {marker}", {}, ValueError, "obeyed in the middle of a statement"),
        ("{marker}", {"error": "("}, ValueError, r"Marker\(error='\('\) is no regular expression"),
        (
            "{marker}",
            {"notice": "["},
            ValueError,
            r"Marker\(notice='\['\) is no regular expression",
        ),
        ("{marker}", {"encoding": "utf-9"}, LookupError, "unknown encoding: utf-9"),
    ],
)
def test_bad_markers_are_named(
    command: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Marker(command, **options)


def test_bytes_need_no_encoding(shells: dict[str, ExternalProcess]) -> None:
    with pytest.raises(TypeError, match=re.escape("is text in its own language, not bytes: b'x'")):
        shells["plain"].call(b"x")
