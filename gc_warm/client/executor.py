"""WarmExecutor: an executor that knows which of its calls were warm.

In place of a function it submits a *carrier*: a few lines of source, registered once for each
function, that hold the function as the executor's serialization strategy wrote it. On the worker
the carrier has the function deserialized as the endpoint would have, and called by
`gc_warm.worker.calls.recorded`. So nothing depends on the strategy, the arguments travel as they
always do, and where the worker's environment has no gc_warm, the function runs without a record.

Of what comes back, nothing is looked at but the envelope: a result may be lazy, and would be
fetched if it were asked for its class.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import json
import keyword
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

import globus_sdk
from globus_compute_sdk import Executor
from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture
from globus_compute_sdk.serialize import ComputeSerializer

from gc_warm.client.links import refuse_foreign_links
from gc_warm.client.report import Report
from gc_warm.client.warm_up import WarmUp, WarmUpRun
from gc_warm.client.warmth import Call, Warmth, is_readable, parse_record, unknown, was_lost
from gc_warm.exceptions import StaleModuleError
from gc_warm.worker import hints
from gc_warm.worker.calls import CODE, RECORD, RESULT

log = logging.getLogger("gc_warm")

P = ParamSpec("P")
T = TypeVar("T")

_CALLS_KEPT = 10_000  # calls in memory; the file of records has all
_PIDS_KEPT = 100  # processes that were in a worker's place before
_REMEMBERED = 10_000  # loads of processes that have ended, in each worker's place

_BY_ID = "submitted by id"
_CODE_ONLY = "result_serializers has none for data, as which a record travels"

_CARRIER = """\
def {name}(*args, **kwargs):
    from globus_compute_sdk.serialize import ComputeSerializer
    serializer = ComputeSerializer()
    function = {function!r}
    try:
        from gc_warm.worker.calls import recorded
    except ImportError:
        return serializer.deserialize(function)(*args, **kwargs)
    return recorded(serializer, function, args, kwargs)
"""
_VISITOR = """\
def {name}(token, seconds, until, args):
    from globus_compute_sdk.serialize import ComputeSerializer
    from gc_warm.worker.calls import visit
    return visit(token, seconds, until, lambda: ComputeSerializer().deserialize({function!r}), args)
"""


class WarmFuture(ComputeFuture):
    """The future of a call: one of the SDK's that also knows whether the call was warm."""

    def __init__(self, inner: ComputeFuture) -> None:
        concurrent.futures.Future.__init__(self)
        self._inner = inner
        self._metadata = inner._metadata
        self._warmth = unknown("has not ended")

    @property
    def warmth(self) -> Warmth:
        """Whether the call was warm, with the evidence; "unknown" until the call has ended."""
        return self._warmth

    @property
    def task_id(self) -> str | None:
        """Id of the task, once the service has accepted it."""
        return self._inner.task_id

    @task_id.setter
    def task_id(self, task_id: str | None) -> None:
        self._inner.task_id = task_id

    def cancel(self) -> bool:
        """Cancel the call, as the SDK's future does: only one that has not been sent."""
        return self._inner.cancel()

    def running(self) -> bool:
        """Return whether it is too late to cancel the call."""
        return self._inner.running()

    def _end(self, warmth: Warmth, result: Any, error: BaseException | None) -> None:
        self._warmth = warmth
        if self._inner.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)


