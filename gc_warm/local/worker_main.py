"""The program a spawned worker runs: the endpoint's own `execute_task`, one task after the other, in a fresh interpreter.

Run by path, not as part of gc_warm: a worker has its own import path, and gc_warm need not be on
it.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import types
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection

READY = b"ready"


def pack_failure(task_id: uuid.UUID, error: BaseException) -> bytes:
    """A packed Result that says that a task was lost to *error*, in the text the real engine uses."""
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Result, ResultErrorDetails
    from globus_compute_endpoint.exception_handling import get_result_error_details

    code, message = get_result_error_details(error)
    text = "+" * 68 + "\n" + "".join(traceback.format_exception(error)) + "-" * 68
    return bytes(
        messagepack.pack(
            Result(
                task_id=task_id,
                data=text,
                error_details=ResultErrorDetails(code=code, user_message=message),
            )
        )
    )


def _client_is_gone(connection: Connection, timeout: int | None) -> bool:
    """Whether the client's end is closed; waits for that up to *timeout* milliseconds, for ever if None."""
    if connection.closed:  # this is a forked child
        return False
    watch = select.poll()
    watch.register(connection.fileno(), 0)  # nothing but the hang-up
    # not where a task has closed our end
    return any(event & select.POLLHUP for _, event in watch.poll(timeout))


def _end_with_client(connection: Connection, run_dir: str) -> None:
    """A client that was killed takes its workers along: SIGTERM if there are teardowns, and SIGKILL after a manager's second."""
    _client_is_gone(connection, None)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    shutil.rmtree(run_dir, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _remove_if_orphaned(connection: Connection, run_dir: str) -> None:
    """The folder is the client's to remove, unless it was killed."""
    if _client_is_gone(connection, 0):
        shutil.rmtree(run_dir, ignore_errors=True)


def _import_execute_task() -> Callable[..., bytes]:
    """Import the endpoint's `execute_task`, and have it log nothing."""
    import logging

    # of nearly a thousand modules nothing is ever garbage: to look for some takes a quarter of the
    # time
    gc.disable()
    from globus_compute_endpoint.engines.helper import execute_task

    gc.freeze()
    gc.enable()

    # It logs the traceback of each failed task, which travels to the client anyway, where logging
    # is not set up.
    logging.getLogger("globus_compute_endpoint").addHandler(logging.NullHandler())
    logging.getLogger("globus_compute_endpoint").propagate = False

    return execute_task  # type: ignore[no-any-return]


def main(descriptor: int, run_dir: str) -> None:
    """Serve tasks that come as pickled (task id, packed Task, result serializers) until the client closes its end."""
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    worker = os.getpid()
    # a child of a task must neither answer nor keep the client waiting
    os.register_at_fork(after_in_child=connection.close)
    # first registered, last to run: after the teardowns
    atexit.register(_remove_if_orphaned, connection, run_dir)
    threading.Thread(
        target=_end_with_client, args=(connection, run_dir), name="end-with-client", daemon=True
    ).start()

    execute_task = _import_execute_task()
    connection.send_bytes(READY)
    while True:
        try:
            task_id, packed, serializers = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            reply = execute_task(packed, task_id, run_dir=run_dir, result_serializers=serializers)
        except Exception as error:
            reply = pack_failure(task_id, error)
        if os.getpid() != worker:  # the task forked, and its child has come back too
            os._exit(0)
        connection.send_bytes(reply)


if __name__ == "__main__":
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    # dill puts what a client defined in its __main__ here: keep it clean
    sys.modules["__main__"] = types.ModuleType("__main__")
    main(int(sys.argv[1]), sys.argv[2])
