"""The workers of a manager, as processes of multiprocessing that it has started."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import time

WORKER = re.compile(r"HTEX-Worker-\d+")
"""The names by which Parsl calls its workers' processes."""


def end(grace: float) -> None:
    """End the workers that this process has started: SIGTERM, and SIGKILL for those that stay.

    Args:
        grace: Seconds that they have in between, all at the same time.
    """
    workers = [each for each in multiprocessing.active_children() if WORKER.fullmatch(each.name)]
    for worker in workers:
        worker.terminate()

    last = time.monotonic() + grace
    for worker in workers:
        with contextlib.suppress(ValueError):  # the manager has closed it meanwhile
            worker.join(max(0.0, last - time.monotonic()))
            worker.kill()
