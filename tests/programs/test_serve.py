"""The program's side: only replies go back, errors leave it up, and it ends when it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gc_warm import (
    ExternalProcess,
    ProcessDiedError,
    ProcessError,
    ProcessTimeoutError,
    ProgramError,
    serve,
)
from tests.support import Clock, wait_until

ROOT = Path(__file__).parents[2]

Program = Callable[..., ExternalProcess]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """Make an `ExternalProcess` of the text of a program."""
    made: list[ExternalProcess] = []

    def make(text: str, *launcher: str) -> ExternalProcess:
        file = tmp_path / f"program_{len(made)}.py"
        file.write_text(textwrap.dedent(text))
        command = [*launcher, sys.executable, str(file)]
        made.append(ExternalProcess(command, env={"PYTHONPATH": str(ROOT)}))
        return made[-1]

    yield make
    for process in made:
        process.close()


def test_what_is_loaded_at_the_start_serves_all_calls(program: Program) -> None:
    squares = program("""
        from gc_warm import serve
        table = [n * n for n in range(100)]
        calls = 0
        def square(n):
            global calls
            calls += 1
            return [table[n], calls]
        serve(square)
    """)
    assert [squares.call(n) for n in (3, 4, 5)] == [[9, 1], [16, 2], [25, 3]]


def test_an_error_of_the_handler_is_an_error_reply_with_its_traceback(program: Program) -> None:
    inverse = program("from gc_warm import serve\nserve(lambda number: 1 / number)")
    assert inverse.call(4) == 0.25
    pid = inverse.pid

    traceback = r"Traceback [^$]*program_0.py[^$]*ZeroDivisionError: division by zero$"
    with pytest.raises(ProgramError, match=rf"answered with an error: {traceback}"):
        inverse.call(0)
    assert inverse.call(2) == 0.5
    assert inverse.pid == pid


def test_noise_goes_to_stderr_whoever_makes_it(program: Program) -> None:
    noisy = program("""
        import ctypes, os, subprocess, sys
        from gc_warm import serve
        library = ctypes.CDLL(None)
        print("a banner")
        def handler(request):
            print("of Python")
            os.write(1, b'{"id": 1, "reply": "of a descriptor"}\\n')
            library.puts(b"of C")
            library.fflush(None)
            subprocess.run(["echo", "of a child"])
            if request == "fail":
                raise OSError("no space")
            return sys.stdin.read()
        serve(handler)
    """)
    assert noisy.call("well") == "", "its own standard input is empty"
    with pytest.raises(ProgramError) as caught:
        noisy.call("fail")
    for line in ("of Python", "of a descriptor", "of C", "of a child"):
        assert line in caught.value.stderr


def test_values_that_json_lacks(program: Program) -> None:
    values = program("""
        from pathlib import Path
        from gc_warm import serve
        class Array:
            def tolist(self):
                return [[1.5, 2.0], [0.0, 1.0]]
        replies = {
            "array": Array(),
            "path": Path("/scratch/run.xyz"),
            "nan": float("nan"),
            "set": {1},
            "text": "\\u212b\\n\\udc80",
        }
        serve(lambda name: replies[name])
    """)
    assert values.call("array") == [[1.5, 2.0], [0.0, 1.0]]
    assert values.call("path") == "/scratch/run.xyz"
    assert values.call("text") == "\u212b\n\udc80"
    assert values.call("nan") != values.call("nan")

    message = r"the reply cannot be sent: JSON cannot express set: \{1\}"
    with pytest.raises(ProgramError, match=message):
        values.call("set")


def test_a_handler_that_ends_the_program(program: Program) -> None:
    ending = program("""
        import sys
        from gc_warm import serve
        serve(lambda status: sys.exit(status) if status else "up")
    """)
    assert ending.call(0) == "up"
    with pytest.raises(ProcessDiedError, match="ended with exit status 3 in the middle of a call"):
        ending.call(3)
    assert ending.call(0) == "up"


@pytest.mark.usefixtures("patient_supervisor")
def test_it_goes_on_after_the_loop_when_its_input_ends(program: Program, tmp_path: Path) -> None:
    closing = program(f"""
        from pathlib import Path
        from gc_warm import serve
        serve(lambda request: request)
        Path({str(tmp_path / "restart")!r}).write_text("saved")
    """)

    closing.call(1)
    assert not (tmp_path / "restart").exists()
    closing.close()
    assert (tmp_path / "restart").read_text() == "saved"


def test_it_ends_when_it_has_been_idle_and_the_next_call_starts_it_again(program: Program) -> None:
    text = """
        import os
        from gc_warm import serve
        serve(lambda request: os.getpid(), idle_timeout={})
    """
    idle = program(text.format(1.0))
    patient = program(text.format(3600))

    pid = idle.call(1)
    assert patient.call(1) == patient.call(2)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended")
    assert idle.call(2) not in (None, pid)


@pytest.mark.parametrize("idle", [0, -1.0, float("nan")])
def test_a_bad_idle_timeout(idle: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout must be a positive number of seconds, not"):
        serve(lambda request: request, idle_timeout=idle)


@pytest.mark.parametrize("line", ["17", "not JSON", '{"id": 3}', "[]", '{"request": 3}'])
def test_a_line_that_is_no_request_is_answered_so_by_hand_too(line: str) -> None:
    command = [sys.executable, "-c", "from gc_warm import serve\nserve(lambda request: request)"]
    lines = f'{line}\n{{"id": "a", "request": 3}}\n'
    ended = subprocess.run(
        command, input=lines, capture_output=True, text=True, cwd=ROOT, timeout=120
    )

    ready, wrong, right = ended.stdout.splitlines()
    assert ready == '{"id": 0, "reply": "ready"}'
    assert wrong.startswith(
        '{"id": null, "error": "a request is one line, '
        '{\\"id\\": ..., \\"request\\": ...}, and not '
    )
    assert (right, ended.returncode, ended.stderr) == ('{"id": "a", "reply": 3}', 0, "")


def test_requests_that_arrive_in_pieces_and_together() -> None:
    code = "from gc_warm import serve\nserve(lambda request: request)"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for piece in (
            b'{"id": 1, "requ',
            b'est": "\xe2',
            b'\x84\xab"}\n{"id": 2, "request": 2}\n{"id"',
            b': 3, "request": 3}\n{"id": 4',
        ):
            process.stdin.write(piece)
        process.stdin.close()

        _, *replies, cut = process.stdout.read().splitlines()
        assert replies == [
            b'{"id": 1, "reply": "\\u212b"}',
            b'{"id": 2, "reply": 2}',
            b'{"id": 3, "reply": 3}',
        ]
        assert cut.startswith(b'{"id": null, "error": "a request is one line')


def test_the_module_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; from gc_warm import serve, ExternalProcess; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    names = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert set(names) - sys.stdlib_module_names <= {"gc_warm", "__main__"}


SEED = """
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    print(json.dumps({%s}), flush=True)
"""


def test_a_loop_over_stdin_that_repeats_the_id_works(program: Program) -> None:
    seed = program(SEED % '"id": message["id"], "reply": message["request"] * 2')
    assert [seed.call(n) for n in (1, 2, 3)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            '"energy": message["request"]',
            r'printed an object without the id of the request: \{"energy": 1\}\n'
            r'A reply is one line, \{"id": <the id',
        ),
        (
            '"id": message["id"], "energy": 1',
            'answered with neither "reply" nor "error" beside the id: ',
        ),
    ],
)
def test_a_loop_over_stdin_that_lacks_something_is_told_what(
    reply: str, message: str, program: Program
) -> None:
    seed = program(SEED % reply)
    with pytest.raises(ProcessError, match=message) as caught:
        seed.call(1, timeout=120)
    assert type(caught.value) is ProcessError
    assert seed.pid is None


MPI = """
import os, time
from mpi4py import MPI
from gc_warm import serve

