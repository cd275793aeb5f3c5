"""Answers to the questions of the first hour on a login node.

Is everything there that a config relies on, and what was left behind? The worker's environment is
made as a job makes it, by running the config's ``worker_init``, but on this machine; a compute node
may differ. Nothing is submitted and nothing is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_sdk.sdk._environments import get_amqp_service_host

from gc_warm import processes
from gc_warm.check import probe
from gc_warm.configs import meaning
from gc_warm.hooks import STARTUP, backoff, fork_safety, installing

# seconds for an environment to be made, and for modules to be imported there
_PROBE_TIMEOUT = 120
# bytes: an environment that prints more is out of hand
_MOST_OUTPUT = 10_000_000
# bytes of the end of that output which are read, and how much of them is shown
_OUTPUT_TAIL = 10_000
_SHOWN_LINES = 10
_SHOWN_WIDTH = 200
# seconds between two looks whether all that has ended
_WATCH_INTERVAL = 0.02
# seconds for a scheduler to answer
_SCHEDULER_TIMEOUT = 30

_COMMANDS = {
    "SlurmProvider": ("sbatch", "squeue", "scancel"),
    "PBSProProvider": ("qsub", "qstat", "qdel"),
}
_INTERCHANGE = "parsl: HTEX interchange"
# what `gc_warm.hooks.forkserver` logs
_NOT_FORKED = re.compile(r"workers (?:are not forked, since|start without) .*")

_LOG_FILES = {
    "endpoint.log": "the endpoint: which user endpoints it starts, and with which options",
    "../uep.*/endpoint.log": "a user endpoint: tasks that come and go, jobs that are asked for",
    "../uep.*/submit_scripts/": (
        "each job's script, and what it said: a bad environment shows here, "
        "and so does what tasks print"
    ),
    "../uep.*/Globus*/interchange.log": "workers that report, and are lost",
    "../uep.*/Globus*/block-*/*/manager.log": (
        "how many workers a node has, and which of them died"
    ),
    "../uep.*/Globus*/block-*/*/worker_*.log": "one worker: its tasks, and what gc_warm logs",
}
LOGS = "\n".join(f"{file:39}  {subject}" for file, subject in _LOG_FILES.items())
"""The subject of each log file in an endpoint's folder, ``~/.globus_compute/NAME``."""


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        level: "ok" for what is as it should be, "warning" for what is worth a look, "error" for
            what cannot work.
        about: What was asked.
        text: The answer.
    """

    level: Literal["ok", "warning", "error"]
    about: str
    text: str


def look(config: UserEndpointConfig, modules: Sequence[str] = ()) -> Iterator[Answer]:
    """Look whether everything is there that a loaded config relies on.

    Args:
        config: A config as `gc_warm.configs.loading.load` returns it.
        modules: Warmable modules that workers have to be able to import.

    Yields:
        An answer to each question, as soon as it is known.
    """
    executor: Any = config.engine.executor
    provider = executor.provider
    forked = dict.fromkeys(_modules_of(meaning.preloaded_on_node(provider)))
    needed = dict.fromkeys([*forked, *modules, *_modules_of(meaning.preloaded(provider))])

    if config.engine.container_type:
        text = "workers run in containers, and what is in their image is not looked at"
        yield Answer("warning", "environment", text)
    else:
        yield from _worker_environment(provider, list(needed), len(forked))
    yield from _scheduler(provider)
    yield from _ports(config, executor)
    yield from _left_behind()


def refused_jobs(endpoint: Path) -> Iterator[Answer]:
    """Yield the last refusal by the scheduler for each user endpoint that waits after one.

    Args:
        endpoint: The folder of an installed endpoint; one that is none has no user endpoints.
    """
    for folder in _user_endpoints(endpoint):
        refusal = backoff.read(folder)
        if refusal is None:
            continue

        text = f"{_clock(refusal.time)}, refusal {refusal.tries} in a row; {folder.name} "
        if _lives(folder):
            text += f"tries again at {_clock(refusal.next_try)}, or when a job of its ends"
        else:
            text += "has ended since"
        yield Answer("warning", "refused job", f"{text}:\n{refusal.text}")


def hooks_left_out(endpoint: Path) -> Iterator[Answer]:
    """Yield the hooks of an installed endpoint's user endpoints that its Parsl leaves out.

    Args:
        endpoint: The folder of the endpoint.
    """
    path = str(_variables_of_user_endpoints(endpoint).get("PYTHONPATH", ""))
    if STARTUP in path.split(os.pathsep):
        for name, reason in installing.left_out("user endpoint").items():
            yield Answer("warning", name, f"does nothing in user endpoints: {reason}")


def workers_not_forked(endpoint: Path) -> Iterator[Answer]:
    """Yield why the latest workers of each user endpoint were not forked, if that was asked for.

    Args:
        endpoint: The folder of an installed endpoint; one that is none has no user endpoints.
    """
    for folder in _user_endpoints(endpoint):
        logs = sorted(folder.glob("*/block-*/*/manager.log"), key=lambda log: log.stat().st_mtime)
        for log in logs[-1:]:
            found = _NOT_FORKED.findall(log.read_text(errors="replace"))
            if found:
                text = f"{_clock(log.stat().st_mtime)}, {folder.name}: {found[-1]}"
                yield Answer("warning", "preload_node", text)


def _user_endpoints(endpoint: Path) -> list[Path]:
    """Return the folders of an endpoint's user endpoints; none for what is no endpoint."""
    try:
        endpoint_id = json.loads((endpoint / "endpoint.json").read_bytes())["endpoint_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return sorted(endpoint.parent.glob(f"uep.{endpoint_id}.*"))


def _modules_of(specs: Sequence[str]) -> list[str]:
    return [spec.partition(":")[0] for spec in specs]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _worker_environment(provider: Any, modules: Sequence[str], forked: int) -> Iterator[Answer]:
    """Answer whether workers can start in their environment, and have what they need there.

    Args:
        provider: The provider whose ``worker_init`` makes the environment.
        modules: Modules to be imported there.
        forked: The number of modules, of the first ones, that workers are to be forked with.
    """
    with tempfile.TemporaryDirectory(prefix="gc_warm-", ignore_cleanup_errors=True) as folder:
        status, found, output = _probe(provider, [str(forked), *modules], Path(folder))

    if found is None:
        text = f"no workers could start in it: it ends with exit status {status}"
        if output:
            text += f", and says:\n{output}"
        yield Answer("error", "environment", text)
        return

    yield Answer("ok", "environment", f"workers run {found['executable']}")
    if output:
        yield Answer("warning", "environment", f"it says:\n{output}")

    for package, version in probe.versions().items():
        yield _compared(package, version, found["versions"][package])

    for name, reason in found["hooks"].items():
        yield Answer("warning", name, f"does nothing for workers: {reason}")

    for name, result in found["imports"].items():
        yield _import_answer(name, result)
    if objections := "; ".join(found.get("objections", ())):
        text = f"workers would not be forked, since {objections}: {fork_safety.ADVICE}"
        yield Answer("warning", "preload_node", text)
    unfinished = found["importing"]
    if unfinished:
        text = f"its import does not come back: the process ended with status {status}"
        yield Answer("error", f"module {unfinished}", text)


def _import_answer(name: str, result: dict[str, Any]) -> Answer:
    """Return the answer to whether workers can import a module."""
    about = f"module {name}"
    if "error" not in result:
        return Answer("ok", about, f"imported in {result['seconds']:.1f} s")

    text = result["error"]
    if result["missing"]:
        text += "; install it in that environment, or name its folder in python_path"
    return Answer("error", about, text)


def _probe(
    provider: Any, arguments: Sequence[str], folder: Path
) -> tuple[int, dict[str, Any] | None, str]:
    """Run the probe in a worker's environment.

    Args:
        provider: The provider whose ``worker_init`` makes the environment.
        arguments: The probe's arguments but its first.
        folder: An empty folder for the probe's files.

    Returns:
        The exit status; what the probe finds, None if it could not be run; and the end of what the
        environment and the probe print.
    """
    script = folder / "gc_warm_probe.py"
    answer = folder / "answer"
    output = folder / "said"
    shutil.copy(probe.__file__, script)

    mark = uuid.uuid4().hex
    try:
        shell = _start_probe(provider, [str(answer), *arguments], folder, output, mark)
        while shell.poll() is None and output.stat().st_size < _MOST_OUTPUT:
            time.sleep(_WATCH_INTERVAL)
    finally:
        # also what the environment left running, and when this is interrupted
        processes.end_all(mark)

    shell.wait()
    found = json.loads(answer.read_text()) if answer.exists() else None
    return shell.returncode, found, _end_of(output)


def _start_probe(
    provider: Any, arguments: Sequence[str], folder: Path, output: Path, mark: str
) -> subprocess.Popen[bytes]:
    """Start a shell that makes a worker's environment and becomes the probe.

    Args:
        provider: The provider whose ``worker_init`` makes the environment.
        arguments: Arguments of the probe.
        folder: The folder in which the probe lies, and the shell starts.
        output: The file for all that is printed.
        mark: A mark for the environment of all processes, see `gc_warm.processes`.

    Returns:
        The shell, which does not run for longer than `_PROBE_TIMEOUT`.
    """
    place = shlex.quote(str(folder))
    command = "\n".join(
        [
            provider.worker_init,
            f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}"{place} '
            f"GLOBUS_COMPUTE_USER_DIR={place}",
            'exec globus-compute-endpoint python-exec gc_warm_probe "$@"',
        ]
    )
    limit = ["timeout", "--kill-after=1", str(_PROBE_TIMEOUT)]
    is_pbs = type(provider).__name__ == "PBSProProvider"
    surroundings = _bare_environment() if is_pbs else dict(os.environ)

    # a file, since what the environment leaves running would hold a pipe open
    with output.open("wb") as stdout:
        return subprocess.Popen(
            [*limit, "/bin/bash", "-c", command, "bash", *arguments],
            cwd=folder,
            env={**surroundings, processes.MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end_of(path: Path) -> str:
    """Return the last lines of a file, as far as a terminal can show them."""
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - _OUTPUT_TAIL))
        text = file.read().decode(errors="replace")

    lines = text.strip().splitlines()[-_SHOWN_LINES:]
    shown = [re.sub(r"[^\t -~\u00a0-\uffff]", "?", line)[:_SHOWN_WIDTH] for line in lines]
    return "\n".join(shown)