class _Forwarded:
    """An attribute of the executor inside a `WarmExecutor`, to be read and set there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: WarmExecutor | None, owner: type) -> Any:
        return self if instance is None else getattr(instance.executor, self._name)

    def __set__(self, instance: WarmExecutor, value: Any) -> None:
        setattr(instance.executor, self._name, value)


class WarmExecutor(Executor):
    """An executor around another, whose futures also have ``.warmth``.

    It is a `globus_compute_sdk.Executor` to all who check, but has neither threads nor a connection
    of its own. Results and errors are those of the executor inside. So are all attributes and
    methods of the SDK's executor (``endpoint_id``, ``user_endpoint_config``, ``reload_tasks()``,
    ...), to be read, set and called here as there; any other attribute that is set here stays here.

    Only calls that are submitted as a function are recorded. Functions that are submitted by their
    id, or that were registered explicitly, are sent as they are.

    It lives as long as the executor inside. A ``with`` block ends both.

    Args:
        executor: A `globus_compute_sdk.Executor`, or a stand-in such as `gc_warm.MockExecutor`.
        stale: What to do when a worker holds another version of a module than this machine has, or
            than the file that the worker imported has by now: "warn" logs it, once for each worker,
            and ``.warmth.stale`` names the modules; "error" ends the future with a
            `StaleModuleError`. The modules compared are those of the ``@warm`` loaders that a call
            used, and that of the function itself where it is sent by name.
        records: File to which a line is appended for each call, for ``gc-warm report``. One that is
            made here is for its owner only. A link that another user has put where everybody can
            write is not followed.
        record_keys: Have the keys of loads in that file, as text of at most 120 characters. They
            are the arguments of loaders, and the command lines of programs.

    Attributes:
        executor: The executor inside.

    Raises:
        ValueError: *stale* is neither "warn" nor "error".
        OSError: The file cannot be opened; the executor inside is then ended.

    Example:
        >>> from gc_warm import MockExecutor, WarmExecutor
        >>> from gc_warm.functions import cluster_energy
        >>> with WarmExecutor(MockExecutor(workers=1)) as executor:
        ...     futures = [executor.submit(cluster_energy) for _ in range(2)]
        ...     [future.result() is not None and str(future.warmth) for future in futures]
        ['cold (first on this worker)', 'warm']
    """

    workers = _Forwarded("workers")  # those of a `gc_warm.MockExecutor`

    def __init__(
        self,
        executor: Executor,
        *,
        stale: Literal["warn", "error"] = "warn",
        records: str | os.PathLike[str] | None = None,
        record_keys: bool = True,
    ) -> None:
        if stale not in ("warn", "error"):
            raise ValueError(f"stale={stale!r} is neither 'warn' nor 'error'")
        self.executor = executor
        self._stale = stale
        self._record_keys = record_keys
        # a signal's handler may submit, too, in the thread that it interrupts
        self._lock = threading.RLock()
        self._registering = threading.RLock()
        self._ids: dict[tuple[str, Any], str] = {}  # of carriers and visitors, by function
        self._open: set[WarmFuture] = set()
        self._calls: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self._lives: dict[tuple[Any, ...], _Life] = {}  # by the worker's place
        self._warned: set[tuple[Any, ...]] = set()  # of stale modules, by worker
        self._ended = False
        try:
            self._file = None if records is None else _append_to(records)
        except (OSError, TypeError):
            executor.shutdown(wait=False)
            raise

    def submit(  # type: ignore[override]
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> WarmFuture:
        """Submit a function, as the SDK's executor does.

        Args:
            fn: The function to run on the endpoint.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            A future that also has ``.warmth``.
        """
        name = getattr(fn, "__name__", type(fn).__name__)
        if fn in getattr(self.executor, "_function_registry", {}):
            return self._watch(self._submit_plain(fn, args, kwargs), name, _BY_ID)
        if not self._can_carry_records():
            return self._watch(self._submit_plain(fn, args, kwargs), name, _CODE_ONLY)

        function_id = self._id_of(_CARRIER, fn)
        return self._watch(self._submit_by_id(function_id, args, kwargs), name)

    def submit_to_registered_function(
        self,
        function_id: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> WarmFuture:
        """Submit a function by its id, as the SDK's executor does.

        Nothing is known of such a call but that it ended.

        Args:
            function_id: Id of the function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            A future whose ``.warmth`` stays unknown.
        """
        future = self._submit_by_id(function_id, args, kwargs)
        return self._watch(future, str(function_id), _BY_ID)

    def near(self, hint: str) -> WarmExecutor:
        """Return a view of this executor whose calls go where earlier ones with that hint went.

        Where the endpoint has the option ``warm_first``, a call goes to a worker that still holds
        all state which the last call with the same hint has used there. A hint is a name of your
        own for what calls need, such as that of a model; worker and endpoint know nothing of it.
        It changes nothing that the function sees, and nothing at all on other endpoints.

        Args:
            hint: The name.

        Returns:
            An executor that shares all with this one, so that to close one is to close both.

        Raises:
            TypeError: The hint is no text.

        Example:
            >>> from gc_warm import MockExecutor, WarmExecutor
            >>> from gc_warm.functions import cluster_energy
            >>> with WarmExecutor(MockExecutor(workers=2)) as executor:
            ...     round(executor.near("clusters").submit(cluster_energy).result(), 3)
            -44.327
        """
        return _Near(self, hint)

    def reload_tasks(self, *args: Any, **kwargs: Any) -> list[WarmFuture]:
        """Return futures of an earlier executor's tasks, as the SDK's executor does.

        Tasks of an earlier `WarmExecutor` have their records.

        Args:
            *args: Arguments of the SDK's method.
            **kwargs: Its keyword arguments.
        """
        reloaded = self.executor.reload_tasks(*args, **kwargs)
        return [self._watch(future, "reloaded") for future in reloaded]

    def map(self, fn: Callable[..., T], *iterables: Any, **options: Any) -> Any:
        """Raise `NotImplementedError`, as the SDK's executor does."""
        return self.executor.map(fn, *iterables, **options)

    def warm_up(
        self, function: Callable[..., Any], /, *args: Any, workers: int, timeout: float = 600.0
    ) -> WarmUp:
        """Run a function on every worker, once on each.

        Tasks do not choose their workers. So as many tasks as there are workers are sent, and each
        keeps its worker busy for a moment, all at the same time. If a worker was occupied by
        another task, they are sent again and take longer. A terminal shows the progress.

        Args:
            function: The function to run, such as one that loads, or calls a loader.
            *args: Its arguments.
            workers: Number of workers in all: workers of a node, times nodes of a job, times jobs.
            timeout: Seconds after which it returns with the workers reached so far.

        Returns:
            Which workers were reached, what they loaded, and which are missing.

        Raises:
            ValueError: *workers* is below 1.
            StaleModuleError: A worker holds another version of a module, and *stale* is "error".
            TaskExecutionFailed: The workers have no gc_warm.
        """
        if workers < 1:
            raise ValueError(f"workers={workers}: there has to be at least one to warm up")

        function_id = self._id_of(_VISITOR, function)
        until = time.time() + timeout

        def send(token: str, seconds: float) -> ComputeFuture:
            future: ComputeFuture = self.executor.submit_to_registered_function(
                function_id, (token, seconds, until, args)
            )
            return future

        def has_ended() -> bool:
            return getattr(self.executor, "_stopped", False)

        def keep(future: Any, submitted: float, warmth: Warmth) -> None:
            name = f"{function.__name__} (warm-up)"
            self._keep(Call(name, future.task_id, submitted, time.time(), warmth))

        result = WarmUpRun(send, self._parse_record, keep, has_ended, workers, timeout).run()

        for visit in result.reached:
            error = self._complaint(visit.warmth)
            if error is not None:
                raise error
        return result

    def adopt_carrier(self, function: Callable[..., Any], function_id: str) -> None:
        """Use what has been registered for a function, as `gc_warm.FunctionBook.prime` does.

        Args:
            function: The function.
            function_id: Id of what `carrier_of` returns for it.
        """
        self._ids[_CARRIER, function] = function_id

    def carrier_id(self, function: Callable[..., Any]) -> str | None:
        """Return the id of what is sent for a function; None if it has not been registered.

        Args:
            function: The function.
        """
        return self._ids.get((_CARRIER, function))

    def report(self) -> Report:
        """Return the report on the latest 10,000 calls that have ended, warm-ups included.

        It says how many calls were warm so far, where, and the time that cold calls cost.
        """
        return Report.of(self._calls.copy())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the executor inside, as its own method does. Idempotent.

        Args:
            wait: Wait until all futures have ended.
            cancel_futures: Cancel the calls that have not been sent.
        """
        self.executor.shutdown(wait=wait, cancel_futures=cancel_futures)
        self._finish(wait)

    def __enter__(self) -> WarmExecutor:
        self.executor.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        try:
            return self.executor.__exit__(kind, error, trace)
        finally:
            self._finish(wait=kind is None or issubclass(kind, Exception))

    def __repr__(self) -> str:
        return f"WarmExecutor({self.executor!r})"

    def _submit_by_id(self, function_id: str, args: Any, kwargs: Any) -> ComputeFuture:
        future: ComputeFuture = self.executor.submit_to_registered_function(
            function_id, args, kwargs
        )
        return future

    def _submit_plain(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> ComputeFuture:
        """Submit a function as it is, without a carrier."""
        future: ComputeFuture = self.executor.submit(fn, *args, **kwargs)
        return future

    def _can_carry_records(self) -> bool:
        """Return whether results may travel as data; functions alone would be refused as such."""
        # what the SDK goes by, too: an iterable that was given to it may be at its end
        strategies = self.executor._validated_result_serializers
        return not strategies or any(not strategy.type_.for_code for strategy in strategies)

    def _id_of(self, template: str, function: Callable[..., Any]) -> str:
        """Return the id of a function's carrier, which is registered when it is first needed."""
        if (template, function) not in self._ids:
            with self._registering:
                # another thread may have registered it meanwhile
                if (template, function) not in self._ids:
                    source, name = _source_of(template, function, self.executor.serializer)
                    function_id = self.executor.client.register_source_code(source, name)
                    self._ids[template, function] = function_id

        return self._ids[template, function]

    def _watch(self, inner: ComputeFuture, name: str, why_unknown: str | None = None) -> WarmFuture:
        """Return a future of the call, which ends when *inner* does.

        Args:
            inner: The future of the executor inside.
            name: Name of the function, for the report.
            why_unknown: Why nothing can be known of the call, if that is so.
        """
        outer = WarmFuture(inner)
        submitted = time.time()
        with self._lock:
            self._open.add(outer)

        def end(_: Any) -> None:
            warmth, result, error = self._read(inner, why_unknown)
            try:
                self._keep(Call(name, inner.task_id, submitted, time.time(), warmth))
            except Exception:  # whatever it is, somebody waits for the result
                log.exception("a call could not be recorded")
            try:
                outer._end(warmth, result, error)
            finally:  # a callback of the user's may raise SystemExit
                with self._lock:
                    self._open.discard(outer)
                self._close_file()

        inner.add_done_callback(end)
        return outer

    def _read(
        self, inner: ComputeFuture, why_unknown: str | None
    ) -> tuple[Warmth, Any, BaseException | None]:
        """Return the warmth of a call that has ended, its result, and its error."""
        if inner.cancelled():
            return unknown("cancelled"), None, None
        error = inner.exception()
        if error is not None:
            if why_unknown is None:
                _advise_on_carriers(error)
            return unknown("lost" if was_lost(error) else "failed"), None, error

        result = inner.result()
        if why_unknown in (_BY_ID, _CODE_ONLY):
            return unknown(why_unknown), result, None
        if not _is_envelope(result):
            return unknown(why_unknown or "came without a record"), result, None

        warmth, complaint = self._read_record(result[RECORD])
        value, malformed = self._value_in(result)
        return warmth, value, malformed or complaint

    def _value_in(self, envelope: dict[str, Any]) -> tuple[Any, Exception | None]:
        """Return the value in an envelope, or the error that the SDK has if it cannot be had."""
        if RESULT in envelope:
            return envelope[RESULT], None

        code = envelope[CODE]
        try:
            return self.executor.client.fx_serializer.deserialize(code), None
        except Exception as cause:
            error = Exception(f"Malformed or unexpected data structure. Data: {code}")
            error.__cause__ = cause
            return None, error

    def _read_record(self, sent: Any) -> tuple[Warmth, Exception | None]:
        """Return the warmth that a record shows, and what is to be raised because of it."""
        try:
            record = json.loads(sent) if isinstance(sent, str) else sent  # version 1 is no text
            if not is_readable(record):
                return unknown(f"came with a record of version {record['version']}"), None
            warmth = self._parse_record(record)
            return warmth, self._complaint(warmth)
        except Exception:  # whatever it is, there is a result, and somebody who waits for it
            log.warning(
                "a record cannot be read; is the worker's gc_warm of another version?",
                exc_info=True,
            )
            return unknown("came with a record that cannot be read"), None

    def _parse_record(self, record: dict[str, Any]) -> Warmth:
        """Return the warmth that a record shows, in the light of earlier records of its worker."""
        worker = record["worker"]
        loads = {(load["name"], load["key"]) for load in record["loads"]}
        if worker["rank"] is None:
            return parse_record(record)

        place = (worker["host"], worker["pool"], worker["rank"])
        with self._lock:
            life = self._lives.setdefault(place, _Life())
            return parse_record(record, life.died_with_others(worker["pid"], loads))

    def _complaint(self, warmth: Warmth) -> Exception | None:
        """Return the error of a call on a stale worker, or log it if *stale* is "warn"."""
        if not warmth.stale:
            return None

        text = (
            f"worker {warmth.worker} holds another version of {', '.join(warmth.stale)} "
            "than there is now: for workers that import it anew, restart the endpoint (where it is "
            "a MockExecutor, make another), or change any option of user_endpoint_config"
        )
        if self._stale == "error":
            return StaleModuleError(text)

        stale_worker = (warmth.worker, warmth.stale)
        with self._lock:
            is_new = stale_worker not in self._warned
            self._warned.add(stale_worker)
        if is_new:
            log.warning(text)
        return None

    def _keep(self, call: Call) -> None:
        """Keep a call for the report, and write it to the file of records."""
        self._calls.append(call)

        with self._lock:
            if self._file is None:
                return
            try:
                plain = call.plain(keys=self._record_keys)
                line = json.dumps(plain).encode() + b"\n"
                if self._file.write(line) != len(line):
                    raise BlockingIOError("it takes no more")
            except OSError as error:  # a full disk or pipe: results matter more
                log.error("no more records are written to %s: %s", self._file.name, error)
                self._file.close()
                self._file = None

    def _finish(self, wait: bool) -> None:
        """Close the file of records when the executor inside has ended.

        The futures of the executor inside end before their callbacks have run; with *wait*, these
        are waited for.
        """
        with self._lock:
            # the SDK leaves some of those that it cannot send; and one that is done may be that
            # in whose callback this is called
            left = [outer for outer in self._open if outer._inner.done() and not outer.done()]
        if wait:
            concurrent.futures.wait(left)

        self._ended = True
        self._close_file()

    def _close_file(self) -> None:
        """Close the file of records if the executor has ended and no call is to be written."""
        with self._lock:
            if not self._ended or self._file is None:
                return
            if any(outer._inner.done() for outer in self._open):
                return

            self._file.close()
            self._file = None


