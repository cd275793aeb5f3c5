"""How a warm function looks to others: asyncio, doctest, pytest, inspect, pickle."""

from __future__ import annotations

import asyncio
import copy
import doctest
import inspect
import pickle
import pydoc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dill
import pytest

from gc_warm import warm

ROOT = Path(__file__).parents[2]

# async


async def coroutine(address: str) -> str:
    return address


async def async_generator(address: str) -> Any:
    yield address


@pytest.mark.parametrize("loader", [coroutine, async_generator])
@pytest.mark.parametrize("options", [{}, {"maxsize": 1}, {"valid": lambda state, address: True}])
def test_async_loaders_are_told_to_keep_their_loop(loader: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"is async.*keep the event loop in the state.*loop.close"):
        warm(**options)(loader)
    with pytest.raises(TypeError) as caught:
        warm(loader)
    assert "asyncio.run(" not in str(caught.value), "its loop would be closed"
    assert f"{__name__}.{loader.__name__}" in str(caught.value)


async def numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("make", [lambda: coroutine("a"), numbers], ids=["coroutine", "generator"])
@pytest.mark.parametrize("yields", [False, True])
def test_what_can_be_awaited_once_is_no_state(make: Callable[[], object], yields: bool) -> None:
    closed: list[None] = []

    @warm
    def returning() -> object:
        return make()

    @warm
    def yielding() -> Generator[object, None, None]:
        yield make()
        closed.append(None)

    state: Any = yielding if yields else returning
    with pytest.raises(TypeError, match=r"which serves one task only: keep the event loop"):
        state()
    assert (state.info().size, state.info().failures) == (0, 1)
    assert len(closed) == yields


class Echo:
    """A server that answers lines with themselves, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.connections = 0
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._answer, "127.0.0.1", 0)
        )
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
        self.connections -= 1

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(120)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(120)
        self._loop.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


def test_an_async_client_works_in_every_task_with_its_loop(echo: Echo) -> None:
    @warm
    def client(address: tuple[str, int]) -> Generator[Any, None, None]:
        loop = asyncio.new_event_loop()
        try:
            reader, writer = loop.run_until_complete(asyncio.open_connection(*address))
            yield loop, reader, writer
            writer.close()
            loop.run_until_complete(writer.wait_closed())
        finally:
            loop.close()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"ping\n")
        await writer.drain()
        return await asyncio.wait_for(reader.readline(), 120)

    def task() -> bytes:
        loop, reader, writer = client(echo.address)
        answer: bytes = loop.run_until_complete(ask(reader, writer))
        return answer

    assert [task(), task(), task()] == [b"ping\n"] * 3
    loop, *_ = client(echo.address)
    client.clear()
    assert loop.is_closed()
    assert task() == b"ping\n"
    client.clear()


def test_the_recipe_of_help_works_on_every_python() -> None:
    """The file that has it is run by the Pythons that there are, with nothing installed."""
    program = "import doctest, gc_warm.worker.state as s; print(doctest.testmod(s))"
    ended = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.startswith("TestResults(failed=0, attempted="), ended.stdout + ended.stderr
    assert "asyncio.new_event_loop" in (warm.__doc__ or "")


# doctest

EXAMPLES = '''\
"""A module with examples.

