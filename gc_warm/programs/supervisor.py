"""The process between a worker and its program: it sees to it that nothing of the program outlives the worker.

A process that dies takes nothing with it. ``PR_SET_PDEATHSIG`` ends a program with its parent, but
not the program's own children; a process group reaches those, but not what has opened a session of
its own. So every program gets a supervisor as its parent:

- it is a *subreaper*: whatever the program leaves behind, daemons that fork twice included, becomes
  the supervisor's child;
- it waits for the end of the program, for the worker's word and for the worker's death (a pidfd),
  whichever comes first;
- it then ends every descendant: a moment to obey end-of-file, SIGINT, SIGTERM, SIGKILL, within a
  second altogether;
- and it removes the program's temporary directory.

It lives in a session of its own and ignores signals that ask it to end, so only SIGKILL ends it
early; the kernel then ends the program itself. Processes on other nodes, such as the ranks of an
MPI launcher, are beyond its reach: their launcher has to end them.

The worker runs this file by its path, with nothing but the standard library and as little as
possible of that. The program's streams are the supervisor's own standard streams. On a socket it
tells the worker, a line each, ``started PID`` or ``failed WHY``, and ``ended STATUS``; the worker
asks it to end the program by closing its side, after ``interrupt`` if the program is in the middle
of a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_END_OF_FILE_GRACE = 0.5  # seconds in which a program may end by itself once its input has ended
_SIGNAL_GRACE = 0.25  # seconds to obey a signal before the next one
_WATCH_INTERVAL = 0.02  # seconds between looks while something has to end
# seconds between looks at the worker where the kernel has no pidfd (Linux before 5.3)
_POLL_INTERVAL = 0.2


class Supervisor:
    """One program with everything that descends from it.

    Args:
        control: The socket to the worker.
        worker: Process id of the worker.
    """

    def __init__(self, control: socket.socket, worker: int) -> None:
        self._control = control
        self._worker = worker
        self._program = 0
        self._asked = ""  # what the worker has said so far
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._wake, written = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        # what wakes the poll is the byte in the pipe
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(self._wake, select.POLLIN)
        self._poll_interval = self._watch_worker()

    def _watch_worker(self) -> float | None:
        try:
            self._poll.register(os.pidfd_open(self._worker), select.POLLIN)
        except (AttributeError, OSError):
            # an old kernel or C library, or the worker is gone, which its parenthood tells too
            return _POLL_INTERVAL
        return None

    def run(self, command: list[str]) -> None:
        """Start the program, wait for a reason to end it, and end it."""
        if why := self._start(command):
            self.say(f"failed {why}")
            return
        self.say(f"started {self._program}")
        while self._program and self._worker_waits():
            self._poll.poll(None if self._poll_interval is None else 1000 * self._poll_interval)
            self._reap()
        self._end()

    def _start(self, command: list[str]) -> str:
        """Start *command* as a child in a session of its own; returns why it could not be."""
        read, write = os.pipe()  # closed by a successful exec
        self._program = os.fork()
        if self._program == 0:
            try:
                _become(command)
            except BaseException as error:
                os.write(write, str(error).encode(errors="replace"))
            finally:
                os._exit(127)
        os.close(write)
        with open(read, encoding="utf-8", errors="replace") as failure:
            why = failure.read().replace("\n", " ")
        null = os.open(os.devnull, os.O_RDWR)
        # the program's alone from here on, so that the worker sees when it closes them
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        return why

    def _worker_waits(self) -> bool:
        """Whether the worker is there and has not asked for the end."""
        if os.getppid() != self._worker:
            return False
        try:
            said = self._control.recv(64, socket.MSG_DONTWAIT).decode()
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._asked += said
        return bool(said)

    def _reap(self) -> bool:
        """Collect what has ended; returns whether anything is left."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._program:
                self._program = 0
                self.say(f"ended {os.waitstatus_to_exitcode(status)}")

    def _end(self) -> None:
        """End the program and all of its descendants."""
        obeys_end_of_file = self._program and not self._asked
        waits = [
            (_END_OF_FILE_GRACE if obeys_end_of_file else 0, signal.SIGINT),
            (_SIGNAL_GRACE, signal.SIGTERM),
            (_SIGNAL_GRACE, signal.SIGKILL),
        ]
        for wait, number in waits:
            if self._gone_within(wait):
                return
            self._signal(number)
        wait = _WATCH_INTERVAL
        while not self._gone_within(wait):
            self._signal(signal.SIGKILL)  # again, for what was forked meanwhile
            wait = min(2 * wait, 1.0)  # the system may not let go of it for long

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._reap():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self._wake], [], [], left)
        return True

    def _signal(self, number: int) -> None:
        for pid in descendants(os.getpid()):
            # gone; or a set-user-id program, which is not ours to end
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def say(self, line: str) -> None:
        """Tell the worker."""
        with contextlib.suppress(OSError):  # the worker is gone
            self._control.sendall(f"{line}\n".encode())


def descendants(ancestor: int) -> list[int]:
    """The process ids of all that descend from *ancestor*, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # a command's name may contain blanks and brackets
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(name))
    found = [ancestor]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found[1:]


def _become(command: list[str]) -> None:
    """In the forked child: turn into the program."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # in case the supervisor itself is killed
    for number in (signal.SIGPIPE, signal.SIGXFSZ, *_IGNORED):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        where = (
            ", or not the interpreter that its first line names"
            if os.sep in command[0]
            else " on this worker's PATH"
        )
        raise FileNotFoundError(f"there is no program {command[0]}{where}") from error
    except OSError as error:
        raise OSError(f"{error.strerror}: {command[0]}") from error


_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _remove(folder: str) -> None:
    import shutil  # not before it is needed: its import would be a third of the start

    # what a full or lost file system keeps cannot be helped here
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run ``supervisor.py CONTROL WORKER FOLDER COMMAND...``; an empty FOLDER means the present one, any other is made."""
    # the thread of the worker that started this may have had another
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    descriptor, worker, folder, *command = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    control = socket.socket(fileno=int(descriptor))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = Supervisor(control, int(worker))
    if not folder:
        supervisor.run(command)
        return
    try:
        try:
            os.mkdir(folder, 0o700)
            os.chdir(folder)
        except OSError as error:
            supervisor.say(f"failed its working directory cannot be made: {error}")
            return
        supervisor.run(command)
    finally:
        os.chdir("/")
        _remove(folder)


if __name__ == "__main__":
    main()
