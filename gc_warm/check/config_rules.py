"""Rules for the YAML of a user endpoint.

They find what makes state cold, loses tasks, or gives no workers at all. Each rule is a thing that
the endpoint's loader lets pass. What a rule claims has been seen on the real engine, or is read in
the source that the rule names; the versions are those that this package asks for.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parsl.providers
import psutil
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.engines.globus_compute import JobStatusPollerKwargs
from parsl.jobs.strategy import Strategy

from gc_warm.check import folder_rules
from gc_warm.check import preload as preloads
from gc_warm.check.rules import Finding, Level, Rule, RuleSet, is_silenced
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, loading, meaning, templates
from gc_warm.configs.repairs import ENGINE as _ENGINE
from gc_warm.configs.repairs import PROVIDER as _PROVIDER
from gc_warm.configs.repairs import Repair
from gc_warm.configs.text import line_at, parse_with_nodes

_SCALING = ("engine", "job_status_kwargs")
_LAUNCHERS = {"SlurmProvider": "SrunLauncher", "PBSProProvider": "MpiExecLauncher"}
_DAEMON = re.compile(
    r"\bray +start\b(?!.*--block)|--daemonize\b|\btmux\b.* -d\b|\bscreen +-dm|mps-control +-d\b"
)
_MAKES_ENVIRONMENT = re.compile(r"\buv +venv\b|-m +venv\b|\bvirtualenv\b|\bconda +create\b")
_INSTALLS = re.compile(r"\bpip3? +install\b")
_LATE = 600  # seconds
_BRACES_OF_PARSL = ("launch_cmd", "container_cmd_options", "prepend")
_CONTAINERS_WITHOUT_INIT = ("docker", "podman", "podman-hpc")
_HERE_DOCUMENT_OR_ARITHMETIC = re.compile(
    r"<<-?\s*['\"]?(\w+).*?\n\s*\1\s*$|\$\(\(.*?\)\)", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)


@dataclass(frozen=True)
class Examined:
    """The result of all rules for a config.

    Attributes:
        findings: All that are not silenced, the worst first.
        config: The config as the endpoint loads it; None where the endpoint cannot load it, or
            where what it loads cannot be relied on.
    """

    findings: list[Finding]
    config: UserEndpointConfig | None


@dataclass(frozen=True)
class _Written:
    """A config as it is written, but for old settings, which are repaired."""

    document: Any
    root: yaml.Node | None
    repairs: Sequence[Repair]
    refusal: tuple[int, str] | None
    is_rendered: bool

    @property
    def engine(self) -> Mapping[str, Any]:
        """The engine's section; empty if there is none."""
        engine = self.document.get("engine") if isinstance(self.document, dict) else None
        return engine if isinstance(engine, dict) else {}


