"""Workers that are born warm: forks of one template process a node.

The option ``preload_node`` switches it on. Then a manager does not start its workers as fresh
Pythons, but has them forked, by Python's own *forkserver*, from a process that has imported the
engine and loaded what was named: `gc_warm.hooks.template`. This module is what the manager needs
of it: it stands in for the function by which multiprocessing starts a spawned process, for
processes with the name of a Parsl worker, and leaves all others alone. The first template begins
with the manager, and loads while that imports what it needs.

A manager does not wait for its template, since it has to register and to answer meanwhile: a job
that ends before its manager is known counts as failed, and may end the engine. A thread starts the
workers, in the order in which they are asked for; until then, the manager has a `_Promise` for
each.

What ends when:

- The template ends when the manager and all its workers have; while it loads, with the manager. A
  load that takes too long ends it.
- Where the template dies, its workers die with it, since their manager takes them for dead at that
  moment, and would give their ranks and devices away. The next worker that is started brings
  another template. After a second death, this manager's workers are spawned.
- No worker is started before the process that had its rank is gone.

A template refuses where forks of it would not work (see `gc_warm.hooks.fork_safety`), and may die
while it loads. Workers are then spawned, and load what was named for themselves, as for the option
``preload``, if that many copies fit into the memory there is. If they do not, the workers start
without, and a load of it raises the reason. What ended the template, or took too long in it, is
not tried again in each worker.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import ProcessError, forkserver, spawn
from multiprocessing.context import SpawnProcess
from multiprocessing.popen_forkserver import Popen
from typing import Any

import psutil

from gc_warm.hooks import boot, node_memory, workers

log = logging.getLogger("gc_warm")

TEMPLATE = "gc_warm.hooks.template"
"""The only module that the forkserver imports: its own way hides an ImportError of others."""

ORDER = "GC_WARM_TEMPLATE"
"""A variable that only the template sees: what it is to load, as JSON."""

LIMIT = "GC_WARM_TEMPLATE_LIMIT"
"""A variable with the most seconds that a template may take to load."""

_MANAGER = "parsl.executors.high_throughput.process_worker_pool"
_LIMIT = 1800.0  # seconds: half of the shortest walltime that somebody would load so long for
_DEATHS = 2
_GONE = 30.0  # seconds, in which a process that was killed is gone, unless it waits for a device

_ENDING = 5.0  # seconds, in which a process ends that has closed its files

Start = Callable[[Any], Any]

_nurseries: list[Nursery] = []


def install() -> None:
    """Have the workers of this process, a manager that has started nothing yet, forked."""
    if "--enable_mpi_mode" in sys.orig_argv:
        os.environ[boot.NOT_FORKED] = "the workers of a GlobusMPIEngine are not forked"
        return

    worker_class: Any = SpawnProcess
    specs = os.environ[boot.PRELOAD_NODE].split()
    nursery = Nursery(specs, worker_class._Popen, _preparation())
    worker_class._Popen = staticmethod(nursery.start)
    _nurseries.append(nursery)
    with contextlib.suppress(OSError):  # the first worker tries again, and says why
        nursery.begin_template()


def stop() -> None:
    """Have workers spawned from now on; those that were forked go on."""
    for nursery in _nurseries:
        nursery.given_up = True
    for variable in (boot.NOT_FORKED, boot.DOES_NOT_FIT):
        os.environ.pop(variable, None)


@dataclass
class Story:
    """A template's own account of its loads.

    Attributes:
        loading: The spec whose load was begun last; None when all are over.
        loaded: The specs that were loaded.
        failed: The specs whose load raised, and what.
        grown: The bytes by which loading has let it grow.
        refused: Why it must not be forked; None if it may be.
        ready: Whether workers can be forked.
    """

    loading: str | None = None
    loaded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    grown: int = 0
    refused: str | None = None
    ready: bool = False

    def add(self, said: Mapping[str, Any]) -> None:
        """Take up one of its sentences."""
        if "loading" in said:
            self.loading = said["loading"]
        if "loaded" in said:
            self.loaded.append(said["loaded"])
        if "failed" in said:
            self.failed[said["failed"]] = said["error"]
        self.grown = said.get("grown", self.grown)
        self.refused = said.get("refused", self.refused)
        self.ready = said.get("ready", self.ready)


class Nursery:
    """The start of a manager's workers: forked as long as there can be a template.

    Args:
        specs: The modules and callables that a template loads.
        stock: The function that stands behind `multiprocessing.context.SpawnProcess`.
        preparation: What a spawned worker does before its work, as far as a template can do it; see
            `multiprocessing.spawn.prepare`.

    Attributes:
        given_up: Whether all workers are spawned from now on.
    """

    def __init__(self, specs: Sequence[str], stock: Start, preparation: Mapping[str, Any]) -> None:
        self._specs = list(specs)
        self._stock = stock
        self._preparation = preparation
        self.given_up = False
        self._deaths = 0
        self._templates = 0
        self._begun = 0.0  # the last one of them
        self._has_forked = False
        self._workers = 0
        self._born: dict[str, psutil.Process] = {}  # the last process of each rank
        self._limit = float(os.environ.get(LIMIT) or _LIMIT)
        self._is_late = threading.Event()
        self._record = os.memfd_create("gc_warm template")
        self._promises: queue.SimpleQueue[_Promise] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._keep, name="gc_warm-nursery", daemon=True)

    def start(self, process: Any) -> Any:
        """Start a process, as the function does that this stands for.

        Args:
            process: A `multiprocessing.Process`, of which workers are recognised by their names.

        Returns:
            What multiprocessing keeps of a started process.
        """
        if not workers.WORKER.fullmatch(process.name):
            return self._stock(process)

        if not self._thread.is_alive():
            boot.log_as_parsl_does()
            self._thread.start()
        promise = _Promise(process)
        self._promises.put(promise)
        return promise

    def _keep(self) -> None:
        """Start workers, one after the other, for as long as this process lives."""
        while True:
            self._promises.get().keep(self.start_at_once)

    def start_at_once(self, process: Any) -> Any:
        """Start a worker, as `start` does, and wait for a template that is not ready yet.

        Args:
            process: The worker.

        Returns:
            What multiprocessing keeps of a started process.
        """
        self._see_off(process.name)
        try:
            self._workers = _count_of_workers(process)
            child = self._forked(process)
        except Exception:
            log.exception("workers are started as Parsl does from now on: a fork has failed")
            os.environ[boot.NOT_FORKED] = "a fork has failed, see manager.log"
            self.given_up = True
            child = None
        if child is None:
            return self._stock(process)

        with contextlib.suppress(psutil.NoSuchProcess):
            self._born[process.name] = psutil.Process(child.pid)
        return child

    def _forked(self, process: Any) -> Any:
        """Return a worker that was forked; None where workers are to be spawned."""
        while not self.given_up:
            pid = template_pid()
            if pid is not None and _has_ended(pid):
                self._bury(pid)
                continue

            try:
                return self._fork(process)
            except (EOFError, OSError, ProcessError) as error:
                pid = template_pid()
                if pid is None:
                    self._give_up(f"no template can be started: {error}", [])
                elif _is_ending(pid):
                    self._bury(pid)
                else:  # the fault is on this side
                    raise

        return None

    def _see_off(self, name: str) -> None:
        """Wait until the process that had a worker's rank is gone, and its device is free."""
        former = self._born.pop(name, None)
        if former is None:
            return

        with contextlib.suppress(psutil.NoSuchProcess):
            former.kill()  # the kernel has, if its template has died
        if not _wait_for(lambda: _is_gone(former), _GONE):
            log.error("%s's former process %d cannot be ended", name, former.pid)

    def _fork(self, process: Any) -> Any:
        """Fork a worker; start a template before, if there is none."""
        if template_pid() is None:
            self.begin_template()
        pid = template_pid()

        child = Popen(process) if self._has_forked else self._fork_first(process)
        if template_pid() == pid:
            return child

        # the forkserver has found its process dead, and started one that has loaded nothing
        os.kill(child.pid, signal.SIGKILL)
        stranger = template_pid()
        if stranger is not None:
            os.kill(stranger, signal.SIGKILL)
        raise EOFError

    def _fork_first(self, process: Any) -> Any:
        """Fork a template's first worker: wait until it has loaded, for so long as it may take."""
        log.info(
            "template %d (pid %s) loads %s", self._templates, template_pid(), " ".join(self._specs)
        )
        with self._ended_in_time():
            child = Popen(process)

        self._has_forked = True
        log.info(
            "template %d is ready, %.2f s after its start: %s",
            self._templates,
            time.monotonic() - self._begun,
            _told(self._story()),
        )
        return child

    def begin_template(self) -> None:
        """Start a template, which is told what to load; it loads while the manager goes on.

        Raises:
            OSError: No process can be started.
        """
        self._templates += 1
        self._has_forked = False
        self._begun = time.monotonic()
        os.ftruncate(self._record, 0)
        forkserver.set_forkserver_preload([TEMPLATE])
        os.environ[ORDER] = json.dumps(
            {
                "specs": self._specs,
                "record": f"/proc/{os.getpid()}/fd/{self._record}",
                "number": self._templates,
                "manager": os.getpid(),
                "preparation": self._preparation,
            }
        )
        try:
            forkserver.ensure_running()
        finally:
            del os.environ[ORDER]

    @contextlib.contextmanager
    def _ended_in_time(self) -> Iterator[None]:
        """End a template that is not ready in time."""

        def end(pid: int) -> None:
            self._is_late.set()
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(self._limit, end, [template_pid()])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _story(self) -> Story:
        story = Story()
        size = os.fstat(self._record).st_size
        for line in os.pread(self._record, size, 0).splitlines():
            with contextlib.suppress(ValueError):  # the last words of one that was killed
                story.add(json.loads(line))
        return story

    def _bury(self, pid: int) -> None:
        """Find out why a template has ended, and decide whether there is to be another."""
        end = _reap(pid)
        story = self._story()

        if story.ready:
            self._deaths += 1
            log.error("template %d (pid %d) %s, and its workers", self._templates, pid, end.how)
            if self._deaths == _DEATHS:
                why = f"{_DEATHS} templates have died, the last one {end.how} (is memory short?)"
                self._give_up(why, [], story.grown)
        elif story.refused:
            self._give_up(story.refused, [], story.grown)
        else:
            why = f"its template {end.how}"
            if self._is_late.is_set():
                why = f"its template was not ready after {self._limit:g} s"
            if story.loading:
                why += f", in loading {story.loading} (leave that to tasks)"
            self._give_up(why, [story.loading or ""], end.peak)

    def _give_up(self, why: str, harmful: Sequence[str], size: int = 0) -> None:
        """Have this and all later workers spawned, and load for themselves what they can.

        Args:
            why: The reason, in words.
            harmful: Specs that are not to be loaded beforehand in workers either.
            size: The bytes that loading takes in each worker, as far as it is known.
        """
        self.given_up = True
        os.environ[boot.NOT_FORKED] = why
        specs = [spec for spec in self._specs if spec not in harmful]
        self._let_them_load(specs, why, size)

    def _let_them_load(self, specs: Sequence[str], why: str, size: int) -> None:
        """Tell the workers that are spawned from now on what to load, if it fits."""
        free = node_memory.available()
        if size * self._workers > free:
            what = (
                f"{self._workers} copies of {_in_gb(size)} do not fit into the {_in_gb(free)} that "
                f"are free, and no copy can be shared, since {why}"
            )
            os.environ[boot.DOES_NOT_FIT] = what
            log.error("workers start without %s: %s", " ".join(specs), what)
            return

        os.environ[boot.PRELOAD] = " ".join([*specs, os.environ.get(boot.PRELOAD, "")]).strip()
        log.warning(
            "workers are not forked, since %s: each loads %s for itself",
            why,
            " ".join(specs) or "nothing",
        )


