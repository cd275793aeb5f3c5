"""Load the YAML of a user endpoint with the endpoint's own loader."""

from __future__ import annotations

import os

import psutil
import yaml
from click import ClickException
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import (
    load_config_yaml,
)

from gc_warm.configs.complaints import complaint_of, line_of
from gc_warm.configs.text import parse_config
from gc_warm.exceptions import ConfigError

try:
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig as CoreEndpointConfig

    CORE_CONFIG = "--core-config"
except ImportError:  # what it was called in the first endpoints that gc_warm takes
    CORE_CONFIG = "--manager-config"

LOOPBACK = "127.0.0.1"


def load(text: str, source: str | os.PathLike[str]) -> UserEndpointConfig:
    """What the endpoint makes of the YAML of a user endpoint; nothing is started.

    An address that only the login node knows is replaced by this machine's: what is loaded here is
    for reading.

    Args:
        text: The YAML.
        source: Where it comes from, for messages: the file of the YAML, or of the template it was
            rendered from.

    Raises:
        ConfigError: The endpoint's loader refuses it, or it has no engine.
    """
    config = load_to_start(_readable_here(text), source, text)
    config.source_content = text
    return config


def load_to_start(
    text: str, source: str | os.PathLike[str], written: str | None = None
) -> UserEndpointConfig:
    """What the endpoint makes of the YAML of a user endpoint as it stands; nothing is started yet.

    Args:
        text: The YAML.
        source: Where it comes from, for messages.
        written: The YAML as people know it, where *text* differs from that.

    Raises:
        ConfigError: The endpoint's loader refuses it, or it has no engine.
    """
    try:
        config = load_config_yaml(text)
    except ClickException as error:
        raise ConfigError(
            f"{source}:{line_of(error, written or text, source)}: {complaint_of(error)}"
        ) from error
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
    """A cluster's YAML, changed so that its jobs run as processes of this machine: as many managers, with as many workers.

    The provider is swapped, and with it goes the walltime; cores are not bound, since this machine
    may have fewer.
    """
    document, engine = parse_config(text)
    if engine is None:
        return text
    provider = engine.get("provider") or {}
    kept = ("init_blocks", "min_blocks", "max_blocks", "nodes_per_block", "worker_init")
    cores = provider.get("cores_per_node")
    engine["provider"] = {"type": "LocalProvider"} | {
        name: provider[name] for name in kept if name in provider
    }
    if cores:  # the Slurm provider tells managers so, too
        engine["provider"]["worker_init"] = (
            f"export PARSL_CORES={cores}\n{provider.get('worker_init') or ''}"
        )
    engine.update(address=LOOPBACK, cpu_affinity="none")
    engine.pop("worker_port", None)  # a port that the site lets through
    return str(yaml.safe_dump(document))


def _readable_here(text: str) -> str:
    """Replace an address that cannot be found out here, or only by asking a service on the network."""
    document, engine = parse_config(text)
    if (
        engine is None
        or isinstance(engine.get("address"), str)
        or engine.get("type") in ("ThreadPoolEngine", "ProcessPoolEngine")
    ):
        return text
    address = engine.get("address")
    if isinstance(address, dict) and (
        address.get("type") != "address_by_interface"
        or address.get("ifname") in psutil.net_if_addrs()
    ):
        return text
    engine["address"] = LOOPBACK
    try:
        return str(yaml.safe_dump(document))
    except RecursionError:  # of which the loader will tell
        return text
