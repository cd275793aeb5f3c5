"""The file of a function book: YAML that is read strictly, and replaced atomically under a lock."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import re
import stat
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from gc_warm.client.links import refuse_foreign_links
from gc_warm.exceptions import BookError

log = logging.getLogger("gc_warm")

_HEADER = """\
# Written by gc-warm register; ids of functions registered with Globus Compute.
version: 1
functions:
"""
_SAY_WAITING = 1.0  # seconds of waiting for another process, after which it is said
_RETRY_INTERVAL = 0.02  # seconds between two attempts to get the lock


def canonical_uuid(text: str) -> str:
    """Return the usual spelling of an id.

    Args:
        text: The id, in any spelling.

    Raises:
        ValueError: The text is no id.
    """
    return str(uuid.UUID(text))


class Entry(BaseModel):
    """A book's entry of one function: its registration, as it was made."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    function_id: Annotated[str, AfterValidator(canonical_uuid)]
    module: str
    signature: str
    strategy: str
    fingerprint: str
    public: bool
    group: Annotated[str, AfterValidator(canonical_uuid)] | None
    recorded: bool = False
    service: str
    sdk_version: str
    python_version: str
    registered: str
    description: str | None


class _Contents(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    functions: dict[str, Entry]


def read(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Return the entries of the book in a file, by name.

    There are none if there is no file, or an empty one, which a killed process may have left.

    Args:
        path: The file.

    Raises:
        BookError: The file is not a function book.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        contents = yaml.load(text, _Loader) if text else {"version": 1, "functions": {}}
        return _Contents.model_validate(contents).functions
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise BookError(
            f"{path} is not a function book that this version of gc_warm can read: "
            f"{_first_errors(error)}"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BookError(f"{path}:{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # not UTF-8, a control character, a date that is none, too deep a nest
        raise BookError(f"{path} cannot be read: {error}") from None


def _first_errors(error: ValidationError) -> str:
    texts = []
    for each in error.errors()[:3]:
        place = ".".join(map(str, each["loc"])) or "the file"
        texts.append(f"{place}: {each['msg']}")
    return "; ".join(texts)


class _Loader(yaml.SafeLoader):
    """A loader of YAML that refuses the same name twice, which a careless merge leaves."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: list[Any] = []
        for key, _ in node.value:
            if key.value in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is there twice", key.start_mark
                )
            names.append(key.value)

        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper of YAML that writes text of several lines as it stands, where YAML can."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML takes these for plain line ends
    has_odd_ends = re.search("[\x85\u2028\u2029]", text) is not None
    is_plain = text == text.strip() and not has_odd_ends

    style: str | None = None
    if not is_plain:
        style = '"'
    elif "\n" in text:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent)


def text_of(entries: Mapping[str, Entry]) -> str:
    """Return the text of the file of a book.

    Args:
        entries: Entries of the book, by name.
    """
    return _HEADER + "".join(_block(name, entry) for name, entry in entries.items())


@functools.cache  # of a long book, one entry differs from the last time
def _block(name: str, entry: Entry) -> str:
    block = yaml.dump(
        {name: entry.model_dump(exclude_defaults=True)},
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10_000,
    )
    return textwrap.indent(block, "  ")


class LockedFile:
    """The file of a book, made if it is missing, and locked for the length of a ``with`` block.

    The lock is an flock on the file itself, so that no file of a lock lies beside it. A process
    that replaces the file locks its successor first, and one that gets a lock looks whether the
    file is still the one at that place. The file is open for writing since over NFS, where flock is
    emulated, an exclusive lock needs that.

    Args:
        path: The file. Of a symbolic link, the file that it leads to is replaced, not the link. A
            link that another user has put where everybody can write is not followed.

    Attributes:
        path: Path of the file, with all symbolic links resolved.

    Raises:
        BookError: The path has such a link. Or, on entering the block: the file cannot be written,
            or is not a regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            refuse_foreign_links(path)
        except OSError as error:
            raise BookError(f"{error}; nothing has been sent") from error
        self.path = Path(os.path.realpath(path))

    def __enter__(self) -> LockedFile:
        with self._explained():
            self._descriptor = self._open()
            while not self._is_current():
                os.close(self._descriptor)
                self._descriptor = self._open()

        return self

    def __exit__(self, *_: object) -> None:
        if os.fstat(self._descriptor).st_size == 0 and self._is_current():  # no book came of it
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    @contextmanager
    def room_for(self, text: str) -> Iterator[Callable[[str], None]]:
        """Take the room on disk, and yield a function that replaces the text of the book.

        Args:
            text: A text of the length for which room is taken. The function that is yielded gets
                the text that is written, of the same length.

        Raises:
            BookError: There is no room, or the folder cannot be written to.
        """
        # its name is free: only who has the lock makes it
        successor = self.path.with_name(f".{self.path.name}.tmp")
        with self._explained():
            successor.unlink(missing_ok=True)  # of a process that was killed
            descriptor = os.open(successor, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

        def put(text: str) -> None:
            nonlocal descriptor
            _write(descriptor, text)
            os.replace(successor, self.path)
            # the file replaced is closed at the end of this block
            self._descriptor, descriptor = descriptor, self._descriptor

        try:
            with self._explained():
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write(descriptor, text)
            yield put
        finally:
            successor.unlink(missing_ok=True)
            os.close(descriptor)

    def _open(self) -> int:
        descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666
        )
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BookError(f"{self.path} is not a file")
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

        return descriptor

    def _lock(self, descriptor: int) -> None:
        begun = time.monotonic()
        has_said = False

        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not has_said and time.monotonic() > begun + _SAY_WAITING:
                    log.warning(
                        "waiting for another process that registers functions in %s", self.path
                    )
                    has_said = True
                time.sleep(_RETRY_INTERVAL)

    def _is_current(self) -> bool:
        """Return whether the open file is still the one at its place."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BookError(
                f"{self.path} cannot be written ({error.strerror}); nothing more has been sent"
            ) from error


def _write(descriptor: int, text: str) -> None:
    left = text.encode()
    os.lseek(descriptor, 0, os.SEEK_SET)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
