"""Imported by every Python that starts in a block whose config switches `gc_warm.worker.boot` on; does something in workers only.

Python imports the first ``sitecustomize`` on its path and no other. So this one finds the site's
own and runs it in its place, and what is not a process of multiprocessing ends here.
"""

import importlib.machinery
import importlib.util
import os
import sys
import traceback


def _run_that_of_the_site() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if found is not None and found.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)


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
