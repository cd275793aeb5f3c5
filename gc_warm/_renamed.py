"""Former names of modules, which are importable for one release and warn of it."""

from __future__ import annotations

import importlib
import sys
import warnings


def redirect(former: str, name: str) -> None:
    """Have the module *former*, which calls this as its only statement, stand for the module *name*."""
    text = f"{former} is now {name}; this name will be gone in the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    sys.modules[former] = importlib.import_module(name)
