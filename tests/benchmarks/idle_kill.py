"""An idle worker is killed: when is there a warm one? ``python tests/benchmarks/idle_kill.py``.

The only worker of a node is killed while it waits, and a task is submitted at once. It ends when
the manager has noticed the death, which it looks for once in each of its heartbeat periods, and
another worker is warm. That is one that loads for itself, by ``preload``, or is forked from the
node's template, by ``preload_node``. Each kill falls into another part of the period.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gc_warm import MockExecutor

PERIOD = 1.0  # seconds between two looks of a manager
LIMIT = 0.5  # seconds that it may take beyond that

MODULE = """
import os
import time

TABLE = None

def load():
    "Take so many seconds of CPU time for a table of so many bytes."
    global TABLE
    begun = time.process_time()
    TABLE = os.urandom(1 << 20) * {megabytes}
    while time.process_time() < begun + {seconds}:
        pass

def use():
    "Return the process, and whether it is warm."
    import kill_table

    return os.getpid(), kill_table.TABLE is not None
"""

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: 1
  cores_per_worker: 0.01
  address: 127.0.0.1
  heartbeat_period: {period:.0f}
  job_status_kwargs: {{max_idletime: .inf, strategy_period: 0.2}}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
    worker_init: |
      export PYTHONPATH={folder}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --survive-idle-kill {load})"
"""


def measure(folder: Path, load: str, kills: int) -> list[float]:
    """Return the seconds from each kill to the result of a task on a warm worker."""
    use = importlib.import_module("kill_table").use
    config = CONFIG.format(folder=shlex.quote(str(folder)), load=load, period=PERIOD)
    found = []
    with MockExecutor(config=config) as executor:
        worker, _ = executor.submit(use).result()
        for number in range(kills):
            time.sleep(PERIOD * number / kills)
            os.kill(worker, signal.SIGKILL)
            begun = time.perf_counter()
            worker, is_warm = executor.submit(use).result()
            found.append(time.perf_counter() - begun)
            if not is_warm:
                raise RuntimeError(f"worker {worker} is cold")
    return found


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2, help="CPU time of the load")
    parser.add_argument("--megabytes", type=int, default=200, help="size of what is loaded")
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help=f"fail beyond the manager's period and {LIMIT} s"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module = MODULE.format(seconds=options.seconds, megabytes=options.megabytes)
        (folder / "kill_table.py").write_text(module)
        sys.path.insert(0, name)
        times = {
            "preload": measure(folder, "kill_table:load", options.kills),
            "preload_node": measure(folder, "--preload-node=kill_table:load", options.kills),
        }

    print("| | kills | median | worst |\n| --- | ---: | ---: | ---: |")
    for way, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {way} | {len(seconds)} | {median:.2f} s | {max(seconds):.2f} s |")
    worst = max(times["preload_node"])
    too_long = options.check and worst > PERIOD + LIMIT
    return f"{worst:.2f} s, more than {PERIOD} s and {LIMIT} s" if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
