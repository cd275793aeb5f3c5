"""The life of a command's process around click, from the first import to the last flush.

Standard library only, and little of it: what is imported here delays every command.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from gc_warm.commands import interrupts

if TYPE_CHECKING:
    import click

_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def run(load: Callable[[], click.Command], name: str) -> int:
    """Run a command, and return its exit status or raise `SystemExit`.

    Args:
        load: Imports and returns the command.
        name: The name of the command in its messages.
    """
    interrupts.end_at_once()
    try:
        load()(prog_name=name)
        return 0
    except ImportError as error:  # not even the declarations of the commands could be imported
        from gc_warm.commands import missing

        explanation = missing.explain(error, name)
        if explanation is None:
            raise
        return _fail(explanation)
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        return _fail(f"the output cannot be written: {error.strerror}")
    finally:
        interrupts.ignore()
        _flush()


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1


def _flush() -> None:
    """Write the output that is still buffered.

    Where that fails, the interpreter is kept from trying again and complaining.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
