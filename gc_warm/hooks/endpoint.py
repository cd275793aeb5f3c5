"""Hooks in a user endpoint's own process, which is where Parsl asks for jobs.

`gc-warm configure` writes a PYTHONPATH with ``startup/`` into the ``user_environment.yaml`` of an
endpoint, whose variables the daemon gives to its user endpoints and to nothing else. The
``sitecustomize`` there takes the folder away before anything else starts, so that interchange, jobs
and the scheduler's commands have the environment that they have without hooks.

An endpoint that starts processes of other users has no hooks: one user's file would decide there
what runs as another.
"""

from __future__ import annotations

import os
import sys

from gc_warm.hooks import backoff, handover, switch


def install() -> None:
    """Change what the user endpoint that is starting does, as far as its hooks are on.

    ``startup/sitecustomize.py`` calls this.
    """
    if said := switch.describe():
        _complain(said)
    if _is_of_another_user():
        _complain("no hooks, since this user endpoint runs as another user than its daemon")
        return

    if "backoff" not in switch.disabled() and (said := backoff.install()):
        _complain(f"refused jobs are tried again every few seconds: {said}")
    if "handover" not in switch.disabled() and (said := handover.install()):
        _complain(f"jobs do not hand over: {said}")


def _is_of_another_user() -> bool:
    return os.stat(f"/proc/{os.getppid()}").st_uid != os.getuid()


def _complain(message: str) -> None:
    # which is the user endpoint's log; the loggers are not set up yet
    print(f"gc_warm: {message}", file=sys.stderr, flush=True)
