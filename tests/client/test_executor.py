"""WarmExecutor: each future says on every backend how warm its call was; nothing else changes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import history as history_module
import pytest
import tasks
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk import Executor
from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture
from globus_compute_sdk.serialize import (
    ComputeSerializer,
    JSONData,
    PureSourceDill,
    SerializationStrategy,
)
from globus_compute_sdk.serialize.concretes import SELECTABLE_DATA_STRATEGIES

from gc_warm import (
    FunctionBook,
    MockClient,
    MockExecutor,
    StaleModuleError,
    WarmExecutor,
    functions,
)
from gc_warm.client import executor as executor_module
from gc_warm.client.report import Report
from gc_warm.client.warmth import parse_record
from gc_warm.worker import calls, hints, module_versions
from tests.support import MODULES, client_environment, remote_text, wait_until

TABLE = ["history.table"]
FIRST = "first on this worker"
FORMS = ["module:DillCode", "__main__:AllCodeStrategies", "closure:DillCode"]
OTHER_FORMS = ["module:AllCodeStrategies", "__main__:DillCode", "closure:AllCodeStrategies"]


GROUPS = {"engine": (FORMS, OTHER_FORMS), "forked": (FORMS,), "stand-in": (FORMS,)}
"""The forms that are tried with each backend of the marked tests."""


def expected() -> list[list[Any]]:
    """Return the rows of the history: what, state, why, loads, stale modules, has it returned."""
    return [
        ["first", "cold", FIRST, TABLE, [], True],
        ["second", "warm", None, [], [], True],
        ["another key", "cold", "another key", TABLE, [], True],
        ["after its eviction", "cold", "evicted", TABLE, [], True],
        ["a load that fails", "unknown", "failed", [], [], False],
        ["after the failure", "cold", "failed before", TABLE, [], True],
        ["by id", "unknown", "submitted by id", [], [], True],
        ["a worker that dies", "unknown", "lost", [], [], False],
        ["after a restart", "cold", "worker restarted", TABLE, [], True],
        ["again", "warm", None, [], [], True],
        ["another key after it", "cold", "worker restarted", TABLE, [], True],
        ["a key that is new", "cold", "another key", TABLE, [], True],
        ["after an edit", "warm", None, [], ["history"], True],
        ["after a reload", "cold", "module changed", TABLE, [], True],
        ["and again", "warm", None, [], [], True],
        [
            "given up",
            "unknown",
            "used nothing of @warm, ExternalProcess or ExternalServer",
            [],
            [],
            True,
        ],
        ["after it was given up", "cold", "discarded", TABLE, [], True],
        ["spoiled", "warm", None, [], [], True],
        ["after it was spoiled", "cold", "not valid any more", TABLE, [], True],
        ["sent in another way", "warm", None, [], [], True],
    ]


def histories_of(backend: str, forms: list[str], folder: Path) -> dict[str, list[list[Any]]]:
    script = str(Path(__file__).with_name("history_client.py"))
    command = [sys.executable, script, backend, str(folder), *forms]
    run = subprocess.run(
        command, env=client_environment(), stdout=subprocess.PIPE, check=True, timeout=600
    )
    said: dict[str, list[list[Any]]] = json.loads(run.stdout)
    return said


@pytest.fixture(scope="module")
def histories(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, list[str]], dict[str, list[list[Any]]]]:
    """A function that returns by form, for a backend, what came of the group that a form is in."""

    @functools.cache
    def run(backend: str, forms: tuple[str, ...]) -> dict[str, list[list[Any]]]:
        return histories_of(backend, [*forms], tmp_path_factory.mktemp("histories"))

    return lambda backend, forms: run(backend, tuple(forms))


@pytest.mark.parametrize(
    ("backend", "forms", "form"),
    [
        *(pytest.param("spawned", FORMS, form, id=f"spawned-{form}") for form in FORMS),
        *(
            pytest.param(backend, forms, form, id=f"{backend}-{form}", marks=pytest.mark.engine)
            for backend, groups in GROUPS.items()
            for forms in groups
            for form in forms
        ),
    ],
)
def test_every_row_of_a_history(
    histories: Callable[[str, list[str]], dict[str, list[list[Any]]]],
    backend: str,
    forms: list[str],
    form: str,
) -> None:
    *rows, report = histories(backend, forms)[form]
    assert rows == expected()
    assert report[1:4] == [6, 10, 5], "warm, cold, unknown: that of the reload, too"
    assert report[4]["cold: worker restarted"] == 2
    assert report[5] == {"history": 1}


@pytest.fixture(scope="module")
def client() -> Iterator[MockClient]:
    with MockClient(workers=2, pythonpath=[MODULES]) as client:
        client.runner()  # started here, and so ended here
        yield client


@pytest.fixture
def executor(client: MockClient) -> Iterator[WarmExecutor]:
    with WarmExecutor(MockExecutor(client=client, task_group_id=uuid.uuid4())) as executor:
        yield executor


def test_the_record_of_a_call(executor: WarmExecutor) -> None:
    future = executor.submit(functions.cluster_energy, None, 1e-5)
    future.result(120)
    warmth = future.warmth
    (load,) = warmth.loads
    assert (warmth.state, warmth.why) == ("cold", FIRST)
    assert load.name == "gc_warm.warmables.potential.table"
    assert warmth.worker is not None
    assert warmth.worker.rank in (0, 1)
    assert warmth.worker.count == 2
    assert warmth.seconds is not None
    assert 0 < load.seconds == warmth.load_seconds <= warmth.seconds
    assert future.task_id is not None


def test_record_says_what_a_load_grew_by(executor: WarmExecutor) -> None:
    future = executor.submit(history_module.block, 100_000_000)
    assert future.result(120) == 100_000_000
    (load,) = future.warmth.loads
    assert 90_000_000 < load.grown < 200_000_000


def test_record_of_an_earlier_version_is_read() -> None:
    with calls.Recording() as recording:
        history_module.points((1, 2))
    record = recording.record()
    (load,) = record["loads"]
    del load["grown"], load["tag"]

    (read,) = parse_record(record).loads
    assert (read.key, read.grown, read.tag) == ("((1, 2),)", 0, "")
    history_module.points.clear()


@pytest.mark.parametrize("why", [FIRST, "another key", "evicted"])
def test_restart_is_told_of_loads_without_a_history(why: str) -> None:
    with calls.Recording() as recording:
        history_module.points((3, 4))
    record = recording.record()
    record["loads"][0]["why"] = why

    died = {("history.points", "((3, 4),)")}
    (load,) = parse_record(record, died).loads
    assert load.why == ("evicted" if why == "evicted" else "worker restarted")
    (load,) = parse_record(record, {("history.points", "((5,),)")}).loads
    assert load.why == why
    history_module.points.clear()


def test_what_keeps_no_state_is_not_called_warm(executor: WarmExecutor) -> None:
    futures = [executor.submit(functions.count) for _ in range(3)]
    concurrent.futures.wait(futures)
    assert {str(future.warmth) for future in futures} == {
        "unknown (used nothing of @warm, ExternalProcess or ExternalServer)"
    }


def test_a_program_is_cold_when_it_starts_and_warm_when_it_answers() -> None:
    with WarmExecutor(MockExecutor(workers=1)) as executor:
        futures = [executor.submit(functions.cluster_dynamics) for _ in range(3)]
        concurrent.futures.wait(futures)
        assert [future.warmth.state for future in futures] == ["cold", "warm", "warm"]


def test_attributes_are_those_of_the_executor_inside(client: MockClient) -> None:
    inner = MockExecutor(client=client)
    with WarmExecutor(inner) as executor:
        executor.batch_size = 7
        executor.user_endpoint_config = None
        assert inner.batch_size == executor.batch_size == 7
        assert executor.workers == inner.workers
        assert executor.endpoint_id == inner.endpoint_id
        with pytest.raises(AttributeError, match="no_such_thing"):
            executor.no_such_thing  # type: ignore[attr-defined] # noqa: B018
        with pytest.raises(NotImplementedError):
            executor.map(len, [[]])


def test_an_attribute_of_a_subclass_is_its_own(client: MockClient) -> None:
    class Retrying(WarmExecutor):
        def __init__(self, executor: Executor) -> None:
            self._retries = 3
            super().__init__(executor)

    inner = MockExecutor(client=client)
    executor = Retrying(inner)
    with executor:
        assert executor._retries == 3
        assert not hasattr(inner, "_retries")


def test_a_function_of_a_book_keeps_its_id(client: MockClient, tmp_path: Path) -> None:
    book = FunctionBook.register(tmp_path / "functions.yaml", client, [functions.count])
    with WarmExecutor(MockExecutor(client=client)) as executor:
        book.prime(executor)
        future = executor.submit(functions.count)
        assert future.result(120) >= 1
        assert str(future.warmth) == "unknown (submitted by id)"


def test_results_and_arguments_in_json(client: MockClient) -> None:
    plain = MockExecutor(client=client, result_serializers=[JSONData()])
    plain.serializer = ComputeSerializer(strategy_data=JSONData())
    try:
        with WarmExecutor(plain) as executor:
            argument = {"a": (1, 2), "b": None}
            future = executor.submit(tasks.same, argument)
            assert future.result(120) == {"a": [1, 2], "b": None}
            assert plain.submit(tasks.same, argument).result(120) == future.result()
            assert future.warmth.worker is not None
    finally:
        client.fx_serializer = ComputeSerializer()


def test_errors_are_those_of_the_executor_inside(executor: WarmExecutor) -> None:
    assert "ZeroDivisionError: float division by zero" in remote_text(
        executor.submit(tasks.invert, 0.0)
    )
    with pytest.raises(TypeError, match="unhashable"):
        executor.submit([])  # type: ignore[arg-type]


def test_a_future_that_was_cancelled_before_it_was_sent(client: MockClient) -> None:
    inner = MockExecutor(client=client)
    with WarmExecutor(inner) as executor:
        executor.submit(functions.count).result(120)
        with inner._mock_client._request_lock:  # nothing leaves as long as this is held
            sent = executor.submit(functions.count)
            held = executor.submit(functions.count)
            cancelled = held.cancel()
        assert cancelled == held.cancelled()
        sent.result(120)
        concurrent.futures.wait([held], 60)
        assert held.done()
        assert cancelled == (str(held.warmth) == "unknown (cancelled)")


def test_handler_of_a_signal_may_submit(
    client: MockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its thread registers a function, which takes longest."""
    stock = client.register_source_code
    with WarmExecutor(MockExecutor(client=client)) as executor:
        futures: list[Any] = []

        def interrupted(*args: Any) -> str:
            monkeypatch.setattr(client, "register_source_code", stock)
            futures.append(executor.submit(len, "ab"))
            return str(stock(*args))

        monkeypatch.setattr(client, "register_source_code", interrupted)
        futures.append(executor.submit(tasks.same, 3))
        assert [future.result(120) for future in futures] == [2, 3]


