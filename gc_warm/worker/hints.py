"""The hint of a task, in blanks before its serialized arguments.

A hint names what a task needs, in words of the client's own; tasks with the same hint are better
off on the same worker (see `gc_warm.hooks.routing`). All that is said of it is which hints are
equal, so that it travels as a fingerprint of 64 bits.

Each strategy that serializes data begins with a header of three characters. What follows is base
64, in which blanks mean nothing; JSON, which may begin with blanks; or the length of a part, which
Python's `int` reads with blanks before it. So the bits are blanks and tabs, and whoever
deserializes the arguments finds what would be there without them, whatever the endpoint has
installed.
"""

from __future__ import annotations

import hashlib
import re

_HEADERS = ("00\n", "11\n", "13\n")  # DillDataBase64, JSONData, AllDataStrategies
_SIZE = 8  # bytes of a fingerprint
_BEGINNING = " \t\t \t  \t"  # so that nobody else's blanks are one

# in a task as an interchange sends it, whether or not it is JSON, where "\n" is two characters
_FOUND = re.compile(
    (
        r"(?:00|11|13)(?:\n|\\n)"
        f"{_BEGINNING}((?: |\t){{{8 * _SIZE}}})".replace("\t", r"(?:\t|\\t)")
    ).encode()
)


def fingerprint(hint: str) -> bytes:
    """Return what stands for a hint.

    Args:
        hint: Any text.
    """
    encoded = hint.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=_SIZE).digest()


def write(serialized: str, hint: bytes) -> str:
    """Return serialized arguments with a hint.

    Args:
        serialized: Arguments as one of the SDK's strategies has written them; those of another are
            returned as they are.
        hint: The fingerprint of the hint.
    """
    header = serialized[: len(_HEADERS[0])]
    if header not in _HEADERS:
        return serialized
    bits = f"{int.from_bytes(hint, 'big'):0{8 * _SIZE}b}"
    blanks = bits.replace("0", " ").replace("1", "\t")
    return header + _BEGINNING + blanks + serialized[len(header) :]


def read(message: bytes) -> bytes | None:
    """Return the fingerprint of the hint in a task; None if there is none.

    Args:
        message: The task as a manager has it, or the beginning of it.
    """
    found = _FOUND.search(message)
    if found is None:
        return None
    bits = found[1].replace(rb"\t", b"1").replace(b"\t", b"1").replace(b" ", b"0")
    return int(bits, 2).to_bytes(_SIZE, "big")
