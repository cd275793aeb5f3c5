"""Exceptions in the middle of any code, as task time-outs and SIGTERM bring them.

CPython delivers them where a function starts, where a call has returned and where a loop jumps
back; `Injector` finds these points with the profiling and tracing hooks.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


class TaskTimeout(Exception):
    """What a time-out injects: unlike `SystemExit`, code that catches `Exception` catches it."""


@functools.cache
def backward_jumps(code: CodeType) -> frozenset[int]:
    """Return where *code* jumps back and looks for interruptions.

    Python 3.10 has other names for these jumps, and there the set is empty.
    """
    return frozenset(
        step.offset
        for step in dis.get_instructions(code)
        if "JUMP_BACKWARD" in step.opname and not step.opname.endswith("NO_INTERRUPT")
    )


class Injector:
    """An action at one point in the code under test.

    Args:
        point: The number of the point, or its place: the first one there.
        action: The action.
        under_test: Tells whether a file is code under test.

    Attributes:
        where: The place of the point, if it was reached.
        passed: The places of all points up to there, in their order.
    """

    def __init__(
        self, point: int | str, action: Callable[[], object], under_test: Callable[[str], bool]
    ) -> None:
        self._wanted = point
        self._action = action
        self._under_test = functools.cache(under_test)
        self.where: str | None = None
        self.passed: list[str] = []

    def run(self, operation: Callable[[], object]) -> None:
        tracing = sys.gettrace()
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        try:
            operation()
        except (TaskTimeout, SystemExit):
            assert self.where, "it was not this injector that raised"
        finally:
            sys.setprofile(None)
            sys.settrace(tracing)

    def _point(self, frame: FrameType, event: str) -> None:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}, {event}"
        self.passed.append(place)
        if self._wanted in (place, len(self.passed)):
            sys.setprofile(None)
            sys.settrace(None)
            self.where = place
            self._action()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_lasti > 0 and sys.version_info < (3, 11):
            # a generator is resumed: there, raising from the hook leaves its frame without running
            # its ``finally``
            return

        if event == "return":
            # Whether a Python call that has returned is such a point depends on the opcode and the
            # Python version. What a generator's step returns is a point in the frame that asked for
            # it: there it is a ``c_return``.
            caller = frame.f_back
            is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
            if caller and self._under_test(caller.f_code.co_filename) and not is_generator:
                self._point(frame, event)
            return

        # entering a C lock by ``with`` is not interruptible
        is_point = event == "call" or (event == "c_return" and arg.__name__ != "__enter__")
        if is_point and self._under_test(frame.f_code.co_filename):
            self._point(frame, f"{event} {getattr(arg, '__name__', '')}")

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        # of code that never jumps back, no step is looked at, which takes a fifth of the time
        if not self._under_test(frame.f_code.co_filename) or not backward_jumps(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and frame.f_lasti in backward_jumps(frame.f_code):
            self._point(frame, "backward jump")
        return self._trace
