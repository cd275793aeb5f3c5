"""The ``sitecustomize`` of a block whose config switches `gc_warm.worker.boot` on.

It is that of user endpoints, too, whose ``user_environment.yaml`` `gc-warm configure` has written.

Every Python that starts there imports it; it does something in workers and in user endpoints only.
Python imports the first ``sitecustomize`` on its path and no other. So this one finds the site's
own and runs it in its place; in any other process it ends there.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback

_HERE = os.path.dirname(os.path.abspath(__file__))


def _others(folders: "list[str]") -> "list[str]":
    return [folder for folder in folders if os.path.abspath(folder) != _HERE]


def _run_that_of_the_site() -> None:
    sys.path[:] = _others(sys.path)

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _leave_environment() -> None:
    """Have what this process starts find the PYTHONPATH that is there without hooks."""
    left = os.pathsep.join(_others(os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if left:
        os.environ["PYTHONPATH"] = left
    else:
        os.environ.pop("PYTHONPATH", None)


def _install(hooks: str) -> None:
    try:
        importlib.import_module(f"gc_warm.hooks.{hooks}").install()
    except Exception:
        print("gc_warm: its start failed, and this process goes on without it:", file=sys.stderr)
        traceback.print_exc()


try:
    _run_that_of_the_site()
finally:
    # older Pythons, which may start here, too, are neither workers nor user endpoints
    words = getattr(sys, "orig_argv", ())
    if "--multiprocessing-fork" in words:
        _leave_environment()
        _install("boot")
    elif "_start-user-endpoint" in words or "--die-with-parent" in words:
        # the latter is how clients older than 4.10 have theirs started
        _leave_environment()
        _install("endpoint")
