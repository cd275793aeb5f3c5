"""gc-warm register, as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
import requests
from click.testing import Result
from globus_compute_sdk.errors import VersionMismatch

from gc_warm import FunctionBook, MockClient, cli
from gc_warm.client import registry
from gc_warm.commands import register as register_command
from gc_warm.local.service import ServiceError
from tests.support import cli_runner, client_environment

SCIENCE = '''def energy(x):
    """Energy of a cluster."""
    return x * x


def forces(x):
    return [x]
'''


class Clients:
    """Makes the command's clients, on one service, and counts."""

    def __init__(self) -> None:
        self.made: list[MockClient] = []
        self.sent: list[str] = []
        self.error_at: dict[int, BaseException] = {}

    def __call__(self, strategy: str) -> MockClient:
        clients = self

        class Counting(MockClient):
            def register_function(self, function: Any, *args: Any, **options: Any) -> str:
                if len(clients.sent) in clients.error_at:
                    raise clients.error_at[len(clients.sent)]
                function_id = super().register_function(function, *args, **options)
                clients.sent.append(function.__name__)
                return str(function_id)

        self.made.append(
            Counting(
                environment="production",
                code_serialization_strategy=registry.STRATEGIES[strategy](),
            )
        )
        return self.made[-1]


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    clients = Clients()
    monkeypatch.setattr(register_command, "_client", clients)
    yield clients
    for client in clients.made:
        client.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the module `science`."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    write(SCIENCE)
    return tmp_path


def write(source: str, name: str = "science") -> None:
    Path(f"{name}.py").write_text(source)


def register(*arguments: str) -> Result:
    """As in a new process, which imports the module anew."""
    for name in ("science", "many"):
        sys.modules.pop(name, None)
    return cli_runner().invoke(cli.main, ["register", *arguments])


def test_what_is_new_or_changed_is_sent_and_it_says_why(clients: Clients) -> None:
    first = register("science")
    assert first.exit_code == 0, first.output
    book = FunctionBook.load("functions.yaml")
    lines = first.stdout.splitlines()
    assert lines[:2] == [
        f"energy  {book['energy']}  registered: new",
        f"forces  {book['forces']}  registered: new",
    ]
    assert "functions.yaml: 2 registered, 0 unchanged. In Python:" in lines
    use = "    FunctionBook.load('functions.yaml').prime(executor)"
    assert f"{use}    # then executor.submit(energy) uses its id" in lines
    assert first.stderr == ""

    write(SCIENCE.replace("forces(x)", "forces(x, unit)").replace("x * x", "x ** 2"))
    second = register("science")
    again = FunctionBook.load("functions.yaml")
    assert second.stdout.splitlines()[:2] == [
        f"energy  {book['energy']}  unchanged",
        f"forces  {again['forces']}  registered: signature (x) -> (x, unit)",
    ]
    assert clients.sent == ["energy", "forces", "forces"]


COLD = (
    SCIENCE
    + """

def cold():
    import functools

    @functools.lru_cache
    def load():
        return [0]

    return load()
"""
)


@pytest.mark.parametrize("mode", [[], ["--dry-run"], ["--check"]])
def test_what_can_never_be_warm_is_refused_before_anything_is_sent(
    clients: Clients, folder: Path, mode: list[str]
) -> None:
    write(COLD)
    refused = register("science", *mode)
    assert refused.exit_code == 1
    finding = (
        f"{folder / 'science.py'}:14:5: GCW101 error: load is cached, "
        "and made anew with an empty cache in every call"
    )
    assert finding in refused.stderr
    advice = "mend what can never be warm, silence a rule in its line, or add --force"
    assert f"nothing is registered: {advice}" in refused.stderr
    assert (clients.made, os.listdir(folder), refused.stdout) == ([], ["science.py"], "")

    others = register("science", "energy", *mode)
    assert others.exit_code == (mode == ["--check"]), "the others can be registered"


