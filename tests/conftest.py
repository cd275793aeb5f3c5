"""What every test is held to: nothing of it is left behind, and where nothing may be skipped, nothing is."""

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

import psutil
import pytest
from globus_compute_sdk.sdk import executor as sdk_executor
from hypothesis import HealthCheck, settings

from tests.support import wait_until

_strangers: set[str] = set()
"""The processes that were there before the session, so long as they live: none of them has its marker, and nobody need look."""


def _processes() -> set[tuple[int, float]]:
    """This process's children, and the blocks of an engine: these have left the family, but carry the marker."""
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
    """As quickly as can be: this is asked of every process, before and after every test."""
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
    """What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays until the end: no collection of garbage has to look at it, neither now and then nor in a test."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def run_marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process that the tests start, however far removed, inherits this variable, and a folder for its temporary files."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it always is
    _strangers.update(filter(str.isdecimal, os.listdir("/proc")))
    os.environ["GC_WARM_TEST_RUN"] = f"{os.getpid()}-{time.time_ns()}"
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        yield
        tempfile.tempdir = None
        del os.environ["TMPDIR"]
    left = {pid: " ".join(psutil.Process(pid).cmdline()) for pid, _ in _processes()}
    assert not left, f"the session leaves processes behind: {left}"


@pytest.fixture(scope="session", autouse=True)
def architecture_asked_for_once() -> Iterator[None]:
    """The SDK asks for it with every request, and Python asks a program, ``file``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "architecture", functools.cache(platform.architecture))
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(run_marker: None) -> Generator[None, None, None]:
    """Fail a test that leaves processes, threads, descriptors or files of ours; fixtures of wider scope may keep theirs."""
    looks: dict[str, Callable[[], set[object]]] = {
        "processes": _processes,  # type: ignore[dict-item]
        "threads": _threads,  # type: ignore[dict-item]
        "descriptors": _descriptors,  # type: ignore[dict-item]
        "files": _files,  # type: ignore[dict-item]
    }
    before = {name: look() for name, look in looks.items()}
    group = sdk_executor.Executor._default_task_group_id
    yield
    assert sdk_executor.Executor._default_task_group_id == group, (
        "the SDK's default task group was changed for everybody"
    )
    for name, look in looks.items():
        if left := look() - before[name]:
            wait_until(
                lambda look=look, name=name: not look() - before[name], f"all {name} gone: {left}"
            )  # type: ignore[misc]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With GC_WARM_NO_SKIPS set (as .ci/run does), a skipped test is a failed one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is not None
        and os.environ.get("GC_WARM_NO_SKIPS")
        and reporter.stats.get("skipped")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
