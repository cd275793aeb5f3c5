"""The administrator's switch: ``GC_WARM_DISABLE`` in an environment turns hooks off.

Its value is ``all``, or names of hooks with commas or blanks between them. No option of a config
turns a hook back on: the variable is looked at where a block prepares its workers, and again in
every worker, since nodes may differ. It is no wall against users who run shell lines of their own
before their workers (the option ``environment``): these can unset it. Hooks of the user endpoint's
own process look at it when that starts.
"""

from __future__ import annotations

import os
import re

import gc_warm

DISABLE = "GC_WARM_DISABLE"
"""The variable. It stays in the environment, since it is not ours to remove."""

WORKER_HOOKS = (
    "preload",
    "preload_node",
    "survive_idle_kill",
    "warm_first",
    "amd_gpus",
    "orderly_end",
    "helper_watch",
    "gate",
)
ENDPOINT_HOOKS = ("backoff",)
HOOKS = (*WORKER_HOOKS, *ENDPOINT_HOOKS)
"""The names that the variable can hold, besides ``all``."""


def disabled() -> frozenset[str]:
    """Return the names of the hooks that are off here."""
    named = _named()
    return frozenset(HOOKS) if "all" in named else named.intersection(HOOKS)


def describe() -> str:
    """Return one line that says which hooks are off, and which names are none; empty if neither."""
    off = [hook for hook in HOOKS if hook in disabled()]
    unknown = sorted(_named().difference(HOOKS, ["all"]))

    parts = []
    if off:
        parts.append(f"switched off: {', '.join(off)}")
    if unknown:
        parts.append(
            f"no hook of gc_warm {gc_warm.__version__}: {', '.join(unknown)} "
            f"(there are {', '.join(HOOKS)}, and all)"
        )
    return f"{DISABLE}={os.environ[DISABLE]!r}: {'; '.join(parts)}" if parts else ""


def _named() -> frozenset[str]:
    value = os.environ.get(DISABLE, "").lower().replace("-", "_")
    return frozenset(re.split(r"[,\s]+", value)) - {""}
