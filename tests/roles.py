"""The processes of an engine by their roles, each by evidence and none by order or luck.

A role is an entry in `ROLES`: what is seen of a process that has it, and of no other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_MANAGER = ["-m", "parsl.executors.high_throughput.process_worker_pool"]
_FORKSERVER = "from multiprocessing.forkserver import main;"
_LOG = re.compile(r".*/block-[^/]+/([^/]+)/(?:manager|worker_(\d+))\.log")


class Look:
    """What is seen of a process.

    Args:
        process: The process.

    Attributes:
        process: The process.
        words: Its command line.
    """

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.words = process.cmdline()

    @functools.cached_property
    def parent(self) -> Look | None:
        """The process that it is a child of; None if that has ended."""
        with contextlib.suppress(psutil.Error):
            parent = self.process.parent()
            if parent is not None:
                return Look(parent)
        return None

    @functools.cached_property
    def _log(self) -> re.Match[str] | None:
        folder = f"/proc/{self.process.pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):  # just closed
                log = _LOG.fullmatch(os.readlink(f"{folder}/{name}"))
                if log:
                    return log
        return None

    @property
    def pool(self) -> str:
        """The name of the manager that it is, or is a child of; empty for others."""
        if self._log:
            return self._log[1]
        return self.parent.pool if self.parent and self.parent.is_manager else ""

    @property
    def rank(self) -> int | None:
        """The number that a worker's log has; None for what is no worker, or has no log yet."""
        if self._log is None or self._log[2] is None:
            return None
        return int(self._log[2])

    @property
    def is_manager(self) -> bool:
        """Whether it is the manager of a node's workers."""
        return self.words[1:3] == _MANAGER

    @property
    def is_template(self) -> bool:
        """Whether it is what a manager's workers are forked from: they are no children of that."""
        is_forkserver = any(word.startswith(_FORKSERVER) for word in self.words)
        return is_forkserver and self.parent is not None and self.parent.is_manager

    @property
    def is_helper(self) -> bool:
        """Whether it serves what the workers of a manager share, on a socket of multiprocessing."""
        if self.parent is None or not self.parent.is_manager or self.is_template:
            return False
        sockets = self.process.net_connections("unix")
        return any("listener-" in str(socket.laddr) for socket in sockets)

    @property
    def is_root(self) -> bool:
        """Whether it needs no parent among an engine's processes: a block's script, or this one."""
        is_script = any("/submit_scripts/" in word for word in self.words)
        return is_script or self.process.pid == os.getpid()

    @property
    def owner(self) -> str:
        """The owner of a server's supervisor, as its folder is named: a manager, or a worker."""
        return self.words[-1].rpartition("/")[2].split("-")[2]

    def is_supervisor(self, script: str) -> bool:
        """Return whether it runs a supervisor of `gc_warm.programs`.

        Args:
            script: What its command line has of it.
        """
        return any(script in word for word in self.words[1:5])

    def is_child_of(self, script: str) -> bool:
        """Return whether a supervisor has started it, and it is no copy of that any more.

        Args:
            script: What the command line of its supervisor has.
        """
        parent = self.parent
        return bool(parent and parent.is_supervisor(script) and parent.words != self.words)


_OF_PROGRAM = "gc_warm/programs/supervisor.py"
_OF_SERVER = "gc_warm.programs.server_supervisor"

ROLES: dict[str, Callable[[Look], bool]] = {
    "interchange": lambda look: any("interchange" in word for word in look.words),
    "manager": lambda look: look.is_manager,
    "worker": lambda look: look.rank is not None,
    "template": lambda look: look.is_template,
    "manager's helper": lambda look: look.is_helper,
    "resource tracker": lambda look: any("resource_tracker" in word for word in look.words),
    "program's supervisor": lambda look: look.is_supervisor(_OF_PROGRAM),
    "program": lambda look: look.is_child_of(_OF_PROGRAM),
    "server's supervisor": lambda look: look.is_supervisor(_OF_SERVER),
    "server": lambda look: look.is_child_of(_OF_SERVER),
}
"""The roles, in the order in which they are asked."""


@dataclass(frozen=True)
class Member:
    """A process that has a role.

    Attributes:
        role: A name in `ROLES`.
        process: The process.
        parent: The process id of its parent.
        pool: The name of the manager that it is, or is a child of; empty for others.
        rank: The number of a worker; None for others.
    """

    role: str
    process: psutil.Process
    parent: int
    pool: str = ""
    rank: int | None = None


def marked(name: str, value: str) -> Iterator[psutil.Process]:
    """Yield the other processes that have this environment variable; what has ended has none.

    Args:
        name: Name of the variable.
        value: Its value.
    """
    entry = f"{name}={value}".encode()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, psutil.Error):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if entry in environment and int(pid) != os.getpid():
                yield psutil.Process(int(pid))


def find(name: str, value: str) -> list[Member]:
    """Return those of the processes with this environment variable that have a role.

    Args:
        name: Name of the variable.
        value: Its value.
    """
    found = []
    for process in marked(name, value):
        # it ends while it is looked at
        with contextlib.suppress(OSError, psutil.Error):
            member = identify(process)
            if member is not None:
                found.append(member)
    return found


def identify(process: psutil.Process) -> Member | None:
    """Return the role of a process; None if it has none, or none yet.

    Args:
        process: The process.

    Raises:
        OSError, psutil.Error: It has ended meanwhile.
    """
    look = Look(process)
    for role, has_role in ROLES.items():
        if has_role(look):
            parent = look.parent.process.pid if look.parent else 0
            return Member(role, process, parent, look.pool, look.rank)
    return None


def strays(name: str, value: str) -> list[str]:
    """Return those of the processes with this environment variable that should have ended.

    No ancestor of such a process is a job of the engine, or this process; and it is of no server,
    whose supervisor may outlive the worker that started it, but not the server's owner.

    Args:
        name: Name of the variable.
        value: Its value.

    Returns:
        Their process ids and command lines.
    """
    looks = []
    for process in marked(name, value):
        with contextlib.suppress(psutil.Error):
            looks.append(Look(process))

    pools = {look.pool for look in looks if look.is_manager}
    found = []
    for look in looks:
        # it ends while it is looked at
        with contextlib.suppress(OSError, psutil.Error):
            if not _belongs(look, pools):
                found.append(f"{look.process.pid} {' '.join(look.words)}")
    return found


def _belongs(look: Look, pools: set[str]) -> bool:
    if look.is_root:
        return True
    if not look.is_supervisor(_OF_SERVER):
        return look.parent is not None and _belongs(look.parent, pools)

    pid, dot, _ = look.owner.partition(".")
    return psutil.pid_exists(int(pid)) if dot else look.owner in pools
