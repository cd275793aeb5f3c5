"""The logs of managers: read once, as they grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gc_warm.local.manager_logs import ManagerLog, ManagerLogs, _GrowingFile

DIED = "WARNING Worker 1 was not busy when it died\n"
NO_HELPER = "ERROR Failed to forward monitoring message\n"
ENDS = "parsl.gc_warm:77 _wait CRITICAL: the multiprocessing helper of this manager has ended\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "block-0" / "abc" / "manager.log"
    path.parent.mkdir(parents=True)
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_each_line_is_read_once_when_it_is_finished(log: Path) -> None:
    growing = _GrowingFile(log)
    assert list(growing.new_lines()) == []

    append(log, "one\ntwo\nthr")
    assert list(growing.new_lines()) == ["one\n", "two\n"]
    append(log, "ee\n")
    assert list(growing.new_lines()) == ["three\n"]
    assert list(growing.new_lines()) == []


def test_long_line_is_read_in_parts(log: Path) -> None:
    growing = _GrowingFile(log)
    append(log, "x" * 3_000_000)
    assert 0 < sum(map(len, growing.new_lines())) < 3_000_000
    append(log, "\nnext\n")
    assert list(growing.new_lines())[-1] == "next\n"


def truncate(path: Path) -> None:
    path.write_text("")


def rotate(path: Path) -> None:
    path.rename(path.with_suffix(".log.1"))


@pytest.mark.parametrize("change", [truncate, rotate])
def test_log_that_begins_anew_is_read_from_its_beginning(
    change: Callable[[Path], None], log: Path
) -> None:
    growing = _GrowingFile(log)
    append(log, "former\n")
    assert list(growing.new_lines()) == ["former\n"]

    change(log)
    append(log, "new\n")
    assert list(growing.new_lines()) == ["new\n"]


def test_looks_read_only_what_is_new(log: Path) -> None:
    logs = ManagerLogs(SimpleNamespace(worker_logdir=str(log.parents[2])))
    manager = {"block_id": "0", "manager": "abc"}
    assert logs.read(manager).workers is None

    append(log, f"Manager will spawn 2 workers\n{DIED}")
    assert (logs.read(manager).workers, logs.read(manager).deaths) == (2, {1: 1})
    append(log, DIED)
    read = logs.read(manager)
    assert (read.path, read.deaths, read.latest_death) == (log, {1: 2}, 1)


def test_worker_of_one_of_the_last_three_lives_has_worked(log: Path) -> None:
    read = ManagerLog(log)
    assert not read.has_worked(1)

    append(read.worker_path(1), "Worker 1 started\nReceived executor task 5\n")
    for _ in range(2):
        append(read.worker_path(1), "Worker 1 started\n")
        assert read.has_worked(1)
    append(read.worker_path(1), "Worker 1 started\n")
    assert not read.has_worked(1)


@pytest.mark.parametrize(
    ("text", "is_of_no_use"),
    [(DIED, False), (NO_HELPER, True), (NO_HELPER + ENDS + NO_HELPER, False)],
    ids=["a worker died", "its helper died", "it ends by itself"],
)
def test_manager_without_its_helper_is_of_no_use(text: str, is_of_no_use: bool, log: Path) -> None:
    append(log, text)
    read = ManagerLog(log)
    read.read()
    assert read.is_of_no_use == is_of_no_use
