"""The life of an external program: one for each worker, from the first call to the end, in step."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gc_warm import (
    ExternalProcess,
    Marker,
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    ProcessTimeoutError,
    ProgramError,
    warm,
)
from gc_warm.programs import process
from gc_warm.programs.pipe import Pipe
from gc_warm.worker import ledger, lifecycle
from tests.support import FAULTY, Clock, has_ended, observe, wait_until

SHELL = Marker("echo {marker}")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell() -> Iterator[ExternalProcess]:
    with ExternalProcess(["sh"], SHELL) as shell:
        yield shell


def pid_of(program: ExternalProcess) -> int:
    assert program.pid is not None
    return program.pid


def test_it_starts_at_the_first_call_and_ends_at_close() -> None:
    shell = ExternalProcess(["sh"], SHELL)
    assert (shell.pid, repr(shell)) == (None, "<ExternalProcess ['sh']: not running>")

    assert shell.call("echo $$") == str(shell.pid)
    pid = pid_of(shell)
    assert repr(shell) == f"<ExternalProcess ['sh']: pid {pid}>"
    assert shell.call("echo $$") == str(pid)

    shell.close()
    shell.close()
    assert (shell.pid, has_ended(pid)) == (None, True)
    assert shell.call("echo $$") == str(shell.pid) != str(pid)
    shell.close()


def test_its_start_is_a_load_that_a_call_pays_for(shell: ExternalProcess) -> None:
    cold, first = observe(shell.call, "echo 1")
    warm_one, second = observe(shell.call, "echo 2")
    assert (cold, warm_one, second["loads"], second["uses"]) == ("1", "2", [], 1)
    (load,) = first["loads"]
    assert (load["name"], load["key"]) == ("sh", "['sh']")
    assert 0 < load["seconds"] <= first["seconds"]
    (held,) = [found for found in ledger.loaded() if found.name == "sh"]
    assert (held.key, held.seconds) == ("['sh']", load["seconds"])

    before = ledger.mark()
    shell.close()
    with pytest.raises(ProcessError):
        ExternalProcess(["false"]).call(1)
    events = [(event.kind, event.name) for event in ledger.events(since=before)]
    assert events == [("cleared", "sh"), ("failed", "false")]


def test_it_runs_in_a_directory_of_its_own_that_goes_with_it(shell: ExternalProcess) -> None:
    folder = Path(shell.call("touch restart.dat; pwd"))
    assert os.listdir(folder) == ["restart.dat"]
    assert folder.stat().st_mode & 0o777 == 0o700
    shell.close()
    assert not folder.exists()
    assert shell.call("ls; pwd") != str(folder)


def test_its_temporary_files_go_with_it(shell: ExternalProcess) -> None:
    assert shell.call("echo $TMPDIR") == shell.call("pwd")
    with ExternalProcess(["sh"], SHELL, env={"TMPDIR": "/scratch"}) as other:
        assert other.call("echo $TMPDIR") == "/scratch"


def test_it_runs_where_it_is_told_and_leaves_that_alone(tmp_path: Path) -> None:
    with ExternalProcess(["sh"], SHELL, cwd=tmp_path, env={"FLAVOUR": "lime"}) as shell:
        answer = shell.call("touch restart.dat; pwd; echo $FLAVOUR $GC_WARM_TEST_RUN")
    assert answer.splitlines() == [str(tmp_path), f"lime {os.environ['GC_WARM_TEST_RUN']}"]
    assert os.listdir(tmp_path) == ["restart.dat"]


def test_it_has_its_streams_and_the_usual_signals_and_nothing_else(shell: ExternalProcess) -> None:
    with open(os.devnull) as mine:
        os.set_inheritable(mine.fileno(), True)
        assert shell.call("ls /proc/$$/fd").split() == ["0", "1", "2"]

    ignored = int(shell.call("grep SigIgn /proc/$$/status").split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ignored & 1 << number - 1 == 0, number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_its_supervisor_is_not_ended_by_signals_that_ask(
    number: signal.Signals, shell: ExternalProcess
) -> None:
    supervisor = int(shell.call("echo $PPID"))
    os.kill(supervisor, number)
    assert shell.call("echo $PPID") == str(supervisor)


def test_a_supervisor_that_is_killed_takes_the_program_along_and_the_next_call_works(
    shell: ExternalProcess,
) -> None:
    program, supervisor = map(int, shell.call("echo $$ $PPID").split())
    folder = shell.call("pwd")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: has_ended(program), "the program has ended")
    assert shell.call("echo $$") != str(program)
    assert not os.path.exists(folder)


def test_threads_take_turns() -> None:
    with ExternalProcess(FAULTY) as program, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(program.call, range(200))) == list(range(200))


def test_programs_of_several_threads_run_at_the_same_time() -> None:
    """Each writes a file that another waits for, so none may wait for the other's end."""
    with (
        ExternalProcess(["sh"], SHELL) as one,
        ExternalProcess(["sh"], SHELL) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        folder = one.call("pwd")
        first = pool.submit(
            one.call, "touch here; until [ -e there ]; do sleep 0.01; done; echo met"
        )
        second = pool.submit(
            other.call,
            f"until [ -e {folder}/here ]; do sleep 0.01; done; touch {folder}/there; echo met",
        )
        assert (first.result(120), second.result(120)) == ("met", "met")


def test_close_in_another_thread_ends_a_call(shell: ExternalProcess, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(shell.call, f"touch {tmp_path}/begun; sleep 1000")
        wait_until((tmp_path / "begun").exists, "the call has begun")

        shell.close()
        assert re.match(
            "sh was closed (in the middle of a call|before its first answer)",
            str(call.exception(120)),
        )
        assert isinstance(call.exception(), ProcessDiedError)
    assert shell.call("echo again") == "again"


def test_a_thread_that_waits_for_its_turn_has_all_of_its_time(
    shell: ExternalProcess, clock: Clock, tmp_path: Path
) -> None:
    shell.call("")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            shell.call,
            f"touch {tmp_path}/begun; until [ -e {tmp_path}/end ]; do sleep 0.01; done; echo first",
            1000,
        )
        wait_until((tmp_path / "begun").exists, "the call has begun")
        second = pool.submit(shell.call, "echo second", 30)
        wait_until(lambda: calls_under_way() == 2, "the second call waits for its turn")

        clock.advance(100)
        (tmp_path / "end").touch()
        assert (first.result(120), second.result(120)) == ("first", "second")


def calls_under_way() -> int:
    """Return how many threads are in a call, the one that waits for its turn included."""
    call = ExternalProcess.call.__code__
    stacks = (traceback.walk_stack(frame) for frame in sys._current_frames().values())
    return sum(any(frame.f_code is call for frame, _ in stack) for stack in stacks)


def test_a_forked_child_starts_its_own_and_leaves_the_parents_alone(
    shell: ExternalProcess, tmp_path: Path
) -> None:
    pid = shell.call("count=7; echo $$")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be other threads
        child = os.fork()
    if child == 0:
        try:
            (tmp_path / "child").write_text(f"{shell.pid} {shell.call('echo ${count:-new} $$')}")
            shell.close()
        finally:
            os._exit(0)

    os.waitpid(child, 0)
    parents, count, own = (tmp_path / "child").read_text().split()
    assert (parents, count) == ("None", "new")
    assert own != pid
    assert shell.call("echo $count $$") == f"7 {pid}"


def test_a_fork_while_another_thread_calls(shell: ExternalProcess, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(
            shell.call,
            f"touch {tmp_path}/begun; until [ -e {tmp_path}/done ]; do sleep 0.01; done; echo mine",
        )
        wait_until((tmp_path / "begun").exists, "the call has begun")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                (tmp_path / "child").write_text(shell.call("echo own"))
                shell.close()
            finally:
                os._exit(0)

        os.waitpid(child, 0)
        (tmp_path / "done").touch()
        assert call.result(120) == "mine"
    assert (tmp_path / "child").read_text() == "own"


def test_as_the_state_of_a_warm_generator_it_has_keys_and_a_teardown() -> None:
    @warm(maxsize=1)
    def shell(flavour: str) -> Generator[ExternalProcess, None, None]:
        with ExternalProcess(["sh"], SHELL, env={"FLAVOUR": flavour}) as program:
            program.call("")
            yield program

    pid = pid_of(shell("lime"))
    assert shell("lime").call("echo $FLAVOUR $$") == f"lime {pid}"
    assert shell("mint").call("echo $FLAVOUR") == "mint"
    assert has_ended(pid)
    shell.clear()


TEARDOWN = """
import os, sys
from gc_warm import ExternalProcess, Marker, warm

def say(*words):
    print(*words, flush=True)

@warm
def shell():
    program = ExternalProcess(["sh"], Marker("echo {marker}"))
    program.call("count=3")
    yield program
    say("at the teardown", program.call("echo $count"))

shell()

@warm
def late():
    yield
    say("at the last teardown", after.call("echo another"))

late()
after = ExternalProcess(["sh"], Marker("echo {marker}"))
after.call("")
early = ExternalProcess(["sh"], Marker("echo {marker}"))
early.call("")

@warm
def user():
    yield
    say("at its teardown", early.call("echo there"))

user()
"""


def test_the_teardown_of_a_state_that_uses_a_program_finds_it_alive() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TEARDOWN], capture_output=True, text=True, timeout=120
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == (
        "at its teardown there\nat the last teardown another\nat the teardown 3\n",
        "",
        0,
    )


def test_programs_that_do_not_obey_end_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All have been asked to end before any is waited for."""
    ignoring = ["sh", "-c", "trap '' INT TERM; while true; do read line && eval \"$line\"; done"]
    shells = [ExternalProcess(ignoring, SHELL) for _ in range(4)]
    pids = [int(shell.call("echo $$")) for shell in shells]
    asked: list[int | None] = []
    asked_before_waiting: list[set[int | None]] = []
    ask = process.Program.ask
    clear_up = process.Program.clear_up

    def noted_ask(program: process.Program, *, interrupt: bool = False) -> None:
        asked.append(program.pid)
        ask(program, interrupt=interrupt)

    def noted_clear_up(program: process.Program) -> None:
        asked_before_waiting.append(set(asked))
        clear_up(program)

    monkeypatch.setattr(process.Program, "ask", noted_ask)
    monkeypatch.setattr(process.Program, "clear_up", noted_clear_up)
    lifecycle.tear_down()

    assert asked_before_waiting[0] >= set(pids)
    assert all(map(has_ended, pids))
    assert [shell.pid for shell in shells] == [None] * 4


def test_close_in_the_middle_of_a_call_of_the_same_thread(
    shell: ExternalProcess, tmp_path: Path
) -> None:
    """The handler of a signal does that."""
    handler = signal.signal(signal.SIGUSR1, lambda number, frame: shell.close())
    try:
        with ExternalProcess(
            ["cat"], lambda pipe, request: signal.raise_signal(signal.SIGUSR1)
        ) as cat:
            signal.signal(signal.SIGUSR1, lambda number, frame: cat.close())
            assert [cat.call(1), cat.call(2)] == [None, None], "no part of the call is left"
            assert cat.pid is None

        signal.signal(signal.SIGUSR1, lambda number, frame: shell.close())
        with pytest.raises(ProcessDiedError, match="sh was closed in the middle of a call"):
            shell.call(f"kill -USR1 {os.getpid()}; sleep 1000")
    finally:
        signal.signal(signal.SIGUSR1, handler)

    assert shell.call("echo again") == "again"


def test_close_in_the_middle_of_close() -> None:
    ignoring = ["sh", "-c", "trap '' INT TERM; while true; do read line && eval \"$line\"; done"]
    shell = ExternalProcess(ignoring, SHELL)
    pid = int(shell.call("echo $$"))

    handler = signal.signal(signal.SIGALRM, lambda number, frame: shell.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        shell.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)

    assert has_ended(pid)
    assert shell.pid is None


def test_close_does_not_wait_for_calls_of_the_next_program(
    shell: ExternalProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the calls ends before the last close has come back."""
    # so that close does not come back for having waited long enough
    monkeypatch.setattr(process, "_END_TIMEOUT", 600.0)
    begun = tmp_path / "begun"

    with ThreadPoolExecutor(4) as pool:
        try:
            request = f"echo >>{begun}; until [ -e {tmp_path}/end ]; do sleep 0.01; done; echo done"
            calls = [pool.submit(shell.call, request) for _ in range(3)]
            wait_until(
                lambda: begun.exists() and begun.read_text() == "\n", "the first call has begun"
            )
            pool.submit(shell.close).result(120)
            wait_until(lambda: begun.read_text() == "\n\n", "the second call has begun")
            pool.submit(shell.close).result(120)
        finally:
            (tmp_path / "end").touch()
        assert sum(call.exception(120) is not None for call in calls) >= 2
    shell.close()


LOW_DESCRIPTORS = """
import os, sys
from gc_warm import ExternalProcess, Marker
result = os.dup(1)
for number in map(int, sys.argv[1].split()):
    os.close(number)
with ExternalProcess(["sh"], Marker("echo {marker}")) as shell:
    os.write(result, shell.call("echo well").encode())
"""


@pytest.mark.parametrize("closed", ["0", "0 1", "1 2", "0 1 2"])
def test_a_worker_without_standard_streams(closed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LOW_DESCRIPTORS, closed], stdout=subprocess.PIPE, timeout=120
    )
    assert ended.stdout == b"well"