class _Promise:
    """A worker that is yet to be started, as multiprocessing keeps one.

    It is alive until then, but has no process id. One that is told to end before is not started.

    Args:
        process: The `multiprocessing.Process`, which loses its arguments as soon as this is made.

    Attributes:
        sentinel: Nothing: nobody waits for a worker by a file.
    """

    sentinel = None

    def __init__(self, process: Any) -> None:
        self._process = copy.copy(process)
        self._child: Any = None
        self._exitcode: int | None = None
        self._lock = threading.Lock()
        self._is_settled = threading.Event()

    def keep(self, start: Start) -> None:
        """Start the worker, unless it has been told to end.

        Args:
            start: The function that starts it.
        """
        if self._exitcode is not None:
            return

        try:
            child = start(self._process)
        except Exception:  # its manager takes it for dead, and starts another
            log.exception("%s cannot be started", self._process.name)
            self._settle(1)
            return

        with self._lock:
            self._child = child
        if self._exitcode is not None:
            child.kill()
        self._is_settled.set()

    def _settle(self, exitcode: int) -> None:
        self._exitcode = exitcode
        self._is_settled.set()

    @property
    def pid(self) -> int | None:
        """The process id; None before there is a process."""
        return None if self._child is None else self._child.pid

    def poll(self) -> int | None:
        """Return the exit code; None before the end."""
        if self._exitcode is not None or self._child is None:
            return self._exitcode
        code: int | None = self._child.poll()
        return code

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, and return the exit code; None where that takes longer.

        Args:
            timeout: The most seconds to wait.
        """
        if self._is_settled.wait(timeout) and self._exitcode is None:
            self._child.wait(timeout)
        return self.poll()

    def terminate(self) -> None:
        """End the worker by SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the worker by SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        with self._lock:
            if self._child is None:
                self._settle(-number)
                return
        self._child._send_signal(number)

    def close(self) -> None:
        """Release what is kept of a worker that has ended."""
        if self._child is not None:
            self._child.close()


