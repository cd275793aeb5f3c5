"""The promises of the configs, held against the real engine."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import logbook
import psutil
import pytest
import tasks
from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import MockExecutor, functions
from gc_warm.configs import folders, loading, meaning, options, rendering
from tests import roles
from tests.support import MODULES, has_ended, wait_until

pytestmark = pytest.mark.engine

SITES = sorted(
    path for folder in folders.shipped().values() for path in (folder / "sites").glob("*.yaml")
)
START = 150  # seconds that tasks may take with several engines on a busy machine


@dataclass(frozen=True)
class Seen:
    """A worker, as one of its tasks sees it."""

    manager: str
    rank: int
    pid: int
    device: str | None


def meet_all(executor: MockExecutor, folder: Path, number: int) -> set[Seen]:
    """Return every worker there is.

    *number* tasks wait for each other, which takes as many workers; further tasks would show if
    there were more workers.
    """
    folder.mkdir()
    futures = [executor.submit(tasks.meet_as, str(folder), number) for _ in range(number)]
    seen = {Seen(*future.result(START)) for future in futures}

    futures = [executor.submit(tasks.meet_as, str(folder), 1) for _ in range(3 * number)]
    return seen | {Seen(*future.result(START)) for future in futures}


def test_task_timeout_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    # of which the quick tasks need little
    chosen = {"task_timeout": 15, "python_path": [str(MODULES)], "workers_per_node": 1}
    with MockExecutor(config="slurm", user_endpoint_config=chosen, on="local") as executor:
        before = executor.submit(tasks.pid_and_count).result(START)

        with pytest.raises(TaskExecutionFailed, match="AppTimeout"):
            executor.submit(tasks.wait_for_file, str(tmp_path / "never")).result(START)

        after = executor.submit(tasks.pid_and_count).result(START)
        assert after == (before[0], before[1] + 1), "the worker is still warm"


def test_state_stays_warm_in_sandboxes() -> None:
    chosen = {"run_in_sandbox": True, "python_path": [str(MODULES)], "workers_per_node": 1}
    with MockExecutor(config="local", user_endpoint_config=chosen) as executor:
        futures = [executor.submit(tasks.place_and_count) for _ in range(3)]
        seen = [future.result(START) for future in futures]

    assert sorted(count for *_, count in seen) == [1, 2, 3]
    for future, (place, variable, files, _) in zip(futures, seen, strict=True):
        assert place == variable
        assert Path(place).name == future.task_id
        assert files == []


def test_job_that_drains_ends_by_itself_and_loses_nothing() -> None:
    """On this machine there is no walltime; what comes before it is the engine's own doing."""
    chosen = {"walltime": "00:01:00", "task_timeout": 40, "python_path": [str(MODULES)]}
    folder = folders.find_folder("slurm")
    drain = meaning.warmth_profile(loading.load(rendering.render(folder, chosen), folder)).drain
    assert drain == 14

    began = time.monotonic()
    with MockExecutor(config="slurm", user_endpoint_config=chosen, on="local") as executor:
        pids: list[int] = []
        while len(set(pids)) < 2:
            assert time.monotonic() < began + 300, "it does not end"
            pids.append(executor.submit(tasks.pid_and_count).result(START)[0])

        assert time.monotonic() - began >= drain
        wait_until(lambda: has_ended(pids[0]), "the drained job has ended")


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
def test_options_of_each_site_give_workers(site: Path, tmp_path: Path) -> None:
    chosen, _ = options.read(site)
    folder = folders.find_folder(site.parent.parent)
    figures = meaning.warmth_profile(loading.load(rendering.render(folder, chosen), folder))

    chosen |= {"python_path": [str(MODULES)], "environment": ""}
    with MockExecutor(config=folder, user_endpoint_config=chosen, on="local") as executor:
        assert figures.copies is not None
        seen = meet_all(executor, tmp_path / "meeting", figures.copies)

    assert len(seen) == figures.copies
    assert {worker.device for worker in seen} == set(figures.devices or [None])


LOCAL: dict[str, Any] = {"workers_per_node": 2, "python_path": [str(MODULES)]}


def test_thousand_tasks_are_warm_but_for_the_first_of_each_worker() -> None:
    with MockExecutor(config="local", user_endpoint_config=LOCAL) as executor:
        futures = [executor.submit(functions.count) for _ in range(1000)]
        counts = [future.result(START) for future in futures]

    assert counts.count(1) == 2
    assert sum(count > 1 for count in counts) == 998


