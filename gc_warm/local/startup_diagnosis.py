"""Why an engine has no workers, and never will: what it leaves to its logs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINES_QUOTED = 20  # lines of a log that is quoted
_DEATHS = 3  # of a worker that had no task: it will not live


def states(executor: Any) -> str:
    """The blocks of an engine, as its provider last knew them."""
    return (
        ", ".join(
            f"{block} {status.state.name}" for block, status in executor.status_facade.items()
        )
        or "none"
    )


def why_no_worker(executor: Any, folder: Path) -> str | None:
    """Why no worker of this engine will ever take a task, with the end of the log that knows; None if one may.

    Args:
        executor: The engine's executor.
        folder: Where it keeps its logs.
    """
    managers = executor.connected_managers()
    if any(manager["worker_count"] > 0 for manager in managers):
        return _why_workers_die(folder, {manager["manager"] for manager in managers})
    if managers:
        wanted = f"cores_per_worker {executor.cores_per_worker}"
        wanted += (
            f" and mem_per_worker {executor.mem_per_worker}" if executor.mem_per_worker else ""
        )
        what = f"a node has room for 0 workers: with {wanted} it gets none of the {executor.max_workers_per_node} that are asked for"
        return _quote(what, *folder.rglob("manager.log"))
    return _why_blocks_end(executor)


def _why_blocks_end(executor: Any) -> str | None:
    """A block that has ended without ever having had a worker, unless another may still get one."""
    from parsl.jobs.states import JobState

    statuses, connected = executor.status(), executor.connected_blocks()
    if not all(status.terminal for status in statuses.values()):
        return None
    for block, status in reversed(statuses.items()):
        if status.state in (JobState.FAILED, JobState.MISSING) and block not in connected:
            ended = "ended before its workers were ready" + (
                f", with exit status {status.exit_code}" if status.exit_code else ""
            )
            why = (status.message if status.message and not status.stderr_path else ended).rstrip(
                ". \n"
            )
            return _quote(
                f"no worker can start: block {block}: {why}", status.stderr_path, status.stdout_path
            )
    return None


def _why_workers_die(folder: Path, managers: set[str]) -> str | None:
    """Workers that die again and again with no task: all of them, since one that lives is enough."""
    dying = {}
    for log in (log for log in folder.rglob("manager.log") if log.parent.name in managers):
        text = log.read_text(errors="replace")
        ends = re.findall(r"Worker (\d+) was not busy when it died", text)
        ranks = set(re.findall(r"Manager will spawn (\d+) workers", text))
        if not ranks or any(
            ends.count(str(rank)) < _DEATHS or _has_worked(log, rank)
            for rank in range(int(max(ranks)))
        ):
            return None
        dying[log] = ends
    for log, ends in dying.items():
        what = f"worker {ends[-1]} has died {ends.count(ends[-1])} times before its first task, and so have the others"
        return _quote(what, log.with_name(f"worker_{ends[-1]}.log"))
    return None


def _has_worked(manager_log: Path, rank: int) -> bool:
    """Whether that worker had a task in one of its latest lives: then it was killed while it was idle."""
    log = manager_log.with_name(f"worker_{rank}.log")
    lives = log.read_text(errors="replace").split(f"Worker {rank} started") if log.exists() else []
    return any("Received executor task" in life for life in lives[-_DEATHS:])


def _quote(what: str, *logs: str | Path | None) -> str:
    """What happened, with the end of the first of these logs that says anything."""
    for path in logs:
        if path is None or not os.path.isfile(path):
            continue
        lines = Path(path).read_text(errors="replace").rstrip().splitlines()
        if lines:
            return f"{what}. The end of {os.path.basename(path)}:\n" + "\n".join(
                lines[-_LINES_QUOTED:]
            )
    return f"{what}. There is no more in its logs."
