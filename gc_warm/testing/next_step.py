"""The next step, in one line, under the error of a task that failed behind a stand-in.

The text that a real endpoint sends stays as it is: it is the error's ``remote_data``, and what the
error says comes first. A new kind of error is one function with the decorator `_advises`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from globus_compute_sdk.errors import SerializationError, TaskExecutionFailed


class ExplainedFailure(TaskExecutionFailed):
    """The SDK's error of a task, with one more line: the cause, and what to do.

    Attributes:
        next_step: That line.
    """

    def __init__(self, remote_data: str, completion_t: str | None, next_step: str) -> None:
        super().__init__(remote_data, completion_t)
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{super().__str__().rstrip()}\n\ngc_warm: {self.next_step}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.remote_data, self.completion_t, self.next_step)


# a traceback reads as with a real endpoint
ExplainedFailure.__module__ = TaskExecutionFailed.__module__
ExplainedFailure.__qualname__ = TaskExecutionFailed.__qualname__


def _rebuild(remote_data: str, completion_t: str, next_step: str) -> ExplainedFailure:
    """Return the error that was pickled, whose class is not found by its name."""
    return ExplainedFailure(remote_data, completion_t, next_step)


@dataclass(frozen=True)
class _Failed:
    """A failed task: the endpoint's text, and what the client knows of it.

    Attributes:
        text: The endpoint's text.
        spawned: Whether the workers are spawned, and not those of a config's engine.
        stateful: Whether the function is a @warm function itself.
    """

    text: str
    spawned: bool
    stateful: bool

    def importable(self, folder: str) -> str:
        """Return what makes the modules of a folder importable on the workers."""
        if self.spawned:
            return f"pass pythonpath=[{folder}] to MockExecutor"
        return f"put {folder} on PYTHONPATH in the config's worker_init"


_Advice = Callable[[_Failed, re.Match[str]], str]
_ADVICE: list[tuple[re.Pattern[str], _Advice]] = []


def failure(text: str, *, spawned: bool, stateful: bool) -> TaskExecutionFailed | None:
    """Return the error of a failed task with the next step, or None if there is nothing to add.

    Args:
        text: The endpoint's text about the task.
        spawned: Whether the workers are spawned, and not those of a config's engine.
        stateful: Whether the function that was submitted is a @warm function itself.
    """
    last_line = text.rstrip().rpartition("\n")[2]
    for pattern, advice in _ADVICE:
        match = pattern.match(last_line)
        if match:
            next_step = advice(_Failed(text, spawned, stateful), match)
            return ExplainedFailure(text, "0", next_step)
    return None


def holds_state(function: object) -> bool:
    """Return whether a function is a @warm function, whose result is its state."""
    state = sys.modules.get("gc_warm.worker.state")  # else there is none
    return state is not None and isinstance(function, state.Warm)


def explain_refusal(function: object, error: SerializationError) -> None:
    """Add the next step to the error of a function that could not be registered.

    Args:
        function: The function.
        error: The SDK's error, which is changed.
    """
    if holds_state(function):
        error.reason += (
            "\n\ngc_warm: a @warm function stays in its module, which the workers import: submit a "
            "function that imports it in its body and returns what it computes"
        )


def _advises(pattern: str) -> Callable[[_Advice], _Advice]:
    """Register the advice on errors whose last line begins like *pattern*."""

    def register(advice: _Advice) -> _Advice:
        _ADVICE.append((re.compile(pattern), advice))
        return advice

    return register


@_advises(r"NameError: name '(\w+)' is not defined")
def _unknown_name(failed: _Failed, match: re.Match[str]) -> str:
    name = match[1]
    return (
        f"{name!r} is not there where the function ran: one that is sent as source, or from a "
        f"script or notebook, has nothing of its module around it. Import or define {name!r} in "
        f"its body, or move it to a module and {failed.importable('its folder')}"
    )


@_advises(r"ModuleNotFoundError: No module named '([\w.]+)'")
def _unknown_module(failed: _Failed, match: re.Match[str]) -> str:
    name = match[1]
    package, _, last = name.rpartition(".")
    if package:  # of what is missing, Python names the outermost
        return (
            f"the workers have {package!r}, and no {last!r} in it: it is another version of it, "
            "something else of that name, or a mistake in the import"
        )

    folder = _folder_of(name)
    if folder is None:
        return (
            f"the workers cannot import {name!r}, and neither can this client: install it, or "
            f"{failed.importable('its folder')}"
        )

    if os.path.basename(folder) in ("site-packages", "dist-packages"):
        return f"{name!r} is installed here, and not where the workers are: install it there, too"
    return (
        f"the workers have nothing of this client's import path, where {name!r} is: "
        f"{failed.importable(repr(folder))}. A real endpoint needs it, too"
    )


@_advises(r"\S*\bSerializationError: Serialization failed: All strategies failed")
@_advises(r"MaxResultSizeExceeded\(")
def _unsent_result(failed: _Failed, match: re.Match[str]) -> str:
    cause = _cause(failed.text)
    if failed.stateful:
        return (
            f"a @warm function returns its state, which cannot be sent ({cause}) and is to stay on "
            "the worker: submit a function that imports it in its body and returns what it computes"
        )

    return (
        f"the task ran, but its result cannot be sent ({cause}): return plain data, or write a "
        "file and return its path"
    )


def _cause(text: str) -> str:
    """Return why the first of the strategies has failed, from the text of them all."""
    first = re.split(r"^ *\+-+ 2 -+$", text, maxsplit=1, flags=re.MULTILINE)[0]
    errors = re.findall(r"^ *\| ((?!ExceptionGroup)[A-Za-z_][\w.]*: .+)$", first, re.MULTILINE)
    if errors:
        return f"{errors[-1]:.200}"

    sizes = re.fullmatch(r"MaxResultSizeExceeded\((\d+), (\d+)\)", text.strip())
    if sizes:
        return f"{sizes[1]} bytes of text, where {sizes[2]} is the limit"
    return "no strategy can serialize it"


def _folder_of(module: str) -> str | None:
    """Return the folder from which this process would import a module, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None

    package = list(spec.submodule_search_locations or ())
    file = package[0] if package else spec.origin
    if file is None or not os.path.isabs(file):
        return None
    return os.path.dirname(file)
