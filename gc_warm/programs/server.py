"""ExternalServer: a server that is started once per worker or node, and kept for many calls.

A model server, or a solver with a REST interface, is a program that answers over a socket. An
`ExternalServer` is written once, at the top level of a module that workers import:

    llama = ExternalServer(
        ["llama-server", "--host", "{socket}", "-m", MODEL], ready="/health", scope="node"
    )

    def models() -> bytes:
        with llama.connect() as address:
            connection = address.http()
            connection.request("GET", "/v1/models")
            return connection.getresponse().read()

The server has a supervisor (`gc_warm.programs.server_supervisor`), which is found by a socket in a
folder whose name all can compute who may use the server. So nobody has to remember anything: a
worker that dies, or a call that is interrupted, leaves a server that the next call finds as it is.
Whoever finds none starts one, with a lock in that folder, so that of many only one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import pickle
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from gc_warm.exceptions import (
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
)
from gc_warm.programs import commands, supervisor
from gc_warm.programs.server_address import ServerAddress, free_port, is_taken
from gc_warm.programs.server_link import ANSWER_TIMEOUT, Link, quoted
from gc_warm.programs.server_supervisor import give_up, start_time
from gc_warm.worker import ledger, lifecycle
from gc_warm.worker.private_folder import check_private, make_private

log = logging.getLogger("gc_warm")

Scope = Literal["worker", "node"]

_CONTROL = "control"  # the supervisor's socket, in the server's folder
_SOCKET = "server.sock"  # the server's: some take what ends so for a socket
_LOCK = "lock"
_LONGEST_FOLDER = 95  # bytes, so that the path of a socket in it has less than 108
_BACKLOG = 512  # of workers that ask at the same time
_WATCH_INTERVAL = 0.05  # seconds between looks while a server starts
_LOCK_INTERVAL = 0.02  # seconds between looks while another starts or ends it
_END_TIMEOUT = 5.0  # seconds; a supervisor takes one, and more only for what the kernel keeps
_PORT_ATTEMPTS = 5

_PLACEHOLDERS = ("{socket}", "{port}", "{token}")

# set by Parsl for one worker; a server of all workers has what the manager has
_OF_ONE_WORKER = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "ZE_ENABLE_PCI_ID_DEVICE_ORDER",
    "OMP_NUM_THREADS",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "PARSL_WORKER_RANK",
)

_SUPERVISOR = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from gc_warm.programs.server_supervisor import main; main()"
)
_ROOT = str(Path(supervisor.__file__).parents[2])

_uses: Counter[str] = Counter()  # of each server, by its name
ledger.count_uses(lambda: _uses)

_children: set[int] = set()  # supervisors that this process has started, to be collected
os.register_at_fork(after_in_child=_children.clear)


class ExternalServer:
    """A server that is started when it is first used, and kept for the uses that follow.

    It is shared by all threads of a worker or, with ``scope="node"``, by all workers of a manager,
    which is one node of a job: whoever comes first starts it, and the others wait until it is
    ready. It ends within a second of the worker, or of the manager, whichever way that ends, and
    with it everything that it has started on this node. A server that has died is started again by
    the next use.

    Exactly one of two placeholders says where it is to listen, in the command or in `env`:

    - ``{socket}``, the path of a Unix socket in a folder that only this user can enter. Use this if
      the server can.
    - ``{port}``, a free port on 127.0.0.1; tell the server to listen there only. It is open to all
      users of the node, unless the server asks for a token: ``{token}``, in `env` alone, is a
      secret that is made at every start. Its health is asked with ``Authorization: Bearer``.

    Args:
        command: The program and its arguments; no shell is involved.
        ready: The server is ready when it answers this path, such as ``/health``, with a status
            below 400; or when a line of what it prints matches this regular expression, as
            ``re.compile`` makes it. A path is asked before every use, too; without one, before
            every use it is seen whether the server accepts connections.
        scope: ``"worker"`` for a server of each worker, which has the devices that the worker is
            pinned to; ``"node"`` for one of all workers of a manager, which has the devices that
            the manager has. Outside an endpoint both mean this process.
        start_timeout: Seconds until it is ready.
        health_timeout: Seconds for each answer, before a use and until it is ready.
        cwd: Directory to run in. The default is a new temporary one for each start, which is also
            its ``TMPDIR``, and is removed at its end.
        env: Environment variables to set, besides those of the worker.

    Raises:
        TypeError: The command is not a sequence of strings and paths; `ready` or `env` has another
            type than above.
        ValueError: There is no place to listen, or two; a token is in the command, where all users
            of the node can read it; `scope` is unknown; a timeout is not positive.

    Example:
        >>> import sys
        >>> from gc_warm import ExternalServer
        >>> command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
        >>> server = ExternalServer(command, ready="/")
        >>> with server.connect() as address:
        ...     connection = address.http()
        ...     connection.request("GET", "/")
        ...     connection.getresponse().status
        200
        >>> server.close()
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        ready: str | re.Pattern[str],
        scope: Scope = "worker",
        start_timeout: float = 600.0,
        health_timeout: float = 30.0,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = commands.checked_command(command)
        self._env = commands.checked_environment(env or {})
        self._wants = _checked_placeholders(self._command, self._env)
        self._ready = _checked_ready(ready)
        if scope not in ("worker", "node"):
            raise ValueError(f'scope is "worker" or "node", not {scope!r}')

        self.scope: Scope = scope
        self._start_timeout = commands.checked_seconds("start_timeout", start_timeout)
        self._health_timeout = commands.checked_seconds("health_timeout", health_timeout)
        self._cwd = None if cwd is None else os.path.abspath(cwd)
        self._name = f"{commands.short_name(self._command)} [{scope}]"
        self._pattern = None if isinstance(ready, str) else (ready.pattern, ready.flags)

        what = (self._command, self._env, self._cwd, scope, self._pattern or ready)
        whole = repr(what).encode(errors="surrogateescape")
        self._digest = hashlib.sha256(whole).hexdigest()[:8]
        self._use = _Use(self)

    @contextlib.contextmanager
    def connect(self) -> Iterator[ServerAddress]:
        """Give the address of the server for the length of a block.

        A server that is not there is started, and one that is starting is waited for. The server
        has answered just now when the block begins.

        Yields:
            The address: a URL, with the `socket` or `port` and the `token` of this start.

        Raises:
            ProcessStartError: It could not be started, or ended before it was ready.
            ProcessTimeoutError: It was not ready in time, and was ended; or it does not answer any
                more, and was ended unless others still use it.
            ProcessDiedError: It ended in the block, and the block raised an error, which is the
                cause of this one.
            ProcessError: It answers with an error when its health is asked, and was ended unless
                others still use it.
        """
        with self._ready_link() as link:
            _uses[self._name] += 1
            try:
                yield link.address
            except Exception as error:
                if link.is_ending():
                    words = f"{self._name} {link.ending()} while it was used{link.log_end()}"
                    raise ProcessDiedError(words, link.status["exit"]) from error
                raise

    def start(self) -> None:
        """Have the server ready, as `connect` does: a config can name this to be preloaded.

        Raises:
            ProcessError: As in `connect`.
        """
        self._ready_link().close()

    def close(self) -> None:
        """End the server and everything it has started, which takes a second at most.

        A server of the node ends for all workers. The next use starts it again.
        """
        link = self._dial()
        if link is not None:
            with link:
                link.end("was closed")
                link.wait(_END_TIMEOUT)
            self._use.end("cleared")
        _collect_children()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None if there is none."""
        link = self._dial()
        if link is None:
            return None
        with link:
            return None if link.is_ended else link.status["pid"]

    @property
    def log_file(self) -> Path:
        """The file with what the server prints; there as long as the server is.

        It has 4 MiB at most: what was before is in the same file with ``.1`` behind its name.
        """
        return Path(self._folder(), "log")

    def __repr__(self) -> str:
        return f"<ExternalServer {self._name}>"

    def __reduce__(self) -> str:
        raise pickle.PicklingError(
            f"{self!r} belongs to the workers of one node and cannot be sent: "
            "make it at the top level of a module that workers import, and use it from there"
        )

    # Finding and starting

    def _ready_link(self) -> Link:
        """Return a link to the server, which has just answered."""
        begun = time.monotonic()
        deadline = begun + self._start_timeout
        attempts = _PORT_ATTEMPTS

        while True:
            link = self._find_or_start(deadline)
            with contextlib.ExitStack() as stack:
                stack.enter_context(link)
                try:
                    is_there = self._await(link, begun, deadline)
                except _PortTakenError as taken:
                    attempts -= 1
                    if not attempts:
                        raise self._failed(str(taken), status=link.status["exit"]) from None
                    continue
                if is_there:
                    stack.pop_all()
                    return link

    def _find_or_start(self, deadline: float) -> Link:
        """Return a link to the server that there is, or to one that is started now."""
        _collect_children()
        while True:
            link = self._dial()
            if link is not None and not link.is_ended:
                return link
            if link is not None:
                with link:
                    link.wait(_END_TIMEOUT)  # until it has given all of it back

            try:
                lock = self._try_lock()
            except OSError as error:
                raise self._failed(f"cannot be started: {error}") from error
            if lock is not None:
                with lock:
                    return self._launch(lock.fileno(), deadline)

            if time.monotonic() > deadline:
                words = (
                    "is being started or ended by another process, which has not come to an end "
                    f"in {self._start_timeout:g} s: see {self._folder()}"
                )
                raise self._failed(words, ProcessTimeoutError)
            time.sleep(_LOCK_INTERVAL)

    def _dial(self, timeout: float = ANSWER_TIMEOUT) -> Link | None:
        """Return a link to the server if there is one, ready or not."""
        return _dial(self._folder(), timeout)

    def _try_lock(self) -> io.FileIO | None:
        """Return the file that locks the server's folder, locked, or None if it is locked.

        The folder is made if there is none. An ending server may remove it at any moment.
        """
        folder = self._folder()
        make_private(folder)
        path = os.path.join(folder, _LOCK)
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            contextlib.ExitStack() as stack,
        ):
            lock = stack.enter_context(io.FileIO(path, "a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                stack.pop_all()
                return lock
        return None

    def _launch(self, lock: int, deadline: float) -> Link:
        """Start the supervisor, which starts the server and takes over the lock."""
        folder = self._folder()
        try:
            _clear(folder)
            launch, environment = self._plan(folder)
            with socket.socket(socket.AF_UNIX) as listener, self.log_file.open("ab") as errors:
                listener.bind(os.path.join(folder, _CONTROL))
                listener.listen(_BACKLOG)

                descriptors = [listener.fileno(), lock]
                arguments = [*map(str, descriptors), folder]
                with (
                    contextlib.suppress(BrokenPipeError),  # the supervisor says why, in the log
                    _supervisor(descriptors, arguments, environment, errors) as launch_input,
                ):
                    launch_input.sendall(json.dumps(launch).encode() + b"\n")
        except OSError as error:
            give_up(folder)
            raise self._failed(f"cannot be started: {error}") from error

        # the supervisor's Python may come from a slow file system
        link = self._dial(max(ANSWER_TIMEOUT, deadline - time.monotonic()))
        if link is None:
            tail = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
            raise self._failed(f"could not be supervised{quoted(tail)}")
        return link

    def _plan(self, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what the supervisor is to start, and the environment for that."""
        address = {
            "socket": os.path.join(folder, _SOCKET) if "{socket}" in self._wants else None,
            "port": free_port() if "{port}" in self._wants else None,
            "token": secrets.token_urlsafe(32) if "{token}" in self._wants else None,
        }
        owner = self._owner()
        owner_started = start_time(owner)
        if not owner_started:
            raise ProcessLookupError("the manager of this worker has ended")

        environment = _environment_for(owner)
        work = self._cwd
        if work is None:
            work = os.path.join(folder, "work")
            os.makedirs(work, 0o700, exist_ok=True)
            environment["TMPDIR"] = work
        environment |= {name: _filled(value, address) for name, value in self._env.items()}

        launch = {
            "command": [_filled(part, address) for part in self._command],
            "address": address,
            "cwd": work,
            "pattern": self._pattern,
            "owner": owner,
            "owner_started": owner_started,
            "cpus": None if owner == os.getpid() else sorted(os.sched_getaffinity(owner)),
        }
        return launch, environment

    def _owner(self) -> int:
        """Return the process id of the process with which the server ends."""
        manager = lifecycle.manager()
        return manager if self.scope == "node" and manager else os.getpid()

    def _folder(self) -> str:
        """Return the folder of the server: the same for all who may use it, and for nobody else."""
        owner = self._owner()
        key = f"{owner}.{start_time(owner)}"
        if owner != os.getpid():
            key = lifecycle.worker().pool or key
        return _folder_of(f"{key}-{self._digest}")

    # Readiness and health

    def _await(self, link: Link, begun: float, deadline: float) -> bool:
        """Wait until the server answers; return False if it had ended before, while idle."""
        if link.status["state"] == "ready":
            is_healthy = self._check_health(link)
            if not is_healthy:
                text = "%s %s while it was idle, and is started again%s"
                log.warning(text, self._name, link.ending(), link.log_end())
                return False
            self._use.begin(link, 0.0)
        else:
            self._wait_until_ready(link, deadline)
            seconds = time.monotonic() - begun
            self._use.begin(link, seconds)
            ledger.record("loaded", self._name, self._command, seconds=seconds)

        link.say("ready")
        return True

    def _wait_until_ready(self, link: Link, deadline: float) -> None:
        while True:
            link.wait(_WATCH_INTERVAL)
            self._refuse_taken_port(link)
            if link.is_over:
                before = " before it was ready" if link.status["pid"] else ""
                if link.status["exit"] == 0:
                    before += ": it has to run in the foreground, not as a daemon"
                words = f"{link.ending()}{before}{link.log_end()}"
                raise self._failed(words, status=link.status["exit"])

            timeout = min(self._health_timeout, max(_WATCH_INTERVAL, deadline - time.monotonic()))
            complaint = self._complaint(link, timeout)
            if complaint is None:
                self._refuse_taken_port(link)  # it may be another that has answered
                return
            if time.monotonic() > deadline:
                raise self._too_slow(link, complaint[0])

    def _too_slow(self, link: Link, complaint: str) -> ProcessError:
        """End a server that was not ready in time, and return the error."""
        why = f"was not ready within {self._start_timeout:g} s: it {complaint}"
        link.end(why)
        link.wait(_END_TIMEOUT)
        fate = "it was ended"
        if not link.is_over:
            fate = f"its supervisor, process {link.status['supervisor']}, does not answer"
        return self._failed(f"{why}, and {fate}{link.log_end()}", ProcessTimeoutError)

    def _refuse_taken_port(self, link: Link) -> None:
        """End a server whose port is another program's, so that it is started on another one."""
        port = link.address.port
        if port is None:
            return
        family = supervisor.descendants(link.status["supervisor"])
        if not is_taken(port, family):
            return

        words = f"found its port {port} taken by another program"
        if not link.is_over:
            link.end(words)
            link.wait(_END_TIMEOUT)
        raise _PortTakenError(f"{words}{link.log_end()}")

    def _check_health(self, link: Link) -> bool:
        """Return whether the server is there; raise an error if it is, and does not answer well."""
        complaint = self._complaint(link, self._health_timeout)
        if complaint is None:
            return True
        if link.is_ending():
            return False

        what, kind = complaint
        link.say(f"end-unused {what}")
        link.wait(_END_TIMEOUT, for_news=True)
        fate = "was ended: the next use starts it again"
        if not link.is_over:
            fate = "goes on, since others use it now"
        raise kind(f"{self._name} {what}, and {fate}{link.log_end()}")

    def _complaint(self, link: Link, timeout: float) -> tuple[str, type[ProcessError]] | None:
        """Return what is wrong with the server's answer, and the error for that, or None."""
        address = link.address
        try:
            if not isinstance(self._ready, str):
                if link.status["state"] == "starting":
                    what = f"has printed no line that matches {self._ready.pattern!r}"
                    return what, ProcessTimeoutError
                address.connect(timeout).close()
                return None
            status = address.ask(self._ready, timeout)
        except TimeoutError:
            return f"did not answer within {timeout:.3g} s", ProcessTimeoutError
        except (OSError, ValueError) as error:
            return f"does not answer: {error}", ProcessError

        if status < 400:
            return None
        return f"answers {self._ready} with status {status}", ProcessError

    # What this process knows of it

    def _failed(
        self, words: str, kind: type[ProcessError] = ProcessStartError, status: int | None = None
    ) -> ProcessError:
        """Return the error of a start that failed, which is noted in the ledger."""
        failure = kind(f"{self._name} {words}", status)
        ledger.record("failed", self._name, self._command, error=failure)
        return failure


