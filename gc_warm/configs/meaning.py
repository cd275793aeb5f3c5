"""What a loaded config amounts to for warm state and for the bill."""

from __future__ import annotations

import math
import os
import re
import shlex
from dataclasses import dataclass
from typing import Any

from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.exceptions import ConfigError

# others only take it
_ASK_FOR_WALLTIME = (
    "SlurmProvider",
    "PBSProProvider",
    "TorqueProvider",
    "LSFProvider",
    "GridEngineProvider",
)
NEED_HOURS = ("SlurmProvider", "LSFProvider")
"""Whose walltime Parsl takes apart, as HH:MM:SS; others hand it on, and their schedulers also take seconds."""


@dataclass(frozen=True)
class WarmthProfile:
    """What a config means for warm state and for the bill.

    Attributes:
        copies_per_node: Workers on a node, each with its own copy of the state; None if that
            depends on the node's cores.
        nodes_per_job: Nodes of one job.
        max_jobs: Jobs at the same time, at most.
        copies: Copies of the state in all, at most.
        keep_warm: Seconds without tasks that state is kept, at least; infinite if their lack ends
            nothing.
        job_idle: Seconds without tasks after which jobs end; infinite if never.
        endpoint_idle: Seconds without tasks after which the endpoint itself stops; infinite if
            never.
        walltime: Seconds that a job lives at most; None where there is no such limit.
        drain: Seconds after which a job takes no more tasks; None if it never drains.
        task_timeout: Seconds that a task may take; None if there is no limit.
        restart: Seconds after which a worker that died is back, at most.
        idle_hour: Node-hours that an hour of idle, warm workers costs; None where nothing is
            billed.
        idle_cost: Node-hours from the last task until state is gone, at most.
        worst_case: Node-hours of all jobs that run to their walltime; None where nothing is billed.
        devices: What each worker of a node is pinned to.
    """

    copies_per_node: int | None
    nodes_per_job: int
    max_jobs: int
    copies: int | None
    keep_warm: float
    job_idle: float
    endpoint_idle: float
    walltime: int | None
    drain: int | None
    task_timeout: float | None
    restart: float
    idle_hour: float | None
    idle_cost: float | None
    worst_case: float | None
    devices: tuple[str, ...]


def warmth_profile(config: UserEndpointConfig) -> WarmthProfile:
    """What a loaded config means.

    Raises:
        ConfigError: Its engine has no workers that could be warm.
    """
    engine: Any = config.engine
    provider = getattr(getattr(engine, "executor", None), "provider", None)
    if provider is None:
        raise ConfigError(
            f"{type(engine).__name__} starts no workers in jobs of their own; use GlobusComputeEngine"
        )
    soft = config.idle_heartbeats_soft * config.heartbeat_period or math.inf
    scaling = engine._job_status_kwargs
    idle = (
        math.inf
        if provider.min_blocks or scaling["strategy"] in ("none", None)
        else scaling["max_idletime"]
    )
    walltime = _seconds(provider)
    keep_warm = min(idle, soft)
    nodes, jobs = provider.nodes_per_block, provider.max_blocks
    # with workers on the first node only
    per_node, is_mpi = _workers(engine.executor), type(engine).__name__ == "GlobusMPIEngine"
    until_cold = keep_warm + (
        config.heartbeat_period if soft <= idle else scaling["strategy_period"]
    )
    return WarmthProfile(
        copies_per_node=per_node,
        nodes_per_job=nodes,
        max_jobs=jobs,
        copies=None if per_node is None else per_node * jobs * (1 if is_mpi else nodes),
        keep_warm=keep_warm,
        job_idle=idle,
        endpoint_idle=soft,
        walltime=walltime,
        drain=engine.executor.drain_period,
        task_timeout=exported(provider, "GC_TASK_TIMEOUT"),
        restart=engine.executor.heartbeat_period,
        idle_hour=None if walltime is None else float(nodes * jobs),
        idle_cost=None if walltime is None else nodes * jobs * min(until_cold, walltime) / 3600,
        worst_case=None if walltime is None else nodes * jobs * walltime / 3600,
        devices=_devices(engine.executor),
    )


