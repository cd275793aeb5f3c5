"""The streams of a running program, and the errors that a call to it can end with.

A protocol (`gc_warm.programs.protocols`) writes a request to a `Pipe` and reads the reply from it.
The pipe deals with deadlines, the end of the program and its noise, so that a protocol is free of
them. One loop over all streams runs whenever a protocol waits. Until a protocol touches the pipe,
and between calls, it is lent to the thread of `gc_warm.programs.idle`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import AnyStr

from gc_warm.exceptions import (
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
)
from gc_warm.programs import commands, idle
from gc_warm.programs.evidence import Evidence

# bytes of output that are kept for a reply; a program gone wild must not fill its worker's memory
_OUTPUT_LIMIT = 128 * 2**20

_CHUNK = 65536  # bytes that a pipe holds
_QUOTED = 8192  # bytes of output that an error quotes

# seconds to wait in the kernel at a time: a task's time-out is an asynchronous exception, and no
# exception reaches a thread that waits there
_WAIT_SLICE = 0.5

_WATCH_INTERVAL = 0.05  # seconds between looks at the supervisor
_LAST_WORDS = 0.5  # seconds for the exit status to follow the end of the output
_LAST_LINES = 1000  # bytes of what an idle program wrote last, in a message
_IDLE_LIMIT = 2**20  # bytes that are read before a protocol begins to read
_SHOWN = 200  # bytes of unexpected output in a message
_GREETING = (
    "wrote {text!r} before its first request, and was ended: read it in on_start=, or it would be "
    "taken for a reply"
)
_OUT_OF_STEP = (
    "is out of step, and was ended: {when}, it had written {text!r}, which no call has read. A "
    "call has to read all of its reply; that of the call before may have been another's"
)
_UNFINISHED = (
    "waits for more input, and was ended: the request is not finished, such as by an open quote or "
    "bracket; or the program holds its output back, see stdbuf"
)
_HELD_BACK = "if a reply is among it, the program holds output or input back; see stdbuf"

# reads before a call; a program that never stops writing must not keep the call from beginning
_DRAIN_READS = 1000

# seconds to the first look whether a silent program waits for input; the next come ever later
_FIRST_LOOK = 0.01

# the same before a request: it has just answered, or has just been started
_SHORTEST_LOOK = 0.0002
_LONGEST_LOOK = 0.05

# seconds that a program has been seen asleep, and not waiting for input, before it is asked anyway
_UNSEEN = 0.5

# the same of one that never sleeps, as MPI ranks and threads that wait in a loop; before its first
# answer it is the time for its start, since it may greet at the end of that
_RESTLESS = 30.0


class Output:
    """One output stream of a running program.

    Attributes:
        unread: The bytes that have come, and that no call has read.
        searched: The number of them in which the end that is looked for does not begin.
        tail: The end of all that has come in this call.
    """

    def __init__(self) -> None:
        self.unread = bytearray()
        self.searched = 0
        self.tail = b""

    def add(self, data: bytes) -> None:
        """Take in what has come."""
        self.unread += data
        self.tail = (self.tail + data)[-_QUOTED:]

    def take(self, end: int, following: int) -> bytes:
        """Return the bytes before *end*, and drop all before *following*."""
        taken = bytes(self.unread[:end])
        del self.unread[:following]
        self.searched = 0
        return taken

    def drop_unread(self) -> None:
        """Drop the bytes that no call has read."""
        self.unread.clear()
        self.searched = 0

    def find(self, marker: bytes, echo: bytes | None, is_line: bool) -> tuple[int, int] | None:
        """Return where a marker begins, and where what follows it begins.

        Args:
            marker: The bytes to look for.
            echo: The end of lines that do not count: they are dropped.
            is_line: The marker counts at a line's end only.
        """
        while (begin := self.unread.find(marker, self.searched)) >= 0:
            end = begin + len(marker)
            if not is_line:
                return begin, end

            newline = self.unread.find(b"\n", end)
            if newline < 0:  # the end of its line is to come
                self.searched = begin
                return None

            line = self.unread.rfind(b"\n", 0, begin) + 1
            if echo and self.unread[line:newline].rstrip().endswith(echo):
                del self.unread[line : newline + 1]
                self.searched = line
            elif self.unread[end:newline].strip():
                self.searched = end
            else:
                return begin, newline + 1

        self.searched = max(self.searched, len(self.unread) - len(marker) + 1)
        return None


class Pipe:
    """Standard input, output and error of a running program, during one call.

    A protocol uses `write`, `readline`, `read`, `read_until`, `stderr` and `error`. The rest is for
    the code that keeps the program alive.

    Args:
        name: The program's name, for messages.
        streams: Descriptors of the worker's ends of its standard input, output and error.
        control: The socket to its supervisor, which tells how the program ended.

    Attributes:
        name: The program's name, for messages.
        answered: Whether the program has answered anything since it was started.
        told_all: Whether all that this call has to say is written: a program that waits for more
            will not answer.
        touched: Whether this call has begun to write to the program, or to read from it.
        asked: Whether the program has been asked to end.
        over: Whether the program has ended, or can no longer be asked or answer.
        silent: Whether the program writes no more. Processes beyond the supervisor's reach, to
            which it may have handed its streams, do not count.
        supervisor_gone: Whether the supervisor has ended, and so everything that it keeps.
        keeps_errors: Whether all of standard error in a call is kept for `read_errors`, and not
            only its end.
    """

    def __init__(self, name: str, streams: Sequence[int], control: socket.socket) -> None:
        self.name = name
        self.answered = False
        self.told_all = False
        self.touched = False
        self.asked = False
        self.over = False
        self.silent = False
        self.supervisor_gone = False
        self.keeps_errors = False

        self._stdin, self._stdout, self._stderr = streams
        self._control = control
        self._out = Output()
        self._err = Output()
        self._open = set(streams)  # those that the program has not closed, as far as is known
        self._report_data = b""  # from the supervisor
        self._reports: dict[str, str] = {}  # by their first word: started, failed, ended
        self._deadline = 0.0
        self._seconds = 0.0
        self._start_seconds = 0.0
        self._evidence: Evidence | None = None
        self._look = _FIRST_LOOK  # seconds to the next look for evidence
        self._is_strict = False  # what is unread when a request is written, is out of step
        self._was_seen = True  # that it waits for input can be seen, as far as is known

        # whoever reads, has both; the thread of idle pipes does not wait for them. Garbage may be
        # collected while it reads, and a signal may come: that this very thread ends the program.
        self._reading = threading.RLock()
        self._is_lent = False

        self._poll = select.epoll()
        self._number = self._poll.fileno()
        for descriptor in streams:
            os.set_blocking(descriptor, False)
        for descriptor in (self._stdout, self._stderr, control.fileno()):
            self._poll.register(descriptor, select.EPOLLIN)
        self._poll.register(self._stdin, 0)  # tells when the program has closed it

    @property
    def status(self) -> int | None:
        """The program's exit status, negative for a signal; None until it has ended by itself."""
        return int(self._reports["ended"]) if "ended" in self._reports else None

    def begin(
        self, now: float, seconds: float, start_seconds: float = 0.0, *, strict: bool = False
    ) -> None:
        """Begin a call that may take *seconds* from *now*, in monotonic time.

        Args:
            now: The present, in monotonic time.
            seconds: Seconds for the call.
            start_seconds: Seconds on top for the start of the program, until it is `ready`.
            strict: What the program has written without having been asked, is an error.
        """
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._deadline = now + seconds + start_seconds
        self._is_strict = strict
        self.touched = False
        self.told_all = False

    def fileno(self) -> int:
        """Return a descriptor that can be read when the program has written something.

        It is -1 once the pipe is closed.
        """
        return self._number

    def lend(self) -> None:
        """Have the thread of idle pipes read, until the next call begins to write or to read."""
        if not self._is_lent:
            if self.answered:
                self._out.tail = b""
                self._err.tail = b""
            self._is_lent = True
            idle.reader.change(self._number, select.EPOLLIN)

    def take_back(self) -> None:
        """Be the only one who reads."""
        if self._is_lent:
            idle.reader.change(self._number, 0)
            with self._reading:
                self._is_lent = False

    def read_idle(self) -> None:
        """Read the output that is there, in the thread of idle pipes."""
        if not self._reading.acquire(blocking=False):
            return

        try:
            if self._is_lent:
                self.pump(0)
                self._bound()
        finally:
            self._reading.release()

    def _bound(self) -> None:
        """Keep no more of unread output than one needs to know."""
        if self.answered:
            # a call drops it, or that there is some is an error
            del self._out.unread[_QUOTED:]
            self._err.drop_unread()
        elif len(self._out.unread) > _IDLE_LIMIT or len(self._err.unread) > _IDLE_LIMIT:
            idle.reader.change(self._number, 0)

    def wait_for_start(self) -> int:
        """Wait until the program runs, and return its process id.

        Raises:
            ProcessStartError: The program cannot be started.
            ProcessTimeoutError: The deadline has passed.
        """
        while "started" not in self._reports:
            if "failed" in self._reports or self.supervisor_gone:
                reason = self._reports.get("failed", "its supervisor has ended")
                raise self.error(ProcessStartError, f"cannot be started: {reason}")

            self._wait()
        return int(self._reports["started"])

    def write(self, data: str | bytes) -> None:
        """Send *data* to the program.

        Output of the program is read meanwhile, so neither waits for the other.

        Args:
            data: The text or the bytes to write to its standard input.

        Raises:
            ProcessDiedError: The program has ended, or reads no more.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: The program has written what no call has read.
            TypeError: *data* is neither text nor bytes; nothing has been sent.
        """
        if isinstance(data, str):
            data = data.encode()
        elif not isinstance(data, bytes):
            kind = type(data).__name__
            raise TypeError(f"to {self.name} text or bytes are written, not {kind}")

        if not self.touched:
            self._touch()
        try:
            written = self._write_some(data)
            if written < len(data):
                self._write_rest(memoryview(data)[written:])
        except BrokenPipeError:
            self._mark_closed(self._stdin)
            raise self._end_error() from None

    def _touch(self) -> None:
        """Note that this call has begun, on streams that are in step."""
        self.take_back()
        if self._is_strict:
            self._settle()
        self.touched = True

    def _settle(self) -> None:
        """Wait until the program waits for a request, and see that it has written nothing else."""
        latest = self._latest_request()
        asleep = 0.0
        look = _SHORTEST_LOOK
        while not self._out.unread and not self.over and self._was_seen:
            evidence = self._see()
            if evidence.waits_for_input():
                self.drain()
                break

            asleep = asleep + look if evidence.is_asleep() else 0.0
            self._was_seen = asleep < _UNSEEN and time.monotonic() < latest
            self._wait(look)
            look = min(2 * look, _LONGEST_LOOK)
        self.refuse_unread("before this request")

    def _latest_request(self) -> float:
        """Return when a program is asked that does not show what it does, in monotonic time."""
        if self._start_seconds:
            return self._deadline - self._seconds

        now = time.monotonic()
        return now + min(_RESTLESS, (self._deadline - now) / 2)

    def refuse_unread(self, when: str) -> None:
        """Raise an error if the program has written what no call has read.

        Args:
            when: The time of it, in words.
        """
        self.drain()
        if self._out.unread:
            words = _OUT_OF_STEP if self.answered or self.touched else _GREETING
            self.touched = True
            text = _text(bytes(self._out.unread[:_SHOWN]))
            raise self.error(ProcessError, words.format(when=when, text=text))

    def _see(self) -> Evidence:
        if self._evidence is None:
            pid = int(self._reports["started"])
            self._evidence = Evidence(pid, self._stdin, self._stdout, self._stderr)
        return self._evidence

    def _write_rest(self, rest: memoryview) -> None:
        """Write the data that the program has not yet made room for."""
        self._poll.modify(self._stdin, select.EPOLLOUT)

        try:
            while rest:
                self._wait()
                rest = rest[self._write_some(rest) :]
        finally:
            if self._stdin in self._open:
                self._poll.modify(self._stdin, 0)

    def _write_some(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._stdin, data)
        except BlockingIOError:
            return 0

    def readline(self, errors: str = "strict") -> str:
        """Return the next line of the program's standard output, without the line's end.

        Args:
            errors: The treatment of bytes that are no UTF-8, as for `bytes.decode`.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: The line has no end within 128 MiB, or is no text.
        """
        self._begin_to_read()
        out = self._out
        while (end := out.unread.find(b"\n", out.searched)) < 0:
            out.searched = len(out.unread)
            self._wait_for_output()
        return self.decoded(out.take(end, end + 1), errors=errors)

    def read(self, size: int) -> bytes:
        """Return the next bytes of the program's standard output.

        Args:
            size: The number of bytes to wait for.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
        """
        self._begin_to_read()
        while len(self._out.unread) < size:
            self._wait_for_output()
        return self._out.take(size, size)

    def read_until(
        self, marker: AnyStr, echo: AnyStr | None = None, *, line: bool = True
    ) -> AnyStr:
        """Return the program's standard output up to *marker*.

        Args:
            marker: The text to look for, or bytes.
            echo: The end of lines that do not count, in which the program repeats its input.
            line: The marker counts at a line's end only, and that end is read, too. A prompt, after
                which no line ends, needs False.

        Returns:
            The output before the marker: bytes as they are, text without the newline at its end.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: There was no marker within 128 MiB, the output is no text, or the program
                waits for more input though it is `told_all`.
        """
        self._begin_to_read()
        data = self._take_until(self._out, _bytes(marker), _bytes(echo) if echo else None, line)
        if isinstance(marker, bytes):
            return data
        return self.decoded(data.removesuffix(b"\n") if line else data)

    def read_errors_until(self, marker: bytes, echo: bytes | None = None) -> bytes:
        """Return the program's standard error up to the line that ends with *marker*.

        Args:
            marker: The bytes to look for.
            echo: The end of lines that do not count, in which the program repeats its input.
        """
        told_all = self.told_all
        # it may wait for input by now, with its errors on their way
        self.told_all = False
        errors = self._take_until(self._err, marker, echo, True)
        self.told_all = told_all
        return errors

    def read_errors(self) -> bytes:
        """Return what has come of the program's standard error, and has not been read."""
        self.drain()
        return self._err.take(len(self._err.unread), len(self._err.unread))

    def _take_until(
        self, output: Output, marker: bytes, echo: bytes | None, is_line: bool
    ) -> bytes:
        while (found := output.find(marker, echo, is_line)) is None:
            self._wait_for_output()

        # nobody has to wonder about a marker in an error
        output.tail = output.tail.replace(marker, b"")
        return output.take(*found)

    def _begin_to_read(self) -> None:
        if not self.touched:
            self.take_back()
            # it may have something to say before the first request
            if self.answered:
                self._touch()
            self.touched = True

    def _wait_for_output(self) -> None:
        if self.silent and not self.pump(0):
            raise self._end_error()
        self._wait()

    def decoded(self, data: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return output of the program as text.

        Raises:
            ProcessError: It is no text in this encoding.
        """
        try:
            return data.decode(encoding, errors)
        except UnicodeDecodeError as error:
            shown = data[max(0, error.start - _SHOWN // 2) :][:_SHOWN]
            raise self.error(ProcessError, f"wrote what is no {encoding}: {shown!r}") from None

    def stderr(self) -> str:
        """Return the end of the program's standard error in this call, at most 8 KiB."""
        self.drain()
        return _text(self._err.tail)

    def way_of_errors(self) -> str | None:
        """Return the name of a process whose errors take another way than its output.

        It is asked for while the program is idle, and remembers what that looks like.
        """
        self._see().note_idle()
        return self._see().way_of_errors()

    def ready(self) -> None:
        """Note that the program is up: the time for its start is over.

        If the program ends from now on, that is no failed start.
        """
        if not self.answered:
            self.answered = True
            self._start_seconds = 0.0
            self._deadline = min(self._deadline, time.monotonic() + self._seconds)

    def forget(self, *, unread: bool = True) -> None:
        """Drop all output so far: it is not quoted in errors any more.

        That of a program which has ended is kept, for `last_words`.

        Args:
            unread: Nor is it read any more.
        """
        with self._reading:
            self._drain()
            if self.over:
                return
            for output in (self._out, self._err):
                output.tail = b""
            if unread:
                self._out.drop_unread()
            self._err.drop_unread()

    def error(self, kind: type[ProcessError], what: str, stderr: str | None = None) -> ProcessError:
        """Return an error about the program that quotes its output in this call.

        Args:
            kind: The class of the error.
            what: The message, without the program's name, with which it begins.
            stderr: The part of its standard error to quote; None for the end of it.
        """
        self.drain()
        out = _text(self._out.tail)
        err = _text(self._err.tail) if stderr is None else stderr[-_QUOTED:]
        return kind(f"{self.name} {what}", self.status, out, err)

    def with_last_words(self, error: ProcessTimeoutError) -> ProcessTimeoutError:
        """Return the same error, quoting also the output that the program has written since."""
        out = _text(self._out.tail)
        err = _text(self._err.tail)
        late = "" if out == error.stdout else f"; then only came some of its output ({_HELD_BACK})"
        return ProcessTimeoutError(error.message + late, error.status, out, err)

    def drain(self) -> None:
        """Read the output that is there, without waiting."""
        self.take_back()
        self._drain()

    def _drain(self) -> None:
        for _ in range(_DRAIN_READS):
            if not self.pump(0):
                break

    def pump(self, seconds: float) -> bool:
        """Wait for the program or its supervisor to write, and read what they write.

        Args:
            seconds: Seconds to wait at most.

        Returns:
            Whether anything came.
        """
        events = self._poll.poll(seconds)

        for descriptor, event in events:
            if descriptor == self._stdin:
                if event & select.EPOLLERR:  # nobody can read it any more
                    self._mark_closed(descriptor)
            elif descriptor in (self._stdout, self._stderr):
                self._read_output(descriptor)
            elif descriptor == self._control.fileno():
                self._read_reports()
        return bool(events)

    def _mark_closed(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        self.silent = self.silent or descriptor in (self._stdout, self._control.fileno())
        self.over = self.silent or self.over or descriptor == self._stdin
        with contextlib.suppress(OSError, ValueError):  # it is no longer waited for
            self._poll.unregister(descriptor)

    def _read_output(self, descriptor: int) -> None:
        data = os.read(descriptor, _CHUNK)

        if not data:
            self._mark_closed(descriptor)
        elif descriptor == self._stdout:
            self._out.add(data)
        else:
            self._err.add(data)
            if not self.keeps_errors:
                self._err.drop_unread()

    def _read_reports(self) -> None:
        """Read the supervisor's reports on the program: a line each, ``started PID`` for one."""
        try:
            data = self._control.recv(_CHUNK)
        except ConnectionResetError:  # it ended with a word of ours unread
            data = b""

        self._report_data += data
        if not data:
            self.supervisor_gone = True
            self._mark_closed(self._control.fileno())

        for line in self._report_data.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            self._reports[word] = rest
        if "ended" in self._reports:
            self.over = True
            self.silent = True

    def _wait(self, most: float = _WAIT_SLICE) -> None:
        """Wait a moment for output; raise an error if there is too much of it, or no time left.

        Args:
            most: Seconds to wait at most.
        """
        left = self._deadline - time.monotonic()
        if max(len(self._out.unread), len(self._err.unread)) > _OUTPUT_LIMIT:
            raise self._overflow_error()

        if left <= 0:
            start = f" and {self._start_seconds:g} s for its start" if self._start_seconds else ""
            what = f"did not answer within {self._seconds:g} s{start}, and was ended"
            raise self.error(ProcessTimeoutError, what)

        if not self.told_all:
            self.pump(min(left, most))
        elif self.pump(min(left, self._look)):
            self._look = _FIRST_LOOK
        else:
            self._look = min(2 * self._look, _WAIT_SLICE)
            if self._see().waits_for_input() and not self.pump(0):
                raise self.error(ProcessError, _UNFINISHED)

    def finish(self, seconds: float, ended: Callable[[], bool]) -> None:
        """Read the last output of a program that is ending, until its supervisor has ended.

        The end of the streams tells that at once, unless a child that was forked while the program
        started has copies of them.

        Args:
            seconds: Seconds to wait at most.
            ended: Tells whether the supervisor has ended.
        """
        self.take_back()
        deadline = time.monotonic() + seconds
        while not self.supervisor_gone and (left := deadline - time.monotonic()) > 0:
            if not self.pump(min(left, _WATCH_INTERVAL)) and ended():
                break
            self._out.drop_unread()  # its tail is all that is wanted now
            self._err.drop_unread()

    def end_input(self) -> None:
        """Write nothing any more: the descriptor of the input is about to be closed."""
        if self._stdin >= 0:
            self._mark_closed(self._stdin)
            self._stdin = -1

    def close(self) -> None:
        """Read and write nothing any more.

        The descriptors are about to be closed, and their numbers given to others.
        """
        self.over = True
        self.silent = True
        self.supervisor_gone = True

        self._stdin = -1
        self._stdout = -1
        self._stderr = -1
        self._number = -1
        self._open.clear()
        self._poll.close()

    def last_words(self) -> str:
        """Return the end of all that the program has written since the last call, for a message."""
        texts = (_text(output.tail[-_LAST_LINES:]) for output in (self._out, self._err))
        return "".join(f"\n{text}" for text in texts if text)

    def how_it_ended(self) -> str:
        """Return how the program ended, in words: the predicate of a sentence about it."""
        if self.asked:
            return "was closed"

        self.take_back()
        deadline = time.monotonic() + _LAST_WORDS
        while self.status is None and not self.supervisor_gone:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.pump(left)

        if self.status is None:
            return self._how_its_streams_ended()
        if self.status >= 0:
            return f"ended with exit status {self.status}"
        return f"was killed by {commands.signal_name(-self.status)}"

    def _how_its_streams_ended(self) -> str:
        if self.supervisor_gone:
            return "ended"
        if self._stdin in self._open:
            return "closed its output"
        return "closed its input"

    def _overflow_error(self) -> ProcessError:
        what = (
            f"wrote {_OUTPUT_LIMIT >> 20} MiB that are no reply, or too long a one: "
            "send large data through files"
        )
        return self.error(ProcessError, what)

    def _end_error(self) -> ProcessError:
        if self.answered:
            return self.error(ProcessDiedError, f"{self.how_it_ended()} in the middle of a call")
        return self.error(ProcessStartError, f"{self.how_it_ended()} before its first answer")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()