class _PortTakenError(Exception):
    """Another program listens on the port that the server was given."""


class _Use:
    """The use that this process makes of a server, in its ledger from the first to the end.

    Args:
        server: The server.

    Attributes:
        order: The position in the ledger at which the `ExternalServer` was made.
    """

    def __init__(self, server: ExternalServer) -> None:
        self.order: float = ledger.mark()
        self._server = server
        self._supervisor: int | None = None  # which tells a start from the next one
        self._at = 0.0
        self._seconds = 0.0
        self._ending: Link | None = None

    @property
    def used(self) -> int:
        """The number of uses of servers of this name."""
        return _uses[self._server._name]

    def begin(self, link: Link, seconds: float) -> None:
        """Note that this process has the server, if it is not known yet.

        Args:
            link: A link to it.
            seconds: How long this process has waited for it.
        """
        supervisor = link.status["supervisor"]
        if self._supervisor == supervisor:
            return

        self.end("ended")
        self._at = time.time()
        self._seconds = seconds
        lifecycle.arm()
        ledger.hold(self)
        self._supervisor = supervisor

    def end(self, kind: Literal["ended", "cleared"]) -> None:
        """Note that the server has ended, by itself or since this process has closed it."""
        if self._supervisor is not None:
            self.disown()
            ledger.record(kind, self._server._name, self._server._command)

    def loaded(self) -> ledger.Loaded | None:
        """Return the record of the server, or None if there is none now."""
        if self._server.pid is None:
            return None
        command = ledger.describe(self._server._command)
        return ledger.Loaded(self._server._name, command, self._at, self._seconds)

    def close(self) -> None:
        """Ask a server of this process to end; at the second call, wait for that."""
        if self._server._owner() != os.getpid():
            return

        if self._ending is None:
            self._ending = self._server._dial()
            if self._ending is not None:
                self._ending.end("was closed")
            return

        with self._ending:
            self._ending.wait(_END_TIMEOUT)
        self._ending = None
        self.disown()

    def disown(self) -> None:
        """Forget the server, which may be the parent process's."""
        self._supervisor = None
        ledger.release(self)


