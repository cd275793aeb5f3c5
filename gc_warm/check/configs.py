"""Endpoint configs: render and load them with the endpoint's own functions, and say what they mean for warm state.

A config is a folder as ``globus-compute-endpoint configure`` takes it: a Jinja template that makes the YAML of a user endpoint
from the options that come with a task, and a schema of these options. What the YAML means is read off the engine that the
endpoint's loader makes of it, so that it holds for any config and not only for the ones that gc_warm brings.
"""

from __future__ import annotations

import functools
import math
import os
import pwd
import re
import shlex
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import psutil
import yaml
from click import ClickException
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import (
    get_config,
    load_config_yaml,
    load_user_config_template,
    render_config_user_template,
)
from globus_compute_endpoint.endpoint.endpoint import Endpoint
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

from gc_warm.check.options import ConfigError, Options, misfits, schema_of

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    from globus_compute_endpoint.endpoint.config import ManagerEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--manager-config"

LOOPBACK = "127.0.0.1"
_ASK_FOR_WALLTIME = ("SlurmProvider", "PBSProProvider", "TorqueProvider", "LSFProvider", "GridEngineProvider")  # others only take it
NEED_HOURS = ("SlurmProvider", "LSFProvider")
"""Whose walltime Parsl takes apart, as HH:MM:SS; others hand it on, and their schedulers also take seconds."""
TEMPLATE = "user_config_template.yaml.j2"


def folders() -> dict[str, Path]:
    """The configs that come with gc_warm, by name."""
    here = Path(__file__).parents[1]
    home = next(home for home in (here / "endpoint_configs", here.parent / "endpoint_configs") if home.is_dir())  # wheel, checkout
    return {folder.name: folder for folder in sorted(home.iterdir()) if folder.is_dir()}


def user_folder() -> Path:
    """Where the endpoints of this user are."""
    return Path(os.environ.get("GLOBUS_COMPUTE_USER_DIR", "~/.globus_compute")).expanduser()


def find_folder(config: str | os.PathLike[str]) -> Path:
    """The folder of a config.

    Args:
        config: Its path, or the name of one that comes with gc_warm, or of an endpoint of this user.

    Raises:
        FileNotFoundError: It is none of these.
    """
    given, name, shipped = Path(config), os.fspath(config), folders()
    for folder in (given.absolute(), *([shipped[name]] if name in shipped else []), user_folder() / name):
        if folder.is_dir() and _has_template(folder):
            return folder
    if given.is_file():
        raise FileNotFoundError(f"config: {name} is a file; give the folder that holds its {TEMPLATE}")
    if given.is_dir():
        raise FileNotFoundError(f"{name} is not the folder of a config: it has no {TEMPLATE}")
    raise FileNotFoundError(f"config: there is no folder {name!r}, no endpoint of that name, and gc_warm has only {', '.join(shipped)}")


def _has_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True
    core = folder / "config.yaml"  # which may say where the template is
    return core.is_file() and not has_engine(core) and template_path(folder).is_file()


def has_engine(path: Path) -> bool:
    """Whether a YAML file is the configuration of a user endpoint."""
    return _parsed(read_text(path))[1] is not None


def read_text(path: Path) -> str:
    """What is in a file.

    Raises:
        ConfigError: It is not text.
        OSError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None


def render(folder: Path, options: Options, origin: Mapping[str, str] | None = None) -> str:
    """The YAML that the endpoint makes of a config and options.

    Args:
        folder: The config's folder.
        options: What a task's ``user_endpoint_config`` holds.
        origin: Where each option comes from, for messages: ``{"walltime": "options.yaml:3"}``.

    Raises:
        ConfigError: The options do not fit the schema, or the template refuses them. All that do not fit are named.
        FileNotFoundError: The folder has no template.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not the folder of a config: it has no {TEMPLATE}")
    parent, template, rules = _files(folder)
    if not template.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a config: it has no {template.name}")
    schema = schema_of(rules)
    wrong = [f"{(origin or {}).get(name, 'options')}: {what}" for name, what in misfits(options, schema, rules)]
    try:
        text = load_user_config_template(template)
        places, defaults = _defaults(text, schema)
        wrong += [f"{template}:{places[name]}: default of {what}" for name, what in misfits(defaults, schema, rules)]
        if wrong:
            raise ConfigError("\n".join(wrong))
        return _filled_in(parent, template, text, schema, options)
    except ConfigError:
        raise
    except Exception as error:  # a template can end in any
        raise ConfigError(f"{template}:{_template_line(error)}: {_refusal(error)}") from error


