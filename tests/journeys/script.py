"""The steps of a user's scripts, one function each: nothing but the SDK and what is sent.

Run as a program; prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tasks
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed

from gc_warm import FunctionBook, functions


def by_function_and_by_id(endpoint: str) -> Any:
    """Return the counts of three calls by function and two by id, and whether an error is one."""
    client = Client()
    function_id = client.register_function(functions.count)
    with Executor(endpoint, client=client) as executor:
        executor.user_endpoint_config = CONFIG
        counts = [executor.submit(functions.count).result(120) for _ in range(3)]
        counts += [
            executor.submit_to_registered_function(function_id).result(120) for _ in range(2)
        ]
        error = executor.submit(tasks.invert, 0).exception(120)
    return counts, isinstance(error, TaskExecutionFailed) and "ZeroDivisionError" in str(error)


def leave(endpoint: str) -> Any:
    """Submit, print the task group, and be gone."""
    executor = Executor(endpoint, user_endpoint_config=CONFIG)
    futures = [executor.submit(tasks.same, number) for number in range(5)]
    while not all(future.task_id for future in futures):
        pass
    print(json.dumps(str(executor.task_group_id)), flush=True)
    os._exit(0)


def come_back(endpoint: str, group: str) -> Any:
    """Find what another process has submitted."""
    with Executor(endpoint, task_group_id=group) as executor:
        return sorted(future.result(120) for future in executor.reload_tasks())


def two_configs(endpoint: str) -> Any:
    """Return counts under two user endpoint configs, in turns."""
    with Executor(endpoint) as first, Executor(endpoint) as second:
        first.user_endpoint_config = CONFIG
        second.user_endpoint_config = {**CONFIG, "task_timeout": 100}
        futures = [
            [executor.submit(functions.count) for executor in (first, second)] for _ in range(3)
        ]
        return [[future.result(120) for future in pair] for pair in futures]


def by_book(endpoint: str, path: str) -> Any:
    """Return what a function of a book returns, with a client that can register none."""
    client: Any = Client()
    client.register_function = None
    with Executor(endpoint, client=client, user_endpoint_config=CONFIG) as executor:
        FunctionBook.load(path).prime(executor)
        return executor.submit(functions.count).result(120)


def submit_many(endpoint: str, number: str, record: str) -> Any:
    """Submit so many tasks, a hundred at a time, and return what came back or went wrong.

    Each task notes in a file that it has run. A connection that is cut between a result and its
    acknowledgement makes the SDK give up; the results are there, to be asked for again.
    """
    ends: dict[int, Any] = {}
    given_up: dict[str, int] = {}
    with Executor(endpoint, user_endpoint_config=CONFIG) as executor:
        for start in range(0, int(number), 100):
            part = range(start, min(start + 100, int(number)))
            futures = [executor.submit(tasks.note, record, each) for each in part]
            for each, future in zip(part, futures, strict=True):
                ends[each] = future.exception(280) or future.result()
                if "SDK thread quit unexpectedly" in str(ends[each]):
                    given_up[future.task_id] = each

        for future in executor.reload_tasks() if given_up else ():
            if future.task_id in given_up:
                ends[given_up[future.task_id]] = future.exception(280) or future.result()

    return [end if isinstance(end, int) else str(end)[-300:] for _, end in sorted(ends.items())]


def wait_for(endpoint: str, gate: str, begun: str) -> Any:
    """Return what becomes of a task that says that it has begun, and waits."""
    with Executor(endpoint, user_endpoint_config=CONFIG) as executor:
        return str(executor.submit(tasks.begin_and_wait, begun, gate).exception(280))


def wait_many(endpoint: str, number: str, gate: str, begun: str) -> Any:
    """Return what becomes of so many tasks that wait: what they return, or their errors."""
    with Executor(endpoint, user_endpoint_config=CONFIG) as executor:
        futures = [executor.submit(tasks.begin_and_wait, begun, gate) for _ in range(int(number))]
        return [str(future.exception(280) or future.result()) for future in futures]


def worker(endpoint: str) -> Any:
    """Return the process id of a worker, and its count."""
    with Executor(endpoint, user_endpoint_config=CONFIG) as executor:
        return executor.submit(tasks.pid_and_count).result(120)


CONFIG: dict[str, Any] = json.loads(os.environ.get("CONFIG", "{}"))

if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
