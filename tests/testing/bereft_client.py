"""A client whose interchange dies.

It is a process of its own, since a thread of the engine's then waits for ever.
"""

from __future__ import annotations

import psutil
import tasks

from gc_warm import MockExecutor
from tests.testing.backends import workers

executor = MockExecutor(**workers("engine"))
assert executor.submit(tasks.same, 1).result() == 1

children = psutil.Process().children()
(interchange,) = [child for child in children if "interchange" in " ".join(child.cmdline())]
interchange.kill()
interchange.wait()
waiting = executor.submit(tasks.same, 2)
executor.shutdown(wait=False)
assert waiting.exception(120) is not None
print("every future has ended")
