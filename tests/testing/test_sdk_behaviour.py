"""The SDK's habits around a task, through the stand-ins.

These are its own classes, and its habits are what a user meets.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
import tasks
from globus_compute_sdk import Executor, MPIFunction, ShellFunction
from globus_compute_sdk.errors import (
    SerializationError,
    TaskExecutionFailed,
    TaskPending,
)
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.sdk.batch import Batch
from globus_compute_sdk.serialize import ComputeSerializer, DillDataBase64, JSONData

from gc_warm import MockClient, MockExecutor, functions
from tests.support import MODULES, Clock, wait_until

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
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.begun.set()
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
    with MockExecutor(client=client, task_group_id=uuid.uuid4()) as first:
        assert first.submit(tasks.same, 1).result() == 1
    with MockExecutor(client=client) as second:
        assert [future.result() for future in second.reload_tasks()] == [1]


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
    first = MockExecutor(client=client, task_group_id=uuid.uuid4())
    future = first.submit(tasks.wait_for_file, str(gate))
    wait_until(lambda: bool(first._open_futures()), "the task has been sent")
    first.shutdown(wait=False)
    with MockExecutor(client=client, task_group_id=first.task_group_id) as second:
        (reloaded,) = second.reload_tasks()
        gate.touch()
        assert reloaded.result(120) == future.result(120) == str(gate)

        wait_until(lambda: len(client._watchers()) == 1, "the one that stepped aside has ended")


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
def test_executors_of_one_client_share_a_group(client: MockClient, gate: Path) -> None:
    of_the_sdk = Executor._default_task_group_id
    chosen = uuid.uuid4()
    with MockExecutor(client=client, task_group_id=chosen), MockExecutor(client=client) as first:
        assert first.task_group_id == chosen, "the last one that was set"
        waiting = first.submit(tasks.wait_for_file, str(gate))
        wait_until(lambda: bool(first._open_futures()), "the task has been sent")

        with MockExecutor(client=client) as second:
            assert second.task_group_id == chosen
            first.shutdown(wait=False)
            later = second.submit(tasks.same, 1)
            gate.touch()
            assert waiting.result(120) == str(gate), "its executor's end does not end it"
            assert later.result(120) == 1, "nor does it starve the other's"
            reloaded = {future.task_id for future in second.reload_tasks()}
            assert reloaded == {waiting.task_id, later.task_id}
    assert Executor._default_task_group_id == of_the_sdk


@spawned_only
def test_result_that_went_to_the_watcher_before(
    client: MockClient, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment for the watcher of the next executor is after its task has ended."""
    later: Future[Any] | None = None
    subscribe = client.service.subscribe
    with MockExecutor(client=client, task_group_id=uuid.uuid4()) as first:
        second = MockExecutor(client=client)
        waiting = first.submit(tasks.wait_for_file, str(gate))
        wait_until(lambda: bool(first._open_futures()), "the task has been sent")
        first.shutdown(wait=False)

        def subscribe_late(*args: Any) -> Any:
            wait_until(lambda: later is not None, "the task is known here")
            task_id = getattr(later, "task_id")  # noqa: B009
            table = client.service.tasks
            wait_until(lambda: table.result(task_id) is not None, "the task has ended")
            return subscribe(*args)

        monkeypatch.setattr(client.service, "subscribe", subscribe_late)
        later = second.submit(tasks.same, 1)
        gate.touch()
        assert later.result(120) == 1
        assert waiting.result(120) == str(gate)
        second.shutdown()


def test_group_is_none_before_the_first_task() -> None:
    with MockClient(workers=1, pythonpath=[MODULES]) as client:
        with MockExecutor(client=client) as first, MockExecutor(client=client) as second:
            assert first.task_group_id is None
            with pytest.raises(ValueError, match="must specify a task_group_id"):
                first.reload_tasks()
            futures = [executor.submit(tasks.same, 1) for executor in (first, second)]
            assert [future.result() for future in futures] == [1, 1]
            assert first.task_group_id == second.task_group_id != None  # noqa: E711

            first.task_group_id = None
            assert first.submit(tasks.same, 2).result() == 2
            assert first.task_group_id != second.task_group_id, "it asked for a new one"

        with MockExecutor(workers=1) as other:
            assert other.task_group_id is None, "another client has another"


RESOURCES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"priority": 2}, None),
    ({"num_nodes": 2}, "InvalidResourceSpecification: .*{'num_nodes'}. .* of resources: priority$"),
    ({"priority": 1, "cores": 3}, "InvalidResourceSpecification: .*{'cores'}. .*: priority$"),
]


