"""How a worker ends: every case in a process of its own, which says on its stdout what happened."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gc_warm.worker import lifecycle

ROOT = Path(__file__).parents[2]

PRELUDE = """\
import atexit, multiprocessing, os, signal, sys, threading
from gc_warm.worker.state import warm

first = os.getpid()

def say(*words):
    who = [] if os.getpid() == first else ["child:"]
    os.write(1, (" ".join(map(str, who + list(words))) + "\\n").encode())

@warm
def state(name):
    say("open", name)
    yield name
    say("close", name)

def terminate():
    signal.raise_signal(signal.SIGTERM)

def wait_for(child):
    say("child ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def end_a_fork_that(works):
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        wait_for(child)
    else:
        os.write(tell, b"ready")
        works()
        os._exit(0)
"""

Script = Callable[[str], "tuple[int, list[str], str]"]


@contextmanager
def started(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the script in a session of its own, so that nothing of it survives a test that fails."""
    inherited = os.environ.items()
    environment = {name: value for name, value in inherited if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-S", str(file)]  # without site-packages it starts in half the time
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A function that runs a program, which begins with `PRELUDE`, to its end.

    It returns the exit status, the lines that the program said, and its stderr.
    """

    def run(text: str) -> tuple[int, list[str], str]:
        file = tmp_path / "script.py"
        file.write_text(PRELUDE + textwrap.dedent(text))
        with started(file) as process:
            said, errors = process.communicate(timeout=120)
            return process.returncode, said.splitlines(), errors

    return run


HITS = """
state("a")
say("ready")
while True:
    state("a")
"""

EVICTIONS = """
alive = set()

@warm(maxsize=1)
def limited(key):
    try:
        alive.add(key)
        yield key
    finally:
        alive.discard(key)

# registered before the first load, so it runs after the teardown
atexit.register(lambda: say("alive:", *alive))
limited(0)
say("ready")
while True:
    for key in range(3):
        limited(key)
        with limited.lease(key):
            limited(key)
    limited.clear()
"""


@pytest.mark.parametrize(
    ("loop", "said"),
    [(HITS, ["open a", "ready", "close a"]), (EVICTIONS, ["ready", "alive:"])],
    ids=["hits", "evictions"],
)
@pytest.mark.parametrize("runs", [10, pytest.param(40, marks=pytest.mark.engine)])
def test_sigterm_in_a_tight_loop_runs_the_teardown(
    loop: str, said: list[str], runs: int, tmp_path: Path
) -> None:
    """Ten times as a sample; with the mark `engine` some more."""
    file = tmp_path / "loop.py"
    file.write_text(PRELUDE + loop)
    delays = random.Random(0)

    def run(delay: float) -> tuple[int, list[str], str]:
        with started(file) as process:
            assert process.stdout is not None
            lines = []
            while "ready" not in lines:
                lines.append(process.stdout.readline().rstrip("\n"))

            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
            process.terminate()
            rest, errors = process.communicate(timeout=120)
            return process.returncode, lines + rest.splitlines(), errors

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(run, [delays.uniform(0, 0.005) for _ in range(runs)]))
    assert [end for end in ends if end != (128 + signal.SIGTERM, said, "")] == []


def test_handler_that_was_there_before_is_called_first(script: Script) -> None:
    status, said, _ = script("""
        signal.signal(signal.SIGTERM, lambda number, frame: say("handler before", number))
        state("a")
        terminate()
        say("not reached")
    """)
    assert (status, said) == (143, ["open a", "handler before 15", "close a"])


def test_handler_that_was_there_before_may_end_the_process_itself(script: Script) -> None:
    status, said, _ = script("""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
        state("a")
        terminate()
    """)
    assert (status, said) == (7, ["open a", "close a"])


def test_ignored_sigterm_stays_ignored(script: Script) -> None:
    status, said, _ = script("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        state("a")
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
        terminate()
        say("still here")
    """)
    assert (status, said) == (0, ["open a", "True", "still here", "close a"])


def test_handler_of_code_that_is_not_python_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("it was replaced"))
    with caplog.at_level(logging.WARNING, logger="gc_warm"):
        lifecycle._catch_sigterm()
    assert "teardowns run only if the process ends normally" in caplog.text


def test_load_in_another_thread_leaves_the_handler_to_the_next_in_the_main_thread(
    script: Script,
) -> None:
    status, said, _ = script("""
        thread = threading.Thread(target=state, args=("a",))
        thread.start()
        thread.join()
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        state("b")
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        terminate()
    """)
    assert (status, said) == (143, ["open a", "True", "open b", "False", "close b", "close a"])


