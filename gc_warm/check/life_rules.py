"""Rules for how long jobs, workers, tasks and so state live."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from gc_warm.check.config_subjects import (
    SCALING,
    WORKERS,
    Workers,
)
from gc_warm.check.rules import Fix
from gc_warm.configs import meaning
from gc_warm.configs.repairs import ENGINE, PROVIDER

_LATE = 600  # seconds


@WORKERS.rule("GCW011", "warning")
def idle_too_soon(config: Workers) -> Iterator[tuple[Any, ...]]:
    """State is given up sooner than it can be had back.

    The idle time runs whenever no task is open, also while a job waits in the queue or its workers
    load: it is cancelled before it was ever warm. And a pause between tasks that is a little longer
    costs the whole wait again.
    """
    wait = (config.numbers.queue_seconds or 0) + (config.numbers.load_seconds or 0)
    keep = config.profile.keep_warm

    if wait and keep < wait:
        jobs_end_first = config.max_idletime == keep
        place = (*SCALING, "max_idletime") if jobs_end_first else ("idle_heartbeats_soft",)
        text = (
            f"workers end after {keep:g} s without tasks, and it takes {wait:g} s to be warm "
            "again; keep them for longer than that"
        )
        yield place, text


@WORKERS.rule("GCW012", "warning")
def undercut(config: Workers) -> Iterator[tuple[Any, ...]]:
    """The endpoint stops before the idle time of its workers is over.

    Once it has had a task, the whole user endpoint stops after `idle_heartbeats_soft` heartbeats
    without any, and ends its workers, whatever `max_idletime` and `min_blocks` say.
    """
    soft = config.profile.endpoint_idle
    if not math.isfinite(soft):
        return

    count = config.config.idle_heartbeats_soft
    period = config.config.heartbeat_period
    stops = f"the endpoint stops after {soft:g} s ({count} heartbeats of {period:g} s)"
    place = ("idle_heartbeats_soft",)

    least = config.provider.min_blocks
    if least > 0:
        yield place, f"min_blocks {least} is undercut: {stops}; it has to be 0 for that"

    idle = config.written(*SCALING, "max_idletime")
    if idle is not None and soft < config.max_idletime < math.inf:
        needed = f"idle_heartbeats_soft has to be above {config.max_idletime / period:.0f}"
        fix = Fix("idle_heartbeats_soft", math.floor(config.max_idletime / period) + 1)
        yield place, f"max_idletime {idle:g} s is undercut: {stops}; {needed} for that", fix


@WORKERS.rule("GCW013", "warning")
def kept_for_ever(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Nodes that are kept, and billed, however long there is no task.

    `min_blocks` above 0, a `strategy` of none, or a `max_idletime` of .inf mean that no job ends
    for lack of tasks; with `idle_heartbeats_soft` 0, its default, neither does the endpoint.
    """
    if config.is_local or math.isfinite(config.profile.keep_warm):
        return

    place: tuple[str, ...]
    fixes: list[Fix] = []
    strategy = config.engine._job_status_kwargs["strategy"]
    least = config.provider.min_blocks
    if strategy in ("none", None):
        why = f"strategy {strategy}"
        place = (*SCALING, "strategy")
        remedy = "strategy: simple"
        fixes.append(Fix(".".join(place), "simple"))
    elif least > 0:
        why = f"min_blocks {least}"
        place = (*PROVIDER, "min_blocks")
        remedy = "min_blocks: 0"
        fixes.append(Fix(".".join(place), 0))
    else:
        why = "max_idletime .inf"
        place = (*SCALING, "max_idletime")
        remedy = "a max_idletime in seconds"

    until = "the end of the endpoint" if config.profile.walltime is None else "their walltime"
    text = f"{why} without idle_heartbeats_soft: idle jobs stay until {until}; write {remedy}"
    yield place, text, *fixes


