"""Ratios of cold calls to warm ones: ``python tests/benchmarks/cold_and_warm.py``.

The two parts of ``gc-warm demo`` that pay a load, on one worker, and LAMMPS kept alive where it is
installed. Cold and warm calls of the same run are compared, so the ratios travel from machine to
machine. Exit status 1: one is below what it has to be.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time

from gc_warm import ExternalProcess, Marker, demo

LEAST = {"tabulated": 100.0, "simulated": 3.0, "LAMMPS": 10.0}
LJ2 = """\
clear
units lj
atom_style atomic
boundary f f f
region box block -20 20 -20 20 -20 20
create_box 1 box
create_atoms 1 single 0.0 0.0 0.0
create_atoms 1 single 0.0 0.0 1.2
mass 1 1.0
pair_style lj/cut 10.0
pair_coeff 1 1 1.0 1.0
run 0
"""


def demonstrated() -> dict[str, float]:
    """Return the median time of cold calls over that of warm ones, by part of the demonstration."""
    parts = demo.run(workers=1, engine=False, progress=lambda part: None)
    _, tabulated, simulated, *_ = parts
    return {"tabulated": tabulated.ratio or 0.0, "simulated": simulated.ratio or 0.0}


def lammps() -> float:
    """Return the time of the first call, which starts LAMMPS, over the median of the next ones."""
    seconds = []
    command = ["stdbuf", "-oL", "lmp", "-log", "none"]
    with ExternalProcess(command, Marker('print "{marker}"')) as program:
        for _ in range(6):
            begun = time.perf_counter()
            program.call(LJ2)
            seconds.append(time.perf_counter() - begun)

    return seconds[0] / statistics.median(seconds[1:])


def main() -> str | int:
    ratios = demonstrated()
    if shutil.which("lmp"):
        ratios["LAMMPS"] = lammps()

    print("| | a cold call over a warm one | at least |\n| --- | ---: | ---: |")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.0f} x | {LEAST[name]:.0f} x |")

    low = [name for name, ratio in ratios.items() if ratio < LEAST[name]]
    return f"too low: {', '.join(low)}" if low else 0


if __name__ == "__main__":
    sys.exit(main())