def _bare_environment() -> dict[str, str]:
    """Return the environment that a PBS job starts with, as far as it matters.

    Slurm, in contrast, hands on the submitter's.
    """
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for name in ("HOME", "USER", "LOGNAME", "LANG"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _compared(package: str, here: str | None, there: str | None) -> Answer:
    """Return how the version of a package for workers compares with the one here."""
    if there is None and package == "gc-warm":
        text = "not in the worker's environment: @warm cannot be used there; pip install it"
        return Answer("warning", package, text)
    if there is None:
        text = "not in the worker's environment: pip install globus-compute-endpoint there"
        return Answer("error", package, text)
    if here == there:
        return Answer("ok", package, there)

    text = f"{there} for workers, {here} here"
    is_same_minor = (here or "").split(".")[:2] == there.split(".")[:2]
    if package in ("python", "dill") and not is_same_minor:
        text += ": functions that are sent whole may fail; use the same"
        return Answer("warning", package, text)
    return Answer("ok", package, text)


def _scheduler(provider: Any) -> Iterator[Answer]:
    """Answer whether this machine can submit the provider's jobs."""
    kind = type(provider).__name__
    for command in _COMMANDS.get(kind, ()):
        path = shutil.which(command)
        if path:
            yield Answer("ok", command, path)
        else:
            yield Answer("error", command, "not found: this machine submits no jobs")

    if kind == "SlurmProvider" and shutil.which("sinfo"):
        yield from _partition(provider.partition)


def _partition(partition: str | None) -> Iterator[Answer]:
    """Answer whether Slurm knows the partitions that jobs are to run in."""
    listed = _run("sinfo", "--noheader", "--format=%R")
    if listed.returncode:
        yield Answer("error", "Slurm", f"sinfo does not get an answer: {listed.stderr.strip()}")
        return

    known = set(listed.stdout.split())
    if partition and not set(partition.split(",")) <= known:
        yield Answer("error", f"partition {partition}", f"there are {', '.join(sorted(known))}")


def _ports(config: UserEndpointConfig, executor: Any) -> Iterator[Answer]:
    """Answer whether workers could report to this machine, and this machine to Globus."""
    address = yaml.safe_load(config.source_content or "")["engine"].get("address")
    interface = address.get("ifname") if isinstance(address, dict) else None
    if interface and interface not in psutil.net_if_addrs():
        text = f"this machine has only {', '.join(psutil.net_if_addrs())}"
        yield Answer("error", f"interface {interface}", text)
    if address == {"type": "address_by_hostname"}:
        yield from _own_name()

    first, last = executor.worker_port_range
    ports = [executor.worker_port] if executor.worker_port else range(first, last + 1)
    if any(_free(port) for port in ports):
        text = "one is free; that compute nodes can reach it shows only in a job"
        yield Answer("ok", "ports for workers", text)
    else:
        yield Answer("error", "ports for workers", f"{ports[0]} to {ports[-1]}: all are taken")

    host = get_amqp_service_host()
    port = config.amqp_port or 443
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        text = f"{host}:{port}: {error}; `globus-compute-diagnostic` looks closer"
        yield Answer("warning", "connection to Globus", text)
    else:
        yield Answer("ok", "connection to Globus", f"{host}:{port}")


def _own_name() -> Iterator[Answer]:
    """Answer if the name of this machine leads to no address at which others could reach it."""
    name = platform.node()
    try:
        leads_to = socket.gethostbyname(name)
    except OSError as error:
        yield Answer("error", f"hostname {name}", f"{error}: give interface or address instead")
        return

    if leads_to.startswith("127."):
        text = f"leads to {leads_to}, at which compute nodes look for the endpoint on themselves"
        yield Answer("error", f"hostname {name}", f"{text}: give interface or address instead")


def _free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("", port))
        except OSError:
            return False
        return True


