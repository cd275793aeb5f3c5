"""Each recipe whose program is installed survives what users do to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gc_warm import (
    ExternalProcess,
    Marker,
    ProcessDiedError,
    ProcessError,
    ProcessTimeoutError,
    ProgramError,
)
from gc_warm.programs import recipes
from gc_warm.programs.pipe import Pipe

pytestmark = pytest.mark.programs


@dataclass(frozen=True)
class Talk:
    """What is said to a program, and what it answers."""

    program: str
    make: Callable[[], ExternalProcess]
    good: tuple[str, str]
    error: tuple[str, str]  # and a part of the message
    unfinished: tuple[str, ...]
    no_end: tuple[str, str]  # output without a newline at its end
    much: str  # 10 MB
    warning: tuple[str, str]
    endless: str
    other_error: tuple[str, str] = ("", "")


X16 = "x" * 1000
FIT = "$d << EOD\n1 2\n2 4\n3 6\nEOD\nb = 1\nfit b * x $d via b"

TALKS = [
    Talk(
        "bc",
        lambda: recipes.bc(setup="scale=3"),
        ("10/4", "2.500"),
        ("1/0", "(?i)divide by zero"),
        ("define f(x) {", '"open', "if (1) {"),
        ('print "a"', "a"),
        f'for (i = 0; i < 10000; i++) print "{X16}"',
        ("x = 1", ""),
        "while (1) {}",
        ("2 +* 3", "syntax error"),
    ),
    Talk(
        "sqlite3",
        lambda: recipes.sqlite3(setup="create table t (n); insert into t values (1), (2);"),
        ("select count(*), '' from t;", "2|"),
        ("select * from nowhere;", "no such table: nowhere"),
        ("select 'open", "create trigger a after insert on t begin", "select /* open"),
        (".mode list\n.separator , ''\nselect 'a';\n.separator | \"\\n\"", "a"),
        "select replace(hex(zeroblob(5000000)), '0', 'x');",
        ("select 1", "1"),
        "with recursive c(n) as (select 1 union all select n from c) select sum(n) from c;",
        ("select (1", "incomplete input|syntax error"),
    ),
    Talk(
        "psql",
        lambda: recipes.psql(setup="create temp table t (n int); insert into t values (1), (2);"),
        ("select count(*), '' from t;", "2|"),
        ("select * from nowhere;", 'relation "nowhere" does not exist'),
        ("select 'open", "select $$open", "copy t from stdin;"),
        ("\\echo -n a", "a"),
        "select repeat('x', 10000000);",
        ("do $$ begin raise notice E'two\\nlines'; end $$;", ""),
        "select sum(n) from generate_series(1, 100000000000) as s(n);",
        ("select (1", "syntax error"),
    ),
    Talk(
        "gnuplot",
        lambda: recipes.gnuplot(setup="a = 2"),
        ("print a + 1", "3"),
        ("plot sin(", "invalid expression"),
        ("if (1) {", "$data << EOD"),
        ('set print "-"\nprint "a"', "a"),
        f'do for [i=1:10000] {{ print "{X16}" }}',
        ("set terminal dumb\nset output '/dev/null'\nplot '-'\n1 2\ne\n" + FIT, ""),
        "while (1) {}",
        ("no_such_command", "invalid command"),
    ),
    Talk(
        "octave-cli",
        lambda: recipes.octave(setup="a = 2;"),
        ("disp(a + 1)", "3"),
        ("no_such_function(1)", "'no_such_function' undefined"),
        ("if 1", "x = [1 2", "(1 +"),
        ("printf('a')", "a"),
        "disp(repmat('x', 1, 10000000))",
        ("warning('mind this')", ""),
        "while true; end",
        ("x = 1 +", "parse error"),
    ),
    Talk(
        "R",
        lambda: recipes.r(setup="a <- 2"),
        ("cat(a + 1)", "3"),
        ("no_such_function(1)", "could not find function"),
        ("f <- function(x) {", "x <- 'open", "x <-", "(1 +"),
        ("cat('a')", "a"),
        "cat(strrep('x', 10000000))",
        ("rm('.gc_warm'); message('mind this'); warning('and this')", ""),
        "while (TRUE) {}",
        ("1 +* 2", "unexpected '*'"),
    ),
    Talk(
        "lmp",
        lambda: recipes.lammps(setup="variable a equal 2"),
        ('print "$(v_a + 1)"', "3"),
        ("", ""),
        ('print """open',),
        ("shell printf a", "a"),
        f"shell yes {X16} | head -n 10000",
        ("variable b equal 1", ""),
        "shell sleep 1000",
    ),
]


