"""The folders of endpoint configs: where they are, and which files they hold."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from click import ClickException
from globus_compute_endpoint.endpoint.config.utils import (
    get_config,
)
from globus_compute_endpoint.endpoint.endpoint import Endpoint

from gc_warm.configs.complaints import complaint_of
from gc_warm.configs.text import parse_config, read_text
from gc_warm.exceptions import ConfigError

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    from globus_compute_endpoint.endpoint.config import ManagerEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--manager-config"

TEMPLATE = "user_config_template.yaml.j2"


def shipped() -> dict[str, Path]:
    """The configs that come with gc_warm, by name."""
    here = Path(__file__).parents[1]
    # wheel, checkout
    home = next(
        home
        for home in (here / "endpoint_configs", here.parent / "endpoint_configs")
        if home.is_dir()
    )
    return {folder.name: folder for folder in sorted(home.iterdir()) if folder.is_dir()}


def user_folder() -> Path:
    """Where the endpoints of this user are."""
    return Path(os.environ.get("GLOBUS_COMPUTE_USER_DIR", "~/.globus_compute")).expanduser()


def find_folder(config: str | os.PathLike[str]) -> Path:
    """The folder of a config.

    Args:
        config: Its path, or the name of one that comes with gc_warm, or of an endpoint of this
            user.

    Raises:
        FileNotFoundError: It is none of these.
    """
    given, name, configs = Path(config), os.fspath(config), shipped()
    for folder in (
        given.absolute(),
        *([configs[name]] if name in configs else []),
        user_folder() / name,
    ):
        if folder.is_dir() and _has_template(folder):
            return folder
    if given.is_file():
        raise FileNotFoundError(
            f"config: {name} is a file; give the folder that holds its {TEMPLATE}"
        )
    if given.is_dir():
        raise FileNotFoundError(f"{name} is not the folder of a config: it has no {TEMPLATE}")
    raise FileNotFoundError(
        f"config: there is no folder {name!r}, no endpoint of that name, and gc_warm has only {', '.join(configs)}"
    )


def _has_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True
    core = folder / "config.yaml"  # which may say where the template is
    return core.is_file() and not has_engine(core) and template_path(folder).is_file()


def has_engine(path: Path) -> bool:
    """Whether a YAML file is the configuration of a user endpoint."""
    return parse_config(read_text(path))[1] is not None


def deploy_command(folder: Path) -> str:
    """The command that makes an endpoint of a config, for a user of a login node."""
    files = {
        CORE_CONFIG: folder / "config.yaml",
        "--template-config": template_path(folder),
        "--schema-config": schema_path(folder),
    }
    given = [
        f"{option} {shlex.quote(str(path))}" for option, path in files.items() if path.exists()
    ]
    return " ".join(["globus-compute-endpoint configure my-endpoint --multi-user false", *given])


def template_path(folder: Path) -> Path:
    """Where the template of a config is; it may have no ``.j2`` at its end."""
    return files_of(folder)[1]


def schema_path(folder: Path) -> Path:
    """Where the schema of a config is, or would be."""
    return files_of(folder)[2]


def files_of(folder: Path) -> tuple[CoreEndpointConfig, Path, Path]:
    """The configuration of the endpoint itself, its template, and its schema."""
    parent = _parent_config(folder)
    template, schema = (
        Path(Endpoint.user_config_template_path(folder, parent)),
        Path(Endpoint.user_config_schema_path(folder, parent)),
    )
    bare = template.with_suffix("") if template.suffix == ".j2" else template
    return parent, bare if bare.is_file() and not template.exists() else template, schema


def _parent_config(folder: Path) -> CoreEndpointConfig:
    if (folder / "config.py").exists():
        raise ConfigError(
            f"{folder / 'config.py'}: a configuration in Python is only known by running it; write it as config.yaml"
        )
    if (folder / "config.yaml").exists():
        read_text(folder / "config.yaml")  # the loader lets the error of what is not text through
    try:
        parent = get_config(folder)
    except ClickException as error:
        raise ConfigError(f"{folder / 'config.yaml'}: {complaint_of(error)}") from error
    if isinstance(parent, CoreEndpointConfig):
        return parent
    raise ConfigError(
        f"{folder / 'config.yaml'} has an 'engine:' section; in a config with a template, that belongs in the template"
    )
