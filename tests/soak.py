"""A soak: thousands of tasks on the endpoint's real engine, of which parts are killed at random.

    python tests/soak.py --minutes 3

Tasks of all kinds (see `KINDS`) are sent to two blocks of two workers each, while a thread kills
processes that it finds by their roles (`KILLED`). It ends with one line, and with the status 1 if
something in it should be 0 and is not, or memory has grown; then the offences are told on stderr,
and the engine's logs are kept. `--seed` repeats the choice of tasks and kills, though not the
moments at which they meet.

A task may be lost only by a kill that explains it. `WorkerLost` needs a killed worker, which may
have been taking the task from the queue (see `gc_warm.hooks.queues`), so that one kill explains one
such loss, and that of a template as many as it has workers; `ManagerLost` names a manager, which
has to be a killed one; the error of a program needs a kill of it, or of its supervisor, under the
worker of the task; that of a server, a kill for each of the workers that may have used it. Each
task notes in a file that it has begun: it is doubled if two lines have its number.

Workers are forked from a template (the option ``preload_node``), until two templates of a manager
have died: the line says how many were born from a first one, from a second one, and how many were
started. Each finds what its template has loaded, or has loaded it once.

Tasks that use a table go to the worker that holds it (the option ``warm_first``), and so a node
fetches tasks ahead, which are lost with its manager; ``--no-routing`` does without, as in stock.

Memory is what a process has that is of no file (RSS without what is shared); what a worker was born
with is part of it, so that it does not grow by its copies. The medians of the first and of the last
fifth of its samples are compared, and what was added is divided by the number of tasks between
them, in units of ten thousand: of all tasks for the client, and of its own for a worker. Of fewer
tasks than that, nothing is concluded: for the first thousands, a client grows by what it holds at
once. The samples begin when the first of everything is over (`WARM_UP`). The worker is one that is
spared, with its manager, since the others do not live for long enough.

Also spared is a worker while a result of more than a mebibyte may be on its way: in the very middle
of writing that, a kill still leaves the pipe out of step.

Nothing may be there that has outlived what it belongs to, such as a program its worker, when the
last task has ended; and nothing at all, when the engine has.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import queue
import random
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before those of this script's folder, which has packages of the same names as modules of the tests
sys.path.insert(0, str(Path(__file__).parent / "modules"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import soaked

from gc_warm import MockExecutor, WarmExecutor
from tests import roles
from tests.soak_account import KILLED, KINDS, WORKERS, Account, Kill, Memory

BLOCKS = 2
AHEAD = 16  # tasks that a node fetches, as with the option `warm_first`
WINDOW = 12  # tasks under way
KILL_INTERVAL = 1.5  # seconds between kills, on average
IDLE_CHANCE = 0.004  # of a pause before a task, so that workers are idle
TASK_TIMEOUT = 30  # seconds, of the endpoint's own
START_TIMEOUT = 600  # seconds until all workers are there
PATIENCE = 240  # seconds after which a task counts as one that never ends
LEAVE_TIME = 120  # seconds in which what is left may still go
SHOWN = 20  # offences on stderr
SAMPLE_INTERVAL = 1.0  # seconds
WARM_UP = 1000  # tasks before the first sample of memory
MARK = "GC_WARM_SOAK"

CONFIG = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {workers}
  cores_per_worker: 0.01
  prefetch_capacity: {ahead}
  address: 127.0.0.1
  heartbeat_period: 1
  heartbeat_threshold: 30
  block_error_handler: false
  job_status_kwargs: {{strategy_period: 0.5, max_idletime: 36000}}
  provider:
    type: LocalProvider
    init_blocks: {blocks}
    min_blocks: {blocks}
    max_blocks: {blocks}
    worker_init: |
      export PYTHONPATH={modules} {record_name}={record} GC_TASK_TIMEOUT={task_timeout}
      eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {boot})"
"""


# The run


