"""Evidence of a program's state, as Linux shows it in ``/proc``.

No output for a while says nothing: a program may compute for hours in silence. But one that has
been given all of its input, and waits in ``read`` for more of it, has nothing left to do. Where the
system does not show that, there is no evidence, and a call waits for its deadline.

There are no generators here: an exception from outside, such as a task's time-out, is lost if it
strikes while one is being closed.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios
from pathlib import Path

_PROC = Path("/proc")

# numbers of the system calls read and futex, by machine
_CALLS = {"x86_64": (0, 202), "aarch64": (63, 98), "ppc64le": (3, 221)}
_READ, _FUTEX = _CALLS.get(os.uname().machine, (-1, -1))

_ENDED = ["-1", "0x0", "0x0"]  # what is shown of a process that nobody has waited for yet

_FAMILY = 200  # processes that are looked at, at most


class Evidence:
    """What can be seen of a running program.

    Args:
        pid: The program's process id.
        stdin: The descriptor of the worker's end of its standard input.
        stdout: That of its standard output.
        stderr: That of its standard error.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self._pid = pid
        self._stdin = stdin
        self._links = [_link(descriptor) for descriptor in (stdin, stdout, stderr)]
        self._idle: dict[str, list[str]] = {}  # threads of the idle program, and where they are

    def note_idle(self) -> None:
        """Note where the program's threads are while it has nothing to do."""
        for process in _family(self._pid):
            self._idle.update(_places(process))

    def waits_for_input(self) -> bool:
        """Return whether the program waits for input, and can do nothing before it comes.

        Output that it has written before is then in the pipe.
        """
        # in this order: what waits now in an empty pipe, waits since it has read all of it
        if _READ < 0 or not _is_empty(self._stdin):
            return False
        readers = [process for process in _family(self._pid) if self._reads(process)]
        return bool(readers)

    def is_asleep(self) -> bool:
        """Return whether all threads of the program wait for something."""
        places = [place for process in _family(self._pid) for place in _places(process).values()]
        return [] not in places

    def _reads(self, process: Path) -> bool:
        """Return whether a process reads the program's input, and all of its threads wait."""
        places = _places(process)
        first = places.pop(process.name, [])
        if len(first) < 2 or first[0] != str(_READ):
            return False

        for thread, place in places.items():
            if not place or (self._idle.get(thread) != place and not _waits_for_others(place)):
                return False

        stdin, stdout, _ = self._links
        try:
            reads = os.readlink(process / "fd" / str(int(first[1], 16))) == stdin
            # through another process, what it has written may be still on its way
            return reads and os.readlink(process / "fd" / "1") == stdout
        except (OSError, ValueError):
            return False

    def way_of_errors(self) -> str | None:
        """Return which process writes its errors elsewhere than to the worker.

        Returns:
            The name of a process whose errors take another way than its output, through another
            process; None if none does, or it cannot be seen.
        """
        for process in _family(self._pid):
            try:
                out = os.readlink(process / "fd" / "1")
                err = os.readlink(process / "fd" / "2")
                mode = os.stat(process / "fd" / "2").st_mode
                name = (process / "comm").read_text(errors="replace").strip()
            except OSError:  # it has ended, or has closed them
                continue

            is_a_way = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or err.startswith("/dev/pts/")
            if is_a_way and err not in (self._links[2], out):
                return name
        return None


def _link(descriptor: int) -> str:
    """Return what /proc shows of a pipe, at either of its ends."""
    return f"pipe:[{os.fstat(descriptor).st_ino}]"


def _is_empty(pipe: int) -> bool:
    try:
        unread = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    except OSError:
        return False
    return struct.unpack("i", unread) == (0,)


def _family(pid: int) -> list[Path]:
    """Return the folders of a process and of its descendants, the nearest first."""
    family = [_PROC / str(pid)]
    for process in family:  # grows while it is walked
        try:
            for thread in os.listdir(process / "task"):
                children = (process / "task" / thread / "children").read_text()
                family += [_PROC / child for child in children.split()]
        except OSError:  # it has ended, or this kernel shows no children
            continue
        if len(family) > _FAMILY:
            break
    return family


def _places(process: Path) -> dict[str, list[str]]:
    """Return where each thread of a process waits: system call, arguments, stack and code.

    The list is empty for a thread that does not wait.
    """
    found: dict[str, list[str]] = {}
    try:
        for thread in os.listdir(process / "task"):
            words = (process / "task" / thread / "syscall").read_text().split()
            if words != _ENDED:
                found[thread] = words if len(words) == 9 else []
    except OSError:  # it has ended, or this user may not look
        return {}
    return found


def _waits_for_others(place: list[str]) -> bool:
    """Return whether a thread waits for another one, and not for a time."""
    return place[0] == str(_FUTEX) and int(place[4], 16) == 0
