"""An exception at any point of a call wedges nothing, leaks nothing and mixes up no replies."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from gc_warm import ExternalProcess, Marker, ProcessDiedError, ProgramError
from gc_warm.programs import process
from gc_warm.worker import ledger
from tests.support import has_ended, wait_until
from tests.worker.injection import Injector, TaskTimeout

WORKER = str(Path(process.__file__).parent)


def under_test(file: str) -> bool:
    return file.startswith(WORKER)


def nothing(bc: ExternalProcess) -> None:
    pass


def warm(bc: ExternalProcess) -> None:
    bc.call("count=1")


def dead(bc: ExternalProcess) -> None:
    bc.call("count=1")
    pid = bc.pid
    assert pid is not None
    psutil.Process(pid).kill()
    wait_until(lambda: has_ended(pid), "it has ended")


def call(bc: ExternalProcess) -> None:
    assert bc.call("6*7") == "42"


def in_session(bc: ExternalProcess) -> None:
    with bc.session() as call:
        assert call("6*7") == "42"


def complain(bc: ExternalProcess) -> None:
    with contextlib.suppress(ProgramError):
        bc.call("1/0")


def die(bc: ExternalProcess) -> None:
    with contextlib.suppress(ProcessDiedError):
        bc.call("quit")


def close(bc: ExternalProcess) -> None:
    bc.close()


OPERATIONS: dict[
    str, tuple[Callable[[ExternalProcess], None], Callable[[ExternalProcess], None], str]
] = {
    # name: what precedes it, the operation, and where the last point of interest is
    "first call": (nothing, call, "None"),
    "warm call": (warm, call, "None"),
    "warm call in a session": (warm, in_session, "None"),
    "call of a dead program": (dead, call, "_popen"),  # from there on it is a first call
    "call with a complaint": (warm, complain, "None"),
    "call that ends the program": (warm, die, "None"),
    "close": (warm, close, "None"),
}


def answers_after(bc: ExternalProcess) -> list[str]:
    """Return the next answers, in another thread, since this one would have its own locks."""
    with ThreadPoolExecutor(1) as pool:
        answers = [pool.submit(bc.call, f"{number}+1", 120).result(120) for number in range(2)]
        pool.submit(bc.close).result(120)
        return answers


def running() -> set[int]:
    """The children of this process, those of fixtures of the whole session among them."""
    return {child.pid for child in psutil.Process().children() if not has_ended(child.pid)}


@pytest.mark.programs
@pytest.mark.skipif(shutil.which("bc") is None, reason="bc is not installed")
# an interrupted start leaves its pieces to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_exception_at_every_point(operation: str) -> None:
    prepare, operate, last = OPERATIONS[operation]
    answers: dict[str, list[str]] = {}

    def interrupt() -> NoReturn:
        raise TaskTimeout("injected")

    before = len(os.listdir("/proc/self/fd"))
    others = running()
    for number in itertools.count(1):
        bc = ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"'))
        prepare(bc)
        injector = Injector(number, interrupt, under_test)
        injector.run(lambda bc=bc: operate(bc))  # type: ignore[misc]
        answers[f"{number}: {injector.where}"] = answers_after(bc)
        if injector.where is None or last in injector.where:
            break

    del bc
    gc.collect()
    assert {point: found for point, found in answers.items() if found != ["1", "2"]} == {}
    assert len(answers) > 40, "this tried too few points to show anything"
    assert not [holding for holding in ledger.held() if isinstance(holding, process.Program)]
    wait_until(lambda: running() <= others, "all supervisors have ended")
    subprocess._cleanup()  # type: ignore[attr-defined]  # what an interrupted start has left to it
    assert len(os.listdir("/proc/self/fd")) <= before
