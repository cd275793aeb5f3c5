"""Through a WarmExecutor every result arrives as it is, and every future ends, with its record."""

from __future__ import annotations

import json
import stat
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import cached
import history
import odd_results
import pytest
import tasks
from globus_compute_sdk import Executor
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.serialize import ComputeSerializer, DillCode, JSONData, PureSourceDill

from gc_warm import BookError, FunctionBook, MockClient, MockExecutor, WarmExecutor
from gc_warm.client.registry import Step
from gc_warm.client.report import Report
from gc_warm.client.warmth import Call, Load, Warmth, parse_record
from gc_warm.worker import calls, ledger
from gc_warm.worker.calls import VERSION, Recording
from tests.support import MODULES, wait_until
from tests.testing.backends import engine_config

LINE = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {})"'
NOWHERE = "/no/such/flag"
FIRST = "cold (lru_cache computed: cached.table)"


@pytest.fixture(scope="module")
def client() -> Iterator[MockClient]:
    with MockClient(workers=1, pythonpath=[MODULES]) as client:
        client.runner()  # started here, and so ended here
        yield client


@pytest.fixture
def executor(client: MockClient) -> Iterator[WarmExecutor]:
    with WarmExecutor(MockExecutor(client=client)) as executor:
        yield executor


@pytest.mark.parametrize("kind", odd_results.MAKE)
def test_a_result_that_is_not_asked_anything(executor: WarmExecutor, kind: str) -> None:
    future = executor.submit(odd_results.make, kind)
    plain = executor.executor.submit(odd_results.make, kind)
    assert type(future.result(120)) is type(plain.result(120))
    assert future.warmth.worker is not None, "it has a record"
    assert future.done()


def test_a_function_that_comes_back_can_be_called(executor: WarmExecutor) -> None:
    assert executor.submit(odd_results.make, "lambda").result(120)(2) == 3
    assert executor.submit(odd_results.make, "lazy function").result(120)() == 1


@pytest.mark.parametrize("strategies", [[DillCode()], [JSONData(), DillCode()]])
def test_functions_by_a_strategy_for_code(client: MockClient, strategies: list[Any]) -> None:
    given = iter(strategies)  # the SDK takes any iterable, and looks at it once
    with WarmExecutor(MockExecutor(client=client, result_serializers=given)) as executor:
        future = executor.submit(odd_results.make, "lambda")
        assert future.result(120)(2) == 3
    has_record = future.warmth.worker is not None
    assert has_record == (len(strategies) == 2), "a record travels as data"


def test_what_cannot_be_kept_costs_no_result(
    client: MockClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WarmExecutor(MockExecutor(client=client)) as executor:
        monkeypatch.setattr(executor, "_keep", None)
        assert executor.submit(tasks.same, 1).result(120) == 1
    assert "a call could not be recorded" in caplog.text


def test_it_is_an_executor_without_threads(client: MockClient) -> None:
    with MockExecutor(client=client) as inner:
        before = threading.active_count()
        executor = WarmExecutor(inner)
        assert isinstance(executor, Executor)
        assert threading.active_count() == before
        assert id(executor) not in sdk_executor._REGISTERED_EXECUTORS

        names = [name for name in vars(Executor) if not name.startswith("__")]
        own = [name for name in names if "Forwarded" not in repr(vars(WarmExecutor)[name])]
        assert sorted(own) == [
            "map",
            "reload_tasks",
            "shutdown",
            "submit",
            "submit_to_registered_function",
        ]
        bound: Any = executor._get_result_watcher
        assert bound.__self__ is inner


def test_thirty_two_threads_register_once(client: MockClient) -> None:
    with WarmExecutor(MockExecutor(client=client)) as executor:
        before = len(client.service._functions)
        start = threading.Barrier(32)

        def submit(number: int) -> int:
            start.wait(120)
            return int(executor.submit(tasks.same, number).result(120))

        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(submit, range(32))) == list(range(32))
        assert len(client.service._functions) == before + 1