def _folder_of(key: str) -> str:
    """Return the folder with a key in its name, in a place where sockets can be.

    That is not asked of `tempfile`, which tells those who come after the disk is full another one.
    """
    name = f"gc_warm-{os.geteuid()}-{key}"
    parent = os.environ.get("TMPDIR", "")
    folder = os.path.join(parent, name)
    is_short = len(os.fsencode(folder)) <= _LONGEST_FOLDER
    if is_short and os.path.isabs(parent) and os.access(parent, os.W_OK | os.X_OK):
        return folder
    return os.path.join("/tmp", name)


def _dial(folder: str, timeout: float = ANSWER_TIMEOUT) -> Link | None:
    """Return a link to the server in a folder if there is one, ready or not.

    In a folder that another user has made, who can know its name, another would answer.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        check_private(folder)
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(timeout)
        connection.connect(os.path.join(folder, _CONTROL))
        link = Link(connection, timeout)
        if link.status:
            stack.pop_all()
            return link
    return None


def _clear(folder: str) -> None:
    """Remove what a server has left whose supervisor was killed, its socket, say."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                os.unlink(entry)


def _environment_for(owner: int) -> dict[str, str]:
    """Return the environment of a server: what is set for one worker is not for all of them."""
    environment = dict(os.environ)
    if owner == os.getpid():
        return environment

    try:
        entries = Path(f"/proc/{owner}/environ").read_bytes().split(b"\0")
    except OSError:
        entries = []
    inherited = dict(os.fsdecode(entry).partition("=")[::2] for entry in entries if entry)
    for name in _OF_ONE_WORKER:
        environment.pop(name, None)
        if name in inherited:
            environment[name] = inherited[name]
    return environment