class Killer:
    """The thread that kills.

    Args:
        account: Where the kills are noted, before each.
        mark: The mark of all processes of the engine.
        seed: The seed of its choices.

    Attributes:
        spared: The worker that is spared, with its manager; None if none is.
    """

    def __init__(self, account: Account, mark: str, seed: int) -> None:
        self.spared: roles.Member | None = None
        self._account = account
        self._mark = mark
        self._chance = random.Random(f"kills {seed}")
        self._huge = 0  # tasks under way that may not meet the kill of a worker
        self._gate = threading.Condition()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-killer")

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self.count_huge(0)
        self._thread.join()

    def count_huge(self, added: int) -> None:
        """Count the tasks under way that may not meet the kill of a worker.

        Args:
            added: The number of those that begin, or less than 0 for those that have ended.
        """
        with self._gate:
            self._huge += added
            self._gate.notify()

    def _run(self) -> None:
        while not self._done.wait(self._chance.expovariate(1 / KILL_INTERVAL)):
            (role,) = self._chance.choices(list(KILLED), list(KILLED.values()))
            found = [
                member
                for member in roles.find(MARK, self._mark)
                if member.role == role and not self._is_spared(member)
            ]
            if found:
                self._kill(self._chance.choice(sorted(found, key=lambda each: each.process.pid)))

    def _is_spared(self, member: roles.Member) -> bool:
        if self.spared is None or member.pool != self.spared.pool:
            return False
        return member.role != "worker" or member.rank == self.spared.rank

    def _kill(self, member: roles.Member) -> None:
        parent = member.parent
        if member.role == "program":
            # what it is a program of is the parent of its supervisor
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(parent).ppid()

        with self._gate:
            if member.role in ("worker", "template"):
                self._gate.wait_for(lambda: self._huge == 0 or self._done.is_set())
            if self._done.is_set():
                return

            with contextlib.suppress(psutil.Error):  # it has just ended
                kill = Kill(
                    member.role, member.process.pid, parent, member.pool, workers_of(member)
                )
                # first, so that no loss is known before its kill
                self._account.kills.append(kill)
                try:
                    member.process.kill()
                except psutil.Error:
                    self._account.kills.remove(kill)
                    raise


def workers_of(member: roles.Member) -> tuple[int, ...]:
    """Return the workers that end if a process is killed, which forks no others meanwhile."""
    if member.role == "worker":
        return (member.process.pid,)
    if member.role != "template":
        return ()

    member.process.suspend()
    return tuple(child.pid for child in member.process.children())


@dataclass(frozen=True)
class Open:
    """A task under way."""

    kind: str
    arguments: tuple[Any, ...]
    since: float


