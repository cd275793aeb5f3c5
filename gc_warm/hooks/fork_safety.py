"""Evidence for and against forking a process that libraries have been at work in.

A fork has the memory of its parent and one of its threads. What else a library counts on, it may
not find: threads of a pool that a call waits for, a device that belongs to one process, the offset
of an open file, which all forks move together. None of that fails at once, or with a message. So a
template looks for it, and refuses where it finds something.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

# GPUs, and the adapters of networks that MPI drives from user space
_DEVICES = re.compile(r"/dev/(nvidia|kfd|dri/|accel|infiniband|hfi|cxi|knem|xpmem|davinci)")

# the generators of the standard library, numpy and torch that a worker seeds anew
_SEEDED_ANEW = (
    ("random", "_inst"),
    ("numpy.random.mtrand", "_rand"),
    ("torch", "default_generator"),
)

# makes itself another generator in each process
_FORK_AWARE: type = getattr(tempfile, "_RandomNameSequence", type)

# of OpenMP, of OpenBLAS as it is and as numpy and scipy bring it, and of MKL
_SETTERS = (
    "omp_set_num_threads",
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
    "MKL_Set_Num_Threads",
)


ADVICE = "leave what does that to preload, or to tasks"
"""The thing to do about an objection."""


class Before:
    """A look at this process before something is loaded, which tells later what that has left.

    Attributes:
        threads: The ids of its threads.
        descriptors: The numbers of its open files.
    """

    def __init__(self) -> None:
        self.threads = set(os.listdir("/proc/self/task"))
        self.descriptors = set(_open_descriptors())

    def objections(self) -> list[str]:
        """Return why this process must not be forked, in words; empty if nothing speaks against it.

        Makes a trial fork, which ends at once.
        """
        found = []
        if threads := self._threads_that_stay():
            found.append(f"threads live: {', '.join(sorted(set(threads)))}")
        if files := sorted(set(self._open_files())):
            found.append(f"it keeps open: {', '.join(files)}")
        if _mpi_is_initialised():
            found.append("MPI is initialised")

        own = [each for each in (signal.SIGINT, signal.SIGCHLD) if signal.getsignal(each) is None]
        return found + [f"a library in C handles {number.name}" for number in own]

    def _threads_that_stay(self) -> list[str]:
        """Return the names of threads that no library ends before a fork.

        OpenBLAS ends its own, as do the parts of gc_warm: the fork tells.
        """
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)

        of_python = {thread.native_id: thread.name for thread in threading.enumerate()}
        names = []
        for task in set(os.listdir("/proc/self/task")) - self.threads:
            name = of_python.get(int(task))
            try:
                with open(f"/proc/self/task/{task}/comm") as file:
                    names.append(name or f"{file.read().strip()} (of a library in C)")
            except OSError:  # it has just ended
                continue
        return names

    def _open_files(self) -> Iterator[str]:
        """Yield the files that were opened since, and that forks must not share."""
        mapped = _mapped()
        for number in set(_open_descriptors()) - self.descriptors:
            status = os.fstat(number)
            name = os.readlink(f"/proc/self/fd/{number}")
            flags = fcntl.fcntl(number, fcntl.F_GETFL)

            if stat.S_ISREG(status.st_mode):
                # what is only mapped, or only appended to, has no offset that matters
                if name not in mapped and not flags & os.O_APPEND:
                    yield name
            elif stat.S_ISCHR(status.st_mode):
                if _DEVICES.match(name):
                    yield name
            elif not stat.S_ISDIR(status.st_mode):
                yield name


def _open_descriptors() -> Iterator[int]:
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own, which is closed again
            os.fstat(int(number))
            yield int(number)


def generators(before: Mapping[str, ModuleType], states: Mapping[str, object]) -> list[str]:
    """Return the random generators that would give every fork the same numbers.

    Args:
        before: The modules that were there before something was loaded.
        states: What warm loaders have loaded, by their names.

    Returns:
        Where each is: a module and an attribute of it, or a loader.
    """
    kinds = _kinds_of_generators()
    known = {
        id(_attributes(sys.modules[name]).get(attribute))
        for name, attribute in _SEEDED_ANEW
        if name in sys.modules
    }

    found = []
    for name, module in list(sys.modules.items()):
        if name in before or not issubclass(type(module), ModuleType):
            continue
        found += [
            f"{name}.{attribute}"
            for attribute, value in list(_attributes(module).items())
            if _holds(kinds, known, value)
        ]
    return found + [name for name, state in states.items() if _holds(kinds, known, state)]


def _holds(kinds: set[type], known: set[int], value: object) -> bool:
    """Return whether an object is of one of these types, or refers to such a one directly."""
    return any(type(part) in kinds and id(part) not in known for part in [value, *_parts(value)])


def _kinds_of_generators() -> set[type]:
    import random

    kinds: set[type] = {random.Random}
    for module, names in (
        ("numpy.random", ("Generator", "RandomState")),
        ("torch", ("Generator",)),
    ):
        loaded = sys.modules.get(module)
        kinds.update(getattr(loaded, name) for name in names if hasattr(loaded, name))
    return kinds


def _parts(value: Any) -> list[object]:
    """Return what an object of a user's class, or a collection, refers to directly.

    Runs no code of that class: proxies import or warn, or raise errors, when they are looked at.
    """
    kind = type(value)
    if issubclass(kind, (ModuleType, type, _FORK_AWARE)) or callable(value):
        return []
    if issubclass(kind, dict):
        return list(dict.values(value))
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return list(base.__iter__(value))
    return list(_attributes(value).values())


def _attributes(value: object) -> dict[str, object]:
    """Return the attributes that an object itself has."""
    try:
        found: dict[str, object] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found


def reseed() -> None:
    """Seed the global generators of numpy and torch anew; `random` does it itself after a fork."""
    for name in ("numpy.random", "torch"):
        module: Any = sys.modules.get(name)
        if module is not None and hasattr(module, "seed"):
            module.seed()


def set_threads() -> None:
    """Have libraries use as many threads as if they were loaded now.

    They have read these numbers, which a template holds at one, when they were loaded.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    count = int(text) if text.isdecimal() and int(text) else len(os.sched_getaffinity(0))

    for library in _libraries(r".*(libgomp|libiomp|libomp|openblas|libmkl_rt)"):
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter(count)

    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(count)


def _mpi_is_initialised() -> bool:
    for library in _libraries("libmpi"):
        flag = ctypes.c_int()
        ask = getattr(library, "MPI_Initialized", None)
        if ask is not None and ask(ctypes.byref(flag)) == 0 and flag.value:
            return True
    return False


def _mapped() -> set[str]:
    """Return the names of the files that are mapped into this process, libraries among them."""
    with open("/proc/self/maps") as file:
        fields = [line.rstrip("\n").split(maxsplit=5) for line in file]
    return {line[5] for line in fields if len(line) == 6}


def _libraries(pattern: str) -> Iterator[ctypes.CDLL]:
    """Yield the libraries that are mapped and whose file names match."""
    for path in sorted(_mapped()):
        if re.match(pattern, os.path.basename(path)) and os.path.exists(path):
            yield ctypes.CDLL(path)
