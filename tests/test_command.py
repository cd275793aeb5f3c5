"""What holds for every command: it answers at once, can be interrupted, and says what it lacks."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import DEFAULT_STRATEGY_CODE

import gc_warm
from gc_warm import cli
from gc_warm.check import task_facts
from gc_warm.client import registry
from gc_warm.commands import interrupts, missing
from tests.support import cli_runner, wait_until

COMMAND = [sys.executable, "-m", "gc_warm"]
HEAVY = (
    "globus_compute_sdk",
    "globus_compute_endpoint",
    "globus_sdk",
    "parsl",
    "pydantic",
    "rich",
    "yaml",
    "requests",
    "psutil",
)

# Runs commands one after the other in one process; says what each returned, and which modules had
# been imported by then.
RUN_MANY = """
import contextlib, io, json, os, sys
from gc_warm import cli

done = []
for environment, arguments in json.loads(sys.argv[1]):
    os.environ.update(environment)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            cli.main(arguments, prog_name="gc-warm")
        except SystemExit as exit:
            done.append([exit.code or 0, output.getvalue(), [*sys.modules]])
    for name in environment:
        del os.environ[name]
print(json.dumps(done))
"""

# The command, in a process that does something when it begins to import a module.
AT_IMPORT = """
import importlib.abc, os, signal, sys

wanted = sys.argv.pop(1)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == wanted:
            {deed}

sys.meta_path.insert(0, Finder())
from gc_warm.__main__ import main
sys.exit(main())
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
HIDE = "raise ModuleNotFoundError(f'No module named {name!r}', name=name)"


