"""Functions to register: each imports its warmable module in its body, and calls it.

The import in the body makes the functions warm under every serialization strategy. A strategy that
sends source code sends the body only: on the worker there is nothing around it, and a global of
this file would be missing.
"""

from __future__ import annotations


def count() -> int:
    """Return how many tasks this worker has counted, this one included."""
    from gc_warm.warmables import counter

    return counter.increase()


def cluster_energy(path: str | None = None, error: float = 1e-8) -> float:
    """Return the Lennard-Jones energy of a cluster, in reduced units.

    The worker tabulates the potential once per error bound.

    Args:
        path: An .xyz file that the worker can read; None for LJ13, which comes with gc_warm.
        error: The most by which the energy of one pair may be wrong.
    """
    from gc_warm.warmables import potential

    positions = potential.read_xyz(path or potential.LJ13)
    config = potential.LennardJones(error=error)
    return potential.energy(positions, config)


def cluster_dynamics(
    path: str | None = None,
    steps: int = 200,
    temperature: float = 0.1,
    trajectory: str | None = None,
) -> dict[str, float]:
    """Run molecular dynamics of a Lennard-Jones cluster, in reduced units.

    The program that does it is started once on each worker, and kept alive.

    Args:
        path: An .xyz file that the worker can read; None for LJ13, which comes with gc_warm.
        steps: Time steps of 0.005 to take.
        temperature: Temperature of the random velocities at the beginning.
        trajectory: File in .xyz format to which the worker writes the atoms' trajectory; None for
            no file.

    Returns:
        The total energy at the beginning, the largest deviation from it (drift), and the mean
        temperature.
    """
    from dataclasses import asdict

    from gc_warm.warmables import potential, simulator

    structure = path or potential.LJ13
    run = simulator.simulate(structure, steps, temperature=temperature, trajectory=trajectory)
    return asdict(run)
