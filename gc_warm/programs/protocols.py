r"""Protocols: how one request and its reply cross the pipe to an external program.

A protocol is a function ``(pipe, request) -> reply``. It writes the request with ``pipe.write`` and
reads with ``pipe.readline`` or ``pipe.read_until``; these raise the right error when the program
dies or the deadline passes. ``pipe.stderr()`` is the end of the program's standard error in this
call.

A protocol raises `ProgramError` where the program has answered with an error and is ready for the
next request: such a program stays warm. After any other exception the program's streams may be out
of step, and the program is ended. (So a protocol calls no other program: the other's `ProgramError`
would be taken for its own.)

A reply belongs to its request, or the call fails: what a protocol leaves unread, and what the
program writes to standard output between two calls, is an error. A protocol that tells its reply
from other output, as those here do, says so with the decorator `chatty`.

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

import codecs
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from gc_warm.exceptions import ProcessError, ProgramError
from gc_warm.programs.pipe import Pipe
from gc_warm.worker import ledger

Protocol = Callable[[Pipe, Any], Any]
_AnyProtocol = TypeVar("_AnyProtocol", bound=Protocol)

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

_OTHER_WAY = (
    "cannot be called like this: the errors of {other} take another way than its replies, and "
    "could come too late to be seen. Have the marker printed on stderr, too, such as by "
    "Marker('echo {{marker}}; echo {{error_marker}} >&2'); or start the program without the one "
    "in between"
)

# one for all programs of this process: two of them never wait for the same
_numbers = itertools.count(1)


def chatty(protocol: _AnyProtocol) -> _AnyProtocol:
    """Decorate a protocol that tells its reply from whatever else the program writes.

    Such a protocol may leave output unread, which is dropped before the next call.

    Args:
        protocol: A protocol that skips what is not the reply to its request.
    """
    vars(protocol)["chatty"] = True
    return protocol


def is_chatty(protocol: Protocol) -> bool:
    """Return whether a protocol tells its reply from whatever else the program writes."""
    return bool(getattr(protocol, "chatty", False))


@chatty
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
        line = pipe.readline("surrogateescape")
        found = _object(line)
        if found is None:
            if re.match(_REPLY.format(number=number), line):
                raise pipe.error(ProcessError, f"answered in invalid JSON: {line[:_SHOWN]}")
            continue

        message, text = found
        reply_id = message.get("id")
        if reply_id == 0:
            pipe.ready()

        is_ours = reply_id == number or reply_id == str(number)
        if is_ours:
            if not text.isascii():
                pipe.decoded(text.encode(errors="surrogateescape"))  # an error if it is no text
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


def _object(line: str) -> tuple[dict[str, Any], str] | None:
    """Return the JSON object that is the whole of *line*, or its end; and that part of the line.

    Noise before the object is what the program has printed without a line's end.
    """
    if line.startswith("{"):
        message = _object_from(line, 0)
        if message is not None:
            return message, line

    places = [place.start() for place in _OBJECT.finditer(line)]
    for place in (*places[:_PLACES], *places[-_PLACES:]):
        message = _object_from(line, place)
        if message:
            return message, line[place:]
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
    is the reply, so neither a banner nor late output of an earlier request is part of it. A request
    that leaves the program waiting for more input, such as one with an open quote, is an error as
    soon as that can be seen (on Linux, of programs that read by themselves and not through a
    launcher), and else at the deadline.

    By default, any output on stderr during the call is an error, since such programs report success
    with an empty answer. Errors must not come later than the reply: a program whose errors take
    another way than its replies, as through ``mpiexec`` or a shell's ``2> >(...)``, is refused
    unless its command prints a marker on stderr, too.

    The program must answer on a pipe as it does on a terminal. One that buffers its output until
    much has come together is started with ``stdbuf -oL``.

    Attributes:
        command: One or more lines that make the program print a text and a newline, with
            ``{marker}`` in place of that text; and, if they make it print one on stderr as well,
            with ``{error_marker}`` in place of that.
        terminator: Lines that end a request which does not end by itself, such as ``;`` for SQL.
            They are sent after every request, so they must do no harm where there is nothing to
            end.
        error: A regular expression, for which each line of the output is searched, on stdout and on
            stderr: if it is found, the call is an error. None: any output on stderr is one.
        notice: A regular expression: lines in which it is found, on stderr, are no errors.
        encoding: The encoding of requests and replies. None for replies in bytes, exactly as the
            program wrote them, and requests in bytes or UTF-8.

    Raises:
        ValueError: There is no ``{marker}`` in the command, it begins with a backslash and there is
            no terminator, or an expression is not valid.
        LookupError: There is no such encoding.

    Example:
        bc = ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"'))
        sqlite = ExternalProcess(["sqlite3", "-batch"], Marker(".print {marker}"))
        lammps = ExternalProcess(
            ["stdbuf", "-oL", "lmp", "-log", "none"], Marker('print "{marker}"')
        )
    """

    command: str
    terminator: str = field(default="", kw_only=True)
    error: str | None = field(default=None, kw_only=True)
    notice: str | None = field(default=None, kw_only=True)
    encoding: str | None = field(default="utf-8", kw_only=True)

    chatty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if "{marker}" not in self.command:
            raise ValueError(
                f"Marker({self.command!r}): "
                "the command that prints the marker must contain {marker}"
            )

        # psql obeys such a command amid a statement, too, which is then part of the next request
        if self.command.lstrip().startswith("\\") and not self.terminator:
            raise ValueError(
                f"Marker({self.command!r}): such a command is obeyed in the middle of a statement, "
                "so that one which is not finished would look like a success: "
                "give terminator=';', too, or use gc_warm.programs.recipes.psql"
            )

        for name in ("error", "notice"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                text = f"Marker({name}={getattr(self, name)!r}) is no regular expression: {error}"
                raise ValueError(text) from None
        codecs.lookup(self.encoding or "utf-8")

    def __call__(self, pipe: Pipe, request: Any) -> Any:
        """Send a request, and return what the program prints, without the newline at its end.

        Args:
            pipe: The program's streams.
            request: One or more lines of the program's own language.

        Returns:
            The output as text, or in bytes if there is no encoding.

        Raises:
            ProgramError: The program wrote an error, and that is the message; or a reply that is no
                text in the encoding.
            ProcessError: The request is not finished; or errors take another way than replies.
            TypeError: The request is not text; nothing has been sent.
        """
        data = self._encoded(pipe, request)
        if not pipe.keeps_errors:
            self._make_ready(pipe)

        begin = _Marks()
        end = _Marks()
        terminator = f"{self.terminator}\n" if self.terminator else ""
        parts = [
            self._printing(begin).encode(),
            data,
            f"\n{terminator}{self._printing(end)}".encode(),
        ]
        pipe.write(b"".join(parts))
        pipe.told_all = True

        _, before = self._read_until(pipe, begin)
        reply, errors = self._read_until(pipe, end)
        if not self._marks_errors:
            errors = pipe.read_errors()
        # what is put in front of every line, the marker's too, by what is in between
        label = before.rpartition(b"\n")[2]
        if label == errors.rpartition(b"\n")[2]:
            errors = errors.removesuffix(label)
        self._check(pipe, reply, errors)
        return self._decoded(pipe, reply)

    def _encoded(self, pipe: Pipe, request: Any) -> bytes:
        if isinstance(request, str):
            return request.encode(self.encoding or "utf-8")
        if isinstance(request, bytes) and self.encoding is None:
            return request

        raise TypeError(
            f"a request to {pipe.name} is text in its own language, "
            f"not {type(request).__name__}: {request!r}"
        )

    def _make_ready(self, pipe: Pipe) -> None:
        """Wait until the program answers, and see that its errors come in time."""
        pipe.keeps_errors = True
        marks = _Marks()
        pipe.write(self._printing(marks))
        pipe.told_all = True
        try:
            self._read_until(pipe, marks)
        except ProcessError as error:
            if marks.out in pipe.read_errors().split():
                what = "printed the marker on its standard error, and not on its standard output"
                raise pipe.error(type(error), what) from None
            raise
        pipe.told_all = False

        other = pipe.way_of_errors()
        if other and not self._marks_errors:
            raise pipe.error(ProcessError, _OTHER_WAY.format(other=other))
        pipe.forget()
        pipe.ready()

    def _read_until(self, pipe: Pipe, marks: _Marks) -> tuple[bytes, bytes]:
        """Return what the program has written on both streams before it printed the markers."""
        reply = pipe.read_until(marks.out, self._echo(marks, marks.out))
        if not self._marks_errors:
            return reply, b""
        return reply, pipe.read_errors_until(marks.err, self._echo(marks, marks.err))

    def _check(self, pipe: Pipe, reply: bytes, errors: bytes) -> None:
        """Raise an error if the program has written one."""
        encoding = self.encoding or "utf-8"
        complaint = _from_first(errors.decode(encoding, "replace"), self._is_no_notice)
        if self.error is None:
            text = complaint
        else:
            outputs = (complaint, reply.decode(encoding, "replace"))
            texts = [_from_first(output, re.compile(self.error).search) for output in outputs]
            text = "\n".join(filter(None, texts))

        if text.strip():
            shortened = ledger.shortened(text.strip(), _ERROR_LENGTH)
            raise pipe.error(ProgramError, f"complained: {shortened}", stderr=complaint.strip())

    def _is_no_notice(self, line: str) -> bool:
        return self.notice is None or not re.search(self.notice, line)

    def _decoded(self, pipe: Pipe, reply: bytes) -> str | bytes:
        if self.encoding is None:
            return reply

        try:
            return pipe.decoded(reply.removesuffix(b"\n"), self.encoding)
        except ProcessError as error:  # it has answered, and is in step
            message = f"{error.message}; see Marker(encoding=...)"
            raise ProgramError(message, None, error.stdout, error.stderr) from None

    @property
    def _marks_errors(self) -> bool:
        return "{error_marker}" in self.command

    def _printing(self, marks: _Marks) -> str:
        """Return the command that prints markers, with the line's end."""
        command = self.command.replace("{marker}", marks.out.decode())
        return command.replace("{error_marker}", marks.err.decode()) + "\n"

    def _echo(self, marks: _Marks, marker: bytes) -> bytes | None:
        """Return the end of a line in which the program repeats the command.

        It is None for a command that is nothing but the marker.
        """
        before, _, after = self._printing(marks).encode().partition(marker)
        line = before.rpartition(b"\n")[2] + marker + after.partition(b"\n")[0].rstrip()
        return None if line == marker else line


def _from_first(output: str, is_meant: Callable[[str], object]) -> str:
    """Return the output from the first line on that is meant; nothing if there is none."""
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if is_meant(line):
            return "\n".join(lines[number:])
    return ""


class _Marks:
    """Two random markers: one for standard output, one for standard error."""

    def __init__(self) -> None:
        self.out = secrets.token_hex(16).encode()
        self.err = secrets.token_hex(16).encode()
