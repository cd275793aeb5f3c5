"""Memory of this process: how much it has, and giving back what was evicted."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import traceback
import weakref
from collections.abc import Callable
from types import FrameType


def resident() -> int:
    """Return the memory that this process has in use, in bytes; 0 where the kernel does not say.

    Source: ``/proc/self/statm``, second field, see proc(5).
    """
    try:
        # as bytes: to decode text, Python may have to import a codec, which a forked child must not
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back() -> None:
    """Free what only reference cycles keep, and return free memory to the system.

    The C library keeps memory that was freed, for later use; glibc returns it on request, see
    malloc_trim(3).
    """
    gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def clear_frames(error: BaseException) -> None:
    """Clear the variables of the calls that have failed, those of the error's causes included.

    Args:
        error: What they raised. Of its causes and contexts, only those that were handled in one of
            these calls are meant: others belong to somebody who goes on.
    """
    failed: set[FrameType] = set()
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()

    while pending:
        cause = pending.pop()
        if cause is None or id(cause) in seen:
            continue

        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        if cause is error or (frames and frames[0] in failed):
            seen.add(id(cause))
            failed.update(frames)
            traceback.clear_frames(cause.__traceback__)
            pending += [cause.__cause__, cause.__context__]


def watch(state: object) -> Callable[[], object]:
    """Return a function that tells whether an object is still alive.

    Args:
        state: Any object; of one that takes no weak reference, nothing can be told.

    Returns:
        A function that returns the object while it is alive, and None after that.
    """
    try:
        return weakref.ref(state)
    except TypeError:
        return lambda: None
