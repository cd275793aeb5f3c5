"""A program that answers requests with themselves, and commits the fault that a request names.

With the name of a fault and a file as its arguments, it commits that fault at its first start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def answer(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "reply": message["request"]}), flush=True)


def get_there() -> None:
    """Make a file, so that a test knows that there is nothing more to wait for."""
    if path := os.environ.get("REACHED"):
        Path(path).touch()


def hang() -> NoReturn:
    get_there()
    while True:
        time.sleep(1000)


def exit_with_last_words(message: dict[str, Any]) -> NoReturn:
    print("thermostat: not converged", file=sys.stderr)
    sys.exit(7)


def crash(message: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang_and_ignore_signals(message: dict[str, Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    hang()


def write_100_mb_to_stderr(message: dict[str, Any]) -> None:
    for _ in range(100):
        os.write(2, b"WARNING: bond atoms missing\n" * (10**6 // 28))
    answer(message)


def print_noise(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(
        b'step 1\n{"energy": -1.5}\n{"id": 0, "reply": "of another"}\n'
        b'[1, 2]\nnull\n17\n{"id"\n\n\0\xff\xfe\r\n'
    )

    own = json.dumps({"id": message["id"], "name": "water"})
    print(
        f"DEBUG received {own}",
        f"got '{own}'",
        own,
        json.dumps(message),
        json.dumps(message, indent=2),
        sep="\n",
    )

    print('atom "id": ' + str(message["id"]) + ".5 moved")
    print("no line's end: " + '{"id": 0}' * 50, end="")
    answer(message)
    print("what comes after it, without a line's end", end="", flush=True)


def print_much_noise(message: dict[str, Any]) -> None:
    print("records: " + '{"id": 1}, ' * 300_000)
    answer(message)


def answer_twice(message: dict[str, Any]) -> None:
    answer(message)
    answer(message)


def answer_again_during_the_next(message: dict[str, Any]) -> None:
    answer(message)
    following = json.loads(sys.stdin.readline())
    answer(message)
    answer(following)


def write_half_a_line_and_hang(message: dict[str, Any]) -> None:
    print('{"id": ' + str(message["id"]) + ', "rep', end="", flush=True)
    hang()


def write_half_a_line_and_exit(message: dict[str, Any]) -> None:
    print('{"id": ' + str(message["id"]) + ', "rep', end="", flush=True)
    sys.exit(1)


def answer_in_invalid_json(message: dict[str, Any]) -> None:
    print('{"id": ' + str(message["id"]) + ", 'reply': None}", flush=True)


def answer_without_reply(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "result": 1}), flush=True)
    get_there()


def answer_in_pythons_own_form(message: dict[str, Any]) -> None:
    print({"id": message["id"], "reply": None}, flush=True)


def answer_with_nan(message: dict[str, Any]) -> None:
    print('{"id": ' + str(message["id"]) + ', "reply": -nan}', flush=True)


def answer_with_null_error(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "reply": message["request"], "error": None}), flush=True)


def answer_with_a_long_error(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "error": "x" * 10_000_000}), flush=True)


def answer_with_50_mb(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "reply": "x" * 50_000_000}), flush=True)


def write_without_end(message: dict[str, Any]) -> None:
    while True:
        os.write(1, b"x" * 2**20)


def close_stdout(message: dict[str, Any]) -> None:
    os.close(1)
    hang()


def close_stdin(message: dict[str, Any]) -> None:
    os.close(0)
    answer(message)
    hang()


def answer_with_an_error(message: dict[str, Any]) -> None:
    print(json.dumps({"id": message["id"], "error": "unknown pair style lj/cutt"}), flush=True)


def never_become_ready(message: dict[str, Any]) -> None:
    hang()


def main() -> None:
    faults: dict[str, Callable[[dict[str, Any]], None]] = {
        name: fault for name, fault in globals().items() if callable(fault)
    }

    if len(sys.argv) > 2 and not os.path.exists(sys.argv[2]):
        Path(sys.argv[2]).touch()
        faults[sys.argv[1]]({})

    for line in sys.stdin:
        message = json.loads(line)
        faults.get(str(message["request"]), answer)(message)


if __name__ == "__main__":
    main()
