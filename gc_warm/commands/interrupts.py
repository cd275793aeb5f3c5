"""Handling of Ctrl-C in a command, from its first line to its last.

While modules are imported, nothing has been started that would have to be ended: Ctrl-C ends the
process at once. An exception would be no way out there, since it can come in a callback that cannot
raise, or in a module that takes it for a failed import. While a command works, Ctrl-C is a
``KeyboardInterrupt``, so that all that was started is ended. Afterwards Ctrl-C does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STATUS = 128 + signal.SIGINT
"""Exit status of a command that was interrupted: that which a shell gives to a death by SIGINT."""

_RETRY_SECONDS = 0.01  # a callback that cannot raise is over by then


def end_at_once() -> None:
    """Let Ctrl-C end this process without further ado.

    Where it is ignored, as in a background job of a shell, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end_at_once)


def ignore() -> None:
    """Let Ctrl-C do nothing any more: all is done but for what the interpreter still clears up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise an exception in this block.

    So all that the block has started is ended, too. While the first of these signals is being dealt
    with, others do nothing: they would cut the clearing-up short.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook

    sys.unraisablehook = _raise_later
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit)
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)

    try:
        yield
    finally:
        if before[signal.SIGINT] is _end_at_once:
            before[signal.SIGINT] = signal.SIG_IGN
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def tell(message: str = "Interrupted") -> None:
    """Say on stderr that the command was interrupted.

    Args:
        message: The text, which may also say how far the command had come.
    """
    with contextlib.suppress(OSError):
        print(_new_line(sys.stderr.isatty()) + message, file=sys.stderr, flush=True)


def _new_line(is_terminal: bool) -> str:
    """Return the prefix that gets a message out of the line in which a terminal shows ``^C``."""
    return "\n" if is_terminal else ""


def _end_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    with contextlib.suppress(OSError):  # not by sys.stderr, which may be in the middle of something
        os.write(2, f"{_new_line(os.isatty(2))}Interrupted\n".encode())
    os._exit(STATUS)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    if not _is_ending():
        raise KeyboardInterrupt


def _exit(number: int, _frame: FrameType | None) -> None:
    if not _is_ending():
        sys.exit(128 + number)


def _is_ending() -> bool:
    """Return whether the interrupted code is already dealing with the end of the command."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        error = error.__context__
    return False


def _raise_later(unraisable: UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that has come in a callback which cannot raise.

    Such a callback is that of a weak reference.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(_RETRY_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
