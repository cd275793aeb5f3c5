"""The cost of a call to a program that is kept alive: ``python tests/benchmarks/program_call.py``.

Small requests to a program in Python that answers them with themselves. The reference is the code
that one writes without gc_warm: a loop over ``readline`` on both sides of the same kind of pipes,
with nothing that could notice a program which is late, gone or out of step. All processes share one
core, so that the work of a call is compared, and not the places where the system puts two
processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gc_warm import ExternalProcess, Marker

LIMIT = 1.5
ROUNDS, RUNS = 40, 7
BARE = "a bare readline loop"
LOOP = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    print(json.dumps({"id": message["id"], "reply": message["request"]}), flush=True)
"""
SERVE = "from gc_warm import serve\nserve(lambda request: request)"

Call = Callable[[Any], Any]


@contextlib.contextmanager
def bare() -> Iterator[Call]:
    """Make calls in which each side only writes a line and reads one."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as program:
        stdin, stdout = program.stdin, program.stdout
        assert stdin is not None
        assert stdout is not None

        def call(request: Any) -> Any:
            stdin.write(json.dumps({"id": 1, "request": request}) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())["reply"]

        yield call


@contextlib.contextmanager
def kept(*arguments: Any) -> Iterator[Call]:
    with ExternalProcess(*arguments, env={"PYTHONPATH": str(Path(__file__).parents[2])}) as program:
        yield program.call


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Call]]] = {
    BARE: bare,
    "ExternalProcess, json_lines, that loop": lambda: kept([sys.executable, "-c", LOOP]),
    "ExternalProcess, json_lines, serve": lambda: kept([sys.executable, "-c", SERVE]),
    "ExternalProcess, Marker, sh": lambda: kept(["sh"], Marker("echo {marker}")),
}


def measure(calls: int) -> dict[str, float]:
    """Return the microseconds of a call in the quickest of the rounds, by way.

    Other work of this machine only ever adds to it.
    """
    found: dict[str, list[float]] = {way: [] for way in WAYS}

    with contextlib.ExitStack() as stack:
        ready = {way: stack.enter_context(start()) for way, start in WAYS.items()}
        for _ in range(ROUNDS):
            for way, call in ready.items():
                request = "true" if "Marker" in way else {"distance": 1.5}
                begun = time.perf_counter()
                for _ in range(calls):
                    call(request)
                found[way].append(1e6 * (time.perf_counter() - begun) / calls)

    return {way: min(times) for way, times in found.items()}


def compare(calls: int) -> dict[str, tuple[float, float]]:
    """Return the microseconds of a call and its ratio to the bare one, by way.

    Each run has interpreters of its own, since where its memory happens to lie makes a difference
    of a tenth; the quickest of several counts, also of the bare one.
    """
    command = [sys.executable, __file__, "--calls", str(calls), "--one-run"]
    runs = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(RUNS)
    ]

    quickest = {way: min(run[way] for run in runs) for way in WAYS}
    return {way: (quickest[way], quickest[way] / quickest[BARE]) for way in WAYS}


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calls", type=int, default=100, help="calls a timing (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"fail if a way takes more than {LIMIT} times the loop"
    )
    parser.add_argument(
        "--one-run", action="store_true", help="print the microseconds of a single run as JSON"
    )
    options = parser.parse_args()

    # it would have every print of the loop written in two pieces
    os.environ.pop("PYTHONUNBUFFERED", None)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.one_run:
        print(json.dumps(measure(options.calls)))
        return 0

    found = compare(options.calls)
    print("| way | a call | |\n| --- | ---: | ---: |")
    for way, (microseconds, ratio) in found.items():
        print(f"| {way} | {microseconds:.0f} µs | {ratio:.2f} x |")
    slow = [way for way, (_, ratio) in found.items() if options.check and ratio > LIMIT]
    return f"more than {LIMIT} times {BARE}: {', '.join(slow)}" if slow else 0


if __name__ == "__main__":
    sys.exit(main())
