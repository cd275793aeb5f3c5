"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import gc_warm
from tests.test_renamed import FORMER_NAMES

MODULES = [
    module.name
    for module in pkgutil.walk_packages(gc_warm.__path__, "gc_warm.")
    if not module.name.endswith("_main") and module.name not in FORMER_NAMES
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert "gc_warm.worker.state" in MODULES
    assert doctest.testmod(importlib.import_module("gc_warm.worker.state")).attempted >= 8
