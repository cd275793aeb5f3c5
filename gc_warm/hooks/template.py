"""The template process of a node: it loads once what the node's workers are then born with.

Python's forkserver imports this module, in a process that `gc_warm.hooks.forkserver` has started,
and then forks a worker whenever the manager asks for one. The import does the work: it imports the
engine, loads what the config's ``preload_node`` names, looks whether forks of that would work, and
prepares them. What it finds it writes to a file in memory of the manager's, a line of JSON for each
sentence, and to its stderr, which is in the output of the block.

What a worker has of it: memory. What it has of its own, as one that was started: its environment
(but for what loads have set in it), its directory, umask and signal handlers, numbers of threads,
global random generators, locks, ``atexit`` functions, and the place in line when memory runs out:
the kernel is to end a worker, which costs one task, and not the template. A ``@warm`` generator's
teardown runs once, in the template, when the node's last worker has ended.

A worker dies with its template by a *parent-death signal*, see prctl(2): the kernel sends it
whatever the worker is busy with, which a thread that waits for a pidfd could not promise. It is
tied to the thread that has forked, which is the only one here that does. While it loads, the
template dies with its manager in the same way: nobody else would end a load that hangs.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver as server
from multiprocessing import spawn, util
from pathlib import Path
from typing import Any

from gc_warm.hooks import boot, fork_safety, forkserver, registry
from gc_warm.worker import ledger, lifecycle, memory, state

log = logging.getLogger("gc_warm")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ENGINE = "globus_compute_endpoint.engines.helper"  # what each worker's first task imports
_PR_SET_PDEATHSIG = 1
_MORE_LIKELY = 100  # of 1000: rather a worker than the template


class _Record:
    """The manager's file, with all that it is to know."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def say(self, **sentence: object) -> None:
        os.write(self._file, json.dumps(sentence).encode() + b"\n")