def test_load_in_another_thread_is_torn_down_at_the_normal_end(script: Script) -> None:
    ended = script("threading.Thread(target=state, args=('a',)).start()")
    assert ended == (0, ["open a", "close a"], "")


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "multiprocessing.Process"])
def test_teardown_at_the_end_in_reverse_order_of_loading(end: str, script: Script) -> None:
    ended = script(f"for name in 'abca': state(name)\n{end}")
    history = ["open a", "open b", "open c", "close c", "close b", "close a"]
    assert ended == (0, history, "")


def test_what_a_load_needed_is_torn_down_after_it(script: Script) -> None:
    status, said, _ = script("""
        @warm
        def session(name):
            used = state("inner")
            say("open", name)
            yield name
            say("close", name, "with", used, state("inner"))

        session("outer")
    """)
    history = ["open inner", "open outer", "close outer with inner inner", "close inner"]
    assert (status, said) == (0, history)


def test_what_a_teardown_loads_is_torn_down_too(script: Script) -> None:
    status, said, _ = script("""
        @warm
        def session(name):
            yield name
            say("close", name, "with", state("inner"))

        session("outer")
    """)
    assert (status, said) == (0, ["open inner", "close outer with inner", "close inner"])


@pytest.mark.parametrize(
    "error",
    ["OSError('cannot close')", "SystemExit('cannot close')", "KeyboardInterrupt('cannot close')"],
)
def test_error_in_a_teardown_is_logged_and_the_others_run(error: str, script: Script) -> None:
    status, said, errors = script(f"""
        @warm
        def bad(name):
            yield
            raise {error}

        state("a")
        bad("b")
        state("c")
    """)
    assert (status, said) == (0, ["open a", "open c", "close c", "close a"])
    assert "teardown of" in errors
    assert "cannot close" in errors


@pytest.mark.parametrize(("end", "status"), [("terminate()", 143), ("", 0)])
def test_sigterm_during_the_teardown_does_not_interrupt_it(
    end: str, status: int, script: Script
) -> None:
    text = """
        @warm
        def slow(name):
            yield
            say("closing", name)
            terminate()
            say("closed", name)

        slow("a")
        slow("b")
    """
    history = ["closing b", "closed b", "closing a", "closed a"]
    assert script(textwrap.dedent(text) + end) == (status, history, "")


def test_sigterm_just_before_the_teardown_does_not_prevent_it(script: Script) -> None:
    _, said, _ = script("""
        import ctypes

        state("a")
        # Nothing looks for signals between the end of this callback, a plain C function, and the
        # first step of the teardown.
        atexit.register(ctypes.CDLL(None).kill, os.getpid(), signal.SIGTERM)
    """)
    assert said == ["open a", "close a"]


def test_sigterm_in_the_first_load(script: Script) -> None:
    status, said, _ = script("""
        @warm
        def state(name):
            try:
                say("open", name)
                terminate()
                yield name
            finally:
                say("close", name)

        state("a")
    """)
    assert (status, said) == (143, ["open a", "close a"])


def test_nothing_is_installed_without_a_teardown(script: Script) -> None:
    status, said, _ = script("""
        @warm
        def table(size):
            return [size]

        table(3)
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        terminate()
    """)
    assert (status, said) == (-signal.SIGTERM, ["True"])


