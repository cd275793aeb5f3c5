"""Files on the node's own disk: copied there once, and removed when the job ends.

All that a job stages on a node is in one private folder, in which everything hangs on locks that
die with their holders (``flock``):

- Whoever uses the folder holds a shared lock on it, until its process ends.
- The remover of the folder holds a lock of its own; `gc_warm.worker.remover` says what it does.
- Whoever copies holds a lock of that copy, and the others wait. A copy has another name until it is
  complete, so whatever has such a name was left by somebody who was killed.

So an exception at any point, and SIGKILL, leave nothing that could be taken for a copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from gc_warm.worker import lifecycle, remover
from gc_warm.worker.private_folder import check_private, make_private

# that a file of the source had when it was looked at: number, size, time of the latest change
_Version = tuple[int, int, int]

_Contents = Mapping[str, _Version | None]
"""Files with their versions and folders with None, by their paths from where the source is."""

_BLOCK_SIZE = 1 << 20  # bytes
_WATCH_INTERVAL = 0.05  # seconds between looks at a lock that somebody else has
_FULL = (errno.ENOSPC, errno.EDQUOT)

_held: dict[str, int] = {}
"""The descriptors by which this process is a user of folders."""
_mutex = threading.Lock()  # held to change that


def stage(path: str | os.PathLike[str]) -> Path:
    """Return a copy of a file or folder on the node's own disk, made if it is not there yet.

    Many workers that load a large model from a shared file system wait for that file system, each
    for itself. With ``stage`` one worker of a node copies it, the others wait, and all load from a
    local disk, also those that are started later in the same job.

    The copy is in a private folder in ``$TMPDIR``, or in Python's ``tempfile.gettempdir()`` where
    that is not set. It is for reading, and is shared by all workers of a manager; the processes of
    a user that have no manager share another one. It is removed when the manager and all processes
    that have staged something have ended.

    Size and checksum of what was read are compared with the copy. That reads the copy once more,
    from memory as a rule, and takes less than a second for every GB.

    A source that has changed (its inode, size or time of change; in a folder, of any file) is
    copied anew, under another name: who still reads the former copy is not disturbed. Symbolic
    links are followed, so that a folder may be one of a Hugging Face cache.

    Args:
        path: The file or folder.

    Returns:
        The path of the copy, with the name of the source.

    Raises:
        FileNotFoundError: There is no such file or folder, or ``$TMPDIR`` is no folder.
        ValueError: It is, or has in it, something else than files and folders.
        OSError: It cannot be copied. ``ENOSPC`` and ``EDQUOT``, with the sizes, where the disk or a
            quota is too small; ``EBUSY`` where the source was written to meanwhile. Nothing of it
            is left.

    Example:
        >>> from gc_warm import stage, unchanged, warm
        >>> @warm(valid=unchanged("path"))
        ... def weights(path: str) -> bytes:
        ...     return stage(path).read_bytes()
    """
    source = os.path.abspath(os.fsdecode(path))
    contents = _contents(source)
    version = _digest(repr((source, sorted(contents.items(), key=str))))
    target = os.path.join(_home(), version)

    if not _is_complete(target, contents):
        with open(f"{target}.lock", "ab") as file:
            # a child that was forked in the middle of a copy may have the lock for long after it
            while not _is_complete(target, contents):
                if not _try_lock(file.fileno(), fcntl.LOCK_EX):
                    time.sleep(_WATCH_INTERVAL)
                elif not _is_complete(target, contents):  # else it was copied just before
                    _copy(source, contents, target)
    return Path(target, os.path.basename(source))


def _contents(source: str) -> _Contents:
    """Return what there is to copy."""
    parent = os.path.dirname(source)
    if not os.path.isdir(source):
        return {os.path.basename(source): _version(source)}

    found: dict[str, _Version | None] = {}
    for folder, _, names in os.walk(source, onerror=_raise, followlinks=True):
        found[os.path.relpath(folder, parent)] = None
        for name in names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, parent)] = _version(path)
    return found


def _raise(error: OSError) -> None:
    raise error


def _version(path: str) -> _Version:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path!r} is neither a file nor a folder: it cannot be staged")
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_complete(target: str, contents: _Contents) -> bool:
    """Return whether a copy is there, and nobody who cleans up has taken a part of it."""
    for path, version in contents.items():
        try:
            size = os.stat(os.path.join(target, path)).st_size
        except OSError:
            return False
        if version is not None and version[1] != size:
            return False
    return True


def _copy(source: str, contents: _Contents, target: str) -> None:
    """Copy the source; the lock of the copy is held."""
    size = sum(version[1] for version in contents.values() if version)
    partial = f"{target}.partial"
    for left in (partial, target):  # of a process that was killed, or by somebody who cleans up
        shutil.rmtree(left, ignore_errors=True)

    try:
        if size > shutil.disk_usage(os.path.dirname(target)).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.mkdir(partial)
        for path, version in contents.items():
            copy = os.path.join(partial, path)
            if version is None:
                os.mkdir(copy)
            else:
                _copy_file(os.path.join(os.path.dirname(source), path), copy, version)

        if _contents(source) != contents:
            raise _changed(source)
        os.rename(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _no_room(error.errno, source, size, os.path.dirname(target)) from None
        raise


def _copy_file(source: str, target: str, version: _Version) -> None:
    """Copy one file, and compare the copy with what was read.

    Raises:
        OSError: The copy is another; or the source is no longer of this version.
    """
    checksum = 0
    with open(source, "rb", buffering=0) as file, open(target, "xb") as copy:
        while block := file.read(_BLOCK_SIZE):
            checksum = zlib.crc32(block, checksum)
            copy.write(block)

        executable = os.fstat(file.fileno()).st_mode & stat.S_IXUSR
        os.fchmod(copy.fileno(), stat.S_IRUSR | executable)

    if _version(source) != version:
        raise _changed(source)
    if os.path.getsize(target) != version[1] or _checksum(target) != checksum:
        raise OSError(
            errno.EIO,
            f"the copy differs from what was read of {source!r}: "
            "the disk or the memory of this node is faulty",
            target,
        )


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_SIZE):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _changed(source: str) -> OSError:
    return OSError(
        errno.EBUSY, "it was written to while it was copied: stage it when it is complete", source
    )


def _no_room(number: int, source: str, size: int, home: str) -> OSError:
    free = shutil.disk_usage(home).free
    return OSError(
        number,
        f"{os.strerror(number)}: {source!r} has {size:,} bytes, and the disk of {home!r} has "
        f"{free:,} free; set TMPDIR to a folder on a larger disk of the node, in worker_init",
        home,
    )


def _home() -> str:
    """Return the folder of this job on this node, as one of its users, and with its remover."""
    parent = os.path.abspath(os.environ.get("TMPDIR") or tempfile.gettempdir())
    if not os.path.isdir(parent):
        raise FileNotFoundError(
            errno.ENOENT, "TMPDIR names no folder of this node: make it, or set another", parent
        )

    owner = f"gc_warm-staged-{os.geteuid()}-{_digest(socket.gethostname())}-"
    home = os.path.join(parent, owner + _digest(os.environ.get("PARSL_WORKER_POOL_ID", "")))

    with _mutex:
        while not _is_user(home):
            _become_user(home)

    with open(os.path.join(home, remover.REMOVER), "ab") as file:
        if _try_lock(file.fileno(), fcntl.LOCK_EX):  # else it has its remover
            _remove_abandoned(parent, owner)
            _start_remover(home, file.fileno())
    return home


def _digest(text: str) -> str:
    """Return a short name for a text, of the same length for all."""
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _is_user(home: str) -> bool:
    """Return whether this process has the lock of the folder's users, and the folder is there."""
    if home not in _held:
        return False
    try:
        users = os.stat(os.path.join(home, remover.USERS))
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(_held[home]), users)


