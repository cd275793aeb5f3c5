"""Symbolic links on the way to a file that is to be written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MOST_LINKS = 40  # on a path, beyond which the kernel refuses to open it


def refuse_foreign_links(path: str | os.PathLike[str]) -> None:
    """Refuse a path on which another user has put a link, in a folder where everybody can.

    Whoever follows such a link writes where the other user wants it. Links of root are the
    system's.

    Args:
        path: The file.

    Raises:
        OSError: There is such a link, which the text names; or a folder on the way cannot be looked
            into.
    """
    place = Path("/")
    parts = list(Path.cwd().joinpath(path).parts)[::-1]
    followed = 0
    while parts and followed < _MOST_LINKS:
        part = parts.pop()
        here = place.parent if part == ".." else place / part
        if not here.is_symlink():
            place = here
            continue

        owner = os.lstat(here).st_uid
        is_foreign = owner not in (0, os.geteuid())
        if is_foreign and os.stat(place).st_mode & stat.S_IWOTH:
            raise PermissionError(
                f"{here} is a symbolic link of another user (uid {owner}) in a folder where "
                "everybody can write, and is not followed: name the file that you mean, or a "
                "folder of your own"
            )
        followed += 1
        parts += list(Path(os.readlink(here)).parts)[::-1]
