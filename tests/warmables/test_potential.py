"""The table keeps its error bound, LJ13 is the published minimum, and bad input is named."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from gc_warm import functions
from gc_warm.warmables import potential
from gc_warm.warmables.potential import LJ13, LennardJones, Table, energy, read_xyz

COARSE = LennardJones(error=1e-4)


@pytest.mark.parametrize(
    "config", [COARSE, LennardJones(epsilon=0.0104, sigma=3.4, cutoff=9.0, error=1e-6)]
)
def test_interpolation_stays_below_its_bound_and_close_to_it(config: LennardJones) -> None:
    table = Table(config)

    places = random.Random(1)
    squares = [places.uniform(config.core, config.cutoff) ** 2 for _ in range(20_000)]
    first = (config.cutoff**2 - config.core**2) / config.intervals
    # where the curvature is largest
    squares += [config.core**2 + first * part / 10 for part in range(10)]

    worst = max(abs(table.pair(square) - config.exact(square)) for square in squares)
    assert config.error / 2 < worst <= config.error


def test_halving_the_error_costs_root_two_in_points() -> None:
    fine = LennardJones(error=COARSE.error / 2)
    assert fine.intervals == pytest.approx(COARSE.intervals * math.sqrt(2), rel=0.01)


def test_ends_of_the_table() -> None:
    table = Table(COARSE)
    assert table.pair(COARSE.cutoff**2) == 0
    last = math.nextafter(COARSE.cutoff**2, 0)
    assert table.pair(last) == pytest.approx(COARSE.exact(9.0), abs=1e-4)
    assert table.pair(0.25) == COARSE.exact(0.25)  # inside the core


def test_lj13_has_the_published_energy() -> None:
    assert functions.cluster_energy() == pytest.approx(-44.326801, abs=78e-8 + 5e-7)
    assert energy(read_xyz(LJ13), COARSE) == pytest.approx(-44.326801, abs=78e-4)


def test_lj13_is_a_minimum() -> None:
    atoms = [list(position) for position in read_xyz(LJ13)]

    def exact_energy() -> float:
        return math.fsum(
            LennardJones().exact(math.dist(atoms[i], atoms[j]) ** 2)
            for i in range(13)
            for j in range(i)
        )

    at_rest = exact_energy()
    assert at_rest == pytest.approx(-44.32680142, abs=1e-8)

    step = 1e-4
    for atom in atoms:
        for axis in range(3):
            atom[axis] += step
            right = exact_energy()
            atom[axis] -= 2 * step
            left = exact_energy()
            atom[axis] += step
            assert abs(right - left) / (2 * step) < 1e-4
            assert right > at_rest < left


def test_one_table_for_each_configuration() -> None:
    before = potential.table.info()
    atoms = read_xyz(LJ13)
    default_cutoff = energy(atoms, LennardJones(error=2e-4))
    assert default_cutoff == energy(atoms, LennardJones(error=2e-4, cutoff=3.0))
    energy(atoms, LennardJones(error=3e-4))
    assert potential.table.info().loads - before.loads == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma": 0}, "sigma must be a positive number, not 0"),
        ({"error": math.nan}, "error must be a positive number, not nan"),
        ({"epsilon": -1.0}, "epsilon must be a positive number, not -1.0"),
        ({"cutoff": 0.5}, "cutoff=0.5 must be larger than the core"),
        ({"error": 1e-30}, "error=1e-30 needs .* points, more than 50000000; allow a larger one"),
    ],
)
def test_bad_configurations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LennardJones(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the number of atoms is expected, and there is nothing"),
        ("many\n\nAr 0 0 0\n", "line 1: the number of atoms is expected, and there is 'many'"),
        ("2\n\nAr 0 0 0\n", "line 1 announces 2 atoms, and 1 lines of atoms follow"),
        ("1\n\nAr 0 0 0\n1\n\nAr 0 0 0\n", "announces 1 atoms, and 3 lines"),
        ("-1\n\n", "announces -1 atoms"),
        (
            "2\n\nAr 0 0 0\nAr 0 zero 0\n",
            "line 4: an element and three finite coordinates are expected, "
            "and there is 'Ar 0 zero 0'",
        ),
        ("1\n\nAr 0 0\n", "line 3: .* there is 'Ar 0 0'"),
        ("1\n\nAr 0 inf 0\n", "line 3: .* finite"),
        ("2\n\nAr 1 2 3\nAr 1 2 3\n", r"atoms 1 and 2 are at the same place, \(1.0, 2.0, 3.0\)"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.xyz"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        energy(read_xyz(path), COARSE)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.xyz"):
        read_xyz(tmp_path / "nowhere.xyz")
