"""What the tests of the hook at worker start preload."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from gc_warm import NotEnoughTimeError, warm


@dataclass(frozen=True)
class State:
    """What a task found on its worker."""

    rank: int
    pid: int
    loads: int
    hits: int
    device: str | None
    environment: dict[str, str]


@warm
def table() -> str | None:
    """The device that the worker was pinned to when this was loaded."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def use(meeting: str, number: int) -> State:
    """Return what there is once *number* tasks have come.

    So each of the tasks that meet is on a worker of its own.
    """
    from preloaded import State, table

    Path(meeting, os.environ["GC_TASK_UUID"]).touch()
    end = time.monotonic() + 120
    while len(os.listdir(meeting)) < number:
        if time.monotonic() > end:
            raise TimeoutError("waited for two minutes")
        time.sleep(0.01)

    device = table()
    info = table.info()
    return State(
        int(os.environ["PARSL_WORKER_RANK"]),
        os.getpid(),
        info.loads,
        info.hits,
        device,
        dict(os.environ),
    )


def failures() -> list[str]:
    """Return what was to be preloaded on this worker, and was not."""
    from gc_warm.worker import ledger

    return [failure.what for failure in ledger.preload_failures()]


def hooks() -> dict[str, object]:
    """Return what a task finds of our hooks on its worker."""
    import gc

    from gc_warm.worker import ledger

    return {
        "failures": [failure.error for failure in ledger.preload_failures()],
        "loads": table.info().loads,
        "ends in order": signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL,
        "queues": {type(each).__name__ for each in gc.get_objects()}
        & {"TaskQueue", "RoutedQueue", "_FirstGet"},
        "variables": set(os.environ)
        & {
            "GC_WARM_PRELOAD",
            "GC_WARM_SURVIVE_IDLE_KILL",
            "GC_WARM_WARM_FIRST",
            "GC_WARM_DISABLE",
        },
    }


def fail() -> None:
    raise LookupError("nothing to load")


def too_long() -> None:
    raise NotEnoughTimeError(600, 59)


def part_too_long() -> None:
    try:
        too_long()
    except NotEnoughTimeError as error:
        try:
            raise LookupError("no tokenizer") from error
        except LookupError as error:
            raise RuntimeError("no model") from error


def replacement_fails() -> None:
    try:
        too_long()
    except NotEnoughTimeError:
        fail()


def is_its_own_cause() -> None:
    error = LookupError("nothing to load")
    raise error from error


def needs_path(path: str) -> None:
    raise AssertionError(path)


def generator() -> Generator[None, None, None]:
    yield


async def coroutine() -> None:
    pass


def says_much() -> None:
    raise LookupError("much\n" * 1000)


def leave() -> None:
    sys.exit(3)


def crash() -> None:
    os.abort()


@warm
def _connection() -> Generator[None, None, None]:
    yield
    with Path(os.environ["BEGUN"]).open("a") as file:
        file.write("torn down")


def for_ever() -> None:
    _connection()
    begun = Path(os.environ["BEGUN"])
    begun.with_suffix(".part").write_text(f"{os.getpid()} ")
    begun.with_suffix(".part").rename(begun)
    while True:
        time.sleep(0.01)


def after_a_while() -> None:
    """Load, after two seconds."""
    time.sleep(2)
    table()


def when_let() -> None:
    """Say that it has begun, by a file, and load when there is another.

    In the first block it loads at once, unless HOLDS is set. The worker with the number in HANGS
    never does.
    """
    block = os.environ["PARSL_WORKER_BLOCK_ID"]
    rank = os.environ["PARSL_WORKER_RANK"]
    folder = Path(os.environ["GATE"])

    part = folder / f"{block}-{rank}.part"
    part.write_text(f"{os.getpid()}")
    part.rename(folder / f"begun-{block}-{rank}")

    is_held = block != "0" or "HOLDS" in os.environ
    while is_held and not (folder / "let").exists():
        time.sleep(0.01)
    while os.environ.get("HANGS") == rank:
        time.sleep(0.01)
    table()


def place() -> tuple[str, str, bool]:
    """Return block and number of this worker, and whether it has loaded."""
    from preloaded import table

    return (
        os.environ["PARSL_WORKER_BLOCK_ID"],
        os.environ["PARSL_WORKER_RANK"],
        table.info().loads == 1,
    )