world = MPI.COMM_WORLD

def handler(request):
    if request == "fail":
        if world.rank == 1:
            raise ValueError("not converged")
        return None
    if request == "fail while the others wait":
        if world.rank == 1:
            raise ValueError("not converged")
        world.barrier()
    if request == "pids":
        return world.gather(os.getpid())
    return [world.allreduce((world.rank + 1) * request), world.size]

serve(handler)
"""


@pytest.mark.programs
def test_all_ranks_of_an_mpi_program_take_part(program: Program, clock: Clock) -> None:
    pytest.importorskip("mpi4py")
    if not shutil.which("mpiexec"):
        pytest.skip("there is no mpiexec")
    world = program(MPI, "mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "3")
    assert world.call(10) == [60, 3]

    failure = r"rank 1: Traceback [^$]*ValueError: not converged"
    with pytest.raises(ProgramError, match=f"answered with an error: {failure}"):
        world.call("fail")
    assert world.call(1) == [6, 3]

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(world.call, "fail while the others wait", timeout=30)
        wait_until(lambda: b"ValueError: not converged" in stderr(world), "rank 1 has failed")
        clock.advance(31)
        with pytest.raises(ProcessTimeoutError, match=failure):
            call.result(120)
    assert world.call(1) == [6, 3]

    pids = world.call("pids")
    world.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def stderr(program: ExternalProcess) -> bytes:
    """Return the program's standard error in the call that is under way."""
    assert program._program is not None
    return program._program._pipe._err.tail


@pytest.mark.programs
def test_idle_ranks_leave_their_cores_alone(program: Program) -> None:
    pytest.importorskip("mpi4py")
    import psutil

    world = program(MPI, "mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "2")
    ranks = [psutil.Process(pid) for pid in world.call("pids")]

    def used() -> float:
        return sum(sum(rank.cpu_times()[:2]) for rank in ranks)

    before = used()
    begun = time.monotonic()
    time.sleep(2)
    share = (used() - before) / (time.monotonic() - begun)
    # ranks that wait in MPI itself take a core each, or as much of it as a busy machine gives them
    assert share < 0.25