def run_with(deed: str, module: str, *arguments: str) -> tuple[int, str]:
    """Return exit status and stderr of a command; *deed* precedes its import of *module*."""
    script = AT_IMPORT.format(deed=deed)
    command = [sys.executable, "-c", script, module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_answers_without_heavy_imports() -> None:
    completion = {
        "_GC_WARM_COMPLETE": "bash_complete",
        "COMP_WORDS": "gc-warm ch",
        "COMP_CWORD": "1",
    }
    calls: list[tuple[dict[str, str], list[str], int, str]] = [
        ({}, ["--version"], 0, f"gc-warm, version {gc_warm.__version__}\n"),
        ({}, ["--help"], 0, "Usage: gc-warm [OPTIONS] COMMAND"),
        *(({}, [name, "--help"], 0, f"Usage: gc-warm {name} ") for name in cli.main.commands),
        ({}, ["nonsense"], 2, "Usage: gc-warm [OPTIONS] COMMAND"),
        ({}, ["demo", "--workers", "0"], 2, "Usage: gc-warm demo"),
        ({}, ["check", "--yaml", "a", "b"], 2, "Usage: gc-warm check"),
        ({}, ["register", "m", "--strategy", "Telepathy"], 2, "Usage: gc-warm register"),
        ({}, ["check", "--explain", "GCW101"], 0, "GCW101 (error)"),
        ({"_GC_WARM_COMPLETE": "bash_source"}, [], 0, "_gc_warm_completion() {"),
        (completion, [], 0, "plain,check\n"),
        ({}, ["check", str(Path(cli.__file__)), "gc_warm.functions"], 0, "functions "),
    ]
    asked = json.dumps([call[:2] for call in calls])
    done = subprocess.run(
        [sys.executable, "-c", RUN_MANY, asked],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answered = json.loads(done.stdout)

    for call, (returned, output, modules) in zip(calls, answered, strict=True):
        _, arguments, status, beginning = call
        assert (returned, output[: len(beginning)]) == (status, beginning), arguments

        imported = {name.partition(".")[0] for name in modules} & {*HEAVY}
        # by which findings are printed, and nothing else
        assert imported == ({"rich"} if call is calls[-1] else set()), arguments


def test_names_agree_with_the_sdk() -> None:
    assert tuple(registry.STRATEGIES) == task_facts.STRATEGIES
    assert type(DEFAULT_STRATEGY_CODE).__name__ == task_facts.DEFAULT_STRATEGY


def test_strategy_of_another_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.STRATEGIES, "AllCodeStrategies")
    refused = cli_runner().invoke(
        cli.main, ["register", "gc_warm.functions", "--strategy", "AllCodeStrategies"]
    )
    assert refused.exit_code == 2
    message = "this version of globus-compute-sdk has no AllCodeStrategies; it has DillCodeSource, "
    assert message in refused.stderr


@pytest.mark.parametrize("module", ["gc_warm", "gc_warm.cli"])
def test_runs_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "nonsense"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: gc-warm [OPTIONS]")


@pytest.mark.parametrize("width", [40, 80])
def test_summaries_are_whole(width: int) -> None:
    shown = cli_runner().invoke(cli.main, ["--help"], terminal_width=width).stdout
    listed = " ".join(shown.partition("Commands:")[2].split())
    assert "..." not in listed
    for command in cli.main.commands.values():
        summary = " ".join((command.help or "").partition("\n\n")[0].split())
        assert summary.endswith(".")
        assert summary in listed


@pytest.mark.parametrize(
    "module",
    ["click", "gc_warm.commands.demo", "globus_compute_sdk.sdk.client", "gc_warm.testing.mock"],
)
def test_interrupt_ends_imports(module: str) -> None:
    assert run_with(INTERRUPT, module, "demo") == (130, "Interrupted\n")


def test_interrupt_at_some_moment(tmp_path: Path) -> None:
    """At moments that nobody has chosen; nothing is known of them but how the command may end."""
    for seconds in (0.01, 0.1, 0.5):
        process = subprocess.Popen(
            [*COMMAND, "demo"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)

        if process.returncode == interrupts.STATUS:
            assert said == "Interrupted\n"
        else:  # the interpreter had not come to our first line
            assert process.returncode in (-signal.SIGINT, 1)
            assert "gc_warm/commands" not in said
            assert said == "" or "KeyboardInterrupt" in said
    assert os.listdir(tmp_path) == []


def test_interrupt_is_not_interrupted() -> None:
    ended = []

    def clear_up() -> None:
        try:
            raise ValueError("what clearing up may run into, too")
        except ValueError:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        ended.append("all of it")

    @contextlib.contextmanager
    def cleared_up() -> Iterator[None]:
        try:
            yield
        finally:
            clear_up()

    with pytest.raises(KeyboardInterrupt), interrupts.in_order(), cleared_up():
        signal.raise_signal(signal.SIGINT)
    assert ended == ["all of it"]


def test_interrupt_after_one_that_was_overcome() -> None:
    with interrupts.in_order():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_interrupt_of_a_callback_is_repeated() -> None:
    class Referred:
        pass

    def interrupt(_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    referred = [Referred()]
    reference = weakref.ref(referred[0], interrupt)

    def wait() -> None:
        referred.clear()
        wait_until(lambda: False, "interrupted")

    with pytest.raises(KeyboardInterrupt), interrupts.in_order():
        wait()
    assert reference() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_in_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, interrupts.in_order():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_ignored_interrupts_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.end_at_once()
        with interrupts.in_order():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_output_that_cannot_be_written(stdout: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as closed:
        target = full if stdout == "full" else closed
        done = subprocess.run(
            [*COMMAND, "--help"], stdout=target, stderr=subprocess.PIPE, text=True, timeout=120
        )
    complaint = "Error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, complaint if stdout == "full" else "")


@pytest.mark.parametrize(("module", "command"), [("click", "gc-warm"), ("rich", "gc-warm up")])
def test_missing_package_is_named(module: str, command: str) -> None:
    status, said = run_with(HIDE, module, "up", "local")
    beginning = (
        f"Error: {command} needs the package {module}, "
        f"which is not installed beside {sys.executable}: pip install '{module}>="
    )
    assert (status, said[: len(beginning)], said.count("\n")) == (1, beginning, 1)


def test_own_module_that_is_missing_shows_itself() -> None:
    status, said = run_with(HIDE, "gc_warm.local.cloud", "up", "local")
    assert status == 1
    assert said.startswith("Traceback")
    assert said.endswith("ModuleNotFoundError: No module named 'gc_warm.local.cloud'\n")


def test_package_without_a_name_is_told_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.16.1")
    error = failure_of(
        lambda: __import__("globus_compute_sdk.serialize", fromlist=["Telepathy"]).Telepathy
    )
    said = missing.explain(error, "gc-warm demo")
    assert said is not None
    beginning = f"gc-warm demo cannot use globus-compute-sdk 3.16.1 beside {sys.executable}: "
    assert said.startswith(beginning)
    assert "; gc_warm needs globus-compute-sdk" in said


def test_part_of_a_package_that_is_missing() -> None:
    error = failure_of(lambda: __import__("yaml.telepathy"))
    said = missing.explain(error, "gc-warm demo")
    assert said is not None
    assert ": No module named 'yaml.telepathy'; gc_warm needs pyyaml" in said


def failure_of(action: Callable[[], object]) -> ImportError | AttributeError:
    """Return the error that an action raises."""
    try:
        action()
    except (ImportError, AttributeError) as error:
        return error
    raise AssertionError("it did not fail")
