"""Load the YAML of a user endpoint with the endpoint's own loader.

The loader makes the engine, provider and launcher that the YAML names, and starts nothing. `load`
is for reading the result, on any machine; `load_to_start` is for an endpoint that is to run here.
`localize` changes a cluster's YAML before that, so that its jobs are processes of this machine.
"""

from __future__ import annotations

import os

import psutil
import yaml
from click import ClickException
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml

from gc_warm.configs.complaints import complaint_of, line_of
from gc_warm.configs.text import parse_config
from gc_warm.exceptions import ConfigError

LOOPBACK = "127.0.0.1"

_KEPT_OF_PROVIDER = ("init_blocks", "min_blocks", "max_blocks", "nodes_per_block", "worker_init")


def load(text: str, source: str | os.PathLike[str]) -> UserEndpointConfig:
    """Return the config that the endpoint makes of a user endpoint's YAML; nothing is started.

    An address that only the login node knows is replaced by this machine's: what is loaded here is
    for reading.

    Args:
        text: The YAML.
        source: The file of the YAML, or of the template it was rendered from, for messages.

    Raises:
        ConfigError: The endpoint's loader refuses the YAML, or the YAML has no engine.
    """
    config = load_to_start(_readable_here(text), source, text)
    config.source_content = text
    return config


def load_to_start(
    text: str, source: str | os.PathLike[str], written: str | None = None
) -> UserEndpointConfig:
    """Return the config that the endpoint makes of the YAML as it stands; nothing is started yet.

    Args:
        text: The YAML of a user endpoint.
        source: The file that the YAML comes from, for messages.
        written: The YAML as people know it, where *text* differs from that.

    Raises:
        ConfigError: The endpoint's loader refuses the YAML, or the YAML has no engine.
    """
    try:
        config = load_config_yaml(text)
    except ClickException as error:
        line = line_of(error, written or text, source)
        raise ConfigError(f"{source}:{line}: {complaint_of(error)}") from error
    except RecursionError as error:  # which older loaders let through
        raise ConfigError(
            f"{source}:1: it holds an alias of what the alias is in, so that it has no end"
        ) from error

    if not isinstance(config, UserEndpointConfig):
        raise ConfigError(
            f"{source} has no 'engine:' section, so it is not the configuration of a user endpoint"
        )
    return config


def localize(text: str) -> str:
    """Return a cluster's YAML, changed so that its jobs run as processes of this machine.

    There are as many managers, with as many workers. The provider is swapped, and with it goes the
    walltime; cores are not bound, since this machine may have fewer.

    Args:
        text: The YAML of a user endpoint. Without an engine, it is returned as it is.
    """
    document, engine = parse_config(text)
    if engine is None:
        return text

    provider = engine.get("provider") or {}
    local = {name: provider[name] for name in _KEPT_OF_PROVIDER if name in provider}
    cores = provider.get("cores_per_node")
    if cores:  # the Slurm provider tells managers so, too
        worker_init = provider.get("worker_init") or ""
        local["worker_init"] = f"export PARSL_CORES={cores}\n{worker_init}"

    engine["provider"] = {"type": "LocalProvider"} | local
    engine.update(address=LOOPBACK, cpu_affinity="none")
    engine.pop("worker_port", None)  # a port that the site lets through
    return str(yaml.safe_dump(document))


def _readable_here(text: str) -> str:
    """Replace an address that this machine cannot find out, or only by asking on the network."""
    document, engine = parse_config(text)
    if engine is None or engine.get("type") in ("ThreadPoolEngine", "ProcessPoolEngine"):
        return text

    address = engine.get("address")
    if isinstance(address, str):
        return text
    if isinstance(address, dict):
        is_by_interface = address.get("type") == "address_by_interface"
        if not is_by_interface or address.get("ifname") in psutil.net_if_addrs():
            return text

    engine["address"] = LOOPBACK
    try:
        return str(yaml.safe_dump(document))
    except RecursionError:  # of which the loader will tell
        return text
