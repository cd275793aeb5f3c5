"""Workers that are forked from a template: by a manager without Parsl, and by the real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import preloaded
import psutil
import pytest
import tasks
import template_loads
from parsl.multiprocessing import SpawnContext

from gc_warm import MockExecutor
from gc_warm.hooks import STARTUP, boot, forkserver
from tests.hooks.test_boot import LINE, engine
from tests.support import has_ended, remote_text, wait_until

SCRIPT = Path(__file__).parents[1] / "executables" / "nursery.py"
MODULES = Path(__file__).parents[1] / "modules"


class Nursery:
    """The script, and what it has said on stderr."""

    def __init__(self, folder: Path, specs: Sequence[str], **env: str) -> None:
        self.said: list[str] = []
        # short, since sockets lie in it; its own, since a manager that is killed leaves a folder
        self._temporary = tempfile.TemporaryDirectory(prefix="n")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *specs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": f"{STARTUP}{os.pathsep}{MODULES}",
                "TEMPLATE_FOLDER": str(folder),
                "TMPDIR": self._temporary.name,
                **env,
            },
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line)

    def tell(self, *words: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "".join(self.said)
        return json.loads(answer)

    def start(self, rank: int = 0, of: int = 2) -> int:
        return int(self.tell("start", rank, of))

    def ask(self, function: str, rank: int = 0) -> Any:
        return self.tell("ask", rank, f"template_loads:{function}")

    def template(self) -> psutil.Process:
        return psutil.Process(self.tell("template"))

    def kill(self) -> None:
        """End the manager by SIGKILL, and its helper, which would outlive it."""
        [helper] = [
            child
            for child in psutil.Process(self._process.pid).children()
            if "--multiprocessing-fork" in child.cmdline()
        ]
        self._process.kill()
        helper.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._listener.join(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._temporary.cleanup()


@pytest.fixture
def nurseries(tmp_path: Path) -> Iterator[list[Nursery]]:
    open_ones: list[Nursery] = []
    yield open_ones
    for nursery in open_ones:
        nursery.close()


def begin(nurseries: list[Nursery], folder: Path, *specs: str, **env: str) -> Nursery:
    nursery = Nursery(folder, [f"template_loads:{spec}" for spec in specs], **env)
    nurseries.append(nursery)
    return nursery


@pytest.mark.engine
def test_a_worker_is_born_warm(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table")
    template = nursery.template()  # which loads before there is a worker
    pid = nursery.start()
    assert psutil.Process(pid).parent() == template
    found = nursery.ask("birth")
    assert found == {"template": 1, "not_forked": None, "is_warm": True, "failures": []}

    again = nursery.tell("end", 0)
    assert again == 128 + signal.SIGTERM


@pytest.mark.engine
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            "start_a_thread",
            r"threads live: poller \(leave what does that to preload, or to tasks\)",
        ),
        ("open_a_file", "it keeps open: .*template_loads.py"),
        ("open_a_socket", "it keeps open: socket:"),
        ("end_at_once", "its template ended with exit status 5, in loading .*end_at_once"),
        ("crash", "its template was ended by SIGSEGV, in loading .*crash"),
        ("take_for_ever", "its template was not ready after 5 s, in loading .*take_for_ever"),
    ],
)
def test_workers_are_started_where_none_can_be_forked(
    nurseries: list[Nursery], tmp_path: Path, spec: str, why: str
) -> None:
    limit = {forkserver.LIMIT: "5"} if spec == "take_for_ever" else {}
    nursery = begin(nurseries, tmp_path, "table", spec, **limit)
    nursery.start()
    found = nursery.ask("birth")
    assert found["template"] is None
    assert re.search(why, found["not_forked"]), found
    assert found["is_warm"], found  # it has loaded the other spec for itself

    left_out = [what for what, _ in found["failures"]]
    ends_a_worker_too = not why.startswith(("threads", "it keeps"))
    assert left_out == ends_a_worker_too * [f"template_loads:{spec}"]
    assert sum("workers are not forked" in line for line in nursery.said) == 1


@pytest.mark.engine
@pytest.mark.parametrize(
    ("spec", "error"), [("fail", "no such table"), ("leave", "SystemExit"), ("rows", "generator")]
)
def test_what_a_template_cannot_load_is_left_out(
    nurseries: list[Nursery], tmp_path: Path, spec: str, error: str
) -> None:
    nursery = begin(nurseries, tmp_path, spec, "table")
    nursery.start()
    found = nursery.ask("birth")
    assert (found["template"], found["is_warm"]) == (1, True)
    [[what, why]] = found["failures"]
    assert what == f"template_loads:{spec}"
    assert error in why


@pytest.mark.engine
@pytest.mark.parametrize(
    "spec", ["map_a_file", "append_to_a_file", "run_a_program", "fork_and_come_back"]
)
def test_what_does_no_harm_is_not_refused(
    nurseries: list[Nursery], tmp_path: Path, spec: str
) -> None:
    nursery = begin(nurseries, tmp_path, spec)
    nursery.start()
    assert nursery.ask("birth")["template"] == 1


@pytest.mark.engine
def test_workers_find_their_own_surroundings(nurseries: list[Nursery], tmp_path: Path) -> None:
    plain = begin(nurseries, tmp_path)
    plain.start()
    changed = begin(nurseries, tmp_path, "change_surroundings", "keep_a_generator")
    changed.start()

    as_started = plain.ask("surroundings")
    found = changed.ask("surroundings")
    assert found.pop("likely") == as_started.pop("likely") + 100
    assert found == as_started

    said = "".join(changed.said)
    assert "loading has changed the directory (/), the umask (007), the handler of SIGUSR1" in said
    assert "random generators that give every worker the same numbers" in said
    assert changed.ask("numbers") != plain.ask("numbers")


@pytest.mark.engine
def test_workers_differ_in_what_is_random(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table")
    for rank in range(2):
        nursery.start(rank)
    assert nursery.ask("numbers", 0) != nursery.ask("numbers", 1)


@pytest.mark.engine
def test_each_end_is_orderly(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "load_logbook")
    pids = [nursery.start(rank) for rank in range(2)]
    template = nursery.template()
    assert nursery.ask("load_logbook") == template.pid
    nursery.ask("leave_word")

    template.terminate()  # as a batch system does, which asks all processes of a job
    assert nursery.tell("end", 0) == 128 + signal.SIGTERM
    assert (tmp_path / "atexit").read_text().split() == [str(pids[0])]
    assert not (tmp_path / "ended").exists()

    nursery.close()
    nurseries.remove(nursery)
    wait_until(lambda: not template.is_running(), "the template ends after the last worker")
    assert (tmp_path / "ended").read_text().split() == [str(template.pid)]


@pytest.mark.engine
def test_a_template_that_dies_is_replaced_once(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table")
    for number in (1, 2):
        workers = [psutil.Process(nursery.start(rank)) for rank in range(2)]
        assert nursery.ask("birth")["template"] == number
        nursery.template().kill()
        psutil.wait_procs(workers, 60)
        assert not any(worker.is_running() for worker in workers)

    nursery.start()
    found = nursery.ask("birth")
    why = "2 templates have died, the last one was ended by SIGKILL (is memory short?)"
    assert found["not_forked"] == why
    assert found["is_warm"]


@pytest.mark.engine
def test_a_rank_is_not_given_twice(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table")
    former = psutil.Process(nursery.start(0))
    nursery.start(0)
    assert not former.is_running()


@pytest.mark.engine
def test_a_killed_manager_leaves_nothing(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table")
    worker = psutil.Process(nursery.start())
    template = nursery.template()
    nursery.kill()
    worker.terminate()
    wait_until(lambda: not worker.is_running() and not template.is_running(), "all have ended")


@pytest.mark.engine
def test_copies_that_do_not_fit_are_not_made(nurseries: list[Nursery], tmp_path: Path) -> None:
    nursery = begin(nurseries, tmp_path, "table", "grow")
    nursery.start(0, 1_000_000)
    error = nursery.ask("birth")["error"]
    assert error.startswith("NotEnoughMemoryError: <warm template_loads.table")
    assert "1000000 copies of 0.07 GB do not fit" in error
    assert "since threads live: poller" in error


@pytest.mark.engine
def test_forked_workers_do_all_that_started_ones_do(tmp_path: Path) -> None:
    """They are pinned, preload for themselves, survive each other's deaths, and are replaced."""
    line = LINE.format("--survive-idle-kill --preload-node=template_loads:table preloaded:table")
    last = max(os.sched_getaffinity(0))
    first_core = min(os.sched_getaffinity(0))
    with engine(line, cpu_affinity=f"list:{last}:{first_core}") as executor:
        first = meet(executor, tmp_path / "first")
        assert {rank: state.device for rank, state in first.items()} == {0: "3", 1: "5"}
        assert {state.loads for state in first.values()} == {1}
        assert all(not OURS.intersection(state.environment) for state in first.values())
        templates = {psutil.Process(state.pid).ppid() for state in first.values()}
        assert len(templates) == 1
        found = executor.submit(template_loads.birth).result(120)
        assert found == {"template": 1, "not_forked": None, "is_warm": True, "failures": []}

        os.kill(first[0].pid, signal.SIGKILL)  # an idle one
        busy = executor.submit(tasks.for_ever, str(tmp_path / "started"))
        wait_until((tmp_path / "started").exists, "it is busy")
        os.kill(int((tmp_path / "started").read_text()), signal.SIGKILL)
        assert "WorkerLost" in remote_text(busy)

        second = meet(executor, tmp_path / "second")
        assert not {state.pid for state in second.values()} & {first[0].pid}
        assert {psutil.Process(state.pid).ppid() for state in second.values()} == templates

        os.kill(templates.pop(), signal.SIGKILL)
        pids = [state.pid for state in second.values()]
        wait_until(lambda: all(map(has_ended, pids)), "its workers are gone, and take no task")
        third = meet(executor, tmp_path / "third")
        assert {rank: state.device for rank, state in third.items()} == {0: "3", 1: "5"}
        cores = {rank: psutil.Process(state.pid).cpu_affinity() for rank, state in third.items()}
        assert cores == {0: [last], 1: [first_core]}
        assert executor.submit(tasks.birth).result(120) == (2, None)


