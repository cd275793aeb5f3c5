"""serve(): the program's side of `gc_warm.programs.protocols.json_lines`, for programs in Python.

    table = tabulate()                                   # the large start-up cost, paid once

    def energy(request):
        return table.energy(request["positions"])

    serve(energy)

The worker then calls

    ExternalProcess([sys.executable, "-m", "my_program"]).call({"positions": ...})
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gc_warm.programs.protocols import in_json

_CHUNK = 65536  # bytes that a pipe holds

# seconds that the kernel can wait at a time; nobody waits 24 days for a request
_LONGEST_WAIT = 2**31 / 1000 - 1

# seconds between looks of an idle rank; MPI's own waiting would keep its core busy
_RANK_INTERVAL = 0.0005


def serve(handler: Callable[[Any], Any], *, idle_timeout: float | None = None) -> None:
    """Answer requests from standard input until it ends.

    An exception of the handler becomes an error reply with its traceback, and the program stays up.
    Standard output belongs to the replies alone: descriptor 1 is moved away, so the output of
    Python code and of C and Fortran libraries goes to standard error.

    In an MPI program, one that has imported ``mpi4py.MPI``, every rank calls `serve`. Rank 0 reads
    and broadcasts each request; the handler runs on all ranks at once, so that it may communicate,
    and its result on rank 0 is the reply. An exception on any rank makes an error reply, once all
    ranks have come back; where one has left the others waiting for it, the call's deadline ends
    them, and the exception is in the standard error that the call's error quotes.

    Args:
        handler: Takes a request and returns the reply, both as JSON has them.
        idle_timeout: Seconds without a request after which `serve` returns; None for never. The
            next call starts the program again; one that comes in the very moment may fail with
            `ProcessDiedError`.

    Raises:
        ValueError: idle_timeout is not positive.
    """
    if idle_timeout is not None and not idle_timeout > 0:
        raise ValueError(f"idle_timeout must be a positive number of seconds, not {idle_timeout!r}")

    requests, replies = _take_streams()
    team = _Ranks() if "mpi4py.MPI" in sys.modules else _Alone()
    if team.rank == 0:
        _send(replies, 0, "ready", None)  # the caller need not wait for its start any longer

    lines = _lines(requests, idle_timeout)
    while True:
        received = next(lines, None) if team.rank == 0 else None
        line = team.share(received)
        if line is None:
            return

        number, reply, error = _answer(handler, line)
        error = team.first(error)
        if team.rank == 0:
            _send(replies, number, reply, error)


def _send(replies: BinaryIO, number: Any, reply: Any, error: str | None) -> None:
    replies.write(_encoded(number, reply, error))
    replies.flush()


def _take_streams() -> tuple[int, BinaryIO]:
    """Take standard input and output for requests and replies alone.

    Returns:
        The descriptor that requests are read from, and the file that replies are written to.
    """
    requests = os.dup(0)
    replies = os.fdopen(os.dup(1), "wb")

    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)

    if isinstance(sys.stdout, io.TextIOWrapper):
        # the program's output should be there when an error quotes it
        sys.stdout.reconfigure(line_buffering=True)
    return requests, replies


def _lines(requests: int, idle_timeout: float | None) -> Iterator[bytes]:
    """Yield the lines that come in, until the end of the input or until it has been idle."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)

    wait: float | None = None  # milliseconds
    if idle_timeout is not None and idle_timeout <= _LONGEST_WAIT:
        wait = 1000 * idle_timeout

    parts: list[bytes] = []
    while _comes(poll, wait) and (data := os.read(requests, _CHUNK)):
        *ended, rest = data.split(b"\n")
        for line in ended:
            parts.append(line)
            yield b"".join(parts)
            parts.clear()
        parts.append(rest)

    if any(parts):
        yield b"".join(parts)


def _comes(poll: select.poll, wait: float | None) -> bool:
    try:
        return bool(poll.poll(wait))
    except KeyboardInterrupt:  # nothing is being computed: an orderly end
        return False


def _answer(handler: Callable[[Any], Any], line: bytes) -> tuple[Any, Any, str | None]:
    """Return the id of the request in *line*, the reply, and the error in place of the reply."""
    try:
        message = json.loads(line)
        number = message["id"]
        request = message["request"]
    except (ValueError, TypeError, KeyError, RecursionError):
        error = f'a request is one line, {{"id": ..., "request": ...}}, and not {line[:200]!r}'
        return None, None, error

    try:
        return number, handler(request), None
    except Exception:
        return number, None, traceback.format_exc().rstrip()


def _encoded(number: Any, reply: Any, error: str | None) -> bytes:
    if error is None:
        try:
            return f"{in_json({'id': number, 'reply': reply})}\n".encode()
        except Exception as reason:  # whatever a `tolist` of the handler's may raise
            error = f"the reply cannot be sent: {reason}"
    return f"{json.dumps({'id': number, 'error': error})}\n".encode()


class _Alone:
    """The one process of a program without MPI."""

    rank = 0

    def share(self, line: bytes | None) -> bytes | None:
        return line

    def first(self, error: str | None) -> str | None:
        return error


class _Ranks:
    """The ranks of an MPI program.

    They have a communicator of their own, so that nothing mixes with the handler's messages.
    """

    def __init__(self) -> None:
        self._comm = sys.modules["mpi4py.MPI"].COMM_WORLD.Dup()
        self.rank: int = self._comm.Get_rank()

    def share(self, line: bytes | None) -> bytes | None:
        """Return rank 0's line on every rank."""
        here = self._comm.Ibarrier()
        while not here.Test():  # rank 0 comes when there is a request
            time.sleep(_RANK_INTERVAL)

        shared: bytes | None = self._comm.bcast(line, root=0)
        return shared

    def first(self, error: str | None) -> str | None:
        """Return, on rank 0, the error of the first rank that has one.

        Each rank writes its error to standard error first: the others may wait for this rank in
        vain.
        """
        if error is not None:
            print(f"rank {self.rank}: {error}", file=sys.stderr, flush=True)

        errors = self._comm.gather(error, root=0) or []
        for rank, text in enumerate(errors):
            if text is not None:
                return f"rank {rank}: {text}"
        return None
