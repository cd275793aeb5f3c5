"""The pytest plugin, which pytest loads by itself where gc_warm is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gc_warm.local.cloud import LocalCloud


@pytest.fixture
def local_cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    """A `gc_warm.local.cloud.LocalCloud` for one test.

    The environment is set such that the SDK's own classes talk to it. For several tests at once,
    use the class itself: it is a context manager.

    Example:
        >>> from globus_compute_sdk import Executor
        >>> from gc_warm.functions import count
        >>> from gc_warm.local.daemon import EndpointDaemon
        >>> def test_count(local_cloud):
        ...     with EndpointDaemon(local_cloud, "local") as endpoint:
        ...         with Executor(endpoint.endpoint_id) as executor:
        ...             assert executor.submit(count).result() == 1
    """
    from globus_compute_sdk.sdk import executor

    # here, so that a pytest which does not need it does not wait for its imports
    from gc_warm.local.cloud import LocalCloud

    with LocalCloud() as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)

        monkeypatch.setattr(executor.Executor, "_default_task_group_id", None)
        before = set(executor._RESULT_WATCHERS)
        yield cloud

        # the watchers live as long as the process, and would miss the service
        for group in set(executor._RESULT_WATCHERS) - before:
            executor._RESULT_WATCHERS[group].shutdown()


@pytest.fixture
def clear_warm_state() -> Iterator[None]:
    """Clear the warm state of this process before and after a test.

    State that a test leases is torn down at the end of its last lease. Workers, such as those of a
    `gc_warm.testing.mock.MockExecutor`, keep theirs.

    Example:
        >>> def test_table_is_loaded_once(clear_warm_state):
        ...     table(10)
        ...     table(10)
        ...     assert table.info().size == 1
    """
    _clear_warm_state()
    yield
    _clear_warm_state()


def _clear_warm_state() -> None:
    # a process that has not imported it has no such state, and need not wait for the import
    state = sys.modules.get("gc_warm.worker.state")
    if state is not None:
        state.clear_all()
