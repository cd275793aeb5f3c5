"""The preloads that have failed on an engine's workers, which say so in logs that nobody reads."""

from __future__ import annotations

import re
from pathlib import Path

_HEAD = 1 << 16  # characters of a log: the preload comes before the first task
_RECORD = re.compile(r"^(?=\d+\.\d+ \d{4}-\d\d-\d\d )", re.MULTILINE)
_FAILURE = re.compile(r" gc_warm:\d+ \w+ ERROR: (.*\bpreload of .*)")
_SECONDS = re.compile(r" after [\d.]+ s\b")


class FailedPreloads:
    """The failures that have not been told yet, in the logs of workers.

    Args:
        folder: The folder in which an engine's workers write their logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over: set[Path] = set()  # logs of workers that have had a task
        self._told: set[str] = set()

    def news(self) -> list[str]:
        """Return a line for each failure that is new, with the error; workers that agree are one.

        Returns:
            The lines.
        """
        lines = []
        for log in sorted(set(self._folder.rglob("worker_*.log")) - self._over):
            with log.open(errors="replace") as file:
                text = file.read(_HEAD)

            if "Received executor task" in text or len(text) == _HEAD:
                self._over.add(log)
            lines += [line for line in _failures(text) if line not in lines]

        new = [line for line in lines if line not in self._told]
        self._told.update(new)
        return new


def _failures(text: str) -> list[str]:
    """Return what a worker's log says of failed preloads, each with the last line of its error."""
    found = []
    for record in _RECORD.split(text):
        failure = _FAILURE.search(record)
        if failure is None:
            continue

        message = _SECONDS.sub("", failure[1])
        error = record.rstrip().rpartition("\n")[2]
        found.append(message if failure[0] in error else f"{message} ({error})")
    return found
