"""The cost of a task on each way to a worker and back: ``python tests/benchmarks/round_trip.py``.

One worker, tasks that do nothing but count, one after the other; the standard library's process
pool beside them in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

from gc_warm import MockExecutor
from gc_warm.functions import count

WAYS: dict[str, Callable[[], Executor]] = {
    "ProcessPoolExecutor (spawn)": lambda: ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    ),
    "MockExecutor, spawned worker": lambda: MockExecutor(workers=1),
    "MockExecutor, real engine": lambda: MockExecutor(
        config="local", user_endpoint_config={"workers_per_node": 1}
    ),
}


def measure(start: Callable[[], Executor], calls: int) -> tuple[float, float]:
    """Return the seconds until the first result, and the median seconds of a warm call."""
    begun = time.perf_counter()
    with start() as executor:
        executor.submit(count).result()
        first = time.perf_counter() - begun

        seconds = []
        for _ in range(calls):
            begun = time.perf_counter()
            executor.submit(count).result()
            seconds.append(time.perf_counter() - begun)
    return first, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calls", type=int, default=300, help="warm calls on each way (default: %(default)s)"
    )
    calls = parser.parse_args().calls

    reference = 0.0
    print("| way | until the first result | median of a warm call |\n| --- | ---: | ---: |")
    for way, start in WAYS.items():
        first, warm = measure(start, calls)
        reference = reference or warm
        cells = f"{first:.1f} s | {warm * 1000:.2f} ms, {warm / reference:.1f} x"
        print(f"| {way} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
