"""The tasks of the soak: each notes that it begins, and returns its worker and what it has made."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import servers

from gc_warm import ExternalProcess, warm
from gc_warm.worker import lifecycle

RECORD = "SOAK_RECORD"
"""Environment variable with the file to which each task that begins adds a line."""

SIZE = 1000
"""The number of entries of a table."""

_FAULTY = str(Path(__file__).parents[1] / "executables" / "faulty.py")
_program = ExternalProcess([sys.executable, "-I", "-S", _FAULTY])
_servers = {"worker": servers.make(), "node": servers.make(scope="node")}

_record = -1
_failing: int | None = None  # the task in which loads fail


def _begin(token: int) -> int:
    """Note that a task begins, and return its worker."""
    global _record
    if _record < 0:
        _record = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    template = lifecycle.worker().template or 0
    os.write(_record, f"{token} {os.getpid()} {template}\n".encode())
    return os.getpid()


def entry(key: int, token: int) -> int:
    """Return the entry that a table of this key has for a token."""
    return key * SIZE + token % SIZE


def pattern(token: int, size: int) -> bytes:
    """Return so many bytes that no other token has."""
    unit = b"%d " % token
    return (unit * (size // len(unit) + 1))[:size]


@warm
def preloaded() -> list[int]:
    """The table that is loaded once for each node, and that its workers are born with."""
    return [entry(1, token) for token in range(SIZE)]


@warm(maxsize=3)
def table(key: int) -> list[int]:
    """A table whose load fails in tasks that ask for it."""
    if _failing is not None:
        raise LookupError(f"no table for task {_failing}")
    return [entry(key, token) for token in range(SIZE)]


@warm(maxsize=3)
def slow_table(key: int) -> list[int]:
    """A table whose load takes about 20 ms."""
    for _ in range(20):
        time.sleep(0.001)
    return [entry(key, token) for token in range(SIZE)]


def quick(token: int) -> tuple[int, tuple[int, int]]:
    """Use what has been preloaded, and say how often that was loaded."""
    worker = _begin(token)
    found = preloaded()[token % SIZE]
    return worker, (found, preloaded.info().loads)


def look_up(token: int, key: int, fails: bool) -> tuple[int, int]:
    """Use a table; if it has to be loaded, and *fails*, that fails."""
    global _failing
    worker = _begin(token)
    _failing = token if fails else None
    try:
        return worker, table(key)[token % SIZE]
    finally:
        _failing = None


def _within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with a time-out, as the endpoint calls all of a task."""
    from parsl.app.python import timeout

    try:
        return timeout(function, seconds)(*arguments)
    finally:
        # the timer may just have begun to strike: it has to do so here, and not in Parsl's worker
        time.sleep(0.01)


def look_up_in_time(token: int, key: int, seconds: float) -> tuple[int, int]:
    """Use a table that is slow to load, or be timed out."""
    worker = _begin(token)
    return worker, _within(seconds, slow_table, key)[token % SIZE]


def call(token: int) -> tuple[int, int]:
    """Have the worker's program answer with the token."""
    return _begin(token), _program.call(token)


def call_in_time(token: int, seconds: float) -> tuple[int, int]:
    """Have the worker's program answer, or be timed out."""
    return _begin(token), _within(seconds, _program.call, token)


def call_in_vain(token: int) -> tuple[int, int]:
    """Ask the worker's program for what it never answers."""
    return _begin(token), _program.call("never_become_ready", timeout=0.2)


def ask(token: int, scope: str) -> tuple[int, str]:
    """Have a server answer with the token."""
    return _begin(token), servers.ask(_servers[scope], f"/echo/{token}")


def large(token: int, size: int) -> tuple[int, bytes]:
    """Return so many bytes."""
    return _begin(token), pattern(token, size)


def measure(token: int, sent: bytes) -> tuple[int, int]:
    """Return the checksum of what was sent."""
    return _begin(token), zlib.crc32(sent)


def never_end(token: int) -> NoReturn:
    """Run until the endpoint times it out."""
    _begin(token)
    while True:
        time.sleep(0.01)
