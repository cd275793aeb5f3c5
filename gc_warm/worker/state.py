"""Warm state: loaded once per key, and kept in a module global of the worker.

A worker process stays alive between tasks, and with it every module that the tasks imported.
``@warm`` turns a loader function into a module global that remembers what it loaded:

    from dataclasses import dataclass
    from gc_warm import warm

    @dataclass(frozen=True)                  # many settings: a frozen dataclass is the natural key
    class Settings:
        checkpoint: str
        precision: str = "bf16"

    @warm(maxsize=1)                         # only one of them fits on the GPU
    def model(settings: Settings) -> Model:
        # the worker knows its devices; the client does not
        device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
        return load_model(settings.checkpoint, settings.precision).to(device)

The first ``model(Settings("a.pt"))`` on a worker loads the model (a cold call); every later one
finds it loaded (a warm call, under a microsecond).

Three decisions keep this correct:

- A dictionary lookup without any lock serves the warm call.
- A load is owned by a reentrant lock held by ``with``: one lock per key, or one for all keys when
  `maxsize` is set. Task time-outs arrive as asynchronous exceptions at any point of this code; a
  lock held by ``with`` is always released, where a "loading" marker would stay behind for ever.
- A value that leaves is flagged first and removed last, so that an interrupted eviction is simply
  finished by the thread that comes next.

A value that is given up (by `Warm.discard`, `Warm.clear`, a `valid` that says no, or a reload of
its module) while somebody leases it is *retired*: it is handed out no more, counts as loaded, and
is torn down at the end of the last lease.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import logging
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload
from weakref import WeakSet, WeakValueDictionary, ref

from gc_warm.exceptions import NotEnoughMemoryError
from gc_warm.worker import binding, keys, ledger, lifecycle, memory, module_versions
from gc_warm.worker.validity import Unchanged

log = logging.getLogger("gc_warm")

P = ParamSpec("P")
T = TypeVar("T")

_KEEP_THE_LOOP = (
    "keep the event loop in the state, `loop = asyncio.new_event_loop(); "
    "yield loop, loop.run_until_complete(...); loop.close()`; help(gc_warm.warm) shows it"
)

_OVER: Any = object()  # what an exhausted generator gives instead of a value

# Protects counters, leases and the choice of what to evict; no foreign code ever runs under it.
# Reentrant, because the garbage collector may end an abandoned lease anywhere.
_mutex = threading.RLock()
_tables: WeakSet[Warm[Any, Any]] = WeakSet()
_by_name: WeakValueDictionary[str, Warm[Any, Any]] = WeakValueDictionary()
_numbers = itertools.count(1)
_forbidden: dict[str, str] = {}  # reasons not to load, by modules


@dataclass(frozen=True)
class Info:
    """Counts of one warm function in this process, since its module was imported.

    Attributes:
        hits: Calls that found their state.
        loads: Loads that succeeded.
        failures: Loads that raised.
        evictions: Values torn down to make room.
        size: How much is loaded now: the number of values, or the sum of what `size` says of them.
            Values that are given up, but still leased, count.
        maxsize: The most that may be loaded at a time; None for no limit.
        load_seconds: Time spent in successful loads, in seconds.
        grown: Bytes by which the process grew in the loads of the values that are loaded now. Other
            threads may have had their part in it.
    """

    hits: int
    loads: int
    failures: int
    evictions: int
    size: float
    maxsize: float | None
    load_seconds: float
    grown: int = 0


class _Value:
    """A loaded state, and what its teardown needs."""

    __slots__ = (
        "at",
        "fate",
        "grown",
        "guarded",
        "key",
        "leases",
        "lock",
        "number",
        "order",
        "owner",
        "seconds",
        "size",
        "state",
        "steps",
        "used",
        "version",
        "was_missed",
    )

    def __init__(self, owner: Warm[Any, Any], key: Hashable, size: float) -> None:
        self.owner = owner
        self.key = key
        self.number = next(_numbers)  # tells it from others, where it must not be held
        self.size = size  # in the owner's units

        # of the file that it is loaded from, before the load, if its owner looks after that
        self.version: object = None
        self.was_missed = False  # that file was not there later, which has been said

        self.state: Any = None
        # the loader's frame, when it is a generator
        self.steps: Generator[Any, Any, Any] | None = None

        self.used = 0  # the owner's clock at the latest use
        self.leases: dict[object, int] = {}  # each with the thread that has it
        self.lock = threading.RLock()  # held while it is torn down after its last lease

        # why it is to be torn down: no longer to be handed out, though its teardown may only begin
        # at the end of its last lease
        self.fate: ledger.Kind | None = None
        # not to be handed out without a look: it has a fate, or its owner a predicate
        self.guarded = owner._valid is not None or owner._version is not None

        self.at = 0.0  # when its load was over, in seconds since the epoch; 0.0 until then
        self.seconds = 0.0
        self.grown = 0  # bytes by which the process grew in its load
        self.order = math.inf

    def loaded(self) -> ledger.Loaded | None:
        if not self.at:
            return None
        return ledger.Loaded(self.owner._name, ledger.describe(self.key), self.at, self.seconds)

    def give_up(self, kind: ledger.Kind) -> None:
        """Have it handed out no more; the first reason stays. The caller has the mutex."""
        self.guarded = True
        self.fate = self.fate or kind

    def close(self) -> None:
        """Run what follows the yield; the generator itself sees to it that this happens once."""
        self.guarded = True
        self.fate = self.fate or "cleared"

        steps = self.steps
        if steps is not None and inspect.getgeneratorstate(steps) == inspect.GEN_SUSPENDED:
            try:
                if next(steps, _OVER) is not _OVER:
                    log.error(
                        "%r yielded twice: a loader yields its state once, "
                        "what follows is its teardown",
                        self.owner,
                    )
                    steps.close()
            except Exception:
                log.exception("teardown of %r for %s failed", self.owner, ledger.describe(self.key))

        ledger.release(self)

    def disown(self) -> None:
        """Keep this process from ever resuming the generator, even when the interpreter ends."""
        if self.steps is not None:
            # A suspended generator runs its ``finally`` when it is freed: one reference too many
            # keeps it for ever.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.steps))
            self.steps = None


class Warm(Generic[P, T]):
    """A function whose results are loaded once per key and kept.

    `warm` makes it, and it lives as long as its module. Call it to get the state. The key is what
    the loader's signature binds: ``f(1)``, ``f(x=1)`` and a default of 1 are one key, and so are
    equal values, such as 1, 1.0 and True. A path and its text are two.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Any

    def __init__(
        self,
        loader: Callable[P, Any],
        maxsize: float | None = None,
        size: Callable[..., float] | None = None,
        key: Callable[..., Hashable] | None = None,
        valid: Callable[..., object] | None = None,
    ) -> None:
        _check_loader(loader)
        _check_options(loader, maxsize, size, key, valid)

        # the loader's own attributes must not hide our methods
        functools.update_wrapper(self, loader, updated=())
        del self.__wrapped__  # with it, source strategies would ship the bare loader: silently cold
        self.__signature__ = inspect.signature(loader)

        self._loader = loader
        self._key: Callable[..., Any] = (
            binding.binder(loader) if key is None else binding.forwarder(loader, key)
        )
        self._has_own_key = key is not None
        self._maxsize = maxsize
        self._size = None if size is None else binding.forwarder(loader, size)
        self._valid: Callable[..., object] | None = None
        self._version: Callable[..., object] | None = None
        if isinstance(valid, Unchanged):
            select = binding.selector(loader, valid.argument)
            self._version = lambda *args, **kwargs: valid.version(select(*args, **kwargs))
        elif valid is not None:
            self._valid = binding.forwarder(loader, valid, takes_state=True)

        self._values: dict[Hashable, _Value] = {}
        self._retired: set[_Value] = set()
        self._locks: dict[Hashable, Any] = {}
        self._loading: dict[Hashable, float] = {}  # with their sizes
        # classes in keys that are not found by their names
        self._passing: dict[str, ref[type]] = {}
        self._has_garbage = False  # what was torn down, or failed to load, may be kept by a cycle
        self._has_warned = False  # of evicted state that is still alive

        # atomic; ticks at every hit, load and info(), so it counts the hits too
        self._tick = itertools.count(1).__next__
        self._loads = 0
        self._failures = 0
        self._evictions = 0
        self._infos = 0
        self._load_seconds = 0.0

        _tables.add(self)
        if "<" not in self.__qualname__:  # its module is being imported
            module_versions.note(self.__module__)
        _replace(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the state for these arguments; it is loaded unless it is there.

        Args:
            *args: The loader's arguments.
            **kwargs: The loader's keyword arguments.

        Returns:
            What the loader returned or yielded.

        Raises:
            TypeError: An argument is not hashable, or none that a later task could find again; or
                the loader takes other arguments.
            RecursionError: The loader needs this very state.
            RuntimeError: The state has to be loaded, and all that could make room is leased; or it
                has just been loaded, and `valid` says no.
            ValueError: The state is larger than `maxsize`.
        """
        key = self._key(*args, **kwargs)
        try:
            value = self._values[key]
        except KeyError:
            value = None
        except TypeError as error:
            raise self._bad_key(key, error) from None

        if value is None or value.guarded:
            value = None  # nothing here holds what may be torn down
            value = self._fetch(key, args, kwargs)
        else:
            value.used = self._tick()

        state: T = value.state
        return state

    def load(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Load the state and return None.

        This is for warming up, when the state itself should not travel back to the client.

        Args:
            *args: The loader's arguments.
            **kwargs: The loader's keyword arguments.
        """
        self(*args, **kwargs)

    @contextmanager
    def lease(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        """Protect the state from its teardown for the length of a ``with`` block.

        It is not evicted; if it is given up meanwhile, it is torn down at the end of the block (of
        the last one, if several have it). The end of the worker process ignores leases.

        Args:
            *args: The loader's arguments.
            **kwargs: The loader's keyword arguments.

        Yields:
            The state.

        Raises:
            RuntimeError: The state has to be loaded, and all that could make room is leased.

        Example:
            with model.lease(settings) as m:
                m.train(batch)       # another thread may load another model; this one stays
        """
        key = self._key(*args, **kwargs)
        lease = object()
        held = False
        may_wait = True

        while not held:
            self(*args, **kwargs)
            value = self._values.get(key)
            if value is None:
                continue

            try:
                with _mutex:
                    if value.fate is None:
                        value.leases[lease] = threading.get_ident()
                        held = True
                if held:
                    yield cast(T, value.state)
            except GeneratorExit:
                may_wait = False  # it may be the garbage collector, in the midst of anything
                raise
            finally:
                with _mutex:
                    value.leases.pop(lease, None)
                if held and value.fate is not None:
                    self._end_retired(value, may_wait)
            value = None

    def discard(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Give the state for these arguments up: it is torn down, and the next call loads it anew.

        State that somebody leases is handed out no more, and torn down at the end of the last
        lease. Teardown errors are logged.

        Args:
            *args: The loader's arguments.
            **kwargs: The loader's keyword arguments.

        Returns:
            Whether there was such a state.

        Example:
            with connection.lease(url) as c:
                try:
                    return c.ask(question)
                except ConnectionError:
                    connection.discard(url)      # the next call connects again
                    raise
        """
        key = self._key(*args, **kwargs)
        try:
            is_there = key in self._values or key in self._loading
        except TypeError as error:
            raise self._bad_key(key, error) from None

        return is_there and self._give_up(key, "discarded")

    def clear(self) -> None:
        """Give everything up that is loaded, latest first.

        State that somebody leases is handed out no more, and torn down at the end of the last
        lease. Teardown errors are logged.
        """
        self._clear("cleared")

    def _clear(self, kind: ledger.Kind) -> None:
        for value in reversed(list(self._values.values())):
            self._give_up(value.key, kind, value)
        self._end_all_retired()

    def _give_up(self, key: Hashable, kind: ledger.Kind, only: _Value | None = None) -> bool:
        """Tear down the value of a key, or retire it if it is leased.

        Args:
            key: The key.
            kind: Why.
            only: The value that is meant: another one of that key stays.

        Returns:
            Whether there was one.
        """
        with self._lock(key):
            value = self._values.get(key)
            if value is None or only not in (None, value):
                return False

            with _mutex:
                value.give_up(kind)
                is_leased = bool(value.leases)
                was_retired = value in self._retired
                if is_leased:
                    self._retired.add(value)

            if is_leased:
                self._forget(value)
                if not was_retired:  # now, so that the next load is told why
                    ledger.record(value.fate or kind, self._name, key)
            elif not was_retired:
                self._drop(value)

        if was_retired:  # an interrupted end of its last lease may have left it
            self._end_retired(value)
        return True

    def _end_all_retired(self) -> None:
        """Tear down what interrupted ends of leases have left."""
        for value in list(self._retired):
            self._end_retired(value)

    def _end_retired(self, value: _Value, may_wait: bool = True) -> None:
        """Tear a retired value down, once nobody leases it any more.

        With a limit, that happens under the lock of all loads, which have to know what room there
        is; without one, it need not wait for the load of the same key by another thread.

        Args:
            value: The value.
            may_wait: Whether to wait for loads. Otherwise, one that is under way leaves the value
                to the next.
        """
        if not may_wait:
            is_loading = self._maxsize is not None and self._loading
            if is_loading or _mutex._is_owned():  # type: ignore[attr-defined]
                return

        with value.lock if self._maxsize is None else self._lock(value.key):
            with _mutex:
                is_over = value in self._retired and not value.leases
            if is_over:
                self._drop(value)

    def info(self) -> Info:
        """Return the counts so far, as a frozen value."""
        with _mutex:
            hits = self._tick() - 1 - self._loads - self._infos
            self._infos += 1
            counts = (hits, self._loads, self._failures, self._evictions)

        values = {*self._values.values(), *self._retired}
        return Info(
            *counts,
            size=_total([value.size for value in values]),
            maxsize=self._maxsize,
            load_seconds=self._load_seconds,
            grown=sum(value.grown for value in values),
        )

    def _fetch(self, key: Hashable, args: Any, kwargs: Any) -> _Value:
        """Return the value of a key if it may be handed out, or else load it."""
        value = self._values.get(key)
        bad = None
        if value is None:
            self._check_key(key)
        elif value.fate is None:
            if self._is_valid(value, args, kwargs):
                value.used = self._tick()
                return value
            bad = value.number

        value = None
        return self._load(key, args, kwargs, bad)

    def _is_valid(self, value: _Value, args: Any, kwargs: Any) -> bool:
        """Ask the predicate; an exception counts as no, and is logged."""
        try:
            if self._version is not None:
                return self._is_unchanged(value, self._version(*args, **kwargs))
            return self._valid is None or bool(self._valid(value.state, *args, **kwargs))
        except Exception:
            log.exception("%r: valid failed for %s", self, ledger.describe(value.key))
            return False

    def _is_unchanged(self, value: _Value, version: object) -> bool:
        if version is not None:
            return version == value.version

        if not value.was_missed:
            value.was_missed = True
            log.warning(
                "%r: the file of %s is missing or cannot be read; its state is kept",
                self,
                ledger.describe(value.key),
            )
        return True

    def _load(self, key: Hashable, args: Any, kwargs: Any, bad: int | None = None) -> _Value:
        with self._lock(key):
            value = self._values.get(key)
            # another thread loaded it while this one waited
            if value is not None and value.fate is None and value.number != bad:
                value.used = self._tick()
                return value

            if key in self._loading:  # and this thread has the lock
                raise RecursionError(
                    f"{self!r} needs {ledger.describe(key)} to load {ledger.describe(key)}: "
                    "its loader calls itself"
                )

            if self.__module__ in _forbidden:
                raise NotEnoughMemoryError(f"{self!r}: {_forbidden[self.__module__]}")

            size = self._size_of(key, args, kwargs)
            try:
                self._loading[key] = size
                value = None
                self._give_up(key, "invalid")
                self._make_room()
                return self._open(key, size, args, kwargs)
            finally:
                self._loading.pop(key, None)

    def _size_of(self, key: Hashable, args: Any, kwargs: Any) -> float:
        """Return the room that a value is going to take, in the units of `size`."""
        if self._size is None:
            return 1

        size: Any = self._size(*args, **kwargs)
        is_number = isinstance(size, Real) and not isinstance(size, bool)  # NumPy's numbers, too
        if not is_number or not 0 <= size < math.inf:
            raise ValueError(
                f"{self!r}: size says {size!r} of {ledger.describe(key)}, "
                "where a number is wanted, from 0 on"
            )
        if self._maxsize is not None and size > self._maxsize:
            raise ValueError(
                f"{self!r}: {ledger.describe(key)} has a size of {size:,}, which is more than all "
                f"of maxsize={self._maxsize:,}; raise maxsize, or load something smaller"
            )
        is_whole = isinstance(size, int)
        return size if is_whole else float(size)

    def _open(self, key: Hashable, size: float, args: Any, kwargs: Any) -> _Value:
        value = _Value(self, key, size)
        if self._version is not None:  # before the load: what changes in it is a change
            value.version = self._version(*args, **kwargs)
        before = memory.resident()
        start = time.perf_counter()
        try:
            ledger.hold(value)  # before the first step, so that whatever is opened is known
            value.state = self._loader(*args, **kwargs)

            if isinstance(value.state, GeneratorType):
                value.steps = value.state
                lifecycle.arm()
                value.state = next(value.steps, _OVER)
                if value.state is _OVER:
                    raise TypeError(
                        f"{self!r} never yielded: a generator loader yields its state once"
                    )

            _check_state(self._name, value.state)
            value.seconds = time.perf_counter() - start
            value.grown = max(0, memory.resident() - before)
            # a file that has changed during the load is seen by the next call
            if self._valid is not None and not self._is_valid(value, args, kwargs):
                raise RuntimeError(
                    f"{self!r} has just loaded {ledger.describe(key)}, and valid says no to it: "
                    "with such a predicate, every call would be cold"
                )

            value.at = time.time()
            self._values[key] = value
            self._count_load(value)
            return value
        except BaseException as error:
            self._undo(value, error)
            raise

    def _count_load(self, value: _Value) -> None:
        value.order = ledger.record(
            "loaded", self._name, value.key, seconds=value.seconds, grown=value.grown
        )
        with _mutex:
            value.used = self._tick()
            self._loads += 1
            self._load_seconds += value.seconds

    def _undo(self, value: _Value, error: BaseException) -> None:
        """Tear down what a failed load had opened: nothing of it stays behind."""
        self._values.pop(value.key, None)
        with _mutex:
            self._failures += 1
        value.close()
        ledger.record("failed", self._name, value.key, error=error)

        if self._maxsize is not None:
            # what the loader had in its hands is not to be kept by the frames of the traceback
            value.state = None
            memory.clear_frames(error)
            self._has_garbage = True

    def _make_room(self) -> None:
        """Tear down what has to go before the load that has just been entered in `_loading`.

        When this returns, neither this process's cycles nor this object hold any of it.
        """
        if self._maxsize is None:
            return

        self._end_all_retired()
        watches = []
        while self._taken() > self._maxsize:
            victim = self._choose_victim()
            if victim is None:
                raise RuntimeError(
                    f"{self!r} has no room: all of its {self._maxsize:g} "
                    f"{'values' if self._size is None else 'units'} are leased or loading; "
                    "end a lease or raise maxsize"
                )

            watches.append((ledger.describe(victim.key), memory.watch(victim.state)))
            self._drop(victim)
            victim = None

        if self._has_garbage:
            memory.give_back()
            self._has_garbage = False
        self._warn_of_survivors(watches)

    def _taken(self) -> float:
        """Return how much is loaded or loading."""
        values = {*self._values.values(), *self._retired}
        return _total([*(value.size for value in values), *self._loading.values()])

    def _choose_victim(self) -> _Value | None:
        """Choose the value to evict, which is not handed out from now on.

        Returns:
            A value whose teardown was interrupted, or else the least recently used one that nobody
            leases; None if all are leased.
        """
        values = list(self._values.values())
        with _mutex:
            idle = [value for value in values if not value.leases]
            victim = min(idle, key=lambda value: (value.fate is None, value.used), default=None)
            if victim is not None:
                victim.give_up("evicted")
            return victim

    def _warn_of_survivors(self, watches: list[tuple[str, Callable[[], object]]]) -> None:
        """Log, once, that evicted state is still in memory since somebody else holds it."""
        if self._has_warned:
            return

        for key, watch in watches:
            if watch() is not None:
                self._has_warned = True
                log.warning(
                    "%r: what was evicted, %s, is still in memory: a variable of a task that runs, "
                    "a cache or another object holds it",
                    self,
                    key,
                )

    def _drop(self, value: _Value) -> None:
        """Tear a value down and forget it, under the lock that keeps others from doing so."""
        value.close()
        self._forget(value)  # unless its own teardown has loaded it anew
        self._has_garbage = True
        with _mutex:
            was_retired = value in self._retired
            self._retired.discard(value)
            if value.fate == "evicted":
                self._evictions += 1
        if not was_retired:
            ledger.record(value.fate or "cleared", self._name, value.key)

    def _forget(self, value: _Value) -> None:
        if self._values.get(value.key) is value:
            del self._values[value.key]

    def _lock(self, key: Hashable) -> Any:
        owned = key if self._maxsize is None else None  # with a limit, one lock is for all keys
        return self._locks.setdefault(owned, threading.RLock())

    @property
    def _name(self) -> str:
        return f"{self.__module__}.{self.__qualname__}"

    def _check_key(self, key: Hashable) -> None:
        """Refuse a key that no later task can find again.

        Raises:
            TypeError: There is such a part in it. The text names the argument, and a remedy.
        """
        for name, value, default in self._named_parts(key):
            if value is default:
                continue  # the same object in every call that leaves it out

            reason = keys.reason_to_refuse(value, _is_kept, self._passing)
            if reason is not None:
                raise TypeError(
                    f"{self!r}: {name}={ledger.describe(value)} cannot be part of a key: {reason}"
                )

    def _named_parts(self, key: Any) -> Iterator[tuple[str, object, object]]:
        """Yield the parts of a key, with the names and the defaults of their arguments."""
        if self._has_own_key:
            yield "key", key, inspect.Parameter.empty
            return

        parameters = self.__signature__.parameters.values()
        for parameter, value in zip(parameters, key, strict=True):
            yield f"argument {parameter.name}", value, parameter.default

    def _bad_key(self, key: Any, error: TypeError) -> TypeError:
        for name, value, _ in self._named_parts(key):
            try:
                hash(value)
            except TypeError:
                return TypeError(
                    f"{self!r}: {name}={ledger.describe(value)} is not hashable, "
                    "so it cannot be part of a key; "
                    "pass a frozen dataclass, or a tuple with nothing in it that can be changed"
                )

        return error

    def __get__(self, instance: object, owner: type | None = None) -> Warm[P, T]:
        """Return this object: it is a function, and no method.

        With this, `inspect` takes it for a routine, and doctest finds the examples of a loader.
        """
        return self

    def _renew(self) -> None:
        """Forget the locks, loads and leases of threads that a forked child does not have.

        Only the thread that forked is left, with its leases.
        """
        self._locks.clear()
        self._loading.clear()

        thread = threading.get_ident()
        for value in [*self._values.values(), *self._retired]:
            leases = value.leases.items()
            value.leases = {lease: holder for lease, holder in leases if holder == thread}
            value.lock = threading.RLock()

        self._retired = {value for value in self._retired if value.leases}

    def __reduce__(self) -> str:
        is_of_main = self.__module__ == "__main__"
        if is_of_main or "<" in self.__qualname__:
            place = "__main__, a script or a notebook" if is_of_main else "a function"
            raise pickle.PicklingError(
                f"{self!r} is defined in {place}, which a worker cannot import: "
                "move it to the top level of a module that is installed on the worker (from a "
                "notebook, with %%writefile my_model.py), and submit a function that imports it "
                "in its body"
            )

        return self.__qualname__

    def __repr__(self) -> str:
        limit = "" if self._maxsize is None else f", maxsize {self._maxsize:g}"
        return f"<warm {self._name}: {len(self._values)} loaded{limit}>"


class WarmDecorator:
    """A decorator that turns a loader into a `Warm` with options: ``warm(maxsize=...)``."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    @overload
    def __call__(self, loader: Callable[P, Generator[T, Any, Any]], /) -> Warm[P, T]: ...
    @overload
    def __call__(self, loader: Callable[P, T], /) -> Warm[P, T]: ...
    def __call__(self, loader: Callable[P, Any], /) -> Warm[P, Any]:
        """Return the loader as a `Warm` with these options.

        Args:
            loader: A function that `warm` takes.

        Returns:
            A `Warm`, called like the loader.
        """
        return Warm(loader, **self._options)


@overload
def warm(loader: Callable[P, Generator[T, Any, Any]], /) -> Warm[P, T]: ...
@overload
def warm(loader: Callable[P, T], /) -> Warm[P, T]: ...
@overload
def warm(
    *,
    maxsize: float | None = None,
    size: Callable[..., float] | None = None,
    key: Callable[..., Hashable] | None = None,
    valid: Callable[..., object] | Unchanged | None = None,
) -> WarmDecorator: ...
def warm(
    loader: Callable[..., Any] | None = None,
    /,
    *,
    maxsize: float | None = None,
    size: Callable[..., float] | None = None,
    key: Callable[..., Hashable] | None = None,
    valid: Callable[..., object] | Unchanged | None = None,
) -> Any:
    """Load state once per key and keep it in this process.

    Write ``@warm`` or ``@warm(maxsize=2)`` on a module-level function, the loader.

    A loader that returns is done. A loader that yields, once, is also the teardown: what follows
    the yield runs when the state is evicted, given up or cleared, or when the worker ends (at
    SIGTERM too, where a manager grants one second). Annotate such a loader as returning
    ``Generator[State, None, None]``.

    One thread loads a key while others wait for it; if the load fails, the next of them tries
    itself. A loader finds out about devices from its own worker's environment
    (``CUDA_VISIBLE_DEVICES`` is pinned there), not from an argument.

    The key is what the loader's arguments are. Equal values are one key: 1, 1.0 and True are equal.
    A `pathlib.Path` and the `str` of the same path are not, so that each loads: decide for one. An
    object that compares by identity is refused, since no later task would find it: each task brings
    its own copy. State that this worker keeps is not: ``model(tokenizer())``.

    Args:
        loader: A plain function or generator function, defined at the top level of a module. Its
            arguments must be hashable: strings, numbers, tuples, frozen dataclasses.
        maxsize: The most that may be loaded at a time in this process: a number of values, 1 or
            more, or a number in the units of `size`. The least recently used values are torn down
            *before* the load that needs their room, and what only reference cycles keep of them is
            freed. None, the default, keeps everything. Such loads run one at a time, so two limited
            functions must not load each other in different threads: they would wait for each other.
            The room is this loader's own: kinds of state that have to share one, such as a GPU's
            memory, are loaded by one function with an argument that says which.
        size: Takes the loader's arguments, before the load, and returns the room that the state
            will need: ``size=lambda path: os.path.getsize(path)``. Without it, each value takes 1.
        key: Takes the loader's arguments, and returns what stands for them: all that have one key
            share one state. It is asked at every call.
        valid: Takes the state and the loader's arguments, and returns whether the state may still
            be handed out. It is asked before kept state is handed out, and once after a load. If it
            says no, or raises an exception (which is logged), the state is given up and loaded
            anew; that fresh state is not valid is an error. `unchanged` is one for files.

    Returns:
        A `Warm`, called like the loader.

    Raises:
        TypeError: The loader is async, a class, a method or no function; or an option is of another
            type.
        ValueError: maxsize is not positive.

    Example:
        >>> from collections.abc import Generator
        >>> from gc_warm import warm
        >>> @warm
        ... def table(size: int) -> list[int]:
        ...     return [n * n for n in range(size)]
        >>> table(1000)[9], table(size=1000)[9], table.info().loads
        (81, 81, 1)
        >>> @warm(maxsize=1)
        ... def log_file(path: str) -> Generator[list[str], None, None]:
        ...     lines = [f"open {path}"]
        ...     yield lines
        ...     print("closed", path)
        >>> log_file("a.log")
        ['open a.log']
        >>> log_file("b.log")
        closed a.log
        ['open b.log']
        >>> log_file.clear()
        closed b.log

        A client that is async belongs to an event loop. Keep both, and use that loop in tasks:

        >>> import asyncio
        >>> from typing import Any
        >>> async def connect(name: str) -> asyncio.Queue[str]:
        ...     queue: asyncio.Queue[str] = asyncio.Queue()
        ...     await queue.put(f"hello from {name}")
        ...     return queue
        >>> @warm
        ... def client(name: str) -> Generator[tuple[Any, Any], None, None]:
        ...     loop = asyncio.new_event_loop()
        ...     try:
        ...         yield loop, loop.run_until_complete(connect(name))
        ...     finally:
        ...         loop.close()
        >>> loop, queue = client("a")
        >>> loop.run_until_complete(queue.get())
        'hello from a'
        >>> client.clear()
        >>> loop.is_closed()
        True
    """
    options = {"maxsize": maxsize, "size": size, "key": key, "valid": valid}
    if loader is None:
        return WarmDecorator(**options)
    return Warm(loader, **options)  # type: ignore[arg-type]


def clear_all() -> None:
    """Give up the state of every warm function in this process, as `Warm.clear` does."""
    for table in list(_tables):
        table.clear()


def _total(sizes: list[float]) -> float:
    """Return the sum, which for fractions does not depend on their order."""
    is_whole = all(isinstance(size, int) for size in sizes)
    return sum(sizes) if is_whole else math.fsum(sizes)


def _is_kept(value: object) -> bool:
    """Return whether an object is state that this process keeps, or an item of such a tuple."""
    for table in list(_tables):
        for kept in [*table._values.values(), *table._retired]:
            state = kept.state
            if state is value:
                return True
            if type(state) is tuple and any(item is value for item in state):
                return True

    return False


def _check_loader(loader: Any) -> None:
    if not inspect.isfunction(loader):
        raise TypeError(
            f"@warm takes a function, not {ledger.describe(loader)}; "
            "a limit is written @warm(maxsize=2)"
        )

    name = f"{loader.__module__}.{loader.__qualname__}"
    if inspect.iscoroutinefunction(loader) or inspect.isasyncgenfunction(loader):
        raise TypeError(
            f"{name} is async, and workers call plain functions: make the loader plain, and "
            f"{_KEEP_THE_LOOP}"
        )

    name_in_scope = loader.__qualname__.rpartition("<locals>.")[2]
    if "." in name_in_scope:
        raise TypeError(
            f"{name} is defined in a class, and what an instance keeps is cold on a worker: "
            "move the loader to the top level of its module"
        )


def _check_state(name: str, state: object) -> None:
    """Refuse what can be awaited once only: it would serve one task, and fail in all others."""
    if isinstance(state, CoroutineType | AsyncGeneratorType):
        if isinstance(state, CoroutineType):
            state.close()  # or Python would complain that nobody has awaited it
        raise TypeError(
            f"{name} returned {ledger.describe(state)}, which serves one task only: "
            f"{_KEEP_THE_LOOP}"
        )


def _check_options(loader: Any, maxsize: object, size: object, key: object, valid: object) -> None:
    where = f"@warm on {loader.__module__}.{loader.__qualname__}"
    for option, value in (("size", size), ("key", key)):
        if value is not None and not callable(value):
            raise TypeError(
                f"{where}: {option} must be a function of the loader's arguments, not {value!r}"
            )
    if valid is not None and not callable(valid) and not isinstance(valid, Unchanged):
        raise TypeError(
            f"{where}: valid must be a function of the state and the loader's arguments, "
            f"not {valid!r}"
        )
    if isinstance(valid, Unchanged) and valid.argument not in inspect.signature(loader).parameters:
        raise TypeError(
            f"{where}: the loader has no argument {valid.argument!r}, which {valid!r} names"
        )

    if maxsize is None:
        return
    wanted = "a whole number" if size is None else "a number"
    is_number = isinstance(maxsize, int if size is None else int | float)
    if not is_number or isinstance(maxsize, bool):
        raise TypeError(f"{where}: maxsize must be {wanted} or None, not {maxsize!r}")
    if size is None and not maxsize >= 1:  # type: ignore[operator]
        raise ValueError(
            f"{where}: maxsize must be at least 1, not {maxsize}; to keep nothing, leave out @warm"
        )
    if not 0 < maxsize < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"{where}: maxsize must be a positive number in the units of size, not {maxsize}"
        )


def _replace(table: Warm[Any, Any]) -> None:
    """Tear down the table that this one replaces: nobody can reach it any more.

    A table is replaced when its module is reloaded.
    """
    name = f"{table.__module__}.{table.__qualname__}"
    if "<" in table.__qualname__:  # a function may make many of the same name
        return

    previous = _by_name.get(name)
    _by_name[name] = table
    if previous is not None and previous._loader is not table._loader:
        previous._clear("replaced")


def _uses() -> dict[str, int]:
    """Return the hits of all tables that modules have, by the names of their loaders."""
    hits: dict[str, int] = {}
    for reference in _by_name.valuerefs():
        table = reference()
        if table is not None:
            hits[table._name] = table.info().hits
    return hits


def values() -> Iterator[tuple[str, object]]:
    """Yield all states that are loaded in this process, each with the name of its loader."""
    for table in list(_tables):
        for value in list(table._values.values()):
            yield table._name, value.state


def forbid_loads(module: str, reason: str) -> None:
    """Have loads of a module's loaders raise an error in this process, and its forks.

    Args:
        module: The name of the module.
        reason: Why they would do harm here.
    """
    _forbidden[module] = reason


def _after_fork() -> None:
    """Renew the locks in a forked child, since their owners may not exist there.

    Values stay; `lifecycle` disowns them.
    """
    global _mutex
    _mutex = threading.RLock()
    for table in _tables:
        table._renew()


os.register_at_fork(after_in_child=_after_fork)
ledger.count_uses(_uses)
