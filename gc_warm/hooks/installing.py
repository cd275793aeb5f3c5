"""The start of a manager's or a user endpoint's hooks: those that are on, asked for, and tested.

Parsl's manager runs as ``__main__``, so its classes cannot be patched ahead; a hook replaces what
Parsl takes from the standard library or from its other modules. One that raises has changed
nothing, and the process goes on as it is without it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping

from gc_warm.hooks import registry, switch


def install(place: registry.Place) -> None:
    """Start the hooks of this process, or say in a line for each why not.

    Args:
        place: The process that this is.
    """
    for hook in registry.HOOKS:
        if hook.place != place or not hook.module or not is_asked_for(hook):
            continue

        try:
            reason = hook.why_not()
            if not reason:
                importlib.import_module(f"gc_warm.hooks.{hook.module}").install()
        except Exception as error:
            reason = "".join(traceback.format_exception_only(error)).strip()
        if reason:
            complain(
                f"{hook.name} is not done in this {place}, which is as it is without it: {reason}"
            )


def is_asked_for(hook: registry.Hook) -> bool:
    """Return whether this environment asks for a hook, and nobody has switched it off."""
    if hook.name in switch.disabled():
        return False
    if hook.comes_with:
        return any(is_asked_for(registry.hook(name)) for name in hook.comes_with)
    return not hook.is_option or bool(os.environ.get(hook.variable))


def left_out(*places: registry.Place) -> Mapping[str, str]:
    """Return the hooks that this environment asks for and this Parsl leaves out, and why.

    Args:
        *places: The processes whose hooks are meant.
    """
    asked = [each for each in registry.HOOKS if each.place in places and is_asked_for(each)]
    reasons = {each.name: each.why_not() for each in asked}
    return {name: reason for name, reason in reasons.items() if reason}


def complain(message: str) -> None:
    """Print a line on stderr: the output of the block, or the log of the user endpoint."""
    print(f"gc_warm: {message}", file=sys.stderr, flush=True)
