"""Fixtures that tests of warm state share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gc_warm.worker import memory


@pytest.fixture(scope="module")
def cheap_evictions() -> Iterator[None]:
    """Let each of thousands of evictions look at new objects only.

    Nothing is thawed later: the next test would look through all that was imported. Of the large
    heap of a test session, the C library would have much to give back, time after time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_trim", lambda: None)
        gc.collect()
        gc.freeze()
        yield
