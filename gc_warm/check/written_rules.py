"""Rules for a config as it is written: what the loader refuses, or lets pass unread."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import parsl.providers
import yaml
from globus_compute_endpoint.engines.globus_compute import JobStatusPollerKwargs
from parsl.jobs.strategy import Strategy

from gc_warm.check.config_subjects import (
    SCALING,
    WRITTEN,
    Written,
    is_nan,
    shown,
)
from gc_warm.check.rules import Fix
from gc_warm.configs import folders, templates
from gc_warm.configs.repairs import ENGINE, PROVIDER
from gc_warm.configs.text import sections

_BRACES_OF_PARSL = ("launch_cmd", "container_cmd_options", "prepend")


@WRITTEN.rule("GCW000", "error")
def refused(config: Written) -> Iterator[tuple[Any, ...]]:
    """The endpoint's own loader refuses the config.

    No user endpoint starts with it, and every task that is sent to it fails.
    """
    for repair in config.repairs:
        if repair.is_refused and repair.value is not None:
            yield repair.place, repair.text, Fix(".".join(repair.place), repair.value)
        elif repair.is_refused:
            yield repair.place, repair.text
    if config.refusal is None:
        return

    # of which the loader tells no more than that it cannot be converted
    no_numbers = [name for name, value in config.engine.items() if is_nan(value)]
    if no_numbers:
        name = str(no_numbers[0])
        yield (*ENGINE, name), f"{name} .nan is not a number; write one, or leave it out"
    else:
        yield config.refusal


@WRITTEN.rule("GCW001", "error")
def unchecked(config: Written) -> Iterator[tuple[Any, ...]]:
    """A setting that the loader does not look at, and that breaks the engine when it runs.

    Nothing inside `job_status_kwargs` is checked. A key or a strategy that is unknown there, or a
    `strategy_period` that is text, ends the engine at its start. A `max_idletime` that is text is
    an error at each look once there is no task, so that idle jobs never end. Nor are the arguments
    of LocalProvider, PBSProProvider and some others checked: with numbers of blocks that are text,
    no further job starts. A name in double braces that nobody fills in is taken as it stands. An
    `address` that is a host name ends the interchange at its start: it takes numbers only.
    """
    for repair in config.repairs:
        if not repair.is_refused:
            yield repair.place, repair.text
    if not config.is_rendered:
        yield from _unfilled(config.root)

    engine = config.engine
    scaling = engine.get("job_status_kwargs")
    if isinstance(scaling, dict):
        yield from _wrong_scaling(scaling)
    elif scaling is not None:
        yield SCALING, f"job_status_kwargs {scaling!r} is no section with settings of its own"

    known = _strategies()
    strategy = engine.get("strategy")
    if strategy is not None and strategy not in known:
        yield (*ENGINE, "strategy"), f"strategy {strategy!r} is none of {', '.join(known)}"

    provider = engine.get("provider")
    if isinstance(provider, dict):
        yield from _wrong_types(provider)

    address = engine.get("address")
    if isinstance(address, str) and not templates.variables(address) and not _is_ip(address):
        text = (
            f"address {address!r} is no IP address, and the interchange takes no other; for this "
            "machine's name, write address: {type: address_by_hostname}"
        )
        yield (*ENGINE, "address"), text


def _is_ip(address: str) -> bool:
    """Tell whether an interchange can listen at an address as it is written."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _unfilled(root: yaml.Node | None) -> Iterator[tuple[Any, ...]]:
    """Yield the settings whose text has names in braces that a template would fill in."""
    for _, section in sections(root):
        for key, value in section.value:
            is_text = isinstance(value, yaml.ScalarNode)
            if not is_text or key.value in _BRACES_OF_PARSL:
                continue

            names = templates.variables(value.value)
            if names:
                shown = ", ".join(f"{{{{ {name} }}}}" for name in names)
                text = (
                    f"{key.value} has {shown}, which nobody fills in: write a value, or put the "
                    f"file into a folder as {folders.TEMPLATE} and give options"
                )
                yield key, text


