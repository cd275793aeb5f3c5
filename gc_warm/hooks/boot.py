r"""An opt-in hook that prepares a worker before its first task.

One command of a config's ``worker_init`` switches it on:

    eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot my_model:default my_tables \
        || echo 'echo no preload >&2')"

Config and worker may be of different versions, so the command never ends in silence: the part after
``||`` says so where gc_warm is missing, or too old to have a hook. A word that this version does
not know is named on stderr, which is in the output of the block, and the rest is done. An option
that takes a value is written ``--name=value``, so that a version that does not know it does not
take the value for something to preload.

The command puts a folder with a ``sitecustomize`` of ours on the import path of all Pythons that
start after it, and names the modules and callables to preload. Then, in every worker of a
HighThroughputExecutor, restarted ones included, and in no other process:

- *Preload*: the modules are imported, and the callables called without arguments, when the worker
  asks for its first task. It has been pinned to its accelerator by then. A load that fails is
  logged, and is repeated by the first task that needs it; one that raises `NotEnoughTimeError`,
  since its job will end before it could, is left out with one line. A worker that did not survive
  its preload is replaced by one that does without, so that a crash there is no endless loop. The
  ledger keeps what was not loaded, and why, for the records of tasks. However it went, the worker
  then tells its manager that it is ready, for `gc_warm.hooks.gate`.
- *Orderly end*: SIGTERM ends the worker as ``sys.exit`` would, idle or not. A worker that ends does
  not wait for a dead manager to take its results.
- With ``--survive-idle-kill`` or ``--preload-node``, the queues of `gc_warm.hooks.queues`.
- With ``--warm-first``, which needs these queues and so has them, too, `gc_warm.hooks.routing`.
- With ``--amd-gpus``, CUDA_VISIBLE_DEVICES is gone from a worker that Parsl has pinned. It sets
  ROCR_VISIBLE_DEVICES beside it, which leaves one GPU, and in that HIP would look for the number
  that the former says.

A manager's Python runs `gc_warm.hooks.removal`, for the case that gc_warm is removed while the job
runs. Where it is replaced, the workers that start after that have the new version: they say so, and
name what they were to do and do not know.

The folder and the variables are gone from the worker's own environment, so that the processes that
its tasks start have none of this. (Of the folder, ``startup/sitecustomize.py`` sees to that.)
`gc_warm.hooks.switch` is the administrator's way to switch hooks off; its variable stays.

The hook changes how a process of multiprocessing begins to run, and stands in for an argument of
Parsl's worker. Where that worker is not as it is known here, nothing is changed, a line on stderr
(in the output of the block) says so, and the worker works, cold.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from multiprocessing.managers import DictProxy
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import gc_warm
from gc_warm.exceptions import NotEnoughTimeError
from gc_warm.hooks import (
    STARTUP,
    fork_safety,
    leave_path,
    queues,
    registry,
    removal,
    routing,
    switch,
    workers,
)
from gc_warm.worker import ledger, lifecycle, state

log = logging.getLogger("gc_warm")

# the variables that a block's processes have between ``worker_init`` and their workers
PRELOAD = "GC_WARM_PRELOAD"
PRELOAD_NODE = "GC_WARM_PRELOAD_NODE"
SURVIVE = "GC_WARM_SURVIVE_IDLE_KILL"
WARM_FIRST = "GC_WARM_WARM_FIRST"
AMD_GPUS = "GC_WARM_AMD_GPUS"

# the version that has set them, and the names of those that are not empty
PREPARED = "GC_WARM_PREPARED"

# what a manager tells the workers that it could not fork: why, and that there is no room for copies
NOT_FORKED = "GC_WARM_NOT_FORKED"
DOES_NOT_FIT = "GC_WARM_DOES_NOT_FIT"

_VARIABLES = (PRELOAD, PRELOAD_NODE, SURVIVE, WARM_FIRST, AMD_GPUS)
_SWITCHES = {
    "--survive-idle-kill": SURVIVE,
    "--warm-first": WARM_FIRST,
    "--amd-gpus": AMD_GPUS,
}
_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")


def main(arguments: Sequence[str]) -> None:
    """Print the shell lines that switch the hook on for all that starts after them.

    Words that are not known here are named on stderr, and so is what is switched off. With all of
    it off, nothing is printed.

    Args:
        arguments: The words of the command line: names of modules and callables, and options.
    """
    preload: list[str] = []
    preload_node: list[str] = []
    switched_on: set[str] = set()

    for word in arguments:
        if word in _SWITCHES:
            switched_on.add(_SWITCHES[word])
        elif word.startswith("--preload-node="):
            preload_node += _specs(word.partition("=")[2].split(","))
        elif word.startswith("-"):
            _complain(
                f"{word} is an option that gc_warm {gc_warm.__version__} does not know; "
                "the rest is done"
            )
        else:
            preload += _specs([word])

    if said := switch.describe():
        _complain(said)
    if switch.disabled().issuperset(switch.BLOCK_HOOKS):
        return

    # all workers die with their template, among them the one that holds the stock queue's lock
    if preload_node and "preload_node" not in switch.disabled():
        switched_on.add(SURVIVE)

    variables = {
        PRELOAD: " ".join(preload),
        PRELOAD_NODE: " ".join(preload_node),
        **{name: "1" if name in switched_on else "" for name in _SWITCHES.values()},
    }
    used = [name for name, value in variables.items() if value]
    variables[PREPARED] = " ".join([gc_warm.__version__, *used])

    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PYTHONPATH={shlex.quote(STARTUP)}"${{PYTHONPATH:+:$PYTHONPATH}}"')


def _specs(words: Sequence[str]) -> list[str]:
    """Return those of the words that name a module or a callable, and complain of the others."""
    specs = []
    for word in words:
        if _SPEC.fullmatch(word):
            specs.append(word)
        else:
            _complain(
                f"{word!r} names no module and no callable of one, and is not preloaded: "
                "write my_model or my_model:load"
            )
    return specs


def _complain(message: str) -> None:
    print(f"gc_warm.worker.boot: {message}", file=sys.stderr)


def install() -> None:
    """Change how the process that is starting begins to run, if it turns out to be a worker.

    ``startup/sitecustomize.py`` calls this.
    """
    stock = BaseProcess.run

    def run(self: BaseProcess) -> None:
        BaseProcess.run = stock  # type: ignore[method-assign]
        if workers.WORKER.fullmatch(self.name):
            _begin(self)
        stock(self)

    BaseProcess.run = run  # type: ignore[method-assign]


def _begin(process: Any) -> None:
    """Change the arguments of the function that a worker is about to run.

    A worker that is not as expected is left to run as it is.
    """
    preload = _asked_for(PRELOAD).split()
    _note_what_is_not_forked(_asked_for(PRELOAD_NODE).split(), preload)
    survive = bool(_asked_for(SURVIVE))
    warm_first = bool(_asked_for(WARM_FIRST))
    amd_gpus = bool(_asked_for(AMD_GPUS))

    for said in filter(None, (_other_version(), switch.describe())):
        log.warning(said)
    if "orderly_end" not in switch.disabled():
        lifecycle.arm()
    if switch.disabled().issuperset(switch.BLOCK_HOOKS):
        return

    try:
        call = inspect.signature(process._target).bind(*process._args, **process._kwargs)
        worker = _Arguments(call.arguments)
        if "orderly_end" not in switch.disabled():
            queues.leave_results_of_dead_manager(call.arguments["result_queue"])
        if survive or (warm_first and "survive_idle_kill" not in switch.disabled()):
            worker.survive_idle_kill(warm_first)

        worker.stand_in(lambda: _before_first_task(worker, preload, amd_gpus))
        process._args, process._kwargs = call.args, call.kwargs
    except Exception:
        for spec in preload:
            ledger.note_preload_failure(spec, "this Parsl is not as gc_warm knows it")
        log.warning(
            "this Parsl is not as gc_warm knows it: its workers work, and start cold", exc_info=True
        )
        _say_ready(process)


def begin_stand_in() -> None:
    """Do what comes before the first task of a worker that stands in for one of Parsl's.

    `gc_warm.local.forked_main` calls this.
    """
    preload = _asked_for(PRELOAD).split()
    _note_what_is_not_forked(_asked_for(PRELOAD_NODE).split(), preload)
    if "orderly_end" not in switch.disabled():
        lifecycle.arm()
    if lifecycle.worker().template is not None:
        fork_safety.set_threads()

    for spec in preload:
        load(spec)


def ready_mark(number: int | str) -> str:
    """Return the key of a worker that has preloaded, in its manager's tasks in progress.

    `gc_warm.hooks.gate` waits for it. It is left also where a preload has failed.

    Args:
        number: The worker's number.
    """
    return f"gc_warm ready {number}"


def _say_ready(process: Any) -> None:
    """Leave the mark for a worker whose arguments are not those that are known."""
    number = process.name.rpartition("-")[2]
    try:
        for argument in (*process._args, *process._kwargs.values()):
            if isinstance(argument, DictProxy):
                argument[ready_mark(number)] = True
    except Exception as error:
        log.warning("its manager is not told that this worker is ready: %r", error)


def take_variables() -> dict[str, str]:
    """Take what a block's processes have for their workers out of this one's environment.

    Returns:
        The variables: a worker that is forked from this process needs them.
    """
    leave_path()
    names = [name for name in (*_VARIABLES, PREPARED) if name in os.environ]
    return {name: os.environ.pop(name) for name in names}


def _note_what_is_not_forked(specs: Sequence[str], preload: Sequence[str]) -> None:
    """Note, in a worker that was started, why it was not forked, and what it thus starts without.

    Args:
        specs: What its node's template was to load.
        preload: What this worker is to load for itself.
    """
    why = os.environ.pop(NOT_FORKED, "its manager has not done so")
    no_room = os.environ.pop(DOES_NOT_FIT, "")
    if not specs or lifecycle.worker().template is not None:
        return

    lifecycle.note_birth(None, why)
    for spec in specs:
        if spec not in preload:
            ledger.note_preload_failure(spec, no_room or f"no template, since {why}")
        if no_room:
            state.forbid_loads(spec.partition(":")[0], no_room)


def _asked_for(variable: str) -> str:
    """Take a variable of a hook from the environment; return its value, empty where it is off."""
    value = os.environ.pop(variable, "")
    hook = variable.removeprefix("GC_WARM_").lower()
    if hook not in switch.disabled():
        return value

    if variable in (PRELOAD, PRELOAD_NODE):
        for spec in value.split():
            ledger.note_preload_failure(spec, f"{switch.DISABLE} switches {hook} off")
    return ""


def _other_version() -> str:
    """Return one line that says which other version has prepared this block; empty if this has.

    What that was asked for, and this does not know, is named, and taken from the environment.
    """
    version, *used = os.environ.pop(PREPARED, gc_warm.__version__).split()
    if version == gc_warm.__version__:
        return ""

    unknown = [name for name in used if name not in _VARIABLES]
    for name in unknown:
        os.environ.pop(name, None)

    said = f"gc_warm {version} has prepared this block, and this worker has {gc_warm.__version__}"
    return f"{said}, which does not know and do {', '.join(unknown)}" if unknown else said


class _Arguments:
    """The arguments that Parsl's worker function is about to be called with.

    Args:
        arguments: The arguments by name; changed in place.

    Attributes:
        number: The worker's number among those of its manager.
        in_progress: The tasks in progress, a dictionary that the manager keeps for its workers.

    Raises:
        KeyError, TypeError: The arguments are not those that are known.
    """

    def __init__(self, arguments: MutableMapping[str, Any]) -> None:
        self._arguments = arguments
        self.number: int = arguments["worker_id"]
        self.in_progress: MutableMapping[Any, Any] = arguments["tasks_in_progress"]

        for name in ("task_queue", "result_queue"):
            if not isinstance(arguments[name], Queue):
                raise TypeError(f"{name} is a {type(arguments[name]).__name__}")

    def stand_in(self, first: Callable[[], None]) -> None:
        """Have a function called when the worker asks for its first task.

        Args:
            first: The function.
        """
        self._arguments["task_queue"] = _FirstGet(self._arguments["task_queue"], first)

    def survive_idle_kill(self, warm_first: bool) -> None:
        """Have the worker use `gc_warm.hooks.queues`, if they were tested with this Parsl.

        Args:
            warm_first: Whether it is to use `gc_warm.hooks.routing`, too.
        """
        own = self._own_queues()
        if not self._do_as_others(removal.OWN_QUEUES, bool(own)):
            return

        routed = self._routed_queue() if warm_first else None
        if self._do_as_others(removal.ROUTED, routed is not None):
            own["task_queue"] = routed
        self._arguments.update(own)

    def _do_as_others(self, note: str, can: bool) -> bool:
        """Return whether this worker does something: all of a manager do as the first one could.

        Two workers that lock in different ways would read at the same time.

        Args:
            note: The note with the manager that says whether they do it.
            can: Whether this worker can.

        Raises:
            SystemExit: The others do it, and this one cannot.
        """
        all_do = bool(self.in_progress.setdefault(note, can))
        if all_do and not can:
            raise SystemExit(
                "this worker cannot use the queue as the others of its manager do, and ends"
            )
        return all_do

    def _own_queues(self) -> dict[str, Any]:
        """Return the arguments to use in place of stock ones; none where they cannot be had."""
        if reason := registry.hook("survive_idle_kill").why_not():
            log.warning("survive_idle_kill is not done: %s", reason)
            return {}

        try:
            return self._make_queues()
        except Exception:
            log.warning("survive_idle_kill is not done on this machine", exc_info=True)
            return {}

    def _make_queues(self) -> dict[str, Any]:
        tasks = queues.TaskQueue(self._arguments["task_queue"], self._announce)
        results = queues.ResultQueue(self._arguments["result_queue"])
        ready = queues.ReadyCount(self._arguments["ready_worker_count"], tasks.pipe)

        return {"task_queue": tasks, "result_queue": results, "ready_worker_count": ready}

    def _routed_queue(self) -> queues.TaskQueue | None:
        """Return the task queue of `gc_warm.hooks.routing`; None where it cannot be had."""
        try:
            return routing.install(self._arguments, self._announce)
        except Exception as error:
            log.warning("warm_first is not done: %s", error)
            return None

    def _announce(self, task_id: int) -> None:
        self.in_progress[self.number] = {"task_id": task_id}


class _FirstGet:
    """A stand-in for a worker's task queue, until it is first asked for a task."""

    def __init__(self, stock: Any, first: Callable[[], None]) -> None:
        self._stock = stock
        self._first = first

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return a task as the queue does, after what has to come first.

        Args:
            *args: The arguments of the queue's own `get`.
            **kwargs: Its keyword arguments.

        Returns:
            A task.
        """
        self.get = self._stock.get  # type: ignore[method-assign]
        self._first()
        return self.get(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)


def _before_first_task(worker: _Arguments, preload: Sequence[str], amd_gpus: bool) -> None:
    log_as_parsl_does()
    if lifecycle.worker().template is not None:
        fork_safety.set_threads()
    if amd_gpus and "ROCR_VISIBLE_DEVICES" in os.environ:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)

    ready = ready_mark(worker.number)
    worker.in_progress.pop(ready, None)  # of one that this one replaces
    if preload:
        _preload(preload, worker.in_progress, worker.number)
    worker.in_progress[ready] = True


def log_as_parsl_does() -> None:
    """Have what is logged here go to the log of this worker, or manager, as Parsl's own does."""
    for handler in logging.getLogger("parsl").handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)


