"""The folders of endpoint configs: where they are, and which files they hold.

A folder that is given by its path comes first, then a config that gc_warm brings, by its name, and
then an endpoint of this user. The endpoint's own `config.yaml` may name another template or schema
than the usual ones; so both paths are asked of the endpoint's code.
"""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path

from click import ClickException
from globus_compute_endpoint.endpoint.config.utils import get_config
from globus_compute_endpoint.endpoint.endpoint import Endpoint

from gc_warm.configs import homes
from gc_warm.configs.complaints import complaint_of, place_in_source, place_of_complaint
from gc_warm.configs.homes import TEMPLATE as TEMPLATE
from gc_warm.configs.homes import shipped as shipped
from gc_warm.configs.homes import user_folder as user_folder
from gc_warm.configs.text import parse_config, read_text
from gc_warm.exceptions import ConfigError

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    from globus_compute_endpoint.endpoint.config import ManagerEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--manager-config"


def find_folder(config: str | os.PathLike[str]) -> Path:
    """Return the folder of a config.

    Args:
        config: Its path, or the name of one that comes with gc_warm, or of an endpoint of this
            user.

    Raises:
        FileNotFoundError: The config is none of these.
    """
    for folder in homes.candidates(config):
        if folder.is_dir() and _has_template(folder):
            return folder

    given = Path(config)
    name = os.fspath(config)
    if given.is_file():
        raise FileNotFoundError(
            f"config: {name} is a file; give the folder that holds its {TEMPLATE}"
        )
    if given.is_dir():
        raise FileNotFoundError(f"{name} is not the folder of a config: it has no {TEMPLATE}")
    raise FileNotFoundError(
        f"config: there is no folder {name!r}, no endpoint of that name, and gc_warm has only "
        f"{', '.join(shipped())}"
    )


def has_engine(path: Path) -> bool:
    """Return whether a YAML file is the configuration of a user endpoint.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is not UTF-8 text.
        OSError: The file cannot be read.
    """
    _, engine = parse_config(read_text(path))
    return engine is not None


def template_path(folder: Path) -> Path:
    """Return the path of a config's template; it may have no ``.j2`` at its end.

    Args:
        folder: The config's folder.

    Raises:
        ConfigError: The folder's own configuration is refused, as by `files_of`.
    """
    _, template, _ = files_of(folder)
    return template


def schema_path(folder: Path) -> Path:
    """Return the path where the schema of a config is, or would be.

    Args:
        folder: The config's folder.

    Raises:
        ConfigError: The folder's own configuration is refused, as by `files_of`.
    """
    _, _, schema = files_of(folder)
    return schema


def files_of(folder: Path) -> tuple[CoreEndpointConfig, Path, Path]:
    """Return the configuration of the endpoint itself, and the paths of its template and schema.

    Args:
        folder: The config's folder.

    Raises:
        ConfigError: The folder's own configuration is in Python, is not text, has an engine, or is
            refused by the endpoint's loader.
    """
    parent = _parent_config(folder)
    template = Path(Endpoint.user_config_template_path(folder, parent))
    schema = Path(Endpoint.user_config_schema_path(folder, parent))

    bare = template.with_suffix("") if template.suffix == ".j2" else template
    if bare.is_file() and not template.exists():
        template = bare
    return parent, template, schema


def _has_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True

    core = folder / "config.yaml"  # which may say where the template is
    return core.is_file() and not has_engine(core) and template_path(folder).is_file()


def _parent_config(folder: Path) -> CoreEndpointConfig:
    """Return the configuration of the endpoint itself; without a file, that is the default one."""
    in_python = folder / "config.py"
    if in_python.exists():
        raise ConfigError(
            f"{in_python}: a configuration in Python is only known by running it; write it as "
            "config.yaml",
            os.fspath(in_python),
        )

    in_yaml = folder / "config.yaml"
    # before the loader looks at what does not count here, such as an address
    if in_yaml.exists() and has_engine(in_yaml):
        raise _engine_beside_template(in_yaml)
    try:
        parent = get_config(folder)
    except ClickException as error:
        place = place_of_complaint(error, read_text(in_yaml), in_yaml)
        raise ConfigError(f"{in_yaml}: {complaint_of(error)}", *astuple(place)) from error

    if isinstance(parent, CoreEndpointConfig):
        return parent
    raise _engine_beside_template(in_yaml)


def _engine_beside_template(path: Path) -> ConfigError:
    text = (
        f"{path} has an 'engine:' section; in a config with a template, that belongs in the "
        "template"
    )
    return ConfigError(text, *astuple(place_in_source(("engine",), read_text(path), path)))
