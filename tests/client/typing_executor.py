"""Types that mypy infers about executors; `tests.worker.test_typing` runs it on this file."""

from __future__ import annotations

from globus_compute_sdk import Executor
from typing_extensions import assert_type

from gc_warm import FunctionBook, MockExecutor, Report, WarmExecutor, WarmUp


def square(number: float) -> float:
    return number * number


def use(book: FunctionBook, executor: Executor) -> None:
    book.prime(executor)
    book.prime(MockExecutor())
    book.prime(WarmExecutor(executor))
    book.prime(WarmExecutor(MockExecutor()))


def warm_up(executor: WarmExecutor) -> None:
    executor.endpoint_id = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
    assert_type(executor.warm_up(square, 2.0, workers=4), WarmUp)
    assert_type(executor.report(), Report)