def test_callback_of_a_cancelled_future_may_shut_down() -> None:
    sent = ComputeFuture()
    inner: Any = SimpleNamespace(
        submit_to_registered_function=lambda *_: sent, shutdown=lambda **_: None
    )
    executor = WarmExecutor(inner)
    future = executor.submit_to_registered_function("id")
    future.add_done_callback(lambda _: executor.shutdown())
    assert future.cancel(), "it does not wait for itself"
    assert future.cancelled()


def test_workers_without_gc_warm_run_the_function_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "gc_warm").mkdir()
    (tmp_path / "gc_warm" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named gc_warm', name='gc_warm')"
    )
    with WarmExecutor(MockExecutor(workers=1, pythonpath=[tmp_path])) as executor:
        future = executor.submit(len, "four")
        assert future.result(120) == 4
        assert str(future.warmth) == "unknown (came without a record)"
        with pytest.raises(Exception, match="No module named gc_warm"):
            executor.warm_up(len, "four", workers=1)


def test_changed_module_is_stale_also_where_the_client_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the form that the documentation recommends: the function's body imports the module."""
    module = tmp_path / "only_there.py"
    module.write_text("from gc_warm import warm\n@warm\ndef state(): return [1]\n")

    def use() -> int:
        import importlib

        return int(importlib.import_module("only_there").state()[0])

    serializer = ComputeSerializer(strategy_code=PureSourceDill())
    inner = MockExecutor(workers=1, pythonpath=[tmp_path], serializer=serializer)
    with WarmExecutor(inner) as executor:
        assert executor.submit(use).result(120) == 1
        module.write_text(module.read_text().replace("1", "2"))
        futures = [executor.submit(use) for _ in range(3)]
        assert [future.result(120) for future in futures] == [1] * 3
        reached = executor.warm_up(use, workers=1)
    assert {future.warmth.stale for future in futures} == {("only_there",)}
    assert "only_there" in str(reached)
    assert caplog.text.count("holds another version of only_there than there is now") == 1


