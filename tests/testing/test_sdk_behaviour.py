"""The SDK's habits around a task, through the stand-ins.

These are its own classes, and its habits are what a user meets.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
import tasks
from globus_compute_sdk import Executor
from globus_compute_sdk.errors import SerializationError, TaskExecutionFailed, TaskPending
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.serialize import ComputeSerializer, DillDataBase64, JSONData

from gc_warm import MockClient, MockExecutor, functions
from tests.support import Clock, wait_until

# what does not depend on the backend
spawned_only = pytest.mark.parametrize("client", ["spawned"], indirect=True)

TEXT_LIMIT = 10 * 1024 * 1024
# a line of base64 is 57 bytes in 77 characters; the rest is for headers
LARGEST_BYTES = TEXT_LIMIT * 57 // 77 - 100


def remote_error(error: BaseException | None) -> TaskExecutionFailed:
    assert isinstance(error, TaskExecutionFailed), error
    return error


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for `tasks.wait_for_file`, made at the end whatever happens.

    The worker is there for others, too.
    """
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


class RecordingSerializer(ComputeSerializer):
    """A serializer that remembers what was serialized, and in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def serialize(self, data: Any) -> str:
        self.seen.append(("code" if callable(data) else "data", threading.current_thread().name))
        return str(super().serialize(data))


@spawned_only
def test_function_is_serialized_once_and_arguments_on_the_submitter_thread(
    client: MockClient,
) -> None:
    serializer = RecordingSerializer()
    with MockExecutor(client=client, serializer=serializer) as executor:
        assert [executor.submit(tasks.same, number).result() for number in range(3)] == [0, 1, 2]
    # args and kwargs of three calls
    assert serializer.seen == [("code", "MainThread")] + [("data", "TaskSubmitter")] * 6


class SerializedLate:
    """An argument that holds its own serialization, and those after it, until told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        assert self.go_on.wait(120)
        return list, ()


@spawned_only
def test_argument_that_changes_after_submit_may_be_sent_changed(executor: MockExecutor) -> None:
    late = SerializedLate()
    numbers = [1]
    executor.submit(tasks.same, late)
    future = executor.submit(tasks.same, numbers)
    numbers.append(2)
    late.go_on.set()
    assert future.result() == [1, 2]


@spawned_only
# so it is: the submitter thread dies
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_unserializable_argument_kills_the_executor_and_its_future_says_why(
    client: MockClient, gate: Path
) -> None:
    executor = MockExecutor(client=client)
    running = executor.submit(tasks.wait_for_file, str(gate))
    wait_until(lambda: running.task_id is not None, "the first task is submitted")
    lost = executor.submit(tasks.same, (text for text in "abc"))
    wait_until(lambda: executor._stopped_in_error, "the submitter thread has failed")
    with pytest.raises(RuntimeError, match="is shutdown"):
        executor.submit(tasks.same, 1)

    gate.touch()
    assert running.result(120) == str(gate), "what was submitted before still ends"

    ending = threading.Thread(target=executor.shutdown, daemon=True)
    ending.start()
    ending.join(120)
    assert not ending.is_alive(), "shutdown hangs"

    message = (
        r"argument 1=<generator .*> of the task cannot be sent \(.*cannot pickle.*\): "
        r"send plain data or the path of a file"
    )
    with pytest.raises(SerializationError, match=message):
        lost.result(0)


@spawned_only
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_sdk_itself_would_leave_that_future_pending(client: MockClient) -> None:
    executor = Executor(client.endpoint_id, client=client)
    lost = executor.submit(tasks.same, (text for text in "abc"))
    wait_until(lambda: not executor._task_submitter.is_alive(), "the submitter thread has failed")
    assert not lost.done()
    executor.shutdown()


@spawned_only
def test_more_tasks_than_a_batch_at_the_end_of_the_block(client: MockClient) -> None:
    """The SDK's own executor can wait for ever here.

    It waits for its queue to empty, with a lock held that its submitter needs.
    """
    for _ in range(3):
        with MockExecutor(client=client) as executor:
            futures = [executor.submit(tasks.same, number) for number in range(300)]
        assert [future.result(0) for future in futures] == list(range(300))


