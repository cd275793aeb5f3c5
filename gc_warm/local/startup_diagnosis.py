"""The reason why an engine has no workers, and never will, which it leaves to its logs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINES_QUOTED = 20  # lines of a log that is quoted
_DEATHS = 3  # of a worker that had no task, after which it counts as one that will not live


def states(executor: Any) -> str:
    """Return the states of an engine's blocks, as its provider last knew them."""
    blocks = executor.status_facade.items()
    return ", ".join(f"{block} {status.state.name}" for block, status in blocks) or "none"


def why_no_worker(executor: Any, folder: Path) -> str | None:
    """Return why no worker of an engine will ever take a task, or None if one may.

    Args:
        executor: The engine's executor.
        folder: The folder that the engine keeps its logs in.

    Returns:
        The reason, with the end of the log that tells it.
    """
    managers = executor.connected_managers()
    if any(manager["worker_count"] > 0 for manager in managers):
        return _why_workers_die(folder, {manager["manager"] for manager in managers})
    if not managers:
        return _why_blocks_end(executor)

    wanted = f"cores_per_worker {executor.cores_per_worker}"
    if executor.mem_per_worker:
        wanted += f" and mem_per_worker {executor.mem_per_worker}"
    reason = (
        f"a node has room for 0 workers: with {wanted} "
        f"it gets none of the {executor.max_workers_per_node} that are asked for"
    )
    return _quote(reason, *folder.rglob("manager.log"))


def _why_blocks_end(executor: Any) -> str | None:
    """Return why a block has ended without ever having had a worker.

    None if there is no such block, or another block may still get a worker.
    """
    from parsl.jobs.states import JobState

    statuses = executor.status()
    connected = executor.connected_blocks()
    if not all(status.terminal for status in statuses.values()):
        return None

    for block, status in reversed(statuses.items()):
        has_failed = status.state in (JobState.FAILED, JobState.MISSING)
        if has_failed and block not in connected:
            reason = f"no worker can start: block {block}: {_why_block_ended(status)}"
            return _quote(reason, status.stderr_path, status.stdout_path)
    return None


def _why_block_ended(status: Any) -> str:
    """Return the provider's message, where there is no log; else that the block ended too early."""
    if status.message and not status.stderr_path:
        reason = str(status.message)
    elif status.exit_code:
        reason = f"ended before its workers were ready, with exit status {status.exit_code}"
    else:
        reason = "ended before its workers were ready"
    return reason.rstrip(". \n")


def _why_workers_die(folder: Path, managers: set[str]) -> str | None:
    """Return why the workers of all managers die again and again before their first task.

    None if one of them may live: one worker is enough.
    """
    logs = [log for log in folder.rglob("manager.log") if log.parent.name in managers]
    dying = {}
    for log in logs:
        text = log.read_text(errors="replace")
        deaths = re.findall(r"Worker (\d+) was not busy when it died", text)
        numbers = set(re.findall(r"Manager will spawn (\d+) workers", text))
        if not numbers:
            return None

        for rank in range(int(max(numbers))):
            if deaths.count(str(rank)) < _DEATHS or _has_worked(log, rank):
                return None
        dying[log] = deaths

    for log, deaths in dying.items():
        rank = deaths[-1]
        reason = (
            f"worker {rank} has died {deaths.count(rank)} times before its first task, "
            "and so have the others"
        )
        return _quote(reason, log.with_name(f"worker_{rank}.log"))
    return None


def _has_worked(manager_log: Path, rank: int) -> bool:
    """Return whether a worker had a task in one of its latest lives.

    If so, it was killed while it was idle.
    """
    log = manager_log.with_name(f"worker_{rank}.log")
    if not log.exists():
        return False

    lives = log.read_text(errors="replace").split(f"Worker {rank} started")
    return any("Received executor task" in life for life in lives[-_DEATHS:])


def _quote(reason: str, *logs: str | Path | None) -> str:
    """Return the reason, with the end of the first of these logs that is not empty."""
    for path in logs:
        if path is None or not os.path.isfile(path):
            continue

        lines = Path(path).read_text(errors="replace").rstrip().splitlines()
        if lines:
            end = "\n".join(lines[-_LINES_QUOTED:])
            return f"{reason}. The end of {os.path.basename(path)}:\n{end}"

    return f"{reason}. There is no more in its logs."
