"""The program that `gc_warm.warmables.simulator` keeps alive: molecular dynamics of a Lennard-Jones cluster, in plain Python.

``python -m gc_warm.warmables.dynamics`` tabulates the potential when it starts, which takes a
second, and then answers requests, one a line (see `gc_warm.worker.program.serve`). It shows what a
simulation code with a large start-up cost has to do, and is one.

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

_FRAMES = 100  # of a trajectory, at most

Vectors = list[list[float]]
"""The three components of each atom."""


class Forces:
    """Energy and forces of a cluster, from a table of the pair energy U and its slope dU/ds over the squared distance s.

    Outside the table the formulas themselves are evaluated, so no pair is cut off and the total
    energy has no jumps.
    """

    def __init__(self, potential: LennardJones) -> None:
        self._potential = potential
        self._start = potential.core**2
        step = (potential.cutoff**2 - self._start) / potential.intervals
        self._per_step = 1 / step
        self._energies = array(
            "d", (potential.exact(self._start + n * step) for n in range(potential.intervals + 1))
        )
        self._slopes = array(
            "d", (potential.slope(self._start + n * step) for n in range(potential.intervals + 1))
        )

    def pair(self, squared_distance: float) -> tuple[float, float]:
        """U and dU/ds of one pair."""
        place = (squared_distance - self._start) * self._per_step
        n = int(place)
        if place < 0 or n >= len(self._energies) - 1:
            return self._potential.exact(squared_distance), self._potential.slope(squared_distance)
        part, energies, slopes = place - n, self._energies, self._slopes
        return energies[n] + part * (energies[n + 1] - energies[n]), slopes[n] + part * (
            slopes[n + 1] - slopes[n]
        )

    def on(self, positions: Vectors) -> tuple[float, Vectors]:
        """Potential energy, and the force on each atom."""
        total, forces = 0.0, [[0.0, 0.0, 0.0] for _ in positions]
        for i, (x, y, z) in enumerate(positions):
            here = forces[i]
            for j in range(i):
                u, v, w = positions[j]
                dx, dy, dz = x - u, y - v, z - w
                energy, slope = self.pair(dx * dx + dy * dy + dz * dz)
                total += energy
                there = forces[j]
                for axis, part in enumerate((dx, dy, dz)):
                    here[axis] -= 2 * slope * part  # F = -dU/dr = -2 r dU/ds
                    there[axis] += 2 * slope * part
        return total, forces


def velocities(atoms: int, temperature: float, seed: int) -> Vectors:
    """Random velocities of the Maxwell-Boltzmann distribution, without a drift of the whole."""
    normal = random.Random(seed).gauss
    drawn = [[normal(0, math.sqrt(temperature)) for _ in range(3)] for _ in range(atoms)]
    drift = [math.fsum(components) / atoms for components in zip(*drawn, strict=True)]
    return [[v - d for v, d in zip(velocity, drift, strict=True)] for velocity in drawn]


def verlet(
    forces: Forces, positions: Vectors, speeds: Vectors, timestep: float
) -> Iterator[tuple[float, float]]:
    """Move the atoms step by step, in place; yields potential and kinetic energy before the first step and after each."""
    potential, pull = forces.on(positions)
    while True:
        yield potential, 0.5 * math.fsum(v * v for speed in speeds for v in speed)
        for position, speed, force in zip(positions, speeds, pull, strict=True):
            for axis in range(3):
                speed[axis] += 0.5 * timestep * force[axis]
                position[axis] += timestep * speed[axis]
        potential, pull = forces.on(positions)
        for speed, force in zip(speeds, pull, strict=True):
            for axis in range(3):
                speed[axis] += 0.5 * timestep * force[axis]


def run(forces: Forces, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request: its fields are the arguments of `gc_warm.warmables.simulator.simulate`, those of the reply its result."""
    positions = [list(position) for position in read_xyz(request["structure"])]
    steps, timestep = request["steps"], request["timestep"]
    speeds = velocities(len(positions), request["temperature"], request["seed"])
    frames, every = [], max(1, math.ceil(steps / _FRAMES))
    totals, kinetic = [], []
    for step, (u, k) in enumerate(islice(verlet(forces, positions, speeds, timestep), steps + 1)):
        totals.append(u + k)
        kinetic.append(k)
        if step % every == 0:
            frames.append(_frame(positions, step * timestep, u))
    if request["trajectory"] is not None:
        _write(Path(request["trajectory"]), frames)
    freedom = max(1, 3 * len(positions) - 3)
    return {
        "energy": totals[0],
        "drift": max(abs(total - totals[0]) for total in totals),
        "temperature": 2 * math.fsum(kinetic) / len(kinetic) / freedom,
    }


def _frame(positions: Vectors, time: float, energy: float) -> str:
    atoms = "".join("Ar {:.10f} {:.10f} {:.10f}\n".format(*position) for position in positions)
    return f"{len(positions)}\ntime {time:g} potential energy {energy:.10f}\n{atoms}"


def _write(path: Path, frames: list[str]) -> None:
    """Whole or not at all: a reader must not take half a trajectory for all of it."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text("".join(frames))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """Tabulate, then serve."""
    forces = Forces(LennardJones(error=1e-7))
    serve(lambda request: run(forces, request))


if __name__ == "__main__":
    main()
