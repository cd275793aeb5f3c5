"""What a template looks for before it is forked, where that needs no template."""

from __future__ import annotations

import random
import sys
import tempfile
from types import ModuleType
from typing import Any

import pytest

from gc_warm.hooks import fork_safety


class Proxy:
    """As web frameworks have them: it stands for nothing here."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("working outside of a request")


def test_generators_that_forks_would_repeat_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(sys.modules)
    names = tempfile._RandomNameSequence()  # type: ignore[attr-defined]
    next(names)
    module: Any = ModuleType("simulation")
    vars(module).update(
        {
            "own": random.Random(),
            "several": [random.Random()],
            "seeded_anew": random._inst,
            "names": names,
            "proxy": Proxy(),
        }
    )
    monkeypatch.setitem(sys.modules, "simulation", module)

    found = fork_safety.generators(before, {"<warm rng>": random.Random(), "<warm table>": {}})
    assert found == ["simulation.own", "simulation.several", "<warm rng>"]