@dataclass(frozen=True)
class _End:
    """The end of a process.

    Attributes:
        how: In words.
        peak: The most bytes that it had in use.
    """

    how: str
    peak: int


def template_pid() -> int | None:
    """Return the process id of the forkserver that this process has started; None without one."""
    server: Any = forkserver._forkserver
    pid: int | None = server._forkserver_pid
    return pid


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_ending(pid: int) -> bool:
    """Return whether a child has ended, or does so in the next seconds."""
    return _wait_for(lambda: _has_ended(pid), _ENDING)


def _is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; nobody may have waited for it yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so, for some seconds at most; return whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _reap(pid: int) -> _End:
    """Wait for a template that has ended, and have the forkserver forget it."""
    _, status, usage = os.wait4(pid, 0)
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None
    server._forkserver_address = None
    server._forkserver_pid = None

    code = os.waitstatus_to_exitcode(status)
    how = f"ended with exit status {code}" if code >= 0 else f"was ended by {_name(-code)}"
    return _End(how, usage.ru_maxrss * 1024)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def own_preparation() -> dict[str, Any]:
    """Return what a process that this one spawns does before its work, for a `Nursery`."""
    data = spawn.get_preparation_data("template")
    return {key: value for key, value in data.items() if key not in ("name", "authkey")}


def _preparation() -> dict[str, Any]:
    """Return what a manager's spawned worker does before its work.

    Where the first template is started, the manager has not begun to run its main module, nor put
    this directory on its path.
    """
    here = [] if getattr(sys.flags, "safe_path", False) else [os.getcwd()]
    return {
        "sys_path": [*here, *sys.path],
        "sys_argv": sys.argv,
        "init_main_from_name": _MANAGER,
    }


def _count_of_workers(process: Any) -> int:
    """Return how many workers a manager has, from the arguments of one of them."""
    return int(process._args[2])


def _told(story: Story) -> str:
    parts = [f"{len(story.loaded)} loaded, {_in_gb(story.grown)}"]
    parts += [f"{spec} failed: {error}" for spec, error in story.failed.items()]
    return "; ".join(parts)


def _in_gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
