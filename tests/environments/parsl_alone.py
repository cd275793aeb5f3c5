"""Run three tasks on workers of Parsl alone, and print their records of a warm call as JSON.

Nothing of Globus Compute takes part. Arguments: a folder to work in, which has a warmable module
`early`, and the lines of a config's ``worker_init``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def observe() -> dict[str, Any]:
    import early  # type: ignore[import-not-found]

    from gc_warm.worker.calls import Recording

    with Recording() as recording:
        early.table()
    return recording.record()


def main(folder: str, worker_init: str) -> None:
    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=worker_init)
    workers = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=2, provider=provider)
    with parsl.load(Config(executors=[workers], run_dir=folder)):
        app = parsl.python_app(observe)
        print(json.dumps([app().result() for _ in range(3)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
