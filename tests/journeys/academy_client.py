"""An agent of Academy in a task of gc_warm's executors: prints what it has counted, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from academy.exchange.cloud.client import spawn_http_exchange
from academy.manager import Manager
from academy.socket import open_port
from globus_compute_sdk import Executor
from lazy_tasks import Counter

from gc_warm import MockExecutor, WarmExecutor
from tests.support import MODULES


async def counts(exchange: Any, executor: Executor) -> list[list[int]]:
    """Return what two agents count in three steps each, one after the other, on one worker."""
    found = []
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        for _ in range(2):
            counter = await manager.launch(Counter)
            found.append([await counter.count() for _ in range(3)])
            await manager.shutdown(counter, blocking=True)
    return found


def main(kind: str) -> None:
    mock = MockExecutor(workers=1, pythonpath=[MODULES])
    executor = WarmExecutor(mock) if kind == "warm" else mock
    with spawn_http_exchange("127.0.0.1", open_port()) as exchange:
        print(json.dumps(asyncio.run(counts(exchange, executor))))  # which ends the executor


if __name__ == "__main__":
    main(sys.argv[1])
