"""The streams of a running program, and the errors that a call to it can end with.

A protocol (`gc_warm.programs.protocols`) writes a request to a `Pipe` and reads the reply from it.
The pipe owns deadlines, the end of the program and its noise, so that a protocol is free of them.
One loop over all streams runs whenever a protocol waits: there is no helper thread, and between
calls nothing is read.
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

# bytes of output that are kept for a reply; a program gone wild must not fill the memory of its
# worker
_OUTPUT_LIMIT = 128 * 2**20
_CHUNK = 65536  # what a pipe holds
_QUOTED = 8192  # bytes of output that an error quotes
# seconds: a task's time-out is an asynchronous exception, and no exception reaches a thread that
# waits in the kernel
_WAIT_SLICE = 0.5
_WATCH_INTERVAL = 0.05  # seconds between looks at the supervisor
_LAST_WORDS = 0.5  # seconds for the exit status to follow the end of the output
_HELD_BACK = "if a reply is among it, the program holds output or input back; see stdbuf"
# reads before a call; a program that never stops writing must not keep the call from beginning
_DRAIN_READS = 1000


class Pipe:
    """Standard input, output and error of a running program, during one call; text is UTF-8.

    A protocol uses `write`, `readline`, `read_until`, `stderr` and `error`; the rest is for those
    who keep the program.

    Args:
        name: The program, for messages.
        streams: Descriptors of the worker's ends of its standard input, output and error.
        control: The socket to its supervisor, which tells how the program ended.

    Attributes:
        name: As above.
        answered: Whether the program has answered anything since it was started.
        touched: Whether this call has begun to write to it, or to read.
        asked: Whether it has been asked to end.
        over: Whether the program has ended, or can no longer be asked or answer.
        silent: Whether it writes no more; what it may have handed its streams to, beyond the
            supervisor's reach, does not count.
        supervisor_gone: Whether the supervisor has ended, and so everything that it keeps.
    """

    def __init__(self, name: str, streams: Sequence[int], control: socket.socket) -> None:
        self.name = name
        self.answered = self.touched = self.asked = self.over = self.silent = (
            self.supervisor_gone
        ) = False
        self._stdin, self._stdout, self._stderr = streams
        self._control = control
        self._buffer = bytearray()
        self._searched = 0  # so far there is no line's end in the buffer
        self._out = self._err = b""  # the ends of both streams in this call
        self._open = set(streams)  # by the program, as far as is known
        self._said = b""
        self._told: dict[str, str] = {}  # by the supervisor: started, failed, ended
        self._deadline = self._seconds = self._start_seconds = 0.0
        self._poll = select.poll()
        for descriptor in streams:
            os.set_blocking(descriptor, False)
        for descriptor in (self._stdout, self._stderr, control.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._stdin, 0)  # tells when the program has closed it

    @property
    def status(self) -> int | None:
        """The program's exit status, negative for a signal; None until it has ended by itself."""
        return int(self._told["ended"]) if "ended" in self._told else None

    def begin(self, now: float, seconds: float, start_seconds: float = 0.0) -> None:
        """Begin a call that may take *seconds* from *now*, in monotonic time.

        Args:
            now: The present.
            seconds: For the call.
            start_seconds: On top, for the start of the program, until it is `ready`.
        """
        self._seconds, self._start_seconds, self._deadline = (
            seconds,
            start_seconds,
            now + seconds + start_seconds,
        )
        self.touched = False

    def wait_for_start(self) -> int:
        """Wait until the program runs; returns its process id.

        Raises:
            ProcessStartError: It cannot be started.
            ProcessTimeoutError: The deadline has passed.
        """
        while "started" not in self._told:
            if "failed" in self._told or self.supervisor_gone:
                raise self.error(
                    ProcessStartError,
                    f"cannot be started: {self._told.get('failed', 'its supervisor has ended')}",
                )
            self._wait()
        return int(self._told["started"])

    def write(self, text: str) -> None:
        """Send *text*; output of the program is taken in meanwhile, so neither waits for the other.

        Raises:
            ProcessDiedError: The program has ended, or reads no more.
            ProcessTimeoutError: The deadline has passed.
            TypeError: It is not text; nothing has been sent.
        """
        if not isinstance(text, str):
            raise TypeError(f"to {self.name} text is written, not {type(text).__name__}")
        data = text.encode()
        self.touched = True
        try:
            if (written := self._write_some(data)) < len(data):
                self._write_on(memoryview(data)[written:])
        except BrokenPipeError:
            self._lost(self._stdin)
            raise self._death() from None

    def _write_on(self, rest: memoryview) -> None:
        """Write what the program has not yet made room for."""
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
        """The next line of its standard output, without the line's end.

        Raises:
            ProcessDiedError: The program has ended, or closed its output.
            ProcessTimeoutError: The deadline has passed.
            ProcessError: The line has no end within 128 MiB.
        """
        self.touched = True
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self.silent and not self.pump(0):
                raise self._death()
            self._wait()
        line = self._buffer[:end].decode(errors="replace")
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def read_until(self, marker: str, echo: str | None = None) -> str:
        """What it writes to its standard output up to *marker* at a line's end; lines are separated by newlines, with none at the end.

        Args:
            marker: What to look for.
            echo: A line that ends with this does not count: the program repeats its input.

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
                raise self._too_much()
        if line != marker:
            lines.append(line[: -len(marker)])
        # nobody has to wonder about it in an error
        self._out = self._out.replace(marker.encode(), b"")
        return "\n".join(lines)

    def stderr(self) -> str:
        """The end of what it has written to its standard error in this call, at most 8 KiB."""
        self.drain()
        return _text(self._err)

    def ready(self) -> None:
        """The program is up: its end is from now on no failed start, and the time for its start is over."""
        if not self.answered:
            self.answered = True
            self._start_seconds = 0.0
            self._deadline = min(self._deadline, time.monotonic() + self._seconds)

    def forget(self) -> None:
        """What has been written is neither read any more nor quoted in errors."""
        self.drain()
        self._out = self._err = b""
        self._buffer.clear()
        self._searched = 0

    def error(self, kind: type[ProcessError], what: str) -> ProcessError:
        """An error of that kind, that says *what* of the program and quotes what it wrote."""
        self.drain()
        return kind(f"{self.name} {what}", self.status, _text(self._out), _text(self._err))

    def with_last_words(self, error: ProcessTimeoutError) -> ProcessTimeoutError:
        """The same error, quoting also what the program has written since."""
        out = _text(self._out)
        late = "" if out == error.stdout else f"; then only came some of its output ({_HELD_BACK})"
        return ProcessTimeoutError(error.message + late, error.status, out, _text(self._err))

    def drain(self) -> None:
        """Take in what has been written, without waiting."""
        for _ in range(_DRAIN_READS):
            if not self.pump(0):
                break

    def pump(self, seconds: float) -> bool:
        """Wait at most so long for the program or its supervisor to write, and take that in; returns whether anything came."""
        events = self._poll.poll(1000 * seconds)
        for descriptor, event in events:
            if descriptor == self._stdin:
                if event & select.POLLERR:  # nobody can read it any more
                    self._lost(descriptor)
            elif descriptor in (self._stdout, self._stderr):
                self._take(descriptor)
            else:
                self._listen()
        return bool(events)

    def _lost(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        self.silent = self.silent or descriptor in (self._stdout, self._control.fileno())
        self.over = self.silent or self.over or descriptor == self._stdin
        with contextlib.suppress(KeyError):  # it is no longer waited for
            self._poll.unregister(descriptor)

    def _take(self, descriptor: int) -> None:
        data = os.read(descriptor, _CHUNK)
        if not data:
            self._lost(descriptor)
        elif descriptor == self._stdout:
            self._buffer += data
            self._out = (self._out + data)[-_QUOTED:]
        else:
            self._err = (self._err + data)[-_QUOTED:]

    def _listen(self) -> None:
        try:
            data = self._control.recv(_CHUNK)
        except ConnectionResetError:  # it ended with a word of ours unread
            data = b""
        self._said += data
        if not data:
            self.supervisor_gone = True
            self._lost(self._control.fileno())
        for line in self._said.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            self._told[word] = rest
        if "ended" in self._told:
            self.over = self.silent = True

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if len(self._buffer) > _OUTPUT_LIMIT:
            raise self._too_much()
        if left <= 0:
            start = f" and {self._start_seconds:g} s for its start" if self._start_seconds else ""
            raise self.error(
                ProcessTimeoutError,
                f"did not answer within {self._seconds:g} s{start}, and was ended",
            )
        self.pump(min(left, _WAIT_SLICE))

    def finish(self, seconds: float, ended: Callable[[], bool]) -> None:
        """Take in what it still writes, until the supervisor has *ended*; at most for *seconds*.

        Its streams say so at once, but for those of which a child has copies that was forked while
        the program started.
        """
        deadline = time.monotonic() + seconds
        while not self.supervisor_gone and (left := deadline - time.monotonic()) > 0:
            if not self.pump(min(left, _WATCH_INTERVAL)) and ended():
                break
            self._buffer.clear()  # its tail is all that is wanted now

    def end_input(self) -> None:
        """Nothing is written any more: its descriptor is about to be closed."""
        if self._stdin >= 0:
            self._lost(self._stdin)
            self._stdin = -1

    def close(self) -> None:
        """Nothing is read or written any more: the descriptors are about to be closed, and their numbers given to others."""
        self._poll = select.poll()
        self._stdin = self._stdout = self._stderr = -1
        self._open.clear()
        self.over = self.silent = self.supervisor_gone = True

    def how_it_ended(self) -> str:
        """In words."""
        if self.asked:
            return "was closed"
        deadline = time.monotonic() + _LAST_WORDS
        while (
            self.status is None
            and not self.supervisor_gone
            and (left := deadline - time.monotonic()) > 0
        ):
            self.pump(left)
        if self.status is None:
            return (
                "ended"
                if self.supervisor_gone
                else "closed its output"
                if self._stdin in self._open
                else "closed its input"
            )
        if self.status >= 0:
            return f"ended with exit status {self.status}"
        return f"was killed by {_signal_name(-self.status)}"

    def _too_much(self) -> ProcessError:
        return self.error(
            ProcessError,
            f"wrote {_OUTPUT_LIMIT >> 20} MiB that are no reply, or too long a one: send large data through files",
        )

    def _death(self) -> ProcessError:
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
