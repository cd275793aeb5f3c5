"""Globus Compute on one machine: its service on sockets, endpoint daemons, the engine, and spawned workers."""
