"""A program that answers requests, and whose end differs by its argument.

It replies with the processes that are to end with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import NoReturn


def stay_for_ever() -> NoReturn:
    """Stay, whatever polite signal comes."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        signal.pause()


def start_child(own_session: bool) -> int:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, "stay"],
        stdout=subprocess.PIPE,
        start_new_session=own_session,
    )

    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child.pid


def start_daemon() -> int:
    """Start a process as daemons do, and return its id.

    It forks, leaves the session, forks again, and gives up all connections with its starter.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.chdir("/")
            os.write(tell, str(os.getpid()).encode())
            os.close(tell)
            stay_for_ever()
        os._exit(0)

    os.waitpid(child, 0)
    return int(os.read(told, 20))


def main(behaviour: str) -> None:
    if behaviour == "stay":
        stay_for_ever()

    others = []
    if behaviour in ("child", "session"):
        others.append(start_child(own_session=behaviour == "session"))
    if behaviour == "daemon":
        others.append(start_daemon())

    for line in sys.stdin:
        message = json.loads(line)
        if message["request"] == "stay":
            os.close(os.open(os.environ["BEGUN"], os.O_CREAT | os.O_WRONLY))
            stay_for_ever()
        print(json.dumps({"id": message["id"], "reply": [os.getpid(), *others]}), flush=True)

    if behaviour == "stubborn":
        stay_for_ever()


if __name__ == "__main__":
    main(sys.argv[1])
