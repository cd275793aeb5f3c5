"""Quick tasks over several lives of a job: ``python tests/benchmarks/handover.py``.

Jobs on this machine that drain after so many seconds, one at a time, and one more while they hand
over; their workers preload for so many seconds of CPU time. Quick tasks are submitted one after the
other, all the time. First as it is in stock, then with handover. A job's node-hours are those from
the first line of its script to the last one; they are set beside those that `gc-warm check`
predicts, by what starts have taken.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import logging
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gc_warm import MockExecutor
from gc_warm.configs import loading, meaning
from gc_warm.hooks import handover, registry

LIMIT = 2.0  # seconds that a task may wait
RATE = 5  # tasks a second
LINE = "# gc_warm.hooks.handover overlap_jobs=1"

MODULE = """
import os
import time

STATE = []

def load():
    "Take so many seconds of CPU time."
    while time.process_time() < {seconds}:
        pass
    STATE.append(True)

def quick():
    "Return the block, and whether it was warm."
    import os
    import preload_for_long

    return os.environ["PARSL_WORKER_BLOCK_ID"], bool(preload_for_long.STATE)
"""

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: 2
  cores_per_worker: 0.01
  address: 127.0.0.1
  heartbeat_period: 1
  heartbeat_threshold: 30
  drain_period: {drain_period}
  block_error_handler: false
  job_status_kwargs: {{max_idletime: .inf, strategy_period: 1}}
  provider:
    type: LocalProvider
    init_blocks: 0
    min_blocks: 0
    max_blocks: 1
    worker_init: |
      {line}
      date +%s.%N >{folder}/$$.begun
      trap 'date +%s.%N >{folder}/$$.ended' EXIT
      export PYTHONPATH={folder}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot preload_for_long:load)"
"""


@dataclass
class Run:
    """What became of the tasks of a run, and of its jobs.

    Attributes:
        waits: Seconds of each task.
        cold: Tasks after those of the first job that found no state.
        lost: Tasks that failed.
        starts: Seconds from the request of each job until it was ready, as the hook has them.
        hours: Node-hours of an hour.
        config: The YAML that it ran with.
    """

    waits: list[float]
    cold: int
    lost: int
    starts: list[float]
    hours: float
    config: str

    def predicted(self, start: float, hands_over: bool) -> float:
        """Return the node-hours of an hour that `gc-warm check` predicts, by what starts take."""
        profile = meaning.warmth_profile(loading.load(self.config, "handover.yaml"))
        found = meaning.succession(profile, 0, start, hands_over)
        assert found is not None
        return found.hours


def run(drain_period: int, seconds: float, jobs: int, line: str) -> Run:
    """Submit quick tasks until so many jobs have ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "preload_for_long.py").write_text(MODULE.format(seconds=seconds))
        sys.path.insert(0, name)
        sys.modules.pop("preload_for_long", None)
        quick = importlib.import_module("preload_for_long").quick
        config = CONFIG.format(
            folder=shlex.quote(name), drain_period=drain_period, line=line, jobs=1 if line else 2
        )

        with MockExecutor(config=config) as executor, starts_noted() as starts:
            executor.submit(quick).result()
            tasks = submit_until(executor, quick, lambda: len(list(folder.glob("*.ended"))) >= jobs)
            hours = node_hours(folder)
        sys.path.remove(name)

    results = [future.result() for _, future in tasks if not future.exception()]
    return Run(
        waits=[wait for wait, _ in tasks],
        cold=sum(not is_warm for _, is_warm in results),
        lost=len(tasks) - len(results),
        starts=starts,
        hours=hours,
        config=config,
    )


@contextlib.contextmanager
def starts_noted() -> Iterator[list[float]]:
    """Take from the hook's log what starts have taken."""
    starts: list[float] = []

    def note_start(record: logging.LogRecord) -> bool:
        if record.msg.startswith("%s was ready") and isinstance(record.args, tuple):
            starts.append(float(str(record.args[1])))
        return True

    level = handover.log.level
    handover.log.setLevel(logging.INFO)
    handover.log.addFilter(note_start)
    try:
        yield starts
    finally:
        handover.log.removeFilter(note_start)
        handover.log.setLevel(level)


def submit_until(
    executor: MockExecutor, quick: Callable[[], Any], is_over: Callable[[], bool]
) -> list[tuple[float, Future[Any]]]:
    """Return each task that was submitted meanwhile, and the seconds that it took."""
    tasks: list[Future[Any]] = []
    task: Future[Any]
    waits: dict[Future[Any], float] = {}
    while not is_over():
        begun = time.monotonic()
        task = executor.submit(quick)
        task.add_done_callback(functools.partial(note, waits, begun))
        tasks.append(task)
        time.sleep(max(0.0, begun + 1 / RATE - time.monotonic()))

    for task in tasks:
        task.exception(300)
    while len(waits) < len(tasks):  # callbacks come after results
        time.sleep(0.01)
    return [(waits[task], task) for task in tasks]


def note(waits: dict[Future[Any], float], begun: float, task: Future[Any]) -> None:
    """Note how long a task has taken."""
    waits[task] = time.monotonic() - begun


def node_hours(folder: Path) -> float:
    """Return the lives of jobs over the time between their beginnings, without the first.

    What its start takes is not known beforehand, and so it is followed earlier than others.
    """
    begun = sorted((float(path.read_text()), path) for path in folder.glob("*.begun"))[1:]
    ended = [path.with_suffix(".ended") for _, path in begun]
    count = sum(path.exists() for path in ended[:-1])
    lives = [float(ended[number].read_text()) - begun[number][0] for number in range(count)]
    return sum(lives) / (begun[count][0] - begun[0][0]) if count else float("nan")


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--drain",
        type=int,
        default=90,
        help="seconds after which jobs drain (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=6, help="CPU time of the preload (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=4, help="jobs that have to end (default: %(default)s)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail if a task is lost, cold or waits for more than {LIMIT} s with handover, or if "
        "its node-hours are off by a tenth",
    )
    options = parser.parse_args()

    runs = {"stock": run(options.drain, options.seconds, options.jobs, "")}
    if reason := registry.hook("handover").why_not():
        return reason
    handover.install()
    runs["handover"] = run(options.drain, options.seconds, options.jobs, LINE)

    ours = runs["handover"]
    start = statistics.mean(ours.starts)
    print(f"starts took {min(ours.starts):.1f} to {max(ours.starts):.1f} s\n")
    print("| | tasks | worst wait | over 1 s | cold | lost | node-hours an hour, predicted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for way, found in runs.items():
        late = sum(wait > 1 for wait in found.waits)
        hours = f"{found.hours:.2f}, {found.predicted(start, way == 'handover'):.2f}"
        print(
            f"| {way} | {len(found.waits)} | {max(found.waits):.2f} s | {late} | {found.cold} "
            f"| {found.lost} | {hours} |"
        )

    is_good = not ours.lost and not ours.cold and max(ours.waits) <= LIMIT
    is_foreseen = abs(ours.hours / ours.predicted(start, True) - 1) <= 0.1
    return "not as promised" if options.check and not (is_good and is_foreseen) else 0


if __name__ == "__main__":
    sys.exit(main())
