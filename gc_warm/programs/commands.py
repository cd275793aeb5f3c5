"""Commands that start a program, and signals that end it: checked, and named in messages."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from gc_warm.worker import ledger

# characters of a command line in a message
_NAME_LENGTH = 60


def short_name(command: list[str]) -> str:
    """Return the name of a program in messages: its command line, or the two ends of a long one.

    Args:
        command: The program and its arguments.
    """
    line = shlex.join([os.path.basename(command[0]) or command[0], *command[1:]])
    return ledger.shortened(line, _NAME_LENGTH)


def checked_command(command: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a command as a list of strings.

    Args:
        command: The program and its arguments.

    Raises:
        TypeError: It is no sequence of strings and paths.
        ValueError: It is empty, has a NUL, or its program is a relative path.
    """
    if isinstance(command, (str, bytes)):
        raise TypeError(
            f'a command is a list such as ["bc", "-q"], not {command!r}; '
            'a line for the shell is ["sh", "-c", line]'
        )

    parts = [os.fspath(part) for part in command]
    if not parts or not all(isinstance(part, str) for part in parts):
        kind = TypeError if parts else ValueError
        raise kind(f"a command is the program and its arguments, all of them text, not {command!r}")
    if "\0" in "".join(parts):
        raise ValueError(f"a command cannot contain the character NUL, as {parts!r} does")

    is_relative = os.sep in parts[0] and not os.path.isabs(parts[0])
    if is_relative:
        raise ValueError(
            f"the program has to be an absolute path or be found on the PATH, not {parts[0]!r}: "
            "it runs in a directory of its own"
        )
    return parts


def checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of environment variables.

    Args:
        env: Names and values.

    Raises:
        TypeError: A name or a value is no text.
        ValueError: There can be no such variable.
    """
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"env={{{name!r}: {value!r}}}: names and values of environment variables are text"
            )
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(
                f"env={{{name!r}: {value!r}}}: there can be no such environment variable"
            )

    return dict(env)


def checked_seconds(name: str, value: float) -> float:
    """Return a time-out.

    Args:
        name: Name of the argument.
        value: Seconds.

    Raises:
        ValueError: It is not positive.
    """
    if not value > 0:  # nan included
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    return float(value)


def signal_name(number: int) -> str:
    """Return the name of a signal in messages.

    Args:
        number: Its number.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
