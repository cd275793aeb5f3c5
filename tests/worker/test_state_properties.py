"""Random histories of one warm table against a plain model of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gc_warm import warm

KEYS = st.integers(0, 4)
HOW_LOADERS_FAIL = st.sampled_from([None, None, None, "before opening", "after opening"])


class Model:
    """A plain model of a warm table.

    It has a list in the order of use, for what leaves first, and a list in the order of loading,
    for `clear`.
    """

    def __init__(self, maxsize: int | None) -> None:
        self.maxsize = maxsize
        self.by_use: list[int] = []
        self.by_load: list[int] = []
        self.leases: list[int] = []
        self.history: list[str] = []
        self.hits = self.loads = self.failures = self.evictions = 0

    def call(self, key: int, failure: str | None) -> type[Exception] | None:
        """What the call raises."""
        if key in self.by_load:
            self.hits += 1
            self.by_use.remove(key)
            self.by_use.append(key)
            return None

        if len(self.by_load) == self.maxsize:
            victim = next((key for key in self.by_use if key not in self.leases), None)
            if victim is None:
                return RuntimeError
            self.tear_down(victim)
            self.evictions += 1

        if failure is not None:
            self.failures += 1
            self.history += [f"open {key}", f"close {key}"] if failure == "after opening" else []
            return OSError

        self.loads += 1
        self.by_use.append(key)
        self.by_load.append(key)
        self.history.append(f"open {key}")
        return None

    def tear_down(self, key: int) -> None:
        self.by_use.remove(key)
        self.by_load.remove(key)
        self.history.append(f"close {key}")

    def clear(self) -> None:
        for key in reversed(self.by_load.copy()):
            if key not in self.leases:
                self.tear_down(key)


class WarmTable(RuleBasedStateMachine):
    """Does to a warm table what it does to the model, and compares."""

    @initialize(maxsize=st.sampled_from([None, 1, 2, 3]))
    def start(self, maxsize: int | None) -> None:
        self.model = Model(maxsize)
        self.history: list[str] = []
        self.failure: str | None = None
        self.leases: list[ExitStack] = []

        @warm(maxsize=maxsize)
        def table(key: int) -> Generator[str, None, None]:
            if self.failure == "before opening":
                raise OSError(key)
            self.history.append(f"open {key}")
            try:
                if self.failure == "after opening":
                    raise OSError(key)
                yield f"state {key}"
            finally:
                self.history.append(f"close {key}")

        self.table = table

    @rule(key=KEYS, failure=HOW_LOADERS_FAIL, warming_up=st.booleans())
    def call(self, key: int, failure: str | None, warming_up: bool) -> None:
        self.failure = failure
        expected = self.model.call(key, failure)
        function = self.table.load if warming_up else self.table
        if expected is not None:
            with pytest.raises(expected):
                function(key)
        else:
            assert function(key) == (None if warming_up else f"state {key}")

    @rule(key=KEYS, failure=HOW_LOADERS_FAIL)
    def begin_lease(self, key: int, failure: str | None) -> None:
        self.failure = failure
        expected = self.model.call(key, failure)
        with ExitStack() as stack:
            if expected is not None:
                with pytest.raises(expected):
                    stack.enter_context(self.table.lease(key))
            else:
                assert stack.enter_context(self.table.lease(key)) == f"state {key}"
                self.leases.append(stack.pop_all())
                self.model.leases.append(key)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.leases) - 1))
        self.leases.pop(number).close()
        self.model.leases.pop(number)

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        info, model = self.table.info(), self.model
        assert self.history == model.history
        assert (info.hits, info.loads) == (model.hits, model.loads)
        assert (info.failures, info.evictions) == (model.failures, model.evictions)
        assert (info.size, info.maxsize) == (len(model.by_load), model.maxsize)

    def teardown(self) -> None:
        for lease in self.leases:
            lease.close()
        self.model.leases.clear()
        self.clear()
        self.same()
        assert self.table.info().size == 0


TestWarmTable = WarmTable.TestCase
TestWarmTable.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
