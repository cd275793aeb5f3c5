r"""Protocols: how one request and its reply cross the pipe to an external program.

A protocol is a function ``(pipe, request) -> reply``. It writes the request with ``pipe.write`` and
reads with ``pipe.readline`` or ``pipe.read_until``; these raise the right error when the program
dies or the deadline passes. ``pipe.stderr()`` is the end of the program's standard error in this
call.

A protocol raises `ProgramError` where the program has answered with an error and is ready for the
next request: such a program stays warm. After any other exception the program's streams may be out
of step, and the program is ended. (So a protocol calls no other program: the other's `ProgramError`
would be taken for its own.)

Example:
    A protocol for ``dc``, which reads reverse Polish expressions and answers each with a line:

    >>> import shutil
    >>> from gc_warm import ExternalProcess
    >>> def polish(pipe, request):
    ...     pipe.write(f"{request} p c\n")         # evaluate, print, clear the stack
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
_decoder = json.JSONDecoder()

# places at either end of a line where a reply may begin; a line of noise must not take for ever
_PLACES = 20

# characters of an error: so long a text as one reads, and as can travel back to the client
_ERROR_LENGTH = 8192

_SHOWN = 200  # characters of a wrong reply in a message

_WITHOUT_ID = (
    "printed an object without the id of the request: {line}\n"
    'A reply is one line, {{"id": <the id of the request>, "reply": ...}}; '
    "what is no reply belongs on stderr"
)

# one for all programs of this process: two of them never wait for the same
_numbers = itertools.count(1)


def json_lines(pipe: Pipe, request: Any) -> Any:
    """Exchange one JSON object a line each way; skip other output, which is noise.

    The program reads ``{"id": 7, "request": ...}`` and writes ``{"id": 7, "reply": ...}``, or
    ``"error"`` with a text in place of ``"reply"``. Every request has another id, a whole number;
    since a reply repeats it, one that comes late or twice is never taken for the next. The program
    may announce that it is up with a reply to 0, at which the time allowed for its start is over.

    Before the program's first reply, an object without an id, or without a reply beside it, is
    taken for a reply that lacks it, which is an error.

    For a program in Python, `gc_warm.worker.program.serve` does all of it; the simplest that works
    without it, and without gc_warm, is

        import json, sys
        for line in sys.stdin:
            message = json.loads(line)
            reply = compute(message["request"])
            print(json.dumps({"id": message["id"], "reply": reply}), flush=True)

    Args:
        pipe: The program's streams.
        request: A value that JSON can express, see `in_json`.

    Returns:
        The reply.

    Raises:
        ProgramError: The program answered with an error.
        ProcessError: The program answers in another form; the message says what is missing.
        TypeError: JSON cannot express the request; nothing has been sent.
        ValueError: JSON cannot express the request, such as one that contains itself; nothing has
            been sent.
    """
    number = next(_numbers)
    pipe.write(in_json({"id": number, "request": request}) + "\n")

    while True:
        line = pipe.readline()
        message = _object(line)
        if message is None:
            if re.match(_REPLY.format(number=number), line):
                raise pipe.error(ProcessError, f"answered in invalid JSON: {line[:_SHOWN]}")
            continue

        reply_id = message.get("id")
        if reply_id == 0:
            pipe.ready()

        is_ours = reply_id == number or reply_id == str(number)
        if is_ours:
            error = message.get("error")
            if error is not None:
                raise _program_error(pipe, error)
            if "reply" in message:
                return message["reply"]

        if not pipe.answered:
            _refuse_wrong_form(pipe, message, is_ours, line)


def _program_error(pipe: Pipe, error: Any) -> ProcessError:
    text = error if isinstance(error, str) else json.dumps(error)
    shortened = ledger.shortened(text, _ERROR_LENGTH)
    return pipe.error(ProgramError, f"answered with an error: {shortened}")


def _refuse_wrong_form(pipe: Pipe, message: dict[str, Any], is_ours: bool, line: str) -> None:
    """Raise an error that names what an object lacks to be a reply."""
    if is_ours and "request" not in message:
        what = f'answered with neither "reply" nor "error" beside the id: {line[:_SHOWN]}'
        raise pipe.error(ProcessError, what)

    if "id" not in message:
        raise pipe.error(ProcessError, _WITHOUT_ID.format(line=line[:_SHOWN]))


def _object(line: str) -> dict[str, Any] | None:
    """Return the JSON object that is the whole of *line*, or its end.

    Noise before the object is what the program has printed without a line's end.
    """
    if line.startswith("{"):
        message = _object_from(line, 0)
        if message is not None:
            return message

    places = [place.start() for place in _OBJECT.finditer(line)]
    for place in (*places[:_PLACES], *places[-_PLACES:]):
        message = _object_from(line, place)
        if message:
            return message
    return None


def _object_from(line: str, start: int) -> dict[str, Any] | None:
    """Return the JSON object from *start* to the end of *line*, or None if there is none."""
    try:
        message, end = _decoder.raw_decode(line, start)
    except (ValueError, RecursionError):
        return None

    is_whole = isinstance(message, dict) and not line[end:].strip()
    return message if is_whole else None


def _expressible(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"JSON cannot express {type(value).__name__}: {ledger.describe(value)}")


_encoder = json.JSONEncoder(default=_expressible)


def in_json(value: Any) -> str:
    """Return a value as JSON.

    A path becomes a text; arrays and numbers of NumPy become lists and numbers. As Python's
    ``json`` has it, keys of a dict become text, and NaN and infinity are written in a way that
    programs in other languages may not be able to read.

    Args:
        value: The value.

    Raises:
        TypeError: JSON cannot express the value.
        ValueError: The value contains itself.
    """
    return _encoder.encode(value)


@dataclass(frozen=True)
class Marker:
    r"""The protocol for an interactive program as it is, which prints a random marker on request.

    The program is made to print a marker before and after each request. Its output between the two
    is the reply, so neither a banner nor late output of an earlier request is part of it. Output on
    stderr during the call is an error, since such programs report success with an empty answer.

    The program must answer on a pipe as it does on a terminal. One that buffers its output until
    much has come together is started with ``stdbuf -oL``; one that writes to stderr what is no
    error, with ``sh -c "exec program 2>/dev/null"``.

    Attributes:
        command: A line that makes the program print a text and a newline, with ``{marker}`` in
            place of that text.

    Raises:
        ValueError: There is no ``{marker}`` in the command.

    Example:
        bc = ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"'))
        sqlite = ExternalProcess(["sqlite3", "-batch"], Marker(".print {marker}"))
        lammps = ExternalProcess(
            ["stdbuf", "-oL", "lmp", "-log", "none"], Marker('print "{marker}"')
        )
    """

    command: str

    def __post_init__(self) -> None:
        if "{marker}" not in self.command:
            raise ValueError(
                f"Marker({self.command!r}): "
                "the command that prints the marker must contain {marker}"
            )

    def __call__(self, pipe: Pipe, request: Any) -> str:
        """Send a request, and return what the program prints, without trailing blanks of lines.

        Args:
            pipe: The program's streams.
            request: One or more lines of the program's own language.

        Raises:
            ProgramError: The program wrote to stderr meanwhile, and that is the message.
            TypeError: The request is not text; nothing has been sent.
        """
        if not isinstance(request, str):
            raise TypeError(
                f"a request to {pipe.name} is text in its own language, "
                f"not {type(request).__name__}: {request!r}"
            )

        begin = secrets.token_hex(16)
        end = secrets.token_hex(16)
        if not pipe.answered:
            pipe.write(self._printing(begin))
            pipe.read_until(begin, self._echo(begin))
            pipe.forget()
            pipe.ready()

        pipe.write(f"{self._printing(begin)}{request}\n{self._printing(end)}")
        pipe.read_until(begin, self._echo(begin))
        reply = pipe.read_until(end, self._echo(end))

        complaint = pipe.stderr()
        if complaint:
            raise pipe.error(ProgramError, f"complained: {complaint}")
        return reply

    def _printing(self, marker: str) -> str:
        return self.command.replace("{marker}", marker) + "\n"

    def _echo(self, marker: str) -> str | None:
        """Return the end of a line in which the program repeats the command.

        It is None for a command that is nothing but the marker.
        """
        command = self._printing(marker).rstrip()
        return None if command == marker else command
