"""The command ``gc-warm``, also ``python -m gc_warm``.

Only the modules that dealing with an early interrupt needs are imported at the top. An interrupt
that comes before `main` runs, while the interpreter starts and imports this module, cannot be dealt
with here: the interpreter dies of it, or shows a traceback.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def main() -> int:
    """Run the command; return its exit status, or raise `SystemExit` with it."""
    try:
        from gc_warm.commands import entry

        return entry.run(_load, "gc-warm")
    except KeyboardInterrupt:  # in the import above: from then on, interrupts are dealt with there
        os.write(2, b"Interrupted\n")
        return 130


def _load() -> click.Command:
    from gc_warm import cli

    return cli.main


if __name__ == "__main__":
    sys.exit(main())
