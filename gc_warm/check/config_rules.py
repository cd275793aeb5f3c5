"""Rules for the YAML of a user endpoint: what in it makes state cold, loses tasks, or gives no workers at all.

Each rule is a thing that the endpoint's loader lets pass. What it claims has been seen on the real
engine, or is read in the source that it names; the versions are those that this package asks for.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parsl.providers
import psutil
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.engines.globus_compute import JobStatusPollerKwargs
from parsl.jobs.strategy import Strategy

from gc_warm.check.rules import Finding, Rule, RuleSet, is_silenced
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import loading, meaning
from gc_warm.exceptions import ConfigError

_ENGINE = ("engine",)
_PROVIDER = ("engine", "provider")
_SCALING = ("engine", "job_status_kwargs")
_ON_ALL_NODES = re.compile(
    r"\b(srun|mpi(exec|run)\w*|aprun|[jlp]s?run|ibrun|brun|flux|blaunch|prterun|orterun|pbsdsh|pdsh|clush|parallel)\b"
)


@dataclass(frozen=True)
class Examined:
    """What the rules say of a config.

    Attributes:
        findings: All that are not silenced, the worst first.
        config: What the endpoint makes of it; None where it makes nothing, or nothing that can be
            relied on.
    """

    findings: list[Finding]
    config: UserEndpointConfig | None


@dataclass(frozen=True)
class _Written:
    """A config as it is written."""

    document: Any
    root: yaml.Node | None
    refusal: tuple[int, str] | None

    @property
    def engine(self) -> Mapping[str, Any]:
        """The engine's section; empty if there is none."""
        engine = self.document.get("engine") if isinstance(self.document, dict) else None
        return engine if isinstance(engine, dict) else {}


class _Workers:
    """What the endpoint makes of a config whose engine starts workers in jobs."""

    def __init__(
        self, document: Mapping[str, Any], config: UserEndpointConfig, numbers: Numbers
    ) -> None:
        self.document, self.config, self.numbers = document, config, numbers
        self.engine: Any = config.engine
        self.executor = self.engine.executor
        self.provider = self.executor.provider
        self.is_local = type(self.provider).__name__ == "LocalProvider"
        self.is_mpi = type(self.engine).__name__ == "GlobusMPIEngine"
        self.profile = meaning.warmth_profile(config)

    def written(self, *place: str) -> Any:
        """The value at a place of the YAML; None if there is none."""
        found: Any = self.document
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    @property
    def max_idletime(self) -> float:
        """Infinite where the lack of tasks ends no job."""
        return self.profile.job_idle

    @property
    def cores(self) -> float | None:
        """Of a node, as its manager will count them; None if only the node knows."""
        return _first(
            getattr(self.provider, "cores_per_node", None),
            meaning.exported(self.provider, "PARSL_CORES"),
            self.cores_here,
        )

    @property
    def cores_here(self) -> int | None:
        """Of this machine, where it is the node."""
        return len(os.sched_getaffinity(0)) if self.is_local else None

    @property
    def memory(self) -> float | None:
        """Of a node in GB, as its manager will count it, at most; None if only the node knows."""
        here = psutil.virtual_memory().total / 2**30 if self.is_local else None
        return _first(
            getattr(self.provider, "mem_per_node", None),
            meaning.exported(self.provider, "PARSL_MEMORY_GB"),
            here,
        )

    @property
    def gpus(self) -> int | None:
        """NVIDIA GPUs of a node, as far as the job asks for them by number."""
        directives = re.findall(
            r"^#(?:SBATCH|PBS) .*$", getattr(self.provider, "scheduler_options", ""), re.MULTILINE
        )
        asked = [
            *directives,
            getattr(self.provider, "select_options", ""),
            f"--gres={getattr(self.provider, 'gres', '')}",
        ]
        found = re.findall(
            r"(?:--gpus-per-node[= ]|--gres[= ]gpu:|\bngpus=)(?:([A-Za-z][\w.-]*):)?(\d+)\b",
            "\n".join(asked),
        )
        # AMD's
        numbers = [int(number) for kind, number in found if not kind.lower().startswith("mi")]
        return getattr(self.provider, "gpus_per_node", None) or (numbers[-1] if numbers else None)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


_WRITTEN: RuleSet[_Written] = RuleSet()
_WORKERS: RuleSet[_Workers] = RuleSet()
_UNRELIABLE = ("GCW000", "GCW001", "GCW003", "GCW019")


