"""What users of one machine keep there, and what they try with each other's."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import programs
import servers

from gc_warm import functions, stage
from gc_warm.worker import lifecycle, staging

_trap = socket.socket(socket.AF_UNIX)
"""A socket at which another user's worker would look for its server's supervisor."""


def counted() -> tuple[int, int, int]:
    """Return the user and the worker, and how many tasks that has counted."""
    return os.getuid(), os.getpid(), functions.count()


def rights() -> dict[str, Any]:
    """Return what a login as this user, or the lack of one, leaves to a task."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return {
        "capabilities": int(lines["CapPrm"], 16),
        "no_new_privileges": lines["NoNewPrivs"].strip() == "1",
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "home": os.environ["HOME"],
        "folder": os.getcwd(),
    }


def places() -> tuple[str, str]:
    """Return where this worker looks for its server and its staged files."""
    pool = lifecycle.worker().pool or ""
    names = [str(os.getuid()), staging._digest(socket.gethostname()), staging._digest(pool)]
    return servers.node._folder(), "/tmp/gc_warm-staged-" + "-".join(names)


def served() -> int:
    """Return the process that serves this worker."""
    _, pid = servers.ask_of("node")
    return int(pid)


def staged() -> tuple[str, int]:
    """Return the path and the inode of a copy of a file that is private in its home."""
    model = Path.home() / "model"
    if not model.exists():
        model.write_text(f"a secret of {os.getuid()}")
    copy = stage(model)
    return str(copy), copy.stat().st_ino


def programmed() -> list[int]:
    """Return the processes of a program that is kept alive."""
    return [int(pid) for pid in programs._programs["obeys"].call("who")]


def reached(paths: list[str]) -> list[str]:
    """Return which of these can be read, listed, written to or connected with."""
    return [path for path in paths if _is_reached(path)]


def _is_reached(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False

    attempts: list[Any] = [lambda: os.close(os.open(path, os.O_RDONLY))]
    attempts += [lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND))]
    if stat.S_ISDIR(mode):
        attempts = [lambda: os.listdir(path), lambda: os.rmdir(os.path.join(path, "nothing"))]
    if stat.S_ISSOCK(mode):
        attempts = [lambda: _connect(path)]

    for attempt in attempts:
        try:
            attempt()
        except (PermissionError, ProcessLookupError):
            continue
        except OSError:  # such as that there is nothing, in a folder that was entered
            pass
        return True
    return False


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def set_traps(server_folder: str, staged_folder: str) -> None:
    """Take the places of another user's worker before it does, and listen for it."""
    os.mkdir(server_folder)
    os.chmod(server_folder, 0o777)
    _trap.bind(os.path.join(server_folder, "control"))
    os.chmod(os.path.join(server_folder, "control"), 0o777)
    _trap.listen()

    mine = Path.home() / "trap"
    mine.mkdir(mode=0o777)
    mine.chmod(0o777)
    os.symlink(mine, staged_folder)


def take_traps(server_folder: str, staged_folder: str) -> tuple[int, list[str]]:
    """Remove the traps, and return how many have connected, and what was put there."""
    _trap.setblocking(False)
    caught = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            _trap.accept()[0].close()
            caught += 1

    _trap.close()
    os.unlink(staged_folder)
    shutil.rmtree(server_folder)
    mine = Path.home() / "trap"
    got = os.listdir(mine)
    mine.rmdir()
    return caught, got
