"""WarmExecutor: an executor that knows which of its calls were warm.

In place of a function it submits a *carrier*: a few lines of source, registered once for each
function, that hold the function as the executor's serialization strategy wrote it. On the worker
the carrier deserializes the function as the endpoint would have, and runs it under
`gc_warm.worker.calls.Recording`. So nothing depends on the strategy, the arguments travel as they
always do, and where the worker's environment has no gc_warm, the function runs without a record.
"""

from __future__ import annotations

import concurrent.futures
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

from globus_compute_sdk import Executor
from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

from gc_warm.client.report import Report
from gc_warm.client.warm_up import WarmUp, WarmUpRun
from gc_warm.client.warmth import Call, Warmth, parse_record, unknown, was_lost
from gc_warm.exceptions import StaleModuleError
from gc_warm.worker.calls import RECORD, RESULT

log = logging.getLogger("gc_warm")

P = ParamSpec("P")
T = TypeVar("T")

_CALLS_KEPT = 100_000  # calls in memory; the file of records has all
_PIDS_KEPT = 100  # processes that were in a worker's place before
_REMEMBERED = 10_000  # loads of processes that have ended, in each worker's place

_BY_ID = "submitted by id"

_CARRIER = """\
def {name}(*args, **kwargs):
    from globus_compute_sdk.serialize import ComputeSerializer
    function = {function!r}
    try:
        from gc_warm.worker.calls import Recording
    except ImportError:
        return ComputeSerializer().deserialize(function)(*args, **kwargs)
    recording = Recording()
    function = ComputeSerializer().deserialize(function)
    with recording.of(function):
        result = function(*args, **kwargs)
    return recording.envelope(result)
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

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: WarmExecutor | None, owner: type) -> Any:
        return self if instance is None else getattr(instance.executor, self._name)

    def __set__(self, instance: WarmExecutor, value: Any) -> None:
        setattr(instance.executor, self._name, value)


class WarmExecutor(concurrent.futures.Executor):
    """An executor around another, whose futures also have ``.warmth``.

    Results and errors are those of the executor inside. So are the attributes and methods that the
    SDK documents (``endpoint_id``, ``user_endpoint_config``, ``reload_tasks()``, ...), to be read,
    set and called here as there; any other attribute that is set here stays here.

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
        records: File to which a line is appended for each call, for ``gc-warm report``.

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

    amqp_port = _Forwarded()
    api_burst_limit = _Forwarded()
    api_burst_window_s = _Forwarded()
    batch_size = _Forwarded()
    client = _Forwarded()
    endpoint_id = _Forwarded()
    get_worker_hardware_details = _Forwarded()
    label = _Forwarded()
    register_function = _Forwarded()
    register_source_code = _Forwarded()
    resource_specification = _Forwarded()
    result_serializers = _Forwarded()
    serializer = _Forwarded()
    task_count_submitted = _Forwarded()
    task_group_id = _Forwarded()
    user_endpoint_config = _Forwarded()
    workers = _Forwarded()  # those of a `gc_warm.MockExecutor`

    def __init__(
        self,
        executor: Executor,
        *,
        stale: Literal["warn", "error"] = "warn",
        records: str | os.PathLike[str] | None = None,
    ) -> None:
        if stale not in ("warn", "error"):
            raise ValueError(f"stale={stale!r} is neither 'warn' nor 'error'")
        self.executor = executor
        self._stale = stale
        self._lock = threading.Lock()
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

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> WarmFuture:
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
            return self._watch(self.executor.submit(fn, *args, **kwargs), name, _BY_ID)

        function_id = self._id_of(_CARRIER, fn)
        future = self.executor.submit_to_registered_function(function_id, args, kwargs)
        return self._watch(future, name)

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
        future = self.executor.submit_to_registered_function(function_id, args, kwargs)
        return self._watch(future, str(function_id), _BY_ID)

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

        result = WarmUpRun(send, self._parse_record, has_ended, workers, timeout).run()

        for visit in result.reached:
            error = self._complaint(visit.warmth)
            if error is not None:
                raise error
        return result

    def report(self) -> Report:
        """Return the report on the latest 100,000 calls that have ended.

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

    def _id_of(self, template: str, function: Callable[..., Any]) -> str:
        """Return the id of a function's carrier, which is registered when it is first needed."""
        if (template, function) not in self._ids:
            name = function.__name__
            if not name.isidentifier() or keyword.iskeyword(name):
                name = "function"

            serialized = self.executor.serializer.serialize(function)
            source = template.format(name=name, function=serialized)
            self._ids[template, function] = self.executor.client.register_source_code(source, name)

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
            self._keep(Call(name, inner.task_id, submitted, time.time(), warmth))
            outer._end(warmth, result, error)

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
            return unknown("lost" if was_lost(error) else "failed"), None, error

        result = inner.result()
        if why_unknown == _BY_ID:
            return unknown(why_unknown), result, None
        if not isinstance(result, dict) or result.keys() != {RECORD, RESULT}:
            return unknown(why_unknown or "came without a record"), result, None

        try:
            warmth = self._parse_record(result[RECORD])
        except Exception:  # whatever it is, there is a result, and somebody who waits for it
            log.warning(
                "a record cannot be read; is the worker's gc_warm of another version?",
                exc_info=True,
            )
            return unknown("came with a record of another version"), result[RESULT], None
        return warmth, result[RESULT], self._complaint(warmth)

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
            "than there is now: restart the endpoint, or change any option of "
            "user_endpoint_config, for workers that import it anew"
        )
        if self._stale == "error":
            return StaleModuleError(text)

        stale_worker = (warmth.worker, warmth.stale)
        if stale_worker not in self._warned:
            self._warned.add(stale_worker)
            log.warning(text)
        return None

    def _keep(self, call: Call) -> None:
        """Keep a call for the report, and write it to the file of records."""
        self._calls.append(call)

        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(json.dumps(call.plain()).encode() + b"\n")
            except OSError as error:  # a full disk: results matter more
                log.error("no more records are written to %s: %s", self._file.name, error)
                self._file.close()
                self._file = None

    def _finish(self, wait: bool) -> None:
        """Close the file of records when the executor inside has ended.

        The futures of the executor inside end before their callbacks have run; with *wait*, these
        are waited for.
        """
        with self._lock:
            # the SDK leaves some of those that it cannot send
            left = [outer for outer in self._open if outer._inner.done()]
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
    file = io.FileIO(os.fspath(records), "a+")
    if file.seekable() and file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file