def examine(
    text: str,
    source: str | os.PathLike[str],
    numbers: Numbers | None = None,
    source_lines: Callable[[], list[int]] | None = None,
) -> Examined:
    """Hold a config against all rules.

    Args:
        text: The YAML, rendered.
        source: The file of the YAML, or of the template it was rendered from: findings are shown
            there.
        numbers: What is known of the tasks.
        source_lines: For each line of *text*, the line of *source* it comes from; without, they are
            the same.
    """
    config, refusal = None, None
    document, root = _parsed(text)
    try:
        config = loading.load(text, "")
    except ConfigError as error:
        refusal = _refusal(str(error), root)
    found = list(_WRITTEN.broken(_Written(document, root, refusal)))
    if any(rule in _UNRELIABLE for rule, *_ in found):
        config = None
    if config is not None:
        found += _WORKERS.broken(_Workers(document, config, numbers or Numbers()))
    rendered, original = _numbered(text), _numbered(_source_text(source))
    where = source_lines() if source_lines and found else list(rendered)
    findings = []
    for rule, level, place, what in found:
        line: int = place if isinstance(place, int) else _line_of(root, place)
        shown = where[line - 1] if line <= len(where) else 1
        if not any(
            is_silenced(rule, each) for each in (rendered.get(line, ""), original.get(shown, ""))
        ):
            findings.append(Finding(rule, level, os.fspath(source), shown, " ".join(what.split())))
    # "error" comes before "warning"
    return Examined(sorted(findings, key=lambda finding: finding.level), config)


def _refusal(said: str, root: yaml.Node | None) -> tuple[int, str] | None:
    """What the loader says, and the line that it is about: that of the setting it names; None if there is just no engine."""
    found = re.fullmatch(r":(\d+): ((?:[\w.]+: )?(.*))", said, re.DOTALL)
    if found is None:
        return None
    line, text, reason = found.groups()

    keys = [key for section in _sections(root) for key, _ in section.value if key.value != "type"]
    named = [key for key in keys if re.search(rf"\b{re.escape(str(key.value))}\b", reason)]
    if named:
        line = max(named, key=lambda key: len(key.value)).start_mark.line + 1
    return int(line), text


def _sections(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """All mappings of a document; each is there once, though aliases may lead to it by many ways, and in circles."""
    seen, nodes = set(), [root]
    for node in nodes:
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                yield node
                nodes += [value for _, value in node.value]
            else:
                nodes += node.value


def _parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """The document, and its nodes as they are written: making the document of them would merge what is to be merged."""
    try:
        return yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):  # of which the endpoint's loader has told
        return None, None


def _line_of(root: yaml.Node | None, place: tuple[str, ...]) -> int:
    """The line of the setting at a place, or of the innermost section around it that there is."""
    line, node = 1, root
    for name in place:
        pairs = (
            [pair for pair in node.value if pair[0].value == name]
            if isinstance(node, yaml.MappingNode)
            else []
        )
        if not pairs:
            break
        # of two, the last is the one that counts
        line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
    return line


def _numbered(text: str) -> dict[int, str]:
    return dict(enumerate(text.splitlines(), 1))


def _source_text(source: str | os.PathLike[str]) -> str:
    return Path(source).read_text(encoding="utf-8") if os.path.isfile(source) else ""


@_WRITTEN.rule("GCW000", "error")
def refused(config: _Written) -> Iterator[tuple[Any, ...]]:
    """The endpoint's own loader refuses the config.

    No user endpoint starts with it, and every task that is sent to it fails.
    """
    if config.refusal is not None:
        yield config.refusal


