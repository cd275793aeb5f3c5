"""The whole stack with nothing of ours between, and what happens when parts of it fail.

It is `gc-warm up`, and the unmodified daemon and SDK.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from gc_warm import processes
from tests.slurm_cluster import SlurmCluster
from tests.support import ScriptStep, client_environment, has_ended, wait_until

SLURM = {"address": "127.0.0.1", "partition": "debug"}


class Up:
    """A `gc-warm up` that runs, and the environment it has printed."""

    def __init__(self, config: str, log: Path) -> None:
        self.log = log
        command = [os.path.join(os.path.dirname(sys.executable), "gc-warm"), "up", config]
        # Without the tests' marker, since one serves several tests; `up` sees to it that all of it
        # has ended.
        environment = dict(os.environ)
        environment.pop("GC_WARM_TEST_RUN", None)
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
            )

        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.fullmatch(r"# endpoint \S+: (\S+)\n", first)
        assert found, first + log.read_text()
        self.endpoint = found[1]
        self.folder = self.process.stdout.readline().partition("its logs: ")[2].partition("/*/")[0]

        self.environment: dict[str, str] = {}
        for _ in range(5):
            line = self.process.stdout.readline()
            name, value = shlex.split(line.removeprefix("export "))[0].split("=", 1)
            self.environment[name] = value

    def run(self, step: str, *arguments: str, **options: Any) -> Any:
        """Run one step of the script, which knows nothing but the printed lines."""
        return self.start(step, *arguments, **options).answer()

    def start(self, step: str, *arguments: str, **options: Any) -> ScriptStep:
        """Start one step of the script, without waiting for it."""
        options = {"workers_per_node": 1} | options
        return ScriptStep(self.environment, self.endpoint, step, *arguments, **options)

    def processes(self) -> set[psutil.Process]:
        """Return the processes of the endpoint, however far removed."""
        marks = set()
        for path in Path(self.folder).glob("*/user_environment.yaml"):
            marks.add(re.findall(rf"^{processes.MARK}: (\w+)$", path.read_text(), re.MULTILINE)[0])
        return {process for mark in marks for process in processes._processes(mark, self.folder)}

    @property
    def daemon(self) -> psutil.Process:
        """The endpoint's daemon."""
        found = [
            path.read_text()
            for path in Path(self.folder).glob("*/daemon.pid")
            if not path.parent.name.startswith("uep.")
        ]
        return psutil.Process(int(found[0]))


