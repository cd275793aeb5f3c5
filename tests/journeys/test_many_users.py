"""An endpoint for many users: a manager that root runs, and two local users whom it maps.

Neither gets at what the other has there, nor keeps the other from working.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gc_warm import processes
from gc_warm.local.cloud import LocalCloud
from tests.support import MODULES, client_environment, wait_until

pytestmark = pytest.mark.engine

ROOT = MODULES.parents[1]
SCRIPTS = os.path.dirname(sys.executable)
SHARED = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders in which all users may write."""
DESCRIPTORS = 2345
"""A limit that only a session of PAM sets."""

# Lines of JSON, each a function of `neighbours` with its arguments; and the answers.
CLIENT = """
import json, sys
import neighbours
from globus_compute_sdk import Executor

options = json.loads(sys.argv[2])
with Executor(sys.argv[1], user_endpoint_config=options) as executor:
    executor.api_burst_window_s = 0  # no service is behind it that would mind
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        future = executor.submit(getattr(neighbours, name), *arguments)
        error = future.exception(120)
        print(json.dumps([error and str(error), error or future.result()], default=str), flush=True)
"""


@dataclass(frozen=True)
class User:
    """A local user."""

    name: str
    uid: int
    home: Path

    def processes(self) -> list[psutil.Process]:
        """Return the processes that are this user's, in any way."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.uid in process.uids() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def shared_files(self) -> list[Path]:
        """Return what this user has in folders for all."""
        found = []
        for folder in SHARED:
            for path in Path(folder).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.lstat().st_uid == self.uid:
                        found.append(path)
        return found

    def belongings(self) -> list[str]:
        """Return all that others are not to get at, but for the home directory itself."""
        tops = list(self.home.iterdir()) + self.shared_files()
        found = [str(path) for top in tops for path in (top, *top.rglob("*"))]
        for process in self.processes():
            found += [f"/proc/{process.pid}/{name}" for name in ("environ", "fd", "cwd")]
        return found


def missing() -> str:
    """Return what this machine lacks for these tests."""
    if os.getuid() != 0:
        return "only root can run an endpoint for other users"
    lacking = [name for name in ("useradd", "userdel", "unshare") if not shutil.which(name)]
    if lacking:
        return f"there is no {', '.join(lacking)}"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    return done.stderr


def make_user(folder: Path) -> User:
    """Make a user whose home directory others can look into, as at many sites."""
    name = f"gcw{secrets.token_hex(4)}"
    home = folder / name
    subprocess.run(["useradd", "--no-create-home", "--home-dir", home, name], check=True)
    entry = pwd.getpwnam(name)
    home.mkdir(mode=0o755)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    return User(name, entry.pw_uid, home)


def remove_user(user: User) -> None:
    """Remove a user with all that there is of the user, whatever has happened."""
    for process in user.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_until(lambda: not user.processes(), f"no process of {user.name} is left")

    subprocess.run(["userdel", "--force", user.name], check=True, capture_output=True)
    for path in [user.home, *user.shared_files()]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture(scope="module")
def users() -> Iterator[tuple[User, User]]:
    if reason := missing():
        pytest.skip(reason)

    homes = Path("/home", f"gc_warm-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as stack:
        homes.mkdir(mode=0o755)
        stack.callback(homes.rmdir)
        made = []
        for _ in range(2):
            user = make_user(homes)
            stack.callback(remove_user, user)
            made.append(user)
        yield made[0], made[1]


@contextlib.contextmanager
def pam_service(folder: Path) -> Iterator[str]:
    """A service of PAM that lets everybody in, with a limit of its own."""
    name = f"gc_warm-{secrets.token_hex(4)}"
    limits = folder / "limits.conf"
    limits.write_text(f"* - nofile {DESCRIPTORS}\n")
    rules = ["auth required pam_permit.so", "account required pam_permit.so"]
    rules.append(f"session required pam_limits.so conf={limits}")
    path = Path("/etc/pam.d", name)
    path.write_text("\n".join(rules) + "\n")
    try:
        yield name
    finally:
        path.unlink()


def readable_by_all(paths: Sequence[Path]) -> list[str]:
    """Return what to put before a command so that all users reach these folders in its sight.

    Where one of them lies below a folder that only root can enter, there is an empty folder in the
    place of that one, with nothing in it but these.
    """
    closed = {
        folder
        for path in paths
        for folder in reversed(path.parents)
        if not folder.stat().st_mode & 0o001
    }
    tops = [folder for folder in closed if not closed.intersection(folder.parents)]

    lines = ["set -e", "mount -t tmpfs none /mnt"]
    for number, path in enumerate(paths):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(path))} /mnt/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(top))}" for top in tops]
    for number, path in enumerate(paths):
        if closed.intersection(path.parents):
            place = shlex.quote(str(path))
            lines += [f"mkdir -p {place}", f"mount --bind /mnt/{number} {place}"]
    lines.append('exec "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh"]


def configure(cloud: LocalCloud, folder: Path, users: Sequence[User], pam: dict[str, Any]) -> Path:
    """Make an endpoint for users as an administrator does, and return its folder."""
    command = [sys.executable, "-m", "gc_warm", "configure", "shared", "local"]
    environment = {**os.environ, "GLOBUS_COMPUTE_USER_DIR": cloud.folder}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    names = "|".join(user.name for user in users)
    rule = {"source": "{username}", "match": f"({names})@example\\.org", "output": "{0}"}
    mapping = folder / "mapping.json"
    mapping.write_text(
        json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}])
    )

    endpoint = Path(cloud.folder, "shared")
    settings = yaml.safe_load((endpoint / "config.yaml").read_text()) or {}
    settings |= {"email": "root@localhost", "pam": pam}
    settings |= {"identity_mapping_config_path": str(mapping)}
    (endpoint / "config.yaml").write_text(yaml.safe_dump(settings))

    # found at the end by the service, and by the tests
    marks = {
        "GC_WARM_TEST_RUN": os.environ["GC_WARM_TEST_RUN"],
        **processes.marked_environment(cloud.mark),
    }
    variables = endpoint / "user_environment.yaml"
    known = yaml.safe_load(variables.read_text()) or {}
    variables.write_text(yaml.safe_dump({**known, **marks}))
    return endpoint


@contextlib.contextmanager
def manager(cloud: LocalCloud, endpoint: Path) -> Iterator[tuple[int, str]]:
    """Run the endpoint's daemon; give its process, and the endpoint's id."""
    seen = [Path(sys.base_prefix), Path(sys.prefix), ROOT, Path(cloud.folder)]
    command = [*readable_by_all(seen), os.path.join(SCRIPTS, "globus-compute-endpoint"), "start"]
    environment = {**os.environ, **cloud.environment, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    output = endpoint / "start.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, endpoint.name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def is_online() -> bool:
        assert process.poll() is None, output.read_text() + (endpoint / "endpoint.log").read_text()
        recorded = endpoint / "endpoint.json"
        return recorded.exists() and cloud.online(json.loads(recorded.read_text())["endpoint_id"])

    try:
        wait_until(is_online, "the endpoint is online")
        yield process.pid, json.loads((endpoint / "endpoint.json").read_text())["endpoint_id"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Client:
    """A user's script, somewhere, which submits one task after the other."""

    def __init__(self, cloud: LocalCloud, endpoint_id: str, user: User) -> None:
        identity = cloud.add_identity(f"{user.name}@example.org")
        options = {"workers_per_node": 1, "keep_warm": 5, "python_path": [str(MODULES)]}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, endpoint_id, json.dumps(options)],
            env={**client_environment(), **identity},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def submit(self, function: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        error, result = self._read()
        assert error is None, error
        return result

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def call(self, function: str, *arguments: Any) -> Any:
        self.submit(function, *arguments)
        return self.answer()

    def failure_of(self, function: str) -> str:
        self.submit(function)
        error, result = self._read()
        assert error is not None, result
        return str(error)

    def close(self) -> None:
        self._process.communicate(timeout=60)


def both(clients: Sequence[Client], function: str) -> list[Any]:
    """Return what a call by each of them returns, made at the same time."""
    for client in clients:
        client.submit(function)
    return [client.answer() for client in clients]


@pytest.mark.parametrize("with_pam", [True, False], ids=["PAM", "no PAM"])
def test_two_users_do_not_get_at_each_other(
    with_pam: bool, users: tuple[User, User], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        pam: dict[str, Any] = {"enable": with_pam}
        if with_pam:
            pam["service_name"] = stack.enter_context(pam_service(tmp_path))
        cloud = stack.enter_context(LocalCloud())
        endpoint = configure(cloud, tmp_path, users, pam)
        with manager(cloud, endpoint) as (pid, endpoint_id), contextlib.ExitStack() as scripts:
            clients = [Client(cloud, endpoint_id, user) for user in users]
            for client in clients:
                scripts.callback(client.close)

            check_warm(users, clients)
            check_rights(with_pam, users, clients)
            check_traps(users, clients)
            check_apart(users, clients)
            privileged = [
                each for each in processes._processes(cloud.mark, None) if 0 in each.uids()
            ]
            assert not privileged, "all but the manager are the users'"

            end_user_endpoints(pid, users)
        # multiprocessing, in Parsl's managers, leaves a folder
        ours = [path for user in users for path in user.shared_files() if "gc_warm" in path.name]
        wait_until(lambda: not any(path.exists() for path in ours), f"gone: {ours}")


TOLD_AGAIN = 20.0  # seconds


def end_user_endpoints(manager: int, users: Sequence[User]) -> None:
    """End them, and wait for all that they have started.

    The manager would kill those that take more than ten seconds, and leave Parsl's interchanges. It
    starts those anew that it was asked for while they were starting; these are ended, too. One that
    was starting may not have heard, and is told again.
    """
    told: dict[psutil.Process, float] = {}
    left: list[psutil.Process] = []

    def have_ended() -> bool:
        left[:] = [process for user in users for process in user.processes()]
        for process in left:
            with contextlib.suppress(psutil.Error):
                is_due = time.monotonic() > told.get(process, 0.0) + TOLD_AGAIN
                if process.ppid() == manager and is_due:
                    told[process] = time.monotonic()
                    process.terminate()
        return not left

    try:
        wait_until(have_ended, "all processes have ended")
    except AssertionError as error:
        raise AssertionError(f"{error}: {left}") from None


def check_warm(users: Sequence[User], clients: Sequence[Client]) -> None:
    """Both have workers of their own, with state of their own."""
    first = both(clients, "counted")
    second = both(clients, "counted")
    for user, before, after in zip(users, first, second, strict=True):
        assert before == [user.uid, before[1], 1], before
        assert after == [user.uid, before[1], 2], after


def check_rights(with_pam: bool, users: Sequence[User], clients: Sequence[Client]) -> None:
    """Tasks have what PAM leaves to them, or no way to more than they have."""
    for user, rights in zip(users, both(clients, "rights"), strict=True):
        assert rights["capabilities"] == 0
        assert rights["no_new_privileges"] is not with_pam
        assert (rights["descriptors"] == DESCRIPTORS) is with_pam
        assert rights["home"] == str(user.home)
        assert Path(rights["folder"]).is_relative_to(user.home / ".globus_compute")


def check_traps(users: Sequence[User], clients: Sequence[Client]) -> None:
    """One who takes another's places gets nothing there; the other is told, and goes on after."""
    victim, other = clients
    places = victim.call("places")
    other.call("set_traps", *places)
    for attempt in ("served", "staged"):
        error = victim.failure_of(attempt)
        assert "only you may enter" in error, error
        assert f"user {users[1].uid} has made it" in error, error
        other.call(attempt)  # in places of its own
    assert other.call("take_traps", *places) == [0, []]


def check_apart(users: Sequence[User], clients: Sequence[Client]) -> None:
    """What each keeps there is warm, and out of the other's reach."""
    for keeps in ("served", "staged", "programmed"):
        assert both(clients, keeps) == both(clients, keeps)

    all_belongings = [user.belongings() for user in users]
    for belongings, owner, other in zip(all_belongings, clients, clients[::-1], strict=True):
        within_reach = owner.call("reached", belongings)
        names = {os.path.basename(path) for path in within_reach}
        assert names > {"control", "server.sock", "log", "model", "worker_0.log", "endpoint.log"}, (
            names
        )
        assert other.call("reached", belongings) == []
