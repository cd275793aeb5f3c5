"""The ``sitecustomize`` of a block whose config switches `gc_warm.worker.boot` on.

Every Python that starts there imports it; it does something in workers and managers only. Python
imports the first ``sitecustomize`` on its path and no other. So this one finds the site's own and
runs it in its place; in a process that is neither Parsl's manager nor multiprocessing's it ends
there.
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


def _is_manager(words: "list[str]") -> bool:
    """Tell whether a command line runs Parsl's ``process_worker_pool``, as module or as script."""
    module = ["-m", "parsl.executors.high_throughput.process_worker_pool"]
    return any(
        words[place : place + 2] == module or os.path.basename(word) == "process_worker_pool.py"
        for place, word in enumerate(words)
    )


def _boot() -> None:
    words = getattr(sys, "orig_argv", [])  # older Pythons, which may start here, too, have none
    try:
        if "--multiprocessing-fork" in words:
            from gc_warm.hooks import boot

            boot.install()
        elif _is_manager(words):
            from gc_warm.hooks import manager

            manager.install()
    except Exception:
        print("gc_warm: its start failed, and this process goes on without it:", file=sys.stderr)
        traceback.print_exc()


try:
    _run_that_of_the_site()
finally:
    _boot()
