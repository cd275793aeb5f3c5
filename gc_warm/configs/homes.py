"""The places where folders of endpoint configs are, for which nothing has to be read."""

from __future__ import annotations

import os
from pathlib import Path

TEMPLATE = "user_config_template.yaml.j2"


def shipped() -> dict[str, Path]:
    """Return the folders of the configs that come with gc_warm, by name."""
    package = Path(__file__).parents[1]
    in_wheel = package / "endpoint_configs"
    in_checkout = package.parent / "endpoint_configs"

    home = in_wheel if in_wheel.is_dir() else in_checkout
    return {folder.name: folder for folder in sorted(home.iterdir()) if folder.is_dir()}


def user_folder() -> Path:
    """Return the folder that holds the endpoints of this user.

    Where there is no home directory, its path still begins with ``~``.
    """
    given = os.environ.get("GLOBUS_COMPUTE_USER_DIR") or "~/.globus_compute"
    return Path(os.path.expanduser(given))


def candidates(config: str | os.PathLike[str]) -> list[Path]:
    """Return the paths that a config may be meant by, the first choice first.

    Args:
        config: Its path, or the name of one that comes with gc_warm, or of an endpoint of this
            user.
    """
    name = os.fspath(config)
    configs = shipped()
    brought = [configs[name]] if name in configs else []
    return [Path(name).absolute(), *brought, user_folder() / name]
