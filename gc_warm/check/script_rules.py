"""Rules for what jobs run beside workers: worker_init, containers and commands."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

from gc_warm.check import preload as preloads
from gc_warm.check.config_subjects import (
    COMMENT,
    WORKERS,
    Workers,
)
from gc_warm.configs import containers, meaning
from gc_warm.configs.repairs import ENGINE, PROVIDER

_DAEMON = re.compile(
    r"""\bray\ +start\b(?!.*--block)
    | --daemonize\b
    | (?<![\w-])daemonize\ +[-/\w]
    | \bsetsid\ +(-f|--fork)\b
    | \btmux\b.*\bnew.*\ -\w*d
    | \bscreen\b.*\ -(dm|d\ +-m)
    | \bmps-control\ +-d\b
    | \bpg_ctl\b.*\ start\b
    | \b(memcached\b.*\ -d|mongod\b.*\ --fork)\b
    | \b(docker|podman)\b.*\ (-[it]*d[it]*|--detach)(?!\S)
    | \b(apptainer|singularity)\ +instance\ +(start|run)\b
    | \bstart-stop-daemon\b.*\ (-b|--background)\b
    | \bsystemd-run\b""",
    re.VERBOSE,
)
"""Commands that end, and leave a program behind."""

_WAITS = re.compile(r"(?:^|[;&|({]|\bthen|\bdo|\belse)\s*wait(?![\w.-])", re.MULTILINE)

_OUTSIDE = re.compile(
    r"(PATH|LD_LIBRARY_PATH|HOME|TMPDIR|.*_proxy"
    r"|(DOCKER|PODMAN|CONTAINERS?|XDG|APPTAINER|SINGULARITY)(ENV)?_.*)$",
    re.IGNORECASE,
)
_ACTIVATES = re.compile(
    r"\b(conda|mamba|micromamba) +activate\b|(\bsource|^ *\.) +\S*activate\b", re.MULTILINE
)
_MAKES_ENVIRONMENT = re.compile(r"\buv +venv\b|-m +venv\b|\bvirtualenv\b|\bconda +create\b")
_INSTALLS = re.compile(r"\bpip3? +install\b")
_HERE_DOCUMENT_OR_ARITHMETIC = re.compile(
    r"<<-?\s*['\"]?(\w+).*?\n\s*\1\s*$|\$\(\(.*?\)\)", re.DOTALL | re.MULTILINE
)


@WORKERS.rule("GCW021", "warning")
def sandbox(config: Workers) -> Iterator[tuple[Any, ...]]:
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
            yield (*PROVIDER, "worker_init"), text


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


@WORKERS.rule("GCW022", "warning")
def background(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A program that worker_init starts, for workers of several nodes.

    `worker_init` runs on the first node of a job only. Workers of the others inherit what it
    exports, and find no such program on their node.
    """
    nodes = config.profile.nodes_per_job
    if nodes < 2 or config.is_local or config.is_mpi:
        return

    script = _HERE_DOCUMENT_OR_ARITHMETIC.sub("", config.provider.worker_init)
    script = COMMENT.sub("", script).replace("\\\n", " ")
    started = [line for line in script.splitlines() if _starts_a_program(line)]
    if started and not _WAITS.search(script, script.rindex(started[-1])):
        text = (
            "worker_init starts a program in the background, "
            f"on the first of {nodes} nodes only: {started[0].strip()!r}; "
            "start it from a task, as gc_warm.ExternalProcess and gc_warm.ExternalServer do"
        )
        yield (*PROVIDER, "worker_init"), text


def _starts_a_program(line: str) -> bool:
    """Tell whether a line of a script leaves something running, on the node where it runs."""
    if _DAEMON.search(line):
        return not meaning.starts_on_all_nodes(line)

    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    try:
        # not ;& or ;;&, with which a branch of a case ends
        is_background = any(re.fullmatch(r"([();]*\))?&[();]*", word) for word in words)
    except ValueError:  # a quote that goes on in the next line
        return False
    return is_background and not meaning.starts_on_all_nodes(line)


