"""The cost of knowing whether a call was warm: ``python tests/benchmarks/recorded.py``.

Tasks per second through a `WarmExecutor` and through the executor inside it, on the same workers,
in turns: those of the real engine, and spawned ones, where a task costs much less by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import wait

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.functions import cluster_energy

BURST = 200  # tasks that are under way at the same time


def rate(executor: MockExecutor | WarmExecutor) -> float:
    """Return how many warm tasks a second end, in a burst."""
    begun = time.perf_counter()
    wait([executor.submit(cluster_energy) for _ in range(BURST)])
    return BURST / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--turns", type=int, default=15, help="bursts through each (default: %(default)s)"
    )
    turns = parser.parse_args().turns

    compare(
        "engine", MockExecutor(config="local", user_endpoint_config={"workers_per_node": 2}), turns
    )
    compare("spawned workers", MockExecutor(workers=2), turns)


def compare(name: str, plain: MockExecutor, turns: int) -> None:
    """Print the rates with and without records, and their ratio."""
    with WarmExecutor(plain) as recorded:
        recorded.warm_up(cluster_energy, workers=2)
        rate(plain), rate(recorded)
        rates = [(rate(plain), rate(recorded)) for _ in range(turns)]

    without, with_records = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(recorded / plain for plain, recorded in rates)
    found = f"{without:.0f} tasks/s without records, {with_records:.0f} with them"
    print(f"{name}: {found}; median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
