"""Old and mistaken settings that the endpoint's loader refuses, and their repair.

The loader stops at the first setting that it does not take, in words of its own code. Here each is
named, with what to write instead, and the document is changed accordingly: so the next one is found
as well, and rules can look at the rest.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import parsl.executors
import parsl.launchers
import parsl.providers
import yaml
from globus_compute_endpoint import engines

from gc_warm.configs.text import node_at

ENGINE = ("engine",)
PROVIDER = ("engine", "provider")
LAUNCHER = ("engine", "provider", "launcher")

_TOP_LEVEL = (
    "display_name",
    "idle_heartbeats_soft",
    "idle_heartbeats_hard",
    "heartbeat_period",
    "detach_endpoint",
    "endpoint_setup",
    "endpoint_teardown",
    "amqp_port",
    "log_dir",
    "debug",
)
_OF_PROVIDERS = ("init_blocks", "min_blocks", "max_blocks", "nodes_per_block", "worker_init")
_OLD_STRATEGIES = {"SimpleStrategy": "simple"}
_MOST_REPAIRS = 50

Document = dict[str, Any]


@dataclass(frozen=True)
class Repair:
    """A setting that was changed.

    Attributes:
        place: The names of the sections that it is in, and its own.
        text: What is wrong with it, and what to write instead.
        is_refused: Whether the loader refuses it; else the engine breaks later.
        value: The value to write in its place, where nothing else has to change.
    """

    place: tuple[str, ...]
    text: str
    is_refused: bool = True
    value: str | None = None


def repair(document: Any, root: yaml.Node | None) -> tuple[Any, list[Repair]]:
    """Return a document without the old settings that are known, and their repairs.

    Args:
        document: The YAML of an endpoint, as data; it stays as it is.
        root: Its nodes, for values as they are written.
    """
    if not isinstance(document, dict):
        return document, []

    try:
        repaired = copy.deepcopy(document)
    except RecursionError:  # of which the loader will tell
        return document, []
    found = [each for step in _STEPS for each in step(repaired, root)]
    return (repaired if found else document), found


def repair_refused(document: Document, root: yaml.Node | None, complaint: str) -> list[Repair]:
    """Change the settings in a document that a complaint of the loader names.

    Args:
        document: The YAML of a user endpoint, as data, which is changed.
        root: Its nodes.
        complaint: The loader's message.

    Returns:
        The repairs; none where the complaint is about something else.
    """
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", complaint)
    if unknown:
        return _unknown_setting(document, unknown[1], unknown[2], complaint)

    no_text = re.match(
        r'argument "(\w+)" \((?:int|float|bool|datetime\.date)\) '
        r"(?:is not an instance of str|did not match any element in the union:\s+str: )",
        complaint,
    )
    if no_text:
        return _not_text(document, root, no_text[1])

    no_texts = re.match(
        r'argument "(\w+)" \(list\) .* item \d+ is not an .* str$', complaint, re.DOTALL
    )
    if no_texts:
        return _not_texts(document, no_texts[1])

    unknown_names = re.findall(r"^(\w+): Unexpected keyword argument$", complaint, re.MULTILINE)
    for name in unknown_names:
        document.pop(name, None)
    return [Repair((name,), f"{name}: there is no such setting") for name in unknown_names]


def most_repairs() -> range:
    """Return the numbers of as many tries to load a document as are worth it."""
    return range(_MOST_REPAIRS)


def _lost_indentation(document: Document, root: yaml.Node | None) -> Iterator[Repair]:
    """Move settings of a section whose name stands alone before them into it."""
    if "engine" in document and document["engine"] is None and "type" in document:
        names = [name for name in document if name not in ("engine", *_TOP_LEVEL)]
        document["engine"] = {name: document.pop(name) for name in names}
        yield Repair(ENGINE, _indent("engine", names))

    engine = _section(document, "engine")
    if "provider" in engine and engine["provider"] is None:
        cls = engine.get("type")
        names = [name for name in engine if name in _OF_PROVIDERS]
        if not names:
            return

        is_providers = str(cls).endswith("Provider")  # the second `type:` has replaced the first
        if is_providers:
            engine["type"] = "GlobusComputeEngine"
        moved = {name: engine.pop(name) for name in names}
        engine["provider"] = {"type": cls if is_providers else "LocalProvider", **moved}
        yield Repair(PROVIDER, _indent("provider", names))


def _indent(section: str, names: Sequence[str]) -> str:
    return (
        f"{section}: is empty, and {', '.join(map(str, names))} stand beside it: "
        "indent them by two more spaces"
    )


def _old_engine(document: Document, root: yaml.Node | None) -> Iterator[Repair]:
    engine = _section(document, "engine")
    if engine.get("type") == "HighThroughputEngine":
        engine["type"] = "GlobusComputeEngine"
        yield Repair(
            (*ENGINE, "type"),
            "HighThroughputEngine is gone: write GlobusComputeEngine",
            value="GlobusComputeEngine",
        )


def _old_number_of_workers(document: Document, root: yaml.Node | None) -> Iterator[Repair]:
    engine = _section(document, "engine")
    is_old = "max_workers" in engine and engine.get("type") != "ProcessPoolEngine"
    if is_old and engine.get("type") != "ThreadPoolEngine":
        number = engine.pop("max_workers")
        engine.setdefault("max_workers_per_node", number)
        yield Repair(
            (*ENGINE, "max_workers"),
            f"max_workers is now max_workers_per_node: write max_workers_per_node: {number}",
        )


def _old_strategy(document: Document, root: yaml.Node | None) -> Iterator[Repair]:
    engine = _section(document, "engine")
    old = engine.get("strategy")
    if not isinstance(old, dict):
        return

    new = _OLD_STRATEGIES.get(str(old.get("type")), "simple")
    advice = f"write strategy: {new}"
    engine["strategy"] = new
    if "max_idletime" in old:
        idle = old["max_idletime"]
        scaling = engine.get("job_status_kwargs") or {}
        if isinstance(scaling, dict):  # else another rule says that it is no section
            engine["job_status_kwargs"] = {"max_idletime": idle, **scaling}
        advice += f" and job_status_kwargs: {{max_idletime: {idle}}}"

    text = f"strategy is a name now, one of none, simple, htex_auto_scale: {advice}"
    yield Repair((*ENGINE, "strategy"), text, is_refused=False)


def _port_ranges(document: Document, root: yaml.Node | None) -> Iterator[Repair]:
    """Drop ranges of ports, for which Parsl wants a tuple, of which YAML has none."""
    engine = _section(document, "engine")
    for name in ("worker_port_range", "interchange_port_range"):
        if not isinstance(engine.get(name), list):
            continue

        value = engine.pop(name)
        remedy = "leave it out"
        if name == "worker_port_range":
            remedy = f"give worker_port, one of them: worker_port: {value[0] if value else 50000}"
        yield Repair((*ENGINE, name), f"{name} {value}: the loader takes no range; {remedy}")


_STEPS: tuple[Callable[[Document, yaml.Node | None], Iterator[Repair]], ...] = (
    _lost_indentation,
    _old_engine,
    _old_number_of_workers,
    _old_strategy,
    _port_ranges,
)


def _unknown_setting(document: Document, cls: str, name: str, complaint: str) -> list[Repair]:
    """Move the setting to the section that takes it, give it a name that is near, or remove it."""
    place: tuple[str, ...]
    if cls.endswith("Launcher"):
        place = LAUNCHER
    elif cls.endswith("Provider"):
        place = PROVIDER
    else:
        place = ENGINE
    section = _section(document, *place)
    if name not in section:
        return []

    known = [each for each in _parameters(cls) if each not in section]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    other = _other_section(document, place, name)
    value = section.pop(name)
    complaint = complaint.partition(". Did you mean")[0]  # of Python 3.13, about any of its names
    advice = "remove it"
    if other:
        _section(document, *other)[name] = value
        advice = f"write it under {other[-1]}:"
    elif near:
        section[near[0]] = value
        advice = f"did you mean {near[0]!r}?"
    return [Repair((*place, name), f"{complaint}; {advice}")]


def _other_section(document: Document, place: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return the place of the engine or the provider, whichever takes what the other does not."""
    other = {ENGINE: PROVIDER, PROVIDER: ENGINE}.get(place, ())
    section = _section(document, *other) if other else {}
    cls = "HighThroughputExecutor" if other == ENGINE else str(section.get("type"))
    return other if section and name not in section and name in _parameters(cls) else ()


