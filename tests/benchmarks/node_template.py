"""One copy on each node, beside one in each worker: ``python tests/benchmarks/node_template.py``.

A table of 200 MB that takes a second or two to make, for several workers on this machine: as
`preload` loads it in each, mapped from a file by each, and loaded once by `preload_node`; and small
objects of Python's, by `preload` and `preload_node`. Seconds are from the start of the executor
until all workers have answered, warm; memory is the proportional set size of workers and template
(which divides what is shared among those who share it), when all are warm and after 1,000 tasks of
100 random reads. With strace installed, the system calls that name a file are counted that a
worker makes which replaces a dead one.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from gc_warm import MockExecutor

MODULES = Path(__file__).parents[1] / "modules"
sys.path.insert(0, str(MODULES))

import node_states  # noqa: E402

TASKS = 1000
FASTER = 2.5  # times, that all workers are warm sooner than stock
COPIES = 1.3  # of an array, at most
LATER = 1.1  # times, that the first result of one worker may take longer

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {workers}
  cores_per_worker: 0.01
  address: 127.0.0.1
  heartbeat_period: 1
  job_status_kwargs: {{max_idletime: .inf, strategy_period: 0.2}}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
    worker_init: |
      export PYTHONPATH={modules} NODE_STATES_FILE={file}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --survive-idle-kill {words})"
"""


@dataclass(frozen=True)
class Found:
    """The figures of one way.

    Attributes:
        seconds: Until all workers were warm.
        memory: Bytes of workers and template, then.
        later: The same after the tasks.
        calls: System calls that name a file, of one more worker; None where that is not known.
    """

    seconds: float
    memory: int
    later: int
    calls: int | None


def measure(state: str, words: str, workers: int, folder: Path, trace: bool) -> Found:
    config = CONFIG.format(
        workers=workers,
        modules=shlex.quote(str(MODULES)),
        file=shlex.quote(str(folder / "table")),
        words=words,
    )
    begun = time.perf_counter()
    with MockExecutor(config=config) as executor:
        pids, template = meet(executor, state, workers, folder)
        seconds = time.perf_counter() - begun
        watched = [*pids, template] if template else pids
        memory = sum(map(proportional, watched))

        for future in [executor.submit(node_states.read, state, 100) for _ in range(TASKS)]:
            future.result()
        later = sum(map(proportional, watched))
        calls = count_calls(executor, state, workers, folder, pids[0]) if trace else None
    return Found(seconds, memory, later, calls)


def meet(
    executor: MockExecutor, state: str, workers: int, folder: Path
) -> tuple[list[int], int | None]:
    """Wait until all workers are warm; return their process ids, and the template's."""
    meeting = Path(tempfile.mkdtemp(dir=folder))
    tasks = [
        executor.submit(node_states.meet, state, str(meeting), workers) for _ in range(workers)
    ]
    answers = [task.result() for task in tasks]
    assert all(warm for _, _, warm in answers), "each worker was warm before its first task"

    parents = {parent for _, parent, _ in answers}
    [parent] = parents
    is_template = "multiprocessing.forkserver" in " ".join(psutil.Process(parent).cmdline())
    return [pid for pid, _, _ in answers], parent if is_template else None


def proportional(pid: int) -> int:
    """Return the proportional set size of a process, in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0])


def count_calls(
    executor: MockExecutor, state: str, workers: int, folder: Path, victim: int
) -> int | None:
    """Count what the worker that replaces a dead one, and who starts it, ask the file system."""
    if shutil.which("strace") is None:
        return None

    parent = psutil.Process(victim).parent()
    assert parent is not None
    counted = folder / "strace"
    tracer = subprocess.Popen(
        ["strace", "-f", "-e", "trace=%file", "-o", str(counted), "-p", str(parent.pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    while "attached" not in tracer.stderr.readline():
        pass

    os.kill(victim, signal.SIGKILL)
    meet(executor, state, workers, folder)
    tracer.send_signal(signal.SIGINT)
    tracer.communicate()

    callers = [line.split()[0] for line in counted.read_text().splitlines()]
    return sum(caller != str(parent.pid) for caller in callers)


def in_rows(found: Mapping[str, Found]) -> None:
    print("| way | all are warm | memory | after 1,000 tasks | file calls of a new worker |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way, each in found.items():
        calls = "not counted" if each.calls is None else f"{each.calls:,}"
        print(
            f"| {way} | {each.seconds:.1f} s | {each.memory / 1e6:,.0f} MB "
            f"| {each.later / 1e6:,.0f} MB | {calls} |"
        )


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8, help="workers (default: %(default)s)")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail if workers are not warm {FASTER} times sooner than stock's, if an array takes "
        f"more than {COPIES} copies, or a first result {LATER} times as long as stock's",
    )
    options = parser.parse_args()

    alone = 8 * node_states.NUMBERS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "table").write_bytes(node_states.make().tobytes())

        many = {
            "nothing, each worker": ("nothing", "node_states"),
            "nothing, once": ("nothing", "--preload-node=node_states"),
            "table, each worker": ("table", "node_states:table"),
            "table, mapped by each": ("mapped", "node_states:mapped"),
            "table, once": ("table", "--preload-node=node_states:table"),
            "objects, each worker": ("records", "node_states:records"),
            "objects, once": ("records", "--preload-node=node_states:records"),
        }
        found = {
            way: measure(state, words, options.workers, folder, trace=True)
            for way, (state, words) in many.items()
        }
        one = {
            way: measure(state, words, 1, folder, trace=False)
            for way, (state, words) in many.items()
            if state == "table"
        }

    print(f"{options.workers} workers:\n")
    in_rows(found)
    stock, ours = found["table, each worker"], found["table, once"]
    sooner = stock.seconds / ours.seconds
    later = one["table, once"].seconds / one["table, each worker"].seconds
    bare = found["nothing, once"]
    copies = max(ours.memory - bare.memory, ours.later - bare.later) / alone
    print(f"\nall are warm {sooner:.2f} times sooner, with {copies:.2f} copies of the table")
    print(f"the first result of one worker: {later:.2f} times as late")

    if options.check and (sooner < FASTER or later > LATER or copies > COPIES):
        return "beyond the limits"
    return 0


if __name__ == "__main__":
    sys.exit(main())
