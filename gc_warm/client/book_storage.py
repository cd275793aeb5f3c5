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

from gc_warm.exceptions import BookError

log = logging.getLogger("gc_warm")

_HEADER = "# Written by gc-warm register; ids of functions registered with Globus Compute.\nversion: 1\nfunctions:\n"
_SAY_WAITING = 1.0  # seconds of waiting for another process, after which it is said


def canonical_uuid(text: str) -> str:
    """The usual spelling of an id.

    Raises:
        ValueError: It is none.
    """
    return str(uuid.UUID(text))


class Entry(BaseModel):
    """What a book knows of one function: one registration, as it was made."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    function_id: Annotated[str, AfterValidator(canonical_uuid)]
    module: str
    signature: str
    strategy: str
    fingerprint: str
    public: bool
    group: Annotated[str, AfterValidator(canonical_uuid)] | None
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
    """The entries of the book in a file; none if there is no file, or an empty one, which a killed process may have left.

    Raises:
        BookError: It is not a function book.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        contents = yaml.load(text, _Loader) if text else {"version": 1, "functions": {}}
        return _Contents.model_validate(contents).functions
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"
            for each in error.errors()[:3]
        ]
        raise BookError(
            f"{path} is not a function book that this version of gc_warm can read: {'; '.join(wrong)}"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BookError(f"{path}:{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # not UTF-8, a control character, a date that is none, too deep a nest
        raise BookError(f"{path} cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """Refuses what a careless merge leaves: the same name twice."""

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
    """Writes text of several lines as it stands, where YAML can."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML takes these for plain line ends
    plain = text == text.strip() and not re.search("[\x85\u2028\u2029]", text)
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, None if plain and "\n" not in text else "|" if plain else '"'
    )


_Dumper.add_representer(str, _represent)


def text_of(entries: Mapping[str, Entry]) -> str:
    """What the file of a book with these entries holds."""
    return "".join([_HEADER, *(_block(name, entry) for name, entry in entries.items())])


@functools.cache  # of a long book, one entry differs from the last time
def _block(name: str, entry: Entry) -> str:
    return textwrap.indent(
        yaml.dump(
            {name: entry.model_dump()},
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=10_000,
        ),
        "  ",
    )


class LockedFile:
    """The file of a book, made if it is missing, and locked for the length of a ``with`` block.

    The lock is an flock on the file itself, so that none lies beside it. Whoever replaces the file
    locks its successor first, and whoever gets a lock looks whether the file is still the one at
    that place. It is open for writing since over NFS, where flock is emulated, an exclusive lock
    needs that.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # of a symbolic link, the file is replaced and not the link
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
        """Take the room on disk; yields what puts a text of the same length in the book's place."""
        # its name is free: only who has the lock makes it
        successor = self.path.with_name(f".{self.path.name}.tmp")
        with self._explained():
            successor.unlink(missing_ok=True)  # of a process that was killed
            descriptor = os.open(successor, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

        def put(text: str) -> None:
            nonlocal descriptor
            _write(descriptor, text)
            os.replace(successor, self.path)
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
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BookError(f"{self.path} is not a file")
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self, descriptor: int) -> None:
        begun, said = time.monotonic(), False
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said and time.monotonic() > begun + _SAY_WAITING:
                    log.warning(
                        "waiting for another process that registers functions in %s", self.path
                    )
                    said = True
                time.sleep(0.02)

    def _is_current(self) -> bool:
        """Whether the open file is still the one at its place."""
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
