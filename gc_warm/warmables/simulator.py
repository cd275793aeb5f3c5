"""A simulation program that is started once per worker and answers many calls.

The program, `gc_warm.warmables.dynamics`, tabulates its potential when it starts and is fast from
then on. Requests and replies are small. Large data, structures and trajectories, go through files
that both sides can see, and only the paths are sent.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gc_warm.programs.process import ExternalProcess

dynamics = ExternalProcess([sys.executable, "-m", "gc_warm.warmables.dynamics"])
"""The program of this worker, which lives from the first call to the end of the worker."""


@dataclass(frozen=True)
class Run:
    """The result of a simulation, in reduced units.

    Attributes:
        energy: Total energy at the beginning.
        drift: The largest deviation of the total energy from `energy`; it is small against that,
            and falls with the square of the timestep.
        temperature: Mean kinetic temperature.
    """

    energy: float
    drift: float
    temperature: float


def simulate(
    structure: str | Path,
    steps: int = 200,
    timestep: float = 0.005,
    temperature: float = 0.1,
    seed: int = 0,
    trajectory: str | Path | None = None,
) -> Run:
    """Let a Lennard-Jones cluster move freely, from random velocities.

    All quantities are in reduced units.

    Args:
        structure: An .xyz file with the positions.
        steps: Number of steps to take, 0 or more.
        timestep: Length of a step.
        temperature: Temperature at which the velocities are drawn; half of it soon becomes
            potential energy.
        seed: The velocities are the same for the same seed.
        trajectory: File for at most 101 frames in .xyz format; None for no file.

    Returns:
        The energy, its drift and the temperature of the run.

    Raises:
        TypeError: steps is not a whole number.
        ValueError: A value is out of its range.
        ProgramError: The program could not do it, such as read the structure.
        ProcessError: The program failed.
    """
    steps = operator.index(steps)
    has_timestep = timestep > 0 and math.isfinite(timestep)
    has_temperature = temperature >= 0 and math.isfinite(temperature)
    if steps < 0 or not has_timestep or not has_temperature:
        raise ValueError(
            f"steps={steps} and temperature={temperature} must not be negative, "
            f"timestep={timestep} must be positive, all of them finite"
        )

    request = {
        # absolute paths: the program runs in a directory of its own
        "structure": os.path.abspath(structure),
        "trajectory": None if trajectory is None else os.path.abspath(trajectory),
        "steps": steps,
        "timestep": timestep,
        "temperature": temperature,
        "seed": seed,
    }
    reply = dynamics.call(request)
    return Run(**reply)