def _preload(specs: Sequence[str], in_progress: MutableMapping[Any, Any], number: int) -> None:
    """Load modules and callables, and note with the manager that this is under way.

    The note stays behind if a load ends this process.
    """
    mark = f"gc_warm preload {number}"
    died_in = in_progress.pop(mark, None)
    if died_in is not None:
        log.error(
            "the worker before this one died in its preload of %s: "
            "this one starts cold, without %s",
            died_in,
            " ".join(specs),
        )
        for spec in specs:
            ledger.note_preload_failure(
                spec, f"the worker before this one died in its preload of {died_in}"
            )
        return

    try:
        for spec in specs:
            in_progress[mark] = spec
            load(spec)
    finally:  # not after a crash
        in_progress.pop(mark, None)


def load(spec: str) -> bool:
    """Import a module, or call a callable of one without arguments; log how that went.

    Args:
        spec: ``my_model``, or ``my_model:load``.

    Returns:
        Whether it was loaded; if not, the ledger has the reason.

    Raises:
        SystemExit: This process was asked to end.
    """
    start = time.perf_counter()

    try:
        module, _, attributes = spec.partition(":")
        loaded: Any = importlib.import_module(module)
        if attributes:
            for name in attributes.split("."):
                loaded = getattr(loaded, name)
            _require_ran(loaded())
    except BaseException as error:
        # This holds for sys.exit, too: a worker that ends here would be replaced by one that does
        # the same, for ever.
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
            raise

        no_time = _not_enough_time(error)
        ledger.note_preload_failure(spec, no_time or error)
        if no_time is not None:
            log.warning("preload of %s is left out: %s", spec, no_time)
        else:
            log.exception(
                "preload of %s failed after %.2f s: this worker starts cold",
                spec,
                time.perf_counter() - start,
            )
        return False

    log.info("preloaded %s in %.2f s", spec, time.perf_counter() - start)
    return True


def _require_ran(result: object) -> None:
    """Raise `TypeError` if a call has only made something that is yet to run.

    Raises:
        TypeError: The result is a generator or a coroutine.
    """
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"calling it gives a {type(result).__name__}, and runs nothing of it: name a function "
            "that does the work, or decorate the generator with @warm"
        )


def _not_enough_time(error: BaseException | None) -> NotEnoughTimeError | None:
    """Return the `NotEnoughTimeError` that an error is, or was raised ``from``.

    One in whose handling another error came up is not meant: that error is of something else.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error can be its own cause
        if isinstance(error, NotEnoughTimeError):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
