"""The types that mypy infers about warm functions.

`test_typing` runs mypy on this file, and importing the file does nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from typing_extensions import assert_type

from gc_warm import Info, Warm, unchanged, warm
from gc_warm.worker.ledger import Event, Loaded, events, loaded
from gc_warm.worker.lifecycle import Worker, worker
from gc_warm.worker.state import WarmDecorator


@dataclass(frozen=True)
class Grid:
    size: int


class Connection:
    url: str


@warm
def table(grid: Grid, step: float = 0.5, *, exact: bool = False) -> list[float]:
    return [step * grid.size]


@warm(maxsize=2)
def limited_table(grid: Grid) -> dict[str, float]:
    return {"size": grid.size}


@warm
def connection(url: str) -> Generator[Connection, None, None]:
    yield Connection()


@warm(maxsize=1)
def limited_connection(url: str, *ports: int) -> Generator[Connection, None, None]:
    yield Connection()


@warm
def nothing_to_say(grid: Grid) -> None: ...


@warm(maxsize=40e9, size=lambda path: 1.5, key=str, valid=unchanged("path"))
def weights(path: str) -> bytes:
    return path.encode()


@warm(valid=lambda state, url: state.url == url)
def checked_connection(url: str) -> Generator[Connection, None, None]:
    yield Connection()


@warm()
# an iterator is a state of its own; only a Generator is a state with a teardown
def lines(path: str) -> Iterator[str]:
    return iter([path])


def states() -> None:
    assert_type(table(Grid(1)), list[float])
    assert_type(table(Grid(1), 0.1, exact=True), list[float])
    assert_type(limited_table(grid=Grid(1)), dict[str, float])
    assert_type(connection("a"), Connection)
    assert_type(limited_connection("a", 1, 2), Connection)
    assert_type(lines("a"), Iterator[str])
    assert_type(checked_connection("a"), Connection)
    assert_type(warm(maxsize=None), WarmDecorator)


def takes_connections(connections: Warm[[str], Connection]) -> None:
    assert_type(connections("a"), Connection)


def methods() -> None:
    with table.lease(Grid(1), exact=True) as numbers, limited_connection.lease("a", 1) as link:
        assert_type(numbers, list[float])
        assert_type(link, Connection)
    print(table.load(Grid(1)))  # type: ignore[func-returns-value]
    print(connection.clear())  # type: ignore[func-returns-value]
    info = limited_connection.info()
    assert_type(info, Info)
    assert_type(
        (info.hits, info.loads, info.failures, info.evictions, info.size),
        tuple[int, int, int, int, float],
    )
    assert_type((info.maxsize, info.load_seconds), tuple[float | None, float])
    assert_type(info.grown, int)
    assert_type(limited_table.discard(Grid(1)), bool)
    assert_type(weights("a"), bytes)
    takes_connections(connection)
    takes_connections(lines)  # type: ignore[arg-type]


def wrong_calls() -> None:
    table("grid")  # type: ignore[arg-type]
    table(Grid(1), exact="yes")  # type: ignore[arg-type]
    table()  # type: ignore[call-arg]
    table(Grid(1), stride=2)  # type: ignore[call-arg]
    limited_table(grid=1)  # type: ignore[arg-type]
    connection(1)  # type: ignore[arg-type]
    limited_connection("a", "b")  # type: ignore[arg-type]
    connection.load(1)  # type: ignore[arg-type]
    limited_table.discard("grid")  # type: ignore[arg-type]
    limited_table.lease("grid")  # type: ignore[arg-type]
    connection("a").port  # type: ignore[attr-defined]  # noqa: B018
    warm(maxsize="2")  # type: ignore[call-overload]
    warm(size=3)  # type: ignore[call-overload]
    warm(valid="path")  # type: ignore[call-overload]
    warm(3)  # type: ignore[call-overload]
    table.info().hits = 3  # type: ignore[misc]


def records() -> None:
    assert_type(events(since=1), tuple[Event, ...])
    assert_type(loaded(), tuple[Loaded, ...])
    assert_type(worker(), Worker)
    assert_type((worker().host, worker().pid, worker().block), tuple[str, int, str | None])
    assert_type((worker().pool, worker().rank), tuple[str | None, int | None])
    assert_type(events()[0].error, str | None)