@pytest.mark.parametrize(("specification", "message"), RESOURCES)
def test_resources_that_the_engine_does_not_know(
    client: MockClient, specification: dict[str, Any], message: str | None
) -> None:
    """An MPIFunction runs serially where it names no nodes, and not at all where it does."""
    with MockExecutor(client=client, resource_specification=specification) as executor:
        futures = [
            executor.submit(MPIFunction("echo {word}", return_dict=True), word="hello"),
            executor.submit(tasks.same, "hello\n"),
        ]
        for future in futures:
            if message is None:
                result = future.result(120)
                assert (result["stdout"] if isinstance(result, dict) else result) == "hello\n"
            else:
                lines = remote_error(future.exception(120)).remote_data.splitlines()
                assert (lines[0], lines[-1]) == ("+" * 68, "-" * 68)
                assert re.search(f"^parsl.executors.errors.{message}", lines[-2])


@spawned_only
@pytest.mark.parametrize("priority", ["high", None])
def test_priority_that_ends_a_real_interchange(client: MockClient, priority: Any) -> None:
    with MockExecutor(client=client, resource_specification={"priority": priority}) as executor:
        error = remote_error(executor.submit(tasks.same, 1).exception(120))
        assert f"priority must be a number, not {priority!r}" in error.remote_data


def test_shell_function_has_a_folder_and_a_clean_stderr(executor: MockExecutor) -> None:
    command = ShellFunction("cat mine 2>/dev/null; echo {word} | tee mine; echo oops >&2; exit 3")
    for word in ("first", "second"):
        result: Any = executor.submit(command, word=word).result(120)
        assert result.stdout == f"{word}\n", "it finds nothing of the task before"
        assert (result.stderr, result.returncode) == ("oops\n", 3)


def breaks_here() -> Any:
    """Return what a worker can pickle, and nobody can unpickle."""

    class Broken:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("x",)

    return Broken()


def exits_here() -> Any:
    """Return what ends the thread that unpickles it."""
    import sys

    class Exit:
        def __reduce__(self) -> tuple[Any, ...]:
            return sys.exit, (3,)

    return Exit()


@spawned_only
def test_result_that_exits_where_it_is_read(executor: MockExecutor) -> None:
    source = inspect.getsource(exits_here).replace("Any", "object")
    function_id = executor.register_source_code(source, "exits_here")
    error = executor.submit_to_registered_function(function_id).exception(120)
    assert str(error) == "the result cannot be read: SystemExit(3)"
    assert executor.submit(tasks.same, 1).result(120) == 1


