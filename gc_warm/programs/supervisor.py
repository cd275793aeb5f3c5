"""The supervisor of a program: nothing of the program outlives the worker.

A process that dies takes nothing with it. ``PR_SET_PDEATHSIG`` ends a program with its parent, but
not the program's own children; a process group reaches those, but no child that has opened a
session of its own. So every program gets a supervisor as its parent:

- it is a *subreaper*: whatever the program leaves behind, daemons that fork twice included, becomes
  the supervisor's child;
- it waits for the end of the program, for the worker's word and for the worker's death (a pidfd),
  whichever comes first;
- it then ends every descendant: a moment to obey end-of-file, SIGINT, SIGTERM, SIGKILL, within a
  second altogether;
- and it removes the program's temporary directory.

The supervisor lives in a session of its own and ignores signals that ask it to end, so only SIGKILL
ends it early; the kernel then ends the program itself. Processes on other nodes, such as the ranks
of an MPI launcher, are beyond its reach: their launcher has to end them.

The worker runs this file by its path, with nothing but the standard library and as little as
possible of that. The program's streams are the supervisor's own standard streams. On a socket the
supervisor tells the worker, a line each, ``started PID`` or ``failed WHY``, and ``ended STATUS``.
The worker asks for the end of the program by closing its side of the socket, after ``interrupt`` if
the program is in the middle of a call.
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

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that ask a process to end."""

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
        self._asked = ""  # the worker's words so far

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
        """Poll for the worker's death too; return the seconds between looks if that cannot be."""
        try:
            self._poll.register(os.pidfd_open(self._worker), select.POLLIN)
        except (AttributeError, OSError):
            # an old kernel or C library, or the worker is gone, which its parenthood tells too
            return _POLL_INTERVAL
        return None

    def run(self, command: list[str]) -> None:
        """Start the program, wait for a reason to end it, and end it."""
        why = self._start(command)
        if why:
            self.say(f"failed {why}")
            return

        self.say(f"started {self._program}")
        wait = None if self._poll_interval is None else 1000 * self._poll_interval
        while self._program and self._worker_waits():
            self._poll.poll(wait)
            self._reap()
        self._end()

    def _start(self, command: list[str]) -> str:
        """Start *command* as a child in a session of its own; return why it failed, or nothing."""
        read, write = os.pipe()  # closed by a successful exec
        parent = os.getpid()
        self._program = os.fork()
        if self._program == 0:
            try:
                _become(command, parent)
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
        """Return whether the worker is there and has not asked for the end."""
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
        """Collect the children that have ended; return whether any is left."""
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
            # it is gone; or a set-user-id program, which is not ours to end
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def say(self, line: str) -> None:
        """Tell the worker a line."""
        with contextlib.suppress(OSError):  # the worker is gone
            self._control.sendall(f"{line}\n".encode())


def descendants(ancestor: int) -> list[int]:
    """Return the ids of the processes that descend from *ancestor*, parents before children."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2]  # a name may contain blanks and brackets
        except OSError:  # it has ended meanwhile
            continue
        parent = int(fields.split()[1])
        children.setdefault(parent, []).append(int(name))

    family = [ancestor]
    for pid in family:  # grows while it is walked
        family += children.get(pid, [])
    return family[1:]


def _become(command: list[str], parent: int) -> None:
    """Turn the forked child into the program."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # in case the supervisor itself is killed
    if os.getppid() != parent:
        raise ProcessLookupError("its supervisor was killed before that")

    for number in (signal.SIGPIPE, signal.SIGXFSZ, *IGNORED):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)

    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        if os.sep in command[0]:
            where = ", or not the interpreter that its first line names"
        else:
            where = " on this worker's PATH"
        raise FileNotFoundError(f"there is no program {command[0]}{where}") from error
    except OSError as error:
        raise OSError(f"{error.strerror}: {command[0]}") from error


def become_subreaper() -> None:
    """Have whatever a descendant leaves behind become a child of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def remove(folder: str) -> None:
    """Remove a folder with all that is in it."""
    import shutil  # not before it is needed: its import would be a third of the start

    # nothing can be done here about files that a full or lost file system keeps
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run ``supervisor.py CONTROL WORKER FOLDER COMMAND...``.

    CONTROL is the descriptor of the socket, WORKER the worker's process id. An empty FOLDER means
    the present one; any other is made, and removed at the end.
    """
    # the thread of the worker that started this may have had another mask
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)

    descriptor, worker, folder, *command = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    control = socket.socket(fileno=int(descriptor))
    become_subreaper()

    supervisor = Supervisor(control, int(worker))
    if folder:
        _run_in(folder, supervisor, command)
    else:
        supervisor.run(command)


def _run_in(folder: str, supervisor: Supervisor, command: list[str]) -> None:
    """Run a program in a folder that is made for it and removed at its end."""
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
        remove(folder)


if __name__ == "__main__":
    main()
