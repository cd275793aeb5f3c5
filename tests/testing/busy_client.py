"""A client that waits for a task that never ends, with two executors that nobody shuts down.

Usage: python busy_client.py BACKEND LOGBOOK STARTED
"""

from __future__ import annotations

import sys

import logbook
import tasks

from gc_warm import MockExecutor
from tests.testing.backends import workers

if __name__ == "__main__":
    executor = MockExecutor(**workers(sys.argv[1]))
    executor.submit(logbook.note, sys.argv[2]).result()
    running = executor.submit(tasks.for_ever, sys.argv[3])
    MockExecutor(client=executor._mock_client).submit(tasks.same, 1)
    running.result()