@_WRITTEN.rule("GCW001", "error")
def unchecked(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A setting that the loader does not look at, and that breaks the engine when it runs.

    Nothing inside `job_status_kwargs` is checked. A key or a strategy that is unknown there, or a
    `strategy_period` that is text, ends the engine at its start. A `max_idletime` that is text is
    an error at each look once there is no task, so that idle jobs never end. Nor are the arguments
    of LocalProvider, PBSProProvider and some others checked: with numbers of blocks that are text,
    no further job starts.
    """
    engine = config.engine
    scaling = engine.get("job_status_kwargs")
    if isinstance(scaling, dict):
        yield from _wrong_scaling(scaling)
    elif scaling is not None:
        yield _SCALING, f"job_status_kwargs {scaling!r} is no section with settings of its own"
    names = _strategies()
    if engine.get("strategy") is not None and engine["strategy"] not in names:
        yield (
            (*_ENGINE, "strategy"),
            f"strategy {engine['strategy']!r} is none of {', '.join(names)}",
        )
    provider = engine.get("provider")
    if isinstance(provider, dict):
        yield from _wrong_types(provider)


def _wrong_scaling(scaling: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    known = list(JobStatusPollerKwargs.__annotations__)
    for name, value in scaling.items():
        place, is_number = (
            (*_SCALING, str(name)),
            isinstance(value, (int, float)) and not isinstance(value, bool),
        )
        if name not in known:
            yield (
                place,
                f"job_status_kwargs has no {name!r}, and the engine will not start; there are {', '.join(known)}",
            )
        elif name == "strategy" and value is not None and value not in _strategies():
            yield place, f"strategy {value!r} is none of {', '.join(_strategies())}"
        elif name == "max_idletime" and not (is_number and value >= 0):
            yield (
                place,
                f"max_idletime {value!r} is no number of seconds; write it without quotes, and .inf for never",
            )
        elif name == "strategy_period" and not (is_number and value > 0):
            yield place, f"strategy_period {value!r} is no number of seconds above 0"


def _strategies() -> list[str]:
    return [name for name in Strategy(strategy="none", max_idletime=0).strategies if name]


def _wrong_types(provider: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Values of another type than the provider's own defaults."""
    kind = getattr(parsl.providers, str(provider.get("type")), None)
    known = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    kinds = {int: "a number", float: "a number", str: "text", bool: "true or false"}
    for name, value in provider.items():
        wanted = type(known[name].default) if name in known else None
        # PBS takes seconds, too; another rule looks at that of others
        if value is None or wanted not in kinds or name == "walltime":
            continue
        fits = isinstance(value, wanted) or (
            wanted in (int, float) and isinstance(value, (int, float))
        )
        if not fits or (isinstance(value, bool) and wanted is not bool):
            yield (
                (*_PROVIDER, name),
                f"{name} {value!r} is not {kinds[wanted]}, which nobody notices before jobs are to start",
            )


@_WRITTEN.rule("GCW002", "error")
def duplicate(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A setting that is given twice.

    YAML takes the last one without a word. The first may be the one you are looking at.
    """
    for section in _sections(config.root):
        first: dict[tuple[str, str], int] = {}
        for key, _ in section.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in first and key.value != "<<":
                yield (
                    line,
                    f"{key.value} is given twice in this section: the last one counts; remove one",
                )
            first.setdefault(name, line)


@_WRITTEN.rule(
    "GCW003", "error", "read in globus_compute_endpoint/endpoint/config/utils.py, load_config_yaml"
)
def no_engine(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A config of a user endpoint without an engine.

    The loader takes it for the config of the endpoint itself, which runs no tasks, and does not
    complain.
    """
    if config.refusal is None and (
        not isinstance(config.document, dict) or config.document.get("engine") is None
    ):
        yield (
            1,
            "there is no 'engine:' section: workers are described there, as `engine:` with `type: GlobusComputeEngine`",
        )


@_WRITTEN.rule("GCW019", "warning")
def pool_engine(config: _Written) -> Iterator[tuple[Any, ...]]:
    """An engine whose workers cannot be relied on.

    ThreadPoolEngine runs all tasks as threads of the endpoint: they share working directory,
    environment and state, and teardowns wait for the endpoint's end. ProcessPoolEngine never
    replaces a worker that dies: after one death, every task fails. With `max_tasks_per_child` its
    workers end, and are cold again, on purpose.
    """
    engine = config.engine
    kind = engine.get("type")
    if kind == "ThreadPoolEngine":
        why = "its tasks are threads of one process, which share working directory, environment and state"
        yield (*_ENGINE, "type"), f"ThreadPoolEngine: {why}; use GlobusComputeEngine"
    elif kind == "ProcessPoolEngine":
        often = (
            f", and each is cold after {engine['max_tasks_per_child']} tasks"
            if "max_tasks_per_child" in engine
            else ""
        )
        yield (
            (*_ENGINE, "type"),
            f"ProcessPoolEngine: when one worker dies, all tasks fail from then on{often}; use GlobusComputeEngine",
        )


@_WORKERS.rule("GCW004", "warning")
def workers_unset(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Nobody says how many workers a node has.

    Then it has one for each core, and each has its own copy of the state: 64 copies of a model on a
    node of 64 cores, and as many cold loads before all of them are warm.
    """
    chosen = any(
        config.written(*_ENGINE, name) is not None
        for name in ("max_workers_per_node", "cores_per_worker", "mem_per_worker")
    )
    if chosen or config.is_mpi or config.executor.available_accelerators:
        return
    number = f"{config.cores:g} workers" if config.cores else "a worker for each core"
    copies = (
        f", {config.cores * config.numbers.state_gb:g} GB of state"
        if config.cores and config.numbers.state_gb
        else ""
    )
    yield (
        _ENGINE,
        f"max_workers_per_node is not given: {number} on a node{copies}; say how many copies of the state a node is to have",
    )


@_WORKERS.rule("GCW005", "error")
def not_positive(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A number of workers, cores, nodes or jobs that is zero or negative.

    `max_workers_per_node: 0` means a worker for each core. A negative number gives no worker at
    all, and tasks wait for ever without an error; so do jobs of zero nodes. With `cores_per_worker:
    0` the manager divides by it, and ends. With `strategy: none` there are as many jobs as
    `init_blocks`, and never another.
    """
    for name in ("max_workers_per_node", "cores_per_worker", "max_workers_per_block"):
        value = config.written(*_ENGINE, name)
        if value is not None and value <= 0:
            means = (
                "means one for each core"
                if name == "max_workers_per_node" and value == 0
                else "leaves no worker"
            )
            yield (*_ENGINE, name), f"{name} {value!r} {means}; write a number above 0"
    for name in ("nodes_per_block", "max_blocks"):
        value = getattr(config.provider, name, 1)
        if value < 1:
            yield (
                (*_PROVIDER, name),
                f"{name} {value!r} leaves no worker, and tasks wait for ever; write 1 or more",
            )
    strategy = config.engine._job_status_kwargs["strategy"]
    if strategy in ("none", None) and config.provider.init_blocks < 1:
        text = f"strategy {strategy} starts as many jobs as init_blocks says, {config.provider.init_blocks}, and no other: no worker"
        yield (*_SCALING, "strategy"), f"{text}; write strategy: simple"


@_WORKERS.rule("GCW006", "error")
def no_room(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers that are larger than a node.

    The manager divides a node's cores by `cores_per_worker`, and its memory by `mem_per_worker`,
    and rounds down. With zero workers it stays and says nothing, and tasks wait for ever.
    """
    asked = (("cores_per_worker", config.cores, "cores"), ("mem_per_worker", config.memory, "GB"))
    for name, room, unit in asked:
        each = getattr(config.executor, name)
        if each and room is not None and room < each:
            node, level = ("this machine", "warning") if config.is_local else ("a node", "error")
            yield (
                (*_ENGINE, name),
                f"{name} {each:g} is more than the {room:.4g} {unit} of {node}: there would be no workers",
                level,
            )


@_WORKERS.rule("GCW007", "error")
def affinity(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers that cannot be bound to cores as asked.

    An unknown `cpu_affinity` ends the manager at its start. A list that has not one entry for each
    worker, or more workers than cores, ends each worker at its start, over and over, and tasks wait
    for ever.
    """
    value, workers, place = (
        str(config.executor.cpu_affinity).lower(),
        config.profile.copies_per_node,
        (*_ENGINE, "cpu_affinity"),
    )
    cores = _first(getattr(config.provider, "cores_per_node", None), config.cores_here)
    if value == "none":
        return
    if value.startswith("list"):
        entries = value.split(":")[1:]
        if not all(re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", entry) for entry in entries):
            yield (
                place,
                f"cpu_affinity {value!r} is not of the form list:0-1:2-3, with the cores of each worker",
            )
        elif workers is not None and len(entries) != workers:
            yield (
                place,
                f"cpu_affinity {value!r} is for {len(entries)} workers, and a node has {workers}",
            )
    elif value not in ("block", "alternating", "block-reverse"):
        yield (
            place,
            f"cpu_affinity {value!r} is unknown; there are none, block, block-reverse, alternating, and list:...",
        )
        return
    if workers is not None and cores is not None and workers > cores:
        yield (
            place,
            f"cpu_affinity {value!r} needs a core for each worker: {workers} workers, {cores:g} cores",
        )


@_WORKERS.rule("GCW008", "error")
def no_such_device(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A worker that is pinned to a GPU that is not there.

    On NVIDIA nodes Parsl divides workers by GPUs, rounds down, and gives worker *n* the device *n*
    divided by that. Where they do not divide evenly, the last workers get a number that no GPU has:
    there, CUDA finds no device.
    """
    workers, gpus, names = (
        config.profile.copies_per_node,
        config.gpus,
        config.executor.available_accelerators,
    )
    # others know what they name
    if not gpus or workers is None or list(names) != [str(number) for number in range(len(names))]:
        return
    share = workers // gpus or 1
    missing = [rank for rank in range(min(workers, len(names))) if rank // share >= gpus]
    if missing:
        ranks, many = ", ".join(map(str, missing)), max(workers // gpus, 1) * gpus
        text = f"worker {ranks} would get a GPU that is not there: {workers} workers on {gpus} NVIDIA GPUs do not divide; have {many}"
        yield (*_ENGINE, "available_accelerators"), text


@_WORKERS.rule("GCW009", "warning")
def devices_and_workers(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers and devices differ in number.

    Each worker is pinned to one entry of `available_accelerators`. There are never more workers
    than entries, whatever `max_workers_per_node` says; with fewer, the last devices stay idle.
    """
    most, names = (
        config.written(*_ENGINE, "max_workers_per_node"),
        config.executor.available_accelerators,
    )
    if names and most and most > 0 and most != len(names):
        what = (
            f"only {len(names)} workers will start"
            if most > len(names)
            else f"{len(names) - most} of them will be idle"
        )
        text = f"max_workers_per_node {most} and {len(names)} available_accelerators: {what}; give as many of one as of the other"
        yield (*_ENGINE, "max_workers_per_node"), text


@_WORKERS.rule("GCW010", "error")
def one_node_launcher(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A job of several nodes, of which one is used.

    SingleNodeLauncher, the default, starts all managers on the job's first node, and SimpleLauncher
    starts one manager there. The other nodes are billed and idle, and the first has as many times
    the copies of the state.
    """
    nodes, launcher = config.profile.nodes_per_job, getattr(config.provider, "launcher", None)
    if nodes < 2 or config.is_local or config.is_mpi or launcher is None:
        return
    kind, place = type(launcher).__name__, (*_PROVIDER, "launcher")
    if _ON_ALL_NODES.search(
        f"{getattr(launcher, 'prepend', '')} {config.executor.launch_cmd} {config.engine.container_cmd_options or ''}"
    ):
        return
    better = {"SlurmProvider": "SrunLauncher", "PBSProProvider": "MpiExecLauncher"}.get(
        type(config.provider).__name__, "an MPI launcher"
    )
    if kind == "SingleNodeLauncher":
        yield (
            place,
            f"nodes_per_block {nodes} with SingleNodeLauncher: all {nodes} managers on the first node; use {better}",
        )
    elif kind == "SimpleLauncher":
        yield (
            place,
            f"nodes_per_block {nodes} with SimpleLauncher: one manager, on the first node; use {better}",
        )
    elif kind == "WrappedLauncher":
        text = f"nodes_per_block {nodes} with WrappedLauncher: one manager, unless {launcher.prepend!r} starts one on each node; use {better}"
        yield place, text, "warning"


@_WORKERS.rule("GCW011", "warning")
def idle_too_soon(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """State is given up sooner than it can be had back.

    The idle time runs whenever no task is open, also while a job waits in the queue or its workers
    load: it is cancelled before it was ever warm. And a pause between tasks that is a little longer
    costs the whole wait again.
    """
    wait = (config.numbers.queue_seconds or 0) + (config.numbers.load_seconds or 0)
    keep = config.profile.keep_warm
    if wait and keep < wait:
        place = (
            (*_SCALING, "max_idletime")
            if config.max_idletime == keep
            else ("idle_heartbeats_soft",)
        )
        yield (
            place,
            f"workers end after {keep:g} s without tasks, and it takes {wait:g} s to be warm again; keep them for longer than that",
        )


@_WORKERS.rule("GCW012", "warning")
def undercut(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """The endpoint stops before the idle time of its workers is over.

    Once it has had a task, the whole user endpoint stops after `idle_heartbeats_soft` heartbeats
    without any, and ends its workers, whatever `max_idletime` and `min_blocks` say.
    """
    soft, idle = config.profile.endpoint_idle, config.written(*_SCALING, "max_idletime")
    count, period = config.config.idle_heartbeats_soft, config.config.heartbeat_period
    kept = {
        "min_blocks": f"min_blocks {config.provider.min_blocks}"
        if config.provider.min_blocks > 0
        else "",
        "max_idletime": f"max_idletime {idle:g} s"
        if idle is not None and soft < config.max_idletime < math.inf
        else "",
    }
    for name, what in kept.items():
        if what and math.isfinite(soft):
            remedy = (
                f"idle_heartbeats_soft has to be above {config.max_idletime / period:.0f}"
                if name == "max_idletime"
                else "it has to be 0"
            )
            stops = f"the endpoint stops after {soft:g} s ({count} heartbeats of {period:g} s)"
            yield ("idle_heartbeats_soft",), f"{what} is undercut: {stops}; {remedy} for that"


@_WORKERS.rule("GCW013", "warning")
def kept_for_ever(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Nodes that are kept, and billed, however long there is no task.

    `min_blocks` above 0, a `strategy` of none, or a `max_idletime` of .inf mean that no job ends
    for lack of tasks; with `idle_heartbeats_soft` 0, its default, neither does the endpoint.
    """
    if config.is_local or math.isfinite(config.profile.keep_warm):
        return
    strategy, least = config.engine._job_status_kwargs["strategy"], config.provider.min_blocks
    why, place, remedy = (
        "max_idletime .inf",
        (*_SCALING, "max_idletime"),
        "a max_idletime in seconds",
    )
    if least > 0:
        why, place, remedy = f"min_blocks {least}", (*_PROVIDER, "min_blocks"), "min_blocks: 0"
    if strategy in ("none", None):
        why, place, remedy = f"strategy {strategy}", (*_SCALING, "strategy"), "strategy: simple"
    until = "the end of the endpoint" if config.profile.walltime is None else "their walltime"
    yield place, f"{why} without idle_heartbeats_soft: idle jobs stay until {until}; write {remedy}"


@_WORKERS.rule("GCW014", "error")
def walltime_format(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A walltime that Parsl cannot read, or reads as zero.

    For Slurm and LSF, Parsl takes the walltime apart as HH:MM:SS, and forgets the seconds. Whatever
    has not three parts, such as 30:00 or 1-00:00:00, is an error at the moment when a job is to
    start: there never is a worker. Less than a minute is asked for as 0.
    """
    if type(config.provider).__name__ not in meaning.NEED_HOURS:
        return
    value, seconds, place = (
        config.provider.walltime,
        config.profile.walltime,
        (*_PROVIDER, "walltime"),
    )
    if seconds is None:
        yield (
            place,
            f'walltime {value!r} is not of the form HH:MM:SS, and no job will start; write "01:30:00", in quotes',
        )
    elif seconds < 60:
        yield (
            place,
            f"walltime {value!r} is less than a minute, which is asked for as 0; write 00:01:00 or more",
        )


@_WORKERS.rule(
    "GCW015",
    "error",
    "read in parsl/providers, submit: a job is asked for with this limit, and its scheduler ends it there",
)
def walltime_too_short(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A job that ends before its first task can.

    Its first task has to load. If load and task together take as long as the walltime, it is lost
    every time, and so is the state.
    """
    takes, walltime = (
        (config.numbers.load_seconds or 0) + (config.numbers.task_seconds or 0),
        config.profile.walltime,
    )
    if takes and walltime is not None and walltime <= takes:
        text = f"walltime {config.provider.walltime} is {walltime} s, and load and task take {takes:g} s; ask for several times that"
        yield (*_PROVIDER, "walltime"), text


@_WORKERS.rule("GCW016", "warning")
def no_drain(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks that still run at the walltime are lost.

    Without a `drain_period`, a job takes tasks until its scheduler kills it; what runs then fails,
    after up to `heartbeat_threshold`, in which more tasks are swallowed. A job that drains takes no
    more tasks after that time, ends what it has, and ends itself.
    """
    walltime, drain, place = (
        config.profile.walltime,
        config.profile.drain,
        (*_ENGINE, "drain_period"),
    )
    if walltime is None:
        return
    longest = config.numbers.task_seconds or min(walltime / 10, 900)
    good = math.floor(walltime - longest - min(walltime / 10, 60))
    advice = (
        f"set drain_period to walltime less the longest task less a minute: {good}"
        if good > 0
        else "ask for a longer walltime"
    )
    if not drain:
        again = (
            "run once more, cold" if config.engine.max_retries_on_system_failure > 0 else "are lost"
        )
        yield (
            place,
            f"drain_period is not given: tasks that run when the job ends after {walltime} s {again}; {advice}",
        )
    elif drain >= walltime:
        yield (
            place,
            f"drain_period {drain} is not before the walltime of {walltime} s, so the job never drains; {advice}",
        )
    elif config.numbers.task_seconds and drain + config.numbers.task_seconds > walltime:
        yield (
            place,
            f"drain_period {drain} leaves {walltime - drain} s for a task of {config.numbers.task_seconds:g} s; {advice}",
        )


@_WORKERS.rule("GCW017", "warning")
def prefetch(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks wait behind others on one node while workers of another are free.

    With `prefetch_capacity` above 0, a manager takes more tasks than it has workers. They stay
    there, also behind a cold load, and cannot be warmed up node by node. Where all workers belong
    to one manager, it does no harm.
    """
    managers = config.profile.max_jobs * (1 if config.is_mpi else config.profile.nodes_per_job)
    number = config.executor.prefetch_capacity
    if number > 0 and managers > 1:
        place = (*_ENGINE, "prefetch_capacity")
        yield (
            place,
            f"prefetch_capacity {number}: tasks wait on one of {managers} nodes though others are free; set it to 0",
        )


@_WORKERS.rule("GCW018", "error")
def timeout_too_short(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A task may not take as long as its load.

    A task's time-out (GC_TASK_TIMEOUT) strikes in the middle of the load, which is lost with it.
    The next task begins anew, so the state never becomes warm.
    """
    limit, load = config.profile.task_timeout, config.numbers.load_seconds
    if limit and load and limit <= load + (config.numbers.task_seconds or 0):
        with_task = " and task" if config.numbers.task_seconds else ""
        takes = load + (config.numbers.task_seconds or 0)
        yield (
            (*_PROVIDER, "worker_init"),
            f"GC_TASK_TIMEOUT {limit:g} s is not above the {takes:g} s of load{with_task}; give it more",
        )


@_WORKERS.rule(
    "GCW020",
    "error",
    "read in parsl/executors/high_throughput/process_worker_pool.py: each worker is a process of its own",
)
def state_too_big(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """The copies of the state do not fit into a node.

    Every worker has its own copy. When memory is out, the kernel kills a worker, and an idle one
    can take its manager with it.
    """
    each, workers, memory = config.numbers.state_gb, config.profile.copies_per_node, config.memory
    if each and workers and memory and workers * each > memory:
        fit = math.floor(memory / each)
        have = f"; {fit} would fit" if fit else ""
        place = (*_ENGINE, "max_workers_per_node")
        yield (
            place,
            f"{workers} workers with {each:g} GB of state each need {workers * each:g} GB, and a node has {memory:.4g}{have}",
        )


@_WORKERS.rule("GCW021", "warning")
def sandbox(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Relative paths where each task has a working directory of its own.

    With `run_in_sandbox`, a path such as weights/model.pt leads to another place in every task, and
    warm state that has kept it finds nothing there.
    """
    if not config.engine.run_in_sandbox:
        return
    for name, value in meaning.exports(config.provider).items():
        is_path = bool(re.search(r"(PATH|DIR|HOME|ROOT|FILE|CACHE)$", name))
        for part in value.split(":") if "://" not in value else []:
            if re.match(r"\.{1,2}(/|$)", part) or (is_path and re.match(r"[\w.][\w.-]*/", part)):
                text = f"run_in_sandbox, and {name} has the relative path {part!r}, which each task looks up elsewhere; make it absolute"
                yield (*_PROVIDER, "worker_init"), text
                break


@_WORKERS.rule("GCW022", "warning")
def background(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A program that worker_init starts, for workers of several nodes.

    `worker_init` runs on the first node of a job only. Workers of the others inherit what it
    exports, and find no such program on their node.
    """
    if config.profile.nodes_per_job < 2 or config.is_local or config.is_mpi:
        return
    script = re.sub(
        r"<<-?\s*['\"]?(\w+).*?\n\s*\1\s*$|\$\(\(.*?\)\)",
        "",
        config.provider.worker_init,
        flags=re.DOTALL | re.MULTILINE,
    )
    started = [line for line in script.splitlines() if _starts_a_program(line)]
    if started and not re.search(r"\bwait\b", script):
        text = f"worker_init starts a program in the background, on the first of {config.profile.nodes_per_job} nodes only"
        yield (
            (*_PROVIDER, "worker_init"),
            f"{text}: {started[0].strip()!r}; start it from a task, as gc_warm.ExternalProcess does",
        )


def _starts_a_program(line: str) -> bool:
    """Whether a line of a script leaves something running, on the node where it runs."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    try:
        return any(
            re.fullmatch(r"[();]*&[();]*", word) for word in words
        ) and not _ON_ALL_NODES.search(line)
    except ValueError:  # a quote that goes on in the next line
        return False


@_WORKERS.rule(
    "GCW023",
    "warning",
    "read in globus_compute_endpoint/engines/globus_compute.py, containerized_launch_cmd",
)
def no_init(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A container without a process that waits for orphans.

    In a container of docker or podman the manager is process 1, unless its image brings an init. It
    waits for none but its own children, so each program that loses its parent stays as a zombie
    until the job ends.
    """
    kind, options = (
        config.engine.container_type,
        str(config.engine.container_cmd_options or "").split(),
    )
    is_custom = (
        kind == "custom" and {"docker", "podman", "podman-hpc"} & set(options) and "run" in options
    )
    if (kind in ("docker", "podman", "podman-hpc") or is_custom) and not {
        "--init",
        "--init=true",
    } & set(options):
        yield (
            (*_ENGINE, "container_type"),
            f"{kind} without an init: add --init to container_cmd_options, unless the image has one of its own",
        )


@_WORKERS.rule("GCW024", "error")
def quoting(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Quotes that are gone before a shell sees them.

    The engine takes `launch_cmd` and the command of a container apart into words and puts them
    together with spaces: quotes and backslashes are lost, and what they protected is split or
    expanded.
    """
    options = config.engine.container_cmd_options if config.engine.container_type else None
    for name, value in (
        ("launch_cmd", config.written(*_ENGINE, "launch_cmd")),
        ("container_cmd_options", options),
    ):
        text = re.sub(r"\{+\w+\}+", "X", str(value or ""))  # what is filled in
        try:
            words = shlex.split(text)
        except ValueError as error:
            yield (*_ENGINE, name), f"{name} {value!r} cannot be taken apart into words: {error}"
            continue
        kept, expanded = text.split(), " ".join(re.findall(r"'[^']*\$[^']*'", text))
        spoilt = [
            word
            for word in words
            if word not in kept and (re.search(r"[\s;&|<>()*?\[`'\"\\]", word) or word in expanded)
        ]
        if spoilt:
            yield (
                (*_ENGINE, name),
                f"{name}: the quotes around {spoilt[0]!r} will be lost; put that into a script, or export it in worker_init",
            )


@_WORKERS.rule("GCW025", "error")
def heartbeats(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Managers that are given up between two heartbeats.

    A manager that has not been heard of for `heartbeat_threshold` is taken for dead, and its tasks
    fail; it is heard of every `heartbeat_period`. The engine has both (30 and 120 s); those of the
    endpoint, at the top level, are others.
    """
    period, threshold = config.executor.heartbeat_period, config.executor.heartbeat_threshold
    place = (
        *_ENGINE,
        "heartbeat_period"
        if config.written(*_ENGINE, "heartbeat_period") is not None
        else "heartbeat_threshold",
    )
    if threshold <= period:
        yield (
            place,
            f"heartbeat_threshold {threshold} s is not above heartbeat_period {period} s: nodes are lost all the time; have 4 periods",
        )
    elif threshold < 2 * period:
        text = f"heartbeat_threshold {threshold} s is below two heartbeat_periods of {period} s: one late beat loses a node; have 4 periods"
        yield place, text, "warning"


RULES: Mapping[str, Rule[Any]] = {**_WRITTEN.rules, **_WORKERS.rules}
"""All rules for configs, by id."""