@WORKERS.rule(
    "GCW023",
    "warning",
    "read in globus_compute_endpoint/engines/globus_compute.py, containerized_launch_cmd",
)
def no_init(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A container without a process that waits for orphans.

    In a container of docker or podman the manager is process 1, unless its image brings an init. It
    waits for none but its own children, so each program that loses its parent stays as a zombie
    until the job ends.
    """
    kind = config.engine.container_type
    options = set(str(config.engine.container_cmd_options or "").split())

    is_affected = containers.program(config.engine) in containers.WITHOUT_ENVIRONMENT
    has_init = not options.isdisjoint(("--init", "--init=true"))
    if is_affected and not has_init:
        text = (
            f"{kind} without an init: add --init to container_cmd_options, "
            "unless the image has one of its own"
        )
        yield (*ENGINE, "container_type"), text


@WORKERS.rule(
    "GCW038",
    "warning",
    "read in globus_compute_endpoint/engines/globus_compute.py, containerized_launch_cmd",
)
def unseen_variables(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Variables of worker_init that workers in a container do not see.

    `worker_init` runs outside the container. Docker and podman hand over no variable that their
    options do not name (`--env NAME`), and neither does apptainer with `--cleanenv` or
    `--containall`: a time-out, a path of modules, an activated environment or a preload is not
    there for workers. Nor is what Parsl exports of `cores_per_node`: a manager counts all cores of
    its node, if `max_workers_per_node` does not limit it. Nothing is said of variables that the
    program outside may need, such as PATH.
    """
    provider = config.provider
    program = containers.program(config.engine)
    names = [name for name in meaning.exports(provider) if not _OUTSIDE.match(name)]
    unseen = [name for name in names if containers.hides(config.engine, name)]
    if meaning.all_preloads(provider) and containers.hides(config.engine, "GC_WARM_PRELOAD"):
        unseen.append("what gc_warm.worker.boot exports")

    script = COMMENT.sub("", provider.worker_init)
    if _ACTIVATES.search(script) and program in containers.WITHOUT_ENVIRONMENT:
        unseen.append("the environment that it activates")
    counts = math.isinf(config.executor.max_workers_per_node)
    given = [name for name in meaning.counted(provider) if counts and name not in unseen]
    unseen += [name for name in given if containers.hides(config.engine, name)]
    if unseen:
        text = (
            f"workers in {program} do not see what is exported outside: {', '.join(unseen)}; name "
            "it in container_cmd_options (--env NAME), or have it in the image"
        )
        yield (*PROVIDER, "worker_init"), text


@WORKERS.rule("GCW024", "error")
def quoting(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Quotes that are gone before a shell sees them.

    The engine takes `launch_cmd` and the command of a container apart into words and puts them
    together with spaces: quotes and backslashes are lost, and what they protected is split or
    expanded.
    """
    is_container = config.engine.container_type
    commands = {
        "launch_cmd": config.written(*ENGINE, "launch_cmd"),
        "container_cmd_options": config.engine.container_cmd_options if is_container else None,
    }

    for name, value in commands.items():
        place = (*ENGINE, name)
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


@WORKERS.rule("GCW026", "error")
def preload(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Something that workers cannot preload.

    A preload is a module, or a callable of one that is called without arguments: a function that is
    not there, or needs an argument, fails in every worker, and each starts cold, with a line in its
    log. So does what cannot be called; and of a generator without @warm, or an async function, a
    call runs nothing. This is read in the source of the module. Where that is found on this
    machine, but not in a folder that the config gives to its workers, they may have another: a
    warning.
    """
    specs = meaning.all_preloads(config.provider)
    for mistake in preloads.mistakes(specs, meaning.module_folders(config.provider)):
        text = f"preload: {mistake.text}"
        yield (*PROVIDER, "worker_init"), text, "error" if mistake.is_certain else "warning"


@WORKERS.rule("GCW040", "error")
def forked_for_mpi(config: Workers) -> Iterator[tuple[Any, ...]]:
    """State that is to be loaded once on each node, of a GlobusMPIEngine.

    Its workers are not forked: tasks of MPI start processes on several nodes, and these have
    nothing of a worker's memory. All of `preload_node` would be left out.
    """
    specs = meaning.preloaded_on_node(config.provider)
    if config.is_mpi and specs:
        text = f"--preload-node={','.join(specs)} does nothing in a GlobusMPIEngine: use preload"
        yield (*PROVIDER, "worker_init"), text


@WORKERS.rule("GCW045", "error")
def routed_for_mpi(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Tasks that are to go where state is warm, in a GlobusMPIEngine.

    Its manager gives each task the nodes that are free, before a worker has it: a task that waited
    for another worker would keep nodes from those that could run. `warm_first` does nothing there.
    """
    if config.is_mpi and config.profile.ahead is not None:
        text = "--warm-first does nothing in a GlobusMPIEngine: leave it out"
        yield (*PROVIDER, "worker_init"), text


@WORKERS.rule(
    "GCW030",
    "warning",
    "read in globus_compute_endpoint/endpoint/config/user_config_template.yaml.j2",
)
def own_environment(config: Workers) -> Iterator[tuple[Any, ...]]:
    """An environment that a job makes for itself, without gc_warm.

    The template that new endpoints get has each job make an environment that fits the client's
    Python and SDK, and installs globus-compute-endpoint in it, and what the option `requirements`
    says. Nothing else is there: whatever uses `@warm` fails, also where gc_warm is installed beside
    the endpoint. Nothing is said where packages come from a file, which may name it.
    """
    script = COMMENT.sub("", config.provider.worker_init)
    is_made = _MAKES_ENVIRONMENT.search(script) and _INSTALLS.search(script)
    if not is_made or re.search(r"gc[-_]warm|-r +[^<\s]", script):
        return

    text = (
        "worker_init makes an environment without gc_warm: what uses @warm fails there; add it to "
        "what is installed (in the stock template, by the option requirements)"
    )
    yield (*PROVIDER, "worker_init"), text
