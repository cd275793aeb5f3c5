"""The cost of a use of a server that is kept: ``python tests/benchmarks/server_use.py``.

Small requests over a Unix socket. The reference is the same request without `ExternalServer`: a
connection of `http.client` to a path that is known, with nothing that could notice that the server
is gone, or hangs. All processes share one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gc_warm import ExternalServer
from gc_warm.programs.server_address import ServerAddress

LIMIT = 5.0
ROUNDS = 40
PROGRAM = str(Path(__file__).parents[1] / "executables" / "model_server.py")


def ask(address: ServerAddress) -> None:
    connection = address.http()
    connection.request("GET", "/pid")
    connection.getresponse().read()
    connection.close()


def measure(ways: dict[str, Callable[[], None]], requests: int) -> dict[str, float]:
    """Return the microseconds of a request in the quickest of the rounds, by way."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, request in ways.items():
            begun = time.perf_counter()
            for _ in range(requests):
                request()
            found[way].append(1e6 * (time.perf_counter() - begun) / requests)
    return {way: min(times) for way, times in found.items()}


def main() -> str | int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", type=int, default=50, help="requests a timing (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"fail if a use takes more than {LIMIT} times as long"
    )
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    command = [sys.executable, "-I", "-S", PROGRAM, "--socket", "{socket}"]
    server = ExternalServer(command, ready="/health")
    with server.connect() as address:
        pass

    def use() -> None:
        with server.connect() as found:
            ask(found)

    times = measure({"bare": lambda: ask(address), "use": use}, options.requests)
    server.close()
    ratio = times["use"] / times["bare"]
    print("| way | a request | |\n| --- | ---: | ---: |")
    print(f"| http.client | {times['bare']:.0f} µs | 1.00 x |")
    print(f"| in a block of connect() | {times['use']:.0f} µs | {ratio:.2f} x |")
    return f"more than {LIMIT} times a bare request" if options.check and ratio > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
