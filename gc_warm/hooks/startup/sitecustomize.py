"""The ``sitecustomize`` of a block whose config switches `gc_warm.worker.boot` on.

Every Python that starts there imports it; it does something in workers only. Python imports the
first ``sitecustomize`` on its path and no other. So this one finds the site's own and runs it in
its place; in a process that is not multiprocessing's it ends there.
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
    try:
        from gc_warm.hooks import boot

        boot.install()
    except Exception:
        print("gc_warm: its start failed, and this process goes on without it:", file=sys.stderr)
        traceback.print_exc()


try:
    _run_that_of_the_site()
finally:
    # older Pythons, which may start here, too, are not workers
    if "--multiprocessing-fork" in getattr(sys, "orig_argv", ()):
        _boot()
