"""The reason why an engine has no workers, and never will, which it leaves to its logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gc_warm.local.manager_logs import ManagerLog, ManagerLogs

_LINES_QUOTED = 20  # lines of a log that is quoted
_BYTES_QUOTED = 1 << 16  # the most of it
_DEATHS = 3  # of a worker that had no task, after which it counts as one that will not live


def states(executor: Any) -> str:
    """Return the states of an engine's blocks, as its provider last knew them."""
    blocks = executor.status_facade.items()
    return ", ".join(f"{block} {status.state.name}" for block, status in blocks) or "none"


def why_no_worker(executor: Any, managers: Sequence[Any], logs: ManagerLogs) -> str | None:
    """Return why no worker of an engine will ever take a task, or None if one may.

    Args:
        executor: The engine's executor.
        managers: The interchange's descriptions of the managers that are connected to it.
        logs: The managers' logs.

    Returns:
        The reason, with the end of the log that tells it.
    """
    if any(manager["worker_count"] > 0 for manager in managers):
        return _why_workers_die([logs.read(manager) for manager in managers])
    if not managers:
        return _why_blocks_end(executor)

    wanted = f"cores_per_worker {executor.cores_per_worker}"
    if executor.mem_per_worker:
        wanted += f" and mem_per_worker {executor.mem_per_worker}"
    reason = (
        f"a node has room for 0 workers: with {wanted} "
        f"it gets none of the {executor.max_workers_per_node} that are asked for"
    )
    return _quote(reason, *(logs.read(manager).path for manager in managers))


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


def _why_workers_die(logs: Sequence[ManagerLog]) -> str | None:
    """Return why the workers of all managers die again and again before their first task.

    None if one of them may live: one worker is enough.
    """
    for log in logs:
        if log.workers is None:
            return None

        for rank in range(log.workers):
            if log.deaths[rank] < _DEATHS or log.has_worked(rank):
                return None

    for log in logs:
        dead = log.latest_death
        if dead is not None:
            reason = (
                f"worker {dead} has died {log.deaths[dead]} times before its first task, "
                "and so have the others"
            )
            return _quote(reason, log.worker_path(dead))
    return None


def _quote(reason: str, *logs: str | Path | None) -> str:
    """Return the reason, with the end of the first of these logs that is not empty."""
    for path in logs:
        if path is None or not os.path.isfile(path):
            continue

        lines = _end(path).rstrip().splitlines()
        if lines:
            end = "\n".join(lines[-_LINES_QUOTED:])
            return f"{reason}. The end of {os.path.basename(path)}:\n{end}"

    return f"{reason}. There is no more in its logs."


def _end(path: str | Path) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BYTES_QUOTED))
        return file.read().decode(errors="replace")