@spawned_only
def test_shutdown_while_others_submit(client: MockClient) -> None:
    futures: list[Future[int]] = []
    executor = MockExecutor(client=client)

    def submit_for_ever() -> None:
        while True:
            futures.append(executor.submit(tasks.same, 1))

    def submit_until_refused() -> None:
        with pytest.raises(RuntimeError, match="is shutdown; no new functions may be executed"):
            submit_for_ever()

    threads = [threading.Thread(target=submit_until_refused, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(futures) > 200, "there is a crowd")
    executor.shutdown()
    for thread in threads:
        thread.join(120)
    assert {future.result(120) for future in futures} == {1}


@spawned_only
def test_shutdown_in_a_callback_is_refused_not_wedged(client: MockClient, gate: Path) -> None:
    refused: list[str] = []

    def shut_down(_: Future[int]) -> None:
        try:
            executor.shutdown()
        except RuntimeError as error:
            refused.append(str(error))

    with MockExecutor(client=client) as executor:
        waiting = executor.submit(tasks.wait_for_file, str(gate))
        waiting.add_done_callback(shut_down)  # type: ignore[arg-type]
        gate.touch()
        wait_until(lambda: bool(refused), "the callback has run")
    assert "call shutdown(wait=False) there" in refused[0]


def test_the_id_of_a_real_endpoint_will_do() -> None:
    endpoint_id = str(uuid.uuid4())
    with MockExecutor(endpoint_id, workers=1) as executor:
        assert executor.submit(functions.count).result() == 1
        assert str(executor.endpoint_id) == endpoint_id


def test_result_serializers_are_tried_in_order(client: MockClient) -> None:
    with MockExecutor(client=client, result_serializers=[JSONData()]) as executor:
        assert executor.submit(tasks.same, (1, 2)).result() == [1, 2]
        error = remote_error(executor.submit(tasks.same, {1}).exception())
        message = "SerializationError: Serialization failed: All strategies failed."
        assert message in error.remote_data
        executor.result_serializers = [JSONData(), DillDataBase64()]
        assert executor.submit(tasks.same, {1}).result() == {1}


def test_remote_error_is_text_only(executor: MockExecutor) -> None:
    error = remote_error(executor.submit(tasks.invert, 0).exception())
    assert error.__cause__ is None
    assert error.remote_data.startswith("Traceback (most recent call last):")
    assert "in invert" in error.remote_data
    assert error.remote_data.endswith("ZeroDivisionError: division by zero\n")
    assert executor.submit(tasks.invert, 2).result() == 0.5


def test_result_beyond_the_limit_is_an_error_and_the_worker_stays(executor: MockExecutor) -> None:
    worker = executor.submit(os.getpid).result()
    assert len(executor.submit(tasks.zeros, LARGEST_BYTES).result()) == LARGEST_BYTES
    error = remote_error(executor.submit(tasks.zeros, LARGEST_BYTES + 200).exception())
    assert re.fullmatch(rf"MaxResultSizeExceeded\(\d+, {TEXT_LIMIT}\)", error.remote_data)
    assert executor.submit(os.getpid).result() == worker


@spawned_only
def test_argument_beyond_the_limit_is_refused_and_kills_the_executor(client: MockClient) -> None:
    with MockExecutor(client=client) as executor:
        assert executor.submit(len, bytes(LARGEST_BYTES)).result() == LARGEST_BYTES
        refusal = executor.submit(len, bytes(LARGEST_BYTES + 200)).exception()
        assert isinstance(refusal, globus_sdk.GlobusAPIError)
        assert (refusal.http_status, refusal.code) == (413, "TASK_PAYLOAD_TOO_LARGE")
        wait_until(lambda: executor._stopped_in_error, "the submitter thread has failed")
    with pytest.raises(RuntimeError, match="is shutdown"):
        executor.submit(len, ())


@spawned_only
def test_map_is_not_implemented(executor: MockExecutor) -> None:
    with pytest.raises(NotImplementedError):
        executor.map(tasks.same, [1, 2])


@spawned_only
def test_nothing_can_be_submitted_after_shutdown(client: MockClient) -> None:
    executor = MockExecutor(client=client)
    executor.shutdown()
    for call in (
        lambda: executor.submit(tasks.same, 1),
        lambda: executor.register_function(tasks.same),
        lambda: executor.map(tasks.same, [1]),
    ):
        with pytest.raises(RuntimeError, match="is shutdown"):
            call()


@spawned_only
def test_many_calls_are_not_throttled(
    executor: MockExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        results = [executor.submit(tasks.same, number).result() for number in range(200)]
    assert results == list(range(200))
    assert executor.api_burst_window_s == 0
    assert "rate-limit" not in caplog.text


@spawned_only
def test_throttle_of_the_sdk_can_be_kept(
    client: MockClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk_executor, "time", Clock())  # however long they take, they are a burst
    limits: dict[str, Any] = {"api_burst_limit": 8, "api_burst_window_s": 4}
    with (
        caplog.at_level(logging.WARNING, "globus_compute_sdk"),
        MockExecutor(client=client, rate_limit=True, **limits) as executor,
    ):
        for number in range(8):
            executor.submit(tasks.same, number).result()
        assert "rate-limit" not in caplog.text
        assert executor.submit(tasks.same, 8).result() == 8
    assert "API rate-limit delay" in caplog.text


@spawned_only
def test_source_code_can_be_registered(executor: MockExecutor) -> None:
    source = "import math\n\ndef area(radius):\n    return math.pi * radius**2\n"
    function_id = executor.register_source_code(source, "area")
    area = executor.submit_to_registered_function(function_id, args=(1,)).result()
    assert area == pytest.approx(3.14159, abs=1e-5)
    assert executor.submit_to_registered_function(function_id, kwargs={"radius": 0}).result() == 0
    with pytest.raises(ValueError, match=function_id):
        executor.register_source_code(source, "area")


@spawned_only
def test_saved_function_id_is_used_in_place_of_a_registration(
    executor: MockExecutor, client: MockClient
) -> None:
    saved = client.register_function(sum)
    assert executor.register_function(len, function_id=saved) == saved
    result = executor.submit(len, [20, 22]).result()
    assert result == 42, "the function that is registered under that id ran"


def unknown(client: MockClient) -> str:
    return str(uuid.uuid4())


def deleted(client: MockClient) -> str:
    function_id: str = client.register_function(tasks.same)
    assert client.get_function(function_id)["function_name"] == "same"
    client.delete_function(function_id)
    return function_id


@spawned_only
@pytest.mark.parametrize("make_id", [unknown, deleted])
def test_function_that_is_not_registered(
    client: MockClient, make_id: Callable[[MockClient], str]
) -> None:
    function_id = make_id(client)
    with MockExecutor(client=client) as executor:
        error = executor.submit_to_registered_function(function_id).exception()
    assert isinstance(error, globus_sdk.GlobusAPIError)
    assert (error.http_status, error.code) == (404, "FUNCTION_NOT_FOUND")
    assert function_id in str(error)
    with pytest.raises(globus_sdk.GlobusAPIError, match=function_id):
        client.get_function(function_id)


def submitted(client: MockClient, task_group_id: uuid.UUID, path: Path) -> list[str]:
    """Submit two tasks of a client that is gone: one waits for *path*, the next fails then."""
    function_ids = [
        client.register_function(tasks.wait_for_file),
        client.register_function(tasks.invert),
    ]
    batch = client.create_batch(task_group_id=task_group_id, create_websocket_queue=True)
    batch.add(function_ids[0], (str(path),))
    batch.add(function_ids[1], (0,))
    task_ids: Any = client.batch_run(client.endpoint_id, batch)["tasks"]
    return [task_ids[function_id][0] for function_id in function_ids]


@spawned_only
def test_second_executor_finds_the_results_of_the_first(client: MockClient) -> None:
    with MockExecutor(client=client) as first:
        assert first.submit(tasks.same, 1).result() == 1
    with MockExecutor(client=client) as second:
        assert [future.result() for future in second.reload_tasks(first.task_group_id)] == [1]


@pytest.mark.parametrize("already_ended", [False, True])
def test_tasks_are_reloaded_by_their_group(
    client: MockClient, gate: Path, already_ended: bool
) -> None:
    group = uuid.uuid4()
    task_ids = submitted(client, group, gate)
    if already_ended:
        gate.touch()
        wait_until(
            lambda: not any(state["pending"] for state in states(client, task_ids).values()),
            "both tasks have ended",
        )
    with MockExecutor(client=client, task_group_id=group) as executor:
        first, second = futures = list(executor.reload_tasks())
        assert [future.task_id for future in futures] == task_ids
        gate.touch()
        assert first.result(120) == str(gate)
        assert "ZeroDivisionError" in remote_error(second.exception(120)).remote_data


def states(client: MockClient, task_ids: list[str]) -> dict[str, dict[str, Any]]:
    raw: Any = client._compute_web_client.v2.get_task_batch(task_ids)
    return {
        task_id: {"pending": "completion_t" not in found}
        for task_id, found in raw["results"].items()
    }


@spawned_only
def test_task_that_two_executors_wait_for(client: MockClient, gate: Path) -> None:
    first = MockExecutor(client=client)
    future = first.submit(tasks.wait_for_file, str(gate))
    wait_until(lambda: bool(future.task_id), "the task has been sent")
    first.shutdown(wait=False)
    with MockExecutor(client=client, task_group_id=first.task_group_id) as second:
        (reloaded,) = second.reload_tasks()
        gate.touch()
        assert reloaded.result(120) == future.result(120) == str(gate)


@spawned_only
def test_reload_does_not_know_an_unknown_group(client: MockClient) -> None:
    with (
        MockExecutor(client=client) as executor,
        pytest.raises(globus_sdk.GlobusAPIError, match="TASK_GROUP_NOT_FOUND"),
    ):
        executor.reload_tasks(uuid.uuid4())


@spawned_only
def test_client_runs_and_asks_for_results(client: MockClient, gate: Path) -> None:
    endpoint = client.endpoint_id
    waiting = client.register_function(tasks.wait_for_file)
    task = client.run(str(gate), endpoint_id=endpoint, function_id=waiting)
    with pytest.raises(TaskPending):
        client.get_result(task)
    assert client.get_task(task)["pending"]
    gate.touch()
    wait_until(lambda: not client.get_task(task)["pending"], "the task has ended")
    assert client.get_result(task) == str(gate)

    inverting = client.register_function(tasks.invert)
    failing = client.run(0, endpoint_id=endpoint, function_id=inverting)
    wait_until(
        lambda: not states(client, [failing])[failing]["pending"], "the second task has ended"
    )
    with pytest.raises(TaskExecutionFailed, match="ZeroDivisionError"):
        client.get_result(failing)


def test_results_of_a_batch_are_asked_for_together(client: MockClient) -> None:
    function_id = client.register_function(tasks.same)
    batch = client.create_batch()
    for number in range(5):
        batch.add(function_id, (number,))
    task_ids: Any = client.batch_run(client.endpoint_id, batch)["tasks"][function_id]
    wait_until(
        lambda: not any(found["pending"] for found in client.get_batch_result(task_ids).values()),
        "all have ended",
    )
    found = client.get_batch_result([*task_ids, str(uuid.uuid4())])
    assert [found[task_id]["result"] for task_id in task_ids] == list(range(5))
    assert len(found) == 5, "an unknown task is left out"


def test_executors_of_one_client_share_its_workers(client: MockClient) -> None:
    with MockExecutor(client=client) as first, MockExecutor(client=client) as second:
        counts = [executor.submit(functions.count).result() for executor in (first, second, first)]
    assert counts == list(range(counts[0], counts[0] + 3))


def test_each_user_endpoint_configuration_has_workers_of_its_own() -> None:
    first = {"account": "a", "nodes": 1}
    in_another_order = {"nodes": 1, "account": "a"}
    with MockClient(workers=1) as client:
        with MockExecutor(client=client, user_endpoint_config=first) as executor:
            assert [executor.submit(functions.count).result() for _ in range(2)] == [1, 2]
            executor.user_endpoint_config = {"account": "b", "nodes": 1}
            assert executor.submit(functions.count).result() == 1

        with MockExecutor(client=client, user_endpoint_config=in_another_order) as executor:
            count = executor.submit(functions.count).result()
            assert count == 3, "the order of the names means nothing"


@spawned_only
def test_task_group_of_the_sdk_is_left_alone(client: MockClient) -> None:
    group = Executor._default_task_group_id
    with MockExecutor(client=client) as first, MockExecutor(client=client) as second:
        futures: list[Future[int]] = [
            executor.submit(tasks.same, 1) for executor in (first, second)
        ]
        assert [future.result() for future in futures] == [1, 1]
        assert first.task_group_id != second.task_group_id
    assert Executor._default_task_group_id == group