@pytest.fixture
def watched_late(client: MockClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results come before anybody watches for them: all of a batch at once."""
    stock = sdk_executor._ResultWatcher.watch_for_task_results

    def watch(watcher: Any, executor: Any, futures: list[Any]) -> int:
        results = client.service.tasks.result
        wait_until(lambda: all(results(each.task_id) for each in futures), "all tasks have ended")
        return stock(watcher, executor, futures)

    monkeypatch.setattr(sdk_executor._ResultWatcher, "watch_for_task_results", watch)


@spawned_only
@pytest.mark.usefixtures("watched_late")
def test_callback_that_exits_costs_no_other_result(
    executor: MockExecutor, client: MockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_has_successors", True)
    late = SerializedLate()
    futures = [executor.submit(tasks.same, value) for value in (late, 0, 1, 2)]
    for future in futures:
        future.add_done_callback(lambda _: sys.exit(3))
    late.go_on.set()
    assert [future.result(120) for future in futures] == [[], 0, 1, 2]

    # the last word of a watcher comes behind all copies
    assert executor.submit(tasks.same, 3).result(120) == 3
    wait_until(
        lambda: not any(watcher._received_results for watcher in client._watchers()),
        "no copy of a result is kept",
    )


@spawned_only
def test_callback_of_a_cancelled_future_exits(client: MockClient) -> None:
    late = SerializedLate()
    executor = MockExecutor(client=client)
    futures = [executor.submit(tasks.same, value) for value in (late, 1, 2)]
    for future in futures:
        future.add_done_callback(lambda _: sys.exit(3))
    wait_until(late.begun.is_set, "the first is being serialized")
    with pytest.raises(SystemExit):
        executor.shutdown(wait=False, cancel_futures=True)
    assert wait(futures, 0).not_done == set()
    late.go_on.set()
    executor.shutdown()
    wait_until(lambda: executor not in client._executors, "it has left its client")


@spawned_only
@pytest.mark.parametrize("is_sent", [False, True])
def test_future_that_its_owner_cancels_ends(client: MockClient, gate: Path, is_sent: bool) -> None:
    late = SerializedLate()
    executor = MockExecutor(client=client)
    if not is_sent:
        executor.submit(tasks.same, late)
    future = executor.submit(tasks.wait_for_file, str(gate))
    if is_sent:
        wait_until(lambda: bool(executor._open_futures()), "the task has been sent")

    assert future.cancel()
    late.go_on.set()
    gate.touch()
    ending = threading.Thread(target=executor.shutdown, daemon=True)
    ending.start()
    ending.join(120)
    assert not ending.is_alive(), "shutdown hangs"
    assert wait([future], 0).not_done == set()


@spawned_only
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("waits", [False, True])
def test_shutdown_in_a_callback_of_what_cannot_be_sent(client: MockClient, waits: bool) -> None:
    late = SerializedLate()
    executor = MockExecutor(client=client, batch_size=1)
    values = (late, (text for text in "abc"), 1, 2)
    futures = [executor.submit(tasks.same, value) for value in values]
    futures[1].add_done_callback(lambda _: executor.shutdown(wait=waits))
    late.go_on.set()
    assert wait(futures, 120).not_done == set()
    assert [future.cancelled() for future in futures] == [False, False, True, True]
    executor.shutdown()


def test_wrong_task_group_starts_nothing() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="badly formed"):
        MockExecutor(workers=1, task_group_id="nonsense")
    assert set(threading.enumerate()) <= before


@spawned_only
def test_result_that_the_client_cannot_read(client: MockClient) -> None:
    with MockExecutor(client=client, task_group_id=uuid.uuid4()) as executor:
        source = inspect.getsource(breaks_here).replace("Any", "object")
        future = executor.submit_to_registered_function(
            executor.register_source_code(source, "breaks_here")
        )
        assert "Malformed or unexpected data structure" in str(future.exception(120))
        assert isinstance(future.exception().__cause__, ValueError)
        (reloaded,) = executor.reload_tasks()
        assert "Failed to set result or exception" in str(reloaded.exception(0))


@spawned_only
def test_without_endpoint_id_a_submission_ends_the_executor(client: MockClient, gate: Path) -> None:
    executor = MockExecutor(client=client)
    running = executor.submit(tasks.wait_for_file, str(gate))
    wait_until(lambda: bool(executor._open_futures()), "the first task is submitted")
    executor.endpoint_id = None
    with pytest.raises(ValueError, match=r"No endpoint_id set\.  Did you forget"):
        executor.submit(tasks.same, 1)
    executor._task_submitter.join(120)
    with pytest.raises(RuntimeError, match="is shutdown"):
        executor.submit(tasks.same, 1)
    gate.touch()
    assert running.result(120) == str(gate), "what was submitted before still ends"
    executor.shutdown()


class Unsendable:
    __name__ = "unsendable"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("not this one")


@spawned_only
@pytest.mark.parametrize(
    "register",
    [
        lambda executor: executor.register_function(Unsendable()),
        lambda executor: executor.submit(Unsendable()),
        lambda executor: executor.register_source_code(f"{1:>{TEXT_LIMIT}}", object()),
    ],
    ids=["function", "submission", "source"],
)
def test_failed_registration_ends_the_executor(
    client: MockClient, register: Callable[[MockExecutor], None]
) -> None:
    executor = MockExecutor(client=client)
    with pytest.raises((SerializationError, TypeError)):
        register(executor)
    executor._task_submitter.join(120)
    with pytest.raises(RuntimeError, match="is shutdown; refusing to register function"):
        executor.register_function(tasks.same)
    with pytest.raises(RuntimeError, match="is shutdown; refusing to register function"):
        executor.register_source_code("def one(): return 1", "one")


@spawned_only
def test_function_is_registered_once(
    executor: MockExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    function_id = executor.register_function(tasks.same)
    assert executor.register_function(tasks.same, function_id=function_id) == function_id
    assert "already registered" in caplog.text
    for options in ({}, {"function_id": str(uuid.uuid4())}):
        with pytest.raises(ValueError, match=f"already registered as function id: {function_id}"):
            executor.register_function(tasks.same, **options)
    assert executor.submit(tasks.same, 1).result() == 1


@spawned_only
def test_cancelled_shutdown_does_not_wait_for_a_slow_argument(client: MockClient) -> None:
    late = SerializedLate()
    executor = MockExecutor(client=client)
    cancelled: list[bool] = []
    futures = [executor.submit(tasks.same, value) for value in (late, 1, 2)]
    for future in futures:
        future.add_done_callback(lambda done: cancelled.append(done.cancelled()))
    wait_until(late.begun.is_set, "the first is being serialized")
    executor.shutdown(wait=False, cancel_futures=True)
    assert wait(futures, 0).not_done == set()
    assert cancelled == [True] * 3
    late.go_on.set()
    executor._task_submitter.join(120)
    assert executor.task_count_submitted == 0


class HeldClock(Clock):
    """A clock whose sleepers sleep until they are told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = threading.Event()
        self.go_on = threading.Event()

    def sleep(self, _seconds: float) -> None:
        self.sleeps.set()
        assert self.go_on.wait(120)


@spawned_only
def test_cancelled_shutdown_does_not_wait_for_the_throttle(
    client: MockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HeldClock()
    monkeypatch.setattr(sdk_executor, "time", clock)
    executor = MockExecutor(client=client, rate_limit=True, api_burst_limit=2)
    assert [executor.submit(tasks.same, number).result(120) for number in range(2)] == [0, 1]
    throttled = executor.submit(tasks.same, 1)
    wait_until(clock.sleeps.is_set, "the throttle is on")
    queued = executor.submit(tasks.same, 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert throttled.cancelled()
    assert queued.cancelled()
    clock.go_on.set()
    executor._task_submitter.join(120)
    assert executor.task_count_submitted == 2


@spawned_only
def test_specification_counts_as_it_was_at_the_submission(executor: MockExecutor) -> None:
    late = SerializedLate()
    specification = {"priority": 1}
    executor.resource_specification = specification
    first = executor.submit(tasks.same, late)
    second = executor.submit(tasks.same, 1)
    specification["num_nodes"] = 2
    late.go_on.set()
    assert (first.result(120), second.result(120)) == ([], 1)


@spawned_only
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resource_specification", "2 nodes"),
        ("resource_specification", {"nodes": object()}),
        ("user_endpoint_config", ["nodes"]),
        ("user_endpoint_config", {"nodes": object()}),
        ("serializer", "dill"),
    ],
)
def test_attribute_of_a_wrong_type(executor: MockExecutor, name: str, value: Any) -> None:
    before = getattr(executor, name)
    with pytest.raises(TypeError):
        setattr(executor, name, value)
    assert getattr(executor, name) is before
    setattr(executor, name, before)


@spawned_only
def test_batches_are_no_larger_than_asked_for(
    client: MockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    stock = client.batch_run

    def batch_run(endpoint_id: uuid.UUID, batch: Batch) -> dict[str, Any]:
        sizes.append(len(batch))
        return stock(endpoint_id, batch)

    monkeypatch.setattr(client, "batch_run", batch_run)
    late = SerializedLate()
    with MockExecutor(client=client, batch_size=3) as executor:
        futures = [executor.submit(tasks.same, value) for value in [late, *range(10)]]
        late.go_on.set()
        assert [future.result(120) for future in futures[1:]] == list(range(10))
    assert max(sizes) <= 3
    assert sum(sizes) == 11


@spawned_only
def test_future_says_where_its_task_went(executor: MockExecutor) -> None:
    groups = [uuid.uuid4(), uuid.uuid4()]
    futures: list[Any] = []
    for group in [*groups, groups[0]]:
        executor.task_group_id = group
        futures.append(executor.submit(tasks.same, 1))
        assert futures[-1].result(120) == 1
    told = [future._metadata["task_group_uuid"] for future in futures]
    assert told == [*groups, groups[0]]
    assert {future._metadata["endpoint_uuid"] for future in futures} == {executor.endpoint_id}
    watched = [watcher.task_group_id for watcher in executor._mock_client._watchers()]
    assert sorted(watched) == sorted(groups), "one watcher a group"


@spawned_only
def test_reload_leaves_out_what_is_watched_already(
    client: MockClient, gate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MockExecutor(client=client, task_group_id=uuid.uuid4(), batch_size=2) as executor:
        ended = [executor.submit(tasks.same, number) for number in range(5)]
        assert [future.result(120) for future in ended] == list(range(5))
        waiting = executor.submit(tasks.wait_for_file, str(gate))
        wait_until(lambda: bool(executor._open_futures()), "the task has been sent")
        reloaded = {future.task_id: future.result(0) for future in executor.reload_tasks()}
        assert reloaded == {future.task_id: future.result() for future in ended}

        group = uuid.uuid4()
        executor.task_group_id = group
        lone = executor.submit(tasks.wait_for_file, str(gate))
        wait_until(lambda: len(executor._open_futures()) == 2, "the task has been sent")
        assert list(executor.reload_tasks(group)) == []
        assert f"Received no tasks for Task Group ID: {group}" in caplog.text
        gate.touch()
        assert (waiting.result(120), lone.result(120)) == (str(gate), str(gate))


@spawned_only
def test_shutdown_in_a_submission_of_another_thread(client: MockClient) -> None:
    """As when two threads find out at the same time that there is no endpoint id."""
    executor = MockExecutor(client=client)
    executor.register_function(tasks.same)
    executor.endpoint_id = None
    errors: list[type[Exception]] = []
    ready = threading.Barrier(4)

    def submit() -> None:
        ready.wait()
        try:
            executor.submit(tasks.same, 1)
        except (ValueError, RuntimeError) as error:
            errors.append(type(error))

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert ValueError in errors
    assert len(errors) == 4
    executor.shutdown()
