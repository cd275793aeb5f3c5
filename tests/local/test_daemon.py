"""The real daemon on the service on sockets.

Above all, what happens when connections, user endpoints and results are lost.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gc_warm import ConfigError, processes
from gc_warm.configs import folders
from gc_warm.exceptions import EndpointStartError
from gc_warm.local import user_endpoints
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon
from tests.support import ScriptStep, wait_until

pytestmark = pytest.mark.engine

# with so little, heartbeats come every five seconds
OPTIONS: dict[str, Any] = {"workers_per_node": 2, "keep_warm": 1}


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as cloud:
        yield cloud


@pytest.fixture
def endpoint(cloud: LocalCloud) -> Iterator[EndpointDaemon]:
    with EndpointDaemon(cloud, "local") as endpoint:
        yield endpoint


def script(
    cloud: LocalCloud, endpoint: EndpointDaemon, step: str, *arguments: str, **options: Any
) -> ScriptStep:
    return ScriptStep(
        cloud.environment, endpoint.endpoint_id, step, *arguments, **(OPTIONS | options)
    )


def ran(record: Path) -> list[int]:
    return sorted(map(int, record.read_text().split())) if record.exists() else []


def test_a_task_while_the_daemon_is_stopped_is_delivered_when_it_is_started_again(
    cloud: LocalCloud, endpoint: EndpointDaemon
) -> None:
    assert script(cloud, endpoint, "by_function_and_by_id").answer()[1]

    endpoint.stop()
    assert not endpoint.online
    waiting = script(cloud, endpoint, "submit_many", "3", os.path.join(cloud.folder, "t", "queued"))
    wait_until(lambda: bool(open_tasks(cloud)), "the tasks have been submitted")

    endpoint.start()
    assert waiting.answer() == [0, 1, 2]


def open_tasks(cloud: LocalCloud) -> list[str]:
    return [
        task_id
        for core in cloud._cores.values()
        for user_endpoint in core.user_endpoints.values()
        for task_id in user_endpoint._open
    ]


def test_connections_cut_at_random_during_a_thousand_tasks(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path
) -> None:
    """All of them: the daemon's, the user endpoint's and the client's.

    Stock code tries again at intervals of up to ten seconds.
    """
    step = script(cloud, endpoint, "submit_many", "1000", str(tmp_path / "record"))
    chance = random.Random(4)
    cuts: list[int] = []
    wait_until(lambda: len(ran(tmp_path / "record")) > 50, "the first tasks have run")

    while len(cuts) < 6 and len(ran(tmp_path / "record")) < 900:
        cuts.append(cloud.broker.cut())
        # at a third cut in ten seconds, stock code gives up
        threading.Event().wait(chance.uniform(5.1, 8))

    answers = step.answer()
    assert len(cuts) > 2
    assert sum(cuts) > len(cuts)
    assert len(answers) == 1000
    lost = [answer for number, answer in enumerate(answers) if answer != number]
    assert not [answer for answer in lost if "no longer has it" not in answer], (
        "only what the stock publisher dropped on a dead connection"
    )
    assert set(ran(tmp_path / "record")) == set(range(1000)), "every task has run"
    assert not open_tasks(cloud)


def test_a_result_that_is_lost_on_its_way_ends_its_future(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_endpoints, "_LOST_AFTER", 4)
    dropped: list[str] = []
    finish = user_endpoints.UserEndpoint.finish

    def lossy(self: Any, task_id: str, packed: bytes) -> bool:
        if not dropped and b"no longer has it" not in packed:
            dropped.append(task_id)
            return True
        return finish(self, task_id, packed)

    monkeypatch.setattr(user_endpoints.UserEndpoint, "finish", lossy)
    answers = script(cloud, endpoint, "submit_many", "10", str(tmp_path / "record")).answer()
    assert dropped

    failures = [answer for answer in answers if isinstance(answer, str)]
    failed = {answers.index(failure) for failure in failures}
    values = [answer for answer in answers if isinstance(answer, int)]
    assert sorted(values) == sorted(set(range(10)) - failed)
    assert ["no longer has it" in failure for failure in failures] == [True]


def test_a_killed_user_endpoint_fails_its_tasks(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path
) -> None:
    """The stock daemon refuses to start another, or another is asked what it has.

    It refuses for three heartbeats after the user endpoint last touched a file.
    """
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    step = script(cloud, endpoint, "wait_for", str(gate), str(begun), task_timeout=77)
    wait_until(begun.exists, "the task runs")

    paths = Path(cloud.folder).glob("uep.*/daemon.pid")
    found = [path for path in paths if psutil.pid_exists(int(path.read_text()))]
    latest = max(found, key=lambda path: path.stat().st_ctime)
    os.kill(int(latest.read_text()), signal.SIGKILL)

    answer = step.answer()
    assert "Another instance of this endpoint is running" in answer or "no longer has it" in answer
    gate.touch()


def test_a_killed_daemon_loses_what_its_user_endpoint_took(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock user endpoint ends with its daemon; the service cannot know what it had."""
    monkeypatch.setattr(user_endpoints, "_LOST_AFTER", 4)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    step = script(cloud, endpoint, "wait_many", "100", str(gate), str(begun))
    wait_until(begun.exists, "the first task runs")

    os.kill(endpoint.pid, signal.SIGKILL)
    assert endpoint.wait() == -signal.SIGKILL
    endpoint.start()
    gate.touch()

    ends = step.answer()
    lost = [end for end in ends if "no longer has it" in end]
    assert lost
    assert len(ends) - len(lost) == ends.count(str(gate)), "the others waited, and have run"
    assert script(cloud, endpoint, "by_function_and_by_id").answer()[1]


