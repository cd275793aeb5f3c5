"""Functions to register: each imports its warmable module in its body, and calls it.

The import in the body is what makes them warm under every serialization strategy. A strategy that
sends source code sends the body only: on the worker there is nothing around it, and a global of
this file would be missing.
"""

from __future__ import annotations


def count() -> int:
    """How many tasks this worker has counted, this one included."""
    from gc_warm.warmables import counter

    return counter.increase()


def cluster_energy(path: str | None = None, error: float = 1e-8) -> float:
    """Lennard-Jones energy of a cluster, in reduced units, from a potential that the worker tabulates once per error bound.

    Args:
        path: An .xyz file that the worker can read; None for LJ13, which comes with gc_warm.
        error: The most by which the energy of one pair may be wrong.
    """
    from gc_warm.warmables import potential

    return potential.energy(
        potential.read_xyz(path or potential.LJ13), potential.LennardJones(error=error)
    )


def cluster_dynamics(
    path: str | None = None,
    steps: int = 200,
    temperature: float = 0.1,
    trajectory: str | None = None,
) -> dict[str, float]:
    """Molecular dynamics of a Lennard-Jones cluster, in reduced units, by a program that each worker starts once and keeps alive.

    Args:
        path: An .xyz file that the worker can read; None for LJ13, which comes with gc_warm.
        steps: Time steps of 0.005 to take.
        temperature: That of the random velocities it begins with.
        trajectory: Where the worker is to write the way of the atoms, in .xyz format; None for
            nowhere.

    Returns:
        Total energy at the beginning, the largest deviation from it (drift), and the mean
        temperature.
    """
    from dataclasses import asdict

    from gc_warm.warmables import potential, simulator

    return asdict(
        simulator.simulate(
            path or potential.LJ13, steps, temperature=temperature, trajectory=trajectory
        )
    )
