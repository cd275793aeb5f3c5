"""The identity of a worker process, and the orderly end of all that it holds.

A manager ends its workers with SIGTERM and one second later with SIGKILL. Python's default action
for SIGTERM runs no ``atexit`` callback, so the first state with a teardown installs a handler that
raises `SystemExit`; the interpreter then ends as it always does, and the teardowns run in
``atexit``. The handler does nothing else: one that took a lock would deadlock with the code it
interrupts.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gc_warm.worker import ledger

log = logging.getLogger("gc_warm")

# a teardown may load something for its own use, which then has to be torn down too; or it may take
# two rounds, as that of programs does
_ROUNDS = 3

# that a worker has after it was asked to end; its manager grants one, but somebody else may have
# asked
_LAST_SECONDS = 10

_parent = os.getppid()  # as this was imported: a fork of a worker has the worker's manager

_template: int | None = None
_not_forked: str | None = None

_armed = False  # tear_down() is registered to run at the end of this process
_ending = False  # tear_down() runs: a second SIGTERM must not interrupt it


@dataclass(frozen=True)
class Worker:
    """The identity of a worker.

    Outside an endpoint `block`, `pool` and `rank` are None: absent, not invented.

    Attributes:
        host: Name of the node.
        pid: Process id on that node.
        block: The block (batch job) of its manager, as Parsl numbers them: "0", "1", ...
        pool: Id of its manager; the workers of one node share it.
        rank: Its number among the workers of that manager. A restarted worker keeps the rank and
            has another pid.
        count: The number of workers that this manager has.
        template: The number of the template process that it was forked from, warm, counted by its
            manager from 1; None if it was started.
        not_forked: Why it was started and not forked, though its config asks for that.
    """

    host: str
    pid: int
    block: str | None
    pool: str | None
    rank: int | None
    count: int | None = None
    template: int | None = None
    not_forked: str | None = None


def worker() -> Worker:
    """Return the identity of this process.

    Parsl sets ``PARSL_WORKER_*`` in every worker of an endpoint; without these variables only host
    and pid are known.
    """
    return Worker(
        host=socket.gethostname(),
        pid=os.getpid(),
        block=os.environ.get("PARSL_WORKER_BLOCK_ID"),
        pool=os.environ.get("PARSL_WORKER_POOL_ID"),
        rank=_number("PARSL_WORKER_RANK"),
        count=_number("PARSL_WORKER_COUNT"),
        template=_template,
        not_forked=_not_forked,
    )


def note_birth(template: int | None, not_forked: str | None = None) -> None:
    """Note how this worker has come into the world; `worker` tells it.

    Args:
        template: The number of the template that it was forked from; None if it was started.
        not_forked: Why it was not forked, where that was asked for.
    """
    global _template, _not_forked
    _template = template
    _not_forked = not_forked


def manager() -> int | None:
    """Return the process id of this worker's manager; None outside an endpoint."""
    return _parent if "PARSL_WORKER_RANK" in os.environ else None


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None


def tear_down() -> None:
    """End everything this process holds, latest first.

    Errors are logged, never raised; harmless to call again.
    """
    for _ in range(_ROUNDS):
        for holding in reversed(ledger.held()):
            try:
                holding.close()
            except BaseException:  # the others must still be ended, whatever this one raised
                log.exception("teardown of %r was cut short", holding)


def arm() -> None:
    """Have `tear_down` run when this process ends.

    It runs at the normal end, at ``sys.exit`` and at SIGTERM, but not at SIGKILL.
    """
    global _armed
    if not _armed:
        atexit.register(_end)
        # twice: SIGTERM at the very start of one of these calls would end it before its first
        # statement
        atexit.register(_end)
        _register_with_multiprocessing()
        _armed = True

    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        _catch_sigterm()


def _end() -> None:
    global _ending
    _ending = True
    tear_down()


def _register_with_multiprocessing() -> None:
    """Register the teardown with multiprocessing, too, in a child that it has forked.

    Such a child ends with ``os._exit``: multiprocessing's finalizers run, atexit callbacks do not.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _end, exitpriority=0)


class Sigterm:
    """The SIGTERM handler: calls the handler that was there before, then raises `SystemExit`.

    Args:
        previous: The handler that was there before.
    """

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal, unless this process is ending already.

        Raises:
            SystemExit: Always, but in the midst of teardowns.
        """
        if _ending:
            return

        if callable(self.previous):
            self.previous(signum, frame)

        if "PARSL_WORKER_RANK" in os.environ and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
            # Needs no lock and no thread: the kernel ends a process that a thread of the user's
            # would keep from ending.
            signal.alarm(_LAST_SECONDS)

        raise SystemExit(128 + signum)


def _catch_sigterm() -> None:
    present = signal.getsignal(signal.SIGTERM)

    # the handler is there already, or the owner of the process wants none
    if isinstance(present, Sigterm) or present is signal.SIG_IGN:
        return

    if present is None:
        log.warning(
            "SIGTERM is handled by code that is not Python: "
            "teardowns run only if the process ends normally"
        )
        return

    signal.signal(signal.SIGTERM, Sigterm(present))


def _after_fork() -> None:
    global _armed, _ending

    # multiprocessing has emptied its list of finalizers; atexit callbacks are harmless more than
    # once
    _armed = False
    _ending = False

    present = signal.getsignal(signal.SIGTERM)
    if isinstance(present, Sigterm) and threading.current_thread() is threading.main_thread():
        # a child holds nothing, and is to end at once, as a pool's processes are used to
        signal.signal(signal.SIGTERM, present.previous)

    for holding in ledger.held():
        holding.disown()


os.register_at_fork(after_in_child=_after_fork)