class _Workers:
    """A config as the endpoint loads it, whose engine starts workers in jobs."""

    def __init__(
        self, document: Mapping[str, Any], config: UserEndpointConfig, numbers: Numbers
    ) -> None:
        self.document = document
        self.config = config
        self.numbers = numbers

        self.engine: Any = config.engine
        self.executor = self.engine.executor
        self.provider = self.executor.provider

        self.is_local = type(self.provider).__name__ == "LocalProvider"
        self.is_mpi = type(self.engine).__name__ == "GlobusMPIEngine"
        self.profile = meaning.warmth_profile(config)

    def written(self, *place: str) -> Any:
        """Return the value at a place of the YAML, None if there is none."""
        value: Any = self.document
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def max_idletime(self) -> float:
        """Seconds without tasks after which jobs end; infinite if they never end for that."""
        return self.profile.job_idle

    @property
    def cores(self) -> float | None:
        """Cores of a node, as its manager will count them; None if only the node knows."""
        return _first(
            getattr(self.provider, "cores_per_node", None),
            meaning.exported(self.provider, "PARSL_CORES"),
            self.cores_here,
        )

    @property
    def cores_here(self) -> int | None:
        """Cores of this machine, where it is the node; None where it is not.

        A manager counts all of them, also those that it may not run on.
        """
        return os.cpu_count() if self.is_local else None

    @property
    def memory(self) -> float | None:
        """Memory of a node in GB, at most, as its manager will count it.

        None if only the node knows.
        """
        memory_here = psutil.virtual_memory().total / 2**30 if self.is_local else None
        return _first(
            getattr(self.provider, "mem_per_node", None),
            meaning.exported(self.provider, "PARSL_MEMORY_GB"),
            memory_here,
        )

    @property
    def gpus(self) -> int | None:
        """Number of NVIDIA GPUs of a node, as far as the job asks for them by number."""
        number, is_amd = meaning.requested_gpus(self.provider)
        return None if is_amd else number


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

    Returns:
        The findings, and the config as the endpoint loads it.
    """
    _, root = parse_with_nodes(text)
    loaded = loading.load_repaired(text)
    refusal = _refusal(loaded.refusal, text, root) if loaded.refusal else None

    is_rendered = source_lines is not None
    written = _Written(loaded.document, root, loaded.repairs, refusal, is_rendered)
    broken = list(_WRITTEN.broken(written))
    unreliable = sum(rule in _UNRELIABLE for rule, *_ in broken)
    # each repair is a finding, and no reason not to look at the rest
    if loaded.config is not None and unreliable == len(loaded.repairs):
        broken += _WORKERS.broken(_Workers(loaded.document, loaded.config, numbers or Numbers()))
    config = None if unreliable else loaded.config

    findings = list(_findings(broken, root, text, source, source_lines))
    # "error" comes before "warning"
    findings.sort(key=lambda finding: finding.level)
    return Examined(findings, config)


def _findings(
    broken: Sequence[tuple[str, Level, Any, str]],
    root: yaml.Node | None,
    text: str,
    source: str | os.PathLike[str],
    source_lines: Callable[[], list[int]] | None,
) -> Iterator[Finding]:
    """Yield the findings that no comment silences, each at its line of the source."""
    rendered = _numbered(text)
    original = _numbered(_source_text(source))
    origins = source_lines() if source_lines and broken else list(rendered)

    for rule, level, place, message in broken:
        line: int = place if isinstance(place, int) else line_at(root, place)
        origin = origins[line - 1] if line <= len(origins) else 1

        lines = (rendered.get(line, ""), original.get(origin, ""))
        if not any(is_silenced(rule, each) for each in lines):
            one_line = " ".join(message.split())
            yield Finding(rule, level, os.fspath(source), origin, one_line)


def _refusal(message: str, text: str, root: yaml.Node | None) -> tuple[int, str] | None:
    """Return the line and the text of the loader's complaint; None if there is just no engine.

    The line is that of the setting that the complaint names. What is no YAML may be a template.
    """
    match = re.fullmatch(r":(\d+): ((?:[\w.]+: )?(.*))", message, re.DOTALL)
    if match is None:
        return None
    line, complaint, reason = match.groups()
    if root is None and (template := templates.template_complaint(text)):
        return template

    keys = [key for section in _sections(root) for key, _ in section.value if key.value != "type"]
    named = [key for key in keys if re.search(rf"\b{re.escape(str(key.value))}\b", reason)]
    if named:
        line = max(named, key=lambda key: len(key.value)).start_mark.line + 1
    return int(line), complaint


def _sections(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yield each mapping of a document once.

    Aliases may lead to a mapping by many ways, and in circles.
    """
    seen: set[int] = set()
    nodes = [root]
    for node in nodes:
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue

        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value


def _numbered(text: str) -> dict[int, str]:
    return dict(enumerate(text.splitlines(), 1))


def _source_text(source: str | os.PathLike[str]) -> str:
    return Path(source).read_text(encoding="utf-8") if os.path.isfile(source) else ""


@_WRITTEN.rule("GCW000", "error")
def refused(config: _Written) -> Iterator[tuple[Any, ...]]:
    """The endpoint's own loader refuses the config.

    No user endpoint starts with it, and every task that is sent to it fails.
    """
    for repair in config.repairs:
        if repair.is_refused:
            yield repair.place, repair.text
    if config.refusal is None:
        return

    # of which the loader tells no more than that it cannot be converted
    no_numbers = [name for name, value in config.engine.items() if _is_nan(value)]
    if no_numbers:
        name = str(no_numbers[0])
        yield (*_ENGINE, name), f"{name} .nan is not a number; write one, or leave it out"
    else:
        yield config.refusal


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    return ".nan" if _is_nan(value) else repr(value)