class _Surroundings:
    """Those parts of this process that a load may change, and a worker should not find changed."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = {
            number: signal.getsignal(number)
            for number in signal.valid_signals()
            if number not in (signal.SIGKILL, signal.SIGSTOP)
        }
        self._threads = {name: os.environ.get(name) for name in _THREADS}

    def restore(self) -> list[str]:
        """Put all back, and return what had been changed, in words."""
        changed = []
        if os.getcwd() != self._directory:
            changed.append(f"the directory ({os.getcwd()})")
            os.chdir(self._directory)

        umask = os.umask(self._umask)
        if umask != self._umask:
            changed.append(f"the umask ({umask:03o})")

        for number, handler in self._handlers.items():
            present = signal.getsignal(number)
            if present is not handler and handler is not None:
                signal.signal(number, handler)
                if not isinstance(present, lifecycle.Sigterm):  # which each worker arms for itself
                    changed.append(f"the handler of {signal.Signals(number).name}")
        return changed

    def restore_threads(self) -> None:
        """Put the numbers of threads back into the environment."""
        for name, value in self._threads.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Template:
    """This process, as the template of a manager's workers.

    Args:
        order: What the manager wants: see `gc_warm.hooks.forkserver`.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._record = _Record(order["record"])
        self._number = int(order["number"])
        self._pid = os.getpid()
        self._is_template = True

    def prepare(self) -> None:
        """Load, look whether forks work, and have every fork begin as a worker does.

        Ends the process where it must not be forked.
        """
        _die_with_parent(self._order["manager"])
        own = boot.take_variables()
        surroundings = _Surroundings()
        # pools of threads would be lost in forks, and calls would wait for them
        os.environ.update(dict.fromkeys(_THREADS, "1"))

        self._import_engine()
        before = fork_safety.Before()
        modules = dict(sys.modules)
        size = memory.resident()
        for spec in self._order["specs"]:
            self._load(spec)
        size = memory.resident() - size

        objections = before.objections()
        if changed := surroundings.restore():
            log.warning("loading has changed %s, which is put back", ", ".join(changed))
        if objections:
            self._refuse(f"{'; '.join(objections)} ({fork_safety.ADVICE})", size)

        if names := fork_safety.generators(modules, dict(state.values())):
            log.warning(
                "random generators that give every worker the same numbers: %s; make them in the "
                "worker, by preload or in the task",
                ", ".join(sorted(names)),
            )

        boot.install()
        _live_on()
        self._be_forked(own, surroundings)
        self._record.say(ready=True, grown=size)

    def _import_engine(self) -> None:
        """Import what every worker does: the engine's main module, and what its tasks need."""
        spawn.prepare(self._order["preparation"])
        try:
            importlib.import_module(_ENGINE)
        except ImportError as error:
            log.warning("the engine's part %s is left to the workers: %s", _ENGINE, error)
        registry.hook("survive_idle_kill").why_not()  # reads the source that each worker would

    def _load(self, spec: str) -> None:
        self._record.say(loading=spec)
        log.info("loading %s", spec)

        loaded = boot.load(spec)
        if os.getpid() != self._pid:  # a child of a load's came back from it
            os._exit(1)

        self._record.say(loading=None)
        if loaded:
            self._record.say(loaded=spec)
            return
        failure = ledger.preload_failures()[-1]
        self._record.say(failed=spec, error=failure.error)

    def _refuse(self, why: str, size: int) -> None:
        log.warning("forks of this would not work: %s", why)
        self._record.say(refused=why, grown=size)
        os._exit(3)  # not sys.exit, which waits for threads

    def _be_forked(self, own: Mapping[str, str], surroundings: _Surroundings) -> None:
        """Have the next forks of this process be workers."""

        def born() -> None:
            if self._is_template:
                self._is_template = False
                self._begin_a_worker(own, surroundings)

        # ends when the manager and all workers have: they tear down what they hold at SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        gc.freeze()  # else the collector's marks would copy the pages that workers share
        os.register_at_fork(after_in_child=born)
        atexit.register(_remove_socket, self._order["manager"])

    def _begin_a_worker(self, own: Mapping[str, str], surroundings: _Surroundings) -> None:
        _die_with_parent(self._pid)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _offer_to_the_kernel()
        _do_what_a_spawned_process_does()
        surroundings.restore_threads()
        os.environ.update(own)
        fork_safety.reseed()
        lifecycle.note_birth(self._number)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _live_on() -> None:
    """Outlive the manager: workers that are busy at its end have this process's memory."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def _remove_socket(manager: int) -> None:
    """Remove what a manager that was killed has left of this process's socket, at its end."""
    path: Any = server._forkserver._forkserver_address  # type: ignore[attr-defined]
    if os.getppid() != manager and isinstance(path, str):
        with suppress(OSError):  # somebody else has, or keeps something there
            os.unlink(path)
            os.rmdir(os.path.dirname(path))


def _offer_to_the_kernel() -> None:
    """Let the kernel end this process rather than the template, where memory runs out."""
    file = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):  # a sandbox without it: then the kernel chooses by size
        file.write_text(str(min(1000, int(file.read_text()) + _MORE_LIKELY)))


def _do_what_a_spawned_process_does() -> None:
    """Have multiprocessing's part of this process be as in one that was started.

    `multiprocessing.context.SpawnProcess` leaves out what is to be done after a fork, and a fork of
    the forkserver ends, before Python 3.13, without a look at ``atexit``.
    """
    atexit._clear()
    registry: Any = util
    registry._finalizer_registry.clear()
    registry._run_after_forkers()
    if sys.version_info < (3, 13):
        util.Finalize(None, atexit._run_exitfuncs, exitpriority=-100)


def _main(order: str) -> None:
    said = logging.StreamHandler()
    said.setFormatter(logging.Formatter(f"gc_warm template, pid {os.getpid()}: %(message)s"))
    log.addHandler(said)
    log.setLevel(logging.INFO)
    start = time.perf_counter()

    try:
        _Template(json.loads(order)).prepare()
    except BaseException:  # of which the forkserver would hide some
        traceback.print_exc()
        os._exit(4)

    log.info("ready after %.2f s", time.perf_counter() - start)
    log.removeHandler(said)


if forkserver.ORDER in os.environ:
    _main(os.environ.pop(forkserver.ORDER))
