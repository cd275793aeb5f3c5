"""The events in the logs of an engine's managers and their workers.

Each look reads only what has been written since the last one.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LIVES = 3  # of a worker, the latest ones, that are looked at
_CHUNK = 1 << 20  # bytes that are read at a time

_SPAWNS = re.compile(r"Manager will spawn (\d+) workers")
_DEATH = re.compile(r"Worker (\d+) was not busy when it died")
_NO_HELPER = "Failed to forward monitoring message"
_ENDS_ITSELF = "the multiprocessing helper of this manager"  # says gc_warm.hooks.helper_watch


class ManagerLogs:
    """The logs of an engine's managers.

    Args:
        executor: The engine's executor.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._logs: dict[Path, ManagerLog] = {}

    def read(self, manager: Mapping[str, Any]) -> ManagerLog:
        """Return the log of a manager, with all that it says by now.

        Args:
            manager: The interchange's description of the manager.
        """
        folder = Path(self._executor.worker_logdir, f"block-{manager['block_id']}")
        path = folder / manager["manager"] / "manager.log"

        log = self._logs.setdefault(path, ManagerLog(path))
        log.read()
        return log


class ManagerLog:
    """The log of one manager.

    Args:
        path: The file, which need not be there yet.

    Attributes:
        path: The file.
        workers: The number of workers that the manager was going to start; None as long as it is
            not known.
        deaths: The number of deaths of each worker that had no task.
        latest_death: The worker that has died last without a task.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workers: int | None = None
        self.deaths: Counter[int] = Counter()
        self.latest_death: int | None = None

        self._lacks_helper = False
        self._ends_itself = False
        self._file = _GrowingFile(path)
        self._workers: dict[int, _WorkerLog] = {}

    def read(self) -> None:
        """Take in what was written since the last time."""
        for line in self._file.new_lines():
            if spawns := _SPAWNS.search(line):
                self.workers = int(spawns[1])
            elif death := _DEATH.search(line):
                self.latest_death = int(death[1])
                self.deaths[self.latest_death] += 1
            elif _NO_HELPER in line:
                self._lacks_helper = True
            elif _ENDS_ITSELF in line:
                self._ends_itself = True

    @property
    def is_of_no_use(self) -> bool:
        """Whether the manager has lost its multiprocessing helper, and stays nevertheless."""
        return self._lacks_helper and not self._ends_itself

    def worker_path(self, rank: int) -> Path:
        """Return the log of one of the manager's workers.

        Args:
            rank: The worker's number.
        """
        return self.path.with_name(f"worker_{rank}.log")

    def has_worked(self, rank: int) -> bool:
        """Return whether a worker had a task in one of its latest lives.

        If so, it was killed while it was idle.

        Args:
            rank: The worker's number.
        """
        log = self._workers.setdefault(rank, _WorkerLog(self.worker_path(rank), rank))
        return log.has_worked()


class _WorkerLog:
    def __init__(self, path: Path, rank: int) -> None:
        self._file = _GrowingFile(path)
        self._started = f"Worker {rank} started"
        self._had_task: deque[bool] = deque([False], maxlen=_LIVES)

    def has_worked(self) -> bool:
        for line in self._file.new_lines():
            if self._started in line:
                self._had_task.append(False)
            elif "Received executor task" in line:
                self._had_task[-1] = True
        return any(self._had_task)


class _GrowingFile:
    """A text file that others write, of which each line is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def new_lines(self) -> Iterator[str]:
        """Yield the lines that were finished since the last time.

        A file that has become shorter, or is another one, is read from its beginning.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return

        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._offset = 0
            self._inode = status.st_ino

            file.seek(self._offset)
            # not what comes meanwhile: whoever writes may be quicker
            while self._offset < status.st_size:
                line = file.readline(_CHUNK)
                if not line.endswith(b"\n") and len(line) < _CHUNK:
                    return
                self._offset += len(line)
                yield line.decode(errors="replace")
