"""The time of the linter: for a config's folder, and for a Python file.

For folders, that is after the endpoint's loader has been imported, and at most 0.3 s. For a Python
file it is the CPU time of the whole command, at most 0.5 s, beside that of importing the loader.

Exit status 1: more than that.

Usage: python tests/benchmarks/check_targets.py
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

from gc_warm import cli
from gc_warm.check import targets
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders

OF_FOLDER = 0.3  # seconds
OF_FILE = 0.5  # seconds of CPU
NUMBERS = Numbers(load_seconds=90, task_seconds=30, state_gb=1, queue_seconds=100)


def seconds(name: str) -> float:
    began = time.perf_counter()
    targets.inspect_target(name, [], None, NUMBERS, "DillCode")
    return time.perf_counter() - began


def cpu_seconds(*arguments: str) -> float:
    """The median of what a Python process takes, of nine."""
    spent = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *arguments]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


def main() -> int:
    worst = 0.0
    for name in folders.shipped():
        times = [seconds(name) for _ in range(9)]
        worst = max(worst, statistics.median(times))
        print(f"{name:10} first {times[0]:.3f} s, median {statistics.median(times):.3f} s")
    print(f"the slowest of them takes {worst / OF_FOLDER:.0%} of the {OF_FOLDER} s that it may")

    of_file = cpu_seconds("-m", "gc_warm", "check", os.fspath(cli.__file__))
    loader = cpu_seconds("-c", "import globus_compute_endpoint.endpoint.config.utils")
    print(f"a Python file {of_file:.3f} s of CPU, where the loader's import takes {loader:.3f} s")
    print(f"that is {of_file / OF_FILE:.0%} of the {OF_FILE} s that it may")
    return worst >= OF_FOLDER or of_file >= OF_FILE


if __name__ == "__main__":
    sys.exit(main())
