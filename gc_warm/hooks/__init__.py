"""Hooks that reach into Parsl's workers and user endpoints; loaded only where that is asked for."""

from pathlib import Path

STARTUP = str(Path(__file__).with_name("startup"))
"""The folder of the ``sitecustomize`` that loads them."""
