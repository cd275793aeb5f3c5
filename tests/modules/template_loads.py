"""What a template is given to load in the tests, and what workers then find."""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from gc_warm import warm
from gc_warm.worker import ledger, lifecycle

kept: list[Any] = []
_FOLDER = os.environ.get("TEMPLATE_FOLDER", ".")


@warm
def table() -> list[int]:
    return list(range(1000))


@warm
def logbook() -> Generator[int, None, None]:
    yield os.getpid()
    with Path(_FOLDER, "ended").open("a") as file:
        file.write(f"{os.getpid()}\n")


def birth() -> dict[str, Any]:
    """What a worker knows of how it has begun, and whether `table` is warm in it."""
    before = ledger.mark()
    try:
        table()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    worker = lifecycle.worker()
    return {
        "template": worker.template,
        "not_forked": worker.not_forked,
        "is_warm": ledger.mark() == before,
        "failures": [[failure.what, failure.error] for failure in ledger.preload_failures()],
    }


def surroundings() -> dict[str, Any]:
    """What of a worker's surroundings a load could have changed."""
    umask = os.umask(0o022)
    os.umask(umask)
    file = Path("/proc/self/oom_score_adj")
    return {
        "directory": os.getcwd(),
        "umask": umask,
        "threads": {name: os.environ.get(name) for name in _THREADS},
        "ours": sorted(name for name in os.environ if name.startswith("GC_WARM_")),
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGUSR1)],
        "likely": int(file.read_text()),
    }


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def numbers() -> list[float]:
    return [random.random()]


def leave_word() -> None:
    """Have this worker write a line when it ends."""
    atexit.register(_write_end)


def _write_end() -> None:
    with Path(_FOLDER, "atexit").open("a") as file:
        file.write(f"{os.getpid()}\n")


def load_logbook() -> int:
    return logbook()


# what a template is not to be forked with, or does not survive


def fail() -> None:
    raise ValueError("no such table")


def leave() -> None:
    sys.exit(3)


def end_at_once() -> None:
    os._exit(5)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def take_for_ever() -> None:
    while True:
        time.sleep(3600)


def start_a_thread() -> None:
    threading.Thread(target=take_for_ever, daemon=True, name="poller").start()


def open_a_file() -> None:
    kept.append(Path(__file__).open())  # noqa: SIM115


def append_to_a_file() -> None:
    kept.append(Path(_FOLDER, "log").open("a"))  # noqa: SIM115


def open_a_socket() -> None:
    kept.append(socket.socketpair())


def map_a_file() -> None:
    import mmap

    with Path(__file__).open("rb") as file:
        kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def fork_and_come_back() -> None:
    if os.fork() == 0:
        return
    os.wait()


def run_a_program() -> None:
    subprocess.run(["true"], check=True)


def change_surroundings() -> None:
    os.chdir("/")
    os.umask(0o007)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ["TEMPLATE_LOADS"] = "as a load has set it"


def keep_a_generator() -> None:
    kept.append(random.Random())


def grow() -> None:
    kept.append(bytearray(os.urandom(1 << 20)) * 64)
    start_a_thread()


def rows() -> Iterator[int]:
    yield from range(3)


def when_let() -> None:
    """Say that it has begun, by a file, and end when there is another."""
    part = Path(_FOLDER, "loading.part")
    part.write_text(f"{os.getpid()}")
    part.rename(Path(_FOLDER, "loading"))
    while not Path(_FOLDER, "let").exists():
        time.sleep(0.01)
