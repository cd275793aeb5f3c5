"""The variables of a job that workers in a container do not see.

Docker and podman give a container nothing of the environment around them but what their options
name. Apptainer gives it all, unless an option says otherwise.
"""

from __future__ import annotations

import re
from typing import Any

WITHOUT_ENVIRONMENT = ("docker", "podman", "podman-hpc")
"""Programs whose containers have an environment, and an init, only on demand."""

_WITH_ENVIRONMENT = ("apptainer", "singularity")
_CLEANED = re.compile(r"(?<!\S)(--cleanenv|--containall|-e?Ce?|-e)(?!\S)")
_ALL_PASSED = re.compile(r"(?<!\S)--env-(host|file)(?![\w-])")


def program(engine: Any) -> str | None:
    """Return the program whose containers an engine's workers are in.

    Args:
        engine: The engine of a loaded config.

    Returns:
        Its name; None if there is no container, or one of a kind that is not known here.
    """
    kind: str | None = engine.container_type
    if kind != "custom":
        return kind

    known = (*WITHOUT_ENVIRONMENT, *_WITH_ENVIRONMENT)
    words = str(engine.container_cmd_options or "").split()
    runs = not {"run", "exec"}.isdisjoint(words)
    return next((word for word in words if word in known), None) if runs else None


def hides(engine: Any, name: str) -> bool:
    """Tell whether workers do not see a variable that the ``worker_init`` exports.

    Args:
        engine: The engine of a loaded config.
        name: The variable.
    """
    kind = program(engine)
    options = str(engine.container_cmd_options or "")
    is_cleaned = kind in _WITH_ENVIRONMENT and _CLEANED.search(options)
    if kind not in WITHOUT_ENVIRONMENT and not is_cleaned:
        return False
    if _ALL_PASSED.search(options):
        return False

    passed = rf"(?<!\S)(-e|--env)[= ]?\s*([^\s=]+=[^\s]*,)*['\"]?{re.escape(name)}(?![\w])"
    return re.search(passed, options) is None