def for_users(folder: Path) -> Iterator[Answer]:
    """Answer if no user can start what an endpoint for many users starts for each of them.

    Args:
        folder: The endpoint's folder.
    """
    command = shutil.which("globus-compute-endpoint", path=_path_of_user_endpoints(folder))
    if command is None:
        text = "globus-compute-endpoint is not on the PATH of user_environment.yaml"
        yield Answer("error", "many users", text)
        return

    needed = [Path(command)]
    if os.path.dirname(command) == os.path.dirname(sys.executable):
        needed += [Path(sys.executable).resolve(), Path(__file__).resolve()]
    for path in needed:
        # with access by a list (ACL), the bits of the group are not 0
        closed = [parent for parent in path.parents if not parent.stat().st_mode & 0o011]
        if closed:
            text = (
                f"only the owner of {closed[-1]} can enter it, and no user can read {path}: "
                "install globus-compute-endpoint and gc_warm where all can read them"
            )
            yield Answer("error", "many users", text)
            return


def _path_of_user_endpoints(folder: Path) -> str:
    """Return the PATH on which a manager of root looks for what it starts."""
    path = _variables_of_user_endpoints(folder).get("PATH")
    if path is not None:
        return str(path)
    return os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin", os.path.dirname(sys.executable)])


def _variables_of_user_endpoints(folder: Path) -> Mapping[str, object]:
    """Return the variables that an endpoint gives to its user endpoints, and to nothing else."""
    with contextlib.suppress(OSError, yaml.YAMLError):  # as a manager does
        variables = yaml.safe_load((folder / "user_environment.yaml").read_text())
        if isinstance(variables, dict):
            return variables
    return {}


