"""Real programs as they are, kept alive between calls.

A calculator, a database, a simulation code, and a program in C made for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gc_warm import ExternalProcess, Marker, ProcessDiedError, ProcessTimeoutError, ProgramError
from gc_warm.warmables.potential import LJ13, LennardJones, energy, read_xyz
from tests.support import observe

pytestmark = pytest.mark.programs
SOURCE = Path(__file__).parents[1] / "executables" / "pair_energy.c"


def installed(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def test_bc() -> None:
    installed("bc")
    with ExternalProcess(["bc", "-q"], Marker('print "{marker}\\n"')) as bc:
        assert bc.call("2^100") == "1267650600228229401496703205376"
        assert bc.call("define f(x) {\n  return (4*x)\n}\nx=3; y=f(1)") == ""
        with pytest.raises(ProgramError, match=r"bc -q complained: .*(?i:divide by zero)"):
            bc.call("1/0")
        assert bc.call("x*y") == "12", "it has kept them"


def test_sqlite3(tmp_path: Path) -> None:
    installed("sqlite3")
    command: list[str | Path] = ["sqlite3", "-batch", tmp_path / "runs.db"]
    with ExternalProcess(command, Marker(".print {marker}")) as sqlite:
        filled = sqlite.call(
            "create table runs (name, energy); "
            "insert into runs values ('LJ13', -44.3268), ('LJ38', -173.9284);"
        )
        assert filled == ""
        rows = sqlite.call("select name, energy\n  from runs order by energy;")
        assert rows == "LJ38|-173.9284\nLJ13|-44.3268"
        with pytest.raises(ProgramError, match="no such table: walks"):
            sqlite.call("select * from walks;")
        assert sqlite.call("select count(*) from runs;") == "2"


LAMMPS = """\
clear
units lj
atom_style atomic
boundary f f f
region box block -20 20 -20 20 -20 20
create_box 1 box
{atoms}
mass 1 1.0
pair_style lj/cut 10.0
pair_coeff 1 1 1.0 1.0
thermo_modify norm no
run 0
variable energy equal pe
print "energy $(v_energy:%.10f)"
"""


@pytest.fixture
def lammps() -> Iterator[ExternalProcess]:
    installed("lmp", "stdbuf")
    command = ["stdbuf", "-oL", "lmp", "-log", "none"]
    with ExternalProcess(command, Marker('print "{marker}"')) as lammps:
        yield lammps


def lammps_energy(lammps: ExternalProcess, positions: list[tuple[float, float, float]]) -> float:
    line = "create_atoms 1 single {:.12f} {:.12f} {:.12f}"
    atoms = "\n".join(line.format(*position) for position in positions)
    printed = lammps.call(LAMMPS.format(atoms=atoms))
    return float(printed.rpartition("energy ")[2])


def test_lammps_agrees_with_the_potential_and_is_warm_from_the_second_call_on(
    lammps: ExternalProcess,
) -> None:
    positions = list(read_xyz(LJ13))
    loads = []
    for _ in range(5):
        found, record = observe(lammps_energy, lammps, positions)
        loads.append(len(record["loads"]))
        assert found == pytest.approx(-44.326801, abs=1e-6)
        assert found == pytest.approx(energy(read_xyz(LJ13), LennardJones(error=1e-6)), abs=1e-4)
    # how much quicker that is, tests/benchmarks/cold_and_warm.py says
    assert loads == [1, 0, 0, 0, 0]


def test_lammps_says_in_its_own_words_what_is_wrong(lammps: ExternalProcess) -> None:
    assert lammps.call('print "up"') == "up"
    words = (
        "ended with exit status 1 in the middle of a call"
        r"[^$]*ERROR: Unknown command: pair_stile"
    )
    with pytest.raises(ProcessDiedError, match=words):
        lammps.call("pair_stile lj/cut 2.5")
    assert lammps.call('print "up again"') == "up again"


@pytest.fixture(scope="module")
def pair_energy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in C, built with the system's compiler."""
    installed("cc")
    program = tmp_path_factory.mktemp("built") / "pair_energy"
    subprocess.run(
        ["cc", "-std=gnu99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE, "-lm"],
        check=True,
    )
    return program


def test_a_program_in_c_for_json_lines(pair_energy: Path) -> None:
    assert len(SOURCE.read_text().splitlines()) < 60
    with ExternalProcess([pair_energy]) as program:
        for distance in (0.9, 1.0, 2 ** (1 / 6), 2.5, 7.0):
            expected = 4 * (distance**-12 - distance**-6)
            assert program.call(distance) == pytest.approx(expected, abs=1e-6)

        pid = program.pid
        assert program.call(1e12) == pytest.approx(0)
        assert program.call(float("inf")) == 0
        for wrong in (0, -1.5, 1e-60, float("nan"), "far", None, [1.0]):
            with pytest.raises(ProgramError, match="not a distance for which there is an energy"):
                program.call(wrong)
        assert program.pid == pid


def test_a_program_that_is_stopped_is_ended_at_the_deadline(pair_energy: Path) -> None:
    """Stopped, as by a debugger or a batch system that suspends jobs, it obeys only SIGKILL."""
    with ExternalProcess([pair_energy]) as program:
        program.call(1)
        assert program.pid is not None
        os.kill(program.pid, signal.SIGSTOP)
        with pytest.raises(ProcessTimeoutError):
            program.call(1, timeout=0.3)
        assert program.call(2.0) == pytest.approx(-0.0615, abs=1e-4)
