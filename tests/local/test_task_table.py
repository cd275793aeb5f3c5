"""The service's tasks and results: what is kept, what is dropped, and who is told."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result

from gc_warm.local import task_table
from gc_warm.local.service import Service, ServiceError
from gc_warm.local.task_table import TaskTable
from tests.support import Clock

GROUP = str(uuid.uuid4())
SMALL = 1_000 * "x"  # of a packed result of less than 1,300 bytes
LIMITS = "keeps at most 32 MiB of results and 5000 tasks"


def finish(table: TaskTable, data: str = SMALL, group: str = GROUP, *, queued: bool = True) -> str:
    """Add a task that ends at once, and return its id."""
    task_id = uuid.uuid4()
    table.add(str(task_id), "function", group)
    packed = bytes(messagepack.pack(Result(task_id=task_id, data=data)))
    table.finish(str(task_id), packed, queued=queued)
    return str(task_id)


def unpack(packed: bytes) -> tuple[str, str, bool]:
    result: Any = messagepack.unpack(packed)
    return str(result.task_id), result.data, result.is_error


def is_kept(table: TaskTable, task_id: str) -> bool:
    status = table.statuses([task_id])[task_id]
    assert status["status"] == "success" or LIMITS in status["exception"]
    assert status["completion_t"], "whoever reloads it would wait for ever"
    return bool(status["status"] == "success")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(task_table, "time", clock)
    return clock


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> TaskTable:
    """A table with room for three small results."""
    monkeypatch.setattr(task_table, "KEPT_BYTES", 3_900)
    return TaskTable()


def test_delivered_results_go_the_oldest_first(table: TaskTable) -> None:
    table.subscribe(GROUP, lambda packed: None)
    tasks = [finish(table) for _ in range(5)]
    assert [is_kept(table, task) for task in tasks] == [False, False, True, True, True]
    assert table.task_group(GROUP) == tasks


def test_a_large_result_is_delivered_and_not_kept(table: TaskTable) -> None:
    delivered: list[bytes] = []
    table.subscribe(GROUP, delivered.append)
    task = finish(table, "x" * 10_000)
    assert unpack(*delivered) == (task, "x" * 10_000, False)
    assert not is_kept(table, task)


def test_results_that_wait_outlast_those_delivered(table: TaskTable) -> None:
    waiting = [finish(table) for _ in range(3)]
    table.subscribe("other", lambda packed: None)
    taken = [finish(table, group="other") for _ in range(3)]
    assert [is_kept(table, task) for task in taken + waiting] == [False] * 3 + [True] * 3

    delivered: list[bytes] = []
    table.subscribe(GROUP, delivered.append)
    assert [unpack(packed) for packed in delivered] == [(task, SMALL, False) for task in waiting]


def test_a_subscriber_to_come_has_time(table: TaskTable, clock: Clock) -> None:
    tasks = [finish(table) for _ in range(5)]
    assert all(is_kept(table, task) for task in tasks)

    clock.advance(100)
    tasks.append(finish(table))
    assert [is_kept(table, task) for task in tasks] == [False] * 3 + [True] * 3

    delivered: list[bytes] = []
    table.subscribe(GROUP, delivered.append)
    assert [unpack(packed)[0] for packed in delivered] == tasks
    failures = [data for _, data, is_error in map(unpack, delivered) if is_error]
    assert len(failures) == 3
    assert all(LIMITS in failure for failure in failures)


def test_results_asked_for_go_first(table: TaskTable) -> None:
    first, second = [finish(table, queued=False) for _ in range(2)]
    assert is_kept(table, second)
    for _ in range(2):
        finish(table, queued=False)
    assert [is_kept(table, task) for task in (first, second)] == [True, False]


def test_results_that_did_not_arrive_wait_again(table: TaskTable) -> None:
    lost: list[bytes] = []
    unsubscribe = table.subscribe(GROUP, lost.append)
    tasks = [finish(table) for _ in range(5)]
    unsubscribe()
    table.take_back(lost)
    assert all(is_kept(table, task) for task in tasks)

    delivered: list[bytes] = []
    table.subscribe(GROUP, delivered.append)
    assert delivered == lost


@pytest.fixture
def service(table: TaskTable, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that knows five tasks, three of them with small results."""
    monkeypatch.setattr(task_table, "KEPT_TASKS", 5)
    service = Service()
    service.tasks = table
    return service


def ask(service: Service, method: str, path: str, body: Any = None) -> Any:
    return service.handle(method, path, "", body)


def test_who_asks_for_forgotten_tasks_is_told(service: Service) -> None:
    service.tasks.subscribe(GROUP, lambda packed: None)
    tasks = [finish(service.tasks) for _ in range(9)]

    listed = [task["id"] for task in ask(service, "GET", f"/v2/taskgroup/{GROUP}")["tasks"]]
    assert listed == tasks[3:], "the first is forgotten, and stands for the others"
    batch = ask(service, "POST", "/v2/batch_status", {"task_ids": tasks})["results"]
    assert [batch[task]["status"] for task in tasks] == ["failed"] * 6 + ["success"] * 3
    assert all(LIMITS in batch[task]["exception"] for task in tasks[:6])

    assert LIMITS in ask(service, "GET", f"/v2/tasks/{tasks[5]}")["exception"]
    with pytest.raises(ServiceError, match=f"TASK_NOT_FOUND.*{LIMITS}"):
        ask(service, "GET", f"/v2/tasks/{tasks[0]}")


def test_groups_go_with_their_last_task(service: Service) -> None:
    groups = [str(uuid.uuid4()) for _ in range(10)]
    for group in groups:
        unsubscribe = service.tasks.subscribe(group, lambda packed: None)
        finish(service.tasks, group=group)
        unsubscribe()

    assert service.tasks.group_ids() == set(groups[-5:])
    with pytest.raises(ServiceError, match=f"TASK_GROUP_NOT_FOUND.*{LIMITS}"):
        ask(service, "GET", f"/v2/taskgroup/{groups[0]}")


def test_nothing_grows_with_the_number_of_tasks(service: Service, clock: Clock) -> None:
    """Whether they are delivered, wait for a subscriber, or for somebody who asks."""
    table = service.tasks
    table.subscribe(GROUP, lambda packed: None)
    for number in range(60):
        clock.advance(100)
        finish(table, group=[GROUP, "other"][number % 2], queued=number % 3 > 0)

    sizes = [len(held) for held in vars(table).values() if hasattr(held, "__len__")]
    assert len(sizes) == 5
    assert max(sizes) <= 6
    listed = [task for group in (GROUP, "other") for task in table.task_group(group) or ()]
    assert len(listed) == 7, "five, and one of each group for those that are forgotten"


def test_endpoint_that_registers_again_is_the_new_one() -> None:
    service = Service()
    old: Any = object()
    new: Any = object()
    endpoint = service.add_endpoint(lambda *_: old)
    assert service.runner(endpoint, {"a": 1}) is old

    service.add_endpoint(lambda *_: new, endpoint, is_online=lambda: False)
    assert service.runner(endpoint, {"a": 1}) is old, "its user endpoints stay"
    assert service.runner(endpoint, {"a": 2}) is new
    assert ask(service, "GET", f"/v2/endpoints/{endpoint}/status")["status"] == "offline"
