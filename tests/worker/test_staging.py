"""Staged files: copied once, whole or not at all, and removed at the end, whatever the end is."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import staged
import tasks

from gc_warm import MockExecutor, stage
from gc_warm.worker import remover, staging
from tests.support import carriers, has_ended, wait_until
from tests.testing.backends import BACKENDS, workers

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(3 * staging._BLOCK_SIZE + 5)

STAGE = """
import os, signal, sys
from gc_warm.worker import staging

def stop_in_the_copy(block, checksum):
    signal.raise_signal(signal.SIGSTOP)

if "stop" in sys.argv:
    staging.zlib.crc32 = stop_in_the_copy
print(staging.stage(sys.argv[1]), flush=True)
sys.stdin.read()
"""
INTERRUPTED = """
import os, sys
from pathlib import Path
from gc_warm.worker import remover, staging
from tests.worker.injection import Injector, TaskTimeout

def interrupt(point):
    def fail():
        raise TaskTimeout("injected")

    source = Path(sys.argv[1], f"source{point}")
    source.write_bytes(b"content")
    injector = Injector(point, fail, {staging.__file__, remover.__file__}.__contains__)
    injector.run(lambda: staging.stage(source))
    assert staging.stage(source).read_bytes() == b"content", injector.where
    assert not [*Path(os.environ["TMPDIR"]).rglob("*.partial")], injector.where
    return injector.where is not None

point = 1
while True:
    os.environ["PARSL_WORKER_POOL_ID"] = str(point)
    child = os.fork()
    if not child:
        os._exit(interrupt(point))

    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == 1, point
    point += 1
print(point)
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The node's own disk, which is empty again once nobody uses what was staged there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    staging._after_fork()
    wait_until(lambda: not [*folder.iterdir()], "what was staged is removed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    return file


def copies(disk: Path) -> list[Path]:
    """Return the copies on the disk, also those that are not complete."""
    return [path for path in disk.glob("*/*") if path.is_dir()]


def test_file_is_copied_once(disk: Path, source: Path) -> None:
    copy = stage(source)
    assert (copy.name, copy.read_bytes()) == (source.name, CONTENT)
    assert copy.is_relative_to(disk)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o400
    assert stat.S_IMODE(copy.parents[1].stat().st_mode) == 0o700

    before = copy.stat()
    assert stage(str(source)) == copy
    assert copy.stat() == before


def test_folder_is_copied_with_what_its_links_lead_to(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    (folder / "empty").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "weights").write_bytes(CONTENT)
    (folder / "model.safetensors").symlink_to("../blobs/weights")
    (folder / "more").symlink_to("../blobs")
    (folder / "run.sh").touch(0o755)

    copy = stage(folder)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*")} == {
        "empty",
        "model.safetensors",
        "more",
        "more/weights",
        "run.sh",
    }
    assert (copy / "model.safetensors").read_bytes() == CONTENT
    assert os.access(copy / "run.sh", os.X_OK)
    assert not [path for path in copy.rglob("*") if path.is_symlink()]


def test_changed_source_is_copied_beside_the_former_copy(disk: Path, source: Path) -> None:
    former = stage(source)
    source.write_bytes(b"trained anew")
    assert stage(source).read_bytes() == b"trained anew"
    assert former.read_bytes() == CONTENT


def test_copy_that_lost_a_part_is_made_anew(disk: Path, source: Path) -> None:
    copy = stage(source)
    copy.unlink()
    assert stage(source) == copy
    assert copy.read_bytes() == CONTENT


def test_folder_that_was_removed_is_made_anew(disk: Path, source: Path) -> None:
    copy = stage(source)
    shutil.rmtree(copy.parents[1], ignore_errors=True)  # its remover may take part in that
    assert stage(source) == copy
    assert copy.read_bytes() == CONTENT