def test_a_thread_that_blocks_signals(shell: ExternalProcess) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
    try:
        with ExternalProcess(
            ["grep", "SigBlk", "/proc/self/status"], lambda pipe, request: pipe.readline()
        ) as grep:
            assert int(grep.call(None).split()[1], 16) == 0

        with pytest.raises(ProcessDiedError, match="exit status 3"):
            shell.call("exit 3")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_no_room_for_descriptors(shell: ExternalProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))

    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))

        for _ in range(10):  # each time at another place
            with pytest.raises(
                ProcessStartError, match=r"sh cannot be started: .*Too many open files"
            ):
                shell.call("echo 1")
            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)

    assert shell.call("echo 1") == "1"


def test_a_folder_for_temporary_files_that_cannot_be_written_to(
    shell: ExternalProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(
        ProcessStartError, match="sh cannot be started: its working directory cannot be made: "
    ):
        shell.call("echo 1")


def test_one_that_is_forgotten_warns_and_ends() -> None:
    shell = ExternalProcess(["sh"], SHELL)
    pid = int(shell.call("echo $$"))
    with pytest.warns(ResourceWarning, match=r"<ExternalProcess \['sh'\]: pid \d+> was not closed"):
        del shell
    wait_until(lambda: has_ended(pid), "it has ended")


def test_nothing_is_left_of_many_lives() -> None:
    shell = ExternalProcess(["sh"], SHELL)
    shell.call("")
    shell.close()
    descriptors = len(os.listdir("/proc/self/fd"))
    held = len(ledger.held())

    for number in range(10):
        if number % 2:
            with pytest.raises(ProcessDiedError):
                shell.call("kill -KILL $$")
        else:
            shell.call("")
            shell.close()

    assert (len(os.listdir("/proc/self/fd")), len(ledger.held())) == (descriptors, held)


def test_a_request_that_cannot_be_sent_leaves_the_program_warm(shell: ExternalProcess) -> None:
    pid = shell.call("echo $$")
    with pytest.raises(
        TypeError, match=r"a request to sh is text in its own language, not dict: \{'steps': 3\}"
    ):
        shell.call({"steps": 3})
    assert shell.call("echo $$") == pid

    with ExternalProcess(FAULTY) as program:
        pid = program.call(1) and pid_of(program)
        with pytest.raises(TypeError, match=r"JSON cannot express set: \{1\}"):
            program.call({1})
        with pytest.raises(ValueError, match="Circular reference"):
            program.call(circle())
        assert program.call(Path("/scratch/in.lammps")) == "/scratch/in.lammps"
        assert program.pid == pid


def circle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def test_a_protocol_may_raise_what_it_likes(shell: ExternalProcess) -> None:
    def answer(pipe: Pipe, request: str) -> str:
        pipe.write(f"{request}\n")
        line = pipe.readline()
        if line == "bad":
            raise ProgramError("bad input")
        return str(int(line))

    with ExternalProcess(["cat"], answer) as cat:
        assert cat.call("17") == "17"
        pid = cat.pid
        with pytest.raises(ProgramError, match="bad input"):
            cat.call("bad")
        assert cat.pid == pid
        with (
            pytest.raises(TypeError, match="to cat text or bytes are written, not int"),
            ExternalProcess(["cat"], Pipe.write) as other,
        ):
            other.call(17)
        with pytest.raises(ValueError, match="invalid literal"):
            cat.call("worse")
        assert cat.pid is None
        assert cat.call("18") == "18"


def test_a_protocol_that_calls_its_own_program_is_told() -> None:
    def again(pipe: Pipe, request: str) -> str:
        return str(cat.call(request))

    with (
        ExternalProcess(["cat"], again) as cat,
        pytest.raises(RuntimeError, match="is called by its own protocol"),
    ):
        cat.call("1")


def test_it_belongs_to_its_process(shell: ExternalProcess) -> None:
    with pytest.raises(
        pickle.PicklingError,
        match="belongs to this process and cannot be sent: make it at the top level of a module",
    ):
        pickle.dumps(shell)


@pytest.mark.parametrize(
    ("command", "options", "error", "message"),
    [
        ("bc -q", {}, TypeError, r'a command is a list such as \["bc", "-q"\], not \'bc -q\''),
        (
            [],
            {},
            ValueError,
            r"a command is the program and its arguments, all of them text, not \[\]",
        ),
        ([b"bc"], {}, TypeError, "all of them text"),
        (["bc", 3], {}, TypeError, "3|int"),
        (["bc", "a\0b"], {}, ValueError, "a command cannot contain the character NUL"),
        (
            ["bc"],
            {"env": {"A": None}},
            TypeError,
            "env={'A': None}: names and values of environment variables are text",
        ),
        (
            ["bc"],
            {"env": {"A=B": "C"}},
            ValueError,
            "env={'A=B': 'C'}: there can be no such environment variable",
        ),
        (
            ["./engine"],
            {},
            ValueError,
            "has to be an absolute path or be found on the PATH, not './engine'",
        ),
        (
            ["bc"],
            {"protocol": "Marker"},
            TypeError,
            r"a protocol is a function \(pipe, request\) -> reply, not 'Marker'",
        ),
        (
            ["bc"],
            {"call_timeout": 0},
            ValueError,
            "call_timeout must be a positive number of seconds, not 0",
        ),
        (
            ["bc"],
            {"start_timeout": float("nan")},
            ValueError,
            "start_timeout must be a positive number of seconds, not nan",
        ),
    ],
)
def test_bad_arguments_are_named(
    command: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ExternalProcess(command, **options)


def test_a_bad_timeout_is_named_and_costs_nothing(shell: ExternalProcess) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, not -1"):
        shell.call("echo 1", timeout=-1)
    assert shell.pid is None


def test_a_timeout_may_be_infinite(shell: ExternalProcess) -> None:
    assert shell.call("echo 1", timeout=float("inf")) == "1"


def test_an_exception_reaches_a_thread_that_waits_for_a_reply(
    shell: ExternalProcess, tmp_path: Path
) -> None:
    import ctypes

    class TaskTimeout(Exception):
        pass

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_ident).result()
        call = pool.submit(shell.call, f"touch {tmp_path}/begun; sleep 1000")
        wait_until((tmp_path / "begun").exists, "the call has begun")
        pid = pid_of(shell)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), ctypes.py_object(TaskTimeout)
        )
        assert isinstance(call.exception(120), TaskTimeout)
    assert has_ended(pid)
    assert shell.call("echo again") == "again"


