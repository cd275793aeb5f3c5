"""Warm state inside an endpoint's worker process; standard library only."""