def test_force_registers_it_all_the_same_and_so_does_a_comment(clients: Clients) -> None:
    write(COLD)
    foretold = register("science", "--dry-run", "--force")
    assert (foretold.exit_code, clients.made) == (0, []), "which is still asked for nothing"
    forced = register("science", "--force")
    assert (forced.exit_code, clients.sent) == (0, ["energy", "forces", "cold"])
    assert "GCW101 error" in forced.stderr
    write(COLD.replace("def load():", "def load():  # gc-warm: ignore[GCW101]"))
    assert register("science").exit_code == 0


def test_what_is_warm_only_with_this_strategy_is_told_and_registered(clients: Clients) -> None:
    write("def energy(x, seen={}):\n    seen[x] = 1\n")
    told = register("science")
    assert (told.exit_code, clients.sent) == (0, ["energy"])
    finding = (
        "GCW104 warning: seen keeps state in its default value, "
        "which is warm only as long as it travels by DillCode"
    )
    assert finding in told.stderr
    assert register("science", "--strategy", "AllCodeStrategies").exit_code == 1


TIMED = """\
import functools
from gc_warm import warm
def timed(f):
    @functools.wraps(f)
    def inner():
        return f()
    return inner
@timed
@warm
def energy():
    return 1
"""


def test_function_that_has_only_an_object_below_its_decorators_is_passed_over(
    clients: Clients,
) -> None:
    write(TIMED)
    assert register("science", "energy", "--dry-run").exit_code == 0


def test_nothing_to_send_needs_no_client(clients: Clients) -> None:
    register("science")
    assert register("science").stdout.count("unchanged") == 3
    assert len(clients.made) == 1


def test_a_local_service_is_always_asked(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    register("science")
    monkeypatch.setattr(registry, "is_local", lambda service: True)
    asked = register("science")  # this client has a service of its own, which knows nothing
    assert asked.stdout.count("registered: the service does not know this id any more") == 2


def test_dry_run_and_check_send_nothing_and_write_nothing(clients: Clients, folder: Path) -> None:
    new = register("science", "--dry-run")
    assert new.exit_code == 0
    assert new.stdout.splitlines()[0].split() == ["energy", "would", "be", "registered:", "new"]
    assert register("science", "--check").exit_code == 1
    assert (clients.made, os.listdir(folder)) == ([], ["science.py"])

    register("science")
    written = Path("functions.yaml").read_bytes()
    current = register("science", "--check")
    assert current.exit_code == 0
    assert current.stdout.splitlines()[-1] == "functions.yaml is up to date"

    stale = register("science", "--check", "--strategy", "AllCodeStrategies")
    assert stale.exit_code == 1
    assert "would be registered: strategy DillCode -> AllCodeStrategies" in stale.stdout
    assert stale.stdout.splitlines()[-1] == "functions.yaml is out of date: 2 of 2 would be sent"

    public = register("science", "--dry-run", "--public")
    assert public.stdout.count("would be registered: for you -> for everybody") == 2
    assert (len(clients.made), Path("functions.yaml").read_bytes()) == (1, written)


def test_options_reach_the_service(clients: Clients) -> None:
    group = str(uuid.uuid4())
    done = register(
        "science", "energy", "--book", "b.yaml", "--strategy", "PureSourceDill", "--group", group
    )
    assert done.exit_code == 0, done.output
    entry = FunctionBook.load("b.yaml").entries["energy"]
    assert (entry.strategy, entry.group, entry.description) == (
        "PureSourceDill",
        group,
        "Energy of a cluster.",
    )
    kept = clients.made[0].service._functions[entry.function_id]
    assert (kept["group"], kept["function_code"].split("\n")[1]) == (group, "sd")
    assert not Path("functions.yaml").exists()
    register("science", "energy", "--book", "b.yaml", "--public")
    assert FunctionBook.load("b.yaml").entries["energy"].public


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["science", "--public", "--group", str(uuid.uuid4())],
            "public lets anybody call the functions, and group only its members: choose one",
        ),
        (["science", "--group", "us"], "group: 'us' is not the id of a Globus group"),
        (["science", "--strategy", "Telepathy"], "'Telepathy' is not one of"),
        (
            ["science.py"],
            "science.py is a path: give the module's dotted name, as workers import it, "
            "such as science",
        ),
        (["scince"], "scince cannot be imported: ModuleNotFoundError: No module named 'scince'"),
        (["science", "enrgy"], "science has no function 'enrgy'; did you mean 'energy'?"),
        (["science", "--book", "missing/b.yaml"], "there is no folder for missing/b.yaml"),
        (["science", "--book", "."], "Is a directory"),
        (["science", "--book", "science.py"], "science.py:2: "),
    ],
)
def test_errors_are_explained(clients: Clients, arguments: list[str], message: str) -> None:
    failed = register(*arguments)
    assert failed.exit_code in (1, 2)
    assert message in failed.stderr
    assert isinstance(failed.exception, SystemExit)
    assert (clients.sent, os.listdir()) == ([], ["science.py"])


