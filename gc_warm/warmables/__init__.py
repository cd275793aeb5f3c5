"""Warmable modules: they keep state in module globals. Small, real, and meant to be copied."""
