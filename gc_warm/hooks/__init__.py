"""Hooks that reach into Parsl's workers; loaded only where a config switches them on."""
