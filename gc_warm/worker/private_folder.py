"""Folders in shared places, such as /tmp, that only this user can enter."""

from __future__ import annotations

import contextlib
import errno
import os
import stat


def make_private(folder: str) -> None:
    """Make a folder that only this user can enter, if there is none.

    Somebody may remove it at any moment, so that it need not be there afterwards.

    Args:
        folder: Its path.

    Raises:
        PermissionError: There is one that others can enter.
        OSError: It cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)

    with contextlib.suppress(FileNotFoundError):  # just removed
        check_private(folder)


def check_private(folder: str) -> None:
    """Raise an error if others could have put something into a folder.

    Args:
        folder: Its path.

    Raises:
        PermissionError: They could.
        OSError: It is not there.
    """
    status = os.lstat(folder)
    advice = "remove it, or set TMPDIR to another folder"
    if status.st_uid != os.geteuid():
        advice = f"user {status.st_uid} has made it: set TMPDIR to another folder"

    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or status.st_mode & 0o077:
        words = f"this is not a folder that only you may enter: {advice}"
        raise PermissionError(errno.EPERM, words, folder)