def _filled_in(parent: CoreEndpointConfig, path: Path, template: str, schema: Mapping[str, Any], options: Options) -> str:
    user = MappedPosixIdentity(_user(), [], uuid.UUID(int=0))
    return str(render_config_user_template(parent, template, path, user, dict(schema), dict(options), {}))


def template_lines(folder: Path, options: Options, rendered: str) -> list[int]:
    """For each line of what `render` has given, the line of the template that it comes from; 1 where that cannot be told.

    The template is rendered once more, with marks where a setting ends its line. What has no mark of its own, since it was included
    say, belongs to the last one before it.
    """
    without = rendered.splitlines()
    parent, path, rules = _files(folder)
    text, schema = load_user_config_template(path), schema_of(rules)
    try:
        with_marks = _filled_in(parent, path, _marked(text), schema, options).splitlines()
    except Exception:  # it reckons with what it has rendered, so that marks are in its way
        return [1] * len(without)
    lines: list[int] = []
    for line in with_marks:
        found = re.search(f"{_MARK}(\\d+){_MARK}", line)
        lines.append(int(found[1]) if found else lines[-1] if lines else 1)
    is_same = [re.sub(f"{_MARK}\\d+{_MARK}", "", line) for line in with_marks] == without
    return lines if is_same else [1] * len(without)


_MARK = "\ue000"  # of private use, so that nobody else means anything by it


