"""Lines for the log about what strangers do, of which there may be thousands."""

from __future__ import annotations

import logging
import math
import threading
import time

log = logging.getLogger("gc_warm")

_INTERVAL = 60  # seconds between two lines

OUT_OF_DESCRIPTORS = "no connection can be accepted: too many open files; raise `ulimit -n`"
"""The complaint that this process has no descriptor left."""


class Complaints:
    """Complaints of one server: the first is logged, later ones now and then, with their number.

    Its method may be called from any thread.

    Args:
        name: The name of the server in the lines.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._unsaid = 0
        self._latest = -math.inf
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        """Log a complaint, or count it.

        Args:
            text: A clause that says what is wrong, and with whom.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._latest < _INTERVAL:
                self._unsaid += 1
                return

            self._latest = now
            unsaid = self._unsaid
            self._unsaid = 0

        if unsaid:
            text = f"{text}; {unsaid:,} complaints more since the last such line"
        log.warning("%s: %s", self._name, text)
