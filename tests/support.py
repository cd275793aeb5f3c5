"""Helpers that several tests use."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import programs
import psutil
from click.testing import CliRunner
from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm.check import config_rules
from gc_warm.check.task_facts import Numbers
from gc_warm.worker.calls import Recording

MODULES = Path(__file__).parent / "modules"
"""Warmable modules of the tests, on a worker's import path only where a test puts them there."""
EXPORT_MODULES = f"export PYTHONPATH={shlex.quote(str(MODULES))}"
"""The line of a ``worker_init`` that puts it there."""
FAULTY = [sys.executable, "-I", "-S", str(MODULES.parent / "executables" / "faulty.py")]
"""A program that answers requests with themselves, and commits the fault that a request names."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait for a condition, not for time: the seconds only keep a test from hanging."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.01)


def cli_runner() -> CliRunner:
    """Return a runner that keeps stdout and stderr apart, as click 8.1 does only when asked to."""
    options: dict[str, Any] = {}
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        options["mix_stderr"] = False
    return CliRunner(**options)


class Clock:
    """A stand-in for the module `time` in deadlines: its time passes only when it is told to."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def remote_text(future: Future[Any], seconds: float = 120) -> str:
    """Return the remote side's text about a task that has to fail."""
    error = future.exception(seconds)
    assert isinstance(error, TaskExecutionFailed), error
    return str(error.remote_data)


def client_environment() -> dict[str, str]:
    """Return the environment of a client in its own process that imports what the tests have."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(MODULES.parents[1]), str(MODULES)])}


class ScriptStep:
    """A step of the journeys' script, in a process that knows of the service only *environment*."""

    program = Path(__file__).parent / "journeys" / "script.py"

    def __init__(
        self,
        environment: Mapping[str, str],
        endpoint_id: str,
        step: str,
        *arguments: str,
        **options: Any,
    ) -> None:
        config = json.dumps({"python_path": [str(MODULES)]} | options)
        self._process = subprocess.Popen(
            [sys.executable, self.program, step, endpoint_id, *arguments],
            env={**client_environment(), **environment, "CONFIG": config},
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Any:
        """Return what the step prints, once it has ended.

        A thousand tasks wait for the slowest, which may be known as lost only after a minute.
        """
        output, _ = self._process.communicate(timeout=600)
        assert self._process.returncode == 0
        return json.loads(output)


def observe(function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Any]]:
    """Return what a call returns, and its record."""
    with Recording() as recording:
        result = function(*args)
    return result, recording.record()


def breaks(text: str, rule: str, numbers: Numbers | None = None) -> str:
    """Return a config's text, after a check that it breaks this rule and no other."""
    assert [problem.rule for problem in config_rules.examine(text, "x", numbers).findings] == [rule]
    return text


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or has ended and is only not yet waited for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def carriers(name: str, value: str) -> dict[int, str]:
    """Return the processes that have this environment variable, with their command lines.

    One that has ended has no environment.
    """
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return found


def programs_end_with(worker: int, mark: str, patience: float = 120) -> None:
    """Wait until a worker has ended, and the programs that `programs.start` has started on it."""
    wait_until(lambda: has_ended(worker), "the worker has ended", patience)
    wait_until(lambda: not carriers(programs.MARK, mark), "all of its programs have ended")


def change_parsl(folder: Path) -> None:
    """Put into a folder a Parsl whose manager somebody has changed; the version says nothing."""
    package = folder / "parsl"
    source = Path(str(importlib.metadata.distribution("parsl").locate_file("parsl")))
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("*.pyc"))
    pool = package / "executors" / "high_throughput" / "process_worker_pool.py"
    pool.write_text(pool.read_text().replace("worker_watchdog(self,", "worker_watchdog(me,"))