def change(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the source written to while it is copied."""
    crc32 = zlib.crc32

    def write_and_count(block: bytes, checksum: int) -> int:
        with source.open("ab") as file:
            file.write(b"more")
        monkeypatch.setattr(zlib, "crc32", crc32)
        return crc32(block, checksum)

    monkeypatch.setattr(zlib, "crc32", write_and_count)


def falsify(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the copy read as something else than was written."""
    monkeypatch.setattr(staging, "_checksum", lambda path: 0)


def exceed_quota(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the second block exceed a quota."""

    def fail(source: str, target: str, version: object) -> NoReturn:
        Path(target).write_bytes(b"a part")
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(staging, "_copy_file", fail)


def outgrow(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the source larger than the disk."""
    os.truncate(source, 8 << 40)


FAULTS = [
    (change, errno.EBUSY, "it was written to while it was copied: .*model.gguf"),
    (falsify, errno.EIO, "the copy differs from what was read of .*model.gguf"),
    (
        exceed_quota,
        errno.EDQUOT,
        r"model.gguf' has 3,145,733 bytes, and .* [\d,]+ free; set TMPDIR",
    ),
    (outgrow, errno.ENOSPC, r"model.gguf' has 8,796,093,022,208 bytes, and .* [\d,]+ free"),
]


@pytest.mark.parametrize(("fault", "number", "text"), FAULTS)
def test_copy_that_fails_leaves_nothing(
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    number: int,
    text: str,
    disk: Path,
    source: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(source, patch)
        with pytest.raises(OSError, match=text) as caught:
            stage(source)
    assert caught.value.errno == number
    assert copies(disk) == []

    source.write_bytes(CONTENT)
    assert stage(source).read_bytes() == CONTENT


def test_what_is_no_file_is_refused(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        stage(tmp_path / "missing")

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo' is neither a file nor a folder"):
        stage(tmp_path / "fifo")


def test_folder_that_others_can_enter_is_refused(
    disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = stage(source).parents[1]
    home.chmod(0o755)
    monkeypatch.setattr(staging, "_held", {})
    with pytest.raises(PermissionError, match="only you may enter"):
        stage(source)

    monkeypatch.undo()
    home.chmod(0o700)


def test_missing_disk_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"TMPDIR names no folder .*/nowhere"):
        stage(source)


@pytest.mark.engine
def test_exception_at_every_place_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        command, env=environment, check=True, timeout=600, stdout=subprocess.PIPE
    ).stdout
    assert int(output) > 80


def test_lock_in_use_lets_exceptions_through(disk: Path, source: Path) -> None:
    """An exception reaches a thread that waits for a copy, as the time-out of a task would."""
    copy = stage(source)
    copy.unlink()
    with open(f"{copy.parent}.lock", "ab") as file:
        staging._try_lock(file.fileno(), fcntl.LOCK_EX)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
            with pytest.raises(pytest.fail.Exception, match="it waits"):
                stage(source)


def test_abandoned_folders_of_this_user_and_node_are_removed(disk: Path, source: Path) -> None:
    mine = f"gc_warm-staged-{os.geteuid()}-{staging._digest(socket.gethostname())}-"
    abandoned = disk / f"{mine}0123456789abcdef"
    of_another_node = disk / f"gc_warm-staged-{os.geteuid()}-{'0' * 16}-{'0' * 16}"
    for folder in (abandoned, of_another_node):
        folder.mkdir(mode=0o700)
        (folder / "copy").touch()

    in_use = disk / f"{mine}fedcba9876543210"
    in_use.mkdir(mode=0o700)
    with (in_use / remover.USERS).open("ab") as users:
        staging._try_lock(users.fileno(), fcntl.LOCK_SH)
        stage(source)
    assert not abandoned.exists()
    assert of_another_node.exists()
    assert in_use.exists()

    for folder in (in_use, of_another_node):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_full_disk_in_the_middle_of_a_copy_leaves_nothing(tmp_path: Path) -> None:
    """A real file system that has bytes left, but no room for one more file."""
    folder = tmp_path / "model"
    folder.mkdir()
    for number in range(10):
        (folder / str(number)).touch()
    disk = tmp_path / "disk"
    disk.mkdir()

    code = """
import os, sys
from gc_warm.worker import staging
try:
    staging.stage(sys.argv[1])
except OSError as error:
    print(error.errno, error)
    print(*[name for home in os.scandir(os.environ["TMPDIR"]) for name in os.listdir(home)])
"""
    mounted = f"mount -t tmpfs -o size=1m,nr_inodes=12 tmpfs {disk} && exec $0 -c '{code}' {folder}"
    run = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted, sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(disk)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not run.stdout and run.returncode:
        pytest.skip(f"no file system can be mounted here: {run.stderr}")

    told, left = run.stdout.splitlines()
    assert told.startswith(f"{errno.ENOSPC} ")
    assert "No space left on device" in told
    assert {name.rpartition(".")[2] for name in left.split()} == {"users", "remover", "lock"}


class Stager:
    """A process that stages a file and then waits for its end."""

    def __init__(self, source: Path, *options: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-S", "-c", STAGE, str(source), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def copy(self) -> Path:
        """Return what it has staged."""
        assert self.popen.stdout
        return Path(self.popen.stdout.readline().strip())


Start = Callable[..., Stager]


@pytest.fixture
def start(disk: Path) -> Iterator[Start]:
    """A function that starts a `Stager`, until the end of the test."""
    with ExitStack() as stack:

        def begin(source: Path, *options: str) -> Stager:
            stager = Stager(source, *options)
            stack.enter_context(stager.popen)
            stack.callback(stager.popen.kill)
            return stager

        yield begin


def test_copy_of_a_process_that_is_killed_is_taken_over(
    start: Start, disk: Path, source: Path
) -> None:
    first = start(source, "stop")
    wait_until(lambda: status(first) == psutil.STATUS_STOPPED, "it is in the middle of the copy")
    others = [start(source) for _ in range(2)]
    wait_until(lambda: all(waits_for_a_copy(other) for other in others), "the others wait")
    assert len(copies(disk)) == 1

    first.popen.kill()
    (copy, same) = [other.copy() for other in others]
    assert copy == same
    assert copy.read_bytes() == CONTENT
    assert copies(disk) == [copy.parent]

    for end, stager in zip((signal.SIGKILL, signal.SIGTERM), others, strict=True):
        assert copy.exists()
        stager.popen.send_signal(end)
        stager.popen.wait()
    wait_until(lambda: not [*disk.iterdir()], "the copy is removed with its last user")


def waits_for_a_copy(stager: Stager) -> bool:
    return any(
        file.path.endswith(".lock") for file in psutil.Process(stager.popen.pid).open_files()
    )


def status(stager: Stager) -> str:
    return str(psutil.Process(stager.popen.pid).status())


def test_fork_is_no_reason_to_keep_the_files(disk: Path, source: Path) -> None:
    stage(source)
    go_on, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(tell)
        os.read(go_on, 1)
        os._exit(0)
    try:
        staging._after_fork()  # as if this process had ended
        wait_until(lambda: not [*disk.iterdir()], "what was staged is removed")
    finally:
        os.close(tell)
        os.waitpid(child, 0)
        os.close(go_on)


def test_remover_that_was_killed_is_replaced(disk: Path, source: Path) -> None:
    home = stage(source).parents[1]
    before = removers(home)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: has_ended(pid), "the remover has ended")  # type: ignore[misc]

    stage(source)
    assert len(removers(home)) == len(before) == 1


def removers(home: Path) -> list[int]:
    """Return the processes that will remove this folder."""
    processes = carriers("TMPDIR", str(home.parent))
    return [pid for pid, command in processes.items() if f"{remover.__file__} {home}" in command]


def test_waits_for_a_process_also_without_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(remover, "_POLL_INTERVAL", 0.001)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        waiting = threading.Thread(target=remover.wait_for_end, args=(process.pid,))
        waiting.start()
        process.kill()
        process.wait()
        waiting.join(60)
        assert not waiting.is_alive()


@pytest.mark.engine
@pytest.mark.parametrize("backend", BACKENDS)
def test_workers_of_a_manager_share_a_copy_until_its_end(backend: str, source: Path) -> None:
    with MockExecutor(**workers(backend, 2)) as executor:
        futures = [executor.submit(staged.copy, str(source)) for _ in range(2)]
        found = {future.result(120)[1:] for future in futures}
    [(path, _)] = found
    wait_until(lambda: not Path(path).parents[1].exists(), "it is removed with the manager")


@pytest.mark.engine
def test_copy_outlives_its_only_worker_but_not_the_manager(source: Path) -> None:
    with MockExecutor(**workers("engine")) as executor:
        first, path, inode = executor.submit(staged.copy, str(source)).result(120)
        assert executor.submit(tasks.end, "SIGKILL").exception(120)
        second, *found = executor.submit(staged.copy, str(source)).result(120)
        assert second != first
        assert found == [path, inode]

        manager = psutil.Process(second).parent()
        assert manager is not None
        manager.kill()
        wait_until(lambda: not Path(path).parents[1].exists(), "it is removed with the manager")