def is_installed(talk: Talk) -> bool:
    servers = [str(folder) for folder in Path("/usr/lib/postgresql").glob("*/bin")]
    path = os.pathsep.join([os.environ["PATH"], *servers])
    needed = ["psql", "postgres"] if talk.program == "psql" else [talk.program]
    return all(shutil.which(name, path=path) for name in needed)


INSTALLED = [talk for talk in TALKS if is_installed(talk)]
"""Of these, .ci/run installs bc, gnuplot, lmp and sqlite3."""


@pytest.fixture(scope="module", params=INSTALLED, ids=[talk.program for talk in INSTALLED])
def talk(request: pytest.FixtureRequest, server: None) -> Talk:
    talk: Talk = request.param
    return talk


@pytest.fixture
def program(talk: Talk) -> Iterator[ExternalProcess]:
    with talk.make() as program:
        yield program


def test_it_answers(talk: Talk, program: ExternalProcess) -> None:
    question, answer = talk.good
    assert [program.call(question) for _ in range(3)] == [answer] * 3
    assert program.call("") == ""
    question, answer = talk.no_end
    assert program.call(question) == answer
    question, answer = talk.warning
    assert program.call(question) == answer
    question, answer = talk.good
    assert program.call(question) == answer


def test_an_error_leaves_it_warm(talk: Talk, program: ExternalProcess) -> None:
    program.call("")
    pid = program.pid
    for request, words in (talk.error, talk.other_error):
        if request:
            with pytest.raises(ProgramError, match=words):
                program.call(request)
            assert program.call(talk.good[0]) == talk.good[1]
    assert program.pid == pid


def test_an_unfinished_request_fails_at_once(talk: Talk, program: ExternalProcess) -> None:
    for request in talk.unfinished:
        with pytest.raises(ProcessError, match="waits for more input, and was ended"):
            program.call(request)
        assert program.call(talk.good[0]) == talk.good[1]


def test_it_prints_much(talk: Talk, program: ExternalProcess) -> None:
    assert program.call(talk.much).replace("\n", "") == "x" * 10_000_000
    assert program.call(talk.good[0]) == talk.good[1]


def test_an_interrupted_call_leaves_nothing_behind(talk: Talk, program: ExternalProcess) -> None:
    program.call("")
    with pytest.raises(ProcessTimeoutError):
        program.call(talk.endless, timeout=0.5)
    assert program.call(talk.good[0]) == talk.good[1]


@pytest.mark.skipif(not shutil.which("bc"), reason="bc is not installed")
def test_on_start_comes_after_the_setup() -> None:
    def add(pipe: Pipe) -> None:
        pipe.write("x = x + 1\n")

    with recipes.bc(setup="x = 1", on_start=add) as bc:
        assert bc.call("x") == "2"


def test_errors_of_lammps_end_it() -> None:
    if shutil.which("lmp") is None:
        pytest.skip("lmp is not installed")
    with recipes.lammps() as lammps:
        with pytest.raises(ProcessDiedError, match="Unknown command: pair_stile"):
            lammps.call("pair_stile lj/cut 2.5")
        assert lammps.call('print "up"') == "up"


def test_a_program_in_a_terminal() -> None:
    if shutil.which("script") is None:
        pytest.skip("script is not installed")
    protocol = Marker("echo {marker}", error="not found$")
    program = ["sh", "-c", 'while read -r line; do eval "$line"; done']
    with ExternalProcess(recipes.in_terminal(program), protocol) as shell:
        assert shell.call("test -t 0 && test -t 1 && echo yes") == "yes"
        assert shell.call("echo " + "x" * 10_000) == "x" * 10_000
        with pytest.raises(ProgramError, match=r"complained: .*no-such-command: not found"):
            shell.call("no-such-command")
        assert shell.call("printf 'a\\r\\n\\t b '") == "a\r\n\t b "
