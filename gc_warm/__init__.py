"""Warm state on Globus Compute workers: loaded once, and there for the next task.

Public names are resolved when they are first used, so that ``import gc_warm`` on a worker loads
nothing but what it needs.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from gc_warm.client.executor import WarmExecutor as WarmExecutor
    from gc_warm.client.registry import FunctionBook as FunctionBook
    from gc_warm.client.report import Report as Report
    from gc_warm.client.warm_up import WarmUp as WarmUp
    from gc_warm.client.warmth import Warmth as Warmth
    from gc_warm.exceptions import BookError as BookError
    from gc_warm.exceptions import ConfigError as ConfigError
    from gc_warm.exceptions import EndpointStartError as EndpointStartError
    from gc_warm.exceptions import NotEnoughMemoryError as NotEnoughMemoryError
    from gc_warm.exceptions import NotEnoughTimeError as NotEnoughTimeError
    from gc_warm.exceptions import ProcessDiedError as ProcessDiedError
    from gc_warm.exceptions import ProcessError as ProcessError
    from gc_warm.exceptions import ProcessStartError as ProcessStartError
    from gc_warm.exceptions import ProcessTimeoutError as ProcessTimeoutError
    from gc_warm.exceptions import ProgramError as ProgramError
    from gc_warm.exceptions import StaleModuleError as StaleModuleError
    from gc_warm.exceptions import WorkerStartError as WorkerStartError
    from gc_warm.local.cloud import LocalCloud as LocalCloud
    from gc_warm.local.daemon import EndpointDaemon as EndpointDaemon
    from gc_warm.programs.pipe import Pipe as Pipe
    from gc_warm.programs.process import ExternalProcess as ExternalProcess
    from gc_warm.programs.protocols import Marker as Marker
    from gc_warm.programs.protocols import json_lines as json_lines
    from gc_warm.programs.serve import serve as serve
    from gc_warm.programs.server import ExternalServer as ExternalServer
    from gc_warm.testing.mock import MockClient as MockClient
    from gc_warm.testing.mock import MockExecutor as MockExecutor
    from gc_warm.worker.deadline import time_left as time_left
    from gc_warm.worker.staging import stage as stage
    from gc_warm.worker.state import Info as Info
    from gc_warm.worker.state import Warm as Warm
    from gc_warm.worker.state import warm as warm
    from gc_warm.worker.validity import unchanged as unchanged

__version__ = "0.1.0"

__all__ = [
    "BookError",
    "ConfigError",
    "EndpointDaemon",
    "EndpointStartError",
    "ExternalProcess",
    "ExternalServer",
    "FunctionBook",
    "Info",
    "LocalCloud",
    "Marker",
    "MockClient",
    "MockExecutor",
    "NotEnoughMemoryError",
    "NotEnoughTimeError",
    "Pipe",
    "ProcessDiedError",
    "ProcessError",
    "ProcessStartError",
    "ProcessTimeoutError",
    "ProgramError",
    "Report",
    "StaleModuleError",
    "Warm",
    "WarmExecutor",
    "WarmUp",
    "Warmth",
    "WorkerStartError",
    "json_lines",
    "serve",
    "stage",
    "time_left",
    "unchanged",
    "warm",
]

_HOMES = {
    "EndpointDaemon": "gc_warm.local.daemon",
    "ExternalProcess": "gc_warm.programs.process",
    "ExternalServer": "gc_warm.programs.server",
    "FunctionBook": "gc_warm.client.registry",
    "Info": "gc_warm.worker.state",
    "LocalCloud": "gc_warm.local.cloud",
    "Marker": "gc_warm.programs.protocols",
    "MockClient": "gc_warm.testing.mock",
    "MockExecutor": "gc_warm.testing.mock",
    "Pipe": "gc_warm.programs.pipe",
    "Report": "gc_warm.client.report",
    "Warm": "gc_warm.worker.state",
    "WarmExecutor": "gc_warm.client.executor",
    "WarmUp": "gc_warm.client.warm_up",
    "Warmth": "gc_warm.client.warmth",
    "json_lines": "gc_warm.programs.protocols",
    "serve": "gc_warm.programs.serve",
    "stage": "gc_warm.worker.staging",
    "time_left": "gc_warm.worker.deadline",
    "unchanged": "gc_warm.worker.validity",
    "warm": "gc_warm.worker.state",
}
"""The module of each public name that is not an exception."""


def __getattr__(name: str) -> _typing.Any:
    if name not in __all__:
        raise AttributeError(f"module 'gc_warm' has no attribute {name!r}")

    home = _HOMES.get(name, "gc_warm.exceptions")
    return getattr(_importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
