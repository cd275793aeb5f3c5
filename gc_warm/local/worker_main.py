"""The program of a spawned worker: a fresh interpreter that runs one task after the other.

Tasks go through the endpoint's own `execute_task`. The program is run by path, not as part of
gc_warm: a worker has its own import path, and gc_warm need not be on it.
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
from typing import Any

READY = b"ready"


def pack_failure(task_id: uuid.UUID, error: BaseException) -> bytes:
    """Return a packed `Result` of a task that was lost to *error*, in the real engine's format."""
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Result, ResultErrorDetails
    from globus_compute_endpoint.exception_handling import get_result_error_details

    text = "+" * 68 + "\n" + "".join(traceback.format_exception(error)) + "-" * 68
    code, message = get_result_error_details(error)
    details = ResultErrorDetails(code=code, user_message=message)
    result = Result(task_id=task_id, data=text, error_details=details)
    return bytes(messagepack.pack(result))


def hangs_up(descriptor: int, timeout: int | None) -> bool:
    """Wait until the client's end of a connection is closed, and return whether it is.

    Args:
        descriptor: File descriptor of this end.
        timeout: Milliseconds to wait; None to wait for ever.
    """
    watch = select.poll()
    watch.register(descriptor, 0)  # nothing but the hang-up

    # only the hang-up counts: a task may have closed our end
    return any(event & select.POLLHUP for _, event in watch.poll(timeout))


def _end_with_client(connection: Connection, run_dir: str) -> None:
    """Wait for the client's end, and end this worker: a client that was killed takes it along.

    The worker gets SIGTERM if there are teardowns, and SIGKILL after a manager's second.
    """
    hangs_up(connection.fileno(), None)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    shutil.rmtree(run_dir, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _remove_if_orphaned(connection: Connection, run_dir: str) -> None:
    """Remove the folder if the client was killed; else it is the client's to remove."""
    is_forked_child = connection.closed
    if not is_forked_child and hangs_up(connection.fileno(), 0):
        shutil.rmtree(run_dir, ignore_errors=True)


def _import_execute_task() -> Callable[..., bytes]:
    """Import the endpoint's `execute_task`, and have it log nothing."""
    import logging

    # nothing of nearly a thousand modules is ever garbage: looking for some takes a quarter of the
    # time
    gc.disable()
    from globus_compute_endpoint.engines.helper import execute_task

    gc.freeze()
    gc.enable()

    # They log the traceback of each failed task and result, which travels to the client anyway,
    # where logging is not set up.
    for name in ("globus_compute_endpoint", "globus_compute_sdk"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False

    return execute_task  # type: ignore[no-any-return]


def _give_commands_a_folder(run_dir: str) -> None:
    """Have each ShellFunction run in a folder of its own, as with an engine's ``run_in_sandbox``.

    Without that, it puts a warning into what its command says. Other tasks are spared the folder,
    which takes longer than many a task.
    """
    from globus_compute_sdk import ShellFunction

    stock = ShellFunction.execute_cmd_line

    def execute_cmd_line(self: Any, command: str) -> Any:
        os.environ["GC_TASK_SANDBOX_DIR"] = os.path.join(run_dir, os.environ["GC_TASK_UUID"])
        return stock(self, command)

    ShellFunction.execute_cmd_line = execute_cmd_line  # type: ignore[assignment, method-assign]


def main(descriptor: int, run_dir: str, begin: Callable[[], None] | None = None) -> None:
    """Run the client's tasks, until it closes its end of the connection.

    A task comes as a pickled tuple: task id, packed `Task`, and result serializers or None. The
    first message to the client is `READY`; each further one is a packed `Result`.

    Args:
        descriptor: File descriptor of the worker's end of the connection.
        run_dir: The folder that tasks run in.
        begin: Called before the client is told that this is ready.
    """
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    worker = os.getpid()

    # a child of a task must neither answer nor keep the client waiting
    os.register_at_fork(after_in_child=connection.close)
    # first registered, last to run: after the teardowns
    atexit.register(_remove_if_orphaned, connection, run_dir)
    watch = threading.Thread(
        target=_end_with_client, args=(connection, run_dir), name="end-with-client", daemon=True
    )
    watch.start()

    execute_task = _import_execute_task()
    _give_commands_a_folder(run_dir)
    if begin is not None:
        begin()
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
