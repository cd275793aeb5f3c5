"""The cost of an answer of the command: ``python tests/benchmarks/command_start.py``.

CPU seconds of answers that need none of what the commands do, beside those of importing the SDK, in
turns. Exit status 1: one of them takes half as much or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

LIMIT = 0.5
REFERENCE = "import globus_compute_sdk"
COMMAND = os.path.join(os.path.dirname(sys.executable), "gc-warm")
WAYS = {
    REFERENCE: [sys.executable, "-c", "import globus_compute_sdk"],
    "gc-warm --version": [COMMAND, "--version"],
    "gc-warm --help": [COMMAND, "--help"],
    "gc-warm nonsense": [COMMAND, "nonsense"],
}


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of a process, in user and system mode."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return usage.ru_utime + usage.ru_stime


def measure(turns: int) -> dict[str, float]:
    """Return the median of each, after a turn that only fills the system's caches."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way, command in WAYS.items():
            taken = cpu_seconds(command)
            if turn:
                seconds[way].append(taken)
    return {way: statistics.median(times) for way, times in seconds.items()}


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=15, help="runs of each (default: %(default)s)")
    found = measure(parser.parse_args().turns)

    print("| process | CPU seconds | |\n| --- | ---: | ---: |")
    for way, seconds in found.items():
        print(f"| `{way}` | {seconds:.3f} s | {seconds / found[REFERENCE]:.2f} x |")

    slow = [
        way
        for way, seconds in found.items()
        if way != REFERENCE and seconds >= LIMIT * found[REFERENCE]
    ]
    return f"not below {LIMIT} times `{REFERENCE}`: {', '.join(slow)}" if slow else 0


if __name__ == "__main__":
    sys.exit(main())