class _Near(WarmExecutor):
    """A view of a `WarmExecutor`, whose attributes are that one's; the hint is its own."""

    __slots__ = ("_hint",)

    def __init__(self, base: WarmExecutor, hint: str) -> None:
        if not isinstance(hint, str):
            raise TypeError(f"near({hint!r}): a hint is text, such as the name of a model")
        object.__setattr__(self, "__dict__", vars(base))
        self._hint = hints.fingerprint(hint)

    def _submit_by_id(self, function_id: str, args: Any, kwargs: Any) -> ComputeFuture:
        _teach_hints(self.executor.serializer)
        hinted: Any = args
        if args is None or isinstance(args, tuple | list):  # else the SDK says what is wrong
            hinted = _Hinted(args or ())
            hinted.hint = self._hint
        return super()._submit_by_id(function_id, hinted, kwargs)

    def _submit_plain(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> ComputeFuture:
        registry: dict[Any, str] = self.executor._function_registry
        if fn not in registry:
            self.executor.register_function(fn)
        return self._submit_by_id(registry[fn], args, kwargs)


class _Hinted(tuple[Any, ...]):
    """Arguments with a hint; to all but a serializer that knows of hints, the arguments alone."""

    hint: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)


def _teach_hints(serializer: Any) -> None:
    """Have a serializer write the hints of arguments that have one.

    The SDK serializes arguments when it makes up a batch, and there is no other place between that
    and the request.

    Args:
        serializer: The executor's, which may be one of a user's own class.
    """
    stock = serializer.serialize
    if getattr(stock, "writes_hints", False):
        return

    @functools.wraps(stock)
    def serialize(data: Any) -> str:
        if type(data) is not _Hinted:
            return str(stock(data))
        return hints.write(stock(tuple(data)), data.hint)

    serialize.writes_hints = True  # type: ignore[attr-defined]
    serializer.serialize = serialize


