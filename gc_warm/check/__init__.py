"""Checks of configs, functions and environments before anything is submitted."""
