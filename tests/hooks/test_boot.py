"""The hook at worker start: it reaches every worker before its first task, and nothing else."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import preloaded
import pytest
import tasks
import yaml

import gc_warm
from gc_warm import MockExecutor
from gc_warm.configs import folders, rendering
from gc_warm.hooks import boot
from gc_warm.worker import ledger
from tests.support import MODULES, remote_text, wait_until
from tests.testing.backends import engine_config

STARTUP = Path(boot.__file__).with_name("startup")
LINE = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {})"'
SITE = (
    "import os, pathlib\n"
    "pathlib.Path(os.environ['SITE_RECORD']).open('a').write(f'{os.getpid()}\\n')\n"
)


@pytest.fixture(autouse=True)
def own_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of other tests are not to know of the preloads that fail here."""
    monkeypatch.setattr(ledger, "_failed_preloads", [])


def shell_lines(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gc_warm.worker.boot", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def python(code: str, *paths: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python with these folders on its import path."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


def test_the_line_sets_the_variables_and_puts_the_folder_first() -> None:
    node = "--preload-node=numpy,my_tables:load"
    lines = shell_lines("my_model:load", "my_tables", "--survive-idle-kill", node)
    shown = subprocess.run(
        ["bash", "-c", f'PYTHONPATH="/a b"\neval {shlex.quote(lines.stdout)}\nenv'],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    variables = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert variables["GC_WARM_PRELOAD"] == "my_model:load my_tables"
    assert variables["GC_WARM_SURVIVE_IDLE_KILL"] == "1"
    assert variables["GC_WARM_PRELOAD_NODE"] == "numpy my_tables:load"
    version, *used = variables["GC_WARM_PREPARED"].split()
    assert version == gc_warm.__version__
    assert used == ["GC_WARM_PRELOAD", "GC_WARM_PRELOAD_NODE", "GC_WARM_SURVIVE_IDLE_KILL"]
    assert variables["PYTHONPATH"] == f"{STARTUP}:/a b"


@pytest.mark.parametrize(
    "spec",
    [
        "my model",
        "$(id)",
        "my_model:",
        ":load",
        "my_model:load()",
        "../my_model",
        "my_model:load:more",
    ],
)
def test_names_what_is_no_module_and_does_the_rest(spec: str) -> None:
    lines = shell_lines(spec, "my_tables")
    assert (lines.returncode, lines.stdout) == (0, shell_lines("my_tables").stdout)
    assert f"{spec!r} names no module and no callable of one, and is not preloaded" in lines.stderr


def test_names_an_option_of_a_later_version_and_does_the_rest() -> None:
    lines = shell_lines("--route=warm", "my_tables", "--survive-idle-kill")
    rest = shell_lines("my_tables", "--survive-idle-kill")
    assert (lines.returncode, lines.stdout) == (0, rest.stdout)

    version = gc_warm.__version__
    assert f"--route=warm is an option that gc_warm {version} does not know" in lines.stderr


@pytest.mark.parametrize(
    "there",
    [
        {},
        {"__init__.py": "raise ModuleNotFoundError('gc_warm', name='gc_warm')"},
        {
            "__init__.py": "",
            "worker/__init__.py": "",
            "worker/boot.py": "import argparse; argparse.ArgumentParser().parse_args()",
        },
    ],
    ids=["no endpoint", "no gc_warm", "older gc_warm"],
)
def test_line_of_a_config_says_what_it_could_not_start(
    there: dict[str, str], tmp_path: Path
) -> None:
    for name, text in there.items():
        (tmp_path / "gc_warm" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "gc_warm" / name).write_text(text)
    rendered = rendering.render(
        folders.shipped()["local"], {"preload": ["my_tables"], "survive_idle_kill": True}
    )
    line = yaml.safe_load(rendered)["engine"]["provider"]["worker_init"]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}" if there else "/usr/bin:/bin"

    done = subprocess.run(
        ["bash", "-c", f"set -e\n{line}\nenv"],
        cwd=tmp_path,
        env={"PATH": path, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GC_WARM" not in done.stdout
    assert done.stderr.endswith("\ngc_warm cannot be started here: workers start cold\n")


@pytest.mark.parametrize("name", ["boot", "calls", "program"])
def test_where_versions_meet_the_module_keeps_its_name(name: str) -> None:
    """Configs, clients and programs of other versions name these."""
    importlib.import_module(f"gc_warm.worker.{name}")


def test_other_processes_have_nothing_of_it_and_the_sites_own_is_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.site_was_here = True\n")
    code = (
        "import sys; print(sys.site_was_here, "
        "[name for name in sys.modules if 'gc_warm' in name], "
        "sys.modules['sitecustomize'].__file__)"
    )
    assert python(code, STARTUP, tmp_path).stdout == f"True [] {tmp_path / 'sitecustomize.py'}\n"
    assert python(f"import sys; print({str(STARTUP)!r} in sys.path)", STARTUP).stdout == "False\n"


def test_an_error_of_the_sites_own_is_told_as_without_us(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise LookupError('a site that is broken')\n")
    with_us = python("print('runs')", STARTUP, tmp_path)
    without_us = python("print('runs')", tmp_path)
    assert with_us.stdout == without_us.stdout == "runs\n"
    assert with_us.stderr == without_us.stderr != ""


def test_the_endpoints_command_is_a_manager_at_once(tmp_path: Path) -> None:
    """Of what it would import, nothing is; whatever else the command runs, it runs itself."""
    pool = tmp_path / "parsl" / "executors" / "high_throughput" / "process_worker_pool.py"
    pool.parent.mkdir(parents=True)
    for package in (pool.parents[2], pool.parents[1], pool.parent):
        (package / "__init__.py").touch()
    pool.write_text("import sys; print(sys.argv[1:])")
    command = tmp_path / "globus-compute-endpoint"
    command.write_text("print('the command')")
    environment = {**os.environ, "PYTHONPATH": f"{STARTUP}:{tmp_path}", "GC_WARM_DISABLE": "all"}

    def run(module: str) -> str:
        words = [sys.executable, str(command), "python-exec", module, "-p", "0", "--", "a b"]
        return subprocess.check_output(words, env=environment, text=True)

    assert (
        run("parsl.executors.high_throughput.process_worker_pool") == "['-p', '0', '--', 'a b']\n"
    )
    assert run("parsl") == "the command\n"


def test_a_worker_of_another_parsl_works_and_says_so(tmp_path: Path) -> None:
    """Processes of that name whose function takes other arguments."""
    (tmp_path / "other.py").write_text(
        "from gc_warm.worker import ledger\n"
        "def worker(rank, answer):\n"
        "    answer.send((rank, [failed.what for failed in ledger.preload_failures()]))\n"
    )
    code = (
        "import multiprocessing, other\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ours, theirs = context.Pipe()\n"
        "    name = 'HTEX-Worker-6'\n"
        "    process = context.Process(target=other.worker, args=(6, theirs), name=name)\n"
        "    process.start(); print(ours.recv()); process.join(); print(process.exitcode)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{STARTUP}:{tmp_path}",
        boot.PRELOAD: "my_model my_tables:load",
    }
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "(6, ['my_model', 'my_tables:load'])\n0\n"
    assert "this Parsl is not as gc_warm knows it: its workers work, and start cold" in run.stderr


HOOKS = (
    "preload, preload_node, survive_idle_kill, amd_gpus, orderly_end, helper_watch, gate, backoff"
)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("all", f"switched off: {HOOKS}\n"),
        ("preload", "switched off: preload\n"),
        (" Survive-idle-kill,preload", "switched off: preload, survive_idle_kill\n"),
        ("preloads", "no hook of gc_warm VERSION: preloads (there are HOOKS, and all)\n"),
        ("all 1", f"switched off: {HOOKS}; no hook of gc_warm VERSION: 1 (there are HOOKS, and "),
    ],
)
def test_one_line_says_what_is_off(
    value: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GC_WARM_DISABLE", value)
    boot.main(["my_model", "--survive-idle-kill"])
    printed = capsys.readouterr()
    said = said.replace("VERSION", gc_warm.__version__).replace("HOOKS", HOOKS)
    assert printed.err.startswith(f"gc_warm.worker.boot: GC_WARM_DISABLE={value!r}: {said}")
    assert printed.err.count("\n") == 1
    assert bool(printed.out) == ("all" not in value)


@pytest.mark.parametrize("value", ["", " ,"])
def test_nothing_is_off_without_a_name(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GC_WARM_DISABLE", value)
    boot.main(["my_model"])
    printed = capsys.readouterr()
    assert "my_model" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("spec", ["preloaded:too_long", "preloaded:part_too_long"])
def test_preload_that_does_not_fit_is_left_out(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    boot._preload([spec], {}, 0)
    (record,) = caplog.records
    said = f"preload of {spec} is left out: 600.0 s are needed, and this worker's job ends in 59.0"
    assert record.getMessage().startswith(said)
    assert caplog.text.count("\n") == 1


@pytest.mark.parametrize("spec", ["preloaded:replacement_fails", "preloaded:is_its_own_cause"])
def test_other_failure_is_logged_whole(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    boot._preload([spec], {}, 0)
    assert f"preload of {spec} failed after " in caplog.text
    assert "Traceback" in caplog.text
    assert "LookupError: nothing to load" in caplog.text


NO_TIME = "NotEnoughTimeError: 600.0 s are needed, and this worker's job ends in 59.0 s: submit"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_module:load", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("preloaded:no_such_thing", "AttributeError: module 'preloaded' has no attribute 'no_"),
        ("preloaded:needs_path", "TypeError: needs_path() missing 1 required positional argument"),
        ("preloaded:fail", "LookupError: nothing to load"),
        ("preloaded:too_long", NO_TIME),
        ("preloaded:part_too_long", NO_TIME),
        ("preloaded:leave", "SystemExit: 3"),
        ("preloaded:generator", "TypeError: calling it gives a generator, and runs nothing of it"),
        ("preloaded:coroutine", "TypeError: calling it gives a coroutine, and runs nothing of it"),
    ],
)
def test_failed_preload_is_in_the_ledger(spec: str, said: str) -> None:
    boot._preload([spec, "preloaded"], {}, 0)
    (failure,) = ledger.preload_failures()
    assert failure.what == spec
    assert failure.error.startswith(said)


def test_preload_that_worked_is_no_failure() -> None:
    boot._preload(["preloaded:table", "preloaded"], {}, 0)
    preloaded.table.clear()
    assert ledger.preload_failures() == ()


def test_failure_in_the_ledger_is_one_short_line() -> None:
    boot._preload(["preloaded:says_much"], {}, 0)
    (failure,) = ledger.preload_failures()
    assert "\n" not in failure.error
    assert len(failure.error) < 400


def test_ledger_keeps_the_first_failed_preloads() -> None:
    boot._preload([f"missing_{number}" for number in range(100)], {}, 0)
    failures = ledger.preload_failures()
    assert [failure.what for failure in failures] == [f"missing_{number}" for number in range(20)]


def test_death_in_a_preload_is_in_the_next_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    in_progress: dict[str, object] = {}
    left_behind: dict[str, object] = {}
    monkeypatch.setattr(preloaded, "crash", lambda: left_behind.update(in_progress))
    boot._preload(["preloaded", "preloaded:crash"], in_progress, 3)
    assert ledger.preload_failures() == ()
    assert in_progress == {}

    boot._preload(["preloaded", "preloaded:crash"], left_behind, 3)
    died = "the worker before this one died in its preload of preloaded:crash"
    assert [(each.what, each.error) for each in ledger.preload_failures()] == [
        ("preloaded", died),
        ("preloaded:crash", died),
    ]
    assert left_behind == {}


@contextmanager
def engine(line: str, *paths: Path, number: int = 2, **variables: str) -> Iterator[MockExecutor]:
    """The real engine with that line at the end of its worker_init."""
    variables = {"PYTHONPATH": ":".join(map(str, [*paths, MODULES])), **variables}
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    config = engine_config(number, f"export {exports}", line)

    accelerators = 'available_accelerators: ["3", "5", "7", "9"]'
    config = config.replace("cores_per_worker", f"{accelerators}\n  cores_per_worker", 1)
    with MockExecutor(config=config) as executor:
        yield executor


def logs(executor: MockExecutor, rank: int = 0) -> str:
    """What that worker has logged."""
    runner = executor._mock_client.runner()
    (log,) = Path(runner._engine._folder).rglob(f"worker_{rank}.log")  # type: ignore[attr-defined]
    return log.read_text()


def output(executor: MockExecutor) -> str:
    """What its blocks have printed."""
    runner = executor._mock_client.runner(executor.user_endpoint_config)
    folder = Path(runner._engine._folder)  # type: ignore[attr-defined]
    return "".join(path.read_text() for path in folder.rglob("submit_scripts/*err"))


@pytest.mark.engine
def test_no_task_of_the_first_burst_pays_a_load_and_neither_does_a_restarted_worker(
    tmp_path: Path,
) -> None:
    site = tmp_path / "site"
    record = tmp_path / "record"
    meeting = tmp_path / "meeting"
    site.mkdir()
    meeting.mkdir()
    (site / "sitecustomize.py").write_text(SITE)

    with engine(LINE.format("preloaded:table"), site, SITE_RECORD=str(record)) as executor:
        burst = [executor.submit(preloaded.use, str(meeting), 2) for _ in range(2)]
        first = {state.rank: state for state in (future.result(120) for future in burst)}
        for rank, device in ((0, "3"), (1, "5")):
            state = first[rank]
            assert (state.loads, state.hits, state.device) == (1, 1, device)

        ran_the_sites_own = set(map(int, record.read_text().split()))
        for state in first.values():
            assert state.pid in ran_the_sites_own
            assert boot.PRELOAD not in state.environment
            assert boot.SURVIVE not in state.environment
            assert state.environment["PYTHONPATH"] == f"{site}:{MODULES}"
        assert "preloaded preloaded:table in " in logs(executor)

        busy = executor.submit(tasks.for_ever, str(tmp_path / "started"))
        wait_until((tmp_path / "started").exists, "it is busy")
        pid = int((tmp_path / "started").read_text())
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        assert "WorkerLost" in remote_text(busy)

        rank = next(rank for rank, state in first.items() if state.pid == pid)
        preload = "preloaded preloaded:table in "
        wait_until(lambda: logs(executor, rank).count(preload) == 2, "it is warm again")
        print(f"warm again {time.monotonic() - killed:.1f} s after its death")

        again = [executor.submit(preloaded.use, str(meeting), 4) for _ in range(2)]
        states = [future.result(120) for future in again]
        assert {(state.loads, state.hits > 0) for state in states} == {(1, True)}


@pytest.mark.engine
def test_whatever_a_preload_does_the_workers_work() -> None:
    """Each on an engine of its own, all at the same time."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(works_and_says, *zip(*WAYS, strict=True)))


WAYS = [
    ("preloaded:fail", "preload of preloaded:fail failed after "),
    ("preloaded:too_long", "preload of preloaded:too_long is left out: 600.0 s are needed, and "),
    ("preloaded:leave", "SystemExit: 3"),
    (
        "preloaded:crash",
        "the worker before this one died in its preload of preloaded:crash: "
        "this one starts cold, without preloaded:crash preloaded:table",
    ),
    ("no_such_module", "No module named 'no_such_module'"),
    ("preloaded:no_such_thing", "has no attribute 'no_such_thing'"),
]


def works_and_says(spec: str, said: str) -> None:
    with engine(LINE.format(f"{spec} preloaded:table"), number=1) as executor:
        assert executor.submit(tasks.rank).result(120) == 0, spec
        assert said in logs(executor), spec
        is_warm = "preloaded preloaded:table in " in logs(executor)
        assert is_warm == (spec != "preloaded:crash"), spec
        failures = executor.submit(preloaded.failures).result(120)
        assert failures[0] == spec, failures


@pytest.mark.engine
def test_where_the_hook_cannot_be_had_the_workers_work_without(tmp_path: Path) -> None:
    """A node without gc_warm, in three ways, and a Parsl that is another.

    The line prints nothing; or it ran on another node, and the folder is not there, or nothing but
    the folder is.
    """
    hidden = tmp_path / "hidden"
    changed = tmp_path / "changed"
    (hidden / "gc_warm").mkdir(parents=True)
    (hidden / "gc_warm" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'gc_warm'\", name='gc_warm')\n"
    )
    changed.mkdir()
    (changed / "sitecustomize.py").write_text(OTHER_PARSL)

    startup = shlex.quote(str(STARTUP))
    there = f'export GC_WARM_PRELOAD=preloaded:table PYTHONPATH={startup}:"$PYTHONPATH"'
    nowhere = there.replace(startup, str(tmp_path / "nowhere"))
    cases = [
        (LINE.format("preloaded:table"), hidden),
        (there, hidden),
        (nowhere, hidden),
        (LINE.format("preloaded:table"), changed),
    ]

    def works(line: str, path: Path) -> None:
        with engine(line, path, number=1) as executor:
            assert executor.submit(tasks.rank).result(120) == 0, line
            assert "preloaded" not in logs(executor), line

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(works, *zip(*cases, strict=True)))


STOCK: dict[str, object] = {
    "failures": [],
    "loads": 0,
    "ends in order": False,
    "queues": set(),
    "variables": {"GC_WARM_DISABLE"},
}
NOT_DONE = {**STOCK, "failures": ["GC_WARM_DISABLE switches preload off"]}
ENDS = {**NOT_DONE, "ends in order": True, "queues": {"_FirstGet"}}
SURVIVES = {**ENDS, "queues": {"_FirstGet", "TaskQueue"}}


@pytest.mark.engine
def test_no_option_overrides_the_switch() -> None:
    """Where the block is prepared, or only on the node of the worker."""
    line = LINE.format("--survive-idle-kill preloaded:table")
    cases = [
        ("all", True, STOCK, HOOKS),
        ("all", False, NOT_DONE, HOOKS),
        ("preload", True, SURVIVES, "preload"),
        ("survive_idle_kill,preload", False, ENDS, "preload, survive_idle_kill"),
    ]

    def is_off(value: str, is_before: bool, left: dict[str, object], said: str) -> None:
        switch = f"export GC_WARM_DISABLE={value}"
        lines = f"{switch}; {line}" if is_before else f"{line}; {switch}"
        with engine(lines, number=1) as executor:
            assert executor.submit(preloaded.hooks).result(120) == left, lines
            assert f"switched off: {said}\n" in output(executor), lines

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(is_off, *zip(*cases, strict=True)))


@pytest.mark.engine
def test_options_of_our_config_do_not_override_the_switch() -> None:
    options = {
        "workers_per_node": 1,
        "python_path": [str(MODULES)],
        "preload": ["preloaded:table"],
        "survive_idle_kill": True,
        "environment": "export GC_WARM_DISABLE=all  # as a node's own environment would",
    }
    with MockExecutor(config="local", user_endpoint_config=options) as executor:
        assert executor.submit(preloaded.hooks).result(120) == STOCK
        assert f"switched off: {HOOKS}\n" in output(executor)


OTHER_PARSL = """
from multiprocessing.process import BaseProcess
stock = BaseProcess._bootstrap
def bootstrap(self, *args, **kwargs):
    worker = self._target
    if self.name.startswith("HTEX-Worker"):
        self._target = lambda *arguments: worker(*arguments)
    return stock(self, *args, **kwargs)
BaseProcess._bootstrap = bootstrap
"""
"""A Parsl whose workers are called in another way."""


@pytest.mark.engine
def test_a_worker_that_is_asked_to_end_in_its_preload_does(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with engine(LINE.format("preloaded:for_ever"), number=1, BEGUN=str(begun)):
        wait_until(begun.exists, "the preload has begun")
        os.kill(int(begun.read_text()), signal.SIGTERM)
        wait_until(lambda: begun.read_text().endswith("torn down"), "it was ended in order")
