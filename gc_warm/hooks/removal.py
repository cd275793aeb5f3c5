"""A manager's watch for the removal of gc_warm while its job runs.

A worker that dies is replaced by a new Python, which finds the hooks on the import path. Where they
have been removed meanwhile, or a new version has them elsewhere, it finds nothing, and nobody but
the manager is left to say so. So, before the manager starts a worker, it looks whether the files
are there. The first time that they are not, one line on stderr (in the output of the block) says
that workers are stock from then on.

Stock workers cannot share a task queue with those of `gc_warm.hooks.queues`, which lock it in
another way. Where a manager has such, they are ended, and the manager replaces them all.

All that this needs is imported when the manager starts, and so are the hooks: their files are those
that are looked for.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from multiprocessing.managers import DictProxy
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gc_warm.hooks import STARTUP, leave_path, routing, switch, workers

log = logging.getLogger("gc_warm")

OWN_QUEUES = "gc_warm queues"
"""The note with a manager that says whether its workers use `gc_warm.hooks.queues`."""

ROUTED = "gc_warm routing"
"""The note with a manager that says whether they use `gc_warm.hooks.routing`."""

_END_TIMEOUT = 15.0  # seconds; the hook ends a worker ten seconds after SIGTERM


def watch(stop: Callable[[], None]) -> None:
    """Have this process, a manager, look for the hooks before it starts a worker.

    `gc_warm.hooks.manager` calls this, once all that workers import is imported here.

    Args:
        stop: Called when they are gone: has workers started as Parsl does.
    """
    if switch.disabled().issuperset(switch.BLOCK_HOOKS):
        return

    stock = BaseProcess.start
    ours = [each for name, each in sys.modules.items() if name.partition(".")[0] == "gc_warm"]
    needed = [Path(STARTUP, "sitecustomize.py"), *(Path(str(each.__file__)) for each in ours)]

    def start(self: BaseProcess) -> None:
        missing = [path for path in needed if not path.exists()]
        if missing and workers.WORKER.fullmatch(self.name):
            BaseProcess.start = stock  # type: ignore[method-assign]
            try:
                stop()
                _go_on_without(missing[0], getattr(self, "_args", ()))
            except Exception:
                log.warning("workers that start from now on are stock", exc_info=True)
        stock(self)

    BaseProcess.start = start  # type: ignore[method-assign]


def _go_on_without(missing: Path, arguments: Iterable[Any]) -> None:
    print(
        f"gc_warm: {missing} is gone, so gc_warm was removed or replaced while this job runs: "
        "workers that start from now on are stock, without preload, and cold",
        file=sys.stderr,
        flush=True,
    )

    # what `gc_warm.hooks.boot` takes from a worker's environment
    for variable in os.environ.pop("GC_WARM_PREPARED", "").split()[1:]:
        os.environ.pop(variable, None)
    leave_path()

    known = list(arguments)
    for notes in (each for each in known if isinstance(each, DictProxy)):
        if notes.pop(OWN_QUEUES, False):
            workers.end(_END_TIMEOUT)
        if notes.pop(ROUTED, False):
            routing.give_back(known)