def _parameters(cls: str) -> list[str]:
    """Return the names of the settings that a class of Parsl or of the endpoint takes."""
    found = [
        getattr(module, cls, None)
        for module in (parsl.executors, parsl.providers, parsl.launchers, engines)
    ]
    if cls.endswith("Executor"):
        found.append(engines.GlobusComputeEngine)
    classes = [each for each in found if inspect.isclass(each)]
    return [name for each in classes for name in inspect.signature(each).parameters]


def _not_text(document: Document, root: yaml.Node | None, name: str) -> list[Repair]:
    """Make text of a value that YAML takes for something else, as it is written."""
    for place in (ENGINE, PROVIDER, LAUNCHER):
        section = _section(document, *place)
        value = section.get(name)
        if value is None or isinstance(value, (str, list, dict)):
            continue

        node = node_at(root, (*place, name))
        written = str(node.value) if isinstance(node, yaml.ScalarNode) else str(value)
        section[name] = written
        if isinstance(value, bool):
            read = str(value).lower()
        elif isinstance(value, (int, float)):
            read = f"the number {value}"
        else:
            read = f"the date {value}"
        text = f'write {name}: "{written}", in quotes: YAML reads it as {read}'
        return [Repair((*place, name), text, value=written)]
    return []


def _not_texts(document: Document, name: str) -> list[Repair]:
    """Make texts of the numbers in a list, such as those of GPUs."""
    engine = _section(document, *ENGINE)
    values = engine.get(name)
    if not isinstance(values, list) or not all(type(each) is int for each in values):
        return []

    engine[name] = [str(each) for each in values]
    written = ", ".join(f'"{each}"' for each in values)
    return [Repair((*ENGINE, name), f"write {name}: [{written}], in quotes: they are names")]


def _section(document: Any, *place: str) -> Document:
    """Return the section at a place; an empty one, of no document, if there is none."""
    for name in place:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}
