"""The exceptions that users of gc_warm catch.

All of them pickle, and name `gc_warm` as their module: so a client of another version can load an
exception that a worker sends.
"""

from __future__ import annotations

__all__ = [
    "BookError",
    "ConfigError",
    "EndpointStartError",
    "NotEnoughMemoryError",
    "NotEnoughTimeError",
    "ProcessDiedError",
    "ProcessError",
    "ProcessStartError",
    "ProcessTimeoutError",
    "ProgramError",
    "StaleModuleError",
    "WorkerStartError",
]


class BookError(ValueError):
    """A function book, or a function that should go into it, is not as it has to be.

    The text names the book and the function.
    """


class ConfigError(ValueError):
    """An endpoint config, or the options for it, cannot be right.

    The text names file, line and option. Of several mistakes, the attributes are of the first.

    Attributes:
        file: The file; None where the mistake is in none.
        line: The line in that file, from 1; None where that is not known.
        column: The column in that line, from 1; None where that is not known.
        option: The option's name, or a setting's with those of its sections and dots between them,
            such as ``engine.provider.walltime``; None where it is about none.
    """

    def __init__(
        self,
        message: str = "",
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        option: str | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.column = column
        self.option = option


class StaleModuleError(RuntimeError):
    """A worker holds another version of a module than there is now.

    The result is one of old state.
    """


class WorkerStartError(RuntimeError):
    """A worker ended before it was ready to take a task."""


class EndpointStartError(RuntimeError):
    """An endpoint's daemon ended before it was online, or did not get there in time."""


class NotEnoughMemoryError(RuntimeError):
    """A load was not begun, since its worker's node has not the memory for it.

    So it is where `preload_node` was to load one copy for all workers of the node, which cannot be
    shared there, and a copy for each does not fit. The text says why.
    """


class NotEnoughTimeError(RuntimeError):
    """A load would take longer than the job of its worker has left.

    It is for loaders to raise, when they have asked `gc_warm.time_left`.

    Attributes:
        needed: The seconds that the load takes.
        left: The seconds until the job ends.
    """

    def __init__(self, needed: float, left: float) -> None:
        super().__init__(needed, left)
        self.needed = needed
        self.left = left

    def __str__(self) -> str:
        return (
            f"{self.needed:.1f} s are needed, and this worker's job ends in {self.left:.1f} s: "
            "submit it again when the next job has started, or give jobs a longer walltime"
        )


class ProcessError(RuntimeError):
    """A call to an external program failed.

    Attributes:
        message: The event, in words.
        status: The program's exit status; negative for the signal that killed it, None if it had
            not ended by itself.
        stdout: The end of the program's standard output during this call, as text.
        stderr: The end of the program's standard error during this call, as text.
    """

    def __init__(
        self, message: str, status: int | None = None, stdout: str = "", stderr: str = ""
    ) -> None:
        super().__init__(message, status, stdout, stderr)
        self.message = message
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        return self.message + _quoted("stdout", self.stdout) + _quoted("stderr", self.stderr)


class ProcessDiedError(ProcessError):
    """The program ended, or closed its output, before it had answered.

    The next call starts it again.
    """


class ProcessStartError(ProcessDiedError):
    """The program could not be started, or ended before its first answer.

    The next call tries again.
    """


class ProcessTimeoutError(ProcessError):
    """No answer came within the call's deadline; the program was ended.

    The next call starts it again.
    """


class ProgramError(ProcessError):
    """The program answered with an error; its streams are in step, and it is still warm."""

    def __str__(self) -> str:
        quoted = "" if self.stderr in self.message else _quoted("stderr", self.stderr)
        return self.message + quoted


def _quoted(stream: str, text: str) -> str:
    return f"\n--- the end of its {stream} ---\n{text}" if text else ""


for _name in __all__:
    globals()[_name].__module__ = "gc_warm"
