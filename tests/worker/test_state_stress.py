"""Many threads at once: the promises of @warm about loads, room, leases and counts always hold."""

from __future__ import annotations

import functools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneError
from typing import Any, TypeVar

import pytest

from gc_warm import warm
from gc_warm.worker.state import Warm
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("cheap_evictions")

T = TypeVar("T")

THREADS, OPERATIONS, KEYS = 32, 40, 8


def let_others_run() -> None:
    """Give up the interpreter for a moment, so that other threads run amid this one's work."""
    time.sleep(0)


class Connection:
    """A state that knows whether it is still open, as a file or a socket does."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.open = True


class Service:
    """What the connections are made to: keeps books, and notes whatever must never happen."""

    def __init__(self, maxsize: int | None, retires: bool = False) -> None:
        self.maxsize = maxsize
        self.retires = retires
        self.faults: list[str] = []
        self.connected = self.refused = self.disconnected = 0
        self._lock = threading.Lock()
        self._connecting: Counter[int] = Counter()
        self._open: Counter[int] = Counter()

    def never(self, happened: bool, what: str) -> None:
        if happened:
            self.faults.append(what)

    def loader(self) -> Callable[[int], Generator[Connection, None, None]]:
        def connection(key: int) -> Generator[Connection, None, None]:
            state = self._connect(key)
            yield state
            self._disconnect(state)

        return connection

    def _connect(self, key: int) -> Connection:
        with self._lock:
            self._connecting[key] += 1
            self._look(key)

        for _ in range(10):
            let_others_run()

        with self._lock:
            self._look(key)
            self._connecting[key] -= 1
            # the random histories decide whose connection it is
            if (self.connected + self.refused) % 4 == 3:
                self.refused += 1
                raise ConnectionRefusedError(f"connection {key}")
            self.connected += 1
            self._open[key] += 1
            return Connection(key)

    def _look(self, key: int) -> None:
        self.never(self._connecting[key] > 1, "two loads of one key")
        if not self.retires:  # else one that is given up may still be leased
            self.never(self._connecting[key] + self._open[key] > 1, "two values of one key")
        if self.maxsize is not None:
            loading = self._connecting.total()
            self.never(loading > 1, "loads of a bounded table overlap")
            self.never(loading + self._open.total() > self.maxsize, "more than maxsize")

    def _disconnect(self, state: Connection) -> None:
        for _ in range(5):
            let_others_run()
        with self._lock:
            self.never(not state.open, "torn down twice")
            state.open = False
            self._open[state.key] -= 1
            self.disconnected += 1


class Counted(Warm[[int], Connection]):
    """Counts how its calls end, those that a lease makes included."""

    def __init__(self, loader: Callable[[int], Any], maxsize: int | None) -> None:
        super().__init__(loader, maxsize)
        self.ends: list[str] = []  # appending to a list is atomic

    def __call__(self, key: int) -> Connection:
        try:
            state = super().__call__(key)
        except ConnectionRefusedError:
            self.ends.append("refused")
            raise
        except RuntimeError as error:
            self.ends.append("no room" if "no room" in str(error) else repr(error))
            raise
        self.ends.append("served")
        return state


def run_together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Return the result of each work, all of which start together.

    They run in threads that cannot keep a wedged test from ending.
    """
    start = threading.Barrier(len(works))
    futures: list[Future[T]] = [Future() for _ in works]

    def run(work: Callable[[], T], future: Future[T]) -> None:
        start.wait(120)
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threads = [
        threading.Thread(target=run, args=pair, daemon=True)
        for pair in zip(works, futures, strict=True)
    ]
    for thread in threads:
        thread.start()

    results = [future.result(120) for future in futures]
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns five hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def use(table: Counted, service: Service, choose: random.Random, weights: Sequence[int]) -> None:
    """One thread's random history; *weights* tell how often it does what."""
    got_through = 0
    while got_through < OPERATIONS:
        key = choose.randrange(KEYS)
        action = choose.choices(["call", "lease", "clear", "discard"], weights)[0]
        try:
            if action == "call":
                service.never(table(key).key != key, "state of another key")
            elif action == "lease":
                lease(table, service, key, 1 + choose.randrange(5))
            elif action == "discard":
                table.discard(key)
            else:
                table.clear()
        except ConnectionRefusedError:
            pass
        except RuntimeError:
            let_others_run()
            continue
        got_through += 1


def lease(table: Counted, service: Service, key: int, turns: int) -> None:
    with table.lease(key) as state:
        service.never(state.key != key, "state of another key")
        for _ in range(turns):
            let_others_run()
            service.never(not state.open, "torn down during its lease")


