"""Servers of a worker and of a node, as a user's module has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import tasks

from gc_warm import ExternalServer

PROGRAM = str(Path(__file__).parents[1] / "executables" / "model_server.py")


def make(*behaviours: str, **options: Any) -> ExternalServer:
    """Return a server on a Unix socket."""
    command = [sys.executable, "-I", "-S", PROGRAM, "--socket", "{socket}", *behaviours]
    return ExternalServer(command, **{"ready": "/health", **options})


SERVERS = {
    "worker": make("stubborn", "child"),
    "node": make("stubborn", "child", scope="node"),
}
node = SERVERS["node"]


def ask(server: ExternalServer, path: str, timeout: float = 60) -> Any:
    """Return the answer of a server, which it gives as JSON."""
    with server.connect() as address:
        connection = address.http(timeout)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


def ask_of(scope: str, path: str = "/pid") -> tuple[int, Any]:
    """Return the worker, and the answer of its server or of that of its node."""
    return os.getpid(), ask(SERVERS[scope], path)


def meet_and_ask(folder: str, number: int) -> tuple[str, int]:
    """Meet so many workers, and return the node, and the server of the node."""
    tasks.meet(folder, number)
    return os.environ["SLURMD_NODENAME"], ask(node, "/pid")


def start(mark: str, scope: str) -> int:
    """Start a server with *mark* in the environment of all its processes; return the worker."""
    os.environ["GC_WARM_SERVERS_OF"] = mark
    SERVERS[scope].start()
    return os.getpid()


def start_slowly(mark: str, loaded: str) -> int | None:
    """Start a server of the node, which is ready once a file exists; return it."""
    os.environ["GC_WARM_SERVERS_OF"] = mark
    slow = make("file", loaded, scope="node")
    slow.start()
    return slow.pid


def close() -> None:
    """Close the server of the node."""
    node.close()