def test_what_has_disappeared_is_kept_and_mentioned(clients: Clients) -> None:
    register("science")
    write(SCIENCE.split("def forces")[0])
    done = register("science")
    kept = "its entry is kept: remove it from functions.yaml if nobody uses it"
    assert f"forces is no longer in science; {kept}" in done.stdout
    assert list(FunctionBook.load("functions.yaml")) == ["energy", "forces"]
    assert register("science", "--check").exit_code == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            globus_sdk.GlobusConnectionError("cut", requests.ConnectionError("the cable")),
            1,
            "the service cannot be reached: the cable",
        ),
        (KeyboardInterrupt(), 130, "Interrupted; one function may have been on its way."),
        (VersionMismatch("too old"), 1, "too old"),
    ],
)
def test_what_breaks_in_the_middle_loses_nothing(
    clients: Clients, error: BaseException, code: int, message: str
) -> None:
    clients.error_at = {1: error}
    broken = register("science")
    assert broken.exit_code == code
    assert message in broken.stderr
    registered = "Registered before that, and in functions.yaml: energy."
    assert f"{registered} Run the command again for the others." in broken.stderr
    assert list(FunctionBook.load("functions.yaml")) == ["energy"]
    assert sorted(os.listdir()) == ["functions.yaml", "science.py"]

    clients.error_at = {}
    assert register("science").exit_code == 0
    assert clients.sent == ["energy", "forces"]


def test_a_refusal_of_the_service_is_quoted(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients("DillCode")
    monkeypatch.setattr(register_command, "_client", lambda strategy: client)

    def refuse(*_: Any) -> None:
        raise ServiceError(403, "FUNCTION_NOT_PERMITTED", "not you")

    monkeypatch.setattr(client.service, "handle", refuse)
    refused = register("science")
    message = "Error: the service answered 403 FUNCTION_NOT_PERMITTED: not you\n"
    assert (refused.exit_code, refused.stderr) == (1, message)
    assert os.listdir() == ["science.py"]


def test_half_a_client_identity_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "Both GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET must be set"

    def refuse(**_: Any) -> None:  # as the SDK's client does, which then leaves a database open
        raise ValueError(reason)

    monkeypatch.setattr(register_command, "Client", refuse)
    assert register("science").stderr == f"Error: {reason}\n"


def test_a_missing_login_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(strategy: str) -> None:
        raise globus_sdk.GlobusError("log in where there is a terminal")

    monkeypatch.setattr(register_command, "_client", no_terminal)
    assert register("science").stderr == "Error: log in where there is a terminal\n"


def test_many_on_a_terminal_have_a_progress_bar(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("\n".join(f"def f{n}(): pass" for n in range(50)), "many")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = register("many")
    assert shown.exit_code == 0
    assert "registering" in shown.output
    assert shown.stdout.count("registered: new") == 50

    monkeypatch.delenv("FORCE_COLOR")
    again = register("many")
    assert (again.stdout.count("  unchanged\n"), again.stderr) == (50, "")
    assert "functions.yaml: 0 registered, 50 unchanged. In Python:" in again.stdout
    assert len(clients.sent) == 50


def test_modules_of_the_current_directory_are_found_and_no_login_is_asked_for() -> None:
    environment = {**client_environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    code = "from gc_warm.cli import main; main()"
    command = [sys.executable, *safe_path, "-c", code, "register", "science", "--check"]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "functions.yaml is out of date: 2 of 2 would be sent" in done.stdout
    assert os.listdir() == ["science.py"]
