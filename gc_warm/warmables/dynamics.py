"""Molecular dynamics of a Lennard-Jones cluster, in plain Python, as a program to be kept alive.

``python -m gc_warm.warmables.dynamics`` tabulates the potential when it starts, which takes a
second, and then answers requests, one a line (see `gc_warm.worker.program.serve`). It shows what a
simulation code with a large start-up cost has to do, and is such a code itself. The worker's side
is `gc_warm.warmables.simulator`.

The equations of motion are integrated with the velocity Verlet scheme (Swope, Andersen, Berens,
Wilson, J. Chem. Phys. 76, 637, 1982). Its error in the energy grows with the square of the time
step, and does not accumulate. All quantities are in reduced units: energies in epsilon, lengths in
sigma, masses in that of an atom, times in sigma sqrt(mass/epsilon).
"""

from __future__ import annotations

import math
import os
import random
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gc_warm.programs.serve import serve
from gc_warm.warmables.potential import LennardJones, read_xyz

_FRAMES = 100  # of a trajectory, at most, after the first one

Vectors = list[list[float]]
"""A vector of three components for each atom."""


class Forces:
    """The energy of a cluster and the forces in it.

    Both come from a table of the pair energy U and its slope dU/ds over the squared distance s.
    Outside the table the formulas themselves are evaluated, so no pair is cut off and the total
    energy has no jumps.

    Args:
        potential: The potential to tabulate.
    """

    def __init__(self, potential: LennardJones) -> None:
        self._potential = potential
        self._start = potential.core**2
        step = (potential.cutoff**2 - self._start) / potential.intervals
        self._per_step = 1 / step

        grid = array("d", (self._start + n * step for n in range(potential.intervals + 1)))
        self._energies = array("d", map(potential.exact, grid))
        self._slopes = array("d", map(potential.slope, grid))

    def pair(self, squared_distance: float) -> tuple[float, float]:
        """Return U and dU/ds of one pair."""
        place = (squared_distance - self._start) * self._per_step
        n = int(place)
        if place < 0 or n >= len(self._energies) - 1:
            return self._potential.exact(squared_distance), self._potential.slope(squared_distance)

        part = place - n
        energies = self._energies
        slopes = self._slopes
        energy = energies[n] + part * (energies[n + 1] - energies[n])
        slope = slopes[n] + part * (slopes[n + 1] - slopes[n])
        return energy, slope

    def on(self, positions: Vectors) -> tuple[float, Vectors]:
        """Return the potential energy, and the force on each atom."""
        total = 0.0
        forces = [[0.0, 0.0, 0.0] for _ in positions]

        for i, (x, y, z) in enumerate(positions):
            for j in range(i):
                u, v, w = positions[j]
                dx = x - u
                dy = y - v
                dz = z - w
                energy, slope = self.pair(dx * dx + dy * dy + dz * dz)
                total += energy

                here = forces[i]
                there = forces[j]
                for axis, part in enumerate((dx, dy, dz)):
                    pull = -2 * slope * part  # F = -dU/dr = -2 r dU/ds
                    here[axis] += pull
                    there[axis] -= pull
        return total, forces


def velocities(atoms: int, temperature: float, seed: int) -> Vectors:
    """Draw velocities from the Maxwell-Boltzmann distribution, without a drift of the whole."""
    normal = random.Random(seed).gauss
    width = math.sqrt(temperature)
    drawn = [[normal(0, width) for _ in range(3)] for _ in range(atoms)]

    drift = [math.fsum(components) / atoms for components in zip(*drawn, strict=True)]
    return [[v - d for v, d in zip(velocity, drift, strict=True)] for velocity in drawn]


def verlet(
    forces: Forces, positions: Vectors, speeds: Vectors, timestep: float
) -> Iterator[tuple[float, float]]:
    """Move the atoms step by step, in place.

    Args:
        forces: The forces between the atoms.
        positions: Positions of the atoms.
        speeds: Velocities of the atoms.
        timestep: Length of a step.

    Yields:
        Potential and kinetic energy, before the first step and after each.
    """
    potential, pulls = forces.on(positions)
    while True:
        yield potential, 0.5 * math.fsum(v * v for speed in speeds for v in speed)

        # half a step of the velocities, a step of the positions
        for position, speed, pull in zip(positions, speeds, pulls, strict=True):
            for axis in range(3):
                speed[axis] += 0.5 * timestep * pull[axis]
                position[axis] += timestep * speed[axis]

        # the other half, with the forces at the new positions
        potential, pulls = forces.on(positions)
        for speed, pull in zip(speeds, pulls, strict=True):
            for axis in range(3):
                speed[axis] += 0.5 * timestep * pull[axis]


def run(forces: Forces, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request.

    Args:
        forces: The forces between the atoms.
        request: The arguments of `gc_warm.warmables.simulator.simulate`, by name.

    Returns:
        The attributes of its result, by name.
    """
    positions = [list(position) for position in read_xyz(request["structure"])]
    steps = request["steps"]
    timestep = request["timestep"]
    speeds = velocities(len(positions), request["temperature"], request["seed"])

    totals = []
    kinetic = []
    frames = []
    steps_per_frame = max(1, math.ceil(steps / _FRAMES))
    states = islice(verlet(forces, positions, speeds, timestep), steps + 1)
    for step, (u, k) in enumerate(states):
        totals.append(u + k)
        kinetic.append(k)
        if step % steps_per_frame == 0:
            frames.append(_frame(positions, step * timestep, u))

    if request["trajectory"] is not None:
        _write(Path(request["trajectory"]), frames)

    degrees_of_freedom = max(1, 3 * len(positions) - 3)
    mean_kinetic = math.fsum(kinetic) / len(kinetic)
    return {
        "energy": totals[0],
        "drift": max(abs(total - totals[0]) for total in totals),
        "temperature": 2 * mean_kinetic / degrees_of_freedom,
    }


def _frame(positions: Vectors, time: float, energy: float) -> str:
    """Return a frame of a trajectory in .xyz format."""
    atoms = "".join("Ar {:.10f} {:.10f} {:.10f}\n".format(*position) for position in positions)
    return f"{len(positions)}\ntime {time:g} potential energy {energy:.10f}\n{atoms}"


def _write(path: Path, frames: list[str]) -> None:
    """Write a trajectory whole or not at all: nobody must take half of it for all of it."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text("".join(frames))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """Tabulate the forces, then answer requests."""
    forces = Forces(LennardJones(error=1e-7))
    serve(lambda request: run(forces, request))


if __name__ == "__main__":
    main()