@contextlib.contextmanager
def up(config: str, log: Path) -> Iterator[Up]:
    """Run `gc-warm up`, and end it with Ctrl-C, after which nothing of it is there."""
    running = Up(config, log)
    try:
        yield running
    finally:
        left = running.processes()
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
        running.process.communicate(timeout=120)
        wait_until(lambda: all(has_ended(process.pid) for process in left), "all of it has ended")
        assert not os.path.exists(running.folder)


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_ends_all_of_it_however_it_ends(number: signal.Signals, tmp_path: Path) -> None:
    with up("local", tmp_path / "log") as running:
        assert running.run("by_function_and_by_id")[1]
        # daemon, user endpoint, interchange, block, manager, worker
        assert len(running.processes()) > 5
        running.process.send_signal(number)
        assert running.process.wait(120) == (-9 if number == signal.SIGKILL else 128 + number)


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_the_same_on_slurm(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same day, on batch jobs.

    These are ended with the rest, also by what is left when `gc-warm up` is killed.
    """
    if reason := SlurmCluster.missing():
        pytest.skip(reason)

    (tmp_path / "slurm").mkdir()
    with SlurmCluster(tmp_path / "slurm") as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        with up("slurm", tmp_path / "log") as running:
            counts, error_came_back = running.run("by_function_and_by_id", **SLURM)
            assert counts == [1, 2, 3, 4, 5]
            assert error_came_back
            if number == signal.SIGINT:
                group = running.run("leave", **SLURM)
                assert running.run("come_back", group) == [0, 1, 2, 3, 4]
                assert running.run("two_configs", **SLURM) == [[6, 1], [7, 2], [8, 3]]

            jobs = [job.id for job in cluster.jobs() if not job.ended]
            assert len(jobs) == (2 if number == signal.SIGINT else 1)
            running.process.send_signal(number)
            running.process.wait(120)
            wait_until(lambda: all(cluster.job(job).ended for job in jobs), "the jobs have ended")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """For the tests from here on: it keeps the port."""
    with up("local", tmp_path_factory.mktemp("up") / "log") as running:
        yield running
    assert running.process.returncode == 130


@pytest.mark.engine
def test_a_users_day(local: Up) -> None:
    counts, error_came_back = local.run("by_function_and_by_id")
    assert counts == [1, 2, 3, 4, 5]
    assert error_came_back
    group = local.run("leave")
    assert local.run("come_back", group) == [0, 1, 2, 3, 4]
    assert local.run("two_configs") == [[6, 1], [7, 2], [8, 3]]
    said = local.log.read_text()
    assert said.count("count: success") == 11
    assert said.count("invert: failed") == 1


@pytest.mark.engine
def test_functions_are_registered_once_and_used_by_the_book(local: Up, tmp_path: Path) -> None:
    book = str(tmp_path / "functions.yaml")
    arguments = ["register", "gc_warm.functions", "--book", book]
    command = [sys.executable, "-m", "gc_warm", *arguments]
    environment = os.environ | local.environment
    said = []
    for _ in range(2):
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        said.append(run.stdout)

    assert [text.count("registered: new") for text in said] == [3, 0]
    assert said[1].count("unchanged") == 4
    assert local.run("by_book", book, task_timeout=55) == 1


@pytest.mark.engine
def test_secrets_are_in_no_process_list_log_or_error(local: Up) -> None:
    local.run("by_function_and_by_id")
    secret = local.environment["GLOBUS_COMPUTE_CLIENT_SECRET"]
    commands = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()))

    logs = [path.read_text(errors="replace") for path in Path(local.folder).rglob("*.log")]
    assert any("Core Endpoint begins" in text for text in logs)
    assert any("Starting EndpointInterchange" in text for text in logs)
    for text in [*commands, *logs, local.log.read_text()]:
        assert secret not in text
        assert not re.search(r"amqps?://[^:\s*]+:[^@\s*]+@", text), "a connection's password"


@pytest.mark.engine
def test_another_process_without_the_secrets_is_refused(local: Up) -> None:
    assert requests.get("http://localhost:5000/v2/version", timeout=120).status_code == 401

    environment = client_environment() | local.environment
    environment["GLOBUS_COMPUTE_CLIENT_SECRET"] = "guessed"
    environment["GLOBUS_COMPUTE_USER_DIR"] = local.folder + "/t"
    command = [sys.executable, ScriptStep.program, "leave", local.endpoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert done.returncode != 0
    assert "401" in done.stderr
    assert local.environment["GLOBUS_COMPUTE_CLIENT_SECRET"] not in done.stderr


@pytest.mark.engine
def test_a_second_one_refuses_to_start(local: Up) -> None:
    command = [sys.executable, "-m", "gc_warm", "up", "local"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    refusal = "port 5000 on 127.0.0.1 cannot be had (Address already in use): end what uses it"
    assert done.returncode == 1
    assert refusal in done.stderr


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_daemon_that_ends_is_started_again_and_its_tasks_are_delivered(
    local: Up, number: signal.Signals, tmp_path: Path
) -> None:
    assert local.run("by_function_and_by_id")[1]
    restarts = local.log.read_text().count("is started again")
    before = local.daemon
    before.suspend()  # so that it is there, and takes no tasks
    waiting = local.start("submit_many", "20", str(tmp_path / "record"), task_timeout=200 + number)
    wait_until(
        lambda: f'"task_timeout": {200 + number}' in local.log.read_text(),
        "the tasks have been submitted",
    )

    before.send_signal(number)
    before.resume()
    # by the next, or by one that is told to stop and runs them before it does
    assert waiting.answer() == list(range(20))
    wait_until(
        lambda: local.log.read_text().count("is started again") == restarts + 1,
        "the next has been started",
    )
    assert sorted(map(int, (tmp_path / "record").read_text().split())) == list(range(20))