class Soak:
    """A run.

    Args:
        executor: The executor that tasks are sent to.
        killer: The thread that kills.
        account: What becomes of it.
        seed: The seed of the choice of tasks.
    """

    def __init__(self, executor: WarmExecutor, killer: Killer, account: Account, seed: int) -> None:
        self._executor = executor
        self._killer = killer
        self._account = account
        self._chance = random.Random(f"tasks {seed}")
        self._open: dict[int, Open] = {}
        self._ended: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._worker_tasks = Counter[int]()
        self._client = Memory(os.getpid())
        self._worker: Memory | None = None
        self._next_sample = 0.0
        self._progress = Progress(account)

    def run(self, tasks: int, seconds: float) -> bool:
        """Send tasks, and return whether all have ended.

        Args:
            tasks: Number of tasks.
            seconds: Seconds after which no more are sent.
        """
        end = time.monotonic() + seconds
        while self._account.sent < tasks and time.monotonic() < end:
            if self._chance.random() < IDLE_CHANCE:
                time.sleep(self._chance.uniform(0.2, 1.0))

            if not self._drain(WINDOW - 1):
                return False
            self._send()
        return self._drain(0)

    def spare(self, worker: roles.Member) -> None:
        """Have a worker spared, with its manager, and watch its memory.

        Args:
            worker: The worker.
        """
        self._worker = Memory(worker.process.pid)
        self._killer.spared = worker

    def _send(self) -> None:
        (name,) = self._chance.choices(list(KINDS), [kind.weight for kind in KINDS.values()])
        kind = KINDS[name]
        arguments = kind.arguments(self._chance)
        token = self._account.sent
        self._killer.count_huge(int(kind.is_huge))

        self._account.sent += 1
        self._open[token] = Open(name, arguments, time.monotonic())
        executor = self._executor
        if kind.hint is not None:
            executor = executor.near(kind.hint(*arguments))
        future = executor.submit(kind.function, token, *arguments)
        future.add_done_callback(lambda done: self._ended.put((token, done)))

    def _drain(self, most: int) -> bool:
        """Wait until no more than so many are under way; return whether that came about."""
        while len(self._open) > most:
            self._look()
            with contextlib.suppress(queue.Empty):
                self._take(*self._ended.get(timeout=0.5))

            oldest = next(iter(self._open.values()), None)
            if oldest is not None and time.monotonic() - oldest.since > PATIENCE:
                return False
        return True

    def _take(self, token: int, future: Future[Any]) -> None:
        task = self._open.pop(token)
        self._killer.count_huge(-int(KINDS[task.kind].is_huge))

        worker = self._account.take(token, task.kind, task.arguments, future)
        self._worker_tasks[worker] += 1

    def _look(self) -> None:
        if time.monotonic() < self._next_sample:
            return

        self._next_sample = time.monotonic() + SAMPLE_INTERVAL
        self._progress.tell()
        if self._account.ended >= WARM_UP:
            self._client.sample(self._account.ended)
            if self._worker is not None:
                self._worker.sample(self._worker_tasks[self._worker.pid])

    def close(self) -> None:
        """Note how much memory has grown, of a worker that has to be there."""
        self._progress.close()
        self._account.grow("client", self._client.growth())
        if self._worker is None:
            return

        self._account.grow("worker", self._worker.growth())
        if not psutil.pid_exists(self._worker.pid):
            self._account.offences.append("the worker that is spared has ended")

    def give_up(self) -> None:
        """Note the tasks that do not end."""
        self._account.leave_open({token: task.kind for token, task in self._open.items()})


class Progress:
    """What is told on stderr while a run goes on: a line now and then, or one that changes."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._begun = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._next = 0.0

    def tell(self) -> None:
        """Tell how far it is, if it is time."""
        seconds = time.monotonic() - self._begun
        if seconds < self._next:
            return

        self._next = seconds + (1 if self._is_terminal else 30)
        account = self._account
        text = (
            f"{seconds:5.0f} s: {account.ended} tasks, {len(account.kills)} kills, "
            f"{len(account.losses)} lost, {len(account.offences)} offences"
        )
        line = f"\r{text}" if self._is_terminal else f"{text}\n"
        print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line that changes."""
        if self._is_terminal:
            print(file=sys.stderr)


# Around the run


class Place:
    """The folders of a run, in which all that it leaves is found.

    Args:
        routes: Whether tasks go where their state is.

    Attributes:
        mark: The value of `MARK` in the environment of all processes.
        record: The file to which tasks add lines as they begin.
        logs: The folder that the logs of the engine are kept in.
    """

    def __init__(self, routes: bool) -> None:
        self._routes = routes
        self.mark = uuid.uuid4().hex
        self._root = Path(tempfile.mkdtemp(prefix="soak-"))
        self.record = self._root / "begun"
        self.logs = self._root / "logs"
        self._temporary = self._root / "tmp"
        self._home = self._root / "home"

        self.record.touch()
        for folder in (self.logs, self._temporary, self._home):
            folder.mkdir()
        os.environ.update({"TMPDIR": str(self._temporary), "HOME": str(self._home)})
        os.environ[MARK] = self.mark
        tempfile.tempdir = None

    def config(self) -> str:
        """Return the config of the engine."""
        word = "--warm-first" if self._routes else "--survive-idle-kill"
        return CONFIG.format(
            workers=WORKERS,
            blocks=BLOCKS,
            modules=shlex.quote(str(Path(soaked.__file__).parent)),
            record_name=soaked.RECORD,
            record=shlex.quote(str(self.record)),
            task_timeout=TASK_TIMEOUT,
            ahead=AHEAD if self._routes else 0,
            boot=f"{word} --preload-node=soaked:preloaded soaked:preloaded",
        )

    def begun(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each task that has begun, its worker, and the template of that."""
        with self.record.open() as lines:
            for line in lines:
                token, worker, template = line.split()
                yield int(token), int(worker), int(template)

    def keep_logs(self) -> None:
        """Give the engine's logs a second name, since their folder goes with the engine."""
        for path in self._temporary.rglob("*"):
            if path.suffix in (".log", ".out", ".err") and path.is_file():
                name = "+".join(path.relative_to(self._temporary).parts)
                with contextlib.suppress(FileNotFoundError):
                    os.link(path, self.logs / name)

    def files(self) -> list[Path]:
        """Return what is in the folders for temporary files, and in the home directory."""
        folders = (self._temporary, self._home)
        return sorted(path for folder in folders for path in folder.iterdir())

    def tell(self, offences: Iterable[str]) -> Path:
        """Write offences to a file, and return it.

        Args:
            offences: A line about each.
        """
        path = self._root / "offences"
        path.write_text("\n".join(offences))
        return path

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._root, ignore_errors=True)


