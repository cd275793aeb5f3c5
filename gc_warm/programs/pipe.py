"""The streams of a running program, and the errors that a call to it can end with.

A protocol (`gc_warm.programs.protocols`) writes a request to a `Pipe` and reads the reply from it.
The pipe deals with deadlines, the end of the program and its noise, so that a protocol is free of
them. One loop over all streams runs whenever a protocol waits: there is no helper thread, and
between calls nothing is read.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

from gc_warm.exceptions import (
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
)

# bytes of output that are kept for a reply; a program gone wild must not fill its worker's memory
_OUTPUT_LIMIT = 128 * 2**20

_CHUNK = 65536  # bytes that a pipe holds
_QUOTED = 8192  # bytes of output that an error quotes

# seconds to wait in the kernel at a time: a task's time-out is an asynchronous exception, and no
# exception reaches a thread that waits there
_WAIT_SLICE = 0.5

_WATCH_INTERVAL = 0.05  # seconds between looks at the supervisor
_LAST_WORDS = 0.5  # seconds for the exit status to follow the end of the output
_HELD_BACK = "if a reply is among it, the program holds output or input back; see stdbuf"

# reads before a call; a program that never stops writing must not keep the call from beginning
_DRAIN_READS = 1000


class Pipe:
    """Standard input, output and error of a running program, during one call; text is UTF-8.

    A protocol uses `write`, `readline`, `read_until`, `stderr` and `error`. The rest is for the
    code that keeps the program alive.

    Args:
        name: The program's name, for messages.
        streams: Descriptors of the worker's ends of its standard input, output and error.
        control: The socket to its supervisor, which tells how the program ended.

    Attributes:
        name: The program's name, for messages.
        answered: Whether the program has answered anything since it was started.
        touched: Whether this call has begun to write to the program, or to read from it.
        asked: Whether the program has been asked to end.
        over: Whether the program has ended, or can no longer be asked or answer.
        silent: Whether the program writes no more. Processes beyond the supervisor's reach, to
            which it may have handed its streams, do not count.
        supervisor_gone: Whether the supervisor has ended, and so everything that it keeps.
    """

    def __init__(self, name: str, streams: Sequence[int], control: socket.socket) -> None:
        self.name = name
        self.answered = False
        self.touched = False
        self.asked = False
        self.over = False
        self.silent = False
        self.supervisor_gone = False

        self._stdin, self._stdout, self._stderr = streams
        self._control = control
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which there is no line's end
        self._stdout_tail = b""  # the end of what was written in this call
        self._stderr_tail = b""
        self._open = set(streams)  # those that the program has not closed, as far as is known
        self._report_data = b""  # from the supervisor
        self._reports: dict[str, str] = {}  # by their first word: started, failed, ended
        self._deadline = 0.0
        self._seconds = 0.0
        self._start_seconds = 0.0

        self._poll = select.poll()
        for descriptor in streams:
            os.set_blocking(descriptor, False)
        for descriptor in (self._stdout, self._stderr, control.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._stdin, 0)  # tells when the program has closed it

    @property
    def status(self) -> int | None:
        """The program's exit status, negative for a signal; None until it has ended by itself."""
        return int(self._reports["ended"]) if "ended" in self._reports else None

    def begin(self, now: float, seconds: float, start_seconds: float = 0.0) -> None:
        """Begin a call that may take *seconds* from *now*, in monotonic time.

        Args:
            now: The present, in monotonic time.
            seconds: Seconds for the call.
            start_seconds: Seconds on top for the start of the program, until it is `ready`.
        """
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._deadline = now + seconds + start_seconds
        self.touched = False

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

    def write(self, text: str) -> None:
        """Send *text* to the program.

        Output of the program is read meanwhile, so neither waits for the other.

        Args:
            text: The text to write to its standard input.

        Raises:
            ProcessDiedError: The program has ended, or reads no more.
            ProcessTimeoutError: The deadline has passed.
            TypeError: *text* is not text; nothing has been sent.
        """
        if not isinstance(text, str):
            raise TypeError(f"to {self.name} text is written, not {type(text).__name__}")

        data = text.encode()
        self.touched = True
        try:
            written = self._write_some(data)
            if written < len(data):
                self._write_rest(memoryview(data)[written:])
        except BrokenPipeError:
            self._mark_closed(self._stdin)
            raise self._end_error() from None

    def _write_rest(self, rest: memoryview) -> None:
        """Write the data that the program has not yet made room for."""
        self._poll.modify(self._stdin, select.POLLOUT)

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

    def readline(self) -> str:
        """Return the next line of the program's standard output, without the line's end.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: The line has no end within 128 MiB.
        """
        self.touched = True
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self.silent and not self.pump(0):
                raise self._end_error()
            self._wait()

        line = self._buffer[:end].decode(errors="replace")
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def read_until(self, marker: str, echo: str | None = None) -> str:
        """Return the program's standard output up to *marker* at a line's end.

        Args:
            marker: The text to look for.
            echo: The end of lines that do not count, in which the program repeats its input.

        Returns:
            The output before the marker; lines are separated by newlines, with none at the end.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: There was no marker within 128 MiB.
        """
        lines: list[str] = []
        size = 0
        while True:
            line = self.readline().rstrip()
            if echo and line.endswith(echo):
                continue
            if line.endswith(marker):
                break

            lines.append(line)
            size += sys.getsizeof(line)
            if size > _OUTPUT_LIMIT:
                raise self._overflow_error()

        if line != marker:
            lines.append(line[: -len(marker)])
        # nobody has to wonder about a marker in an error
        self._stdout_tail = self._stdout_tail.replace(marker.encode(), b"")
        return "\n".join(lines)

    def stderr(self) -> str:
        """Return the end of the program's standard error in this call, at most 8 KiB."""
        self.drain()
        return _text(self._stderr_tail)

    def ready(self) -> None:
        """Note that the program is up: the time for its start is over.

        If the program ends from now on, that is no failed start.
        """
        if not self.answered:
            self.answered = True
            self._start_seconds = 0.0
            self._deadline = min(self._deadline, time.monotonic() + self._seconds)

    def forget(self) -> None:
        """Drop all output so far: it is neither read any more nor quoted in errors."""
        self.drain()
        self._stdout_tail = b""
        self._stderr_tail = b""
        self._buffer.clear()
        self._searched = 0

    def error(self, kind: type[ProcessError], what: str) -> ProcessError:
        """Return an error about the program that quotes its output in this call.

        Args:
            kind: The class of the error.
            what: The message, without the program's name, with which it begins.
        """
        self.drain()
        out = _text(self._stdout_tail)
        err = _text(self._stderr_tail)
        return kind(f"{self.name} {what}", self.status, out, err)

    def with_last_words(self, error: ProcessTimeoutError) -> ProcessTimeoutError:
        """Return the same error, quoting also the output that the program has written since."""
        out = _text(self._stdout_tail)
        err = _text(self._stderr_tail)
        late = "" if out == error.stdout else f"; then only came some of its output ({_HELD_BACK})"
        return ProcessTimeoutError(error.message + late, error.status, out, err)

    def drain(self) -> None:
        """Read the output that is there, without waiting."""
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
        events = self._poll.poll(1000 * seconds)

        for descriptor, event in events:
            if descriptor == self._stdin:
                if event & select.POLLERR:  # nobody can read it any more
                    self._mark_closed(descriptor)
            elif descriptor in (self._stdout, self._stderr):
                self._read_output(descriptor)
            else:
                self._read_reports()
        return bool(events)

    def _mark_closed(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        self.silent = self.silent or descriptor in (self._stdout, self._control.fileno())
        self.over = self.silent or self.over or descriptor == self._stdin
        with contextlib.suppress(KeyError):  # it is no longer waited for
            self._poll.unregister(descriptor)

    def _read_output(self, descriptor: int) -> None:
        data = os.read(descriptor, _CHUNK)

        if not data:
            self._mark_closed(descriptor)
        elif descriptor == self._stdout:
            self._buffer += data
            self._stdout_tail = (self._stdout_tail + data)[-_QUOTED:]
        else:
            self._stderr_tail = (self._stderr_tail + data)[-_QUOTED:]

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

    def _wait(self) -> None:
        """Wait a moment for output; raise an error if there is too much of it, or no time left."""
        left = self._deadline - time.monotonic()
        if len(self._buffer) > _OUTPUT_LIMIT:
            raise self._overflow_error()

        if left <= 0:
            start = f" and {self._start_seconds:g} s for its start" if self._start_seconds else ""
            what = f"did not answer within {self._seconds:g} s{start}, and was ended"
            raise self.error(ProcessTimeoutError, what)

        self.pump(min(left, _WAIT_SLICE))

    def finish(self, seconds: float, ended: Callable[[], bool]) -> None:
        """Read the last output of a program that is ending, until its supervisor has ended.

        The end of the streams tells that at once, unless a child that was forked while the program
        started has copies of them.

        Args:
            seconds: Seconds to wait at most.
            ended: Tells whether the supervisor has ended.
        """
        deadline = time.monotonic() + seconds
        while not self.supervisor_gone and (left := deadline - time.monotonic()) > 0:
            if not self.pump(min(left, _WATCH_INTERVAL)) and ended():
                break
            self._buffer.clear()  # its tail is all that is wanted now

    def end_input(self) -> None:
        """Write nothing any more: the descriptor of the input is about to be closed."""
        if self._stdin >= 0:
            self._mark_closed(self._stdin)
            self._stdin = -1

    def close(self) -> None:
        """Read and write nothing any more.

        The descriptors are about to be closed, and their numbers given to others.
        """
        self._poll = select.poll()
        self._stdin = -1
        self._stdout = -1
        self._stderr = -1
        self._open.clear()

        self.over = True
        self.silent = True
        self.supervisor_gone = True

    def how_it_ended(self) -> str:
        """Return how the program ended, in words: the predicate of a sentence about it."""
        if self.asked:
            return "was closed"

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
        return f"was killed by {_signal_name(-self.status)}"

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


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