OTHER_SUPERVISOR = """
import sys
from gc_warm import ExternalProcess, Marker
from gc_warm.programs import process

process._SUPERVISOR = sys.argv[1]
shell = ExternalProcess(["sh"], Marker("echo {marker}"))
print(shell.call("echo $$"), flush=True)
input()
"""


def test_a_kernel_without_pidfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The supervisor then looks now and then whether the worker is there."""
    old = tmp_path / "old_supervisor.py"
    text = Path(process._SUPERVISOR).read_text()
    old.write_text(text.replace("os.pidfd_open(", "os.pidfd_open_is_not_there("))

    worker = subprocess.Popen(
        [sys.executable, "-c", OTHER_SUPERVISOR, str(old)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        worker.kill()
        worker.wait()
        wait_until(lambda: has_ended(pid), "it has ended")


def test_a_message_keeps_both_ends_of_a_long_command_line() -> None:
    command = [
        "sh",
        "-c",
        "sleep 1000",
        *(f"/a long/folder/{number}" for number in range(20)),
        "input.lammps",
    ]

    with ExternalProcess(command, call_timeout=0.2, start_timeout=0.2) as program:
        with pytest.raises(
            ProcessTimeoutError,
            match=r"^sh -c 'sleep 1000' .* \d+ characters .* input\.lammps did not answer",
        ):
            program.call(1)
        assert "'input.lammps']: not running" in repr(program)

    *_, failed = (event for event in ledger.events() if event.kind == "failed")
    assert failed.key.endswith(" 'input.lammps']")


def test_deadline_covers_the_start(clock: Clock, tmp_path: Path) -> None:
    starting = tmp_path / "starting"
    go_on = tmp_path / "go_on"
    up = tmp_path / "up"
    late = ["sh", "-c", f"touch {starting}; until [ -e {go_on} ]; do sleep 0.01; done; exec sh"]
    with ThreadPoolExecutor(1) as pool, ExternalProcess(late, SHELL, start_timeout=100) as program:
        call = pool.submit(program.call, "echo 1", timeout=30)
        wait_until(starting.exists, "it starts")
        clock.advance(90)
        go_on.touch()
        assert call.result(120) == "1"

        call = pool.submit(program.call, f"touch {up}; sleep 1000", timeout=30)
        wait_until(up.exists, "the next call has begun")
        clock.advance(31)
        with pytest.raises(ProcessTimeoutError, match=r"did not answer within 30 s"):
            call.result(120)


TOUCHING = """
import pathlib, time
from gc_warm import serve

