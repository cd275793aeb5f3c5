"""Warm state on Globus Compute workers: loaded once, kept in module globals, there for the next task.

Public names are resolved when they are first used, so that ``import gc_warm`` on a worker loads nothing but what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gc_warm.check.options import ConfigError as ConfigError
    from gc_warm.client.bookfile import BookError as BookError
    from gc_warm.client.executor import StaleModuleError as StaleModuleError
    from gc_warm.client.executor import WarmExecutor as WarmExecutor
    from gc_warm.client.registry import FunctionBook as FunctionBook
    from gc_warm.testing.mock import MockClient as MockClient
    from gc_warm.testing.mock import MockExecutor as MockExecutor
    from gc_warm.testing.runners import WorkerStartError as WorkerStartError
    from gc_warm.worker.pipe import ProcessDiedError as ProcessDiedError
    from gc_warm.worker.pipe import ProcessError as ProcessError
    from gc_warm.worker.pipe import ProcessStartError as ProcessStartError
    from gc_warm.worker.pipe import ProcessTimeoutError as ProcessTimeoutError
    from gc_warm.worker.pipe import ProgramError as ProgramError
    from gc_warm.worker.process import ExternalProcess as ExternalProcess
    from gc_warm.worker.program import serve as serve
    from gc_warm.worker.protocols import Marker as Marker
    from gc_warm.worker.protocols import json_lines as json_lines
    from gc_warm.worker.state import warm as warm

__version__ = "0.1.0"

_HOME = {
    "BookError": "gc_warm.client.bookfile",
    "ConfigError": "gc_warm.check.options",
    "FunctionBook": "gc_warm.client.registry",
    "ExternalProcess": "gc_warm.worker.process",
    "json_lines": "gc_warm.worker.protocols",
    "Marker": "gc_warm.worker.protocols",
    "MockClient": "gc_warm.testing.mock",
    "MockExecutor": "gc_warm.testing.mock",
    "ProcessDiedError": "gc_warm.worker.pipe",
    "ProcessError": "gc_warm.worker.pipe",
    "ProcessStartError": "gc_warm.worker.pipe",
    "ProcessTimeoutError": "gc_warm.worker.pipe",
    "ProgramError": "gc_warm.worker.pipe",
    "serve": "gc_warm.worker.program",
    "StaleModuleError": "gc_warm.client.executor",
    "warm": "gc_warm.worker.state",
    "WarmExecutor": "gc_warm.client.executor",
    "WorkerStartError": "gc_warm.testing.runners",
}
__all__ = [
    "BookError",
    "ConfigError",
    "ExternalProcess",
    "FunctionBook",
    "Marker",
    "MockClient",
    "MockExecutor",
    "ProcessDiedError",
    "ProcessError",
    "ProcessStartError",
    "ProcessTimeoutError",
    "ProgramError",
    "StaleModuleError",
    "WarmExecutor",
    "WorkerStartError",
    "json_lines",
    "serve",
    "warm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gc_warm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
