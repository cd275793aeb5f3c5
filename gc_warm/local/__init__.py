"""Globus Compute on one machine: its service on sockets, endpoint daemons, engine and workers."""