def _wrong_scaling(scaling: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the settings of `job_status_kwargs` that break the engine."""
    known = list(JobStatusPollerKwargs.__annotations__)
    for name, value in scaling.items():
        place = (*SCALING, str(name))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)

        if name not in known:
            text = (
                f"job_status_kwargs has no {name!r}, and the engine will not start; "
                f"there are {', '.join(known)}"
            )
            yield place, text
        elif name == "strategy" and value is not None and value not in _strategies():
            yield place, f"strategy {value!r} is none of {', '.join(_strategies())}"
        elif name == "max_idletime" and not (is_number and value >= 0):
            text = (
                f"max_idletime {value!r} is no number of seconds; "
                "write it without quotes, and .inf for never"
            )
            yield place, text, *_unquoted(place, value)
        elif name == "strategy_period" and not (is_number and value > 0):
            yield place, f"strategy_period {value!r} is no number of seconds above 0"


def _strategies() -> list[str]:
    return [name for name in Strategy(strategy="none", max_idletime=0).strategies if name]


def _wrong_types(provider: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the values that are of another type than the provider's own defaults."""
    cls = getattr(parsl.providers, str(provider.get("type")), None)
    known = inspect.signature(cls).parameters if inspect.isclass(cls) else {}
    kinds = {int: "a number", float: "a number", str: "text", bool: "true or false"}

    for name, value in provider.items():
        wanted = type(known[name].default) if name in known else None
        # PBS takes seconds, too; another rule looks at the walltime of others
        if value is None or wanted not in kinds or name == "walltime":
            continue

        is_number = wanted in (int, float) and isinstance(value, (int, float))
        is_number = is_number and not is_nan(value)
        is_wrong_bool = isinstance(value, bool) and wanted is not bool
        fits = is_number or (isinstance(value, wanted) and not is_nan(value))
        if is_wrong_bool or not fits:
            text = (
                f"{name} {shown(value)} is not {kinds[wanted]}, "
                "which nobody notices before jobs are to start"
            )
            place = (*PROVIDER, name)
            yield place, text, *(_unquoted(place, value) if wanted in (int, float) else ())


def _unquoted(place: Sequence[str], value: Any) -> Iterator[Fix]:
    """Yield the mend of a whole number that is written as text."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        yield Fix(".".join(place), int(value))


@WRITTEN.rule("GCW002", "error")
def duplicate(config: Written) -> Iterator[tuple[Any, ...]]:
    """A setting that is given twice.

    YAML takes the last one without a word. The first may be the one you are looking at.
    """
    for _, section in sections(config.root):
        seen: set[tuple[str, str]] = set()

        for key, _ in section.value:
            name = (key.tag, str(key.value))
            if name in seen and key.value != "<<":
                text = (
                    f"{key.value} is given twice in this section: the last one counts; remove one"
                )
                yield key, text
            seen.add(name)


@WRITTEN.rule(
    "GCW003", "error", "read in globus_compute_endpoint/endpoint/config/utils.py, load_config_yaml"
)
def no_engine(config: Written) -> Iterator[tuple[Any, ...]]:
    """A config of a user endpoint without an engine.

    The loader takes it for the config of the endpoint itself, which runs no tasks, and does not
    complain.
    """
    document = config.document
    has_engine = isinstance(document, dict) and document.get("engine") is not None

    if config.refusal is None and not has_engine:
        text = (
            "there is no 'engine:' section: workers are described there, "
            "as `engine:` with `type: GlobusComputeEngine`"
        )
        yield (), text


@WRITTEN.rule("GCW019", "warning")
def pool_engine(config: Written) -> Iterator[tuple[Any, ...]]:
    """An engine whose workers cannot be relied on.

    ThreadPoolEngine runs all tasks as threads of the endpoint: they share working directory,
    environment and state, and teardowns wait for the endpoint's end. ProcessPoolEngine never
    replaces a worker that dies: after one death, every task fails. With `max_tasks_per_child` its
    workers end, and are cold again, on purpose.
    """
    engine = config.engine
    kind = engine.get("type")
    place = (*ENGINE, "type")
    if kind == "ThreadPoolEngine":
        text = (
            "ThreadPoolEngine: its tasks are threads of one process, which share "
            "working directory, environment and state; use GlobusComputeEngine"
        )
        yield place, text
    elif kind == "ProcessPoolEngine":
        often = ""
        if "max_tasks_per_child" in engine:
            often = f", and each is cold after {engine['max_tasks_per_child']} tasks"

        text = (
            "ProcessPoolEngine: when one worker dies, all tasks fail from then on"
            f"{often}; use GlobusComputeEngine"
        )
        yield place, text
