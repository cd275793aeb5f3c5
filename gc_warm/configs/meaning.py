"""The meaning of a loaded config for warm state and for the bill.

All is read off the config's engine, provider and executor, as the endpoint's loader has made them,
so that it holds for any config. Where they decide by a rule of their own, such as how many workers
a manager starts, the same rule is followed here.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.configs import containers
from gc_warm.exceptions import ConfigError
from gc_warm.hooks import handover

# Providers that ask the scheduler for their walltime; others only take it.
_ASK_FOR_WALLTIME = (
    "SlurmProvider",
    "PBSProProvider",
    "TorqueProvider",
    "LSFProvider",
    "GridEngineProvider",
)
NEED_HOURS = ("SlurmProvider", "LSFProvider")
"""Providers whose walltime Parsl takes apart, as HH:MM:SS.

Others hand it on, and their schedulers also take seconds.
"""


_ON_ALL_NODES = re.compile(
    r"(?<![\w-])(srun|mpi(exec|run)\w*|aprun|[jlp]s?run|ibrun|brun|flux|blaunch|prterun|orterun"
    r"|pbsdsh|pdsh|clush|parallel)(?![\w-])"
)
_GPU_REQUEST = re.compile(
    r"(?:--gpus-per-node[= ]|--gpus-per-task[= ]|--gres[= ](?:\S*,)?gpu:|\bngpus="
    r"|(--gpus[= ]|-G ?))(?:([A-Za-z][\w.-]*)(?::(\d+))?|(\d+)\b)"
)
# a part of an NVIDIA GPU (MIG) has a name like mig-1g.5gb
_AMD = re.compile(r"(amd[_-]?)?(mi|gfx)\d", re.IGNORECASE)
_INTEL = re.compile(r"intel|xpu|pvc|ponte|(gpu[_-]?)?(max|flex)([_-]?\d|$)", re.IGNORECASE)
_COUNTED = {
    "SlurmProvider": {"PARSL_CORES": "cores_per_node", "PARSL_MEMORY_GB": "mem_per_node"},
    "CondorProvider": {"PARSL_CORES": "cores_per_slot", "PARSL_MEMORY_GB": "mem_per_slot"},
}
"""Settings that Parsl exports, by the names that they have then."""

_NUMBER_OF_MANAGERS = {
    "SrunLauncher": r"(?:--ntasks[= ]|-n ?)(\d+)",
    "MpiRunLauncher": r"-{1,2}(?:np?|c) (\d+)",
    "AprunLauncher": r"-n ?(\d+)",
    "JsrunLauncher": r"(?:--nrs[= ]|-n ?)(\d+)",
}
"""Options that override the number of managers with which a launcher starts its program."""

_MANAGERS_OF_A_NODE = {
    # Open MPI, which has other words, refuses more than one on a node of this launcher's hostfile
    "MpiExecLauncher": r"-{1,2}ppn[= ](\d+)",
    "MpiRunLauncher": r"(?:-{1,2}(?:ppn|npernode|N)[= ]|--map-by ppr:)(\d+)",
    "AprunLauncher": r"-N ?(\d+)",
    "JsrunLauncher": r"(?:--rs_per_host[= ]|-r ?)(\d+)",
}
"""Options by which a launcher fills a node before it goes to the next."""

_FOR_PBS = ("MpiExecLauncher", "GnuParallelLauncher")
"""Launchers that start all on the first node where PBS_NODEFILE names no other."""

_SIGNAL = re.compile(r"^#SBATCH\s(?:[^#\n]*\s)?--signal[= ]([RB]*:)?(\w+)(?:@(\d+))?", re.MULTILINE)
_HARMLESS = ("CONT", "18", "URG", "23", "WINCH", "28", "CHLD", "17")
_SIGNAL_EARLY = 60  # seconds by which Slurm may send one too soon
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_PRELOAD = re.compile(f"{_NAME}(?::{_NAME})?")


@dataclass(frozen=True)
class WarmthProfile:
    """The meaning of a config for warm state and for the bill.

    Attributes:
        copies_per_node: Workers on a node that has any, each with its own copy of the state; None
            if that depends on the node's cores.
        shared: What is loaded once on each node, in place of a copy for each worker.
        workers_per_manager: Workers that one manager starts; None if that depends on the cores.
        managers_per_job: Managers of one job.
        nodes_per_job: Nodes of one job.
        nodes_with_workers: Nodes of one job on which there are managers.
        max_jobs: Jobs at the same time, at most.
        copies: Copies of the state in all, at most.
        keep_warm: Seconds without tasks that state is kept, at least; infinite if their lack ends
            nothing.
        job_idle: Seconds without tasks after which jobs end; infinite if never.
        ends_beside_busy: Whether one job without tasks ends after that time though others are busy.
        endpoint_idle: Seconds without tasks after which the endpoint itself stops; infinite if
            never.
        walltime: Seconds that a job lives at most; None where there is no such limit.
        drain: Seconds after which a job takes no more tasks; None if none is given.
        task_timeout: Seconds after which a task is ended; None if there is no limit.
        task_limit: Seconds that a task has before endpoint or job end, whenever it begins, less
            what ``worker_init`` takes; infinite if they do not end it.
        part_of_node: Cores and GPUs that a job asks for on a node which it shares; None for what it
            does not say, and where it has nodes to itself.
        movement_limit: Seconds in which no task or result has moved, after which the endpoint
            stops though a task runs; infinite if never.
        restart: Seconds after which a worker that died is back, at most.
        idle_hour: Node-hours that an hour of idle, warm workers costs; None where nothing is
            billed.
        idle_cost: Node-hours from the last task until state is gone, at most.
        worst_case: Node-hours of all jobs that run to their walltime; None where nothing is billed.
            Where nodes are shared, a node is the part of it that a job asks for.
        devices: The device that each worker of a node is pinned to.
        overlap_jobs: Jobs beyond the maximum while jobs hand over; None if they do not.
        look: Seconds between two looks at whether another job is needed.
        status_interval: Seconds between two looks at which jobs have ended.
        ahead: Tasks that a node fetches beyond those that it runs, to give each to the worker that
            holds what it needs; None where workers take them in their order.
    """

    copies_per_node: int | None
    shared: tuple[str, ...]
    workers_per_manager: int | None
    managers_per_job: int
    nodes_per_job: int
    nodes_with_workers: int
    max_jobs: int
    copies: int | None
    keep_warm: float
    job_idle: float
    ends_beside_busy: bool
    endpoint_idle: float
    walltime: int | None
    drain: int | None
    task_timeout: float | None
    task_limit: float
    part_of_node: tuple[int | None, int | None]
    movement_limit: float
    restart: float
    idle_hour: float | None
    idle_cost: float | None
    worst_case: float | None
    devices: tuple[str, ...]
    overlap_jobs: int | None
    look: float
    status_interval: float
    ahead: int | None

    @property
    def drains(self) -> bool:
        """Whether a job stops taking tasks before it ends."""
        return self.drain is not None and (self.walltime is None or self.drain < self.walltime)


def warmth_profile(config: UserEndpointConfig) -> WarmthProfile:
    """Return the meaning of a loaded config.

    Args:
        config: The config, as `gc_warm.configs.loading.load` returns it.

    Raises:
        ConfigError: The config's engine has no workers that could be warm.
    """
    engine: Any = config.engine
    provider = _provider(engine)
    executor = engine.executor
    jobs = provider.max_blocks
    each = _workers(engine)
    managers, nodes_with_workers = _managers(engine, provider)
    endpoint_idle = config.idle_heartbeats_soft * config.heartbeat_period or math.inf
    job_idle = _job_idle(engine, provider)
    until_cold = _until_cold(config, job_idle, endpoint_idle)
    walltime = _seconds(provider)
    movement_limit = _movement_limit(config)
    bill = _bill(provider.nodes_per_block * jobs, walltime, until_cold)

    return WarmthProfile(
        copies_per_node=None if each is None else -(-each * managers // nodes_with_workers),
        shared=tuple(preloaded_on_node(provider)),
        workers_per_manager=each,
        managers_per_job=managers,
        nodes_per_job=provider.nodes_per_block,
        nodes_with_workers=nodes_with_workers,
        max_jobs=jobs,
        copies=None if each is None else each * managers * jobs,
        keep_warm=min(job_idle, endpoint_idle),
        job_idle=job_idle,
        ends_beside_busy=_ends_beside_busy(engine, provider),
        endpoint_idle=endpoint_idle,
        walltime=walltime,
        drain=executor.drain_period or None,
        task_timeout=exported(engine, "GC_TASK_TIMEOUT"),
        task_limit=_task_limit(provider, walltime, executor.drain_period, movement_limit),
        part_of_node=_part_of_a_node(provider),
        movement_limit=movement_limit,
        restart=executor.heartbeat_period,
        idle_hour=bill[0],
        idle_cost=bill[1],
        worst_case=bill[2],
        devices=_devices(executor, each),
        overlap_jobs=handover.overlap_jobs(provider.worker_init),
        look=engine._job_status_kwargs["strategy_period"],
        status_interval=provider.status_polling_interval,
        ahead=executor.prefetch_capacity if is_warm_first(provider) else None,
    )


def _provider(engine: Any) -> Any:
    provider = getattr(getattr(engine, "executor", None), "provider", None)
    if provider is None:
        raise ConfigError(
            f"{type(engine).__name__} starts no workers in jobs of their own; use "
            "GlobusComputeEngine"
        )
    return provider


@dataclass(frozen=True)
class Succession:
    """The way in which jobs of a config follow each other while there are tasks all the time.

    Attributes:
        lead: Seconds before a job drains at which the next one is asked for; 0 if it is asked for
            when the last one has ended.
        wait: Seconds that tasks wait between two jobs.
        hours: Node-hours of an hour, for one job at a time, with the overlap.
    """

    lead: float
    wait: float
    hours: float


def succession(
    profile: WarmthProfile, queue: float, load: float, hands_over: bool
) -> Succession | None:
    """Return how jobs follow each other, by what a start takes.

    Args:
        profile: The meaning of the config.
        queue: Seconds that a job waits in the queue.
        load: Seconds from a job's start until its workers are ready.
        hands_over: Whether to reckon with handover, where the config asks for it, or without.

    Returns:
        The succession; None if jobs do not drain.
    """
    life = profile.drain
    if life is None:
        return None

    has_room = hands_over and profile.max_jobs + (profile.overlap_jobs or 0) > 1
    if has_room:
        lead = handover.lead(queue + load, life, profile.look)
        from_end_to_request = -lead
    elif hands_over:  # the end is seen at the next look
        lead = 0.0
        from_end_to_request = profile.look
    else:  # on average
        lead = 0.0
        from_end_to_request = (profile.status_interval + profile.look) / 2

    wait = max(0.0, from_end_to_request + queue + load)
    hours = profile.nodes_per_job * life / (life + from_end_to_request + queue)
    return Succession(lead, wait, hours)


def in_words(
    profile: WarmthProfile, queue: float | None = None, load: float | None = None
) -> list[tuple[str, str]]:
    """Return the meaning of a config as pairs of a heading and a sentence.

    Args:
        profile: The meaning, as `warmth_profile` returns it.
        queue: Seconds that a job waits in the queue, if they are known.
        load: Seconds that a job's workers take to be ready, if they are known.
    """
    lines = [("copies of the state", _copies_in_words(profile))]
    if profile.shared:
        lines.append(("shared on a node", _shared_in_words(profile)))
    if profile.devices:
        lines.append(("devices of a node's workers", _devices_in_words(profile)))
    lines.append(("stays warm", _keep_warm_in_words(profile)))

    if profile.walltime is not None or profile.drains:
        lines.append(("a job ends", _job_end_in_words(profile)))
    if profile.overlap_jobs is not None and profile.drains:
        lines.append(("jobs hand over", _handover_in_words(profile, queue, load)))

    restart = f"is replaced, cold, within {_time(profile.restart)}; its task fails"
    lines.append(("a worker that dies", restart))
    lines.append(("a task", _task_in_words(profile)))
    if profile.ahead is not None:
        lines.append(("a task with a hint", _routing_in_words(profile)))
    return lines + _costs(profile)


def exports(provider: Any) -> dict[str, str]:
    """Return the variables that a provider's ``worker_init`` exports, by commands of their own.

    Args:
        provider: The provider of a loaded config.
    """
    variables = {}
    for line in re.findall(r"(?:^|;|&&)\s*export\s+(.+)$", provider.worker_init, re.MULTILINE):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that goes on in the next line
            continue

        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                variables[name] = value.rstrip(";")
    return variables


def exported(engine: Any, name: str) -> float | None:
    """Return the number that workers see in a variable, as far as the config says.

    Args:
        engine: The engine of a loaded config.
        name: The name of the variable.

    Returns:
        The number; None if there is none, or if the container of the workers hides it.
    """
    provider = engine.executor.provider
    if containers.hides(engine, name):
        return None

    given = counted(provider).get(name)
    if given is not None:
        return given
    value = exports(provider).get(name, "")
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else None


def counted(provider: Any) -> dict[str, float]:
    """Return the variables that Parsl exports below a ``worker_init``, for managers to count by.

    Args:
        provider: The provider of a loaded config.
    """
    settings = _COUNTED.get(type(provider).__name__, {})
    values = {name: getattr(provider, setting) for name, setting in settings.items()}
    return {name: value for name, value in values.items() if value is not None}


def preloaded(provider: Any) -> list[str]:
    """Return what a provider's ``worker_init`` has `gc_warm.worker.boot` preload.

    These are names of modules, ``my_model``, and of callables, ``my_model:load``.

    Args:
        provider: The provider of a loaded config.
    """
    return [word for word in _boot_words(provider) if _PRELOAD.fullmatch(word)]


def preloaded_on_node(provider: Any) -> list[str]:
    """Return what a provider's ``worker_init`` has loaded once on each node.

    These are names as `preloaded` returns them.

    Args:
        provider: The provider of a loaded config.
    """
    option = "--preload-node="
    words = [word for word in _boot_words(provider) if word.startswith(option)]
    specs = [spec for word in words for spec in word.removeprefix(option).split(",")]
    return [spec for spec in specs if _PRELOAD.fullmatch(spec)]


def is_warm_first(provider: Any) -> bool:
    """Tell whether tasks go to workers that hold what they need, by `gc_warm.worker.boot`.

    Args:
        provider: The provider of a loaded config.
    """
    return "--warm-first" in _boot_words(provider)


def all_preloads(provider: Any) -> list[str]:
    """Return what `preloaded_on_node` and `preloaded` do, in the order in which it is loaded.

    Args:
        provider: The provider of a loaded config.
    """
    return preloaded_on_node(provider) + preloaded(provider)


def _boot_words(provider: Any) -> list[str]:
    """Return the words behind `gc_warm.worker.boot` in a provider's ``worker_init``."""
    script = re.sub(r"^\s*#.*$", "", provider.worker_init, flags=re.MULTILINE)
    return " ".join(re.findall(r"gc_warm\.worker\.boot\b([^)|;&\n]*)", script)).split()


