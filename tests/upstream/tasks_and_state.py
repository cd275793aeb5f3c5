"""A proposal for Parsl, with its measurement: tasks that say what belongs together.

Needs Parsl and nothing else; ends with status 0 if tasks are given to nodes without regard to what
is loaded there, and 1 if they are not. Seen with Parsl 2026.10.26. (Asked for in #4083, #1349, #953
and #3249.)

    python tasks_and_state.py

Workers keep state in module globals between tasks. Within a node, a worker can choose among the
tasks that its manager has (gc_warm does that). Between nodes, only the interchange can: it draws a
manager with room by chance, so that with N nodes each state is loaded on all of them.

*The proposal.* A task may have a word, ``resource_spec["affinity"]``, which the interchange reads
as it does ``priority``. For each manager it keeps the words of the last tasks that it gave there
(some hundred, the latest last; they go with the manager). In ``process_tasks_to_send``, for a
manager with room, a task whose word that manager has comes first; then one without a word, or
with one that no manager has; and one whose word another manager has only when it has waited for
longer than a few seconds, so that nothing starves. Without words, all is as it is.

Here two nodes with one worker each run tasks of several keys, one after the other, and count loads:
one for each key is enough.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.providers import LocalProvider

NODES = 2
KEYS = 10
ROUNDS = 6


def load_or_find(key: int) -> bool:
    """Return whether the state of a key had to be loaded here."""
    import builtins

    loaded: set[int] = vars(builtins).setdefault("_loaded", set())
    is_cold = key not in loaded
    loaded.add(key)
    return is_cold


def loads(executor: HighThroughputExecutor) -> int:
    """Return how many of the tasks, one after the other, had to load."""
    while len(executor.connected_managers()) < NODES:
        time.sleep(0.01)
    keys = [key for _ in range(ROUNDS) for key in range(KEYS)]
    return sum(executor.submit(load_or_find, {}, key).result(60) for key in keys)


def main() -> int:
    scripts = os.path.dirname(sys.executable)
    # where Parsl looks for its programs
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]

    with tempfile.TemporaryDirectory() as folder:
        executor = HighThroughputExecutor(
            label="two_nodes",
            address="127.0.0.1",
            max_workers_per_node=1,
            cores_per_worker=0.01,
            encrypted=False,
            provider=LocalProvider(init_blocks=NODES, min_blocks=NODES, max_blocks=NODES),
            # Pip's way to start Parsl's two scripts does not work where the environment's path has
            # a blank.
            interchange_launch_cmd=[sys.executable, os.path.join(scripts, "interchange.py")],
            launch_cmd=DEFAULT_LAUNCH_CMD.replace(
                "process_worker_pool.py",
                "python3 -m parsl.executors.high_throughput.process_worker_pool",
            ),
        )
        config = Config([executor], run_dir=folder, exit_mode="cleanup", strategy="none")
        with parsl.load(config):
            found = loads(executor)

    versions = f"Python {platform.python_version()}, Parsl {parsl.__version__}"
    print(
        f"{versions}: {KEYS * ROUNDS} tasks with {KEYS} keys, one after the other, "
        f"on {NODES} nodes needed {found} loads"
    )
    return 0 if found > 1.3 * KEYS else 1


if __name__ == "__main__":
    sys.exit(main())
