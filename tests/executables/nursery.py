"""A manager without Parsl: its workers are forked from a template, and do what stdin says.

    python nursery.py SPEC...

Each line of stdin is a JSON list, and has one line of JSON for an answer:

    ["start", RANK, COUNT]          the process id of a worker
    ["ask", RANK, "module:name"]    what that function returns there
    ["end", RANK]                   how the worker has ended, after SIGTERM
    ["template"]                    the process id of the template
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.context import SpawnProcess
from queue import Empty, Queue
from typing import Any

from gc_warm.hooks import boot, forkserver

CONTEXT = multiprocessing.get_context("spawn")


def worker(
    worker_id: int,
    pool_id: str,
    pool_size: int,
    task_queue: Queue[Any],
    result_queue: Queue[Any],
    tasks_in_progress: dict[Any, Any],
) -> None:
    """Do what a queue says: it has the arguments of Parsl's worker that gc_warm knows."""
    os.environ["PARSL_WORKER_RANK"] = str(worker_id)
    while True:
        try:
            module, _, name = task_queue.get(timeout=0.5).partition(":")
        except Empty:  # as Parsl's worker, which a signal may find just before it waits
            continue

        try:
            answer = getattr(importlib.import_module(module), name)()
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        result_queue.put(answer)


def main(specs: list[str]) -> None:
    """Answer each line of stdin."""
    os.environ[boot.PRELOAD_NODE] = " ".join(specs)
    if specs:
        forkserver.install()

    shared = CONTEXT.Manager().dict()
    workers: dict[int, SpawnProcess] = {}
    queues: dict[int, tuple[Any, Any]] = {}

    for line in sys.stdin:
        verb, *words = json.loads(line)
        rank = words[0] if words else 0
        answer: Any = None

        if verb == "start":
            queues[rank] = (CONTEXT.Queue(), CONTEXT.Queue())
            process = CONTEXT.Process(
                target=worker,
                args=(rank, "pool", words[1], *queues[rank], shared),
                name=f"HTEX-Worker-{rank}",
            )
            process.start()
            workers[rank] = process
            while process.pid is None and process.is_alive():  # until it is its turn
                time.sleep(0.001)
            answer = process.pid
        elif verb == "ask":
            queues[rank][0].put(words[1])
            answer = queues[rank][1].get()
        elif verb == "end":
            workers[rank].terminate()
            workers[rank].join()
            answer = workers[rank].exitcode
        elif verb == "template":
            answer = forkserver.template_pid()

        print(json.dumps(answer), flush=True)

    for process in workers.values():
        process.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])