def module_folders(provider: Any) -> list[str]:
    """Return the first folders in which workers look for modules, as far as they are written.

    They are those that the ``worker_init`` puts into PYTHONPATH, up to one that cannot be told or
    is not on this machine: that may have anything.

    Args:
        provider: The provider of a loaded config.
    """
    written = exports(provider).get("PYTHONPATH", "").removesuffix("${PYTHONPATH:+:$PYTHONPATH}")
    folders: list[str] = []
    for folder in written.split(":"):
        is_told = folder.startswith("/") and not re.search(r"[$`*?~]", folder)
        if not is_told or not os.path.isdir(folder):
            break
        folders.append(folder)
    return folders


def starts_on_all_nodes(script: str) -> bool:
    """Tell whether a command, or a line of a script, starts a program on each node of a job.

    Args:
        script: The command.
    """
    return _ON_ALL_NODES.search(script) is not None


def _managers(engine: Any, provider: Any) -> tuple[int, int]:
    """Return the number of managers of a job, and on how many of its nodes they are.

    Parsl asks launchers for one manager a node. SimpleLauncher and WrappedLauncher start one in
    all, SingleNodeLauncher starts all of them on the first node.
    """
    nodes = max(provider.nodes_per_block, 1)
    launcher = getattr(provider, "launcher", None)
    kind = type(launcher).__name__
    if type(engine).__name__ == "GlobusMPIEngine":
        return 1, 1
    if kind not in ("SimpleLauncher", "WrappedLauncher", "SingleNodeLauncher"):
        return _managers_of_program(launcher, kind, provider, nodes)

    prefix = getattr(launcher, "prepend", "")
    options = engine.container_cmd_options or ""
    if starts_on_all_nodes(f"{prefix} {engine.executor.launch_cmd} {options}"):
        return nodes, nodes
    return (nodes if kind == "SingleNodeLauncher" else 1), 1