>>> 1 + 1
2
"""
from gc_warm import warm

@warm
def plain(n):
    """
    >>> plain(2)
    [0, 1]
    >>> plain(2)
    'wrong on purpose'
    """
    return list(range(n))

@warm(maxsize=1)
def yielding(n: int = 3):
    """Count.

    >>> yielding() is yielding(3)
    True
    """
    yield list(range(n))

def ordinary():
    """
    >>> ordinary()
    """
'''


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "warm_examples.py").write_text(EXAMPLES)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("warm_examples")
    yield module
    del sys.modules["warm_examples"]


def test_examples_of_loaders_are_found_by_doctest(examples: ModuleType) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name: len(test.examples) for test in finder.find(examples)}
    names = ["", ".plain", ".yielding", ".ordinary"]
    assert found == dict(zip([f"warm_examples{n}" for n in names], [1, 2, 1, 1], strict=True))

    runner = doctest.DocTestRunner(verbose=False)
    for test in finder.find(examples):
        runner.run(test, out=lambda text: None)
    assert tuple(runner.summarize(verbose=False))[:2] == (1, 5)


def test_loaders_of_other_modules_are_not_examples_of_this_one(examples: ModuleType) -> None:
    importing = ModuleType("importing")
    importing.plain = examples.plain  # type: ignore[attr-defined]
    assert not [test for test in doctest.DocTestFinder().find(importing) if test.examples]


@pytest.mark.engine
def test_examples_of_loaders_are_found_by_pytest(tmp_path: Path) -> None:
    (tmp_path / "warm_examples.py").write_text(EXAMPLES)
    command = [sys.executable, "-m", "pytest", "--doctest-modules", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "-q", "-p", "no:xdist", "warm_examples.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "wrong on purpose" in ended.stdout
    assert "FAILED warm_examples.py::warm_examples.plain" in ended.stdout
    assert "1 failed, 3 passed" in ended.stdout


# inspect, pickle, and whatever else looks at functions


@warm
def table(a: int, *, b: str = "x") -> list[int]:
    """Make a table."""
    return [a]


def test_inspect_takes_it_for_a_function_with_a_signature() -> None:
    assert inspect.isroutine(table)
    assert callable(table)
    assert not inspect.isfunction(table), "source strategies would ship the bare loader"
    assert str(inspect.signature(table)) == "(a: 'int', *, b: 'str' = 'x') -> 'list[int]'"
    assert inspect.unwrap(table) is table
    assert inspect.getdoc(table) == "Make a table."
    assert "Make a table." in pydoc.render_doc(table)
    with pytest.raises(TypeError):
        inspect.getsource(table)


def test_it_is_itself_in_a_class() -> None:
    class Models:
        shared = table

        def use(self) -> list[int]:
            return self.shared(1)

    assert Models.shared is table
    assert Models().shared is table
    assert Models().use() is table(1)
    assert vars(Models)["shared"] is table


@pytest.mark.parametrize(
    "carry",
    [
        lambda value: pickle.loads(pickle.dumps(value)),
        lambda value: dill.loads(dill.dumps(value)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle", "dill", "copy", "deepcopy"],
)
def test_a_copy_is_the_same_object(carry: Callable[[object], object]) -> None:
    assert carry(table) is table
    assert carry((table, 1)) == (table, 1)


def test_warm_functions_are_arguments_that_are_found_again() -> None:
    @warm
    def uses(loader: Any) -> object:
        return object()

    assert uses(table) is uses(table)


# names of parameters


def test_parameters_may_have_the_names_that_are_used_inside() -> None:
    def selected(state: object, *args: Any, **kwargs: Any) -> bool:
        asked.append((args, kwargs))
        return True

    asked: list[Any] = []

    @warm(valid=selected, key=lambda *args, **kwargs: (args, *kwargs.items()))
    def state(
        _gc_warm_items: int,
        _gc_warm_0: int = 1,
        __gc_warm_state: int = 2,
        *_gc_warm: int,
        _gc_warm_target: int = 3,
        **_gc_warm_1: int,
    ) -> object:
        return object()

    assert state(5) is state(_gc_warm_items=5)
    assert state(5, other=1) is state(5, 1, 2, other=1)
    assert state(5, other=1) is not state(5)
    assert asked[0] == ((5, 1, 2), {"_gc_warm_target": 3})


@pytest.mark.parametrize(
    "name", ["_gc_warm_items", "_gc_warm_0", "__gc_warm_items", "self", "args", "loader", "key"]
)
def test_any_name_of_a_parameter_is_bound(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def loader({name}, other=2, **rest): return ({name}, other, rest)", space)
    state = warm(space["loader"])
    assert state(1, x=3) == (1, 2, {"x": 3})
    assert state(**{name: 1}, x=3) is state(1, 2, x=3)
    state.load(**{name: 1})
    with state.lease(**{name: 1}):
        assert state.discard(**{name: 1})
    state.clear()


def test_several_parameters_with_names_that_are_used_inside() -> None:
    @warm
    def state(_gc_warm_items: int, **more: int) -> tuple[int, dict[str, int]]:
        return _gc_warm_items, more

    assert state(1, b=2, a=3) is state(1, a=3, b=2)
    assert state(1, b=2, a=3) == (1, {"a": 3, "b": 2})
