"""Functions to register: each imports its warmable module in its body, and calls it.

The import in the body is what makes them warm under every serialization strategy. A strategy that sends source code sends the body
only: on the worker there is nothing around it, and a global of this file would be missing.
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

    return potential.energy(potential.read_xyz(path or potential.LJ13), potential.LennardJones(error=error))