def _managers_of_program(launcher: Any, kind: str, provider: Any, nodes: int) -> tuple[int, int]:
    """Return the same for a launcher that starts managers by a program, such as srun.

    Slurm's ``--ntasks-per-node`` is a limit, beside the number that srun is given, and changes
    nothing.
    """
    options = str(getattr(launcher, "overrides", ""))
    managers = _last_number(_NUMBER_OF_MANAGERS.get(kind), options) or nodes
    each = _last_number(_MANAGERS_OF_A_NODE.get(kind), options) or math.ceil(managers / nodes)

    if misses_node_file(provider):
        return (managers if kind == "MpiExecLauncher" else 1), 1
    return managers, min(math.ceil(managers / each), nodes)


def misses_node_file(provider: Any) -> bool:
    """Tell whether a provider's launcher looks for nodes in a file that only PBS has.

    Args:
        provider: The provider of a loaded config.
    """
    is_pbs = type(provider).__name__ in ("PBSProProvider", "TorqueProvider")
    needs_file = type(getattr(provider, "launcher", None)).__name__ in _FOR_PBS
    return needs_file and not is_pbs and "PBS_NODEFILE" not in provider.worker_init


def _last_number(option: str | None, options: str) -> int | None:
    """Return the number behind an option that counts; None if there is none above 0."""
    found = re.findall(rf"(?<!\S){option}(?!\w)", options) if option else []
    return int(found[-1]) or None if found else None


