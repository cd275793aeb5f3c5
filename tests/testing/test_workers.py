"""The workers behind the stand-ins.

Nothing of the client is in them, what is in them stays, and they come and go as a manager's do.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import logbook
import psutil
import pytest
import shapes
import tasks
import template_loads

from gc_warm import MockExecutor, WarmExecutor, functions, processes
from gc_warm.exceptions import ConfigError, WorkerStartError
from tests.support import MODULES, client_environment, has_ended, remote_text, wait_until
from tests.testing.backends import BACKENDS, workers

ROOT = Path(__file__).parents[2]


def ask_each(executor: MockExecutor, number: int, folder: Path) -> dict[int, tuple[int, int]]:
    """Return the process id and count of each worker, by rank.

    Tasks that wait for each other reach all of them.
    """
    folder.mkdir()
    futures = [executor.submit(tasks.meet, str(folder), number) for _ in range(number)]
    return {rank: (pid, count) for rank, pid, count in (future.result(120) for future in futures)}


def started(future: Future[Any], path: Path) -> int:
    """Wait until `tasks.for_ever` runs, and return its worker's process id."""
    wait_until(lambda: path.exists() or future.done(), "the task has begun")
    return int(path.read_text())


def lost_rank(future: Future[Any]) -> int:
    """Return the rank of the worker that was lost.

    The text has to be the real engine's, but for the frames of its traceback.
    """
    first, *_, message, last = remote_text(future).splitlines()
    lost = re.fullmatch(
        r"parsl\.executors\.high_throughput\.errors\.WorkerLost: "
        r"Task failure due to loss of worker (\d+) on host (.+)",
        message,
    )
    assert lost, message
    assert (first, lost[2], last) == ("+" * 68, platform.node(), "-" * 68)
    return int(lost[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_workers_take_turns_and_share_nothing(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shapes, "count", 100)
    with MockExecutor(**workers(backend, 2)) as executor:
        first = ask_each(executor, 2, tmp_path / "first")
        ranks = [executor.submit(tasks.rank).result() for _ in range(100)]
        second = ask_each(executor, 2, tmp_path / "second")
    assert shapes.count == 100
    assert [count for _, count in first.values()] == [1] * 2
    assert second == {rank: (pid, 2) for rank, (pid, _) in first.items()}
    assert set(ranks) == {0, 1}
    # an engine's workers queue for a semaphore, where one that has just finished can overtake one
    # that wakes up
    if backend == "spawned":
        assert ranks == ranks[:2] * 50, "the least recently used worker is next"


def test_import_path_of_the_client_is_not_the_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("by_path", "by_directory", "by_variable"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "by_path")
    monkeypatch.chdir(tmp_path / "by_directory")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "by_variable"))
    with MockExecutor(workers=1) as executor:
        before = executor.submit(os.getpid).result()
        # the last lies beside the worker's own script
        for name in ("by_path", "by_directory", "by_variable", "worker_main"):
            source = executor.register_source_code(f"def load():\n    import {name}\n", "load")
            text = remote_text(executor.submit_to_registered_function(source))
            assert text.endswith(f"ModuleNotFoundError: No module named '{name}'\n")
        assert remote_text(executor.submit(tasks.same, 1)).endswith(
            "ModuleNotFoundError: No module named 'tasks'\n"
        )
        assert executor.submit(os.getpid).result() == before


def test_pythonpath_and_environment_arrive(tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text("VALUE = 42\n")
    path = [str(MODULES), tmp_path]
    code = "def load():\n    import extra\n    return extra.VALUE\n"
    with MockExecutor(workers=1, pythonpath=path, env={"GREETING": "hello"}) as executor:
        assert executor.submit(tasks.environment, "GREETING").result() == "hello"
        source = executor.register_source_code(code, "load")
        assert executor.submit_to_registered_function(source).result() == 42


def test_worker_without_gc_warm_runs_ordinary_functions(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'gc_warm':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse)\n"
    )
    with MockExecutor(workers=1, pythonpath=[tmp_path, MODULES]) as executor:
        assert executor.submit(tasks.same, 1).result() == 1
        assert remote_text(executor.submit(functions.count)).endswith(
            "ModuleNotFoundError: No module named 'gc_warm'\n"
        )
        assert executor.submit(tasks.same, 2).result() == 2


