"""Random sequences of calls: no reply to another request, no failure as success, nor the reverse.

The model programs do what a request names, and answer with the number of the request: so a reply
that belongs to another one is told at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gc_warm import ExternalProcess, Marker, ProcessError, ProgramError, json_lines
from gc_warm.programs.pipe import Pipe
from gc_warm.programs.protocols import Protocol
from tests.programs.test_recipes import INSTALLED, Talk
from tests.support import wait_until

CALLS = 5
"""Calls in a sequence."""

SEQUENCES = int(os.environ.get("GC_WARM_SEQUENCES", "100"))
"""Sequences of the marked tests; `.ci/run --full` has a thousand."""

JSON_MODEL = """
import json, os, signal, sys, threading, time

def say(message):
    os.write(1, (json.dumps(message) + "\\n").encode())

for line in sys.stdin:
    message = json.loads(line)
    kind, number = message["request"]
    if kind == "slow":
        time.sleep(0.01)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "noisy":
        os.write(1, b'noise {"id": 1, "reply": 0}\\n')
        os.write(2, b"noise\\n")
        threading.Timer(0.001, os.write, (1, b"late noise\\n")).start()
    elif kind == "late":
        time.sleep(1000)
    if kind == "failing":
        say({"id": message["id"], "error": f"failed {number}"})
    else:
        say({"id": message["id"], "reply": str(number)})
        if kind == "noisy":
            say({"id": message["id"], "reply": "again"})
"""

LINE_MODEL = """
import os, signal, sys, threading, time

for line in sys.stdin:
    kind, number = line.split()
    if kind == "slow":
        time.sleep(0.01)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "late":
        time.sleep(1000)
    os.write(1, f"{'bad' if kind == 'failing' else 'ok'} {number}\\n".encode())
    if kind == "noisy":
        time.sleep(int(number) % 3 / 1000)
        os.write(1, b"ok 0\\n")
