"""Random histories of one warm table against a plain model of it.

There are more of them with the mark `engine`, which are others each time.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gc_warm import warm

pytestmark = pytest.mark.usefixtures("cheap_evictions")

KEYS = st.integers(0, 4)
HOW_LOADERS_FAIL = st.sampled_from([None, None, None, "before opening", "after opening"])


class Kept:
    """A loaded value in the model."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.leases = 0


class Model:
    """A plain model of a warm table.

    It has a list in the order of use, for what leaves first, a list in the order of loading, for
    `clear`, and a list of what is retired: given up, but leased.
    """

    def __init__(self, maxsize: int | None) -> None:
        self.maxsize = maxsize
        self.by_use: list[Kept] = []
        self.by_load: list[Kept] = []
        self.retired: list[Kept] = []
        self.invalid: set[int] = set()
        self.history: list[str] = []
        self.hits = self.loads = self.failures = self.evictions = 0

    def size(self) -> int:
        return len(self.by_load) + len(self.retired)

    def find(self, key: int) -> Kept | None:
        return next((kept for kept in self.by_load if kept.key == key), None)

    def call(self, key: int, failure: str | None) -> type[Exception] | None:
        """What the call raises."""
        found = self.find(key)
        if found and key not in self.invalid:
            self.hits += 1
            self.by_use.remove(found)
            self.by_use.append(found)
            return None

        if found:
            self.give_up(found)
        if self.size() == self.maxsize:
            victim = next((kept for kept in self.by_use if not kept.leases), None)
            if victim is None:
                return RuntimeError
            self.forget(victim)
            self.history.append(f"close {victim.key}")
            self.evictions += 1

        if failure is not None:
            self.failures += 1
            self.history += [f"open {key}", f"close {key}"] if failure == "after opening" else []
            return OSError

        self.loads += 1
        self.invalid.discard(key)
        loaded = Kept(key)
        self.by_use.append(loaded)
        self.by_load.append(loaded)
        self.history.append(f"open {key}")
        return None

    def forget(self, kept: Kept) -> None:
        self.by_use.remove(kept)
        self.by_load.remove(kept)

    def give_up(self, kept: Kept) -> None:
        self.forget(kept)
        if kept.leases:
            self.retired.append(kept)
        else:
            self.history.append(f"close {kept.key}")

    def lease(self, key: int) -> Kept:
        kept = self.find(key)
        assert kept is not None
        kept.leases += 1
        return kept

    def end_lease(self, kept: Kept) -> None:
        kept.leases -= 1
        if kept in self.retired and not kept.leases:
            self.retired.remove(kept)
            self.history.append(f"close {kept.key}")

    def discard(self, key: int) -> bool:
        kept = self.find(key)
        if kept is not None:
            self.give_up(kept)
        return kept is not None

    def clear(self) -> None:
        for kept in reversed(self.by_load.copy()):
            self.give_up(kept)


class WarmTable(RuleBasedStateMachine):
    """Does to a warm table what it does to the model, and compares."""

    @initialize(maxsize=st.sampled_from([None, 1, 2, 3]), has_valid=st.booleans())
    def start(self, maxsize: int | None, has_valid: bool) -> None:
        self.model = Model(maxsize)
        self.has_valid = has_valid
        self.invalid: set[int] = set()
        self.is_loading = False
        self.history: list[str] = []
        self.failure: str | None = None
        self.leases: list[tuple[ExitStack, Kept]] = []

        def may_stay(state: str, key: int) -> bool:
            """Also tell that a load makes an invalid key valid."""
            if self.is_loading:
                self.invalid.discard(key)
            self.is_loading = False
            return key not in self.invalid

        @warm(maxsize=maxsize, valid=may_stay if has_valid else None)
        def table(key: int) -> Generator[str, None, None]:
            if self.failure == "before opening":
                raise OSError(key)
            self.history.append(f"open {key}")
            self.is_loading = self.failure is None
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
                self.leases.append((stack.pop_all(), self.model.lease(key)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.leases) - 1))
        lease, kept = self.leases.pop(number)
        lease.close()
        self.model.end_lease(kept)

    @rule(key=KEYS)
    def discard(self, key: int) -> None:
        assert self.table.discard(key) == self.model.discard(key)

    @precondition(lambda self: self.has_valid)
    @rule(key=KEYS)
    def go_bad(self, key: int) -> None:
        if self.model.find(key) is not None:
            self.invalid.add(key)
            self.model.invalid.add(key)

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
        assert (info.size, info.maxsize) == (model.size(), model.maxsize)

    def teardown(self) -> None:
        for lease, kept in self.leases:
            lease.close()
            self.model.end_lease(kept)
        self.clear()
        self.same()
        assert self.table.info().size == 0


TestWarmTable = WarmTable.TestCase
TestWarmTable.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, derandomize=True, database=None
)


@pytest.mark.engine
class TestMoreOfWarmTable(WarmTable.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=200, stateful_step_count=30, deadline=None, database=None)
