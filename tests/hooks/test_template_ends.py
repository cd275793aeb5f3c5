"""What ends when, where workers are forked from a template: on the real engine.

The table is in the README of the hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from gc_warm import MockExecutor
from tests import roles
from tests.hooks.test_boot import LINE
from tests.support import has_ended, wait_until
from tests.testing.backends import engine_config

pytestmark = pytest.mark.engine

MARK = "GC_WARM_TEST_ENDS"


class Node:
    """The first block of an engine, with an idle worker and one whose task waits to be let."""

    def __init__(self, executor: MockExecutor, folder: Path) -> None:
        self.folder = folder
        runner: Any = executor._mock_client.runner()
        self.htex: Any = runner._engine._engine.executor
        begun = folder / "begun"
        self.task = executor.submit(tasks.begin_and_wait, str(begun), str(folder / "let"))
        wait_until(begun.exists, "a task runs", 300)

        members = [each for each in roles.find(MARK, str(folder)) if each.pool]
        (self.template,) = (each.process for each in members if each.role == "template")
        self.workers = [each.process for each in members if each.role == "worker"]
        self.others = {each.role: each.process for each in members}
        assert {worker.ppid() for worker in self.workers} == {self.template.pid}

    def kill(self, *names: str) -> None:
        for name in names:
            self.others[name].kill()

    def let(self) -> None:
        (self.folder / "let").touch()

    def torn_down(self) -> list[str]:
        """Return the processes that have torn down what the template had loaded."""
        record = self.folder / "ended"
        return record.read_text().split() if record.exists() else []

    def ends(self) -> None:
        processes = (*self.others.values(), *self.workers)
        wait_until(lambda: all(has_ended(each.pid) for each in processes), "all have ended")


@contextlib.contextmanager
def node(folder: Path, spec: str, drain: str = "") -> Iterator[MockExecutor]:
    export = f"export {MARK}={folder} TEMPLATE_FOLDER={folder}"
    line = LINE.format(f"--preload-node=template_loads:{spec}")
    config = engine_config(2, export, line)
    config = config.replace("heartbeat_threshold: 5", f"heartbeat_threshold: 5{drain}")
    with MockExecutor(config=config) as executor:
        yield executor


def scale_in(made: Node) -> None:
    assert made.htex.scale_in_facade(1) == ["0"]


def kill_helper(made: Node) -> None:
    made.kill("manager's helper")


def drain(made: Node) -> None:
    made.let()


@pytest.mark.parametrize(
    ("end", "drain_period"),
    [(scale_in, ""), (kill_helper, ""), (drain, "\n  drain_period: 5")],
    ids=["scale-in", "helper", "drain"],
)
def test_template_ends_with_its_node(
    end: Callable[[Node], None], drain_period: str, tmp_path: Path
) -> None:
    with node(tmp_path, "load_logbook", drain_period) as executor:
        made = Node(executor, tmp_path)
        end(made)
        made.ends()
        assert made.torn_down() == [str(made.template.pid)]


def test_template_stays_for_workers_of_a_killed_manager(tmp_path: Path) -> None:
    with node(tmp_path, "load_logbook") as executor:
        made = Node(executor, tmp_path)
        made.kill("manager")
        wait_until(lambda: sum(has_ended(each.pid) for each in made.workers) == 1, "one has ended")
        assert made.template.is_running()
        assert made.torn_down() == []

        made.let()
        made.ends()
        assert made.torn_down() == [str(made.template.pid)]


def test_idle_workers_of_a_killed_template_are_replaced(tmp_path: Path) -> None:
    """All of them have died, the one that was about to take a task included."""
    with node(tmp_path, "table") as executor:
        made = Node(executor, tmp_path)
        made.let()
        made.task.result(120)
        made.kill("template")
        wait_until(lambda: all(has_ended(each.pid) for each in made.workers), "they have ended")
        assert executor.submit(tasks.birth).result(300) == (2, None)


def test_nothing_stays_if_all_are_killed(tmp_path: Path) -> None:
    with node(tmp_path, "load_logbook") as executor:
        made = Node(executor, tmp_path)
        made.kill("template", "manager")
        made.ends()
        assert made.torn_down() == []


def test_job_that_ends_while_its_template_loads_is_no_failure(tmp_path: Path) -> None:
    """Its manager is known by then, so that the engine goes on with another job."""
    with node(tmp_path, "when_let") as executor, contextlib.ExitStack() as stack:
        stack.callback((tmp_path / "let").touch)
        waiting = executor.submit(tasks.rank)
        htex: Any = executor._mock_client.runner()._engine._engine.executor  # type: ignore
        wait_until((tmp_path / "loading").exists, "the template loads", 300)
        wait_until(lambda: len(htex.connected_managers()) == 1, "its manager is known")
        assert htex.connected_managers()[0]["tasks"] == 0
        template = psutil.Process(int((tmp_path / "loading").read_text()))

        (helper,) = (
            each.process for each in roles.find(MARK, str(tmp_path)) if "helper" in each.role
        )
        helper.kill()
        wait_until(lambda: has_ended(template.pid), "the template ends with its manager")
        (tmp_path / "let").touch()
        assert waiting.result(300) in (0, 1)
        assert not htex.bad_state_is_set
