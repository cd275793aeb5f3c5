"""One copy on each node, beside one in each worker: ``python tests/benchmarks/node_template.py``.

A table of 200 MB that takes a second or two to make, for several workers on this machine: as
`preload` loads it in each, mapped from a file by each, and loaded once by `preload_node`; and small
objects of Python's, by `preload` and `preload_node`.

Seconds are until all workers have answered, warm: from the start of the executor, which includes
that of its client and its interchange, the same for all ways, and from the start of the manager.
Memory is the proportional set size of workers and template (which divides what is shared among
those who share it), and all that a cgroup counts of the job, contents of files included: when all
are warm, and after 1,000 tasks of 100 random reads. With strace installed, the system calls that
name a file are counted that a worker makes which replaces a dead one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from gc_warm import MockExecutor
from gc_warm.hooks import node_memory

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
      {enter}
      export PYTHONPATH={modules} NODE_STATES_FILE={file}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --survive-idle-kill {words})"
"""


WAYS = {
    "nothing, each worker": ("nothing", "node_states"),
    "nothing, once": ("nothing", "--preload-node=node_states"),
    "table, each worker": ("table", "node_states:table"),
    "table, mapped by each": ("mapped", "node_states:mapped"),
    "table, once": ("table", "--preload-node=node_states:table"),
    "objects, each worker": ("records", "node_states:records"),
    "objects, once": ("records", "--preload-node=node_states:records"),
}


@dataclass(frozen=True)
class Memory:
    """The memory of a job, in bytes.

    Attributes:
        processes: The proportional set size of workers and template.
        group: What the job's cgroup counts; None without one.
    """

    processes: int
    group: int | None


@dataclass(frozen=True)
class Found:
    """The figures of one way.

    Attributes:
        seconds: Until all workers were warm.
        of_manager: The same since the manager's process was started.
        memory: When they were.
        later: After the tasks.
        calls: System calls that name a file, of one more worker; None where that is not known.
    """

    seconds: float
    of_manager: float
    memory: Memory
    later: Memory
    calls: int | None


def measure(way: str, workers: int, folder: Path, trace: bool) -> Found:
    state, words = WAYS[way]
    forget(folder / "table")
    with job_group() as group:
        config = CONFIG.format(
            enter=f"echo $$ >{shlex.quote(str(group.parent / 'cgroup.procs'))}" if group else ":",
            workers=workers,
            modules=shlex.quote(str(MODULES)),
            file=shlex.quote(str(folder / "table")),
            words=words,
        )
        begun = time.perf_counter()
        with MockExecutor(config=config) as executor:
            pids, template = meet(executor, state, workers, folder)
            seconds = time.perf_counter() - begun
            of_manager = age(psutil.Process(template or pids[0]).ppid())
            watched = [*pids, template] if template else pids
            memory = weigh(watched, group)

            for future in [executor.submit(node_states.read, state, 100) for _ in range(TASKS)]:
                future.result()
            later = weigh(watched, group)
            calls = count_calls(executor, state, workers, folder, pids[0]) if trace else None
    return Found(seconds, of_manager, memory, later, calls)


def forget(file: Path) -> None:
    """Have the kernel hold nothing of a file, so that whoever reads it next is charged for it."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def job_group() -> Iterator[Path | None]:
    """Make a cgroup below this process's; yield the file that has its memory, None without one."""
    made = _make_group()
    try:
        yield made
    finally:
        if made is not None:
            _remove_group(made.parent)


def _make_group() -> Path | None:
    own = [group for group in node_memory.groups() if group[0].is_dir()]
    for folder, _, used, _ in own[:1]:
        group = folder / f"gc_warm-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:  # no right to
            return None
        if (group / used).exists():
            return group / used
        group.rmdir()  # of a version 2 that does not count memory below this process's
    return None


def _remove_group(folder: Path) -> None:
    """Remove a cgroup whose last processes may just be ending."""
    for _ in range(1000):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"{folder} has processes still: {(folder / 'cgroup.procs').read_text()}")


def age(pid: int) -> float:
    """Return for how many seconds a process has lived."""
    begun = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")


def weigh(pids: list[int], group: Path | None) -> Memory:
    return Memory(sum(map(proportional, pids)), int(group.read_text()) if group else None)


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
    print(
        "| way | all are warm | since the manager's start | memory: processes, cgroup "
        "| after 1,000 tasks | file calls of a new worker |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way, each in found.items():
        calls = "not counted" if each.calls is None else f"{each.calls:,}"
        print(
            f"| {way} | {each.seconds:.1f} s | {each.of_manager:.1f} s "
            f"| {in_mb(each.memory)} | {in_mb(each.later)} | {calls} |"
        )


def in_mb(memory: Memory) -> str:
    group = "none" if memory.group is None else f"{memory.group / 1e6:,.0f}"
    return f"{memory.processes / 1e6:,.0f}, {group} MB"


def best(way: str, workers: int, folder: Path, turns: int) -> Found:
    """Measure several times, and return the turn that others on this machine have slowed least."""
    trace = workers > 1
    found = [measure(way, workers, folder, trace and turn == 0) for turn in range(turns)]
    fastest = min(found, key=lambda each: each.seconds)
    return dataclasses.replace(fastest, calls=found[0].calls)


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8, help="workers (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--no-objects", action="store_true", help="measure the table only")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail if workers are not warm {FASTER} times sooner than stock's, if an array takes "
        f"more than {COPIES} copies, or a first result {LATER} times as long as stock's",
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "table").write_bytes(node_states.make().tobytes())
        with job_group() as group:
            if group is None:
                print("no cgroup can be made here that counts memory, so that none is reported")

        ways = [way for way in WAYS if not (options.no_objects and way.startswith("objects"))]
        found = {way: best(way, options.workers, folder, options.turns) for way in ways}
        print(f"{options.workers} workers:\n")
        in_rows(found)
        one = {
            way: best(way, 1, folder, options.turns)
            for way in ("table, each worker", "table, once")
        }

    stock, ours = found["table, each worker"], found["table, once"]
    sooner = stock.seconds / ours.seconds
    of_manager = stock.of_manager / ours.of_manager
    later = one["table, once"].seconds / one["table, each worker"].seconds
    bare = found["nothing, once"]
    most = max(
        ours.memory.processes - bare.memory.processes, ours.later.processes - bare.later.processes
    )
    copies = most / (8 * node_states.NUMBERS)
    print(f"\nall are warm {sooner:.2f} times sooner, with {copies:.2f} copies of the table")
    print(f"since the manager's start: {of_manager:.2f} times sooner")
    print(f"the first result of one worker: {later:.2f} times as late")

    if options.check and (sooner < FASTER or later > LATER or copies > COPIES):
        return "beyond the limits"
    return 0


if __name__ == "__main__":
    sys.exit(main())