def descriptors() -> set[tuple[str, str]]:
    """Return the descriptors of this process, with what each leads to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def wait_until_gone(look: Callable[[], Iterable[object]]) -> list[object]:
    """Return what is left, which is given some time to go."""
    end = time.monotonic() + LEAVE_TIME
    while (left := list(look())) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def first_worker(mark: str) -> roles.Member:
    """Wait for all workers, and return the one that is to be spared.

    Raises:
        TimeoutError: There are fewer workers than there should be.
    """
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        workers = [each for each in roles.find(MARK, mark) if each.role == "worker"]
        if len(workers) == BLOCKS * WORKERS:
            return min(workers, key=lambda each: (each.pool, each.rank))
        time.sleep(0.1)
    raise TimeoutError(f"{len(workers)} workers in {START_TIMEOUT} s, and not {BLOCKS * WORKERS}")


def run_on_engine(place: Place, account: Account, tasks: int, seconds: float, seed: int) -> None:
    """Start an engine, send it tasks, and end it."""
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        executor = WarmExecutor(MockExecutor(config=place.config()))
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        stack.callback(place.keep_logs)

        killer = Killer(account, place.mark, seed)
        run = Soak(executor, killer, account, seed)
        stack.callback(run.close)

        run.spare(first_worker(place.mark))
        with killer:
            have_ended = run.run(tasks, seconds)
        if not have_ended:
            run.give_up()
        strays = wait_until_gone(lambda: roles.strays(MARK, place.mark))
        account.leave("processes", strays)


def soak(place: Place, account: Account, tasks: int, seconds: float, seed: int) -> None:
    """Run on an engine, and see what is left of it."""
    before = descriptors()
    run_on_engine(place, account, tasks, seconds, seed)
    gc.collect()

    account.settle(place.begun())
    account.leave("processes", wait_until_gone(lambda: [*roles.marked(MARK, place.mark)]))
    account.leave("descriptors", wait_until_gone(lambda: descriptors() - before))
    account.leave("files", wait_until_gone(place.files))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=50_000, help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="after which it ends anyway")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of its choices")
    parser.add_argument(
        "--routing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tasks that use a table go where it is (default: %(default)s)",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    account = Account()
    place = Place(arguments.routing)
    print(f"seed {arguments.seed}, in {place.logs.parent}", file=sys.stderr, flush=True)
    soak(place, account, arguments.tasks, 60 * arguments.minutes, arguments.seed)

    print(f"{account.line()} (seed {arguments.seed})", flush=True)
    if not account.offences:
        place.remove()
        return 0

    print(*account.offences[:SHOWN], sep="\n", file=sys.stderr)
    print(f"all {len(account.offences)} offences: {place.tell(account.offences)}", file=sys.stderr)
    print(f"what was logged: {place.logs}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
