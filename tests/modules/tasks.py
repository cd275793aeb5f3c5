"""What the tests of the stand-ins run: plain functions, one thing each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def same(value: Any) -> Any:
    return value


def invert(number: float) -> float:
    return 1 / number


def zeros(size: int) -> bytes:
    return bytes(size)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited for two minutes")
        time.sleep(0.005)


def wait_for_file(path: str) -> str:
    _wait_until(lambda: os.path.exists(path))
    return path


def wait_and_return(path: str, size: int) -> bytes:
    """Waits for a file, and has a result of so many bytes then."""
    wait_for_file(path)
    return os.urandom(size)


def for_ever(started: str) -> NoReturn:
    """Never ends, and leaves its process id in the file *started* when it has begun."""
    Path(started).with_suffix(".part").write_text(str(os.getpid()))
    Path(started).with_suffix(".part").rename(started)
    while True:
        threading.Event().wait()


def meet(folder: str, number: int) -> tuple[int, int, int]:
    """Wait in *folder* for the others, which takes a worker for each of them.

    Returns the worker's rank and process id, and a count.
    """
    import shapes

    Path(folder, os.environ["GC_TASK_UUID"]).touch()
    _wait_until(lambda: len(os.listdir(folder)) >= number)
    return rank(), os.getpid(), shapes.import_in_body()


def meet_as(folder: str, number: int) -> tuple[str, int, int, str | None]:
    """As `meet`, and says who it is: manager, rank, process id and device."""
    _, pid, _ = meet(folder, number)
    device = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("ROCR_VISIBLE_DEVICES"))
    return os.environ["PARSL_WORKER_POOL_ID"], rank(), pid, device


def end(how: str) -> None:
    """Ends its worker."""
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGKILL)


def environment(name: str) -> str | None:
    return os.environ.get(name)


def birth() -> tuple[int | None, str | None]:
    """Return the template that this worker was forked from, and why there is none."""
    from gc_warm.worker import lifecycle

    worker = lifecycle.worker()
    return worker.template, worker.not_forked


def rank() -> int:
    return int(os.environ["PARSL_WORKER_RANK"])


def pid_and_count() -> tuple[int, int]:
    import shapes

    return os.getpid(), shapes.import_in_body()


def fork_and_return() -> str:
    """Comes back twice, as a task does that forks and forgets to end the child."""
    return "parent" if os.fork() else "child"


def close_descriptors() -> None:
    os.closerange(3, 1024)


def run(*command: str) -> tuple[int, str]:
    """Exit status of a program, and what it says."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def start_child() -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


def meet_and_tell(
    folder: str, number: int, names: list[str]
) -> tuple[int, int, list[int], dict[str, str]]:
    """Wait as in `meet`, for workers on several nodes.

    Returns process id, count, the cores the worker may use, and these variables of its environment.
    """
    _, pid, count = meet(folder, number)
    variables = {name: os.environ[name] for name in names if name in os.environ}
    return pid, count, sorted(os.sched_getaffinity(0)), variables


def work(seconds: float) -> tuple[str, float, float]:
    """Takes so long; the batch job it runs in, and when it began and ended."""
    begun = time.time()
    threading.Event().wait(seconds)
    return os.environ["SLURM_JOB_ID"], begun, time.time()


def note(record: str, number: int) -> int:
    """Writes its number to a file, so that running twice is seen."""
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    return number


def begin_and_wait(begun: str, gate: str) -> str:
    """Says that it has begun, by a file, and waits for another."""
    Path(begun).touch()
    return wait_for_file(gate)


def pid_at(folder: str) -> int:
    """Makes a folder, waits for a gate in it, and says in which process."""
    Path(folder).mkdir()
    wait_for_file(str(Path(folder, "gate")))
    return os.getpid()


def note_manager(folder: str) -> None:
    """Leaves a file for its manager in *folder*."""
    Path(folder, os.environ["PARSL_WORKER_POOL_ID"]).touch()


def set_environment(name: str, value: str) -> None:
    os.environ[name] = value


def real_path_of(name: str) -> str:
    """The absolute path that a variable of the environment leads to."""
    return os.path.abspath(os.environ[name])


def place_and_count() -> tuple[str, str | None, list[str], int]:
    """The working directory, what its variable and its folder have, and the count of this worker.

    A file is left behind.
    """
    from gc_warm.warmables import counter

    before = os.listdir()
    Path("left").touch()
    return os.getcwd(), os.environ.get("GC_TASK_SANDBOX_DIR"), before, counter.increase()


def pid_of(number: int) -> tuple[int, int]:
    return os.getpid(), number


def note_and_wait(record: str, number: int, gate: str) -> tuple[int, str, int, int]:
    """Notes its number as it begins, and waits for a file.

    Returns the number, the batch job it runs in, the worker, and the worker's count.
    """
    note(record, number)
    wait_for_file(gate)
    return number, os.environ["SLURM_JOB_ID"], *pid_and_count()
