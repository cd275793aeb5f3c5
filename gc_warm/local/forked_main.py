"""The program that forks workers which stand in for an endpoint's, as a manager of Parsl's does.

It has a client's order for each worker: the worker's rank, and its end of the connection to the
client. The worker is forked from a template by the manager's own `gc_warm.hooks.forkserver`, with
all that goes for it on an endpoint: what a template refuses, what workers then load for themselves,
and what ends when.

It ends with the client, after the workers, which each see that for themselves, and the template.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import types
from multiprocessing import connection, forkserver, util
from multiprocessing.context import SpawnProcess
from typing import Any

from gc_warm.hooks import boot, switch
from gc_warm.hooks.forkserver import Nursery, own_preparation
from gc_warm.local import worker_main

_PATIENCE = 5.0  # seconds for a start that is under way when the client ends


class Worker(SpawnProcess):
    """A worker's process; its arguments begin as those of a Parsl worker do.

    Args:
        rank: The worker's number.
        pool: The id of its manager.
        count: The number of workers.
        end: The worker's end of its connection to the client.
        run_dir: The folder that tasks run in.
    """

    def __init__(self, rank: int, pool: str, count: int, end: socket.socket, run_dir: str) -> None:
        super().__init__(name=f"HTEX-Worker-{rank}", args=(rank, pool, count, end, run_dir))

    def run(self) -> None:
        """Be a worker, as `worker_main` is one in a fresh interpreter."""
        rank, _, _, end, run_dir = self._args  # type: ignore[attr-defined]
        os.setsid()  # its plain children end with it, by their group
        os.environ["PARSL_WORKER_RANK"] = str(rank)
        sys.modules["__main__"] = types.ModuleType("__main__")
        worker_main.main(end.detach(), run_dir, boot.begin_stand_in)


class _Manager:
    """This process.

    Args:
        control: The connection on which orders come.
        run_dir: The folder that tasks run in.
    """

    def __init__(self, control: socket.socket, run_dir: str) -> None:
        self._control = control
        self._run_dir = run_dir
        self._pool = os.environ["PARSL_WORKER_POOL_ID"]
        self._count = int(os.environ["PARSL_WORKER_COUNT"])
        self._workers: dict[int, Worker] = {}
        self._is_busy = threading.Lock()  # held while an order is done

        if "preload_node" not in switch.disabled():
            stock: Any = SpawnProcess
            specs = os.environ[boot.PRELOAD_NODE].split()
            nursery = Nursery(specs, stock._Popen, own_preparation())
            worker: Any = Worker
            worker._Popen = staticmethod(nursery.start_at_once)

    def run(self) -> None:
        """Do what the client orders, until it closes its end."""
        threading.Thread(target=self._end_with_client, daemon=True).start()
        while True:
            self._wait_for_order()
            with self._is_busy:
                text, files, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
                if not text:
                    break
                answer = self._start(json.loads(text), files) if files else self._end(text)
            try:
                self._control.send(json.dumps(answer).encode())
            except OSError:  # the client has ended
                break

        for worker in self._workers.values():
            worker.join()
        server: Any = forkserver._forkserver
        server._stop()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _wait_for_order(self) -> None:
        """Wait for the client, and meanwhile for the ends of workers, which would stay zombies."""
        while True:
            alive = {
                worker.sentinel: worker for worker in self._workers.values() if worker.is_alive()
            }
            ready = connection.wait([self._control, *alive])
            if self._control in ready:
                return

    def _start(self, rank: int, files: list[int]) -> dict[str, Any]:
        with socket.socket(fileno=files[0]) as end:
            worker = Worker(rank, self._pool, self._count, end, self._run_dir)
            try:
                worker.start()
            except OSError as error:
                return {"error": str(error)}
        self._workers[rank] = worker
        return {"pid": worker.pid}

    def _end(self, rank: bytes) -> dict[str, Any]:
        """Return how a worker that is ending has ended."""
        worker = self._workers[int(rank)]
        worker.join(_PATIENCE)
        return {"exitcode": worker.exitcode}

    def _end_with_client(self) -> None:
        """End this process and a template that still loads, when the client has ended."""
        worker_main.hangs_up(self._control.fileno(), None)
        if not self._is_busy.acquire(timeout=_PATIENCE):
            for folder in (self._run_dir, util.get_temp_dir()):
                shutil.rmtree(folder, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)
        self._is_busy.release()


def main(descriptor: int, run_dir: str) -> None:
    """Fork workers as a client orders it, until that has ended.

    An order is a worker's rank, in JSON. With a descriptor, which is the worker's end of its
    connection, it has the worker started, and the answer is its ``pid``, or the ``error``; without
    one, it asks for the ``exitcode`` of a worker that has ended.

    Args:
        descriptor: File descriptor of a socket that keeps messages apart.
        run_dir: The folder that tasks run in.
    """
    os.set_inheritable(descriptor, False)
    _Manager(socket.socket(fileno=descriptor), run_dir).run()


if __name__ == "__main__":
    del sys.path[0]
    # workers get what a client defined in its __main__ here, and need nothing of this one
    sys.modules["__main__"] = types.ModuleType("__main__")
    from gc_warm.local import forked_main  # by the name under which workers find it

    forked_main.main(int(sys.argv[1]), sys.argv[2])
