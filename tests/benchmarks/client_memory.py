"""The memory of a client that runs for long: ``python tests/benchmarks/client_memory.py``.

20,000 small tasks and 200 results of 5 MB, in turns, whose futures are let go: through a
`MockExecutor`, and through the SDK's own `Executor` with a `LocalCloud` in the same process. The
memory after the second tenth of the turns is compared with that after the last: medians, since what
the allocator holds goes up and down.

With ``--check``, the exit status is 1 if it has grown by a tenth or more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import psutil
from globus_compute_sdk import Executor
from globus_compute_sdk.sdk import client as sdk_client
from globus_compute_sdk.sdk import executor as sdk_executor

from gc_warm import MockExecutor
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.runners import SpawnedRunner

LIMIT = 0.1
SMALL_TASKS = 400  # a turn
LARGE_TASKS = 4  # a turn
LARGE = 5_000_000  # bytes


@contextlib.contextmanager
def local_cloud() -> Iterator[Executor]:
    with LocalCloud(port=0) as cloud:
        os.environ.update(cloud.environment)
        # the SDK's local mode knows one port only
        url = f"http://localhost:{cloud.port}"
        setattr(sdk_client, "get_web_service_url", lambda *_: url)  # noqa: B010

        endpoint_id = cloud.service.add_endpoint(lambda *_: SpawnedRunner(workers=2))
        with Executor(endpoint_id, batch_size=SMALL_TASKS) as executor:
            executor.api_burst_window_s = 0
            yield executor

        for watcher in list(sdk_executor._RESULT_WATCHERS.values()):
            watcher.shutdown()


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Executor]]] = {
    "MockExecutor": lambda: MockExecutor(workers=2),
    "Executor and LocalCloud": local_cloud,
}


def take_turn(executor: Executor) -> float:
    """Return the megabytes that this process has after a turn."""
    futures = [executor.submit(len, "ab") for _ in range(SMALL_TASKS)]
    futures += [executor.submit(bytes, LARGE) for _ in range(LARGE_TASKS)]
    wait(futures)
    assert sum(len(future.result()) for future in futures[-LARGE_TASKS:]) == LARGE * LARGE_TASKS

    del futures
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if more is added than may be")
    parser.add_argument(
        "--turns", type=int, default=50, help="through each, ten at least (default: %(default)s)"
    )
    options = parser.parse_args()

    worst = 0.0
    for way, start in WAYS.items():
        began = time.perf_counter()
        with start() as executor:
            megabytes = [take_turn(executor) for _ in range(options.turns)]

        tenth = options.turns // 10
        early = statistics.median(megabytes[tenth : 2 * tenth])
        late = statistics.median(megabytes[-tenth:])
        growth = late / early - 1
        worst = max(worst, growth)
        seconds = time.perf_counter() - began
        print(f"{way}: {early:.0f} MB, then {late:.0f} MB: {growth:+.1%} ({seconds:.0f} s)")

    print(f"at most {LIMIT:.0%} may be added")
    return options.check and worst >= LIMIT


if __name__ == "__main__":
    sys.exit(main())