@WORKERS.rule("GCW014", "error")
def walltime_format(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A walltime that Parsl cannot read, or reads as zero.

    For Slurm and LSF, Parsl takes the walltime apart as HH:MM:SS, and forgets the seconds. Whatever
    has not three parts, such as 30:00 or 1-00:00:00, is an error at the moment when a job is to
    start: there never is a worker. Less than a minute is asked for as 0.
    """
    if type(config.provider).__name__ not in meaning.NEED_HOURS:
        return

    place = (*PROVIDER, "walltime")
    written = config.provider.walltime
    seconds = config.profile.walltime
    if seconds is None:
        text = (
            f"walltime {written!r} is not of the form HH:MM:SS, and no job will start; "
            'write "01:30:00", in quotes'
        )
        yield place, text
    elif seconds < 60:
        text = (
            f"walltime {written!r} is less than a minute, which is asked for as 0; "
            "write 00:01:00 or more"
        )
        yield place, text


@WORKERS.rule(
    "GCW015",
    "error",
    "read in parsl/providers, submit: a job is asked for with this limit, "
    "and its scheduler ends it there",
)
def walltime_too_short(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A job that ends before its first task can.

    Its first task has to load. If load and task together take as long as the walltime, it is lost
    every time, and so is the state.
    """
    walltime = config.profile.walltime
    takes = (config.numbers.load_seconds or 0) + (config.numbers.task_seconds or 0)

    if takes and walltime is not None and walltime <= takes:
        text = (
            f"walltime {config.provider.walltime} is {walltime} s, "
            f"and load and task take {takes:g} s; ask for several times that"
        )
        yield (*PROVIDER, "walltime"), text


@WORKERS.rule("GCW016", "warning")
def no_drain(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks that still run at the walltime are lost.

    Without a `drain_period`, a job takes tasks until its scheduler kills it; what runs then fails,
    after up to `heartbeat_threshold`, in which more tasks are swallowed. A job that drains takes no
    more tasks after that time, ends what it has, and ends itself.
    """
    walltime = config.profile.walltime
    if walltime is None:
        return

    place = (*ENGINE, "drain_period")
    drain = config.profile.drain
    task_seconds = config.numbers.task_seconds
    advice = _drain_advice(walltime, task_seconds)
    fixes = _drain_fixes(_drain(walltime, task_seconds))
    if not drain:
        are_retried = config.engine.max_retries_on_system_failure > 0
        end = "run once more, cold" if are_retried else "are lost"
        text = (
            "drain_period is not given: tasks that run when the job ends "
            f"after {walltime} s {end}; {advice}"
        )
        yield place, text, *fixes
    elif drain >= walltime:
        text = (
            f"drain_period {drain} is not before the walltime of {walltime} s, "
            f"so the job never drains; {advice}"
        )
        yield place, text, *fixes
    elif task_seconds and drain + task_seconds > walltime:
        text = (
            f"drain_period {drain} leaves {walltime - drain} s "
            f"for a task of {task_seconds:g} s; {advice}"
        )
        yield place, text, *fixes


def _drain_advice(walltime: int, task_seconds: float | None) -> str:
    """Return what to write so that a job drains in time."""
    drain = _drain(walltime, task_seconds)
    if drain <= 0:
        return "ask for a longer walltime"
    return f"set drain_period to walltime less the longest task less a minute: {drain}"


def _drain_fixes(drain: int) -> list[Fix]:
    return [Fix("engine.drain_period", drain)] if drain > 0 else []


def _drain(end: int, task_seconds: float | None) -> int:
    """Return when a job has to begin to drain that ends after so many seconds."""
    longest = task_seconds or min(end / 10, 900)
    return math.floor(end - longest - min(end / 10, 60))


@WORKERS.rule("GCW018", "error")
def timeout_too_short(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A task may not take as long as its load.

    A task's time-out (GC_TASK_TIMEOUT) strikes in the middle of the load, which is lost with it.
    The next task begins anew, so the state never becomes warm.
    """
    limit = config.profile.task_timeout
    load = config.numbers.load_seconds
    if not limit or not load:
        return

    task = config.numbers.task_seconds
    takes = load + (task or 0)
    if limit <= takes:
        with_task = " and task" if task else ""
        text = (
            f"GC_TASK_TIMEOUT {limit:g} s is not above the {takes:g} s of load{with_task}; "
            "give it more"
        )
        yield (*PROVIDER, "worker_init"), text


@WORKERS.rule("GCW025", "error")
def heartbeats(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Managers that are given up between two heartbeats.

    A manager that has not been heard of for `heartbeat_threshold` is taken for dead, and its tasks
    fail; it is heard of every `heartbeat_period`. The engine has both (30 and 120 s); those of the
    endpoint, at the top level, are others.
    """
    period = config.executor.heartbeat_period
    threshold = config.executor.heartbeat_threshold

    has_period = config.written(*ENGINE, "heartbeat_period") is not None
    place = (*ENGINE, "heartbeat_period" if has_period else "heartbeat_threshold")
    fix = Fix("engine.heartbeat_threshold", 4 * period)
    if config.written(*ENGINE, "heartbeat_threshold") is None and threshold >= 4:
        fix = Fix("engine.heartbeat_period", threshold // 4)
    if threshold <= period:
        text = (
            f"heartbeat_threshold {threshold} s is not above heartbeat_period {period} s: "
            "nodes are lost all the time; have 4 periods"
        )
        yield place, text, fix
    elif threshold < 2 * period:
        text = (
            f"heartbeat_threshold {threshold} s is below two heartbeat_periods of {period} s: "
            "one late beat loses a node; have 4 periods"
        )
        yield place, text, "warning", fix


def _limit_seconds(limit: str, is_slurm: bool) -> int | None:
    """Return a time limit as Slurm or PBS read it, in seconds; None if it is none."""
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]) or len(parts) > 3:
        return None

    if dash:
        places = [3600, 60, 1]
    elif is_slurm and len(parts) < 3:
        places = [60, 1]
    else:
        places = [3600, 60, 1][-len(parts) :]
    seconds = sum(int(part) * place for part, place in zip(parts, places, strict=False))
    return int(days or 0) * 86400 + seconds


# sbatch reads no further than a comment in a line
_LIMITS = {
    "SlurmProvider": r"^#SBATCH\s(?:[^#\n]*\s)?(?:--time[= ]|-t\s*)([\w:-]+)",
    "PBSProProvider": r"^#PBS\s(?:.*\s)?-l\s*(?:\S*,)?walltime=([\d:]+)",
    "TorqueProvider": r"^#PBS\s(?:.*\s)?-l\s*(?:\S*,)?walltime=([\d:]+)",
}


@WORKERS.rule(
    "GCW031",
    "warning",
    "read in parsl/providers/slurm/template.py: the last limit counts, as seen with Slurm 22.05",
)
def second_walltime(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A time limit in the options for Slurm or PBS, beside the walltime.

    Parsl writes `scheduler_options` below the line with the walltime, and of two limits Slurm takes
    the last. What is reckoned with the walltime, such as `drain_period`, is then of another job.
    """
    limit = _LIMITS.get(type(config.provider).__name__)
    if limit is None:
        return

    limits = re.findall(limit, config.provider.scheduler_options, re.MULTILINE)
    is_slurm = type(config.provider).__name__ == "SlurmProvider"
    taken = "Slurm takes the last" if is_slurm else "only one of them counts"
    if limits and _limit_seconds(limits[-1], is_slurm) != config.profile.walltime:
        text = (
            f"scheduler_options ask for a time of {limits[-1]} below the walltime of "
            f"{config.provider.walltime}, and {taken}; write it as walltime"
        )
        yield (*PROVIDER, "scheduler_options"), text


@WORKERS.rule(
    "GCW032",
    "warning",
    "read in parsl/executors/high_throughput/interchange.py, expire_bad_managers",
)
def lost_late(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A node that is lost is noticed late.

    Its tasks fail, and others are sent elsewhere, when nothing was heard of it for the
    `heartbeat_threshold`. Until then they seem to run.
    """
    threshold = config.executor.heartbeat_threshold
    if threshold > _LATE:
        text = (
            f"heartbeat_threshold {threshold} s: the tasks of a node that is lost seem to run for "
            "so long; 4 heartbeat_periods are enough"
        )
        enough = 4 * config.executor.heartbeat_period
        yield (*ENGINE, "heartbeat_threshold"), text, Fix("engine.heartbeat_threshold", enough)


@WORKERS.rule("GCW034", "warning")
def ends_beside_busy(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Jobs that end for lack of tasks while others are busy.

    With the strategy htex_auto_scale a job ends as soon as there are more workers than tasks, and
    it had none for `max_idletime`, however many the others have: its state is gone, and the next
    burst of tasks waits for a new one, cold. A job that is still in the queue, or whose workers
    have not started, counts as one that never had a task, and is cancelled at once. With the
    strategy simple, all jobs stay while one has tasks.
    """
    if not config.profile.ends_beside_busy:
        return

    in_scaling = config.written(*SCALING, "strategy") is not None
    text = (
        f"strategy htex_auto_scale: a job without tasks for {config.profile.job_idle:g} s ends, "
        f"and one that is in the queue at once, while others of the {config.profile.max_jobs} "
        "are busy; write strategy: simple to keep all of them warm"
    )
    place = (*(SCALING if in_scaling else ENGINE), "strategy")
    yield place, text, Fix(".".join(place), "simple")


@WORKERS.rule("GCW035", "warning")
def ending_signal(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A signal by which a job ends before its walltime.

    Slurm's `--signal` goes to all processes of a job's steps, which srun makes, or with B: to the
    job's shell. Managers and a shell without a trap catch none, and end of it: tasks that run then
    are lost. Slurm may send it a minute early. Nothing is said where a job has drained before that,
    and the longest task is over.
    """
    signal = meaning.ending_signal(config.provider)
    walltime = config.profile.walltime
    if signal is None or walltime is None:
        return

    name, early = signal
    end = walltime - early
    left = end - (config.profile.drain or end)
    if left > 0 and left >= (config.numbers.task_seconds or 0):
        return

    drain = _drain(end, config.numbers.task_seconds)
    remedy = f"leave it out, or set drain_period to {drain}" if drain > 0 else "leave it out"
    text = (
        f"scheduler_options have {name} sent up to {early} s before the walltime, and a job ends "
        f"of it, with its tasks: {remedy}"
    )
    yield (*PROVIDER, "scheduler_options"), text, *_drain_fixes(drain)


@WORKERS.rule("GCW036", "warning")
def requeued(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A job that is run again, and tasks that are not.

    A job that Slurm or PBS puts into the queue again (`--requeue`, `-r y`), after its node failed
    or a job of more weight took it, starts anew, with cold workers. Its tasks are lost: they fail
    with ManagerLost after `heartbeat_threshold`, unless `max_retries_on_system_failure` sends them
    once more. Meanwhile the engine takes it for one that will serve, and asks for no other.
    """
    options = str(getattr(config.provider, "scheduler_options", ""))
    asked = re.search(
        r"^#(?:SBATCH\s(?:[^#\n]*\s)?(--requeue)|PBS\s(?:.*\s)?(-r\s*y))\b", options, re.MULTILINE
    )
    if asked and not config.engine.max_retries_on_system_failure:
        text = (
            f"{asked[1] or asked[2]} has a job run again, and not its tasks, which fail with "
            "ManagerLost; set max_retries_on_system_failure, if they may run twice"
        )
        yield (*PROVIDER, "scheduler_options"), text


@WORKERS.rule(
    "GCW037",
    "error",
    "read in globus_compute_endpoint/endpoint/interchange.py: its heartbeats count what moves",
)
def never_ends(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A task that takes longer than its endpoint waits for it.

    With `idle_heartbeats_soft` the endpoint stops, too, when no task and no result has moved for
    `idle_heartbeats_hard` heartbeats, and ends its workers. The task is taken for one that never
    ran: the endpoint starts again for it, and so on, without end.
    """
    task = config.numbers.task_seconds
    takes = (config.numbers.load_seconds or 0) + (task or 0)
    limit = config.profile.movement_limit
    if task and takes > limit:
        text = (
            f"the endpoint stops when nothing has moved for {limit:g} s, and a task of {takes:g} s "
            "starts over and over; give it more heartbeats"
        )
        yield ("idle_heartbeats_hard",), text


@WORKERS.rule(
    "GCW041",
    "warning",
    "read in parsl/jobs/strategy.py: no more blocks than max_blocks are asked for",
)
def no_handover(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Jobs that are to hand over, and cannot.

    The next job is asked for before the last one drains, so that its workers are warm by then. That
    needs room for both: with `max_jobs` 1 (in a config of your own, `max_blocks`), the next one can
    only be asked for when the last one has ended, unless `overlap_jobs` allows more for that while.
    It also needs jobs that drain before they end, and a strategy that asks for jobs.
    """
    profile = config.profile
    if profile.overlap_jobs is None:
        return

    strategy = config.engine._job_status_kwargs["strategy"]
    if not profile.drains:
        why = "its jobs do not drain before they end: set drain_period"
    elif strategy in ("none", None):
        why = f"strategy {strategy} asks for no jobs: write strategy: simple"
    elif profile.max_jobs + profile.overlap_jobs < 2:
        why = (
            "there is at most one job, so that tasks wait for the next one after its end; allow "
            "overlap_jobs: 1, if the site allows two"
        )
    else:
        return
    yield (*PROVIDER, "worker_init"), f"handover: {why}"
