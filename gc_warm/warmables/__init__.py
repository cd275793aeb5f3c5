"""Warmable modules, which keep state in module globals: small, real, and meant to be copied."""
