"""The memory that is left on this node for this job."""

from __future__ import annotations

from pathlib import Path

import psutil


def available() -> int:
    """Return the bytes that can still be used here: what is free, and what cgroups allow.

    Of a cgroup that a batch system has made for the job, the kernel enforces the limits of all that
    are above it, too. Contents of files that the kernel would give up are not counted as used.

    Source: ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst`` of Linux.
    """
    limits = [psutil.virtual_memory().available]
    for folder, most, used, cached in groups():
        try:
            limit = int((folder / most).read_text())
            statistics = (folder / "memory.stat").read_text().split()
            kept = int((folder / used).read_text())
            kept -= int(statistics[statistics.index(cached) + 1])
        except (OSError, ValueError):  # no such group here, or "max"
            continue
        limits.append(max(0, limit - kept))
    return min(limits)


def groups() -> list[tuple[Path, str, str, str]]:
    """Return the folders of this process's cgroups and of those above them, with their files.

    The files have the limit, what is used, and, as a word in ``memory.stat``, what of that the
    kernel would give up.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []

    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        path = Path(name.lstrip("/"))
        if not controllers:
            root = Path("/sys/fs/cgroup")
            files = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        found += [(root / folder, *files) for folder in [path, *path.parents]]
    return found