def _marked(template: str) -> str:
    """A template with the number of each line at its end, where a setting ends there: not in a tag, nor in the blanks that it eats."""
    tags = [found.span() for found in re.finditer(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", template, re.DOTALL)]
    lines, end = [], -1
    for number, line in enumerate(template.split("\n"), 1):
        end += len(line) + 1
        words = re.sub(r"\{%.*?%\}", "", line)
        is_setting = re.match(r"\s*(- )?[\w.\"'{}| -]+:(\s|$)", words) and not re.search(r"-[%}#]\}\s*$", line)
        is_in_tag = any(first < end < last for first, last in tags)
        lines.append(f"{line}{_MARK}{number}{_MARK}" if is_setting and not is_in_tag else line)
    return "\n".join(lines)


def _defaults(text: str, schema: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Lines and values of the defaults at the top of a template, where people edit them and no schema looks."""
    lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found = re.fullmatch(r"\{%-? set (\w+) = \1 \| default\((.*)\)(?: \| int)? -?%\}", line.strip())
        if found is None or found[1] not in schema.get("properties", {}):
            continue
        try:
            value = _default(found[2])
        except jinja2.TemplateSyntaxError as error:
            raise jinja2.TemplateSyntaxError(f"default of {found[1]}: {error.message}; text goes in quotes", number) from None
        if value or (value is not None and "default" in schema["properties"][found[1]]):  # else it means: not given
            lines[found[1]], values[found[1]] = number, value
    return lines, values


@functools.cache
def _default(expression: str) -> Any:
    """The value of a default, which has no variables; there are many, and Jinja compiles each."""
    return jinja2.sandbox.SandboxedEnvironment().compile_expression(expression)()


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:  # in a container, say, that is run with some number
        return pwd.struct_passwd((str(os.getuid()), "x", os.getuid(), os.getgid(), "", os.path.expanduser("~"), "/bin/sh"))


def deploy_command(folder: Path) -> str:
    """The command that makes an endpoint of a config, for a user of a login node."""
    files = {
        CORE_CONFIG: folder / "config.yaml",
        "--template-config": template_path(folder),
        "--schema-config": schema_path(folder),
    }
    given = [f"{option} {shlex.quote(str(path))}" for option, path in files.items() if path.exists()]
    return " ".join(["globus-compute-endpoint configure my-endpoint --multi-user false", *given])


def template_path(folder: Path) -> Path:
    """Where the template of a config is; it may have no ``.j2`` at its end."""
    return _files(folder)[1]


def schema_path(folder: Path) -> Path:
    """Where the schema of a config is, or would be."""
    return _files(folder)[2]


def _files(folder: Path) -> tuple[CoreEndpointConfig, Path, Path]:
    """The configuration of the endpoint itself, its template, and its schema."""
    parent = _parent_config(folder)
    template, schema = Path(Endpoint.user_config_template_path(folder, parent)), Path(Endpoint.user_config_schema_path(folder, parent))
    bare = template.with_suffix("") if template.suffix == ".j2" else template
    return parent, bare if bare.is_file() and not template.exists() else template, schema


def load(text: str, source: str | os.PathLike[str]) -> UserEndpointConfig:
    """What the endpoint makes of the YAML of a user endpoint; nothing is started.

    An address that only the login node knows is replaced by this machine's: what is loaded here is for reading.

    Args:
        text: The YAML.
        source: Where it comes from, for messages: the file of the YAML, or of the template it was rendered from.

    Raises:
        ConfigError: The endpoint's loader refuses it, or it has no engine.
    """
    config = load_to_start(_readable_here(text), source, text)
    config.source_content = text
    return config


def load_to_start(text: str, source: str | os.PathLike[str], written: str | None = None) -> UserEndpointConfig:
    """What the endpoint makes of the YAML of a user endpoint as it stands; nothing is started yet.

    Args:
        text: The YAML.
        source: Where it comes from, for messages.
        written: The YAML as people know it, where *text* differs from that.

    Raises:
        ConfigError: The endpoint's loader refuses it, or it has no engine.
    """
    try:
        config = load_config_yaml(text)
    except ClickException as error:
        raise ConfigError(f"{source}:{_line_of(error, written or text, source)}: {_complaint(error)}") from error
    except RecursionError as error:  # which older loaders let through
        raise ConfigError(f"{source}:1: it holds an alias of what the alias is in, so that it has no end") from error
    if not isinstance(config, UserEndpointConfig):
        raise ConfigError(f"{source} has no 'engine:' section, so it is not the configuration of a user endpoint")
    return config


def localize(text: str) -> str:
    """A cluster's YAML, changed so that its jobs run as processes of this machine: as many managers, with as many workers.

    The provider is swapped, and with it goes the walltime; cores are not bound, since this machine may have fewer.
    """
    document, engine = _parsed(text)
    if engine is None:
        return text
    provider = engine.get("provider") or {}
    kept = ("init_blocks", "min_blocks", "max_blocks", "nodes_per_block", "worker_init")
    cores = provider.get("cores_per_node")
    engine["provider"] = {"type": "LocalProvider"} | {name: provider[name] for name in kept if name in provider}
    if cores:  # the Slurm provider tells managers so, too
        engine["provider"]["worker_init"] = f"export PARSL_CORES={cores}\n{provider.get('worker_init') or ''}"
    engine.update(address=LOOPBACK, cpu_affinity="none")
    engine.pop("worker_port", None)  # a port that the site lets through
    return str(yaml.safe_dump(document))


@dataclass(frozen=True)
class Meaning:
    """What a config means for warm state and for the bill.

    Attributes:
        copies_per_node: Workers on a node, each with its own copy of the state; None if that depends on the node's cores.
        nodes_per_job: Nodes of one job.
        max_jobs: Jobs at the same time, at most.
        copies: Copies of the state in all, at most.
        keep_warm: Seconds without tasks that state is kept, at least; infinite if their lack ends nothing.
        job_idle: Seconds without tasks after which jobs end; infinite if never.
        endpoint_idle: Seconds without tasks after which the endpoint itself stops; infinite if never.
        walltime: Seconds that a job lives at most; None where there is no such limit.
        drain: Seconds after which a job takes no more tasks; None if it never drains.
        task_timeout: Seconds that a task may take; None if there is no limit.
        restart: Seconds after which a worker that died is back, at most.
        idle_hour: Node-hours that an hour of idle, warm workers costs; None where nothing is billed.
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


def meaning(config: UserEndpointConfig) -> Meaning:
    """What a loaded config means.

    Raises:
        ConfigError: Its engine has no workers that could be warm.
    """
    engine: Any = config.engine
    provider = getattr(getattr(engine, "executor", None), "provider", None)
    if provider is None:
        raise ConfigError(f"{type(engine).__name__} starts no workers in jobs of their own; use GlobusComputeEngine")
    soft = config.idle_heartbeats_soft * config.heartbeat_period or math.inf
    scaling = engine._job_status_kwargs
    idle = math.inf if provider.min_blocks or scaling["strategy"] in ("none", None) else scaling["max_idletime"]
    walltime = _seconds(provider)
    keep_warm = min(idle, soft)
    nodes, jobs = provider.nodes_per_block, provider.max_blocks
    per_node, is_mpi = _workers(engine.executor), type(engine).__name__ == "GlobusMPIEngine"  # with workers on the first node only
    until_cold = keep_warm + (config.heartbeat_period if soft <= idle else scaling["strategy_period"])
    return Meaning(
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


def in_words(meaning: Meaning) -> list[tuple[str, str]]:
    """What a config means, as pairs of a heading and a sentence."""
    workers = "one for each core of a node"
    if meaning.copies_per_node is not None:
        workers = f"{meaning.copies_per_node} on each node, {meaning.copies} in all"
    jobs = f"{_count(meaning.nodes_per_job, 'node')} a job, {_count(meaning.max_jobs, 'job')} at most"
    stays = "however long there is no task"
    if math.isfinite(meaning.keep_warm):
        stays = f"for {_time(meaning.keep_warm)} without any task"
    if meaning.walltime is not None and meaning.walltime <= meaning.keep_warm:
        stays = f"until its job ends after {_time(meaning.walltime)}, which is sooner than keep_warm"
    if math.isfinite(meaning.endpoint_idle):
        stays += f"; the endpoint stops after {_time(meaning.endpoint_idle)}, and starts again for the next task"
    said = [("copies of the state", f"{workers} ({jobs})"), ("stays warm", stays)]
    if meaning.devices:
        said.insert(1, ("devices of a node's workers", ", ".join(meaning.devices)))
    if meaning.walltime is not None:
        drain = "tasks that still run then are lost" if meaning.drain is None else f"it takes no new tasks after {_time(meaning.drain)}"
        said.append(("a job ends", f"after {_time(meaning.walltime)} at the latest; {drain}"))
    said.append(("a worker that dies", f"is replaced, cold, within {_time(meaning.restart)}; its task fails"))
    said.append(("a task", f"may take {_time(meaning.task_timeout)}" if meaning.task_timeout else "may take any time"))
    return said + _costs(meaning)


def _costs(meaning: Meaning) -> list[tuple[str, str]]:
    if meaning.worst_case is None or meaning.idle_hour is None or meaning.idle_cost is None:
        return []
    worst = f"{_count(meaning.worst_case, 'node-hour')}, if every job runs to its walltime; jobs that follow cost as much again"
    idle = (
        f"{_count(meaning.idle_hour, 'node-hour')} an hour; from the last task until cold, {_count(meaning.idle_cost, 'node-hour')} at most"
    )
    return [("being idle costs", idle), ("the worst case costs", worst)]


def _count(number: float, what: str) -> str:
    return f"{round(number, 2):,g} {what}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    """Seconds as people say them: 90 s, 10 min, 1 h 30 min."""
    if seconds < 120:
        return f"{seconds:g} s"
    hours, minutes, rest = int(seconds // 3600), int(seconds % 3600 // 60), seconds % 60
    return " ".join([f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes) + [f"{rest:g} s"] * bool(rest))


def _workers(executor: Any) -> int | None:
    """As many as a manager starts on a node, by the same rule."""
    cores = getattr(executor.provider, "cores_per_node", None) or exported(executor.provider, "PARSL_CORES")
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
        return tuple(str(number * gpus // len(names)) for number in range(len(names)))  # as Parsl does where there is nvidia-smi
    return names


def exports(provider: Any) -> dict[str, str]:
    """What a provider's ``worker_init`` exports, as far as that stands in lines of its own."""
    found = {}
    for line in re.findall(r"^\s*export\s+(.+)$", provider.worker_init, re.MULTILINE):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that goes on in the next line
            continue
        found.update({name: value.rstrip(";") for name, equals, value in (word.partition("=") for word in words) if equals})
    return found


def exported(provider: Any, name: str) -> float | None:
    """The number that a provider's ``worker_init`` exports under a name; None if there is none."""
    value = exports(provider).get(name, "")
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else None


def _seconds(provider: Any) -> int | None:
    """The walltime of a job; None where there is no limit, or what is written is none, of which a rule tells."""
    name = type(provider).__name__
    parts = str(getattr(provider, "walltime", "")).split(":")
    is_time = all(re.fullmatch(r" *\d{1,9} *", part) for part in parts) and len(parts) in ((3,) if name in NEED_HOURS else (1, 2, 3))
    if not is_time or name not in _ASK_FOR_WALLTIME:
        return None
    hours, minutes, seconds = [0, 0, *map(int, parts)][-3:]
    return 3600 * hours + 60 * minutes + seconds


def _parent_config(folder: Path) -> CoreEndpointConfig:
    if (folder / "config.py").exists():
        raise ConfigError(f"{folder / 'config.py'}: a configuration in Python is only known by running it; write it as config.yaml")
    try:
        parent = get_config(folder)
    except ClickException as error:
        raise ConfigError(f"{folder / 'config.yaml'}: {_complaint(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{folder / 'config.yaml'} is not UTF-8 text: {error}") from None
    if isinstance(parent, CoreEndpointConfig):
        return parent
    raise ConfigError(f"{folder / 'config.yaml'} has an 'engine:' section; in a config with a template, that belongs in the template")


def _parsed(text: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A document and its engine, None where there is none: the endpoint's loader is to say so."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, None
    engine = document.get("engine") if isinstance(document, dict) else None
    return document, engine if isinstance(engine, dict) else None


def _readable_here(text: str) -> str:
    """Replace an address that cannot be found out here, or only by asking a service on the network."""
    document, engine = _parsed(text)
    if engine is None or isinstance(engine.get("address"), str) or engine.get("type") in ("ThreadPoolEngine", "ProcessPoolEngine"):
        return text
    address = engine.get("address")
    if isinstance(address, dict) and (address.get("type") != "address_by_interface" or address.get("ifname") in psutil.net_if_addrs()):
        return text
    engine["address"] = LOOPBACK
    try:
        return str(yaml.safe_dump(document))
    except RecursionError:  # of which the loader will tell
        return text


def _template_line(error: Exception) -> int:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    return next((frame.lineno or 1 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"), 1)


def _refusal(error: Exception) -> str:
    """The words of a template that refuses: it can only ask for a key that is missing."""
    said = re.fullmatch(r"'dict object' has no attribute '(.+ .+)'", str(error))
    return said[1] if said else str(error) or type(error).__name__


def _complaint(error: ClickException) -> str:
    """Return what the loader says; of pydantic's words, the setting and the reason."""
    places = _places(error)
    return "\n".join(f"{'.'.join(place)}: {reason}" for place, reason in places) if places else error.message


def _places(error: ClickException) -> list[tuple[list[str], str]]:
    """Return the path of names to each setting that pydantic refuses, and the reason; nothing where somebody else refuses."""
    if not isinstance(error.__cause__, ValueError) or not hasattr(error.__cause__, "errors"):
        return []
    return [([str(name) for name in each["loc"]], each["msg"]) for each in error.__cause__.errors()]


def _line_of(error: ClickException, text: str, source: str | os.PathLike[str]) -> int:
    """Return the line of the source that the loader's complaint is about.

    That is the line of the setting whose name the complaint uses, the innermost if there are several, or to which its path leads.
    """
    mark = getattr(error.__cause__, "problem_mark", None)
    lines = Path(source).read_text(encoding="utf-8").splitlines() if os.path.isfile(source) else text.splitlines()
    if mark is not None:
        rendered = text.splitlines()
        wanted = rendered[min(mark.line, len(rendered) - 1)].strip()
        return next((number for number, line in enumerate(lines, 1) if line.strip() == wanted), mark.line + 1)

    places = _places(error)
    words = " ".join(reason for _, reason in places) if places else error.message
    named = set(re.findall(r"\w+", words)) - {"type"}  # a word of many complaints, and of many sections
    keys = [(key, number) for number, line in enumerate(lines, 1) if (key := re.match(r"(\s*)(?:- )?(\w+):", line)) and key[2] in named]
    if keys:
        return max(keys, key=lambda found: (len(found[0][2]), len(found[0][1]), -found[1]))[1]
    return _line_at(places[0][0], lines) if places else 1


def _line_at(path: Sequence[str], lines: Sequence[str]) -> int:
    """Return the line of a setting, by the names of the sections that it is in and its own."""
    at = 0
    for name in path:
        if name != "type":  # which says of the section around it what that is
            at = next((number for number in range(at, len(lines)) if re.match(rf"\s*(- )?{re.escape(name)}:", lines[number])), at)
    return at + 1
