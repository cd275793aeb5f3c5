"""A Lennard-Jones pair potential, tabulated once per configuration.

The load is real work, and calls are cheap after it.

The energy of a pair at distance r is U(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6), and 0 from the
cutoff on. The energy is tabulated in s = r^2, which saves the square root, on a uniform grid.
Linear interpolation with step h is off by at most h^2/8 max|U''(s)|, so the grid follows from the
error that the caller allows: halving the error costs a factor of 1.4 in points.

All numbers are in the caller's units; with epsilon = sigma = 1 they are the usual reduced units.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gc_warm.worker.state import warm

Position = tuple[float, float, float]

LJ13 = Path(__file__).with_name("lj13.xyz")
"""The icosahedral cluster of 13 atoms in reduced units.

Its energy without cutoff, -44.326801, is the published global minimum (Cambridge Cluster Database,
Lennard-Jones clusters); the coordinates are from a minimisation with Newton's method.
"""

# in sigma: atoms of a sensible structure come no closer, and below it the formula is evaluated
_CORE = 0.8

_MOST_POINTS = 50_000_000  # 400 MB


@dataclass(frozen=True)
class LennardJones:
    """A configuration of the potential, which is frozen and so can be the key of its table.

    Attributes:
        epsilon: Depth of the well, an energy.
        sigma: Distance at which the energy is zero, a length.
        cutoff: Distance from which on there is no interaction, a length. The default leaves out no
            pair of LJ13.
        error: The most by which the energy of one pair may be wrong, an energy.

    Raises:
        ValueError: A value is not positive and finite, the cutoff is inside the core, or the table
            would not fit into memory.
    """

    epsilon: float = 1.0
    sigma: float = 1.0
    cutoff: float = 3.0
    error: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"LennardJones: {name} must be a positive number, not {value!r}")

        if self.cutoff <= self.core:
            raise ValueError(
                f"LennardJones: cutoff={self.cutoff} must be larger than the core, "
                f"{_CORE} sigma = {self.core}"
            )
        if self.intervals > _MOST_POINTS:
            raise ValueError(
                f"LennardJones: error={self.error} needs {self.intervals} points, "
                f"more than {_MOST_POINTS}; allow a larger one"
            )

    @property
    def core(self) -> float:
        """Distance at which the table begins, a length."""
        return _CORE * self.sigma

    @property
    def intervals(self) -> int:
        """Number of intervals of the table, so that the error stays below its bound."""
        s = self.core**2
        # |d2U/ds2| is largest at the core, where the repulsion is steepest
        curvature = 4 * self.epsilon * (42 * self.sigma**12 / s**8 - 12 * self.sigma**6 / s**5)
        step = math.sqrt(8 * self.error / curvature)
        return math.ceil((self.cutoff**2 - s) / step)

    def exact(self, squared_distance: float) -> float:
        """Return U by the formula, without cutoff."""
        attraction = (self.sigma**2 / squared_distance) ** 3
        return 4 * self.epsilon * (attraction * attraction - attraction)

    def slope(self, squared_distance: float) -> float:
        """Return dU/ds, the derivative of that formula with respect to the squared distance."""
        attraction = (self.sigma**2 / squared_distance) ** 3
        return 4 * self.epsilon * (3 * attraction - 6 * attraction * attraction) / squared_distance


class Table:
    """The potential of one configuration on its grid.

    A table is immutable. With the default error it takes about 18 MB.

    Attributes:
        config: The configuration of the potential.
        values: Energies at equidistant squared distances from the core to the cutoff.
    """

    def __init__(self, config: LennardJones) -> None:
        self.config = config
        self._start = config.core**2
        self._end = config.cutoff**2
        step = (self._end - self._start) / config.intervals
        self._per_step = 1 / step

        # one point beyond the cutoff, so that rounding in the last interval never looks outside
        grid = (self._start + n * step for n in range(config.intervals + 2))
        self.values = array("d", map(config.exact, grid))

    def pair(self, squared_distance: float) -> float:
        """Return the energy of one pair."""
        if squared_distance >= self._end:
            return 0.0
        if squared_distance < self._start:
            return self.config.exact(squared_distance)

        place = (squared_distance - self._start) * self._per_step
        n = int(place)
        low = self.values[n]
        return low + (place - n) * (self.values[n + 1] - low)


@warm
def table(config: LennardJones) -> Table:
    """Return the table of *config*, which is made at the first call on a worker and kept."""
    return Table(config)


def energy(positions: Sequence[Position], config: LennardJones | None = None) -> float:
    """Return the energy of a cluster: the sum over all pairs.

    Args:
        positions: Coordinates of the atoms, lengths.
        config: The potential; `LennardJones` with its defaults if None.

    Returns:
        The energy; each of its n(n-1)/2 pairs is off by at most ``config.error``.

    Raises:
        ValueError: Two atoms are at the same place.
    """
    pair = table(config or LennardJones()).pair

    total = 0.0
    for i, (x, y, z) in enumerate(positions):
        for j in range(i):
            u, v, w = positions[j]
            squared_distance = (x - u) ** 2 + (y - v) ** 2 + (z - w) ** 2
            if squared_distance == 0:
                raise ValueError(
                    f"atoms {j + 1} and {i + 1} are at the same place, ({x}, {y}, {z}): "
                    "their energy is infinite"
                )
            total += pair(squared_distance)
    return total


def read_xyz(path: str | Path) -> list[Position]:
    """Read the positions of atoms from a file in .xyz format.

    Such a file holds the number of atoms, a comment, then a line ``element x y z`` for each atom.

    Args:
        path: The file; it has one frame.

    Returns:
        The positions in the order of the file, in its unit of length.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not in this format; the message names the line and its content.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        announced = int(lines[0])
    except (IndexError, ValueError):
        first = repr(lines[0]) if lines else "nothing"
        raise ValueError(
            f"{path}, line 1: the number of atoms is expected, and there is {first}"
        ) from None

    atoms = [(number, line) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    if announced < 1 or len(atoms) != announced:
        raise ValueError(
            f"{path}: line 1 announces {announced} atoms, "
            f"and {len(atoms)} lines of atoms follow the comment"
        )
    return [_position(path, number, line) for number, line in atoms]


def _position(path: str | Path, number: int, line: str) -> Position:
    """Return the position in a line ``element x y z``."""
    position: Position | None
    try:
        _, x, y, z = line.split()[:4]
        position = (float(x), float(y), float(z))
    except ValueError:
        position = None

    if position is None or not all(map(math.isfinite, position)):
        raise ValueError(
            f"{path}, line {number}: an element and three finite coordinates are expected, "
            f"and there is {line!r}"
        )
    return position
