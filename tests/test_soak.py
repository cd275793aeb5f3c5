"""The account of a soak tells of all that should not be, and of nothing that kills explain."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import soaked
import tasks
from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import MockExecutor
from tests import roles
from tests.soak_account import Account, Kill, Memory
from tests.support import wait_until
from tests.testing.backends import engine_config

WORKER = "parsl.errors.WorkerLost: Task failure due to loss of worker 0 on host h\n"
MANAGER = WORKER.replace("Worker", "Manager").replace("worker 0", "manager ab12")
DIED = "Traceback\n  File\ngc_warm.ProcessDiedError: faulty.py was ended by SIGKILL\n"
TIMED_OUT = "Traceback\nparsl.app.errors.AppTimeout\n"


def ended(value: Any = None, error: str | BaseException = "") -> Future[Any]:
    future = Future[Any]()
    if not error:
        future.set_result((10, value))
    elif isinstance(error, str):
        future.set_exception(TaskExecutionFailed(error, "0"))
    else:
        future.set_exception(error)
    return future


def settled(*tasks: tuple[str, tuple[Any, ...], Future[Any]], kills: tuple[Kill, ...]) -> Account:
    """Return the account of these tasks, all of which have begun on worker 10, of template 1."""
    account = Account(sent=len(tasks), kills=list(kills))
    for token, (kind, arguments, future) in enumerate(tasks):
        account.take(token, kind, arguments, future)
    account.settle((token, 10, 1) for token in range(len(tasks)))
    return account


def faults(account: Account) -> list[int]:
    found = (account.unended, account.wrong, account.doubled, account.unexplained)
    return [len(each) for each in found]


def test_right_results_are_no_offence() -> None:
    account = settled(
        ("quick", (), ended((1000, 1))),
        ("load", (2, True), ended(2001)),
        ("load", (2, True), ended(error="LookupError: no table for task 2\n")),
        kills=(),
    )
    assert (account.ended, account.failed, account.offences) == (3, 1, [])


def test_wrong_results_are_told() -> None:
    account = settled(
        ("quick", (), ended((1001, 1))),  # that of another task
        ("quick", (), ended((1001, 2))),  # of what was loaded twice
        ("too large", (8_000_000,), ended(b"")),  # of a task that has to fail
        ("result", (3,), ended(b"1 1")),
        kills=(),
    )
    assert faults(account) == [0, 4, 0, 0]
    assert account.offences[3] == "task 3 (result): wrong result b'1 1'"
    assert "wrong results 4," in account.line()


def test_doubled_and_unended_tasks_are_told() -> None:
    account = Account(sent=2)
    account.leave_open({1: "server"})
    account.settle([(0, 10, 1), (1, 10, 1), (0, 11, 0)])
    assert faults(account) == [1, 0, 1, 0]
    assert "; workers: 1 started, 1 from template 1; left:" in account.line()
    assert account.offences == ["task 1 (server): has not ended", "task 0: has begun 2 times"]
    assert "without an end 1, wrong results 0, doubled 1," in account.line()


EXPLAINED = [
    ("quick", WORKER, Kill("worker", 10, workers=(10,)), 1),
    # it had the task in hand, and another ran it
    ("quick", WORKER, Kill("worker", 11, workers=(11,)), 1),
    ("quick", WORKER, Kill("template", 12, workers=(10, 11)), 2),
    ("quick", MANAGER, Kill("manager", 9, pool="ab12"), 3),
    ("quick", MANAGER, Kill("manager's helper", 8, pool="ab12"), 3),
    ("program", DIED, Kill("program", 20, parent=10), 1),
    ("program", DIED, Kill("program's supervisor", 21, parent=10), 1),
    ("server", DIED, Kill("server", 30), 2),
]


def test_kill_explains_some_losses() -> None:
    for kind, error, kill, number in EXPLAINED:
        arguments = ("node",) if kind == "server" else ()
        tasks = [(kind, arguments, ended(error=error))] * 3
        assert faults(settled(*tasks, kills=(kill,))) == [0, 0, 0, 3 - number], kill
        assert faults(settled(*tasks, kills=())) == [0, 0, 0, 3]


WRONG: list[tuple[str, str | BaseException, Kill]] = [
    ("quick", WORKER, Kill("program", 20, parent=10)),
    ("quick", MANAGER, Kill("manager", 9, pool="cd34")),
    ("quick", DIED, Kill("program", 20, parent=10)),
    ("program", DIED, Kill("program", 20, parent=11)),
    ("program", DIED, Kill("server", 30)),
    ("quick", MANAGER, Kill("template", 12, pool="ab12", workers=(10,))),
    ("program", DIED, Kill("template", 12, workers=(10,))),
    ("quick", TIMED_OUT, Kill("worker", 10, workers=(10,))),
    ("quick", RuntimeError("the engine was shut down"), Kill("worker", 10, workers=(10,))),
]


def test_wrong_errors_are_told() -> None:
    for kind, error, kill in WRONG:
        account = settled((kind, (), ended(error=error)), kills=(kill,))
        assert faults(account) == [0, 0, 0, 1], error
        assert f"task 0 ({kind}): wrong error" in account.offences[0]
        assert "lost with the wrong error 1;" in account.line()


def test_what_is_left_is_told() -> None:
    account = Account()
    account.leave("processes", [])
    account.leave("files", ["/tmp/a", "/tmp/b"])
    assert "left: processes 0, descriptors 0, files 2;" in account.line()
    assert len(account.offences) == 2


def test_growth_of_memory_is_not_extrapolated() -> None:
    """A process of 100 MB grows by 1 MB in 1,000 tasks."""
    memory = Memory(1)
    memory.samples = [(done, 100 + done / 1000) for done in range(0, 20_000, 20)]
    assert memory.growth() == pytest.approx(0.1, rel=0.05)

    for samples in (memory.samples[:500], memory.samples[::25]):
        memory.samples = samples
        assert memory.growth() is None


def test_growth_beyond_the_limit_is_told() -> None:
    account = Account()
    account.grow("client", 0.02)
    account.grow("worker", 0.1)
    assert account.line().endswith("memory per 10000 tasks: client +2.0%, worker +10.0%")
    assert account.offences == ["the worker has grown by 10.0% in 10000 tasks"]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    """Mark what this test starts: an earlier one may have left a resource tracker here."""
    monkeypatch.setenv("GC_WARM_TEST_ROLES", str(tmp_path))
    return "GC_WARM_TEST_ROLES", str(tmp_path)


def test_stray_process_is_found(mark: tuple[str, str]) -> None:
    """One that has outlived its parent."""
    script = "sleep 1000 >/dev/null & echo $!"
    stray = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    pid = stray.stdout.strip()
    wait_until(lambda: f"{pid} sleep 1000" in roles.strays(*mark), "it is a stray")
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not any(each.startswith(f"{pid} ") for each in roles.strays(*mark)), "gone")


def number_of(members: list[roles.Member]) -> Counter[str]:
    return Counter(member.role for member in members)


@pytest.mark.engine
def test_every_role_is_found(mark: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "record").touch()
    (tmp_path / "meeting").mkdir()
    lines = (
        f"export {soaked.RECORD}={tmp_path / 'record'}",
        'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot --preload-node=soaked)"',
    )
    expected = {**dict.fromkeys(roles.ROLES, 1), "worker": 2}
    with MockExecutor(config=engine_config(2, *lines)) as executor:
        meeting = [executor.submit(tasks.meet, str(tmp_path / "meeting"), 2) for _ in range(2)]
        pids = {rank: pid for rank, pid, _ in (future.result(120) for future in meeting)}
        user, _ = executor.submit(soaked.call, 1).result(120)
        executor.submit(soaked.ask, 2, "node").result(120)
        # a process that has just been forked is a copy of its parent for a moment
        wait_until(lambda: number_of(roles.find(*mark)) == expected, "there is one of each")
        found = roles.find(*mark)
        assert roles.strays(*mark) == []

    workers = {member.rank: member.process.pid for member in found if member.role == "worker"}
    assert workers == pids

    by_role = {member.role: member for member in found}
    manager = by_role["manager"]
    for role in ("template", "manager's helper", "resource tracker"):
        assert (by_role[role].parent, by_role[role].pool) == (manager.process.pid, manager.pool)
    template = by_role["template"].process.pid
    assert (by_role["worker"].parent, by_role["worker"].pool) == (template, manager.pool)
    assert by_role["program's supervisor"].parent == user
    assert by_role["program"].parent == by_role["program's supervisor"].process.pid