def test_endpoint_that_allows_some_functions(client: MockClient, tmp_path: Path) -> None:
    def make_runner(*_: Any) -> Any:
        return client.runner()

    book = FunctionBook.register(tmp_path / "book.yaml", client, [tasks.same], recorded=True)
    strict = client.service.add_endpoint(
        make_runner, registration={"endpoint_name": "strict", "allowed_functions": [book["same"]]}
    )
    with WarmExecutor(MockExecutor(strict, client)) as executor:
        refused = executor.submit(tasks.same, 1)
        text = str(refused.exception(120))
        assert "FUNCTION_NOT_PERMITTED" in text
        assert text.count("gc-warm register --recorded") == 1

    with WarmExecutor(MockExecutor(strict, client)) as executor:
        book.prime(executor)
        book.prime(executor)
        future = executor.submit(tasks.same, 1)
        assert future.result(120) == 1
        assert future.warmth.worker is not None


def test_book_of_recorded_functions(client: MockClient, tmp_path: Path) -> None:
    path = tmp_path / "book.yaml"
    plain = FunctionBook.register(path, client, [tasks.same])
    assert "recorded" not in path.read_text()

    steps: list[Step] = []
    book = FunctionBook.register(path, client, [tasks.same], recorded=True, report=steps.append)
    assert [step.why for step in steps] == ["to be recorded"]
    assert book["same"] != plain["same"]
    with MockExecutor(client=client) as executor:
        with pytest.raises(BookError, match="prime a WarmExecutor"):
            book.prime(executor)
        recorded = WarmExecutor(executor)
        recorded.submit(tasks.same, 1).result(120)
        with pytest.raises(BookError, match="has registered it itself"):
            book.prime(recorded)

    again = FunctionBook.register(path, client, [tasks.same], report=steps.append)
    assert steps[1].why == "no longer to be recorded"
    assert again["same"] not in (plain["same"], book["same"])


def test_warm_ups_are_in_the_records(client: MockClient, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with WarmExecutor(MockExecutor(client=client), records=file) as executor:
        executor.warm_up(tasks.invert, 0.0, workers=1)
        executor.warm_up(history.use, "warm-up", NOWHERE, workers=1)
        executor.submit(history.use, "warm-up", NOWHERE).result(120)

    failed, warm_up, call = Report.read(file).records
    assert (failed.function, str(failed.warmth)) == ("invert (warm-up)", "unknown (failed)")
    assert (warm_up.function, warm_up.warmth.state) == ("use (warm-up)", "cold")
    assert [load.name for load in warm_up.warmth.loads] == ["history.table"]
    assert warm_up.task_id != call.task_id
    assert (call.function, call.warmth.state) == ("use", "warm")


@pytest.mark.parametrize("record_keys", [True, False])
def test_records_are_private(client: MockClient, tmp_path: Path, record_keys: bool) -> None:
    file = tmp_path / "records.jsonl"
    secret = f"a secret {record_keys}" * 100
    inner = MockExecutor(client=client)
    with WarmExecutor(inner, records=file, record_keys=record_keys) as executor:
        executor.submit(history.use, secret, NOWHERE).result(120)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (call,) = Report.read(file).records
    (load,) = call.warmth.loads
    assert ("secret" in file.read_text(), bool(load.key)) == (record_keys, record_keys)
    assert len(load.key) < 160


@pytest.mark.parametrize("keys", [True, False])
def test_arguments_of_programs_are_keys(keys: bool) -> None:
    load = Load("my_program --token secret", "['my_program', '--token', 'secret']", 1.0, 2.0, FIRST)
    call = Call("use", None, 0.0, 1.0, Warmth("cold", loads=(load,)))
    (plain,) = call.plain(keys=keys)["warmth"]["loads"]
    assert plain["name"] == (load.name if keys else "my_program")
    assert ("secret" in plain["key"]) == keys


def test_version_of_a_record_comes_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Recording() as recording:
        pass
    record = recording.record()
    assert parse_record(record).state == "unknown"
    with pytest.raises(ValueError, match=r"version 99 of records"):
        parse_record({**record, "version": 99})

    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"version": VERSION + 1, "anything": []}) + "\n")
    with pytest.raises(ValueError, match="all are of another version"):
        Report.read(file)

    warmth = {"state": "warm", "uses": 1}
    call = {"function": "f", "task_id": None, "submitted": 0, "ended": 1, "warmth": warmth}
    with file.open("a") as lines:
        lines.write(json.dumps(call) + "\n")
    assert Report.read(file).warm == 1, "one of the first version, which had no number"
    assert "1 lines are of another version" in caplog.text


