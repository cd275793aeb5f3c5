"""Where a module's source is, and which version of it this process holds."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder

_BORN = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)  # of the machine
# each with the spec that its module had then: another import brings another
_noted: dict[str, tuple[str, object]] = {}


def spec_of(module: str) -> ModuleSpec | None:
    """What an import of a module would find, but for what a package does to its own path; nothing is imported. None if nothing."""
    spec, path = None, sys.path
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        spec = _found(".".join(parts[:number]), path) if all(parts) else None
        if spec is None:
            return None
        path = _folders(spec)
    return spec


def _found(name: str, path: list[str]) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, path)
    except (KeyError, AttributeError):
        # a namespace in a namespace wants that, and nothing else of its name, to have been imported
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [
            os.path.join(folder, name.rpartition(".")[2]) for folder in path
        ]
        return spec


def _folders(spec: ModuleSpec) -> list[str]:
    """Where the modules of a package are; a namespace that is asked itself wants its parent to have been imported."""
    locations = spec.submodule_search_locations or ()
    return list(getattr(locations, "_path", locations))


def version(path: str) -> str | None:
    """The version of a source file: the beginning of its SHA-256, in hexadecimal; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:16]
    except OSError:
        return None


def note(module: str) -> None:
    """Note the version of a module that is being imported: later, its file may be another than what this process holds."""
    path = _file_of(module)
    if path and (found := version(path)):
        _noted[module] = found, _spec(module)


def note_imported(module: str, *, now: bool) -> None:
    """Note the version of a module that has been imported, if that can still be told: *now*, or its file is older than this process."""
    path = _file_of(module)
    if noted(module) is None and path and (now or _older_than_this_process(path)):
        note(module)


def noted(module: str) -> str | None:
    """The version of a module that this process holds; None if it is not known."""
    found, spec = _noted.get(module, (None, None))
    return found if spec is _spec(module) else None


def has_changed(module: str) -> bool:
    """Whether the file of a module is there in another version than this process holds."""
    held, path = noted(module), _file_of(module)
    return held is not None and path is not None and version(path) not in (None, held)


def _spec(module: str) -> object:
    return getattr(sys.modules.get(module), "__spec__", None)


def _file_of(module: str) -> str | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    return path if path and path.endswith(".py") else None


def _older_than_this_process(path: str) -> bool:
    try:
        status = os.stat(path)
        # what is copied with its times kept has an old mtime
        changed = max(status.st_mtime, status.st_ctime)
        with open("/proc/self/stat") as file:
            # field 22, starttime, see proc(5)
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return False
    return changed < _BORN + ticks / os.sysconf("SC_CLK_TCK")