@_WRITTEN.rule("GCW001", "error")
def unchecked(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A setting that the loader does not look at, and that breaks the engine when it runs.

    Nothing inside `job_status_kwargs` is checked. A key or a strategy that is unknown there, or a
    `strategy_period` that is text, ends the engine at its start. A `max_idletime` that is text is
    an error at each look once there is no task, so that idle jobs never end. Nor are the arguments
    of LocalProvider, PBSProProvider and some others checked: with numbers of blocks that are text,
    no further job starts. A name in double braces that nobody fills in is taken as it stands.
    """
    for repair in config.repairs:
        if not repair.is_refused:
            yield repair.place, repair.text
    if not config.is_rendered:
        yield from _unfilled(config.root)

    engine = config.engine
    scaling = engine.get("job_status_kwargs")
    if isinstance(scaling, dict):
        yield from _wrong_scaling(scaling)
    elif scaling is not None:
        yield _SCALING, f"job_status_kwargs {scaling!r} is no section with settings of its own"

    known = _strategies()
    strategy = engine.get("strategy")
    if strategy is not None and strategy not in known:
        yield (*_ENGINE, "strategy"), f"strategy {strategy!r} is none of {', '.join(known)}"

    provider = engine.get("provider")
    if isinstance(provider, dict):
        yield from _wrong_types(provider)


def _unfilled(root: yaml.Node | None) -> Iterator[tuple[Any, ...]]:
    """Yield the settings whose text has names in braces that a template would fill in."""
    for section in _sections(root):
        for key, value in section.value:
            is_text = isinstance(value, yaml.ScalarNode)
            if not is_text or key.value in _BRACES_OF_PARSL:
                continue

            names = templates.variables(value.value)
            if names:
                shown = ", ".join(f"{{{{ {name} }}}}" for name in names)
                text = (
                    f"{key.value} has {shown}, which nobody fills in: write a value, or put the "
                    f"file into a folder as {folders.TEMPLATE} and give options"
                )
                yield key.start_mark.line + 1, text


def _wrong_scaling(scaling: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the settings of `job_status_kwargs` that break the engine."""
    known = list(JobStatusPollerKwargs.__annotations__)
    for name, value in scaling.items():
        place = (*_SCALING, str(name))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)

        if name not in known:
            text = (
                f"job_status_kwargs has no {name!r}, and the engine will not start; "
                f"there are {', '.join(known)}"
            )
            yield place, text
        elif name == "strategy" and value is not None and value not in _strategies():
            yield place, f"strategy {value!r} is none of {', '.join(_strategies())}"
        elif name == "max_idletime" and not (is_number and value >= 0):
            text = (
                f"max_idletime {value!r} is no number of seconds; "
                "write it without quotes, and .inf for never"
            )
            yield place, text
        elif name == "strategy_period" and not (is_number and value > 0):
            yield place, f"strategy_period {value!r} is no number of seconds above 0"


def _strategies() -> list[str]:
    return [name for name in Strategy(strategy="none", max_idletime=0).strategies if name]


