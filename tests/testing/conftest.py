"""The backends, started once for all tests that only need a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gc_warm import MockClient, MockExecutor
from tests.testing.backends import BACKENDS, workers


@pytest.fixture(scope="session", params=BACKENDS)
def client(request: pytest.FixtureRequest) -> Iterator[MockClient]:
    """One worker of each backend, up and running.

    Tests share its state: let them ask for differences.
    """
    with MockClient(**workers(request.param)) as client:
        with MockExecutor(client=client) as executor:
            executor.submit(len, ()).result()
        yield client


@pytest.fixture
def executor(client: MockClient) -> Iterator[MockExecutor]:
    """A fresh executor on that worker."""
    with MockExecutor(client=client) as executor:
        yield executor