def _ends_beside_busy(engine: Any, provider: Any) -> bool:
    """Tell whether one job ends for lack of tasks though others have some."""
    scaling = engine._job_status_kwargs
    is_by_job = scaling["strategy"] == "htex_auto_scale" and math.isfinite(scaling["max_idletime"])
    return is_by_job and provider.max_blocks > max(provider.min_blocks, 1)


def _movement_limit(config: UserEndpointConfig) -> float:
    """Return the seconds in which nothing moves after which the endpoint stops, tasks or not.

    It stops when more heartbeats than the limit have passed without a task or a result.
    """
    soft = config.idle_heartbeats_soft
    if not soft:
        return math.inf
    return float((max(soft + 1, config.idle_heartbeats_hard) + 1) * config.heartbeat_period)


def _task_limit(
    provider: Any, walltime: int | None, drain: int | None, movement_limit: float
) -> float:
    """Return the seconds that a task has for certain, whenever it begins."""
    if walltime is None or not drain or drain >= walltime:
        return movement_limit

    signal = ending_signal(provider)
    end = walltime - signal[1] if signal else walltime
    return min(movement_limit, max(end - drain, 0))


def ending_signal(provider: Any) -> tuple[str, int] | None:
    """Return the signal by which Slurm ends a job before its walltime.

    Without ``B:``, the processes of job steps get it, which only srun makes, and neither a manager
    nor its workers catch one. With it the job's shell does, which ends of it, unless it has a trap.

    Args:
        provider: The provider of a loaded config.

    Returns:
        The signal, and the seconds before the walltime, at most; None if there is no such signal.
    """
    if type(provider).__name__ != "SlurmProvider":
        return None

    signals = _SIGNAL.findall(provider.scheduler_options)
    if not signals:
        return None

    for_shell, name, seconds = signals[-1]
    signal = name.upper().removeprefix("SIG")
    has_steps = type(provider.launcher).__name__ in ("SrunLauncher", "SrunMPILauncher")
    has_trap = re.search(r"^\s*trap\s", provider.worker_init, re.MULTILINE)
    reaches = not has_trap if "B" in for_shell else has_steps
    if signal in _HARMLESS or not reaches:
        return None
    return signal if signal.isdigit() else f"SIG{signal}", int(seconds or 60) + _SIGNAL_EARLY