"""

IN_SHELL = {
    "good": "echo {number}",
    "failing": "echo half; echo failed {number} >&2",
    "unfinished": "echo {number}; echo 'open",
    "slow": "sleep 0.01; echo {number}",
    "killed": "kill -KILL $$",
    "late": "sleep 1000",
}


def in_lines(pipe: Pipe, request: tuple[str, int]) -> str:
    """A protocol that takes the next line for the reply, as one writes it first."""
    kind, number = request
    pipe.write(f"{kind} {number}\n")
    status, _, text = pipe.readline().partition(" ")
    if status == "bad":
        raise ProgramError(f"failed {text}")
    return text


in_shell = Marker("echo {marker}")
in_shell_on_both = Marker("echo {marker}; echo {error_marker} >&2")


class Model:
    """A program, and the way in which it is asked to do what the name of a kind says."""

    def __init__(
        self, program: ExternalProcess, request: Callable[[str, int], Any], kinds: set[str]
    ) -> None:
        self.program = program
        self.request = request
        self.kinds = sorted(kinds)
        self.is_strict = False


@contextlib.contextmanager
def model(name: str) -> Iterator[Model]:
    kinds = {"good", "failing", "slow", "noisy", "killed", "late"}
    if name == "json_lines":
        program = in_python(JSON_MODEL, json_lines)
        found = Model(program, lambda kind, number: [kind, number], kinds)
    elif name == "lines":
        program = in_python(LINE_MODEL, in_lines)
        found = Model(program, lambda kind, number: (kind, number), kinds)
        found.is_strict = True
    else:
        command = ["bash", "-c", "exec sh 2> >(sed -u s/^// >&2)"] if name == "sed" else ["sh"]
        program = ExternalProcess(command, in_shell_on_both if name == "sed" else in_shell)
        request = lambda kind, number: IN_SHELL[kind].format(number=number)  # noqa: E731
        found = Model(program, request, set(IN_SHELL))

    with program:
        yield found


def in_python(source: str, protocol: Protocol) -> ExternalProcess:
    def say_hello(pipe: Pipe) -> None:
        protocol(pipe, ("good", 0))

    return ExternalProcess([sys.executable, "-S", "-c", source], protocol, on_start=say_hello)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ProcessError as error:
        return error


def check(model: Model, kind: str, number: int, may_be_refused: bool) -> None:
    """Make a call, and see that it ends as it has to."""
    seconds = 0.05 if kind == "late" else 60
    request = model.request(kind, number)
    found = outcome(lambda: model.program.call(request, timeout=seconds))
    what = f"{kind} {number}: {found!r}"

    if may_be_refused and type(found) is ProcessError:
        assert "which no call has read" in str(found), what
    elif kind == "failing":
        assert isinstance(found, ProgramError), what
        assert f"failed {number}" in str(found), what
    elif kind in ("killed", "late", "unfinished"):
        assert isinstance(found, ProcessError), what
        assert not isinstance(found, ProgramError), what
    else:
        assert found == str(number), what


def kill(program: ExternalProcess) -> None:
    """Kill a program that is idle, and wait until that is known: else a call may meet its end."""
    assert program.pid is not None
    assert program._program is not None
    pipe = program._program._pipe
    os.kill(program.pid, signal.SIGKILL)
    wait_until(lambda: pipe.over, "its end is known")


def run_sequences(model: Model, seeds: range) -> None:
    numbers = iter(range(1, 10**9))
    before = ""
    for seed in seeds:
        chance = random.Random(seed)
        for _ in range(CALLS):
            kind = chance.choice(model.kinds)
            # of a program that writes unasked, this call or the next one may be refused
            may_be_refused = model.is_strict and "noisy" in (kind, before)
            check(model, kind, next(numbers), may_be_refused)
            before = kind

            if model.program.pid is not None and chance.random() < 0.05:
                kill(model.program)


@pytest.mark.parametrize(
    "sequences", [range(2), pytest.param(range(2, SEQUENCES), marks=pytest.mark.programs)], ids=str
)
@pytest.mark.parametrize("name", ["json_lines", "lines", "marker", "sed"])
def test_no_call_ends_as_another(name: str, sequences: range) -> None:
    with model(name) as found:
        run_sequences(found, sequences)


QUESTIONS = {
    "bc": "{number}+0",
    "sqlite3": "select {number};",
    "psql": "select {number};",
    "gnuplot": "print {number}",
    "octave-cli": "disp({number})",
    "R": "cat({number})",
    "lmp": 'print "{number}"',
}
SLOW_TO_START = ("octave-cli", "R", "lmp")


@pytest.mark.programs
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("talk", INSTALLED, ids=[talk.program for talk in INSTALLED])
def test_no_call_of_a_recipe_ends_as_another(talk: Talk) -> None:
    numbers = iter(range(10, 10**6))
    sequences = SEQUENCES // 10 if talk.program in SLOW_TO_START else SEQUENCES
    kinds = ["good", "good", "good", "good", "failing", "warning", "unfinished", "killed", "late"]

    with talk.make() as program:
        program.call("")
        for seed in range(sequences):
            chance = random.Random(seed)
            for kind in chance.choices(kinds, weights=[*[8] * 6, 1, 1, 0.2], k=CALLS):
                check_recipe(talk, program, kind, next(numbers), chance)


def check_recipe(
    talk: Talk, program: ExternalProcess, kind: str, number: int, chance: random.Random
) -> None:
    question = QUESTIONS[talk.program].format(number=number)
    if kind == "good":
        assert program.call(question) == str(number)
    elif kind == "failing" and talk.error[0]:
        with pytest.raises(ProgramError, match=talk.error[1]):
            program.call(talk.error[0])
    elif kind == "warning":
        assert program.call(talk.warning[0]) == talk.warning[1]
    elif kind == "unfinished":
        with pytest.raises(ProcessError, match="waits for more input"):
            program.call(f"{question}\n{chance.choice(talk.unfinished)}")
    elif kind == "killed" and program.pid is not None:
        kill(program)
    elif kind == "late":
        found = outcome(lambda: program.call(talk.endless, timeout=0.3))
        assert isinstance(found, ProcessError), found


@pytest.mark.programs
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("talk", [talk for talk in INSTALLED if talk.program == "psql"])
def test_a_statement_without_its_semicolon_is_done_once(talk: Talk) -> None:
    with talk.make() as psql:
        psql.call("create temp table acc (n int); insert into acc values (1), (2);")
        assert psql.call("delete from acc where n = 1") == ""
        assert psql.call("select count(*) from acc") == "1"
        with pytest.raises(ProgramError, match="syntax error"):
            psql.call("delete from acc where (n = 2")
        assert psql.call(";") == ""
        assert psql.call("select count(*) from acc") == "1"
