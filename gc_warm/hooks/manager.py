"""The way into a manager's own process, Parsl's ``process_worker_pool``.

``startup/sitecustomize.py`` calls `install` in it, before Parsl is imported. Parsl runs as
``__main__`` there, so its classes cannot be patched ahead; a hook replaces what Parsl takes from
the standard library or from its other modules.

A hook is a function without arguments, under the name by which `gc_warm.hooks.switch` turns it off.
It is called with tested versions of Parsl only, and returns at once where the config has not asked
for it. One that raises has changed nothing, and the manager goes on as it is without it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping

from gc_warm.hooks import forkserver, gate, helper_watch, removal, switch, versions

_HOOKS: Mapping[str, Callable[[], None]] = {
    "helper_watch": helper_watch.install,
    "gate": gate.install,
    "preload_node": forkserver.install,
}


def install() -> None:
    """Call the hooks of a manager that are not switched off, or say in a line why not."""
    _call_hooks()
    removal.watch(forkserver.stop)  # last: it looks for the files of all that is imported now


def _call_hooks() -> None:
    hooks = {name: hook for name, hook in _HOOKS.items() if name not in switch.disabled()}
    if not hooks:
        return

    if reason := versions.why_untested():
        complain(f"{', '.join(hooks)} not done: {reason}")
        return

    for name, hook in hooks.items():
        try:
            hook()
        except Exception as error:
            cause = "".join(traceback.format_exception_only(error)).strip()
            complain(f"{name} is not done in this manager, which is as it is without it: {cause}")


def complain(message: str) -> None:
    """Print a line to the output of the block."""
    print(f"gc_warm: {message}", file=sys.stderr, flush=True)
