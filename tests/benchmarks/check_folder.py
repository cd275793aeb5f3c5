"""The time of the linter for a config's folder, after the endpoint's loader has been imported.

Exit status 1: more than 0.3 s.

Usage: python tests/benchmarks/check_folder.py
"""

from __future__ import annotations

import statistics
import sys
import time

from gc_warm.check import targets
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders

LIMIT = 0.3  # seconds
NUMBERS = Numbers(load_seconds=90, task_seconds=30, state_gb=1, queue_seconds=100)


def seconds(name: str) -> float:
    began = time.perf_counter()
    targets.inspect_target(name, [], None, NUMBERS, "DillCode")
    return time.perf_counter() - began


def main() -> int:
    worst = 0.0
    for name in folders.shipped():
        times = [seconds(name) for _ in range(9)]
        worst = max(worst, statistics.median(times))
        print(f"{name:10} first {times[0]:.3f} s, median {statistics.median(times):.3f} s")
    print(f"the slowest of them takes {worst / LIMIT:.0%} of the {LIMIT} s that it may")
    return worst >= LIMIT


if __name__ == "__main__":
    sys.exit(main())