def _become_user(home: str) -> None:
    """Take the lock of the folder's users; it is worth nothing if the folder was just removed."""
    make_private(home)
    try:
        users = os.open(os.path.join(home, remover.USERS), os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # just removed
        return

    while not _try_lock(users, fcntl.LOCK_SH):
        time.sleep(_WATCH_INTERVAL)

    former = _held.pop(home, None)
    _held[home] = users
    if former is not None:
        os.close(former)


def _try_lock(descriptor: int, operation: int) -> bool:
    """Take a lock if it is free, and return whether it was.

    Waits are loops around this one: a call that waits would hold up the time-out of a task.
    """
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(parent: str, owner: str) -> None:
    """Remove what jobs of this user have left on this node that were killed with their removers."""
    for name in os.listdir(parent):
        if not name.startswith(owner):
            continue

        folder = os.path.join(parent, name)
        with contextlib.suppress(OSError):  # it is in use, or was just removed
            check_private(folder)
            with open(os.path.join(folder, remover.REMOVER), "ab") as file:
                if _try_lock(file.fileno(), fcntl.LOCK_EX):
                    remover.remove(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _manager() -> int:
    """Return the process id of this worker's manager; 0 if there is none.

    A stand-in's workers have none: the process that started them may go on for long.
    """
    process = sys.modules.get("multiprocessing.process")
    is_started_by_manager = process is not None and process.parent_process() is not None
    return (is_started_by_manager and lifecycle.manager()) or 0


def _start_remover(home: str, lock: int) -> None:
    subprocess.run(
        [sys.executable, "-I", "-S", remover.__file__, home, str(_manager())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[lock],
        cwd="/",
        start_new_session=True,
        check=True,
    )


def _after_fork() -> None:
    """Leave the locks to the parent: a child that outlives it is no reason to keep the files."""
    global _mutex
    _mutex = threading.Lock()
    for users in _held.values():
        os.close(users)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
