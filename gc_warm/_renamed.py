"""Former names of modules, which can be imported for one release, and warn of it."""

from __future__ import annotations

import importlib
import sys
import warnings


def redirect(former: str, name: str) -> None:
    """Have the former name of a module stand for the module, and warn of it.

    Args:
        former: The ``__name__`` of a module that does nothing but call this.
        name: The module's present name.
    """
    warn(former, name, stacklevel=3)
    sys.modules[former] = importlib.import_module(name)


def warn(former: str, name: str, stacklevel: int) -> None:
    """Warn whoever imports a module by its former name.

    Args:
        former: The module's former name.
        name: Its present name.
        stacklevel: 2 where the module itself calls this, and one more for each function between.
    """
    text = f"{former} is now {name}; this name will be gone in the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel + 1)