def test_busy_worker_that_is_killed_is_replaced_and_the_other_stays_warm(tmp_path: Path) -> None:
    with MockExecutor(config="local", user_endpoint_config=LOCAL) as executor:
        before = meet_all(executor, tmp_path / "before", 2)
        running = executor.submit(tasks.for_ever, str(tmp_path / "started"))
        wait_until((tmp_path / "started").exists, "the task has begun")
        victim = psutil.Process(int((tmp_path / "started").read_text()))
        manager = victim.parent()
        assert manager is not None

        victim.kill()
        killed = time.monotonic()
        wait_until(
            lambda: len(workers_of(manager) - {victim.pid}) == 2, "the worker has been replaced"
        )
        passed = time.monotonic() - killed
        print(f"replaced {passed:.1f} s after its death, with a heartbeat of 1 s")

        with pytest.raises(TaskExecutionFailed, match="WorkerLost"):
            running.result(START)
        counts = {pid: count for _, pid, count in meeting(executor, tmp_path / "after", 2)}

    (other,) = {worker.pid for worker in before} - {victim.pid}
    assert counts.pop(other) > 1
    assert list(counts.values()) == [1]


def meeting(executor: MockExecutor, folder: Path, number: int) -> list[tuple[int, int, int]]:
    folder.mkdir()
    futures = [executor.submit(tasks.meet, str(folder), number) for _ in range(number)]
    return [future.result(START) for future in futures]


def workers_of(manager: psutil.Process) -> set[int]:
    """Return the workers of a manager that have a log."""
    found = set()
    for child in manager.children():
        # the one that was killed, while nobody has waited for it
        with contextlib.suppress(OSError, psutil.Error):
            member = roles.identify(child)
            if member is not None and member.role == "worker":
                found.add(child.pid)
    return found


def test_quick_tasks_keep_workers_warm_for_longer_than_keep_warm() -> None:
    """The engine's own idle time would end them.

    It sees a task only if one runs at the moment when it looks.
    """
    chosen = {"workers_per_node": 1, "keep_warm": 0.1}
    with MockExecutor(config="local", user_endpoint_config=chosen) as executor:
        executor.submit(functions.count).result(START)

        number = 1
        began = time.monotonic()
        while time.monotonic() < began + 20:
            number += 1
            assert executor.submit(functions.count).result(START) == number
            time.sleep(0.2)  # the pace of a client


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_teardowns_run_at_shutdown_and_when_keep_warm_is_over(name: str, tmp_path: Path) -> None:
    path = tmp_path / "logbook"
    chosen = {"workers_per_node": 1, "keep_warm": 0.1, "python_path": [str(MODULES)]}

    with MockExecutor(config=name, user_endpoint_config=chosen, on="local") as executor:
        assert [executor.submit(logbook.note, str(path)).result(START) for _ in range(2)] == [1, 2]
        wait_until(
            lambda: "torn down after 2" in path.read_text(),
            "the state is torn down after keep_warm",
        )
        assert executor.submit(logbook.note, str(path)).result(START) == 1
    assert path.read_text() == "loaded\ntorn down after 2\nloaded\ntorn down after 1\n"


ENGINE = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: 2
  address: 127.0.0.1
  heartbeat_period: 1
  {setting}
  provider:
    type: LocalProvider
    worker_init: {worker_init}
"""

CANNOT_START = [
    (
        "cores_per_worker: 640",
        "''",
        "a node has room for 0 workers: with cores_per_worker 640.*manager.log",
    ),
    ("mem_per_worker: 1000000", "''", "a node has room for 0 workers.*mem_per_worker 1000000"),
    ("cpu_affinity: blocks", "''", "cpu-affinity must be one of"),
    (
        "cpu_affinity: list:0:1:0",
        "''",
        "worker . has died [3-9] times before its first task.*wrong number of thread ranks",
    ),
    (
        "prefetch_capacity: 0",
        "exit 3",
        "block 0: ended before its workers were ready, with exit status 3",
    ),
    ("prefetch_capacity: 0", "PATH=/usr/bin:/bin", "globus-compute-endpoint: command not found"),
    ("prefetch_capacity: 0", "export PYTHONHOME=/nowhere", "No module named 'encodings'"),
    ("launch_cmd: /no/such/program", "''", "/no/such/program"),
]


@pytest.mark.parametrize(("setting", "worker_init", "reason"), CANNOT_START)
def test_engine_whose_workers_cannot_start_says_why(
    setting: str, worker_init: str, reason: str
) -> None:
    with MockExecutor(config=ENGINE.format(setting=setting, worker_init=worker_init)) as executor:
        futures = [executor.submit(functions.count) for _ in range(3)]
        for future in futures:
            with pytest.raises(TaskExecutionFailed, match=f"(?s)WorkerStartError: .*{reason}"):
                future.result(START)
        with pytest.raises(TaskExecutionFailed, match=f"(?s)WorkerStartError: .*{reason}"):
            executor.submit(functions.count).result(START)


def test_job_that_cannot_be_submitted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockExecutor(config="pbs", user_endpoint_config={"address": "127.0.0.1"}) as executor:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(TaskExecutionFailed, match=r"(?s)WorkerStartError: .*qsub: .*not found"):
            executor.submit(functions.count).result(START)


def test_module_that_workers_lack_is_an_error_of_the_task_and_not_of_the_engine() -> None:
    with MockExecutor(config="local") as executor:
        with pytest.raises(TaskExecutionFailed, match="No module named 'tasks'"):
            executor.submit(tasks.same, 1).result(START)
        assert executor.submit(functions.count).result(START) == 1