def _left_behind() -> Iterator[Answer]:
    """Yield processes and jobs of endpoints that are gone.

    They hold nodes, and nobody gives them tasks.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or somebody else's
            if _is_lost_interchange(process):
                text = (
                    "an interchange whose endpoint is gone: "
                    f"process {process.pid}; end it with kill"
                )
                yield Answer("warning", "left behind", text)

    for job, script in _jobs():
        endpoint = script.parent.parent
        if script.parent.name == processes.SCRIPTS and not _lives(endpoint):
            text = (
                f"job {job}, of the endpoint in {endpoint}, which does not run on this machine; "
                "if it runs on no other login node, cancel the job"
            )
            yield Answer("warning", "left behind", text)


def _is_lost_interchange(process: psutil.Process) -> bool:
    """Tell whether a process is an interchange of this user whose endpoint is gone."""
    title = " ".join(process.cmdline()) or process.name()
    return (
        title.startswith(_INTERCHANGE)
        and process.uids().real == os.getuid()
        and _is_orphan(process)
    )


def _is_orphan(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is None or parent.pid == 1 or "systemd" in parent.name()


def _jobs() -> Iterator[tuple[str, Path]]:
    """Yield the id and the script of each Slurm job of this user."""
    if not shutil.which("squeue"):
        return

    listed = _run("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %o")
    for line in listed.stdout.splitlines():
        job, _, script = line.strip().partition(" ")
        yield job, Path(script)


def _lives(endpoint: Path) -> bool:
    """Tell whether the endpoint in a folder runs on this machine."""
    try:
        return psutil.pid_exists(int((endpoint / "daemon.pid").read_text()))
    except (OSError, ValueError):
        return False


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a scheduler's command; one that does not answer in time ends with exit status 1."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SCHEDULER_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
