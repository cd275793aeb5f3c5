"""The name under which endpoint configs of all versions run `gc_warm.hooks.boot`."""

from __future__ import annotations

import sys

from gc_warm.hooks.boot import install, main

__all__ = ["install", "main"]

if __name__ == "__main__":
    main(sys.argv[1:])
