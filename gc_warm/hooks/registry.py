"""The hooks: which there are, where each runs, and what of Parsl it leans on.

A hook is done with versions of Parsl that it was tested with, and only where the functions that it
leans on are, to the letter, those that it was tested with: a site may have changed its Parsl. Else
that process is as it is without the hook, and a line says so. Some need neither, since they look at
the arguments of Parsl's worker, which are all that they rely on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gc_warm.hooks import versions

Place = Literal["worker", "manager", "user endpoint"]


@dataclass(frozen=True)
class Hook:
    """Something that changes what Parsl does.

    Attributes:
        name: The name by which `gc_warm.hooks.switch` turns it off.
        place: The process that it changes.
        module: The module of `gc_warm.hooks` with the function `install`, which takes no arguments;
            empty for those of workers, which `gc_warm.hooks.boot` sees to.
        is_option: Whether an option of a config asks for it, in the variable `variable`.
        comes_with: The hooks that ask for it; one with neither is asked for wherever hooks are.
        tested: The versions of Parsl that it was tested with; None if it relies on arguments only.
        functions: The functions of Parsl that it leans on, as in `gc_warm.hooks.versions`.
    """

    name: str
    place: Place
    module: str = ""
    is_option: bool = False
    comes_with: Sequence[str] = ()
    tested: Sequence[str] | None = None
    functions: Sequence[str] = ()

    @property
    def variable(self) -> str:
        """The variable of a block's environment that asks for it, if it is an option."""
        return f"GC_WARM_{self.name.upper()}"

    def why_not(self) -> str:
        """Return why it is not done with this Parsl; empty if it is."""
        if self.tested is None:
            return ""
        return versions.why_untested(self.tested) or versions.why_changed(self.functions)


_POOL = "parsl.executors.high_throughput.process_worker_pool:"
_EXECUTOR = "parsl.executors.high_throughput.executor:HighThroughputExecutor."
_BLOCKS = "parsl.executors.status_handling:BlockProviderExecutor."

_ALL = ("2026.4.20", *versions.TESTED_PARSL)  # the first is that of endpoints 4.10 to 4.15

_QUEUES = (
    f"{_POOL}worker",
    f"{_POOL}Manager.__init__",
    f"{_POOL}Manager._start_worker",
    f"{_POOL}Manager.interchange_communicator",
    f"{_POOL}Manager.ferry_result",
    f"{_POOL}Manager.worker_watchdog",
)

HOOKS = (
    Hook("preload", "worker", is_option=True),
    Hook(
        "preload_node",
        "manager",
        "forkserver",
        is_option=True,
        tested=versions.TESTED_PARSL,
        functions=(
            f"{_POOL}worker",
            f"{_POOL}Manager.start",
            f"{_POOL}Manager._start_worker",
            f"{_POOL}Manager.worker_watchdog",
        ),
    ),
    Hook(
        "survive_idle_kill",
        "worker",
        is_option=True,
        tested=versions.TESTED_PARSL,
        functions=_QUEUES,
    ),
    Hook(
        "warm_first",
        "worker",
        is_option=True,
        tested=versions.TESTED_PARSL,
        functions=_QUEUES,
    ),
    Hook("amd_gpus", "worker", is_option=True),
    Hook("orderly_end", "worker"),
    Hook(
        "helper_watch",
        "manager",
        "helper_watch",
        tested=versions.TESTED_PARSL,
        functions=(f"{_POOL}Manager.start", f"{_POOL}Manager.worker_watchdog"),
    ),
    Hook(
        "gate",
        "manager",
        "gate",
        comes_with=("preload", "preload_node"),
        # the first whose managers forward messages of any type as they are
        tested=versions.since("2026.10.5"),
        functions=(
            f"{_POOL}Manager.__init__",
            f"{_POOL}Manager.create_reg_message",
            f"{_POOL}Manager.interchange_communicator",
            f"{_POOL}Manager.start",
            "parsl.executors.high_throughput.interchange:"
            "Interchange.process_manager_socket_message",
        ),
    ),
    Hook(
        "backoff",
        "user endpoint",
        "backoff",
        tested=_ALL,
        functions=(f"{_BLOCKS}scale_out_facade", f"{_BLOCKS}handle_errors"),
    ),
    Hook(
        "handover",
        "user endpoint",
        "handover",
        tested=_ALL,
        functions=(
            "parsl.jobs.strategy:Strategy.__init__",
            "parsl.jobs.strategy:Strategy._general_strategy",
            "parsl.jobs.job_status_poller:JobStatusPoller.poll",
            f"{_BLOCKS}status_facade",
            f"{_BLOCKS}scale_out_facade",
            f"{_EXECUTOR}connected_managers",
            f"{_EXECUTOR}connected_blocks",
            f"{_EXECUTOR}outstanding",
        ),
    ),
)
"""All hooks."""


def hook(name: str) -> Hook:
    """Return the hook of this name."""
    return next(each for each in HOOKS if each.name == name)