def _supervisor(
    descriptors: Sequence[int],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    errors: IO[bytes],
) -> socket.socket:
    """Start a supervisor, and return the socket on which it expects what is to be started.

    A pipe of Popen's would stay open where an exception comes between: subprocess keeps a process
    that nobody has waited for, and the supervisor would wait for ever.
    """
    theirs, ours = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SUPERVISOR, _ROOT, *arguments],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=descriptors,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    _children.add(process.pid)
    process.returncode = 0  # it is collected by `_collect_children`, and may outlive this process
    theirs.close()
    return ours


def _collect_children() -> None:
    """Collect supervisors that have ended."""
    for pid in list(_children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _children.discard(pid)


def _filled(text: str, address: Mapping[str, Any]) -> str:
    """Return a text with the placeholders filled in."""
    for name, value in address.items():
        if value is not None:
            text = text.replace(f"{{{name}}}", str(value))
    return text


def _checked_placeholders(command: Sequence[str], env: Mapping[str, str]) -> set[str]:
    """Return the placeholders that there are in a command and an environment."""
    in_command = {name for name in _PLACEHOLDERS if any(name in part for part in command)}
    in_env = {name for name in _PLACEHOLDERS if any(name in value for value in env.values())}
    found = in_command | in_env

    if "{token}" in in_command:
        raise ValueError(
            "all users of a node can read command lines, and a {token} in them: give it to the "
            'server by its environment, such as env={"LLAMA_API_KEY": "{token}"}'
        )
    if len(found & {"{socket}", "{port}"}) != 1:
        raise ValueError(
            "either {socket} or {port} in the command, or in env, says where the server is to "
            f"listen: there is {' and '.join(sorted(found)) or 'none of them'} in {list(command)!r}"
        )
    return found


def _checked_ready(ready: str | re.Pattern[str]) -> str | re.Pattern[str]:
    if isinstance(ready, re.Pattern) and isinstance(ready.pattern, str):
        return ready
    if isinstance(ready, str) and re.fullmatch("/[!-~]*", ready):
        return ready
    raise TypeError(
        f"ready is a path that the server answers, such as '/health', or a pattern that a line of "
        f"its log matches, such as re.compile('listening'), not {ready!r}"
    )


def end_servers(pool: str) -> None:
    """End the servers of a manager's workers on this node.

    A manager's end is their end, too; this is for a stand-in whose workers have no manager.

    Args:
        pool: The manager's id.
    """
    folders = Path(_folder_of(pool))
    for control in folders.parent.glob(f"{folders.name}-*/{_CONTROL}"):
        link = _dial(os.fspath(control.parent))
        if link is not None:
            with link:
                link.end("was shut down")
                link.wait(_END_TIMEOUT)