def _job_idle(engine: Any, provider: Any) -> float:
    """Return the seconds without tasks after which jobs end; infinite if their lack ends none."""
    scaling = engine._job_status_kwargs
    if provider.min_blocks or scaling["strategy"] in ("none", None):
        return math.inf

    idle: float = scaling["max_idletime"]
    return idle


def _until_cold(config: UserEndpointConfig, job_idle: float, endpoint_idle: float) -> float:
    """Return the seconds from the last task until state is gone, at most.

    The lack of tasks is noticed once in a period: of heartbeats by the endpoint, which stops, or of
    the scaling strategy, which ends jobs.
    """
    if endpoint_idle <= job_idle:
        return float(endpoint_idle + config.heartbeat_period)

    engine: Any = config.engine
    period: float = engine._job_status_kwargs["strategy_period"]
    return job_idle + period


def _bill(
    nodes: int, walltime: int | None, until_cold: float
) -> tuple[float | None, float | None, float | None]:
    """Return the node-hours of an idle hour, of an end for lack of tasks, and of whole jobs."""
    if walltime is None:
        return None, None, None
    return float(nodes), nodes * min(until_cold, walltime) / 3600, nodes * walltime / 3600


def _workers(engine: Any) -> int | None:
    """Return the number of workers on a node, by the rule of the manager that starts them.

    None means that it depends on the node's cores.
    """
    executor = engine.executor
    cores = exported(engine, "PARSL_CORES")
    if cores is None and type(executor.provider).__name__ == "LocalProvider":
        cores = os.cpu_count()

    limits = [
        executor.max_workers_per_node,
        _fitting(cores, executor.cores_per_worker),
        _fitting(exported(engine, "PARSL_MEMORY_GB") or None, executor.mem_per_worker),
    ]
    if executor.available_accelerators:
        limits.append(len(executor.available_accelerators))

    workers = min(limits)
    return None if math.isinf(workers) else int(workers)


