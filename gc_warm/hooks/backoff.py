"""Jobs that the scheduler refuses are asked for less and less often.

While tasks wait, Parsl asks every few seconds for as many blocks as they need, however often the
scheduler has refused (a limit, a quota, a bad account): 720 times an hour, times the blocks. Here a
refusal ends the round, and the next one waits 5 s, then 10, up to ten minutes. A job that is
accepted ends that, and so does the end of a job of this endpoint: it may have made room within a
limit. Tasks wait meanwhile, as they do without this.

It stands in for `BlockProviderExecutor.scale_out_facade`, which it calls for one block at a time.
Only providers that submit to a scheduler are concerned. At whatever is not as it is known here,
Parsl's own function is all that is left.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

# A child of Parsl's: the endpoint sets up its log by naming loggers, and switches others off.
log = logging.getLogger("parsl.gc_warm")

FIRST_DELAY = 5.0  # seconds
LONGEST_DELAY = 600.0  # seconds
RECORD = "refused_job.json"
"""The file in a user endpoint's folder that has its last refusal, until a job is accepted."""


@dataclass(frozen=True)
class Refusal:
    """A scheduler's refusal of a job.

    Attributes:
        text: The scheduler's words.
        tries: How many it has refused in a row.
        time: The time of the refusal, in seconds since the epoch.
        next_try: The earliest time of the next try, likewise.
    """

    text: str
    tries: int
    time: float
    next_try: float


def read(folder: Path) -> Refusal | None:
    """Return the last refusal of a user endpoint; None if its last job was accepted.

    Args:
        folder: The folder of the user endpoint.
    """
    try:
        return Refusal(**json.loads((folder / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write(folder: Path, refusal: Refusal | None) -> None:
    """Write down the last refusal, or that there is none, if there is room for that.

    Args:
        folder: The folder of the user endpoint.
        refusal: The refusal; None after a job that was accepted.
    """
    path = folder / RECORD
    beside = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        if refusal is None:
            path.unlink(missing_ok=True)
        else:
            beside.write_text(json.dumps(asdict(refusal)))
            beside.replace(path)


def install(first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> None:
    """Have all executors of this process wait after a refusal.

    Args:
        first: Seconds to wait after the first refusal; each further one doubles it.
        longest: The most seconds to wait.

    Raises:
        TypeError: This Parsl is not as it is known here.
    """
    from parsl.executors.status_handling import BlockProviderExecutor
    from parsl.providers.cluster_provider import ClusterProvider

    stock = BlockProviderExecutor.scale_out_facade
    if list(inspect.signature(stock).parameters) != ["self", "n"]:
        raise TypeError(f"this Parsl is not as gc_warm knows it: {inspect.signature(stock)}")

    backoff = _Backoff(stock, first, longest)

    def scale_out_facade(self: Any, n: int) -> list[str]:
        if isinstance(self.provider, ClusterProvider):
            return backoff.scale_out(self, n)
        return stock(self, n)

    BlockProviderExecutor.scale_out_facade = scale_out_facade  # type: ignore[method-assign]


@dataclass
class _Row:
    """The refusals in a row of one executor, and when they end.

    Attributes:
        tries: How many there are.
        delay: Seconds between the last one and the next try.
        next_try: The earliest time of that, on the monotonic clock.
        jobs: How many jobs the executor had at the last one.
    """

    tries: int = 0
    delay: float = 0.0
    next_try: float = 0.0
    jobs: int = 0


class _Backoff:
    """The way in which executors ask for blocks.

    Args:
        stock: Parsl's own function for that.
        first: Seconds to wait after the first refusal; each further one doubles it.
        longest: The most seconds to wait.
    """

    def __init__(
        self, stock: Callable[[Any, int], list[str]], first: float, longest: float
    ) -> None:
        self._stock = stock
        self._first = first
        self._longest = longest
        self._rows: WeakKeyDictionary[Any, _Row] = WeakKeyDictionary()
        self._is_off = False

    def scale_out(self, executor: Any, n: int) -> list[str]:
        """Ask for blocks one by one, up to the first that is refused.

        Args:
            executor: The executor.
            n: How many blocks it wants.

        Returns:
            The ids of the blocks that it gets.
        """
        launched: list[str] = []
        for _ in range(n):
            if self._guarded(self._has_to_wait, executor):
                break
            block = self._stock(executor, 1)
            launched += block
            self._guarded(self._note, executor, bool(block))
        return launched

    def _guarded(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Do a step of ours; one that fails is the last."""
        if self._is_off:
            return None
        try:
            return step(*arguments)
        except Exception:
            self._is_off = True
            log.warning("refused jobs are tried again every few seconds from here", exc_info=True)
            return None

    def _has_to_wait(self, executor: Any) -> bool:
        row = self._rows.setdefault(executor, _Row())
        if _jobs(executor) < row.jobs:
            self._rows[executor] = _Row()
            return False
        return bool(row.tries) and time.monotonic() < row.next_try

    def _note(self, executor: Any, is_accepted: bool) -> None:
        """Note what has become of the latest block that was asked for."""
        folder = Path(executor.run_dir)
        row = self._rows[executor]
        if is_accepted:
            if row.tries:
                log.info("the scheduler has accepted a job (refusals before: %d)", row.tries)
            self._rows[executor] = _Row()
            write(folder, None)
            return

        latest = max(executor.status_facade, key=int)
        text = _words(str(executor.status_facade[latest].message))
        row.tries += 1
        row.delay = min(row.delay * 2 or self._first, self._longest)
        row.next_try = time.monotonic() + row.delay
        row.jobs = _jobs(executor)
        log.warning(
            "the scheduler has refused a job (refusal %d in a row; the next try is in %.0f s, or "
            "when a job of this endpoint ends): %s",
            row.tries,
            row.delay,
            text,
        )
        now = time.time()
        write(folder, Refusal(text, row.tries, now, now + row.delay))


def _jobs(executor: Any) -> int:
    return sum(not status.terminal for status in executor.status_facade.values())


def _words(message: str) -> str:
    """Return what the scheduler's command has printed; all of the message if it printed nothing."""
    found = re.search(r"stdout=(.*), stderr=(.*)$", message, re.DOTALL)
    printed = "\n".join(part.strip() for part in reversed(found.groups())) if found else ""
    return printed.strip() or message
