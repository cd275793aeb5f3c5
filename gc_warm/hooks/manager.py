"""The hooks of a manager, in its own process, Parsl's ``process_worker_pool``."""

from __future__ import annotations

from gc_warm.hooks import forkserver, installing, removal


def install() -> None:
    """Call the hooks of a manager.

    ``startup/sitecustomize.py`` calls this in it, before Parsl is imported.
    """
    installing.install("manager")
    removal.watch(forkserver.stop)  # last: it looks for the files of all that is imported now