def _wrong_types(provider: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the values that are of another type than the provider's own defaults."""
    cls = getattr(parsl.providers, str(provider.get("type")), None)
    known = inspect.signature(cls).parameters if inspect.isclass(cls) else {}
    kinds = {int: "a number", float: "a number", str: "text", bool: "true or false"}

    for name, value in provider.items():
        wanted = type(known[name].default) if name in known else None
        # PBS takes seconds, too; another rule looks at the walltime of others
        if value is None or wanted not in kinds or name == "walltime":
            continue

        is_number = wanted in (int, float) and isinstance(value, (int, float))
        is_number = is_number and not _is_nan(value)
        is_wrong_bool = isinstance(value, bool) and wanted is not bool
        fits = is_number or (isinstance(value, wanted) and not _is_nan(value))
        if is_wrong_bool or not fits:
            text = (
                f"{name} {_shown(value)} is not {kinds[wanted]}, "
                "which nobody notices before jobs are to start"
            )
            yield (*_PROVIDER, name), text


@_WRITTEN.rule("GCW002", "error")
def duplicate(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A setting that is given twice.

    YAML takes the last one without a word. The first may be the one you are looking at.
    """
    for section in _sections(config.root):
        seen: set[tuple[str, str]] = set()

        for key, _ in section.value:
            name = (key.tag, str(key.value))
            if name in seen and key.value != "<<":
                text = (
                    f"{key.value} is given twice in this section: the last one counts; remove one"
                )
                yield key.start_mark.line + 1, text
            seen.add(name)


@_WRITTEN.rule(
    "GCW003", "error", "read in globus_compute_endpoint/endpoint/config/utils.py, load_config_yaml"
)
def no_engine(config: _Written) -> Iterator[tuple[Any, ...]]:
    """A config of a user endpoint without an engine.

    The loader takes it for the config of the endpoint itself, which runs no tasks, and does not
    complain.
    """
    document = config.document
    has_engine = isinstance(document, dict) and document.get("engine") is not None

    if config.refusal is None and not has_engine:
        text = (
            "there is no 'engine:' section: workers are described there, "
            "as `engine:` with `type: GlobusComputeEngine`"
        )
        yield 1, text


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
    place = (*_ENGINE, "type")
    if kind == "ThreadPoolEngine":
        text = (
            "ThreadPoolEngine: its tasks are threads of one process, which share "
            "working directory, environment and state; use GlobusComputeEngine"
        )
        yield place, text
    elif kind == "ProcessPoolEngine":
        often = ""
        if "max_tasks_per_child" in engine:
            often = f", and each is cold after {engine['max_tasks_per_child']} tasks"

        text = (
            "ProcessPoolEngine: when one worker dies, all tasks fail from then on"
            f"{often}; use GlobusComputeEngine"
        )
        yield place, text


@_WORKERS.rule("GCW004", "warning")
def workers_unset(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Nobody says how many workers a node has.

    Then it has one for each core, and each has its own copy of the state: 64 copies of a model on a
    node of 64 cores, and as many cold loads before all of them are warm.
    """
    options = ("max_workers_per_node", "cores_per_worker", "mem_per_worker")
    is_chosen = any(config.written(*_ENGINE, name) is not None for name in options)
    if is_chosen or config.is_mpi or config.executor.available_accelerators:
        return

    cores = config.cores
    state_gb = config.numbers.state_gb
    number = f"{cores:g} workers" if cores else "a worker for each core"
    copies = f", {cores * state_gb:g} GB of state" if cores and state_gb else ""

    text = (
        f"max_workers_per_node is not given: {number} on a node{copies}; "
        "say how many copies of the state a node is to have"
    )
    yield _ENGINE, text


@_WORKERS.rule("GCW005", "error")
def not_positive(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A number of workers, cores, nodes or jobs that is zero or negative.

    `max_workers_per_node: 0` means a worker for each core. A negative number gives no worker at
    all, and tasks wait for ever without an error; so do jobs of zero nodes. With `cores_per_worker:
    0`, or .nan, the manager divides by it, and ends. A `mem_per_worker` that is not above 0 counts
    as not given: a warning. With `strategy: none` there are as many jobs as `init_blocks`, and
    never another.
    """
    for name in ("max_workers_per_node", "cores_per_worker", "max_workers_per_block"):
        value = config.written(*_ENGINE, name)
        if value is not None and not value > 0:
            is_default = name == "max_workers_per_node" and value == 0
            means = "means one for each core" if is_default else "leaves no worker"
            yield (*_ENGINE, name), f"{name} {_shown(value)} {means}; write a number above 0"

    each = config.written(*_ENGINE, "mem_per_worker")
    if each is not None and not each > 0:
        text = (
            f"mem_per_worker {_shown(each)} limits nothing; write a number above 0, or leave it out"
        )
        yield (*_ENGINE, "mem_per_worker"), text, "warning"

    for name in ("nodes_per_block", "max_blocks"):
        value = getattr(config.provider, name, 1)
        if value < 1:
            text = f"{name} {value!r} leaves no worker, and tasks wait for ever; write 1 or more"
            yield (*_PROVIDER, name), text

    strategy = config.engine._job_status_kwargs["strategy"]
    first_jobs = config.provider.init_blocks
    if strategy in ("none", None) and first_jobs < 1:
        text = (
            f"strategy {strategy} starts as many jobs as init_blocks says, {first_jobs}, "
            "and no other: no worker; write strategy: simple"
        )
        yield (*_SCALING, "strategy"), text


@_WORKERS.rule("GCW006", "error")
def no_room(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers that are larger than a node.

    The manager divides a node's cores by `cores_per_worker`, and its memory by `mem_per_worker`,
    and rounds down. With zero workers it stays and says nothing, and tasks wait for ever.
    """
    node = "this machine" if config.is_local else "a node"
    level = "warning" if config.is_local else "error"
    rooms = (("cores_per_worker", config.cores, "cores"), ("mem_per_worker", config.memory, "GB"))

    for name, room, unit in rooms:
        each = getattr(config.executor, name)
        if each and room is not None and room < each:
            text = (
                f"{name} {each:g} is more than the {room:.4g} {unit} of {node}: "
                "there would be no workers"
            )
            yield (*_ENGINE, name), text, level


@_WORKERS.rule("GCW007", "error")
def affinity(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers that cannot be bound to cores as asked.

    An unknown `cpu_affinity` ends the manager at its start. A list that has not one entry for each
    worker, or more workers than cores, ends each worker at its start, over and over, and tasks wait
    for ever.
    """
    value = str(config.executor.cpu_affinity).lower()
    if value == "none":
        return

    place = (*_ENGINE, "cpu_affinity")
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
    elif value not in ("block", "alternating", "block-reverse"):
        text = (
            f"cpu_affinity {value!r} is unknown; "
            "there are none, block, block-reverse, alternating, and list:..."
        )
        yield place, text
        return

    # a worker is bound to what it may run on, whatever its manager counts
    bindable = len(os.sched_getaffinity(0)) if config.is_local else None
    cores = _first(getattr(config.provider, "cores_per_node", None), bindable)
    if workers is not None and cores is not None and workers > cores:
        text = (
            f"cpu_affinity {value!r} needs a core for each worker: "
            f"{workers} workers, {cores:g} cores"
        )
        yield place, text


@_WORKERS.rule("GCW008", "error")
def no_such_device(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A worker that is pinned to a GPU that is not there.

    On NVIDIA nodes Parsl divides workers by GPUs, rounds down, and gives worker *n* the device *n*
    divided by that. Where they do not divide evenly, the last workers get a number that no GPU has:
    there, CUDA finds no device.
    """
    workers = config.profile.workers_per_manager
    gpus = config.gpus
    if not gpus or workers is None:
        return

    names = config.executor.available_accelerators[:workers]
    are_numbers = list(names) == [str(number) for number in range(len(names))]
    if not are_numbers:
        # names of another form are the user's own, who knows what they stand for
        return

    devices = meaning.divided_devices(names, gpus)
    missing = [rank for rank, name in enumerate(devices) if int(name) >= gpus]
    if missing:
        ranks = ", ".join(map(str, missing))
        fitting = max(workers // gpus, 1) * gpus
        text = (
            f"worker {ranks} would get a GPU that is not there: "
            f"{workers} workers on {gpus} NVIDIA GPUs do not divide; have {fitting}"
        )
        yield (*_ENGINE, "available_accelerators"), text


@_WORKERS.rule("GCW027", "error")
def divided_numbers(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Numbers of GPUs that Parsl divides, so that workers crowd on the first.

    Where there is `nvidia-smi` and there are several workers to a GPU, Parsl divides the number of
    each worker's device by the workers of a GPU. It expects 0, 1, 2, 3 for four workers on two
    GPUs, and puts all of them on the first if it gets 0, 0, 1, 1. Names that are no numbers, such
    as the UUIDs of parts of a GPU (MIG), are never divided.
    """
    gpus = config.gpus
    names = config.executor.available_accelerators[: config.profile.workers_per_manager]
    if not gpus or not all(name.isdecimal() for name in names):
        return

    devices = meaning.divided_devices(names, gpus)
    is_shared = len(set(names)) < len(names)
    if is_shared and len(set(devices)) < len(set(names)):
        text = (
            f"available_accelerators {', '.join(names)}: Parsl divides them by "
            f"{len(names) // gpus}, and workers are on GPU {', '.join(devices)}; "
            f"write the number of workers, {len(names)}"
        )
        yield (*_ENGINE, "available_accelerators"), text


@_WORKERS.rule("GCW028", "warning")
def gpus_not_pinned(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """GPUs that a job asks for, and no worker is pinned to.

    Without `available_accelerators` every worker sees all GPUs, and what loads a model takes the
    first: all copies of the state are on one GPU, and the others are billed and idle. Nothing is
    said where a node has one worker, which may use all of them.
    """
    gpus, _ = meaning.requested_gpus(config.provider)
    workers = config.profile.workers_per_manager
    is_pinned = bool(config.executor.available_accelerators)
    if not gpus or gpus < 2 or workers == 1 or is_pinned or config.is_mpi:
        return

    number = "a worker for each core" if workers is None else f"{workers} workers"
    copies = "all" if workers is None else f"all {workers}"
    text = (
        f"{gpus} GPUs asked for, {number}, and no available_accelerators: {copies} copies of the "
        f"state go to the first GPU; write available_accelerators: {workers or gpus}"
    )
    yield _ENGINE, text


@_WORKERS.rule("GCW029", "warning")
def amd_pinning(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """AMD GPUs, of which workers but the first find none.

    Parsl pins a worker by CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES at once (Parsl's issue
    3858). The second leaves one GPU, which is number 0 from then on, and HIP looks in it for the
    number that the first says. A module that removes CUDA_VISIBLE_DEVICES from `os.environ` before
    it imports what uses the GPU is well.
    """
    _, is_amd = meaning.requested_gpus(config.provider)
    names = config.executor.available_accelerators
    if is_amd and any(name != "0" for name in names):
        text = (
            "workers on AMD GPUs get CUDA_VISIBLE_DEVICES beside ROCR_VISIBLE_DEVICES, with which "
            "HIP finds no GPU: remove the former from os.environ before torch is imported"
        )
        yield (*_ENGINE, "available_accelerators"), text


@_WORKERS.rule("GCW009", "warning")
def devices_and_workers(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Workers and devices differ in number.

    Each worker is pinned to one entry of `available_accelerators`. There are never more workers
    than entries, whatever `max_workers_per_node` says; with fewer, the last devices stay idle.
    """
    most = config.written(*_ENGINE, "max_workers_per_node")
    devices = len(config.executor.available_accelerators)
    if devices and most and most > 0 and most != devices:
        if most > devices:
            result = f"only {devices} workers will start"
        else:
            result = f"{devices - most} of them will be idle"

        text = (
            f"max_workers_per_node {most} and {devices} available_accelerators: {result}; "
            "give as many of one as of the other"
        )
        yield (*_ENGINE, "max_workers_per_node"), text


@_WORKERS.rule("GCW010", "error")
def one_node_launcher(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A job of several nodes, of which one is used.

    SingleNodeLauncher, the default, starts all managers on the job's first node, and SimpleLauncher
    starts one manager there. The other nodes are billed and idle, and with SingleNodeLauncher the
    first has as many times the copies of the state. Nothing is said of a SimpleLauncher whose
    `worker_init` starts a program on all nodes, such as a server that the workers share.
    """
    profile = config.profile
    nodes = profile.nodes_per_job
    launcher: Any = getattr(config.provider, "launcher", None)
    if profile.nodes_with_workers == nodes or config.is_local or config.is_mpi:
        return

    kind = type(launcher).__name__
    better = _LAUNCHERS.get(type(config.provider).__name__, "an MPI launcher")
    place = (*_PROVIDER, "launcher")
    given = f"nodes_per_block {nodes} with {kind}"

    if kind == "SingleNodeLauncher":
        yield place, f"{given}: all {nodes} managers on the first node; use {better}"
    elif kind == "SimpleLauncher" and not _starts_on_all_nodes(config.provider.worker_init):
        yield place, f"{given}: one manager, on the first node; use {better}"
    elif kind == "WrappedLauncher":
        unless = f"unless {launcher.prepend!r} starts one on each node"
        yield place, f"{given}: one manager, {unless}; use {better}", "warning"


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
        jobs_end_first = config.max_idletime == keep
        place = (*_SCALING, "max_idletime") if jobs_end_first else ("idle_heartbeats_soft",)
        text = (
            f"workers end after {keep:g} s without tasks, and it takes {wait:g} s to be warm "
            "again; keep them for longer than that"
        )
        yield place, text


@_WORKERS.rule("GCW012", "warning")
def undercut(config: _Workers) -> Iterator[tuple[Any, ...]]:
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

    idle = config.written(*_SCALING, "max_idletime")
    if idle is not None and soft < config.max_idletime < math.inf:
        needed = f"idle_heartbeats_soft has to be above {config.max_idletime / period:.0f}"
        yield place, f"max_idletime {idle:g} s is undercut: {stops}; {needed} for that"


@_WORKERS.rule("GCW013", "warning")
def kept_for_ever(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Nodes that are kept, and billed, however long there is no task.

    `min_blocks` above 0, a `strategy` of none, or a `max_idletime` of .inf mean that no job ends
    for lack of tasks; with `idle_heartbeats_soft` 0, its default, neither does the endpoint.
    """
    if config.is_local or math.isfinite(config.profile.keep_warm):
        return

    place: tuple[str, ...]
    strategy = config.engine._job_status_kwargs["strategy"]
    least = config.provider.min_blocks
    if strategy in ("none", None):
        why = f"strategy {strategy}"
        place = (*_SCALING, "strategy")
        remedy = "strategy: simple"
    elif least > 0:
        why = f"min_blocks {least}"
        place = (*_PROVIDER, "min_blocks")
        remedy = "min_blocks: 0"
    else:
        why = "max_idletime .inf"
        place = (*_SCALING, "max_idletime")
        remedy = "a max_idletime in seconds"

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

    place = (*_PROVIDER, "walltime")
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


@_WORKERS.rule(
    "GCW015",
    "error",
    "read in parsl/providers, submit: a job is asked for with this limit, "
    "and its scheduler ends it there",
)
def walltime_too_short(config: _Workers) -> Iterator[tuple[Any, ...]]:
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
        yield (*_PROVIDER, "walltime"), text


@_WORKERS.rule("GCW016", "warning")
def no_drain(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks that still run at the walltime are lost.

    Without a `drain_period`, a job takes tasks until its scheduler kills it; what runs then fails,
    after up to `heartbeat_threshold`, in which more tasks are swallowed. A job that drains takes no
    more tasks after that time, ends what it has, and ends itself.
    """
    walltime = config.profile.walltime
    if walltime is None:
        return

    place = (*_ENGINE, "drain_period")
    drain = config.profile.drain
    task_seconds = config.numbers.task_seconds
    advice = _drain_advice(walltime, task_seconds)
    if not drain:
        are_retried = config.engine.max_retries_on_system_failure > 0
        end = "run once more, cold" if are_retried else "are lost"
        text = (
            "drain_period is not given: tasks that run when the job ends "
            f"after {walltime} s {end}; {advice}"
        )
        yield place, text
    elif drain >= walltime:
        text = (
            f"drain_period {drain} is not before the walltime of {walltime} s, "
            f"so the job never drains; {advice}"
        )
        yield place, text
    elif task_seconds and drain + task_seconds > walltime:
        text = (
            f"drain_period {drain} leaves {walltime - drain} s "
            f"for a task of {task_seconds:g} s; {advice}"
        )
        yield place, text


def _drain_advice(walltime: int, task_seconds: float | None) -> str:
    """Return what to write so that a job drains in time."""
    longest = task_seconds or min(walltime / 10, 900)
    drain = math.floor(walltime - longest - min(walltime / 10, 60))
    if drain <= 0:
        return "ask for a longer walltime"
    return f"set drain_period to walltime less the longest task less a minute: {drain}"


@_WORKERS.rule("GCW017", "warning")
def prefetch(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks wait behind others on one node while workers of another are free.

    With `prefetch_capacity` above 0, a manager takes more tasks than it has workers. They stay
    there, also behind a cold load, and cannot be warmed up node by node. Where all workers belong
    to one manager, it does no harm.
    """
    managers = config.profile.max_jobs * config.profile.managers_per_job
    number = config.executor.prefetch_capacity

    if number > 0 and managers > 1:
        text = (
            f"prefetch_capacity {number}: tasks wait on one of {managers} nodes "
            "though others are free; set it to 0"
        )
        yield (*_ENGINE, "prefetch_capacity"), text


@_WORKERS.rule("GCW018", "error")
def timeout_too_short(config: _Workers) -> Iterator[tuple[Any, ...]]:
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
        yield (*_PROVIDER, "worker_init"), text


@_WORKERS.rule(
    "GCW020",
    "error",
    "read in parsl/executors/high_throughput/process_worker_pool.py: "
    "each worker is a process of its own",
)
def state_too_big(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """The copies of the state do not fit into a node.

    Every worker has its own copy. When memory is out, the kernel kills a worker, and an idle one
    can take its manager with it.
    """
    each = config.numbers.state_gb
    workers = config.profile.copies_per_node
    memory = config.memory

    if each and workers and memory and workers * each > memory:
        fitting = math.floor(memory / each)
        remedy = f"; {fitting} would fit" if fitting else ""
        text = (
            f"{workers} workers with {each:g} GB of state each need {workers * each:g} GB, "
            f"and a node has {memory:.4g}{remedy}"
        )
        yield (*_ENGINE, "max_workers_per_node"), text


@_WORKERS.rule("GCW021", "warning")
def sandbox(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Relative paths where each task has a working directory of its own.

    With `run_in_sandbox`, a path such as weights/model.pt leads to another place in every task, and
    warm state that has kept it finds nothing there.
    """
    if not config.engine.run_in_sandbox:
        return

    for name, value in meaning.exports(config.provider).items():
        path = _relative_path(name, value)
        if path is not None:
            text = (
                f"run_in_sandbox, and {name} has the relative path {path!r}, "
                "which each task looks up elsewhere; make it absolute"
            )
            yield (*_PROVIDER, "worker_init"), text


def _relative_path(name: str, value: str) -> str | None:
    """Return the first relative path in a variable's value, None if there is none."""
    if "://" in value:
        return None

    holds_paths = re.search(r"(PATH|DIR|HOME|ROOT|FILE|CACHE)$", name)
    for part in value.split(":"):
        has_dots = re.match(r"\.{1,2}(/|$)", part)
        if has_dots or (holds_paths and re.match(r"[\w.][\w.-]*/", part)):
            return part
    return None


@_WORKERS.rule("GCW022", "warning")
def background(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A program that worker_init starts, for workers of several nodes.

    `worker_init` runs on the first node of a job only. Workers of the others inherit what it
    exports, and find no such program on their node.
    """
    nodes = config.profile.nodes_per_job
    if nodes < 2 or config.is_local or config.is_mpi:
        return

    script = _HERE_DOCUMENT_OR_ARITHMETIC.sub("", config.provider.worker_init)
    script = _COMMENT.sub("", script)
    started = [line for line in script.splitlines() if _starts_a_program(line)]
    if started and not re.search(r"(?<![\w./-])wait(?![\w.-])", script):
        text = (
            "worker_init starts a program in the background, "
            f"on the first of {nodes} nodes only: {started[0].strip()!r}; "
            "start it from a task, as gc_warm.ExternalProcess does"
        )
        yield (*_PROVIDER, "worker_init"), text


def _starts_on_all_nodes(script: str) -> bool:
    """Tell whether a script, but for its comments, has a program that starts others on nodes."""
    return meaning.starts_on_all_nodes(_COMMENT.sub("", script))


def _starts_a_program(line: str) -> bool:
    """Tell whether a line of a script leaves something running, on the node where it runs."""
    if _DAEMON.search(line):
        return not meaning.starts_on_all_nodes(line)

    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    try:
        is_background = any(re.fullmatch(r"[();]*&[();]*", word) for word in words)
    except ValueError:  # a quote that goes on in the next line
        return False
    return is_background and not meaning.starts_on_all_nodes(line)


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
    kind = config.engine.container_type
    options = set(str(config.engine.container_cmd_options or "").split())

    runs_one = "run" in options and not options.isdisjoint(_CONTAINERS_WITHOUT_INIT)
    is_affected = kind in _CONTAINERS_WITHOUT_INIT or (kind == "custom" and runs_one)
    has_init = not options.isdisjoint(("--init", "--init=true"))
    if is_affected and not has_init:
        text = (
            f"{kind} without an init: add --init to container_cmd_options, "
            "unless the image has one of its own"
        )
        yield (*_ENGINE, "container_type"), text


@_WORKERS.rule("GCW024", "error")
def quoting(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Quotes that are gone before a shell sees them.

    The engine takes `launch_cmd` and the command of a container apart into words and puts them
    together with spaces: quotes and backslashes are lost, and what they protected is split or
    expanded.
    """
    is_container = config.engine.container_type
    commands = {
        "launch_cmd": config.written(*_ENGINE, "launch_cmd"),
        "container_cmd_options": config.engine.container_cmd_options if is_container else None,
    }

    for name, value in commands.items():
        place = (*_ENGINE, name)
        # the engine fills in what is in braces
        command = re.sub(r"\{+\w+\}+", "X", str(value or ""))
        try:
            words = shlex.split(command)
        except ValueError as error:
            yield place, f"{name} {value!r} cannot be taken apart into words: {error}"
            continue

        spoilt = _spoilt_words(command, words)
        if spoilt:
            text = (
                f"{name}: the quotes around {spoilt[0]!r} will be lost; "
                "put that into a script, or export it in worker_init"
            )
            yield place, text


def _spoilt_words(command: str, words: list[str]) -> list[str]:
    """Return the words of a command that are split or expanded where their quotes are lost."""
    kept = command.split()
    expanded = " ".join(re.findall(r"'[^']*\$[^']*'", command))

    spoilt = []
    for word in words:
        is_special = re.search(r"[\s;&|<>()*?\[`'\"\\]", word) or word in expanded
        if word not in kept and is_special:
            spoilt.append(word)
    return spoilt


@_WORKERS.rule("GCW025", "error")
def heartbeats(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Managers that are given up between two heartbeats.

    A manager that has not been heard of for `heartbeat_threshold` is taken for dead, and its tasks
    fail; it is heard of every `heartbeat_period`. The engine has both (30 and 120 s); those of the
    endpoint, at the top level, are others.
    """
    period = config.executor.heartbeat_period
    threshold = config.executor.heartbeat_threshold

    has_period = config.written(*_ENGINE, "heartbeat_period") is not None
    place = (*_ENGINE, "heartbeat_period" if has_period else "heartbeat_threshold")
    if threshold <= period:
        text = (
            f"heartbeat_threshold {threshold} s is not above heartbeat_period {period} s: "
            "nodes are lost all the time; have 4 periods"
        )
        yield place, text
    elif threshold < 2 * period:
        text = (
            f"heartbeat_threshold {threshold} s is below two heartbeat_periods of {period} s: "
            "one late beat loses a node; have 4 periods"
        )
        yield place, text, "warning"


@_WORKERS.rule("GCW026", "error")
def preload(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """Something that workers cannot preload.

    A preload is a module, or a callable of one that is called without arguments: a function that is
    not there, or needs an argument, fails in every worker, and each starts cold, with a line in its
    log. So does what cannot be called; and of a generator without @warm, or an async function, a
    call runs nothing. This is read in the source of the module. Where that is found on this
    machine, but not in a folder that the config gives to its workers, they may have another: a
    warning.
    """
    specs = meaning.preloaded(config.provider)
    for mistake in preloads.mistakes(specs, meaning.module_folders(config.provider)):
        text = f"preload: {mistake.text}"
        yield (*_PROVIDER, "worker_init"), text, "error" if mistake.is_certain else "warning"


@_WORKERS.rule(
    "GCW030",
    "warning",
    "read in globus_compute_endpoint/endpoint/config/user_config_template.yaml.j2",
)
def own_environment(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """An environment that a job makes for itself, without gc_warm.

    The template that new endpoints get has each job make an environment that fits the client's
    Python and SDK, and installs globus-compute-endpoint in it, and what the option `requirements`
    says. Nothing else is there: whatever uses `@warm` fails, also where gc_warm is installed beside
    the endpoint. Nothing is said where packages come from a file, which may name it.
    """
    script = _COMMENT.sub("", config.provider.worker_init)
    is_made = _MAKES_ENVIRONMENT.search(script) and _INSTALLS.search(script)
    if not is_made or re.search(r"gc[-_]warm|-r +[^<\s]", script):
        return

    text = (
        "worker_init makes an environment without gc_warm: what uses @warm fails there; add it to "
        "what is installed (in the stock template, by the option requirements)"
    )
    yield (*_PROVIDER, "worker_init"), text


@_WORKERS.rule("GCW031", "warning", "read in parsl/providers/slurm/template.py")
def second_walltime(config: _Workers) -> Iterator[tuple[Any, ...]]:
    """A time limit in the options for Slurm, beside the walltime.

    Parsl writes `scheduler_options` below the line with the walltime, and of two limits Slurm takes
    the last. What is reckoned with the walltime, such as `drain_period`, is then of another job.
    """
    if type(config.provider).__name__ != "SlurmProvider":
        return

    options = config.provider.scheduler_options
    second = re.search(r"^#SBATCH\s(?:.*\s)?(?:--time[= ]|-t\s*)([\w:-]+)", options, re.MULTILINE)
    if second and second[1] != config.provider.walltime:
        text = (
            f"scheduler_options ask for a time of {second[1]} below the walltime of "
            f"{config.provider.walltime}, and Slurm takes the last; write it as walltime"
        )
        yield (*_PROVIDER, "scheduler_options"), text


@_WORKERS.rule(
    "GCW032",
    "warning",
    "read in parsl/executors/high_throughput/interchange.py, expire_bad_managers",
)
def lost_late(config: _Workers) -> Iterator[tuple[Any, ...]]:
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
        yield (*_ENGINE, "heartbeat_threshold"), text


RULES: Mapping[str, Rule[Any]] = {**_WRITTEN.rules, **_WORKERS.rules, **folder_rules.RULES}
"""All rules for configs, by id."""