def test_methods_that_are_sent_by_name_have_a_module_that_can_be_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "methods.py"
    module.write_text(
        "class Model:\n"
        "    @staticmethod\n"
        "    def use(): return 1\n"
        "    def predict(self): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("methods").Model
    with WarmExecutor(MockExecutor(workers=1, pythonpath=[tmp_path])) as executor:
        assert executor.submit(model.use).result(120) == 1
        module.write_text(module.read_text() + "\n")
        futures = [executor.submit(function) for function in (model.use, model().predict)]
        assert [future.result(120) for future in futures] == [1, 1]
        assert [future.warmth.stale for future in futures] == [("methods",)] * 2


def test_a_record_that_cannot_be_read_costs_no_result(
    executor: WarmExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(tasks.same, {"gc_warm_record": 1, "result": 2})
    assert future.result(120) == {"gc_warm_record": 1, "result": 2}
    function = executor.client.register_function(tasks.same)
    odd = {"gc_warm_record": {"worker": {"rank": None}, "loads": [], "modules": 7}, "result": 3}
    by_id = executor.submit_to_registered_function(function, (odd,))
    assert by_id.result(120) == odd, "submitted by id: as it is"

    executor.executor.submit_to_registered_function(function, (odd,)).result(120)
    reloaded = [future for future in executor.reload_tasks() if future.result(120) == 3]
    assert {str(future.warmth) for future in reloaded} == {
        "unknown (came with a record that cannot be read)"
    }
    assert "a record cannot be read" in caplog.text


@pytest.mark.parametrize("name", ["class", "<lambda>", "two words"])
def test_a_function_may_have_any_name(
    executor: WarmExecutor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.same, "__name__", name)
    assert executor.submit(tasks.same, 1).result(120) == 1


def test_keys_whose_texts_are_cut_are_told_apart(executor: WarmExecutor) -> None:
    def use(last: int) -> int:
        from history import points

        return len(points((1, 2, 3, 4, 5, 6, 7, 8, 9, last)))

    executor.serializer = ComputeSerializer(strategy_code=PureSourceDill())
    futures = [executor.submit(use, number) for number in range(10, 16)]
    concurrent.futures.wait(futures)
    executor.serializer = ComputeSerializer()

    first = f"cold ({FIRST})"
    assert {str(future.warmth) for future in futures} - {first} == {"cold (another key)"}
    assert len({load.key for future in futures for load in future.warmth.loads}) == 1
    tags = {(future.warmth.worker, future.warmth.loads[0].tag) for future in futures}
    assert len(tags) == len(futures)


def test_stale_error_ends_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "edited.py"
    module.write_text("def use():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    use = importlib.import_module("edited").use
    with WarmExecutor(MockExecutor(workers=1, pythonpath=[tmp_path]), stale="error") as executor:
        assert executor.submit(use).result(120) == 1
        module.write_text(module.read_text().replace("1", "2"))
        with pytest.raises(
            StaleModuleError, match=r"another version of edited .*restart the endpoint"
        ):
            executor.submit(use).result(120)
        with pytest.raises(StaleModuleError, match="another version of edited"):
            executor.warm_up(use, workers=1)
    with pytest.raises(ValueError, match="neither"):
        WarmExecutor(executor.executor, stale="ignore")  # type: ignore[arg-type]


def test_records_are_in_the_file_when_the_executor_has_ended(
    client: MockClient, tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    for _ in range(2):
        with WarmExecutor(MockExecutor(client=client), records=file) as executor:
            for _ in range(3):
                executor.submit(functions.cluster_energy)
        report = executor.report()
        assert report.calls == 3
    both = Report.read(file)
    assert both.calls == 6
    assert both.records[3:] == report.records


@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_full_place_costs_records_and_no_results(
    is_pipe: bool, client: MockClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a disk, or in a pipe that nobody reads."""
    place = Path("/dev/full")
    if is_pipe:
        place = tmp_path / "pipe"
        os.mkfifo(place)
        pipe = os.open(place, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(4096))

    with WarmExecutor(MockExecutor(client=client), records=place) as executor:
        assert [executor.submit(len, "ab").result(120) for _ in range(2)] == [2, 2]
    if is_pipe:
        os.close(pipe)
    assert caplog.text.count(f"no more records are written to {place}") == 1


def test_many_threads_submit_at_the_same_time(executor: WarmExecutor) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: executor.submit(len, "x" * n).result(120), range(40)))
    assert results == list(range(40))
    assert executor.report().calls == 40


def test_shutdown_waits_for_what_hangs_on_a_future(client: MockClient) -> None:
    seen = threading.Event()
    executor = WarmExecutor(MockExecutor(client=client))
    executor.submit(len, "ab").add_done_callback(lambda _: seen.set())
    executor.shutdown()
    assert seen.is_set()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(len, "ab")


def test_tasks_of_an_earlier_executor_have_their_records(client: MockClient) -> None:
    with WarmExecutor(MockExecutor(client=client, task_group_id=uuid.uuid4())) as executor:
        executor.submit(functions.cluster_energy).result(120)
        group = executor.task_group_id
        (future,) = executor.reload_tasks()
        assert abs(future.result(120) + 44.3268) < 1e-3
        assert future.warmth.worker is not None
        assert executor.task_group_id == group
        assert executor.report().calls == 1, "it is the same call"


def test_importing_gc_warm_on_a_worker_brings_nothing_of_the_client() -> None:
    code = (
        "import sys, gc_warm.worker.calls\n"
        "client = ('globus', 'rich', 'gc_warm.client')\n"
        "print([name for name in sys.modules if name.startswith(client)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, stdout=subprocess.PIPE, check=True
    )
    assert run.stdout == b"[]\n"


# of the SDK's submitter
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_task_that_cannot_be_sent_ends_its_executor_and_nobody_waits_for_it(
    client: MockClient,
) -> None:
    """Around the SDK's own executor, which leaves the future of such a task to itself."""
    group = Executor._default_task_group_id
    with WarmExecutor(Executor(client.endpoint_id, client, task_group_id=uuid.uuid4())) as executor:
        future = executor.submit(tasks.same, (_ for _ in ()))
        wait_until(lambda: executor.executor._stopped, "it has ended itself")
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.warm_up(len, "", workers=1)
    assert not future.done()
    Executor._default_task_group_id = group


# of the SDK's submitter
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_warm_up_tells_that_its_executor_has_ended(client: MockClient) -> None:
    group = Executor._default_task_group_id
    executor = WarmExecutor(Executor(client.endpoint_id, client, task_group_id=uuid.uuid4()))
    with pytest.raises(RuntimeError, match="the executor has ended"):
        executor.warm_up(len, (_ for _ in ()), workers=1)
    executor.shutdown()
    Executor._default_task_group_id = group


NESTED = """\
from gc_warm import warm
@warm
def state(): return [1]
def fresh():
    @warm
    def own(): return [1]
    return own()
"""
DECORATED = """\
from gc_warm import warm
from helper import logged
@warm
@logged
def state(): return [1]
fresh = state
"""


def test_versions_of_modules_that_are_decorated_nested_or_of_a_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is stale before it is edited, and all of them are afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "helper.py").write_text(
        "import functools\ndef logged(f):\n    return functools.wraps(f)(lambda *args: f(*args))\n"
    )
    names = {"nested_state": NESTED, "decorated_state": DECORATED, "outer.inner.deep_state": NESTED}
    files = [tmp_path / (name.replace(".", "/") + ".py") for name in names]
    for file, text in zip(files, names.values(), strict=True):
        file.write_text(text)

    def use(name: str, what: str) -> int:
        import importlib

        return int(getattr(importlib.import_module(name), what)()[0])

    serializer = ComputeSerializer(strategy_code=PureSourceDill())
    inner = MockExecutor(workers=1, pythonpath=[tmp_path], serializer=serializer)
    with WarmExecutor(inner) as executor:
        for name, file in zip(names, files, strict=True):
            said = []
            for what in ("state", "fresh", "state"):
                future = executor.submit(use, name, what)
                future.result(120)
                said.append(future.warmth.stale)
            assert said == [(), (), ()], name
            file.write_text(file.read_text() + "\n")
            for what in ("fresh", "state"):
                future = executor.submit(use, name, what)
                future.result(120)
            assert future.warmth.stale == (name,)


def test_a_file_that_was_copied_with_its_times_is_not_taken_for_older_than_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``rsync -t``, ``cp -p`` and ``tar`` do: the file imported may have been another one."""
    module = tmp_path / "replaced.py"
    module.write_text("")
    os.utime(module, (1e9, 1e9))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("replaced")
    module_versions.note_imported("replaced", now=False)
    assert module_versions.noted("replaced") is None


def test_a_load_that_fails_is_not_passed_over(executor: WarmExecutor, tmp_path: Path) -> None:
    def use(flag: str) -> str:
        from history import table

        try:
            return str(table("never", flag)[0])
        except RuntimeError:
            return "another way"

    (tmp_path / "flag").touch()
    executor.serializer = ComputeSerializer(strategy_code=PureSourceDill())
    future = executor.submit(use, str(tmp_path / "flag"))
    assert future.result(120) == "another way"
    assert str(future.warmth) == "unknown (a load failed)"
    executor.serializer = ComputeSerializer()


def test_a_file_of_records_that_cannot_be_opened_leaves_no_executor(client: MockClient) -> None:
    inner = MockExecutor(client=client)
    with pytest.raises(FileNotFoundError):
        WarmExecutor(inner, records="/no/such/folder/records.jsonl")
    with pytest.raises(RuntimeError, match="shutdown"):
        inner.submit(len, "ab")


def test_a_line_that_another_client_has_not_completed_is_ended_first(
    client: MockClient, tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"function": "le')
    with WarmExecutor(MockExecutor(client=client), records=file) as executor:
        executor.submit(len, "ab").result(120)
    assert Report.read(file).calls == 1


def test_a_restart_is_known_also_where_a_warm_up_had_loaded() -> None:
    with WarmExecutor(MockExecutor(workers=1, pythonpath=[MODULES])) as executor:
        executor.warm_up(history_module.use, "a", "/no/such/flag", workers=1)
        executor.workers[0].kill()
        executor.warm_up(len, "", workers=1)
        future = executor.submit(history_module.use, "a", "/no/such/flag")
        future.result(120)
        assert str(future.warmth) == "cold (worker restarted)"


def test_a_view_with_a_hint_is_the_executor_and_functions_see_no_hint(client: MockClient) -> None:
    base = WarmExecutor(MockExecutor(client=client))
    near = base.near("model-a")
    assert near.submit(functions.count).result() >= 1
    assert near.submit(functions.count).warmth.worker == base.submit(functions.count).warmth.worker
    base.stale_of_mine = "set"  # type: ignore[attr-defined]
    assert near.stale_of_mine == "set"  # type: ignore[attr-defined]
    assert near.near("b").report().calls == base.report().calls

    function_id = near.register_function(tasks.same)
    assert near.submit_to_registered_function(function_id, (7,)).result() == 7
    assert near.submit(tasks.same, 8).result() == 8
    with pytest.raises(TypeError, match=r"near\(3\): a hint is text"):
        base.near(3)  # type: ignore[arg-type]
    near.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        base.submit(functions.count)


@pytest.mark.parametrize("strategy", SELECTABLE_DATA_STRATEGIES)
def test_a_hint_is_in_the_payload_and_not_in_the_arguments(
    strategy: type[SerializationStrategy],
) -> None:
    serializer = ComputeSerializer(strategy_data=strategy)
    executor_module._teach_hints(serializer)
    arguments = executor_module._Hinted((1, "two", [3]))
    arguments.hint = hints.fingerprint("model-a")

    packed = serializer.pack_buffers(
        [serializer.serialize(each) for each in (functions.count, arguments, {"four": 4})]
    )
    _, given, named = ComputeSerializer().unpack_and_deserialize(packed)
    assert list(given) == [1, "two", [3]] == list(pickle.loads(pickle.dumps(arguments)))
    assert named == {"four": 4}
    task = messagepack.pack(Task(task_id=uuid.uuid4(), task_buffer=packed))
    assert hints.read(task) == arguments.hint
    assert hints.read(serializer.serialize((1, "two")).encode()) is None
