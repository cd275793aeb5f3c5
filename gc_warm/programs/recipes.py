r"""Programs that many sites have, as `ExternalProcess` objects: how each is started and talked to.

Each of these functions returns a program that is started at its first call. Its requests are text
in its own language, and its replies are what it prints. Of each it is known what is an error and
what a warning, and that a request which is not finished is an error, too, and not the beginning of
the next one. After an error the program is still warm, but for LAMMPS, which ends.

The arguments are those of the program's command line. Two options are common to all, by name:
``setup``, a request to be made at every start; and those of `ExternalProcess`, such as ``env`` or
``restart``. An ``on_start`` comes after the setup.

Example:
    As a module that workers import:

        from gc_warm.programs import recipes

        runs = recipes.sqlite3("/scratch/runs.db", setup=".timeout 10000")
        bc = recipes.bc(setup="scale=20", call_timeout=60)
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from gc_warm.programs.pipe import Pipe
from gc_warm.programs.process import ExternalProcess
from gc_warm.programs.protocols import Marker

# a comment, and a continued line, end at an empty line
_EMPTY = "\n"

# In brackets a semicolon does not send a statement, but \gset sends whatever there is: after a
# finished statement, one that does no harm.
_PSQL_END = ";\nselect 1 as gc_warm \\gset"
# With -f, each message of psql begins with its place; the further lines of a notice look like
# anything.
_PSQL_ERROR = r"^psql:(?!\S+:\d+: (NOTICE|WARNING|INFO|LOG|DEBUG\d?):)"

_GNUPLOT_SETUP = "set fit quiet\n"  # else each fit tells its steps on stderr
_GNUPLOT_NOTICE = r"^\s*$|^\s*(line \d+: )?[Ww]arning:"

_OCTAVE_SETUP = 'PS1(""); PS2(""); page_screen_output(false); page_output_immediately(true);\n'
_OCTAVE_NOTICE = r"^\s*$|^warning:|^    \S+ at line \d+ column \d+$"

# The marker is printed for an expression that is nothing but the marker's: in `x <-`, continued by
# it, it is not printed. Attached, its function is none of the objects that users remove. An error
# does not end R; it is told from warnings and messages by a word.
_R_SETUP = """\
options(error = quote(cat("gc_warm error: ", geterrmessage(), sep = "", file = stderr())))
attach(list(.gc_warm = function(marker) invisible(marker)), name = "gc_warm")
invisible(addTaskCallback(function(expr, value, ok, visible) {
  if (is.call(expr) && identical(expr[[1]], quote(.gc_warm))) {
    cat(value, "\\n", sep = "")
    flush(stdout())
  }
  TRUE
}))
"""


def bc(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return the calculator ``bc``."""
    protocol = Marker('print "{marker}\\n"', terminator=";")
    options["env"] = {"BC_LINE_LENGTH": "0", **(options.get("env") or {})}
    return _process(["bc", "-q", *arguments], protocol, setup, options)


def sqlite3(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return SQLite's shell; give it the absolute path of a database."""
    protocol = Marker(".print {marker}", terminator=";")
    return _process(["sqlite3", "-batch", *arguments], protocol, setup, options)


def psql(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return PostgreSQL's shell, which prints rows only, unaligned.

    A request without its semicolon gets one. While a transaction is aborted, every request but its
    end is an error.
    """
    protocol = Marker("\\echo {marker}", terminator=_PSQL_END, error=_PSQL_ERROR)
    return _process(["psql", "-qAtX", *arguments, "-f", "-"], protocol, setup, options)


def gnuplot(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return gnuplot; what it prints is the reply."""
    command = 'set print "-"; print "{marker}"'
    protocol = Marker(command, terminator=_EMPTY, notice=_GNUPLOT_NOTICE)
    return _process(["gnuplot", *arguments], protocol, setup, options, _GNUPLOT_SETUP)


def octave(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return GNU Octave."""
    protocol = Marker('disp("{marker}");', terminator=_EMPTY, notice=_OCTAVE_NOTICE)
    # interactive, or the first error ends it
    command = ["octave-cli", "-qfi", "--no-line-editing", *arguments]
    return _process(command, protocol, setup, options, _OCTAVE_SETUP)


def r(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return R."""
    protocol = Marker('.gc_warm("{marker}")', error="^gc_warm error: ")
    command = ["R", "--vanilla", "--no-echo", *arguments]
    return _process(command, protocol, setup, options, _R_SETUP)


def lammps(*arguments: str, setup: str = "", **options: Any) -> ExternalProcess:
    """Return LAMMPS, which ends at an error; an input begins with ``clear``."""
    protocol = Marker('print "{marker}"', terminator=_EMPTY, notice=r"^\s*$|^WARNING:")
    command = ["stdbuf", "-oL", "lmp", "-log", "none", *arguments]
    return _process(command, protocol, setup, options)


def in_terminal(command: Sequence[str]) -> list[str]:
    """Return the command that runs a program in a terminal of its own, by ``script``.

    For programs that hold output back, or refuse to answer, without one. Errors come among the
    replies, so that their protocol is `Marker` with ``error``. Requests that are not finished are
    found at the deadline only.

    Args:
        command: The program and its arguments.
    """
    line = f"stty raw -echo && exec {shlex.join(command)}"
    return ["script", "-qfec", line, "/dev/null"]


def _process(
    command: list[str], protocol: Marker, setup: str, options: dict[str, Any], own_setup: str = ""
) -> ExternalProcess:
    """Return a program whose starts are followed by the setup of its recipe and of its user."""
    on_start = options.pop("on_start", None)

    def set_up(pipe: Pipe) -> None:
        pipe.write(own_setup)
        protocol(pipe, setup)
        if on_start is not None:
            on_start(pipe)

    has_setup = bool(own_setup or setup)
    return ExternalProcess(command, protocol, on_start=set_up if has_setup else on_start, **options)
