"""Loads and waits with warm-first, and without: ``python tests/benchmarks/routing.py``.

One node on this machine, and tasks that each need the state of one of eight keys, by Zipf's law; a
worker has room for two. First as it is in stock, then in stock with tasks that are fetched ahead,
then with ``warm_first``: with few tasks a second, with many, and in a backlog. Loads and tasks
sleep, so that cores count for little; lengths of tasks are log-normal. At last, tasks of the same
lengths that have no hint and need no state.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gc_warm import MockExecutor, WarmExecutor

KEYS = 8
MEDIAN = 0.005  # seconds of a task
RATES = {"low": 15.0, "high": 100.0, "backlog": 0.0}  # tasks a second; 0 for all at once

MODULE = """
import time

from gc_warm import warm

@warm(maxsize=2)
def model(key, seconds):
    time.sleep(seconds)
    return [key]

def use(key, load, seconds):
    import time

    import routed_keys

    before = routed_keys.model.info().loads
    routed_keys.model(key, load)
    time.sleep(seconds)
    return routed_keys.model.info().loads - before

def pause(seconds):
    time.sleep(seconds)
"""

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {workers}
  cores_per_worker: 0.001
  address: 127.0.0.1
  prefetch_capacity: {ahead}
  job_status_kwargs: {{max_idletime: .inf, strategy_period: 0.2}}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
    worker_init: |
      export PYTHONPATH={folder}
      {line}
"""

BOOT = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --warm-first)"'
WAYS = {"stock": (0, ""), "stock, 8 ahead": (8, ""), "warm-first": (16, BOOT)}


@dataclass(frozen=True)
class Measured:
    """What one kind of load has come to."""

    loads: int
    rate: float
    waits: list[float]

    def wait(self, part: float) -> float:
        return sorted(self.waits)[int(part * (len(self.waits) - 1))]


def measure(executor: WarmExecutor, number: int, rate: float, load: float, name: str) -> Measured:
    """Send tasks at a rate, and return what became of them.

    Args:
        executor: The executor.
        number: How many tasks.
        rate: Tasks a second; 0 for all at once.
        load: Seconds of a load.
        name: What the keys have in their names, so that nothing is warm yet.
    """
    use = importlib.import_module("routed_keys").use
    chance = random.Random(7)
    chosen = chance.choices(range(KEYS), [1 / (key + 1) for key in range(KEYS)], k=number)
    near = [executor.near(f"{name} {key}") for key in range(KEYS)]
    lengths = [chance.lognormvariate(math.log(MEDIAN), 0.5) for _ in chosen]
    ended = [0.0] * number
    due = [0.0] * number
    futures = []

    begun = time.perf_counter()
    comes = 0.0
    for task, key in enumerate(chosen):
        due[task] = begun + comes
        comes += chance.expovariate(rate) if rate else 0.0
        time.sleep(max(0.0, due[task] - time.perf_counter()))

        def note(_: Any, task: int = task) -> None:
            ended[task] = time.perf_counter()

        future = near[key].submit(use, f"{name} {key}", load, lengths[task])
        future.add_done_callback(note)
        futures.append(future)

    loads = sum(future.result() for future in futures)
    waits = [ended[task] - due[task] - lengths[task] for task in range(number)]
    return Measured(loads, number / (max(ended) - begun), waits)


def compare_plain(folder: str, workers: int, number: int, turns: int) -> float:
    """Return which part of stock's tasks a second end with warm-first, without hints or state.

    The two take turns, so that what else the machine does counts for both.
    """
    pause = importlib.import_module("routed_keys").pause
    chance = random.Random(7)
    lengths = [chance.lognormvariate(math.log(MEDIAN), 0.5) for _ in range(number)]

    def rate(executor: WarmExecutor) -> float:
        begun = time.perf_counter()
        wait([executor.executor.submit(pause, length) for length in lengths])
        return number / (time.perf_counter() - begun)

    with ExitStack() as ending:
        both = [
            ending.enter_context(start(folder, workers, way)) for way in ("stock", "warm-first")
        ]
        for executor in both:
            executor.warm_up(pause, 0, workers=workers)
            rate(executor)
        rates = [tuple(rate(executor) for executor in both) for _ in range(turns)]

    stock, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    part = statistics.median(ours / stock for stock, ours in rates)
    print(f"no hints: {stock:.0f} tasks/s in stock, {ours:.0f} with warm-first; ratio {part:.2f}")
    return part


def start(folder: str, workers: int, way: str) -> WarmExecutor:
    """Return an executor with a node of so many workers."""
    ahead, line = WAYS[way]
    config = CONFIG.format(
        workers=workers, ahead=ahead, folder=shlex.quote(folder), line=line or "true"
    )
    return WarmExecutor(MockExecutor(config=config))


def run(folder: str, workers: int, load: float, number: int) -> dict[tuple[str, str], Measured]:
    """Print a row for each way and load, and return what was measured."""
    found = {}
    pause = importlib.import_module("routed_keys").pause
    for way in WAYS:
        with start(folder, workers, way) as executor:
            executor.warm_up(pause, 0, workers=workers)
            for name, rate in RATES.items():
                got = measure(executor, number, rate, load, name)
                found[way, name] = got
                print(
                    f"| {workers} | {load:g} s | {name} | {way} | {got.loads} | {got.rate:.1f} | "
                    f"{1e3 * got.wait(0.5):.0f} ms | {1e3 * got.wait(0.95):.0f} ms | "
                    f"{1e3 * got.wait(1):.0f} ms |",
                    flush=True,
                )
    return found


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="workers of the node (default: %(default)s)"
    )
    parser.add_argument(
        "--load", type=float, default=0.3, help="seconds of a load (default: %(default)s)"
    )
    parser.add_argument(
        "--tasks", type=int, default=200, help="tasks of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=int, default=9, help="bursts without hints (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="fail if warm-first loads more often than 10 times"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        Path(name, "routed_keys.py").write_text(MODULE)
        sys.path.insert(0, name)
        print("| workers | load | tasks come | | loads | tasks/s | median | p95 | worst |")
        print("| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
        found = run(name, options.workers, options.load, options.tasks)
        compare_plain(name, options.workers, options.tasks, options.turns)

    most = max(found["warm-first", name].loads for name in RATES)
    too_many = options.check and most > 1.25 * KEYS
    return f"{most} loads, where {KEYS} are enough" if too_many else 0


if __name__ == "__main__":
    sys.exit(main())
