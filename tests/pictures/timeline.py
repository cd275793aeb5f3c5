"""Make the picture of the README, from real calls: ``python tests/pictures/timeline.py [FILE]``.

Two workers of the real engine; two sets of parameters, of which a worker keeps both; one worker is
killed on the way.
"""

from __future__ import annotations

import sys
from concurrent.futures import wait
from pathlib import Path

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.functions import cluster_energy


def die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def main(file: str) -> None:
    engine = MockExecutor(config="local", user_endpoint_config={"workers_per_node": 2})
    with WarmExecutor(engine) as executor:
        wait([executor.submit(cluster_energy) for _ in range(400)])
        wait([executor.submit(cluster_energy, None, 1e-6) for _ in range(400)])
        wait([executor.submit(die), *(executor.submit(cluster_energy) for _ in range(1200))])
        wait([executor.submit(cluster_energy) for _ in range(1200)])
        report = executor.report()
    report.picture(file)
    print(report)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_suffix(".png")))