def test_a_killed_interchange_fails_its_tasks(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock user endpoint goes on, and waits for ever."""
    monkeypatch.setattr(user_endpoints, "_SILENT_AFTER", 5)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    step = script(cloud, endpoint, "wait_for", str(gate), str(begun))
    wait_until(begun.exists, "the task runs")

    for process in processes._processes(cloud.mark, cloud.folder):
        if any("HTEX interchange" in word for word in process.cmdline()):
            process.kill()

    answer = step.answer()
    assert "nothing has been heard of the user endpoint" in answer or "no longer has it" in answer
    gate.touch()


@pytest.mark.parametrize("name", ["storage.db", "-x", "\xe9t\xe9", "uep.x", "t", "with blanks"])
def test_a_folder_may_have_any_name(cloud: LocalCloud, tmp_path: Path, name: str) -> None:
    shutil.copytree(folders.find_folder("local"), tmp_path / name)
    with EndpointDaemon(cloud, tmp_path / name) as endpoint:
        assert (endpoint.name, endpoint.online) == ("endpoint", True)


def test_what_a_user_endpoint_says_when_it_cannot_start_reaches_the_task(
    cloud: LocalCloud, endpoint: EndpointDaemon, tmp_path: Path
) -> None:
    options = {"workers_per_node": 3, "gpus_per_node": 2}
    record = str(tmp_path / "record")
    answers = script(cloud, endpoint, "submit_many", "2", record, **options).answer()
    reason = "workers_per_node (3) has to be a multiple of gpus_per_node (2)"
    assert all(reason in answer for answer in answers), answers


def test_a_config_that_cannot_be_read_is_refused(cloud: LocalCloud, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("amqp_port: 443\n")
    (tmp_path / "user_config_template.yaml.j2").write_text("engine:\n  type: GlobusComputeEngine\n")
    (tmp_path / "user_config_schema.json").write_text("{")
    with pytest.raises(ConfigError, match=r"user_config_schema\.json"):
        EndpointDaemon(cloud, tmp_path)
    names = [path.name for path in Path(cloud.folder).iterdir()]
    assert not [name for name in names if name.startswith(tmp_path.name)]


def test_a_daemon_that_cannot_start_says_why(cloud: LocalCloud) -> None:
    cloud.environment["GLOBUS_COMPUTE_CLIENT_SECRET"] = "guessed"
    expected = r"(?s)the endpoint local ended with status 77:\n.*401"
    with pytest.raises(EndpointStartError, match=expected):
        EndpointDaemon(cloud, "local")


def test_two_endpoints_of_one_config(cloud: LocalCloud, endpoint: EndpointDaemon) -> None:
    with EndpointDaemon(cloud, "local") as other:
        assert (other.name, other.endpoint_id != endpoint.endpoint_id) == ("local-2", True)
        step = script(cloud, other, "by_function_and_by_id", workers_per_node=1)
        assert step.answer() == [[1, 2, 3, 4, 5], True]