def _fitting(room: float | None, each: float | None) -> float:
    """Return how many parts of a size fit; infinite if room or size is unknown, or no size at all.

    A size of zero, a negative one and NaN are none, as for a manager.
    """
    if room is None or not each or not each > 0:
        return math.inf

    number = room / each
    return number if math.isinf(number) else math.floor(number)


def requested_gpus(provider: Any) -> tuple[int | None, str]:
    """Return how many GPUs of a node a job asks for by number, and whose they are.

    Args:
        provider: The provider of a loaded config.

    Returns:
        The number, None if the job does not say, and the maker: ``AMD`` or ``Intel``, where the
        job, or the ``worker_init`` by `gc_warm.worker.boot`, names it, and else ``NVIDIA``.
    """
    scheduler_options = getattr(provider, "scheduler_options", "")
    select_options = getattr(provider, "select_options", "")
    gres = getattr(provider, "gres", "")
    directives = re.findall(r"^#(?:SBATCH|PBS) .*$", scheduler_options, re.MULTILINE)
    options = "\n".join([*directives, select_options, f"--gres={gres}"])

    requested = getattr(provider, "gpus_per_node", None) or None
    kind = ""
    requests = _GPU_REQUEST.findall(options)
    if requests:
        # the last request counts, after the provider's own
        of_all_nodes, kind, of_kind, number = requests[-1]
        nodes = max(provider.nodes_per_block, 1) if of_all_nodes else 1
        requested = requested or int(of_kind or number or 1) // nodes

    if _AMD.match(kind) or leaves_rocr_only(provider):
        return requested, "AMD"
    return requested, "Intel" if _INTEL.match(kind) else "NVIDIA"


def leaves_rocr_only(provider: Any) -> bool:
    """Tell whether workers keep of their pins what AMD's GPUs need, by `gc_warm.worker.boot`.

    Args:
        provider: The provider of a loaded config.
    """
    return "--amd-gpus" in _boot_words(provider)


def _part_of_a_node(provider: Any) -> tuple[int | None, int | None]:
    """Return the cores and GPUs that a job asks for of a node that it shares, as far as it says."""
    is_slurm = type(provider).__name__ == "SlurmProvider"
    if not is_slurm or re.search(r"^#SBATCH .*--exclusive", provider.scheduler_options, re.M):
        return None, None
    return provider.cores_per_node or None, requested_gpus(provider)[0]


