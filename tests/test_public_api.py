"""The names that `gc_warm` exports: all of them documented, and nothing else in sight."""

from __future__ import annotations

import inspect

import pytest

import gc_warm
from gc_warm import exceptions


def test_dir_shows_public_names_only() -> None:
    assert dir(gc_warm) == sorted([*gc_warm.__all__, "__version__"])
    assert all(not name.startswith("_") for name in gc_warm.__all__)


@pytest.mark.parametrize("name", gc_warm.__all__)
def test_name_is_documented(name: str) -> None:
    documented = getattr(gc_warm, name)
    assert inspect.getdoc(documented)


def test_held_and_annotated_types_are_exported() -> None:
    held = {"EndpointDaemon", "Info", "LocalCloud", "Pipe", "Report", "Warm", "WarmUp", "Warmth"}
    assert held <= {*gc_warm.__all__}


@pytest.mark.parametrize("name", exceptions.__all__)
def test_exceptions_have_two_homes(name: str) -> None:
    assert getattr(exceptions, name) is getattr(gc_warm, name)
    assert getattr(exceptions, name).__module__ == "gc_warm"


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'gc_warm' has no attribute 'warn'"):
        gc_warm.warn  # noqa: B018
