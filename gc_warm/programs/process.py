"""ExternalProcess: a program that is started once per worker and answers many calls.

This is the second way to be warm: a simulation code with a large start-up cost stays alive between
tasks, in a process of its own, and the worker talks to it through its standard streams. An
`ExternalProcess` is written once, at the top level of a module that workers import:

    lammps = ExternalProcess(["stdbuf", "-oL", "lmp", "-log", "none"], Marker('print "{marker}"'))

    def pressure(density: float) -> float:
        lammps.call(f"variable rho equal {density}")
        ...

Every call has a deadline. A call that does not end with an answer leaves the program's streams out
of step, so that program is ended, and the next call starts another. The program is marked as out of
step *before* its streams are touched: an exception that strikes at any point, such as a task's
time-out, leaves at worst a program that the next call ends.

A program ends with the worker, or with ``close``. Nothing of it outlives the worker, see
`gc_warm.programs.supervisor`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

from gc_warm.exceptions import (
    ProcessDiedError,
    ProcessStartError,
    ProcessTimeoutError,
    ProgramError,
)
from gc_warm.programs import commands, idle, supervisor
from gc_warm.programs.pipe import Pipe
from gc_warm.programs.protocols import Protocol, is_chatty, json_lines
from gc_warm.worker import ledger, lifecycle

log = logging.getLogger("gc_warm")

_answers: Counter[str] = Counter()  # of each program, by its short name
ledger.count_uses(lambda: _answers)

_SUPERVISOR = str(Path(supervisor.__file__))

# seconds between looks whether the supervisor has ended: it ends as soon as its socket is closed
_WATCH_INTERVAL = 0.002

# seconds; the supervisor takes one, and more only for a process that the kernel does not let go
_END_TIMEOUT = 5.0

# seconds between looks whether the session of another caller is over
_TURN_INTERVAL = 0.01

_processes: WeakSet[ExternalProcess] = WeakSet()


class ExternalProcess:
    r"""A program that is started at the first call and kept alive for the calls that follow.

    One call runs at a time; other threads wait for their turn. A program that has ended is started
    again by the next call; no request is ever repeated. A forked child starts a program of its own.

    The program ends with the worker process, whichever way that ends, and with it everything that
    the program has started on this node. Ranks that an MPI launcher has started on other nodes are
    ended by the launcher, or not at all. To end, a program has half a second after the end of its
    input, then a quarter after SIGINT and again after SIGTERM.

    Args:
        command: The program and its arguments; no shell is involved.
        protocol: How a request and its reply cross the pipe, see `gc_warm.programs.protocols`.
        on_start: Is called with the pipe of every program that has been started, before its first
            request: to read a greeting, or to set up what every call expects, such as by
            ``lambda pipe: protocol(pipe, "scale=20")``.
        restart: Whether a call starts a program again that has ended by itself, or in a call that
            failed. If not, what was set up in it is lost: calls raise until ``close``.
        start_timeout: Seconds that a call which has to start the program has on top. With `Marker`,
            with `on_start`, and with `serve` on the other side, they are over once the program is
            up.
        call_timeout: Seconds for a call that does not say otherwise.
        cwd: Directory to run in. The default is a new temporary one for each start, which is also
            the program's ``TMPDIR``, and is removed when the program has ended.
        env: Environment variables to set for the program, besides those of the worker.

    Raises:
        TypeError: The command is not a sequence of strings and paths, `env` has something else than
            text, or the protocol cannot be called.
        ValueError: The command is empty, a relative path, or cannot be a command; a variable cannot
            have such a name; a timeout is not positive.

    Example:
        >>> import shutil
        >>> from gc_warm import ExternalProcess, Marker
        >>> if shutil.which("bc"):
        ...     with ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"')) as bc:
        ...         print(bc.call("2^100"))
        ... else:
        ...     print(2**100)
        1267650600228229401496703205376
    """

    def __init__(  # noqa: PLR0913 - options that one reads by their names
        self,
        command: Sequence[str | os.PathLike[str]],
        protocol: Protocol = json_lines,
        *,
        on_start: Callable[[Pipe], object] | None = None,
        restart: bool = True,
        start_timeout: float = 60.0,
        call_timeout: float = 300.0,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        checked = commands.checked_command(command)
        if not callable(protocol):
            raise TypeError(f"a protocol is a function (pipe, request) -> reply, not {protocol!r}")
        if on_start is not None and not callable(on_start):
            raise TypeError(f"on_start is a function of the pipe, not {on_start!r}")

        environment = commands.checked_environment(env or {})
        self._launch = Launch(checked, protocol, on_start, cwd, environment, ledger.mark())
        self._restart = restart
        self._start_timeout = commands.checked_seconds("start_timeout", start_timeout)
        self._call_timeout = commands.checked_seconds("call_timeout", call_timeout)

        self._renew()
        _processes.add(self)

    def _renew(self) -> None:
        """Begin without a program and without a caller.

        A forked child begins like this, too: only the thread that forked is left in it.
        """
        self._program: Program | None = None
        self._lock = threading.RLock()
        self._calling = threading.Lock()  # held in a call, so that one thread never has two
        self._session: weakref.ref[Session] | None = None
        self._lost = ""  # how the program ended whose state this process has lost

    def _renew_in_child(self) -> None:
        program = self._program
        self._renew()
        if program is not None and program.is_lost:
            self._lost = "belongs to the process that this one was forked from"

    def call(self, request: Any, timeout: float | None = None) -> Any:
        """Send a request to the program, and return its reply.

        A program that is not running is started first.

        Args:
            request: A request that the protocol takes: for `json_lines` what JSON can express, for
                `Marker` text in the program's language.
            timeout: Seconds for this call; None for ``call_timeout``. The call that starts the
                program has ``start_timeout`` on top.

        Returns:
            The reply, as the protocol returns it.

        Raises:
            ProgramError: The program answered with an error; it stays warm.
            ProcessStartError: The program could not be started, or ended before its first answer.
            ProcessDiedError: The program ended in the middle of the call; or before it, and is not
                to be started again.
            ProcessTimeoutError: No answer came within the time allowed; the program was ended.
            ProcessError: The program cannot answer, or what it wrote cannot belong to this request;
                the program was ended.
            RuntimeError: The call comes from the protocol of a call to the same program.
        """
        return self._call(request, timeout, None)

    def session(self) -> Session:
        """Return a session: one caller, and one life of the program, for the length of a block.

        What a call in the block has set up is there for the next ones: other callers wait until the
        block is over, and a call raises `ProcessDiedError` if the program has ended since the first
        one. What earlier callers have left in the program is there, too.

        Returns:
            A context manager, which gives a function to call in place of `call`.

        Example:
            with bc.session() as call:
                call("scale=20; g=9.81")
                call("g*2")
        """
        return Session(self)

    def _call(self, request: Any, timeout: float | None, session: Session | None) -> Any:
        seconds = (
            self._call_timeout if timeout is None else commands.checked_seconds("timeout", timeout)
        )

        while True:
            with self._lock:
                if self._is_free_for(session):
                    return self._call_in_turn(request, seconds, session)
            time.sleep(_TURN_INTERVAL)

    def _is_free_for(self, session: Session | None) -> bool:
        """Return whether no other caller has a session; to be asked with the lock."""
        holder = self._holder()
        return holder in (None, session) or holder.thread == threading.get_ident()

    def _holder(self) -> Session | None:
        """Return the session that is under way; to be asked with the lock."""
        if self._session is None:
            return None

        holder = self._session()
        if holder is None or holder.is_over:
            self._session = None
            return None
        return holder

    def _call_in_turn(self, request: Any, seconds: float, session: Session | None) -> Any:
        if self._calling.locked():  # and by this thread, since it has the other lock
            raise RuntimeError(
                f"{self!r} is called by its own protocol, which is given a pipe to write to"
            )

        with self._calling:
            program = self._program
            if program is None or not program.begin(seconds, self._start_timeout):
                self._refuse_restart(session)
                program = self._start(seconds)

            if session is not None:
                session.check(program)
            return program.call(request)

    def _refuse_restart(self, session: Session | None) -> None:
        """Raise an error if something is lost with the program that has ended."""
        program = self._program
        if program is not None:
            program.clear_up()
            if program.is_lost:
                self._lost = program.ending

        if session is not None and session.life is not None:
            raise _lost_error(session.life)
        if self._lost and not self._restart:
            name = commands.short_name(self._launch.command)
            raise ProcessDiedError(
                f"{name} {self._lost}, and what was set up in it is lost; it is not to be started "
                "again (restart=False): close() it, and set it up anew"
            )

        if program is not None and program.last_words is not None:
            text = "%s %s; it is started again%s"
            log.warning(text, program.name, program.ending, program.last_words)

    def _start(self, seconds: float) -> Program:
        if self._program is not None:
            self._program.clear_up()

        program = Program(self._launch, self._lock, self._calling)
        self._program = program

        program.wait_for_start(seconds, self._start_timeout)
        return program

    def close(self) -> None:
        """End the program and everything it has started, which takes a second at most.

        A call that is running, in another thread or around the handler of a signal, fails. The next
        call starts the program again.
        """
        if self._program is not None:
            self._program.end()
        self._lost = ""

    @property
    def pid(self) -> int | None:
        """Process id of the program; None if there is none.

        If the program has ended by itself, only the next call notices.
        """
        return self._program.pid if self._program is not None else None

    def __enter__(self) -> ExternalProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        pid = self.pid
        state = "not running" if pid is None else f"pid {pid}"
        return f"<ExternalProcess {ledger.describe(self._launch.command)}: {state}>"

    def __reduce__(self) -> str:
        raise pickle.PicklingError(
            f"{self!r} belongs to this process and cannot be sent: "
            "make it at the top level of a module that workers import, and call it from there"
        )

    def __del__(self) -> None:
        program = getattr(self, "_program", None)  # __init__ may have raised
        if program is not None and program.pid is not None:
            text = f"{self!r} was not closed"
            program.end()
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


class Session:
    """One caller's use of one life of a program; see `ExternalProcess.session`.

    The program knows it by a weak reference: a block that an exception kept from beginning, or from
    ending, leaves nobody waiting.

    Args:
        process: The program.

    Attributes:
        thread: The thread whose block it is.
        is_over: Whether its block has ended.
        life: The life of the program in which its first call was.
    """

    def __init__(self, process: ExternalProcess) -> None:
        self._process = process
        self.thread = 0
        self.is_over = False
        self.life: Program | None = None

    def __enter__(self) -> Session:
        try:
            self._wait_for_turn()
        except BaseException:
            self.is_over = True
            raise
        return self

    def _wait_for_turn(self) -> None:
        process = self._process
        self.thread = threading.get_ident()
        while True:
            with process._lock:
                holder = process._holder()
                if holder is None:
                    process._session = weakref.ref(self)
                    return
                if holder.thread == self.thread:
                    raise RuntimeError(f"this thread has a session of {process!r} already")
            time.sleep(_TURN_INTERVAL)

    def __exit__(self, *exc_info: object) -> None:
        self.is_over = True

    def __call__(self, request: Any, timeout: float | None = None) -> Any:
        """Send a request, as `ExternalProcess.call` does, to the program of this session.

        Args:
            request: As for `ExternalProcess.call`.
            timeout: As for `ExternalProcess.call`.

        Raises:
            ProcessDiedError: The program has ended since the first call; or as for
                `ExternalProcess.call`, as other errors.
            RuntimeError: The session is over, or has not begun.
        """
        if self.is_over or not self.thread:
            raise RuntimeError("a session is called within its block")
        return self._process._call(request, timeout, self)

    def check(self, program: Program) -> None:
        """Raise an error if this is another life of the program than before."""
        if self.life is None:
            self.life = program
        elif self.life is not program:
            raise _lost_error(self.life)


def _lost_error(life: Program) -> ProcessDiedError:
    words = f"{life.name} {life.ending}, and what was set up in this session is lost: begin another"
    return ProcessDiedError(words)


@dataclass(frozen=True)
class Launch:
    """How a program is started and talked to.

    Attributes:
        command: The program and its arguments, as for `ExternalProcess`.
        protocol: How a request and its reply cross the pipe.
        on_start: Is called with the pipe after every start, or None.
        cwd: Directory to run in; None for a temporary one.
        env: Environment variables to set.
        order: Position in the ledger: that at which the `ExternalProcess` was made. It comes before
            the `warm` state that uses the program was complete, so that the teardown of that state
            finds the program alive.
    """

    command: list[str]
    protocol: Protocol
    on_start: Callable[[Pipe], object] | None
    cwd: str | os.PathLike[str] | None
    env: dict[str, str]
    order: float


class Program:
    """One life of the program of an `ExternalProcess`, from its start to its end.

    A `Program` has the program's supervisor and its streams, and knows whether the streams are in
    step. A supervisor ends everything once nobody refers to its socket any more: so an exception in
    the middle of the constructor leaves nothing behind once the exception itself is forgotten.

    Args:
        launch: How it is started and talked to.
        lock: Held by the thread that calls; all methods but `ask`, `end` and `close` are for that
            thread.
        calling: Held by that thread, too, while it calls.

    Attributes:
        order: As in `Launch`.
        used: The number of its answers.
        pid: Process id of the program; None before its start and after its end.
        name: Its name, for messages.
        ending: How it ended, in words.
        last_words: The end of what it wrote before it ended while it was idle; else None.

    Raises:
        ProcessStartError: Not even the supervisor can be started.
    """

    def __init__(self, launch: Launch, lock: Any, calling: Any) -> None:
        self.order = launch.order
        self.used = 0
        self.pid: int | None = None
        self.name = commands.short_name(launch.command)
        self.ending = "was ended in the middle of a call"
        self.last_words: str | None = None
        self._command = launch.command
        self._protocol = launch.protocol
        self._on_start = launch.on_start
        self._is_strict = not is_chatty(launch.protocol)
        self._is_closed = False  # by who uses it, or with the worker
        self._lock = lock
        self._calling = calling
        self._clearing = threading.Lock()  # held while it is cleared up
        self._in_step = False
        self._begun = time.monotonic()
        self._loaded_at = 0.0  # seconds since the epoch; 0 until its first answer
        self._load_seconds = 0.0

        try:
            self._folder = _temporary_folder() if launch.cwd is None else ""
            self._supervisor, self._control = _start_supervisor(launch, self._folder)
        except OSError as error:
            ledger.record("failed", self.name, self._command, error=error)
            raise ProcessStartError(f"{self.name} cannot be started: {error}") from error

        streams = (self._supervisor.stdin, self._supervisor.stdout, self._supervisor.stderr)
        self._streams = [stream for stream in streams if stream]
        self._pipe = Pipe(self.name, [stream.fileno() for stream in self._streams], self._control)

    def wait_for_start(self, seconds: float, start_seconds: float) -> None:
        """Wait until the program runs, and begin the first call.

        Args:
            seconds: The time that the first call may take.
            start_seconds: The time that this method and the program's start may take on top.

        Raises:
            ProcessStartError: The program cannot be started.
            ProcessTimeoutError: Not even the supervisor has begun in this time.
        """
        lifecycle.arm()
        ledger.hold(self)

        try:
            self._pipe.begin(self._begun, seconds, start_seconds, strict=self._is_strict)
            self.pid = self._pipe.wait_for_start()
            idle.reader.add(self._pipe)
            self._pipe.lend()
            if self._on_start is not None:
                self._set_up(self._on_start, seconds, start_seconds)
            self._in_step = True
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, ProgramError):
                what = f"{self.name} could not be set up by on_start: {error.message}"
                text = ProcessStartError(what, None, error.stdout, error.stderr)
                raise text from None
            raise

    def _set_up(
        self, on_start: Callable[[Pipe], object], seconds: float, start_seconds: float
    ) -> None:
        """Do what is to be done at every start, in the time for that."""
        self._pipe.begin(self._begun, start_seconds)
        on_start(self._pipe)

        self._pipe.answered = True
        self._pipe.begin(time.monotonic(), seconds, strict=self._is_strict)

    def begin(self, seconds: float, start_seconds: float) -> bool:
        """Begin a call to a program that has been started before.

        Args:
            seconds: The time that the call may take.
            start_seconds: The time that the program may take on top, if it has not answered yet.

        Returns:
            Whether the program is there and in step. If not, it is to be cleared up.
        """
        if self._pipe.asked or not self._in_step:
            return False

        now = time.monotonic()
        if not self._loaded_at:
            self._begun = now
        start_seconds = 0.0 if self._pipe.answered else start_seconds
        self._pipe.begin(now, seconds, start_seconds, strict=self._is_strict)

        # what is left of earlier calls; not so in `wait_for_start`, where what there is may be the
        # program's only words
        self._pipe.forget(unread=not self._is_strict)
        if self._pipe.over:
            self.ending = f"{self._pipe.how_it_ended()} while it was idle"
            self.last_words = self._pipe.last_words()
        return not self._pipe.over

    def call(self, request: Any) -> Any:
        """Make the call that `wait_for_start` or `begin` has begun, and return the reply."""
        self._in_step = False

        try:
            reply = self._answer(request)
            self._record_answer()
            return reply
        except ProgramError:
            self._record_answer()
            raise
        except BaseException as error:
            if not self._pipe.touched:
                self._in_step = True
                self._pipe.lend()
                raise

            self._give_up(error)
            # its last words, such as a traceback from SIGINT, tell where it was
            if isinstance(error, ProcessTimeoutError):
                raise self._pipe.with_last_words(error) from None
            raise

    def _answer(self, request: Any) -> Any:
        """Return the reply, or raise the error, of a protocol that has read all of it."""
        try:
            reply = self._protocol(self._pipe, request)
        except ProgramError:
            self._refuse_unread()
            raise

        self._refuse_unread()
        return reply

    def _refuse_unread(self) -> None:
        if self._is_strict and self._pipe.touched:  # else it talks to it in another way
            self._pipe.refuse_unread("after the reply to this request")

    def _record_answer(self) -> None:
        self._pipe.answered = True
        _answers[self.name] += 1
        self.used += 1
        if not self._loaded_at:
            self._load_seconds = time.monotonic() - self._begun
            self._loaded_at = time.time()
            ledger.record("loaded", self.name, self._command, seconds=self._load_seconds)

        self._in_step = True
        self._pipe.lend()
        if self._pipe.asked:
            self.clear_up()

    def _give_up(self, error: BaseException) -> None:
        self._in_step = False
        if not self._is_closed:
            self.ending = f"was ended after {type(error).__name__}"
        if not self._loaded_at:
            ledger.record("failed", self.name, self._command, error=error)

        self.ask(interrupt=True)
        self.clear_up()

    def ask(self, *, interrupt: bool = False) -> None:
        """Ask the supervisor to end the program, and return at once.

        Args:
            interrupt: The program is in the middle of a call, and does not read its input now.
        """
        self._pipe.asked = True
        with contextlib.suppress(OSError):  # asked before, or the supervisor has ended
            if interrupt:
                self._control.send(b"interrupt")
            self._control.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """End the program and everything it has started.

        A call that is running fails, and its thread clears up.
        """
        self._note_closed()
        self.ask(interrupt=self._calling.locked())

        # this thread is in a call, or ends it already, and this is the handler of a signal
        if self._lock._is_owned():
            if not self._calling.locked():
                self.clear_up()
            return

        deadline = time.monotonic() + _END_TIMEOUT
        while self._control.fileno() >= 0 and time.monotonic() < deadline:
            # by the thread that clears up, or by one that calls the next program: there is no
            # waiting for that one
            if self._calling.locked():
                time.sleep(_WATCH_INTERVAL)
            else:
                with self._lock:
                    self.clear_up()

    def close(self) -> None:
        """Ask the program to end, as the worker ends; at the second call, wait for its end.

        So all programs of a worker end at the same time.
        """
        if self._pipe.asked:
            self.end()
            return

        self._note_closed()
        self._in_step = False
        busy = self._calling.locked()
        self.ask(interrupt=busy)
        if not busy:
            self._close_input()

    def _note_closed(self) -> None:
        self._is_closed = True
        if self._control.fileno() >= 0:  # it has not ended before
            self.ending = "was closed"

    @property
    def is_lost(self) -> bool:
        """Whether it has answered, and has ended without having been closed."""
        return bool(self._loaded_at) and not self._is_closed

    def clear_up(self) -> None:
        """End the program, and give back all that it takes."""
        # it is done already, or this very thread is at it, since it has the other lock: see `end`
        if self._control.fileno() < 0 or self._clearing.locked():
            return

        with self._clearing:
            self._in_step = False
            self._close_input()
            self.ask()
            self._pipe.finish(_END_TIMEOUT, self._supervisor_has_ended)
            self._wait_for_supervisor()

            self.pid = None
            ledger.release(self)
            if self._loaded_at:
                kind: ledger.Kind = "cleared" if self._is_closed else "ended"
                ledger.record(kind, self.name, self._command)
            idle.reader.remove(self._pipe)
            self._close_descriptors()

    def _close_input(self) -> None:
        self._pipe.take_back()
        self._pipe.end_input()
        self._streams[0].close()

    def _wait_for_supervisor(self) -> None:
        """Wait until the supervisor has ended, for some seconds at most.

        ``Popen.wait`` would not do: an exception at the wrong moment leaves it with a lock that is
        never released.
        """
        deadline = time.monotonic() + _END_TIMEOUT
        while not self._supervisor_has_ended():
            if time.monotonic() > deadline:
                text = (
                    "%s has been killed, but the system does not let go of it or of something it "
                    "started: see the children of process %d"
                )
                log.warning(text, self.name, self._supervisor.pid)
                return

            time.sleep(_WATCH_INTERVAL)
        if self._folder and os.path.lexists(self._folder):  # it was killed
            shutil.rmtree(self._folder, ignore_errors=True)

    def _supervisor_has_ended(self) -> bool:
        if self._supervisor.returncode is not None:
            return True

        try:
            ended, _ = os.waitpid(self._supervisor.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            ended = self._supervisor.pid

        if ended:
            self._supervisor.returncode = 0  # so that Popen does not wait for it, either
        return bool(ended)

    def _close_descriptors(self) -> None:
        self._pipe.close()
        for stream in self._streams:
            stream.close()
        self._control.close()

    def loaded(self) -> ledger.Loaded | None:
        """Return the record of the program, or None while it has not answered yet."""
        if not self._loaded_at:
            return None

        command = ledger.describe(self._command)
        return ledger.Loaded(self.name, command, self._loaded_at, self._load_seconds)

    def disown(self) -> None:
        """Give up a forked child's copies of the streams; the parent's program goes on."""
        self._supervisor.returncode = 0  # not a child of this process
        self._close_descriptors()
        ledger.release(self)


def _temporary_folder() -> str:
    return os.path.join(tempfile.gettempdir(), f"gc_warm-{secrets.token_hex(8)}")


def _start_supervisor(launch: Launch, folder: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the supervisor, which then starts the program; return it and the socket to it."""
    _expect_descriptors()
    control, theirs = _socket_pair()

    try:
        with theirs:
            temporary = {"TMPDIR": folder} if folder else {}
            env = {**os.environ, **temporary, **launch.env}
            arguments = [str(theirs.fileno()), str(os.getpid()), folder, *launch.command]
            return _popen(arguments, theirs.fileno(), launch.cwd, env), control
    except BaseException:
        control.close()
        raise


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two sockets, neither of which has the number of a standard stream.

    A worker that has closed its own standard streams would get such numbers.
    """
    pair = socket.socketpair()
    if pair[1].fileno() > 2:
        return pair

    try:
        return _socket_pair()
    finally:
        for end in pair:
            end.close()


def _expect_descriptors() -> None:
    """Raise an OSError if there are fewer descriptors left than the start needs.

    Older Pythons leave some open where Popen runs out of them.
    """
    with contextlib.ExitStack() as pairs:
        # the supervisor's, three pipes, and one by which Popen learns of an error
        for _ in range(5):
            for end in socket.socketpair():
                pairs.enter_context(end)


def _popen(
    arguments: list[str], control: int, cwd: str | os.PathLike[str] | None, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _SUPERVISOR, *arguments],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[control],
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


def _after_fork() -> None:
    for process in _processes:
        process._renew_in_child()  # the program is the parent's; `lifecycle` has it disowned


os.register_at_fork(after_in_child=_after_fork)