def test_call_of_another_version_says_so(client: MockClient) -> None:
    sent = {"gc_warm_record": json.dumps({"version": 99}), "result": 5}
    function = client.register_function(tasks.same)
    inner = MockExecutor(client=client, task_group_id=uuid.uuid4())
    with WarmExecutor(inner) as executor:
        inner.submit_to_registered_function(function, (sent,)).result(120)
        (future,) = executor.reload_tasks()
        assert future.result(120) == 5
    assert str(future.warmth) == "unknown (came with a record of version 99)"


def test_lru_cache_counts(executor: WarmExecutor) -> None:
    """In a module that the function comes from, and in one that its body imports."""

    def in_body(name: str) -> str:
        from cached import table

        return table(name)[0]

    in_source = ComputeSerializer(strategy_code=PureSourceDill())
    for function, serializer in ((cached.use, ComputeSerializer()), (in_body, in_source)):
        executor.serializer = serializer
        futures = [executor.submit(function, name) for name in ("a", "a", "b", "a", "a")]
        assert [future.result(120) for future in futures] == ["a", "a", "b", "a", "a"]
        states = [str(future.warmth) for future in futures]
        assert states[1:] == ["warm", FIRST, FIRST, "warm"]
    executor.serializer = ComputeSerializer()
    assert states[0] == "warm", "the second function finds what the first has left"


def test_lru_cache_by_any_name() -> None:
    """One without a name, two of the same name, and one with a second name in the module."""

    def changes(call: Callable[[], object]) -> Any:
        with Recording().of(cached.use) as recording:
            call()
        return recording.record()["cached"]

    cached.longer_table.cache_clear()
    cached.table.cache_clear()
    assert changes(lambda: cached.doubled(3)) == {"cached.doubled": (0, 1)}
    assert changes(lambda: [cached.longer_table("a") for _ in range(3)]) == {
        "cached.longer_table": (2, 1)
    }

    def clear() -> None:
        cached.longer_table.cache_clear()
        cached.use("a")
        cached.longer_table("b")

    assert changes(clear) == {"cached.table": (0, 1), "cached.longer_table": (0, 1)}


def test_what_cannot_be_recorded_costs_no_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a function from a module that raises when it is asked for anything, say."""

    def is_asked(name: str) -> NoReturn:
        raise LookupError(name)

    module: Any = types.ModuleType("lazy_module")
    module.__getattr__ = is_asked
    monkeypatch.setitem(sys.modules, "lazy_module", module)

    function: Any = types.FunctionType(tasks.same.__code__, {})
    function.__module__ = "lazy_module"
    serializer: Any = types.SimpleNamespace(deserialize=lambda _: function)
    assert calls.recorded(serializer, "", (5,), {})[calls.RESULT] == 5
    assert "LookupError: same" in caplog.text

    monkeypatch.setattr(Recording, "record", None)
    assert calls.recorded(serializer, "", (5,), {}) == 5
    assert "a call could not be recorded in full" in caplog.text


def test_lru_cache_in_two_threads_is_unknown(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    gate = tmp_path / "gate"

    def load(name: str) -> dict[str, Any]:
        with Recording().of(cached.use) as recording:
            cached.slow_table(name, str(begun), str(gate))
        return recording.record()

    cached.slow_table.cache_clear()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(load, "a")
        wait_until(begun.exists, "the other call has begun")
        with Recording().of(cached.use) as recording:
            gate.touch()
            record = other.result(120)
    why = "lru_cache was used by several calls at the same time"
    assert parse_record(record).why == why
    assert parse_record(recording.record()).why in (
        why,
        "used nothing of @warm, ExternalProcess or ExternalServer",
    )


def test_failed_preload_is_in_the_first_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_preload_is_told", False)
    monkeypatch.setattr(ledger, "_failed_preloads", [])
    ledger.note_preload_failure("tables:load", LookupError("nothing there"))
    ledger.note_preload_failure("history:all", LookupError("no such\nthing"))

    whys = []
    for number in (5, 6):
        with Recording() as recording:
            history.points((number,))
        (load,) = recording.record()["loads"]
        whys.append(load["why"])
    history.points.clear()
    assert whys == ["preload failed: history:all: LookupError: no such thing", "another key"]


@pytest.mark.engine
def test_broken_preload_on_the_engine() -> None:
    config = engine_config(1, LINE.format("history:no_such_thing"))
    with WarmExecutor(MockExecutor(config=config)) as executor:
        future = executor.submit(history.use, "a", NOWHERE)
        assert future.result(120) == "a"
        why = "preload failed: history:no_such_thing: AttributeError: module 'history' has no attr"
        assert str(future.warmth.why).startswith(why)
