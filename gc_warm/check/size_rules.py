"""Rules for how many workers there are, on which nodes, and whether they fit there."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any

from gc_warm.check.config_subjects import (
    SCALING,
    WORKERS,
    Workers,
    first,
    shown,
    starts_on_all_nodes,
)
from gc_warm.check.rules import Fix
from gc_warm.configs import meaning
from gc_warm.configs.repairs import ENGINE, PROVIDER

_BINDS_STEP = re.compile(r"(?<!\S)(--cpu-bind[= ]\S*(cores|threads)|--exact|--exclusive)(?!\S)")
_LAUNCHERS = {"SlurmProvider": "SrunLauncher", "PBSProProvider": "MpiExecLauncher"}


@WORKERS.rule("GCW004", "warning")
def workers_unset(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Nobody says how many workers a node has.

    Then it has one for each core, and each has its own copy of the state: 64 copies of a model on a
    node of 64 cores, and as many cold loads before all of them are warm.
    """
    options = ("max_workers_per_node", "cores_per_worker", "mem_per_worker")
    is_chosen = any(config.written(*ENGINE, name) is not None for name in options)
    if is_chosen or config.is_mpi or config.executor.available_accelerators:
        return

    cores = config.cores
    state_gb = config.numbers.state_gb
    in_pods = type(config.provider).__name__ == "KubernetesProvider"
    number = "a worker for each core"
    if cores:
        number = f"{cores:g} workers"
    elif in_pods:
        number += f", of all that the machine has and not of max_cpu {config.provider.max_cpu:g},"
    copies = f", {cores * state_gb:g} GB of state" if cores and state_gb else ""

    text = (
        f"max_workers_per_node is not given: {number} on a node{copies}; "
        "say how many copies of the state a node is to have"
    )
    yield ENGINE, text


