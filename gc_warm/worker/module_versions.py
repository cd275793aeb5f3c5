"""The source of a module: its place, and the version of it that this process holds."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder

# when the machine started, in seconds since the epoch
_MACHINE_START = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_start() -> float | None:
    """Return when this process started, in seconds since the epoch; None if that is not known."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None

    ticks = int(fields[19])  # field 22, starttime, see proc(5)
    return _MACHINE_START + ticks / os.sysconf("SC_CLK_TCK")


# of the process that has imported this: a fork of it has the modules that were imported there
_PROCESS_START = _process_start()

# versions, each with the spec that its module had then: another import brings another spec
_noted: dict[str, tuple[str, object]] = {}

# versions of files, by path, each with what tells that the file is still the same
_read: dict[str, tuple[tuple[int, ...], str]] = {}
_SETTLED = 2.0  # seconds after a change, from which on the next one has another time for sure


def spec_of(module: str, path: list[str] | None = None) -> ModuleSpec | None:
    """Return the spec that an import of a module would find, while nothing is imported.

    Changes that a package makes to its own path are not seen.

    Args:
        module: The dotted name of a module.
        path: The folders to look into; those of this process if not given.

    Returns:
        The spec; None if there is no such module.
    """
    parts = module.split(".")
    if not all(parts):
        return None

    spec: ModuleSpec | None = None
    path = sys.path if path is None else path
    for number in range(1, len(parts) + 1):
        spec = _find(".".join(parts[:number]), path)
        if spec is None:
            return None
        path = _folders(spec)

    return spec


def _find(name: str, path: list[str]) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, path)
    except (KeyError, AttributeError):
        # for a namespace in a namespace, Python wants the outer one, and nothing else of its name,
        # to have been imported
        spec = ModuleSpec(name, None, is_package=True)

        last_name = name.rpartition(".")[2]
        spec.submodule_search_locations = [os.path.join(folder, last_name) for folder in path]
        return spec


def _folders(spec: ModuleSpec) -> list[str]:
    """Return the folders of a package's modules.

    The private attribute is read because the path of a namespace, when it is asked itself, wants
    its parent to have been imported.
    """
    locations = spec.submodule_search_locations or ()
    return list(getattr(locations, "_path", locations))


def version(path: str) -> str | None:
    """Return the version of a source file: the beginning of its SHA-256, in hexadecimal.

    Args:
        path: The file.

    Returns:
        Sixteen digits; None if the file cannot be read.
    """
    try:
        status = os.stat(path)
        mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = _read.get(path)
        if known is not None and known[0] == mark:
            return known[1]

        with open(path, "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()[:16]
    except OSError:
        return None

    # a file that is written twice within a tick of its clock has the same times
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
        _read[path] = (mark, found)
    return found


def note(module: str) -> None:
    """Note the version of a module that is being imported.

    Later, its file may have another version than this process holds.

    Args:
        module: The dotted name of a module that `sys.modules` has.
    """
    path = _file_of(module)
    imported = version(path) if path else None
    if imported:
        _noted[module] = (imported, _spec(module))


def note_imported(module: str, *, now: bool) -> None:
    """Note the version of a module that has been imported, if its file still tells it.

    The file does so if the module has been imported just now, or if it is older than this process.

    Args:
        module: The dotted name of a module that `sys.modules` has.
        now: Whether it has been imported just now.
    """
    path = _file_of(module)
    if noted(module) is None and path and (now or _older_than_this_process(path)):
        note(module)


def noted(module: str) -> str | None:
    """Return the version of a module that this process holds.

    Args:
        module: The dotted name of the module.

    Returns:
        The version; None if it is not known.
    """
    imported, spec = _noted.get(module, (None, None))
    return imported if spec is _spec(module) else None


def has_changed(module: str) -> bool:
    """Whether the file of a module is there in another version than this process holds.

    Args:
        module: The dotted name of the module.
    """
    held = noted(module)
    path = _file_of(module)
    if held is None or path is None:
        return False
    return version(path) not in (None, held)


def _spec(module: str) -> object:
    return getattr(sys.modules.get(module), "__spec__", None)


def _file_of(module: str) -> str | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    return path if path and path.endswith(".py") else None


def _older_than_this_process(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False

    # a file that was copied with its times kept has an old mtime
    return _PROCESS_START is not None and max(status.st_mtime, status.st_ctime) < _PROCESS_START
