"""Predicates for ``@warm(valid=...)``: whether kept state may still be handed out."""

from __future__ import annotations

import logging
import os
from operator import attrgetter

log = logging.getLogger("gc_warm")


class Unchanged:
    """A predicate that says no once the file that the state was loaded from has been replaced.

    `unchanged` makes it.

    Args:
        argument: The name of the loader's argument that holds the path, with the attributes that
            lead to it: ``"path"``, ``"settings.checkpoint"``.

    Raises:
        TypeError: *argument* is no such name.
    """

    def __init__(self, argument: str) -> None:
        names = argument.split(".") if isinstance(argument, str) else []
        if not names or not all(name.isidentifier() for name in names):
            raise TypeError(
                f"unchanged({argument!r}): write the name of the loader's argument that holds the "
                'path, such as unchanged("path")'
            )

        self.argument, *attributes = names
        self._text = argument
        self._path_in = attrgetter(".".join(attributes)) if attributes else None

    def version(self, value: object) -> tuple[int, int, int] | None:
        """Return what tells the file of today from another of the same name.

        Args:
            value: The loader's argument.

        Returns:
            Number, size in bytes, and time of the latest change in nanoseconds; None where there is
            no such file, or it cannot be looked at.

        Raises:
            TypeError: The argument holds no path.
        """
        try:
            path = value if self._path_in is None else self._path_in(value)
        except AttributeError as error:
            raise TypeError(
                f"{self!r}: {error}; write the attributes that lead to the path"
            ) from None
        if not isinstance(path, str | bytes | os.PathLike):
            raise TypeError(
                f"{self!r}: {path!r} is no path; name the argument that holds the path of the file"
            )

        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def __repr__(self) -> str:
        return f"unchanged({self._text!r})"


def unchanged(argument: str) -> Unchanged:
    """Return a predicate for ``@warm(valid=...)``: the file behind a path is still the same.

    State is loaded anew once another file is there under the same name, or the file was written to.
    A file that is missing, or cannot be looked at, has not been replaced: the state is kept, and a
    warning is logged, so that a purge of a scratch file system does not take it. Of a folder, only
    entries that come and go are seen, and no change within them.

    Args:
        argument: The name of the loader's argument that holds the path, with the attributes that
            lead to it: ``"path"``, ``"settings.checkpoint"``.

    Returns:
        The predicate. It asks the file system at every call: a few microseconds on a local disk.

    Raises:
        TypeError: *argument* is no such name.

    Example:
        >>> import pathlib, tempfile
        >>> from gc_warm import unchanged, warm
        >>> @warm(valid=unchanged("path"))
        ... def weights(path: str) -> str:
        ...     return pathlib.Path(path).read_text()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "weights.txt")
        ...     _ = file.write_text("first")
        ...     before = weights(str(file))
        ...     _ = file.write_text("second, and longer")
        ...     print(before, weights(str(file)), sep="; ")
        first; second, and longer
    """
    return Unchanged(argument)
