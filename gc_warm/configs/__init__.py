"""Endpoint configs as Python sees them: find, render and load them, and tell what they amount to."""
