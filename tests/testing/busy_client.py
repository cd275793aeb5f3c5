"""A client that waits for a task that never ends.

Usage: python busy_client.py BACKEND LOGBOOK STARTED
"""

from __future__ import annotations

import sys

import logbook
import tasks

from gc_warm import MockExecutor
from tests.testing.backends import workers

if __name__ == "__main__":
    with MockExecutor(**workers(sys.argv[1])) as executor:
        executor.submit(logbook.note, sys.argv[2]).result()
        executor.submit(tasks.for_ever, sys.argv[3]).result()