def in_words(profile: WarmthProfile) -> list[tuple[str, str]]:
    """What a config means, as pairs of a heading and a sentence."""
    workers = "one for each core of a node"
    if profile.copies_per_node is not None:
        workers = f"{profile.copies_per_node} on each node, {profile.copies} in all"
    jobs = (
        f"{_count(profile.nodes_per_job, 'node')} a job, {_count(profile.max_jobs, 'job')} at most"
    )
    stays = "however long there is no task"
    if math.isfinite(profile.keep_warm):
        stays = f"for {_time(profile.keep_warm)} without any task"
    if profile.walltime is not None and profile.walltime <= profile.keep_warm:
        stays = (
            f"until its job ends after {_time(profile.walltime)}, which is sooner than keep_warm"
        )
    if math.isfinite(profile.endpoint_idle):
        stays += f"; the endpoint stops after {_time(profile.endpoint_idle)}, and starts again for the next task"
    said = [("copies of the state", f"{workers} ({jobs})"), ("stays warm", stays)]
    if profile.devices:
        said.insert(1, ("devices of a node's workers", ", ".join(profile.devices)))
    if profile.walltime is not None:
        drain = (
            "tasks that still run then are lost"
            if profile.drain is None
            else f"it takes no new tasks after {_time(profile.drain)}"
        )
        said.append(("a job ends", f"after {_time(profile.walltime)} at the latest; {drain}"))
    said.append(
        (
            "a worker that dies",
            f"is replaced, cold, within {_time(profile.restart)}; its task fails",
        )
    )
    said.append(
        (
            "a task",
            f"may take {_time(profile.task_timeout)}"
            if profile.task_timeout
            else "may take any time",
        )
    )
    return said + _costs(profile)


def _costs(profile: WarmthProfile) -> list[tuple[str, str]]:
    if profile.worst_case is None or profile.idle_hour is None or profile.idle_cost is None:
        return []
    worst = f"{_count(profile.worst_case, 'node-hour')}, if every job runs to its walltime; jobs that follow cost as much again"
    idle = f"{_count(profile.idle_hour, 'node-hour')} an hour; from the last task until cold, {_count(profile.idle_cost, 'node-hour')} at most"
    return [("being idle costs", idle), ("the worst case costs", worst)]


def _count(number: float, what: str) -> str:
    return f"{round(number, 2):,g} {what}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    """Seconds as people say them: 90 s, 10 min, 1 h 30 min."""
    if seconds < 120:
        return f"{seconds:g} s"
    hours, minutes, rest = int(seconds // 3600), int(seconds % 3600 // 60), seconds % 60
    return " ".join(
        [f"{hours} h"] * bool(hours)
        + [f"{minutes} min"] * bool(minutes)
        + [f"{rest:g} s"] * bool(rest)
    )


def _workers(executor: Any) -> int | None:
    """As many as a manager starts on a node, by the same rule."""
    cores = getattr(executor.provider, "cores_per_node", None) or exported(
        executor.provider, "PARSL_CORES"
    )
    if cores is None and not hasattr(executor.provider, "walltime"):
        cores = os.cpu_count()
    limits = [executor.max_workers_per_node]
    if cores is not None and executor.cores_per_worker > 0:
        limits.append(math.floor(cores / executor.cores_per_worker))
    memory = getattr(executor.provider, "mem_per_node", None)
    if memory and executor.mem_per_worker:
        limits.append(math.floor(memory / executor.mem_per_worker))
    if executor.available_accelerators:
        limits.append(len(executor.available_accelerators))
    return None if math.isinf(min(limits)) else int(min(limits))


def _devices(executor: Any) -> tuple[str, ...]:
    names = tuple(executor.available_accelerators)
    gpus = getattr(executor.provider, "gpus_per_node", None)
    if gpus and len(names) > gpus and names == tuple(str(number) for number in range(len(names))):
        # as Parsl does where there is nvidia-smi
        return tuple(str(number * gpus // len(names)) for number in range(len(names)))
    return names


def exports(provider: Any) -> dict[str, str]:
    """What a provider's ``worker_init`` exports, as far as that stands in lines of its own."""
    found = {}
    for line in re.findall(r"^\s*export\s+(.+)$", provider.worker_init, re.MULTILINE):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that goes on in the next line
            continue
        found.update(
            {
                name: value.rstrip(";")
                for name, equals, value in (word.partition("=") for word in words)
                if equals
            }
        )
    return found


def exported(provider: Any, name: str) -> float | None:
    """The number that a provider's ``worker_init`` exports under a name; None if there is none."""
    value = exports(provider).get(name, "")
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else None


def _seconds(provider: Any) -> int | None:
    """The walltime of a job; None where there is no limit, or what is written is none, of which a rule tells."""
    name = type(provider).__name__
    parts = str(getattr(provider, "walltime", "")).split(":")
    is_time = all(re.fullmatch(r" *\d{1,9} *", part) for part in parts) and len(parts) in (
        (3,) if name in NEED_HOURS else (1, 2, 3)
    )
    if not is_time or name not in _ASK_FOR_WALLTIME:
        return None
    hours, minutes, seconds = [0, 0, *map(int, parts)][-3:]
    return 3600 * hours + 60 * minutes + seconds
