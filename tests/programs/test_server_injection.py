"""An exception at any point of a use leaves no server that the next use cannot find or start."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable
from typing import NoReturn

import pytest
import servers

from gc_warm import ExternalServer
from gc_warm.programs import server as server_module
from tests.worker.injection import Injector, TaskTimeout

PROGRAMS = os.path.dirname(server_module.__file__)


def under_test(file: str) -> bool:
    return file.startswith(PROGRAMS)


def closed(server: ExternalServer) -> None:
    server.close()


def running(server: ExternalServer) -> None:
    server.start()


def use(server: ExternalServer) -> None:
    assert servers.ask(server, "/pid") == server.pid


def interrupt() -> NoReturn:
    raise TaskTimeout("injected")


@pytest.mark.engine
# an interrupted start leaves its pieces to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("prepare", "operate", "step"), [(closed, use, 7), (running, use, 3), (running, closed, 1)]
)
def test_exception_at_many_points(
    prepare: Callable[[ExternalServer], None],
    operate: Callable[[ExternalServer], None],
    step: int,
) -> None:
    server = servers.make(start_timeout=60)
    tried = 0
    prepare(server)
    before = len(os.listdir("/proc/self/fd"))
    for number in itertools.count(1, step):
        prepare(server)
        injector = Injector(number, interrupt, under_test)
        injector.run(lambda: operate(server))
        use(server)
        tried += 1
        if injector.where is None:
            break

    server.close()
    gc.collect()
    assert tried > 20, "this tried too few points to show anything"
    assert len(os.listdir("/proc/self/fd")) <= before