def handler(path):
    pathlib.Path(path).touch()
    time.sleep(1000)

serve(handler)
"""


def test_the_time_for_the_start_is_over_once_it_is_up(clock: Clock, tmp_path: Path) -> None:
    serving = ExternalProcess([sys.executable, "-c", TOUCHING], start_timeout=600, cwd=ROOT)
    shell = ExternalProcess(["sh"], SHELL, start_timeout=600)

    for program, up, request in (
        (shell, tmp_path / "shell", f"touch {tmp_path / 'shell'}; sleep 1000"),
        (serving, tmp_path / "serving", str(tmp_path / "serving")),
    ):
        with ThreadPoolExecutor(1) as pool, program:
            call = pool.submit(program.call, request, timeout=30)
            wait_until(up.exists, "it has begun")
            wait_until(functools.partial(knows_to_be_up, program), "it is known to be up")
            clock.advance(31)
            message = "did not answer within 30 s, and was ended"
            with pytest.raises(ProcessTimeoutError, match=message):
                call.result(120)


def knows_to_be_up(program: ExternalProcess) -> bool:
    """Return whether this side has read that the program is up, as `serve` announces it."""
    return program._program is not None and program._program._pipe.answered


HOLDING_BACK = """
import pathlib, sys

for line in sys.stdin:
    sys.stdout.write("17\\n")
    pathlib.Path(sys.argv[1]).touch()
"""


@pytest.mark.usefixtures("patient_supervisor")
def test_a_program_that_holds_its_output_back_is_recognised(clock: Clock, tmp_path: Path) -> None:
    written = tmp_path / "written"
    command = [sys.executable, "-c", HOLDING_BACK, str(written)]
    holding = ExternalProcess(command, start_timeout=60, env={"PYTHONUNBUFFERED": ""})

    with ThreadPoolExecutor(1) as pool, holding as program:
        call = pool.submit(program.call, 1, timeout=30)
        wait_until(written.exists, "it has written its reply, as it thinks")
        clock.advance(91)
        error = call.exception(120)

    assert isinstance(error, ProcessTimeoutError)
    late = (
        "and was ended; then only came some of its output "
        "(if a reply is among it, the program holds output or input back"
    )
    assert late in str(error)
    assert error.stdout == "17"
