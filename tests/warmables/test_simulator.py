"""The dynamics conserve energy and momentum, within stated bounds, and their program is warm."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from gc_warm import ProgramError, functions
from gc_warm.warmables import simulator
from gc_warm.warmables.dynamics import Forces, Vectors, velocities, verlet
from gc_warm.warmables.potential import LJ13, LennardJones, read_xyz
from gc_warm.warmables.simulator import simulate
from tests.support import observe

COARSE = LennardJones(error=1e-5)


@pytest.fixture(autouse=True, scope="module")
def end_the_program() -> Iterator[None]:
    """One program serves the tests of this file, as it serves the tasks of a worker."""
    simulate(LJ13, steps=0)
    yield
    simulator.dynamics.close()


def test_the_energy_is_conserved_the_better_the_smaller_the_step() -> None:
    """The drift is within 3e-3 of 40 for a step of 0.005, and a quarter of that for half the step.

    There are 400 steps, at a temperature at which the atoms move by much.
    """
    drifts = [
        simulate(LJ13, round(2 / step), step, temperature=0.2).drift
        for step in (0.01, 0.005, 0.0025)
    ]
    assert 1e-4 < drifts[1] < 3e-3
    for larger, smaller in pairwise(drifts):
        assert 3.6 < larger / smaller < 4.4, "the error of velocity Verlet is of second order"


def test_the_error_in_the_energy_does_not_accumulate() -> None:
    short, long = (simulate(LJ13, steps, temperature=0.2).drift for steps in (400, 4000))
    assert long < 2 * short


def test_forces_are_the_slope_of_the_energy() -> None:
    forces = Forces(COARSE)
    atoms = [list(position) for position in read_xyz(LJ13)]
    atoms[0][0] += 0.1
    _, pull = forces.on(atoms)

    step = 1e-4
    for number, axis in ((0, 0), (5, 1), (12, 2)):
        atoms[number][axis] += step
        right, _ = forces.on(atoms)
        atoms[number][axis] -= 2 * step
        left, _ = forces.on(atoms)
        atoms[number][axis] += step
        assert pull[number][axis] == pytest.approx((left - right) / (2 * step), abs=1e-3)


def test_momentum_and_the_centre_of_mass_stay() -> None:
    atoms = [list(position) for position in read_xyz(LJ13)]
    speeds = velocities(13, 0.5, seed=3)
    centre = sums(atoms)

    for _ in islice(verlet(Forces(COARSE), atoms, speeds, 0.005), 101):
        assert sums(speeds) == pytest.approx([0, 0, 0], abs=1e-10)
    assert sums(atoms) == pytest.approx(centre, abs=1e-9)


def sums(vectors: Vectors) -> list[float]:
    """Return the sum of each component."""
    return [math.fsum(components) for components in zip(*vectors, strict=True)]


def test_at_rest_it_has_the_published_energy_and_stays() -> None:
    run = simulate(LJ13, steps=100, temperature=0)
    assert run.energy == pytest.approx(-44.326801, abs=1e-5)
    assert run.drift < 1e-7
    assert run.temperature < 1e-6


def test_velocities_have_the_temperature_that_was_asked_for_and_depend_on_the_seed_alone() -> None:
    drawn = velocities(20_000, 0.7, seed=1)
    squares = math.fsum(v * v for velocity in drawn for v in velocity)
    assert squares / (3 * 20_000 - 3) == pytest.approx(0.7, rel=0.02)
    assert velocities(3, 0.7, seed=1) == velocities(3, 0.7, seed=1) != velocities(3, 0.7, seed=2)


def test_two_atoms_that_fly_apart_leave_the_table_without_a_jump(tmp_path: Path) -> None:
    pair = tmp_path / "pair.xyz"
    pair.write_text("2\n\nAr 0 0 0\nAr 1.0 0 0\n")
    run = simulate(pair, steps=2000, timestep=0.002, temperature=0)
    assert run.drift < 1e-3  # a cut at three sigma would be a jump of 5e-3

    # with more energy than holds them together
    pair.write_text("2\n\nAr 0 0 0\nAr 0.95 0 0\n")
    run = simulate(pair, steps=4000, timestep=0.0005, temperature=0)
    assert run.energy > 0
    assert run.drift < 5e-4


def test_the_trajectory_goes_through_a_file_which_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "way.xyz"
    path.write_text("an older one")
    simulate(LJ13, steps=250, temperature=0.2, trajectory=path)

    lines = path.read_text().splitlines()
    assert len(lines) == 84 * 15
    assert lines[0] == "13"
    assert lines[1].startswith("time 0 potential energy -44.32680")
    assert read_xyz_frame(lines, 0) == pytest.approx(
        [x for position in read_xyz(LJ13) for x in position], abs=1e-9
    )
    assert lines[-14].startswith("time 1.245 potential energy -4")
    assert os.listdir(tmp_path) == ["way.xyz"]


def read_xyz_frame(lines: list[str], number: int) -> list[float]:
    return [
        float(word)
        for line in lines[15 * number + 2 : 15 * number + 15]
        for word in line.split()[1:]
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"timestep": 0}, "timestep=0 must be positive"),
        ({"timestep": math.inf}, "timestep=inf must be positive, all of them finite"),
        ({"temperature": math.nan}, "temperature=nan must not be negative"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(LJ13, **values)


def test_what_the_program_cannot_do_is_told_and_it_stays(tmp_path: Path) -> None:
    pid = simulator.dynamics.pid
    with pytest.raises(ProgramError, match=r"No such file or directory: '.*nowhere\.xyz'"):
        simulate(tmp_path / "nowhere.xyz")
    with pytest.raises(ProgramError, match=r"No such file or directory: '.*way\.xyz.*\.part'"):
        simulate(LJ13, steps=1, trajectory=tmp_path / "nowhere" / "way.xyz")

    (tmp_path / "bad.xyz").write_text("2\n\nAr 0 0 0\n")
    with pytest.raises(ProgramError, match="announces 2 atoms"):
        simulate(tmp_path / "bad.xyz")

    assert simulate(LJ13, steps=1).energy < 0
    assert simulator.dynamics.pid == pid


def test_relative_paths_are_those_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.xyz").write_text(LJ13.read_text())
    simulate("here.xyz", steps=1, trajectory="way.xyz")
    assert sorted(os.listdir(tmp_path)) == ["here.xyz", "way.xyz"]


def test_its_function_is_warm_from_the_second_call_on(tmp_path: Path) -> None:
    way = str(tmp_path / "way.xyz")
    simulator.dynamics.close()
    cold, cold_record = observe(functions.cluster_dynamics, None, 10, 0.1, way)
    warm, record = observe(functions.cluster_dynamics, None, 10, 0.1, way)
    simulator.dynamics.close()

    assert cold == warm
    assert set(warm) == {"energy", "drift", "temperature"}
    assert [load["name"].split()[1:] for load in cold_record["loads"]] == [
        ["-m", "gc_warm.warmables.dynamics"]
    ]
    assert record["loads"] == []
    assert (tmp_path / "way.xyz").exists()
