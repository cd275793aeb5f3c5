"""Checks of all tests: nothing is left behind, and where nothing may be skipped, nothing is."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from globus_compute_sdk.sdk import executor as sdk_executor
from hypothesis import HealthCheck, settings

from tests.support import wait_until

PORT_5000 = (
    "tests/check/test_rules_on_engine.py::test_gcw012_",
    "tests/journeys/test_configured.py",
    "tests/journeys/test_handover.py",
    "tests/journeys/test_many_users.py",
    "tests/journeys/test_slurm_refused.py",
    "tests/journeys/test_up.py",
    "tests/local/test_daemon.py",
    "tests/test_manual.py::test_test_of_the_whole_stack",
)
"""The tests that need the port of the SDK's local mode, and so never run beside each other.

Nothing else of the machine is shared by tests: all of them run beside those of other files.
"""

_strangers: set[str] = set()
"""The processes from before the session, so long as they live: none of them has its marker."""


def _processes() -> set[tuple[int, float]]:
    """Return this process's children, and those that have left the family, but carry the marker.

    An engine's blocks are such.
    """
    marker = f"GC_WARM_TEST_RUN={os.environ['GC_WARM_TEST_RUN']}".encode()
    children: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            children.update(path.read_text().split())

    pids = set(filter(str.isdecimal, os.listdir("/proc")))
    _strangers.intersection_update(pids)

    found = set()
    for pid in (pids - _strangers) | children:
        with contextlib.suppress(psutil.Error, OSError):
            if pid not in children and marker not in _environment(pid):
                continue
            process = psutil.Process(int(pid))
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and not any("resource_tracker" in word for word in process.cmdline()):
                found.add((process.pid, process.create_time()))
    return found


def _environment(pid: str) -> bytes:
    """Return the environment of a process, quickly: every test asks for all of them, twice."""
    descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def _files() -> set[str]:
    return set(os.listdir(tempfile.gettempdir()))


# Hypothesis finds a test at fault for examples that take long, or long to make, which on a busy
# machine all of them do.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


def pytest_configure() -> None:
    """Heed Ctrl-C, which a process that a shell starts in the background ignores.

    Else all that the tests start and interrupt would ignore it, too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one process, as ``--dist loadfile``, and those of `PORT_5000`."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "port 5000" if nodeid.startswith(PORT_5000) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep all that was imported out of the collection of garbage, now and then and in tests."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def run_marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mark every process that the tests start, however far removed, by a variable it inherits.

    They inherit a folder for temporary files, too.
    """
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it always is
    _strangers.update(filter(str.isdecimal, os.listdir("/proc")))
    os.environ["GC_WARM_TEST_RUN"] = f"{os.getpid()}-{time.time_ns()}"

    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        tempfile.tempdir = folder
        os.environ["TMPDIR"] = folder
        yield
        tempfile.tempdir = None
        del os.environ["TMPDIR"]

    left = {pid: " ".join(psutil.Process(pid).cmdline()) for pid, _ in _processes()}
    assert not left, f"the session leaves processes behind: {left}"


@pytest.fixture(scope="session", autouse=True)
def architecture_asked_for_once() -> Iterator[None]:
    """Ask only once: the SDK does with every request, and Python asks a program, ``file``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "architecture", functools.cache(platform.architecture))
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(run_marker: None) -> Generator[None, None, None]:
    """Fail a test that leaves processes, threads, descriptors or files of ours.

    Fixtures of wider scope may keep theirs.
    """
    looks: dict[str, Callable[[], set[object]]] = {
        "processes": _processes,  # type: ignore[dict-item]
        "threads": _threads,  # type: ignore[dict-item]
        "descriptors": _descriptors,  # type: ignore[dict-item]
        "files": _files,  # type: ignore[dict-item]
    }
    before = {name: look() for name, look in looks.items()}
    group = sdk_executor.Executor._default_task_group_id
    yield

    group_is_kept = sdk_executor.Executor._default_task_group_id == group
    assert group_is_kept, "the SDK's default task group was changed for everybody"
    for name, look in looks.items():
        if left := look() - before[name]:
            _wait_until_gone(look, before[name], f"all {name} gone: {left}")


def _wait_until_gone(look: Callable[[], set[object]], before: set[object], what: str) -> None:
    wait_until(lambda: not look() - before, what)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the session for a skipped test if GC_WARM_NO_SKIPS is set, as .ci/run does."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("GC_WARM_NO_SKIPS"):
        return

    if reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
