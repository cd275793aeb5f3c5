"""Print the fingerprints of the functions of Parsl that hooks lean on: for `versions.FINGERPRINTS`.

``python tests/fingerprints.py FOLDER...``, each made by ``pip install --no-deps --target FOLDER
parsl==VERSION``, the oldest version first.
"""

from __future__ import annotations

import subprocess
import sys

from gc_warm.hooks import registry

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from gc_warm.hooks import versions
print(*(versions.fingerprint(name) or "-" for name in sys.argv[2:]))
"""


def main(folders: list[str]) -> None:
    """Print an entry for each function, and the fingerprints that it has in any of the folders."""
    functions = sorted({name for hook in registry.HOOKS for name in hook.functions})
    found: dict[str, dict[str, None]] = {name: {} for name in functions}
    for folder in folders:
        command = [sys.executable, "-c", PROGRAM, folder, *functions]
        prints = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for name, fingerprint in zip(functions, prints.stdout.split(), strict=True):
            found[name][fingerprint] = None

    for name, fingerprints in found.items():
        print(f'    "{name}": (')
        for fingerprint in fingerprints:
            print(f'        "{fingerprint}",')
        print("    ),")


if __name__ == "__main__":
    main(sys.argv[1:])