# What the SDK's executor has is the executor's inside: methods and properties, and what it sets.
_SET_BY_THE_SDK = (
    "_function_registry",
    "_stopped",
    "_validated_result_serializers",
    "api_burst_limit",
    "api_burst_window_s",
    "batch_size",
    "client",
    "label",
    "serializer",
    "task_count_submitted",
)
for _name in (*vars(Executor), *_SET_BY_THE_SDK):
    if not _name.startswith("__") and _name not in vars(WarmExecutor):
        setattr(WarmExecutor, _name, _Forwarded(_name))


class _Life:
    """The loads in a worker's place: by the process that is there now, and by those before it."""

    def __init__(self) -> None:
        self._pid = 0
        self._left: deque[int] = deque(maxlen=_PIDS_KEPT)
        self._own: set[tuple[str, str]] = set()
        self._died: set[tuple[str, str]] = set()

    def died_with_others(self, pid: int, loads: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those of *loads* that earlier processes in this place had made, too.

        Args:
            pid: The process that makes the loads.
            loads: Names and keys of its loads.
        """
        if pid in self._left:  # a record of an earlier process that was long on its way
            return set()

        if pid != self._pid:
            self._left.append(self._pid)
            if len(self._died) > _REMEMBERED:
                self._died = self._own
            else:
                self._died = self._died | self._own
            self._pid = pid
            self._own = set()

        self._own |= loads
        return self._died & loads


def _append_to(records: str | os.PathLike[str]) -> io.FileIO:
    """Open a file of records for appending, and end a line that another client left incomplete."""
    refuse_foreign_links(os.fsdecode(records))
    file = io.FileIO(os.fspath(records), "a+", opener=_private)
    if file.seekable() and file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _private(path: str, flags: int) -> int:
    """Open a file; one that is made by it is for its owner only.

    It is one that nobody has to wait for: a pipe whose reader is slow would hold up all results.
    """
    return os.open(path, flags | os.O_NONBLOCK, 0o600)


def _source_of(
    template: str, function: Callable[..., Any], serializer: ComputeSerializer
) -> tuple[str, str]:
    """Return the source of what is sent in place of a function, and the name that it defines."""
    name = function.__name__
    if not name.isidentifier() or keyword.iskeyword(name):
        name = "function"
    return template.format(name=name, function=serializer.serialize(function)), name


def carrier_of(function: Callable[..., Any], serializer: ComputeSerializer) -> tuple[str, str]:
    """Return the source that a `WarmExecutor` registers for a function, and the name it defines.

    Args:
        function: The function.
        serializer: The serializer that writes the function.
    """
    return _source_of(_CARRIER, function, serializer)


def _is_envelope(result: Any) -> bool:
    """Return whether a result is an envelope, without a look at anything that might be lazy."""
    if type(result) is not dict or any(type(key) is not str for key in result):
        return False
    return result.keys() in ({RECORD, RESULT}, {RECORD, CODE})


def _advise_on_carriers(error: BaseException) -> None:
    """Add a sentence to the error of an endpoint that takes only functions that it was told of."""
    if not isinstance(error, globus_sdk.GlobusAPIError) or error.code != "FUNCTION_NOT_PERMITTED":
        return
    if _ALLOW not in error.args:  # one error may be that of many tasks
        error.args = (*error.args, _ALLOW)


_ALLOW = (
    "a WarmExecutor sends functions that have ids of their own: register yours with "
    "`gc-warm register --recorded`, have the ids in that book allowed, and prime with it"
)
