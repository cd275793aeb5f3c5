"""The ``sitecustomize`` of a block whose config switches `gc_warm.worker.boot` on.

Every Python that starts there imports it; it does something in workers and their managers only.
Python imports the first ``sitecustomize`` on its path and no other. So this one finds the site's
own and runs it in its place; in a process that is neither it ends there.
"""

import importlib.machinery
import importlib.util
import os
import sys
import traceback


def _run_that_of_the_site() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _boot() -> None:
    words = getattr(sys, "orig_argv", ())  # older Pythons, which may start here, are no workers

    try:
        is_worker = "--multiprocessing-fork" in words
        is_manager = any(word.endswith(_MANAGERS) for word in words[1:4])
        if not is_worker and not is_manager:
            return

        from gc_warm.hooks import boot, removal

        if is_worker:
            boot.install()
        else:
            removal.watch()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(
            "gc_warm: its start failed, and this process goes on without it, cold: "
            f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})",
            file=sys.stderr,
        )


_MANAGERS = ("process_worker_pool", "process_worker_pool.py")

try:
    _run_that_of_the_site()
finally:
    _boot()
