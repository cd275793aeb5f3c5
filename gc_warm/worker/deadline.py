"""The time until the job of a worker ends.

A job is told how long it may run, and nothing here is a time of day: the clocks of the node, of the
login node and of the scheduler may differ. Such a *duration* begins with the oldest process on this
node that has it in the environment it was started with: the launcher or the manager, which start
right after it was exported. The kernel knows when that was, on the node's own clock.

The processes are found by that environment and not by descent. So a worker that was restarted, a
child that was forked, a program that a task has started, and one that has lost its parent all come
to the same end.

Two durations can be known, and the job ends with the first of them:

- `SECONDS_LEFT`, the last variable that the ``worker_init`` of our configs exports.
- On Slurm, the time that the job was granted: the difference of two variables that are both of the
  controller's clock.

The time between the export and the start of that process is not counted. It is next to nothing on
the first node of a job; on the others it is what the launcher takes to reach them, and in a
container with process ids of its own what the container takes to start.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("gc_warm")

SECONDS_LEFT = "GC_WARM_SECONDS_LEFT"
"""The variable that says how many seconds the job has left at the moment of its export."""

# The first of them that is there tells the processes of a job from those of others on the node. The
# last is Parsl's, of a block: in a scheduler's job that holds an endpoint, only the inner processes
# have it.
_JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "JOBNAME")

_GRANTED = ("SLURM_JOB_ID", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME")

_PROC = Path("/proc")
_START_TIME = 22  # a field's number in /proc/PID/stat; see proc(5)

_ends: dict[frozenset[bytes], float | None] = {}
"""The ends found so far, by the variables that they follow from; forked children inherit them."""


def time_left() -> float | None:
    """Return how many seconds are left until the job of this worker ends.

    A loader that cannot finish in this time raises `gc_warm.NotEnoughTimeError`: the task fails
    with it at once, and not with the whole worker in the middle of the load.

    Returns:
        The seconds, 0 at the least; None where nothing is known of an end, as on a laptop, or under
        a config that does not export how long its job may run.
    """
    end = job_end()
    return None if end is None else max(0.0, end - _now())


def job_end() -> float | None:
    """Return when the job of this worker ends, on the node's clock that counts from its boot."""
    ends = [_end(seconds, variables) for seconds, variables in _durations()]
    return min((end for end in ends if end is not None), default=None)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _durations() -> Iterator[tuple[float, frozenset[bytes]]]:
    """Yield each duration that is known, with the variables that came with it."""
    told = os.environ.get(SECONDS_LEFT)
    if told is not None:
        job_id = next((name for name in _JOB_IDS if name in os.environ), SECONDS_LEFT)
        yield _number(told), _variables(SECONDS_LEFT, job_id)

    if all(os.environ.get(name, "").isdecimal() for name in _GRANTED):
        _, start, end = (int(os.environ[name]) for name in _GRANTED)
        yield end - start, _variables(*_GRANTED)


def _number(told: str) -> float:
    """Return a number of seconds, or nan."""
    return float(told) if re.fullmatch(r"-?\d+(\.\d*)?", told, re.ASCII) else math.nan


def _variables(*names: str) -> frozenset[bytes]:
    """Return variables of the environment as they are in that of a process."""
    return frozenset(os.fsencode(f"{name}={os.environ[name]}") for name in names)


def _end(seconds: float, variables: frozenset[bytes]) -> float | None:
    """Return the end of a duration, the same one for as long as the variables are the same."""
    if variables not in _ends:
        _ends.setdefault(variables, _find_end(seconds, variables))  # the first of two threads wins
    return _ends[variables]


def _find_end(seconds: float, variables: frozenset[bytes]) -> float | None:
    said = b" ".join(sorted(variables)).decode(errors="replace")
    if math.isnan(seconds):
        log.warning(
            "nothing is known of this job's end: %s is no number of seconds; write "
            "export %s=$((3600 - SECONDS)) for a job of an hour",
            said,
            SECONDS_LEFT,
        )
        return None

    try:
        begin = _begin(variables)
    except (OSError, ValueError, AttributeError) as error:  # this is no Linux, or shows nothing
        log.warning("nothing is known of this job's end: when %s began, %r", said, error)
        return None
    return begin + seconds


def _begin(variables: frozenset[bytes]) -> float:
    """Return when the oldest process was started with these variables, or now if none was.

    None was if this process has set one of them itself.
    """
    starts = [_now()]
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue

        try:
            if variables <= {*(process / "environ").read_bytes().split(b"\0")}:
                starts.append(_start(process))
        except OSError:  # it is somebody else's, or has ended
            continue

    if len(starts) == 1:
        (_PROC / "self" / "environ").read_bytes()  # to fail if processes cannot be looked at
    return min(starts)


def _start(process: Path) -> float:
    """Return when a process started, on the clock of `_now`."""
    stat = (process / "stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return int(fields[_START_TIME - 3]) / os.sysconf("SC_CLK_TCK")
