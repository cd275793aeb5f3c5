"""The ``sitecustomize`` of a block whose config switches `gc_warm.worker.boot` on.

It is that of user endpoints, too, whose ``user_environment.yaml`` `gc-warm configure` has written.

Every Python that starts there imports it; it does something in workers, in managers and in user
endpoints only. Python imports the first ``sitecustomize`` on its path and no other. So this one
finds the site's own and runs it in its place; in any other process it ends there.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback

_HERE = os.path.dirname(os.path.abspath(__file__))
_POOL = "parsl.executors.high_throughput.process_worker_pool"
_MANAGER = ["-m", _POOL]
_COMMAND = ["python-exec", _POOL]


def _others(folders: "list[str]") -> "list[str]":
    return [folder for folder in folders if os.path.abspath(folder) != _HERE]


def _run_that_of_the_site() -> None:
    sys.path[:] = _others(sys.path)

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _is_manager(words: "list[str]") -> bool:
    """Tell whether a command line runs Parsl's ``process_worker_pool``, as module or as script."""
    return any(
        words[place : place + 2] == _MANAGER or os.path.basename(word) == "process_worker_pool.py"
        for place, word in enumerate(words)
    )


def _become_manager(words: "list[str]") -> None:
    """Be the manager at once that the endpoint's command ``python-exec`` is about to become.

    The command does the same, after half a second of importing all that an endpoint consists of.
    """
    arguments = words[words.index(_POOL) + 1 :]
    try:
        os.execv(sys.executable, [sys.executable, *_MANAGER, *arguments])
    except OSError:
        traceback.print_exc()


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
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(
            "gc_warm: its start failed, and this process goes on without it, cold: "
            f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})",
            file=sys.stderr,
        )


try:
    _run_that_of_the_site()
finally:
    # older Pythons, which may start here, too, have none, and are none of these
    words = getattr(sys, "orig_argv", [])
    if "--multiprocessing-fork" in words:
        _leave_environment()
        _install("boot")
    elif words[2:4] == _COMMAND:
        _become_manager(words)
    elif _is_manager(words):
        _install("manager")
    elif "_start-user-endpoint" in words or "--die-with-parent" in words:
        # the latter is how clients older than 4.10 have theirs started
        _leave_environment()
        _install("endpoint")
