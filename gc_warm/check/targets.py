"""The targets of `gc-warm check`, and all that the rules find in them.

A target is a config, a rendered YAML, an endpoint of this user, a Python file or module, or a
notebook. Configs have a module of their own, which is imported where the target may be one: it
takes the endpoint's loader with it, for which a Python file does not wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gc_warm.check import function_rules, python_configs, source
from gc_warm.check.inspected import Target
from gc_warm.check.task_facts import NUMBERS, Numbers
from gc_warm.configs import homes
from gc_warm.exceptions import ConfigError

if TYPE_CHECKING:  # else a Python file would wait for the endpoint's loader
    from gc_warm.check.mending import Mended


def numbers(assignments: Sequence[str]) -> Numbers:
    """Return the numbers that a command line says of tasks.

    Args:
        assignments: The numbers, each as ``load_seconds=60``.

    Raises:
        ConfigError: There is no number of that name, or its value is no number from 0 on.
    """
    known = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in NUMBERS:
            raise ConfigError(
                f"--with {assignment}: there is no {name!r}; there are {', '.join(NUMBERS)}",
                option=name,
            )

        try:
            known[name] = float(value)
        except ValueError:
            known[name] = -1.0
        if not 0 <= known[name] < float("inf"):
            raise ConfigError(f"--with {assignment}: write {name}=NUMBER, not below 0", option=name)
    return Numbers(**known)


def inspect_target(
    name: str, assignments: Sequence[str], options_file: str | None, known: Numbers, strategy: str
) -> Target:
    """Hold one target against all rules that are for it.

    Args:
        name: The target, as it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: The numbers that are known of tasks.
        strategy: The serialization strategy by which functions travel.

    Raises:
        ConfigError: The options do not fit, or the template refuses them.
        SourceError: The target is named as Python, and is not.
        OSError: There is no such target.
    """
    if _may_be_config(name):
        from gc_warm.check import config_targets

        try:
            return config_targets.find(name, assignments, options_file, known).inspect()
        except FileNotFoundError as error:
            if os.sep in name or not source.exists(name):
                raise FileNotFoundError(
                    f"{error}; nor is there a Python module of that name"
                ) from None

    elif name.endswith(".py"):
        python_configs.refuse(Path(name))

    findings, number = function_rules.examine_all(name, strategy)
    return Target(name, findings, is_empty=number == 0)


def mend_target(
    name: str, assignments: Sequence[str], options_file: str | None, known: Numbers
) -> Mended | None:
    """Make the mends of a config's findings that are one value on one literal line of its file.

    Args:
        name: The target, as it is given on the command line.
        assignments: Options of a config's folder, ``name=value``.
        options_file: A file of such options.
        known: The numbers that are known of tasks.

    Returns:
        The lines that were changed, and what is left; None if the target is no config.

    Raises:
        ConfigError: The options do not fit, the template refuses them, or the file was changed
            meanwhile.
        OSError: A file cannot be read or written.
    """
    if not _may_be_config(name):
        return None

    from gc_warm.check import config_targets, mending

    try:
        config = config_targets.find(name, assignments, options_file, known)
    except FileNotFoundError:  # which `inspect_target` says, if it is not Python
        return None
    return mending.mend(config)


def _may_be_config(name: str) -> bool:
    """Return whether something other than a Python file or module may be meant.

    A name that is nothing at all is looked up among configs, too, which are listed then.
    """
    if name.endswith(source.FILES):
        return os.path.isdir(name)

    is_there = any(path.exists() for path in homes.candidates(name))
    return is_there or os.sep in name or not source.exists(name)