INHERITED = """
@warm
def careful(name):
    try:
        yield name
    finally:
        say("close", name)

state("a")
careful("b")
child = os.fork()
if child:
    wait_for(child)
else:
    say("has", state("a"), careful("b"))
    {end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("terminate()", -signal.SIGTERM),
        ("state.clear(), careful.clear()", 0),
        ("del state, careful", 0),
        ("import gc; del state, careful; gc.collect()", 0),
    ],
)
def test_forked_child_never_tears_down_what_it_inherited(
    end: str, status: int, script: Script
) -> None:
    ended = script(INHERITED.format(end=end))
    history = ["open a", "child: has a b", f"child ended {status}", "close b", "close a"]
    assert ended == (0, history, "")


def test_forked_child_tears_down_what_it_loaded_itself(script: Script) -> None:
    ended = script(INHERITED.format(end="state('c')"))
    of_child = ["child: has a b", "child: open c", "child: close c", "child ended 0"]
    assert ended == (0, ["open a", *of_child, "close b", "close a"], "")


@pytest.mark.parametrize(
    ("maxsize", "in_child"),
    [
        (None, ["open new", "open slow", "close slow", "close new"]),
        (1, ["open new", "close new", "open slow", "close slow"]),
    ],
)
def test_fork_while_another_thread_loads(
    maxsize: int | None, in_child: list[str], script: Script
) -> None:
    status, said, _ = script(f"""
        loading, go_on = threading.Event(), threading.Event()

        @warm(maxsize={maxsize})
        def table(name):
            say("open", name)
            if os.getpid() == first:
                loading.set()
                go_on.wait()
            yield name
            say("close", name)

        thread = threading.Thread(target=table, args=("slow",))
        thread.start()
        loading.wait()
        child = os.fork()
        if child:
            wait_for(child)
            go_on.set()
            thread.join()
        else:
            table("new")
            table("slow")
    """)
    of_child = [f"child: {line}" for line in in_child]
    assert (status, said) == (0, ["open slow", *of_child, "child ended 0", "close slow"])


def test_fork_at_any_moment_of_what_other_threads_do(script: Script) -> None:
    status, said, _ = script("""
        @warm(maxsize=2)
        def table(key):
            yield key

        def use():
            while not done.is_set():
                for key in range(4):
                    table(key)
                table.info()
                table.clear()

        done = threading.Event()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            child = os.fork()
            if not child:
                with table.lease("child"):
                    table("other")
                table.clear()
                os._exit(table.info().size)
            if os.waitpid(child, 0)[1]:
                say("child failed")
        done.set()
    """)
    assert (status, said) == (0, [])


def test_fork_while_another_thread_imports(script: Script) -> None:
    """A forked child imports nothing: it would wait for ever for the thread that imports."""
    status, said, _ = script("""
        import importlib.abc

        class SlowFinder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if threading.current_thread() is thread:
                    importing.set()
                    go_on.wait()

        def load():
            import ctypes
            importing.set()

        importing, go_on = threading.Event(), threading.Event()
        state("a")
        thread = threading.Thread(target=load)
        sys.meta_path.insert(0, SlowFinder())
        thread.start()
        importing.wait()
        child = os.fork()
        if child:
            wait_for(child)
            go_on.set()
        else:
            say("has", state("a"))
    """)
    assert (status, said) == (0, ["open a", "child: has a", "child ended 0", "close a"])


def test_load_in_a_forked_child_imports_nothing(script: Script) -> None:
    """Neither its first load nor one that evicts; codecs that decode text are modules, too."""
    status, said, _ = script("""
        @warm(maxsize=1)
        def table(key):
            yield key

        before = set(sys.modules)
        child = os.fork()
        if child:
            wait_for(child)
        else:
            for key in range(3):
                table(key)
            table.clear()
            say("imported", *sorted(set(sys.modules) - before))
    """)
    assert (status, said) == (0, ["child: imported", "child ended 0"])


@pytest.mark.parametrize(
    ("leasing", "in_child"),
    [("other", "other thread's lease is over"), ("forking", "own lease holds")],
)
def test_forked_child_has_the_leases_of_its_own_thread_only(
    leasing: str, in_child: str, script: Script
) -> None:
    status, said, _ = script(f"""
        @warm(maxsize=1)
        def table(key):
            return key

        def lease():
            with table.lease("leased"):
                leased.set()
                go_on.wait()

        def fork():
            child = os.fork()
            if child:
                return wait_for(child)
            try:
                table("new")
                say("other thread's lease is over")
            except RuntimeError:
                say("own lease holds")
            os._exit(0)

        leased, go_on = threading.Event(), threading.Event()
        if "{leasing}" == "other":
            threading.Thread(target=lease).start()
            leased.wait()
            fork()
            go_on.set()
        else:
            with table.lease("leased"):
                fork()
    """)
    assert (status, said) == (0, [f"child: {in_child}", "child ended 0"])


@pytest.mark.parametrize("giving_up", ["table.discard('leased')", "table.clear()"])
@pytest.mark.parametrize("maxsize", [None, 1])
def test_state_that_was_retired_before_a_fork(
    giving_up: str, maxsize: int | None, script: Script
) -> None:
    status, said, _ = script(f"""
        @warm(maxsize={maxsize})
        def table(key):
            yield key
            say("close", key)

        def lease():
            with table.lease("leased"):
                leased.set()
                go_on.wait()

        leased, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=lease)
        thread.start()
        leased.wait()
        {giving_up}
        say("size", table.info().size)
        child = os.fork()
        if child:
            wait_for(child)
            go_on.set()
            thread.join()
            say("size", table.info().size)
        else:
            say("size", table.info().size)  # the thread with the lease is not there
            table("new")
            os._exit(0)
    """)
    of_child = ["child: size 0", "child ended 0"]
    assert (status, said) == (0, ["size 1", *of_child, "close leased", "size 0"])


@pytest.mark.parametrize("in_child", ["", "table('own')"])
def test_fork_within_a_lease_of_retired_state(in_child: str, script: Script) -> None:
    status, said, _ = script(f"""
        @warm
        def table(key):
            yield key
            say("close", key)

        with table.lease("leased"):
            table.discard("leased")
            child = os.fork()
            if child:
                wait_for(child)
            else:
                {in_child or "pass"}
    """)
    own = ["child: close own"] if in_child else []
    assert (status, said) == (0, [*own, "child ended 0", "close leased"])


def test_end_of_the_process_tears_retired_state_down(script: Script) -> None:
    ended = script("""
        with state.lease("a"):
            state.discard("a")
            state("a")
            say("leased")
            sys.exit(3)
    """)
    assert ended == (3, ["open a", "open a", "leased", "close a", "close a"], "")

    ended = script("""
        lease = state.lease("a")
        lease.__enter__()
        state.clear()
        terminate()
    """)
    assert ended == (143, ["open a", "close a"], "")


def test_process_forked_by_a_teardown_can_be_ended(script: Script) -> None:
    status, said, _ = script("""
        @warm
        def state(name):
            yield name
            signal.signal(signal.SIGALRM, lambda *_: os._exit(1))  # ends it if SIGTERM does not
            end_a_fork_that(lambda: (signal.alarm(60), signal.pause()))

        state("a")
    """)
    assert (status, said) == (0, ["child ended -15"])


def test_forked_child_that_holds_nothing_is_ended_by_sigterm_also_where_python_cannot_handle_it(
    script: Script,
) -> None:
    """As ``Pool.terminate`` and ``Process.terminate`` have it, with any code that is not Python."""
    status, said, _ = script("""
        import hashlib
        state("a")
        end_a_fork_that(lambda: hashlib.pbkdf2_hmac("sha256", b"x", b"y", 200_000_000))
    """)
    assert (status, said) == (0, ["open a", "child ended -15", "close a"])


MULTIPROCESSING = """
def work(ready):
    state("own")
    ready.set()
    {work}

