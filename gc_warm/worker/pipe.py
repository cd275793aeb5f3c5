"""Former name of `gc_warm.programs.pipe`, and of the errors of programs."""

from gc_warm._renamed import warn
from gc_warm.exceptions import (
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
    ProgramError,
)
from gc_warm.programs.pipe import Pipe

__all__ = [
    "Pipe",
    "ProcessDiedError",
    "ProcessError",
    "ProcessStartError",
    "ProcessTimeoutError",
    "ProgramError",
]

warn(__name__, "gc_warm.programs.pipe", stacklevel=2)
