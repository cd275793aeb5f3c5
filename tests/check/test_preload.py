"""What `check` says of a preload, and what the hook makes of the same."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from gc_warm.check import preload
from gc_warm.hooks import boot
from gc_warm.worker import ledger

SOURCE = """
import asyncio, contextlib, functools
from functools import cache, lru_cache, partial
from typing import Callable
import gc_warm
from gc_warm import warm
from .other import passed_on, needing as renamed, absent_there
from . import other

VALUE = 3
LIST = [VALUE]
declared: Callable
named_by_text: "Callable" = print

def plain(): pass
def defaults(path="a", *rest, unit="eV", **more): pass
def needs(path): pass
def needs_last(path, unit="eV", *, kind): pass
def generator(): yield
async def coroutine(): pass
def makes_generators():
    def inner(): yield
    return [each for each in inner()]

@warm
def loader(): return 1
@warm(maxsize=2)
def loader_with_default(path="a"): return path
@gc_warm.warm
def loader_needs(path): return path
@warm
def connection():
    yield 1
@lru_cache(maxsize=None)
def cached_needs(path): return path
@cache
def cached(): return 1

def gives_path(function):
    return functools.partial(function, "a")
@gives_path
def decorated(path): pass
@contextlib.contextmanager
def context(path="a"): yield

alias = plain
alias_needs = needs
alias_elsewhere = other.needing
made = warm(plain)
made_needs = warm(needs)
bound = partial(needs, "a")
either = lambda: None
lambda_needs = lambda path: path

class Model:
    def load(self): pass
class Needs:
    def __init__(self, path): pass
class Child(Needs):
    def __init__(self): pass
class Meta(type):
    def __call__(cls): return 1
class WithMeta(metaclass=Meta):
    def __init__(self, path): pass

try:
    from nowhere_at_all import twice
except ImportError:
    def twice(): pass
if VALUE:
    def conditional(path): pass

def both(): pass
def imports_another():
    from .other import needing as both
def make():
    global made_global
    made_global = plain
make()
"""

OTHER = """
def passed_on(path=None): pass
def needing(path): pass
absent_there = print
"""

SAID = {
    "needs": "needs path (",
    "needs_last": "needs path, kind (",
    "loader_needs": "needs path (",
    "cached_needs": "needs path (",
    "alias_needs": "needs path (",
    "alias_elsewhere": "needs path (",
    "made_needs": "needs path (",
    "renamed": "needs path (",
    "other.needing": "needs path (",
    "lambda_needs": "needs path (",
    "conditional": "needs path (",
    "Needs": "needs path (",
    "VALUE": "cannot be called: it is 3 (",
    "LIST": "cannot be called: it is [VALUE] (",
    "generator": "is a generator (",
    "coroutine": "is an async function (",
    "loadr": "has no loadr; did you mean 'loader'?",
    "absent": "is not there",
}
SILENT_AND_FAILS = ["Model.load", "declared", "other.absent"]
WORKS = [
    "plain",
    "defaults",
    "makes_generators",
    "loader",
    "loader_with_default",
    "connection",
    "cached",
    "decorated",
    "context",
    "alias",
    "made",
    "bound",
    "either",
    "Model",
    "Child",
    "WithMeta",
    "twice",
    "made_global",
    "both",
    "passed_on",
    "named_by_text",
    "other.passed_on",
    "absent_there",
    "other",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    package = folder / "preload_me"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(textwrap.dedent(SOURCE))
    (package / "other.py").write_text(OTHER)
    (folder / "unseen.py").write_text("globals()['load'] = print\n")
    (folder / "starred.py").write_text("from preload_me.other import *\n")
    (folder / "lazy.py").write_text("def __getattr__(name): return print\n")
    (folder / "broken.py").write_text("def load(:\n")
    return folder


def said_of(spec: str, folder: Path) -> list[str]:
    return [each.text for each in preload.mistakes([spec], [str(folder)])]


@pytest.fixture
def failures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[ledger.PreloadFailure]:
    """What has failed of the preloads of a test."""
    noted: list[ledger.PreloadFailure] = []
    monkeypatch.setattr(ledger, "_failed_preloads", noted)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return noted


@pytest.mark.parametrize("name", SAID)
def test_preload_that_check_finds_does_fail(
    name: str, folder: Path, failures: list[ledger.PreloadFailure]
) -> None:
    spec = f"preload_me.model:{name}"
    (said,) = said_of(spec, folder)
    assert said.startswith(spec)
    assert SAID[name] in said
    assert str(folder) in said
    boot._preload([spec], {}, 0)
    assert [failure.what for failure in failures] == [spec]


@pytest.mark.parametrize("name", WORKS)
def test_nothing_is_said_of_a_preload_that_works(
    name: str, folder: Path, failures: list[ledger.PreloadFailure]
) -> None:
    spec = f"preload_me.model:{name}"
    assert said_of(spec, folder) == []
    if name != "other":  # a module, which is only seen to be none when it is imported
        boot._preload([spec], {}, 0)
        assert failures == []


@pytest.mark.parametrize("name", SILENT_AND_FAILS)
def test_nothing_is_said_where_it_is_not_plain(name: str, folder: Path) -> None:
    assert said_of(f"preload_me.model:{name}", folder) == []


@pytest.mark.parametrize(
    "spec",
    [
        "preload_me",
        "preload_me:other",
        "preload_me.model",
        "unseen:load",
        "starred:needed",
        "lazy:anything",
        "broken:load",
        "nowhere_at_all:load",
        "json:load",
        "sys:exit",
    ],
)
def test_nothing_is_said_of_a_module_that_cannot_be_read(spec: str, folder: Path) -> None:
    assert said_of(spec, folder) == []


def test_a_dot_in_place_of_the_colon_is_found(
    folder: Path, failures: list[ledger.PreloadFailure]
) -> None:
    (said,) = said_of("preload_me.other.passed_on", folder)
    assert said.startswith("there is no module preload_me.other.passed_on, since ")
    assert said.endswith("is no package; write preload_me.other:passed_on")
    boot._preload(["preload_me.other.passed_on"], {}, 0)
    assert len(failures) == 1


def test_folder_of_the_workers_comes_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unseen.py").write_text("def load(path): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [
        list(preload.mistakes(["unseen:load"], folders))
        for folders in ([str(folder)], [], [str(tmp_path)])
    ]
    assert [[each.is_certain for each in mistakes] for mistakes in found] == [[], [False], [True]]