@pytest.mark.parametrize(
    ("maxsize", "weights"),
    [
        (1, (60, 2, 0, 0)),
        (3, (50, 50, 1, 0)),
        (3, (50, 50, 1, 20)),
        (None, (60, 20, 10, 0)),
        (None, (60, 40, 2, 20)),
    ],
)
def test_random_histories_of_many_threads(
    maxsize: int | None, weights: Sequence[int], eager_switching: None
) -> None:
    service = Service(maxsize, retires=any(weights[2:]))
    table = Counted(service.loader(), maxsize)
    seeds = [random.Random(seed) for seed in range(THREADS)]
    run_together([functools.partial(use, table, service, seed, weights) for seed in seeds])
    assert not service.faults

    info, ends = table.info(), Counter(table.ends)
    assert (info.hits + info.loads, info.failures) == (ends.pop("served"), ends.pop("refused"))
    assert set(ends) <= {"no room"}
    assert (info.loads, info.failures, info.size) == (
        service.connected,
        service.refused,
        service.connected - service.disconnected,
    )
    assert min(info.hits, info.loads, info.failures) >= 2, "this tried too little to show anything"
    if maxsize is None:
        assert info.evictions == 0
    elif not service.retires:
        assert info.evictions == service.disconnected

    table.clear()
    assert (service.disconnected, table.info().size) == (service.connected, 0)
    assert not service.faults


def test_keys_load_in_parallel() -> None:
    both_are_loading = threading.Barrier(2)

    @warm
    def table(key: int) -> int:
        both_are_loading.wait(120)
        return key

    assert run_together([lambda: table(1), lambda: table(2)]) == [1, 2]


@pytest.mark.parametrize("maxsize", [None, 2])
def test_each_waiter_of_a_failed_load_tries_itself(maxsize: int | None) -> None:
    """Of eight threads that want one key, three fail, each by its own error.

    The fourth loads it for all the others.
    """
    threads, failures = 8, 3
    asking: list[None] = []
    tries: list[None] = []

    @warm(maxsize=maxsize)
    def table(key: str) -> object:
        wait_until(lambda: len(asking) == threads, "all threads ask")
        tries.append(None)
        if len(tries) <= failures:
            raise ConnectionRefusedError(threading.get_ident())
        return object()

    def ask() -> object:
        asking.append(None)
        try:
            return table("a")
        except ConnectionRefusedError as error:
            is_own = error.args == (threading.get_ident(),)
            return "own error" if is_own else "the error of another thread"

    answers = Counter(run_together([ask] * threads))
    assert answers.pop("own error") == failures
    assert list(answers.values()) == [threads - failures], "all others share one state"
    assert len(tries) == failures + 1
    info = table.info()
    assert (info.hits, info.loads, info.failures) == (threads - failures - 1, 1, failures)


def test_state_whose_teardown_has_begun_is_not_handed_out() -> None:
    tearing_down, go_on = threading.Event(), threading.Event()

    @warm
    def table(key: int) -> Generator[Connection, None, None]:
        state = Connection(key)
        yield state
        tearing_down.set()
        assert go_on.wait(120)
        state.open = False

    def clear() -> None:
        table(1)
        table.clear()

    with ThreadPoolExecutor(2) as pool:
        cleared = pool.submit(clear)
        assert tearing_down.wait(120)
        called = pool.submit(table, 1)
        with pytest.raises(NotDoneError):
            called.result(0.1)
        go_on.set()
        assert called.result(120).open
        cleared.result(120)
    table.clear()


def test_lease_never_gets_a_state_that_leaves_just_then() -> None:
    """The worst moment is when another thread begins to tear down the state that a lease has found.

    The lease is not noted by then.
    """
    found_once, tearing_down, go_on = threading.Event(), threading.Event(), threading.Event()

    def connection(key: int) -> Generator[Connection, None, None]:
        state = Connection(key)
        yield state
        tearing_down.set()
        assert go_on.wait(120)
        state.open = False

    class Overtaken(Warm[[int], Connection]):
        def __call__(self, key: int) -> Connection:
            if tearing_down.is_set():
                go_on.set()
            state = super().__call__(key)
            if not found_once.is_set():
                found_once.set()
                clearing.start()
                assert tearing_down.wait(120)
            return state

    table = Overtaken(connection, maxsize=1)
    clearing = threading.Thread(target=table.clear)
    with table.lease(1) as state:
        go_on.set()
        clearing.join(120)
        assert state.open
    table.clear()