def meet(executor: MockExecutor, folder: Path) -> dict[int, preloaded.State]:
    """What both workers find, in tasks that wait for each other."""
    folder.mkdir()
    futures = [executor.submit(preloaded.use, str(folder), 2) for _ in range(2)]
    return {state.rank: state for state in (future.result(120) for future in futures)}


OURS = {boot.PRELOAD, boot.PRELOAD_NODE, boot.PREPARED, boot.SURVIVE, forkserver.ORDER}


def promised() -> forkserver._Promise:
    """A worker that waits for its template."""
    return forkserver._Promise(SpawnContext.Process(name="HTEX-Worker-0"))


def test_worker_that_is_ended_before_its_start_is_not_started() -> None:
    promise = promised()
    assert (promise.pid, promise.poll(), promise.wait(0)) == (None, None, None)

    promise.terminate()
    promise.keep(pytest.fail)
    assert promise.wait() == -signal.SIGTERM
    promise.close()


def test_worker_that_cannot_be_started_counts_as_dead(caplog: pytest.LogCaptureFixture) -> None:
    def start(process: Any) -> None:
        raise OSError("no more processes")

    promise = promised()
    promise.keep(start)
    assert promise.wait() == 1
    assert "HTEX-Worker-0 cannot be started" in caplog.text
