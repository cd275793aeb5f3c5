"""The questions of the first hour on a login node: is everything there that a config relies on, and what was left behind.

The worker's environment is made as a job makes it, by running the config's ``worker_init``, but on
this machine; a compute node may differ. Nothing is submitted and nothing is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_sdk.sdk._environments import get_amqp_service_host

from gc_warm import processes
from gc_warm.check import probe

_PROBE_TIMEOUT = 120  # seconds for an environment to be made, and for modules to be imported there
_MOST_SAID = 10_000_000  # bytes: an environment that says more is out of hand
_QUOTED = 10_000  # bytes of the end of that
_SCHEDULER_TIMEOUT = 30  # seconds for a scheduler to answer
_COMMANDS = {
    "SlurmProvider": ("sbatch", "squeue", "scancel"),
    "PBSProProvider": ("qsub", "qstat", "qdel"),
}
_INTERCHANGE = "parsl: HTEX interchange"
LOGS = """\
endpoint.log                             the endpoint: which user endpoints it starts, and with which options
../uep.*/endpoint.log                    a user endpoint: tasks that come and go, jobs that are asked for
../uep.*/submit_scripts/                 each job's script, and what it said: a bad environment shows here, and so does what tasks print
../uep.*/Globus*/interchange.log         workers that report, and are lost
../uep.*/Globus*/block-*/*/manager.log   how many workers a node has, and which of them died
../uep.*/Globus*/block-*/*/worker_*.log  one worker: its tasks, and what gc_warm logs"""
"""Which file in an endpoint's folder, ``~/.globus_compute/NAME``, knows what."""


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        level: Whether it is as it should be, worth a look, or cannot work.
        about: What was asked.
        text: The answer.
    """

    level: Literal["ok", "warning", "error"]
    about: str
    text: str


def look(config: UserEndpointConfig, modules: Sequence[str] = ()) -> Iterator[Answer]:
    """Look whether everything is there that a loaded config relies on.

    Args:
        config: What `gc_warm.configs.loading.load` gives.
        modules: Warmable modules that workers have to be able to import.
    """
    executor: Any = config.engine.executor
    yield from _worker_environment(
        executor.provider, [*dict.fromkeys([*modules, *_preloaded(executor.provider)])]
    )
    yield from _scheduler(executor.provider)
    yield from _ports(config, executor)
    yield from _left_behind()


def _worker_environment(provider: Any, modules: Sequence[str]) -> Iterator[Answer]:
    with tempfile.TemporaryDirectory(prefix="gc_warm-", ignore_cleanup_errors=True) as folder:
        status, found, said = _probe(provider, modules, Path(folder))
    if found is None:
        ended = f"no workers could start in it: it ends with exit status {status}"
        yield Answer("error", "environment", f"{ended}, and says:\n{said}" if said else ended)
        return
    yield Answer("ok", "environment", f"workers run {found['executable']}")
    if said:
        yield Answer("warning", "environment", f"it says:\n{said}")
    here, there = probe.versions(), found["versions"]
    for package, version in here.items():
        yield _compared(package, version, there[package])
    for name, result in found["imports"].items():
        remedy = (
            "; install it in that environment, or name its folder in python_path"
            if result.get("missing")
            else ""
        )
        if "error" in result:
            yield Answer("error", f"module {name}", result["error"] + remedy)
        else:
            yield Answer("ok", f"module {name}", f"imported in {result['seconds']:.1f} s")
    if found["importing"]:
        yield Answer(
            "error",
            f"module {found['importing']}",
            f"its import does not come back: the process ended with status {status}",
        )


def _preloaded(provider: Any) -> list[str]:
    """The modules that workers import before their first task, see `gc_warm.worker.boot`."""
    named = re.findall(r"gc_warm\.worker\.boot\b([^)|;&\n]*)", provider.worker_init)
    return [
        word.partition(":")[0]
        for words in named
        for word in words.split()
        if not word.startswith("-")
    ]


def _probe(
    provider: Any, modules: Sequence[str], folder: Path
) -> tuple[int, dict[str, Any] | None, str]:
    """Exit status; what the probe finds in a worker's environment, None if it could not be run; the end of what all of it says."""
    script, answer = folder / "gc_warm_probe.py", folder / "answer"
    shutil.copy(probe.__file__, script)
    place = shlex.quote(str(folder))
    command = f'{provider.worker_init}\nexport PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}"{place} GLOBUS_COMPUTE_USER_DIR={place}\n'
    command += 'exec globus-compute-endpoint python-exec gc_warm_probe "$@"'
    mark = uuid.uuid4().hex
    surroundings = (
        _bare_environment() if type(provider).__name__ == "PBSProProvider" else dict(os.environ)
    )
    # a file, since what the environment leaves running would hold a pipe open
    with (folder / "said").open("wb") as said:
        shell = subprocess.Popen(
            [
                "timeout",
                "--kill-after=1",
                str(_PROBE_TIMEOUT),
                "/bin/bash",
                "-c",
                command,
                "bash",
                str(answer),
                *modules,
            ],
            cwd=folder,
            env={**surroundings, processes.MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while shell.poll() is None and (folder / "said").stat().st_size < _MOST_SAID:
            time.sleep(0.02)
    finally:
        # also what the environment left running, and when this is interrupted
        processes.end_all(mark)
        shell.wait()
    with (folder / "said").open("rb") as said:
        said.seek(max(0, os.path.getsize(said.name) - _QUOTED))
        lines = said.read().decode(errors="replace").strip().splitlines()
    found = json.loads(answer.read_text()) if answer.exists() else None
    return (
        shell.returncode,
        found,
        "\n".join(re.sub(r"[^\t -~\u00a0-\uffff]", "?", line)[:200] for line in lines[-10:]),
    )


def _bare_environment() -> dict[str, str]:
    """What a PBS job starts with, as far as it matters; Slurm hands on the submitter's."""
    kept = {
        name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "LANG") if name in os.environ
    }
    return {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin"}


def _compared(package: str, here: str | None, there: str | None) -> Answer:
    if there is None:
        if package == "gc-warm":
            return Answer(
                "warning",
                package,
                "not in the worker's environment: @warm cannot be used there; pip install it",
            )
        return Answer(
            "error",
            package,
            "not in the worker's environment: pip install globus-compute-endpoint there",
        )
    if here == there:
        return Answer("ok", package, there)
    minors = [version.split(".")[:2] for version in (here or "", there)]
    if package in ("python", "dill") and minors[0] != minors[1]:
        return Answer(
            "warning",
            package,
            f"{there} for workers, {here} here: functions that are sent whole may fail; use the same",
        )
    return Answer("ok", package, f"{there} for workers, {here} here")


def _scheduler(provider: Any) -> Iterator[Answer]:
    for command in _COMMANDS.get(type(provider).__name__, ()):
        path = shutil.which(command)
        yield (
            Answer("ok", command, path)
            if path
            else Answer("error", command, "not found: this machine submits no jobs")
        )
    if type(provider).__name__ != "SlurmProvider" or not shutil.which("sinfo"):
        return
    asked = _said("sinfo", "--noheader", "--format=%R")
    if asked.returncode:
        yield Answer("error", "Slurm", f"sinfo does not get an answer: {asked.stderr.strip()}")
        return
    known = set(asked.stdout.split())
    if provider.partition and not set(provider.partition.split(",")) <= known:
        yield Answer(
            "error", f"partition {provider.partition}", f"there are {', '.join(sorted(known))}"
        )


def _ports(config: UserEndpointConfig, executor: Any) -> Iterator[Answer]:
    address = yaml.safe_load(config.source_content or "")["engine"].get("address")
    interface = address.get("ifname") if isinstance(address, dict) else None
    if interface and interface not in psutil.net_if_addrs():
        yield Answer(
            "error",
            f"interface {interface}",
            f"this machine has only {', '.join(psutil.net_if_addrs())}",
        )
    first, last = executor.worker_port_range
    ports = [executor.worker_port] if executor.worker_port else range(first, last + 1)
    if any(_free(port) for port in ports):
        yield Answer(
            "ok",
            "ports for workers",
            "one is free; that compute nodes can reach it shows only in a job",
        )
    else:
        yield Answer("error", "ports for workers", f"{ports[0]} to {ports[-1]}: all are taken")
    host, port = get_amqp_service_host(), config.amqp_port or 443
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        yield Answer(
            "warning",
            "connection to Globus",
            f"{host}:{port}: {error}; `globus-compute-diagnostic` looks closer",
        )
    else:
        yield Answer("ok", "connection to Globus", f"{host}:{port}")


def _free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("", port))
        except OSError:
            return False
        return True


def _left_behind() -> Iterator[Answer]:
    """Processes and jobs of endpoints that are gone: they hold nodes, and nobody gives them tasks."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or somebody else's
            title = " ".join(process.cmdline()) or process.name()
            if (
                title.startswith(_INTERCHANGE)
                and process.uids().real == os.getuid()
                and _orphaned(process)
            ):
                yield Answer(
                    "warning",
                    "left behind",
                    f"an interchange whose endpoint is gone: process {process.pid}; end it with kill",
                )
    for job, script in _jobs():
        endpoint = script.parent.parent
        if script.parent.name == processes.SCRIPTS and not _lives(endpoint):
            what = f"job {job}, of the endpoint in {endpoint}, which does not run on this machine"
            yield Answer(
                "warning",
                "left behind",
                f"{what}; if it runs on no other login node, cancel the job",
            )


def _orphaned(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is None or parent.pid == 1 or "systemd" in parent.name()


def _jobs() -> Iterator[tuple[str, Path]]:
    if shutil.which("squeue"):
        for line in _said(
            "squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %o"
        ).stdout.splitlines():
            job, _, script = line.strip().partition(" ")
            yield job, Path(script)


def _lives(endpoint: Path) -> bool:
    try:
        return psutil.pid_exists(int((endpoint / "daemon.pid").read_text()))
    except (OSError, ValueError):
        return False


def _said(*command: str) -> subprocess.CompletedProcess[str]:
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