@WORKERS.rule("GCW005", "error")
def not_positive(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A number of workers, cores, nodes or jobs that is zero or negative.

    `max_workers_per_node: 0` means a worker for each core. A negative number gives no worker at
    all, and tasks wait for ever without an error; so do jobs of zero nodes. With `cores_per_worker:
    0`, or .nan, the manager divides by it, and ends. A `mem_per_worker` that is not above 0 counts
    as not given: a warning. With `strategy: none` there are as many jobs as `init_blocks`, and
    never another.
    """
    for name in ("max_workers_per_node", "cores_per_worker", "max_workers_per_block"):
        value = config.written(*ENGINE, name)
        if value is not None and not value > 0:
            is_default = name == "max_workers_per_node" and value == 0
            means = "means one for each core" if is_default else "leaves no worker"
            yield (*ENGINE, name), f"{name} {shown(value)} {means}; write a number above 0"

    each = config.written(*ENGINE, "mem_per_worker")
    if each is not None and not each > 0:
        text = (
            f"mem_per_worker {shown(each)} limits nothing; write a number above 0, or leave it out"
        )
        yield (*ENGINE, "mem_per_worker"), text, "warning"

    for name in ("nodes_per_block", "max_blocks"):
        value = getattr(config.provider, name, 1)
        if value < 1:
            text = f"{name} {value!r} leaves no worker, and tasks wait for ever; write 1 or more"
            yield (*PROVIDER, name), text, Fix(f"engine.provider.{name}", 1)

    strategy = config.engine._job_status_kwargs["strategy"]
    first_jobs = config.provider.init_blocks
    if strategy in ("none", None) and first_jobs < 1:
        text = (
            f"strategy {strategy} starts as many jobs as init_blocks says, {first_jobs}, "
            "and no other: no worker; write strategy: simple"
        )
        yield (*SCALING, "strategy"), text, Fix("engine.job_status_kwargs.strategy", "simple")


@WORKERS.rule("GCW006", "error")
def no_room(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Workers for which a node has no room.

    The manager divides a node's cores by `cores_per_worker`, which is 1 unless given, and its
    memory by `mem_per_worker`, and rounds down: there are no more workers, whatever
    `max_workers_per_node` says, which is a warning. With zero workers it stays and says nothing,
    and tasks wait for ever.
    """
    node = "this machine" if config.is_local else "a node"
    level = "warning" if config.is_local else "error"
    most = config.written(*ENGINE, "max_workers_per_node")
    rooms = (("cores_per_worker", config.cores, "cores"), ("mem_per_worker", config.memory, "GB"))

    for name, room, unit in rooms:
        each = getattr(config.executor, name)
        if not each or not each > 0 or room is None:
            continue

        number = math.floor(room / each)
        if number < 1:
            text = (
                f"{name} {each:g} is more than the {room:.4g} {unit} of {node}: "
                "there would be no workers"
            )
            yield (*ENGINE, name), text, level
        elif most and number < most and not (config.is_local or config.is_mpi):
            text = (
                f"max_workers_per_node {most}, and {name} {each:g}: the {room:.4g} {unit} of a "
                f"node are enough for {number}, and no others will start"
            )
            yield (*ENGINE, "max_workers_per_node"), text, "warning"


@WORKERS.rule("GCW007", "error")
def affinity(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Workers that cannot be bound to cores as asked.

    An unknown `cpu_affinity` ends the manager at its start. A list that has not one entry for each
    worker, or has an entry without cores, or more workers than cores, ends each worker at its
    start, over and over, and tasks wait for ever.
    """
    value = str(config.executor.cpu_affinity).lower()
    if value == "none":
        return

    place = (*ENGINE, "cpu_affinity")
    workers = config.profile.workers_per_manager
    if value.startswith("list"):
        entries = value.split(":")[1:]
        if not all(re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", entry) for entry in entries):
            text = (
                f"cpu_affinity {value!r} is not of the form list:0-1:2-3, "
                "with the cores of each worker"
            )
            yield place, text
        elif workers is not None and len(entries) != workers:
            number = len(entries)
            text = f"cpu_affinity {value!r} is for {number} workers, and a node has {workers}"
            yield place, text
        elif not all(map(_names_cores, entries)):
            text = f"cpu_affinity {value!r} has a worker without cores; write low-high"
            yield place, text
    elif value not in ("block", "alternating", "block-reverse"):
        text = (
            f"cpu_affinity {value!r} is unknown; "
            "there are none, block, block-reverse, alternating, and list:..."
        )
        yield place, text
        return

    # a worker is bound to what it may run on, whatever its manager counts
    bindable = len(os.sched_getaffinity(0)) if config.is_local else None
    cores = first(getattr(config.provider, "cores_per_node", None), bindable)
    if workers is not None and cores is not None and workers > cores:
        text = (
            f"cpu_affinity {value!r} needs a core for each worker: "
            f"{workers} workers, {cores:g} cores"
        )
        yield place, text


def _names_cores(entry: str) -> bool:
    """Tell whether an entry of a list of cores names any: 7-0 is a range of none."""
    ranges = [part.partition("-") for part in entry.split(",")]
    return any(not dash or int(low) <= int(high) for low, dash, high in ranges)


@WORKERS.rule("GCW039", "warning")
def one_core_step(config: Workers) -> Iterator[tuple[Any, ...]]:
    """All workers of a node share one core.

    Since Slurm 22.05, `srun` does not take over how many cores a job has for each task: a step has
    all of them, unless it is to be bound (`--cpu-bind=cores`) or to leave room for others
    (`--exact`, `--exclusive`). Then a manager and its workers have one core, unless the overrides
    say `-c` with the cores of a node; and with a `cpu_affinity`, workers end at their start.
    """
    launcher: Any = getattr(config.provider, "launcher", None)
    if type(launcher).__name__ != "SrunLauncher" or config.cores == 1:
        return

    binds = _BINDS_STEP.search(launcher.overrides)
    says_cores = re.search(r"(?<!\S)(-c *\d|--cpus-per-task[= ]\d)", launcher.overrides)
    if binds and not says_cores and "SRUN_CPUS_PER_TASK" not in config.provider.worker_init:
        number = "the cores of a node" if config.cores is None else f"{config.cores:g}"
        text = (
            f"overrides {launcher.overrides!r}: with {binds[1]} and no -c, all workers of a node "
            f"share one core; write -c and {number} before it"
        )
        yield (*PROVIDER, "launcher", "overrides"), text


@WORKERS.rule("GCW010", "error")
def one_node_launcher(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A job of several nodes, of which one is used.

    SingleNodeLauncher, the default, starts all managers on the job's first node, and SimpleLauncher
    starts one manager there. The other nodes are billed and idle, and with SingleNodeLauncher the
    first has as many times the copies of the state. MpiExecLauncher knows no other node where there
    is no PBS_NODEFILE, and overrides that fill nodes (`--ppn 2`) leave others out. Nothing is said
    of a SimpleLauncher whose `worker_init` starts a program on all nodes, such as a server that the
    workers share.
    """
    profile = config.profile
    nodes = profile.nodes_per_job
    launcher: Any = getattr(config.provider, "launcher", None)
    if profile.nodes_with_workers == nodes or config.is_local or config.is_mpi:
        return

    kind = type(launcher).__name__
    better = _LAUNCHERS.get(type(config.provider).__name__, "an MPI launcher")
    place = (*PROVIDER, "launcher")
    given = f"nodes_per_block {nodes} with {kind}"
    fixes = [Fix("engine.provider.launcher.type", better)] if better in _LAUNCHERS.values() else []

    if kind == "SingleNodeLauncher":
        yield place, f"{given}: all {nodes} managers on the first node; use {better}", *fixes
    elif kind == "SimpleLauncher" and not starts_on_all_nodes(config.provider.worker_init):
        yield place, f"{given}: one manager, on the first node; use {better}", *fixes
    elif kind == "WrappedLauncher":
        unless = f"unless {launcher.prepend!r} starts one on each node"
        yield place, f"{given}: one manager, {unless}; use {better}", "warning"
    elif meaning.misses_node_file(config.provider):
        why = "it knows other nodes than the first by PBS_NODEFILE only, which is not there"
        yield place, f"{given}: {why}; use {better}", *fixes
    elif kind != "SimpleLauncher":
        left = nodes - profile.nodes_with_workers
        text = f"its overrides {launcher.overrides!r} leave {left} without a manager; change them"
        yield place, f"{given}: {text}"


@WORKERS.rule("GCW017", "warning")
def prefetch(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks wait behind others on one node while workers of another are free.

    With `prefetch_capacity` above 0, a manager takes more tasks than it has workers. They stay
    there, also behind a cold load, and cannot be warmed up node by node. Where all workers belong
    to one manager, it does no harm, and with `warm_first` it is what workers choose from.
    """
    managers = config.profile.max_jobs * config.profile.managers_per_job
    number = config.executor.prefetch_capacity

    if number > 0 and managers > 1 and config.profile.ahead is None:
        text = (
            f"prefetch_capacity {number}: tasks wait on one of {managers} nodes "
            "though others are free; set it to 0"
        )
        yield (*ENGINE, "prefetch_capacity"), text, Fix("engine.prefetch_capacity", 0)


@WORKERS.rule(
    "GCW020",
    "error",
    "read in parsl/executors/high_throughput/process_worker_pool.py: "
    "each worker is a process of its own",
)
def state_too_big(config: Workers) -> Iterator[tuple[Any, ...]]:
    """The copies of the state do not fit into a node.

    Every worker has its own copy. When memory is out, the kernel kills a worker, and an idle one
    can take its manager with it.
    """
    each = config.numbers.state_gb
    workers = config.profile.copies_per_node
    memory = config.memory_limit

    if each and workers and memory and workers * each > memory:
        fitting = math.floor(memory / each)
        remedy = f"; {fitting} would fit" if fitting else ""
        is_pod = type(config.provider).__name__ == "KubernetesProvider"
        room = "a pod (max_mem)" if is_pod else "a node"
        text = (
            f"{workers} workers with {each:g} GB of state each need {workers * each:g} GB, "
            f"and {room} has {memory:.4g}{remedy}"
        )
        yield (*ENGINE, "max_workers_per_node"), text