if __name__ == "__main__":
    {parent}
    processes = multiprocessing.get_context("{method}")
    ready = processes.Event()
    child = processes.Process(target=work, args=(ready,))
    child.start()
    ready.wait()
    {then}
    child.join()
    say("child ended", child.exitcode)
"""


@pytest.mark.parametrize("parent", ["pass", "state('parents')"])
@pytest.mark.parametrize(
    ("work", "then", "status"), [("pass", "pass", 0), ("signal.pause()", "child.terminate()", 143)]
)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_of_multiprocessing_tears_down_what_it_loaded(
    method: str, work: str, then: str, status: int, parent: str, script: Script
) -> None:
    program = MULTIPROCESSING.format(method=method, work=work, then=then, parent=parent)
    ended, said, _ = script(program)
    own = [line.removeprefix("child: ") for line in said if line.endswith("own")]
    assert (ended, own) == (0, ["open own", "close own"])

    parents = [line for line in said if not line.endswith("own")]
    if parent == "pass":
        assert parents == [f"child ended {status}"]
    else:
        assert parents == ["open parents", f"child ended {status}", "close parents"]


def test_worker_outside_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "POOL_ID", "BLOCK_ID"):
        monkeypatch.delenv(f"PARSL_WORKER_{name}", raising=False)
    assert lifecycle.worker() == lifecycle.Worker(
        socket.gethostname(), os.getpid(), block=None, pool=None, rank=None
    )


@pytest.mark.parametrize(("rank", "expected"), [("3", 3), ("", None), ("first", None)])
def test_worker_of_an_endpoint(
    rank: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARSL_WORKER_RANK", rank)
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "5d0c")
    monkeypatch.setenv("PARSL_WORKER_BLOCK_ID", "0")
    assert lifecycle.worker() == lifecycle.Worker(
        socket.gethostname(), os.getpid(), block="0", pool="5d0c", rank=expected
    )


def test_only_the_standard_library_is_imported() -> None:
    program = (
        "import sys; before = {*sys.modules}; import gc_warm.worker.state; "
        "print(*sorted({*sys.modules} - before))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    imported = {name.partition(".")[0] for name in said.split()}
    assert imported - sys.stdlib_module_names == {"gc_warm"}


def test_a_worker_with_a_thread_that_does_not_end_is_ended_all_the_same(script: Script) -> None:
    code = """\
        os.environ["PARSL_WORKER_RANK"] = "0"
        from gc_warm.worker import lifecycle
        lifecycle._LAST_SECONDS = 1
        state("a")
        threading.Thread(target=threading.Event().wait).start()
        terminate()
    """
    status, said, _ = script(code)
    assert status == -signal.SIGALRM
    assert said[0] == "open a"