def divided_devices(names: Sequence[str], gpus: int) -> tuple[str, ...]:
    """Return the device of each worker on a node with so many GPUs and ``nvidia-smi``.

    Parsl divides a name that is a number by the workers of a GPU, rounded down.

    Args:
        names: The entries of ``available_accelerators``, one for each worker.
        gpus: The GPUs of the node.
    """
    share = len(names) // gpus
    return tuple(
        str(int(name) // share) if share and re.fullmatch(r"\d+", name) else name for name in names
    )


def _devices(executor: Any, workers: int | None) -> tuple[str, ...]:
    """Return the device of each worker; with fewer GPUs than workers, the GPUs are shared."""
    is_local = type(executor.provider).__name__ == "LocalProvider"
    gpus_here = _gpus_here() if is_local and executor.available_accelerators else 0
    if gpus_here:
        return divided_devices(executor.available_accelerators[:workers], gpus_here)

    names = tuple(executor.available_accelerators)[:workers]
    gpus, maker = requested_gpus(executor.provider)
    return divided_devices(names, gpus) if gpus and maker == "NVIDIA" else names


def _seconds(provider: Any) -> int | None:
    """Return the walltime of a job; None where there is no limit.

    None is returned also for a walltime that cannot be read, of which a rule tells.
    """
    name = type(provider).__name__
    if name not in _ASK_FOR_WALLTIME:
        return None

    parts = str(getattr(provider, "walltime", "")).split(":")
    lengths = (3,) if name in NEED_HOURS else (1, 2, 3)
    if len(parts) not in lengths or not all(re.fullmatch(r" *\d{1,9} *", part) for part in parts):
        return None

    hours, minutes, seconds = [0, 0, *map(int, parts)][-3:]
    return 3600 * hours + 60 * minutes + seconds


def _gpus_here() -> int:
    """Return the number of this machine's GPUs, counted as Parsl does: NVIDIA's, or none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True, timeout=30)
        return listed.stdout.count(b"\n")
    return 0


def _copies_in_words(profile: WarmthProfile) -> str:
    is_on_first_only = profile.nodes_with_workers < profile.nodes_per_job
    if profile.copies_per_node is None:
        workers = "one for each core of a node"
    elif is_on_first_only:
        of_each = "" if profile.max_jobs == 1 else " of each job"
        workers = f"{profile.copies} in all, on the first node{of_each}"
    else:
        workers = f"{profile.copies_per_node} on each node, {profile.copies} in all"

    nodes = _count(profile.nodes_per_job, "node")
    jobs = _count(profile.max_jobs, "job")
    return f"{workers} ({nodes} a job, {jobs} at most)"


def _shared_in_words(profile: WarmthProfile) -> str:
    managers = -(-profile.managers_per_job // profile.nodes_with_workers)
    copies = "one copy" if managers == 1 else f"{managers} copies"
    workers = "its workers"
    if profile.copies_per_node is not None:
        workers = _count(profile.copies_per_node, "worker")
    what = ", ".join(profile.shared)
    return f"{what}: {copies} on each node, for {workers}, where it can be forked"


def _devices_in_words(profile: WarmthProfile) -> str:
    most = max(profile.devices.count(device) for device in profile.devices)
    shared = f"; {most} workers share a device, and its memory" if most > 1 else ""
    return f"{', '.join(profile.devices)}{shared}"


def _keep_warm_in_words(profile: WarmthProfile) -> str:
    if profile.walltime is not None and profile.walltime <= profile.keep_warm:
        ends = _time(profile.walltime)
        stays = f"until its job ends after {ends}, which is sooner than its idle time"
    elif math.isfinite(profile.keep_warm):
        stays = f"for {_time(profile.keep_warm)} without any task"
    else:
        stays = "however long there is no task"

    if profile.ends_beside_busy and math.isfinite(profile.job_idle):
        idle = _time(profile.job_idle)
        stays += f"; a job without tasks ends after {idle} though others are busy"
    if not math.isfinite(profile.endpoint_idle):
        return stays
    idle = _time(profile.endpoint_idle)
    return f"{stays}; the endpoint stops after {idle}, and starts again for the next task"


def _job_end_in_words(profile: WarmthProfile) -> str:
    drain = "tasks that still run then are lost"
    if profile.drains and profile.drain is not None:
        drain = f"it takes no new tasks after {_time(profile.drain)}"
        if profile.overlap_jobs is None:
            drain += ", and what comes then can wait for the last that it has"

    if profile.walltime is None:
        return f"with the last task that it has then: {drain}"
    return f"after {_time(profile.walltime)} at the latest; {drain}"


def _handover_in_words(profile: WarmthProfile, queue: float | None, load: float | None) -> str:
    """Return when the next job is asked for, and what that costs beside stock."""
    ours = succession(profile, queue or 0.0, load or 0.0, hands_over=True)
    stock = succession(profile, queue or 0.0, load or 0.0, hands_over=False)
    assert ours is not None
    assert stock is not None
    assert profile.overlap_jobs is not None

    if not ours.lead:
        return (
            "not before the last has ended, since there is at most one: tasks wait for the start "
            "of the next; with overlap_jobs, it is asked for before that"
        )
    most = handover.lead(math.inf, profile.drain or 0, profile.look)
    when = "the next is asked for before one drains"
    if profile.overlap_jobs < profile.max_jobs:
        when += f", while there are fewer than {profile.max_jobs + profile.overlap_jobs} jobs"
    if queue is None and load is None:
        dearest = profile.drain / (profile.drain - most) if profile.drain else 1
        return (
            f"{when}, by what starts have taken and {_time(round(most))} at most, which is up to "
            f"{dearest:.2g} times the node-hours; --with load_seconds=... --with "
            "queue_seconds=... says how many"
        )

    costs = (
        f"steady use costs {_hours(profile, ours.hours)} an hour for each job, where it would be "
        f"{_hours(profile, stock.hours)} with tasks that wait {_time(round(stock.wait))} after "
        "each job"
    )
    wait = f", and tasks wait {_time(round(ours.wait))} for it" if ours.wait else ""
    return f"{when}, by {_time(round(ours.lead))}{wait}; {costs}"


def _task_in_words(profile: WarmthProfile) -> str:
    """Return how long a task may take, and what ends one that takes longer.

    A time-out of tasks counts if it strikes first.
    """
    limit = profile.task_limit
    if profile.task_timeout and profile.task_timeout <= limit:
        return f"may take {_time(profile.task_timeout)}"
    if math.isinf(limit):
        return "may take any time" if profile.walltime is None else "may take what its job has left"

    if limit == profile.movement_limit:
        why = "if nothing else moves meanwhile, the endpoint stops then (idle_heartbeats_hard)"
        return f"may take {_time(limit)}: {why}"
    return (
        f"may take {_time(limit)}, less what worker_init takes: a longer one is lost if its job "
        "ends first"
    )


def _routing_in_words(profile: WarmthProfile) -> str:
    if not profile.ahead:
        return "goes to a free worker: none is fetched ahead for one that holds what it needs"
    beyond = _count(profile.ahead, "task")
    return (
        "goes to the worker of its node that holds what it needs; for that, a node takes "
        f"{beyond} more than it has workers"
    )


def _costs(profile: WarmthProfile) -> list[tuple[str, str]]:
    """Return the lines about the bill; none where nothing is billed."""
    if profile.worst_case is None or profile.idle_hour is None or profile.idle_cost is None:
        return []

    an_hour = _hours(profile, profile.idle_hour)
    until_cold = _hours(profile, profile.idle_cost)
    worst = _hours(profile, profile.worst_case)
    idle = f"{an_hour} an hour; from the last task until cold, {until_cold} at most"
    worst = f"{worst}, if every job runs to its walltime; jobs that follow cost as much again"
    return [("being idle costs", idle), ("the worst case costs", worst)]


def _hours(profile: WarmthProfile, nodes: float) -> str:
    """Return hours of nodes, or of the parts that jobs ask for, in words."""
    parts = zip(profile.part_of_node, ("core-hour", "GPU-hour"), strict=True)
    asked = [_count(number * nodes, unit) for number, unit in parts if number]
    return " and ".join(asked) or _count(nodes, "node-hour")


def _count(number: float, what: str) -> str:
    return f"{round(number, 2):,g} {what}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    """Return seconds as people say them: 90 s, 10 min, 1 h 30 min."""
    if seconds < 120:
        return f"{seconds:g} s"

    hours = int(seconds // 3600)
    minutes = int(seconds % 3600 // 60)
    rest = seconds % 60
    parts = []
    if hours:
        parts.append(f"{hours} h")
    if minutes:
        parts.append(f"{minutes} min")
    if rest:
        parts.append(f"{rest:g} s")
    return " ".join(parts)
