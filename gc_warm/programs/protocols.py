"""Protocols: how one request and its reply cross the pipe to an external program.

A protocol is a function ``(pipe, request) -> reply``. It writes the request with ``pipe.write`` and
reads with ``pipe.readline`` or ``pipe.read_until``; these raise what is to be raised when the
program dies or the deadline passes. ``pipe.stderr()`` is the end of what the program has written to
its standard error in this call. A protocol raises `ProgramError` where the program has answered
with an error and is ready for the next request: such a program stays warm. After any other
exception the program's streams may be out of step, and it is ended. (So a protocol calls no other
program: the other's `ProgramError` would be taken for its own.)

Example:
    A protocol for ``dc``, which reads reverse Polish expressions and answers each with a line:

    >>> import shutil
    >>> from gc_warm import ExternalProcess
    >>> def polish(pipe, request):
    ...     pipe.write(f"{request} p c\\n")         # evaluate, print, clear the stack
    ...     return float(pipe.readline())
    >>> if shutil.which("dc"):
    ...     with ExternalProcess(["dc"], polish) as dc:
    ...         print(dc.call("2 3 + 4 *"))
    ... else:
    ...     print(20.0)
    20.0

Built in are `json_lines` for programs that are written or adapted for it, and `Marker` for
interactive programs as they are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gc_warm.exceptions import ProcessError, ProgramError
from gc_warm.programs.pipe import Pipe
from gc_warm.worker import ledger

Protocol = Callable[[Pipe, Any], Any]

_OBJECT = re.compile(r'\{\s*"(?:id|reply|error)"\s*:')
_REPLY = r"""\s*\{{\s*["']id["']\s*:\s*["']?{number}["']?\s*,\s*["']?(?:reply|error)"""
# first and last ones in a line where a reply may begin; a line of noise must not take for ever
_PLACES = 20
# characters of an error: so long a text as one reads, and as can travel back to the client
_ERROR_LENGTH = 8192
_decoder = json.JSONDecoder()
_SHOWN = 200  # characters of a wrong reply in a message
# one for all programs of this process: two of them never wait for the same
_numbers = itertools.count(1)


def json_lines(pipe: Pipe, request: Any) -> Any:
    """One JSON object a line each way; what else the program prints is noise and is skipped.

    Before its first reply, an object without an id, or without a reply beside it, is taken for a
    reply that lacks it, which is an error.

    The program reads ``{"id": 7, "request": ...}`` and writes ``{"id": 7, "reply": ...}``, or
    ``"error"`` with a text in place of ``"reply"``. Every request has another id, a whole number;
    since a reply repeats it, one that comes late or twice is never taken for the next. It may
    announce that it is up with a reply to 0, at which the time allowed for its start is over. For a
    program in Python, `gc_warm.worker.program.serve` does all of it; the simplest that works
    without it, and without gc_warm, is

        import json, sys
        for line in sys.stdin:
            message = json.loads(line)
            print(json.dumps({"id": message["id"], "reply": compute(message["request"])}), flush=True)

    Args:
        pipe: The program's streams.
        request: What JSON can express, see `in_json`.

    Returns:
        The reply.

    Raises:
        ProgramError: The program answered with an error.
        ProcessError: It answers in another form; the message says what is missing.
        TypeError: JSON cannot express the request; nothing has been sent.
        ValueError: Likewise.
    """
    number = next(_numbers)
    pipe.write(in_json({"id": number, "request": request}) + "\n")
    while True:
        message = _object(line := pipe.readline())
        if message is None:
            if re.match(_REPLY.format(number=number), line):
                raise pipe.error(ProcessError, f"answered in invalid JSON: {line[:_SHOWN]}")
            continue
        found = message.get("id")
        if found == 0:
            pipe.ready()
        if found == number or found == str(number):
            if (error := message.get("error")) is not None:
                text = error if isinstance(error, str) else json.dumps(error)
                raise pipe.error(
                    ProgramError, f"answered with an error: {ledger.shortened(text, _ERROR_LENGTH)}"
                )
            if "reply" in message:
                return message["reply"]
            if "request" not in message and not pipe.answered:
                raise pipe.error(
                    ProcessError,
                    f'answered with neither "reply" nor "error" beside the id: {line[:_SHOWN]}',
                )
        if "id" not in message and not pipe.answered:
            raise pipe.error(ProcessError, _WITHOUT_ID.format(line=line[:_SHOWN]))


_WITHOUT_ID = (
    "printed an object without the id of the request: {line}\n"
    'A reply is one line, {{"id": <the id of the request>, "reply": ...}}; what is no reply belongs on stderr'
)


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object in *line*, or at its end, after noise that had no line's end of its own."""
    found = _object_from(line, 0) if line.startswith("{") else None
    if found is None:
        places = [place.start() for place in _OBJECT.finditer(line)]
        tried = (_object_from(line, place) for place in (*places[:_PLACES], *places[-_PLACES:]))
        found = next(filter(None, tried), None)
    return found


def _object_from(line: str, start: int) -> dict[str, Any] | None:
    try:
        found, end = _decoder.raw_decode(line, start)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not line[end:].strip() else None


def _expressible(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"JSON cannot express {type(value).__name__}: {ledger.describe(value)}")


_encoder = json.JSONEncoder(default=_expressible)


def in_json(value: Any) -> str:
    """A value as JSON, where a path is a text, and arrays and numbers of NumPy are lists and numbers.

    As Python's ``json`` has it, keys of a dict become text, and NaN and infinity are written in a
    way that programs in other languages may not be able to read.

    Raises:
        TypeError: JSON cannot express it.
        ValueError: It contains itself.
    """
    return _encoder.encode(value)


@dataclass(frozen=True)
class Marker:
    r"""For an interactive program as it is: it is told to print a random marker before and after each request.

    What it prints between the two is the reply, so a banner or what an earlier request printed late
    is no part of it. Output on stderr during the call is an error, since such programs report
    success with an empty answer.

    The program must answer on a pipe as it does on a terminal. One that buffers its output until
    much has come together is started with ``stdbuf -oL``; one that writes to stderr what is no
    error, with ``sh -c "exec program 2>/dev/null"``.

    Attributes:
        command: A line that makes the program print a text and a newline, with ``{marker}`` in
            place of that text.

    Raises:
        ValueError: There is no ``{marker}`` in it.

    Example:
        bc = ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"'))
        sqlite = ExternalProcess(["sqlite3", "-batch"], Marker(".print {marker}"))
        lammps = ExternalProcess(["stdbuf", "-oL", "lmp", "-log", "none"], Marker('print "{marker}"'))
    """

    command: str

    def __post_init__(self) -> None:
        if "{marker}" not in self.command:
            raise ValueError(
                f"Marker({self.command!r}): the command that prints the marker must contain {{marker}}"
            )

    def __call__(self, pipe: Pipe, request: Any) -> str:
        """Send *request*, one or more lines of the program's own language; returns what it prints, without trailing blanks of lines.

        Raises:
            ProgramError: It wrote to stderr meanwhile; the message is what it wrote.
            TypeError: The request is not text; nothing has been sent.
        """
        if not isinstance(request, str):
            raise TypeError(
                f"a request to {pipe.name} is text in its own language, not {type(request).__name__}: {request!r}"
            )
        begin, end = secrets.token_hex(16), secrets.token_hex(16)
        if not pipe.answered:
            pipe.write(self._printing(begin))
            pipe.read_until(begin, self._echo(begin))
            pipe.forget()
            pipe.ready()
        pipe.write(f"{self._printing(begin)}{request}\n{self._printing(end)}")
        pipe.read_until(begin, self._echo(begin))
        reply = pipe.read_until(end, self._echo(end))
        if complaint := pipe.stderr():
            raise pipe.error(ProgramError, f"complained: {complaint}")
        return reply

    def _printing(self, marker: str) -> str:
        return self.command.replace("{marker}", marker) + "\n"

    def _echo(self, marker: str) -> str | None:
        """How a line ends in which the program repeats the command; None for a command that is nothing but the marker."""
        command = self._printing(marker).rstrip()
        return None if command == marker else command