def test_one_process_a_task_is_always_cold() -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES], fresh_process_per_task=True) as executor:
        first, second = (executor.submit(tasks.pid_and_count).result() for _ in range(2))
        assert executor.workers[0].pid is None, "no process between tasks"
    assert [count for _, count in (first, second)] == [1, 1]
    assert first[0] != second[0]


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"workers": 0}, ValueError, "workers must be at least 1, not 0"),
    ({"workers": "2"}, TypeError, "workers must be a whole number, not '2'"),
    ({"pythonpath": ["/not/there"]}, FileNotFoundError, "there is no folder '/not/there'"),
    ({"pythonpath": str(MODULES)}, TypeError, "takes a list of folders"),
    (
        {"env": {"PYTHONPATH": "/mine"}},
        ValueError,
        "PYTHONPATH='/mine' would replace the workers' import path; "
        "give its folders as pythonpath=",
    ),
    (
        {"workers": 1, "batchsize": 3},
        TypeError,
        "'batchsize' is an invalid argument for MockExecutor",
    ),
    (
        {"config": "engine:\n", "workers": 1},
        TypeError,
        "for spawned workers; with config= write them into the config",
    ),
    ({"config": "display_name: none\n"}, ValueError, "no 'engine:' section"),
    (
        {"config": "engine:\n  type: ThreadPoolEngine\n"},
        ValueError,
        "with ThreadPoolEngine, tasks would see the client's memory",
    ),
    ({"pythonpath": ["/a:b"]}, ValueError, "a folder with ':' in its name"),
    ({"config": "engine:\n  type: Warp\n"}, ValueError, "the config given as text"),
    (
        {"config": "/not/there.yaml"},
        FileNotFoundError,
        "config: there is no folder '/not/there.yaml', no endpoint of that name, and",
    ),
    ({"endpoint_id": "mine", "workers": 1}, ValueError, "badly formed hexadecimal UUID string"),
    ({"env": {"SIZE": 1}}, TypeError, "env: SIZE must be text, not 1"),
    ({"preload_node": "numpy"}, ConfigError, "preload_node: 'numpy' is not of type 'array'"),
    (
        {"preload_node": ["my-model"]},
        ConfigError,
        "preload_node: 'my-model' cannot be used. What is loaded once",
    ),
    (
        {"preload_node": ["numpy"], "fresh_process_per_task": True},
        TypeError,
        r"preload_node=\['numpy'\] has processes born warm, and fresh_process_per_task=True",
    ),
    ({"preload_node": ["numpy"], "config": "engine:\n"}, TypeError, "for spawned workers; with"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD_ARGUMENTS, ids=lambda value: str(value)[:40]
)
def test_arguments_that_cannot_be_right(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MockExecutor(**arguments)


def test_worker_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(3)\n")
    message = f"exit status 3 before it could take a task.*{tmp_path}"
    with pytest.raises(WorkerStartError, match=message):
        MockExecutor(workers=2, pythonpath=[tmp_path])


@pytest.mark.parametrize("backend", BACKENDS)
def test_worker_that_ends_is_lost_and_replaced_cold_while_the_other_stays_warm(
    backend: str, tmp_path: Path
) -> None:
    with MockExecutor(**workers(backend, 2)) as executor:
        before = ask_each(executor, 2, tmp_path / "before")
        for how in ("sys.exit", "os._exit", "KeyboardInterrupt"):
            ended = executor.submit(tasks.end, how)
            # the second of these tasks waits behind the one that ends its worker
            after = ask_each(executor, 2, tmp_path / how)
            lost = lost_rank(ended)
            assert after[lost][0] != before[lost][0]
            assert after[lost][1] == 1
            assert after[1 - lost] == (before[1 - lost][0], before[1 - lost][1] + 1)
            before = after


def test_task_that_forks_or_closes_every_descriptor_does_no_harm_to_others() -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
        assert executor.submit(tasks.fork_and_return).result() == "parent"
        assert [executor.submit(tasks.same, number).result(120) for number in range(3)] == [0, 1, 2]
        assert lost_rank(executor.submit(tasks.close_descriptors)) == 0
        assert [executor.submit(tasks.same, number).result(120) for number in range(3)] == [0, 1, 2]
        child = psutil.Process(executor.submit(tasks.start_child).result())
    wait_until(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
        "the task's child has ended too",
    )


@pytest.mark.engine
def test_client_with_an_engine_whose_interchange_has_died_ends(tmp_path: Path) -> None:
    script = Path(__file__).with_name("bereft_client.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=client_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "every future has ended\n"


def test_a_kill_costs_one_task_at_most(tmp_path: Path) -> None:
    with MockExecutor(workers=2, pythonpath=[MODULES]) as executor:
        before = ask_each(executor, 2, tmp_path / "before")
        running = executor.submit(tasks.for_ever, str(tmp_path / "started"))
        pid = started(running, tmp_path / "started")
        victim = next(worker for worker in executor.workers if worker.pid == pid)
        victim.kill()
        assert lost_rank(running) == victim.rank
        after = ask_each(executor, 2, tmp_path / "after")
        assert after[victim.rank] == (victim.pid, 1), "cold, and of the same rank"
        assert victim.pid != pid
        other = 1 - victim.rank
        assert after[other] == (before[other][0], before[other][1] + 1)

        futures = [executor.submit(tasks.same, number) for number in range(300)]
        for worker in executor.workers:
            worker.kill()
        errors = {number: future.exception(120) for number, future in enumerate(futures)}
    lost = {number for number, error in errors.items() if error is not None}
    assert len(lost) <= 2
    assert all(futures[number].result() == number for number in errors.keys() - lost)


def test_idle_worker_that_is_killed_costs_no_task() -> None:
    with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
        (worker,) = executor.workers
        pids = set()
        for _ in range(2):
            found = [executor.submit(tasks.pid_and_count).result() for _ in range(2)]
            assert found == [(worker.pid, 1), (worker.pid, 2)]
            pids.add(worker.pid)
            worker.kill()
            assert worker.pid is None
        assert len(pids) == 2


def births(executor: MockExecutor, number: int = 2) -> list[Any]:
    """Return the template of workers in turn, or why they have none, and whether they are warm."""
    futures = [executor.submit(template_loads.birth) for _ in range(number)]
    found = [future.result(120) for future in futures]
    return [(each["template"] or each["not_forked"], each["is_warm"]) for each in found]


def template_of(executor: MockExecutor) -> psutil.Process:
    parent = psutil.Process(executor.workers[0].pid).parent()
    assert parent is not None
    return parent


def test_spawned_workers_are_forked_and_replaced_warm(tmp_path: Path) -> None:
    loads = ["template_loads:table", "template_loads:load_logbook"]
    folder = {"TEMPLATE_FOLDER": str(tmp_path)}
    with MockExecutor(**workers("spawned", 2), preload_node=loads, env=folder) as executor:
        assert births(executor) == [(1, True)] * 2
        template = template_of(executor)
        executor.workers[0].kill()
        assert births(executor) == [(1, True)] * 2
        assert template_of(executor) == template
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").read_text() == f"{template.pid}\n"
    assert not template.is_running()


@pytest.mark.engine
def test_template_of_spawned_workers_that_dies_is_replaced_once(tmp_path: Path) -> None:
    with (
        MockExecutor(**workers("stand-in", 2)) as executor,
        MockExecutor(**workers("stand-in", 1)) as other,
    ):
        for number in (1, 2):
            assert births(executor) == [(number, True)] * 2
            running = executor.submit(tasks.for_ever, str(tmp_path / f"{number}"))
            started(running, tmp_path / f"{number}")
            template = template_of(executor)
            pids = [born.pid for born in template.children()]
            template.kill()
            assert lost_rank(running) in (0, 1)
            # the kernel ends one after the other, and one that is ending may be given a task
            for pid in pids:
                wait_until(partial(has_ended, pid), "it has ended")

        [(why, is_warm), _] = births(executor)
        assert why.startswith("2 templates have died, the last one was ended by SIGKILL")
        assert is_warm, "each has loaded for itself"
        assert births(other, 1) == [(1, True)], "it has a template of its own"


@pytest.mark.engine
def test_manager_of_spawned_workers_that_dies_is_replaced() -> None:
    with MockExecutor(**workers("stand-in", 1)) as executor:
        manager = template_of(executor).parent()
        assert manager is not None
        manager.kill()
        assert births(executor, 1) == [(1, True)], "its worker goes on"
        executor.workers[0].kill()
        assert births(executor, 1) == [(1, True)]
        assert template_of(executor).parent() != manager


@pytest.mark.engine
@pytest.mark.parametrize(
    ("load", "why", "warmth"),
    [
        (
            "open_a_file",
            "it keeps open: .*py .leave what does that to preload, or to tasks",
            "first on this worker",
        ),
        (
            "crash",
            "its template was ended by SIGSEGV, in loading .*crash .leave that to tasks",
            "preload failed: .*crash: no template, since its template was ended by SIGSEGV",
        ),
    ],
)
def test_spawned_workers_that_cannot_be_forked_say_why(load: str, why: str, warmth: str) -> None:
    loads = [f"template_loads:{load}"]
    with WarmExecutor(MockExecutor(**workers("spawned", 1), preload_node=loads)) as executor:
        future = executor.submit(template_loads.birth)
        reason = future.result(120)["not_forked"]
        assert re.match(why, reason)
        assert re.match(warmth, str(future.warmth.why))
        assert executor.report().not_forked == {reason: 1}


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_client_that_ends_while_a_template_loads_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    options = workers("spawned", 1)
    code = (
        f"from gc_warm import MockExecutor\n"
        f"MockExecutor(**{options!r}, preload_node=['template_loads:take_for_ever'])"
    ).replace("PosixPath", "str")
    client = psutil.Popen(
        [sys.executable, "-c", code],
        env={**client_environment(), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in client.stderr:
        if "loading template_loads:take_for_ever" in line:
            break
    children = client.children(recursive=True)
    assert len(children) >= 2, "a manager and a template"
    client.send_signal(number)
    client.stderr.read()
    client.stderr.close()
    client.wait(120)
    wait_until(lambda: not any(map(processes.runs, children)), "all of it has ended")
    wait_until(lambda: not list(tmp_path.iterdir()), "no folder is left")


def test_shutdown_without_waiting_ends_every_future_and_runs_teardowns(tmp_path: Path) -> None:
    path = tmp_path / "logbook"
    executor = MockExecutor(workers=1, pythonpath=[MODULES])
    assert executor.submit(logbook.note, str(path)).result() == 1
    running = executor.submit(tasks.for_ever, str(tmp_path / "started"))
    started(running, tmp_path / "started")
    queued = executor.submit(tasks.same, 1)
    executor.shutdown(wait=False)
    assert lost_rank(running) == 0
    assert "the workers were shut down before the task began" in remote_text(queued)
    assert path.read_text() == "loaded\ntorn down after 1\n"
    executor.shutdown()
    executor.shutdown(wait=False)


def test_error_in_the_with_block_waits_for_its_tasks_and_runs_teardowns(tmp_path: Path) -> None:
    def fail_in_block() -> None:
        with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
            futures.extend(
                executor.submit(logbook.note, str(tmp_path / "logbook")) for _ in range(2)
            )
            raise LookupError("mine")

    futures: list[Future[int]] = []
    with pytest.raises(LookupError, match="mine"):
        fail_in_block()
    assert [future.result() for future in futures] == [1, 2]
    assert (tmp_path / "logbook").read_text() == "loaded\ntorn down after 2\n"


def test_keyboard_interrupt_in_the_with_block_does_not_wait(tmp_path: Path) -> None:
    def interrupted() -> None:
        with MockExecutor(workers=1, pythonpath=[MODULES]) as executor:
            futures.append(executor.submit(tasks.for_ever, str(tmp_path / "started")))
            started(futures[0], tmp_path / "started")
            raise KeyboardInterrupt

    futures: list[Future[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert futures[0].done()
    assert lost_rank(futures[0]) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("backend", BACKENDS)
def test_client_that_is_ended_by_a_signal_takes_its_workers_along(
    backend: str, number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "logbook"
    begun = tmp_path / "started"
    script = Path(__file__).with_name("busy_client.py")
    arguments = [sys.executable, str(script), backend, str(path), str(begun)]
    client = subprocess.Popen(arguments, env=client_environment(), stderr=subprocess.DEVNULL)
    wait_until(lambda: begun.exists() or client.poll() is not None, "the task has begun")
    worker = psutil.Process(int(begun.read_text()))
    client.send_signal(number)
    client.wait(120)
    wait_until(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE,
        "its worker has ended",
    )
    assert path.read_text() == "loaded\ntorn down after 1\n"


def test_client_that_forgets_to_shut_down_ends_after_its_tasks() -> None:
    script = (
        "import sys, gc_warm, gc_warm.functions as f\n"
        "future = gc_warm.MockExecutor(workers=1).submit(f.count)\n"
        "future.add_done_callback(lambda _: print(future.result()))\n"
        "sys.exit()"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=client_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout == "1\n"
