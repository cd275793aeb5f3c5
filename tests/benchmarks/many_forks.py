"""Thousands of forks of templates that libraries have worked in: ``.../many_forks.py``.

numpy, scikit-learn, LightGBM and torch, those that are installed, compute in a template, and again
in each worker that is forked from it, two workers at a time, with as many threads as there are
cores. A worker has to find the template's results again. Then each library is used in a template
with a pool of threads, which is what a template's own settings avoid: it is to be refused, unless
the library ends its pool before a fork, and its workers are started, and work.

Fails if a worker hangs, dies, or finds something else.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from gc_warm.hooks import STARTUP, boot, forkserver
from gc_warm.worker import lifecycle

MODULES = Path(__file__).parents[1] / "modules"
sys.path.insert(0, str(MODULES))

import library_states  # noqa: E402

FORKS = 5000
STARTED = 4  # workers, where a template was refused: each loads for itself
TOGETHER = 2
HANGS = 300  # seconds without the end of a worker


def worker(
    worker_id: int,
    pool_id: str,
    pool_size: int,
    task_queue: Any,
    result_queue: Any,
    tasks_in_progress: Any,
) -> None:
    """Use a library once; the arguments are those of Parsl's worker that gc_warm knows."""
    faulthandler.dump_traceback_later(HANGS / 2)
    threads = library_states.use(task_queue.get())
    faulthandler.cancel_dump_traceback_later()
    found = lifecycle.worker()
    result_queue.put((threads, found.template, found.not_forked))


def manage(library: str, forks: int) -> dict[str, Any]:
    """Be a manager without Parsl whose workers use a library, one after the other, in two ranks.

    Args:
        library: A name in `library_states`.
        forks: How many workers are forked; fewer are started if the template is refused.
    """
    context = multiprocessing.get_context("spawn")
    tasks = context.Queue()
    results = context.Queue()
    notes = context.Manager().dict()

    worker_class: Any = SpawnProcess
    specs = os.environ[boot.PRELOAD_NODE].split()
    nursery = forkserver.Nursery(specs, worker_class._Popen, forkserver.own_preparation())
    worker_class._Popen = staticmethod(nursery.start_at_once)

    alive: dict[int, Any] = {}  # by rank
    answers: list[Any] = []
    failed: list[str] = []
    begun = 0
    start = time.monotonic()
    while not failed and (begun < forks or alive):
        for rank in set(range(min(TOGETHER, forks - begun))) - set(alive):
            tasks.put(library)
            arguments = (rank, "pool", TOGETHER, tasks, results, notes)
            alive[rank] = context.Process(target=worker, args=arguments, name=f"HTEX-Worker-{rank}")
            alive[rank].start()
            begun += 1

        failed += wait_for_one(alive)
        if not failed:
            answers.append(results.get(timeout=HANGS))
            forks = forks if answers[0][1] else min(forks, STARTED)

    for each in alive.values():
        each.kill()
    return {
        "forked": sum(template is not None for _, template, _ in answers),
        "started": sum(template is None for _, template, _ in answers),
        "why": sorted({why for _, _, why in answers if why}),
        "threads": max((threads for threads, _, _ in answers), default=0),
        "failed": failed,
        "seconds": time.monotonic() - start,
    }


def wait_for_one(alive: dict[int, Any]) -> list[str]:
    """Wait for a worker's end, and forget it; return what is wrong with that."""
    ended = connection.wait([each.sentinel for each in alive.values()], HANGS)
    if not ended:
        return [f"no worker has ended after {HANGS} s"]

    rank = next(rank for rank, each in alive.items() if each.sentinel in ended)
    worker = alive.pop(rank)
    worker.join()
    return [] if worker.exitcode == 0 else [f"a worker has ended with {worker.exitcode}"]


def run(library: str, verb: str, forks: int) -> dict[str, Any]:
    """Run `manage` in a process of its own."""
    environment = {
        **os.environ,
        boot.PRELOAD_NODE: f"library_states:{verb}_{library}",
        "PYTHONPATH": f"{STARTUP}{os.pathsep}{MODULES}",
        "OMP_WAIT_POLICY": "passive",  # else pools on a busy machine take seconds to wait
    }
    words = [sys.executable, __file__, "--library", library, "--forks", str(forks)]
    process = subprocess.run(words, env=environment, capture_output=True, text=True)
    try:
        found: dict[str, Any] = json.loads(process.stdout)
    except ValueError:
        found = {"failed": [f"the manager ended with {process.returncode}"]}
    if found["failed"]:
        print(process.stderr[-20_000:], file=sys.stderr)
    return found


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--forks", type=int, default=FORKS, help="of all libraries together (default: %(default)s)"
    )
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(json.dumps(manage(options.library, options.forks)))
        return 0

    there = [name for name in library_states.LIBRARIES if importlib.util.find_spec(name)]
    missing = set(library_states.LIBRARIES) - set(there)
    print(
        "| library | threads in the template | forked | started | threads of a worker | seconds |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    forked = 0
    failed = []
    reasons = []
    for verb, threads in (("load", "1"), ("pool", "2")):
        for library in there:
            found = run(library, verb, options.forks // len(there) if verb == "load" else 20)
            failed += [f"{library}, {threads} in the template: {why}" for why in found["failed"]]
            reasons += [f"{library}: {why}" for why in found.get("why", [])]
            forked += found.get("forked", 0)
            print(
                f"| {library} | {threads} | {found.get('forked')} | {found.get('started')} "
                f"| {found.get('threads')} | {found.get('seconds', 0):.0f} |",
                flush=True,
            )

    print(f"\n{forked} forks; not installed: {', '.join(sorted(missing)) or 'none'}")
    print(*reasons, sep="\n")
    return "\n".join(failed) or 0


if __name__ == "__main__":
    sys.exit(main())
