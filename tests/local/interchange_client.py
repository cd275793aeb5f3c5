"""A client whose interchange dies under a task.

It is a process of its own, since a thread of the engine's then waits for ever.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import tasks

from gc_warm import MockExecutor

executor = MockExecutor(
    config="local",
    user_endpoint_config={"workers_per_node": 1, "python_path": [str(Path(tasks.__file__).parent)]},
)
running = executor.submit(tasks.for_ever, sys.argv[1])
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)

children = psutil.Process().children()
(interchange,) = [child for child in children if "interchange" in " ".join(child.cmdline())]
interchange.kill()
assert "interchange has died" in str(running.exception(120))
print("the task in flight has failed")
assert executor.submit(tasks.same, 2).result(120) == 2
print("the next one was done")
executor.shutdown()
