"""Load the YAML of a user endpoint with the endpoint's own loader.

The loader makes the engine, provider and launcher that the YAML names, and starts nothing. `load`
is for reading the result, on any machine; `load_to_start` is for an endpoint that is to run here.
`localize` changes a cluster's YAML before that, so that its jobs are processes of this machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psutil
import yaml
from click import ClickException
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml
from parsl.providers.kubernetes import kube

from gc_warm.configs import repairs
from gc_warm.configs.complaints import complaint_of, place_in_source, place_of_complaint
from gc_warm.configs.text import Place, all_of, parse_config, parse_with_nodes
from gc_warm.exceptions import ConfigError

LOOPBACK = "127.0.0.1"

# An MPI manager asks its scheduler for the nodes of the job: PBS lists them in a file.
_LIST_OF_NODES = """\
export PBS_NODEFILE="$(mktemp -p "$PWD")"
seq -f node%.0f {nodes} > "$PBS_NODEFILE"
"""
_KEPT_OF_PROVIDER = ("init_blocks", "min_blocks", "max_blocks", "nodes_per_block", "worker_init")


@dataclass(frozen=True)
class Loaded:
    """A config as the endpoint loads it once its old and mistaken settings are repaired.

    Attributes:
        config: The config; None where the loader refuses it all the same.
        document: The repaired YAML, as data.
        repairs: What had to be repaired.
        refusal: The loader's last complaint; None if there is none.
    """

    config: UserEndpointConfig | None
    document: Any
    repairs: list[repairs.Repair]
    refusal: ConfigError | None = None


def load_repaired(text: str) -> Loaded:
    """Load a user endpoint's YAML for reading, however many of its settings have to be repaired.

    Args:
        text: The YAML.
    """
    document, root = parse_with_nodes(text)
    document, found = repairs.repair(document, root)
    changed = str(yaml.safe_dump(document)) if found else text

    for _ in repairs.most_repairs():
        try:
            return Loaded(load(changed, "", written=text), document, found)
        except ConfigError as error:
            refusal = error
            cause = error.__cause__
            complaint = complaint_of(cause) if isinstance(cause, ClickException) else ""

        again = {}
        if isinstance(document, dict) and complaint:
            again = yaml.safe_load(changed)
        more = repairs.repair_refused(again, root, complaint) if again else []
        if not more:
            break
        document = again
        found += more
        changed = str(yaml.safe_dump(document))
    return Loaded(None, document, found, refusal)


def load(
    text: str, source: str | os.PathLike[str], written: str | None = None
) -> UserEndpointConfig:
    """Return the config that the endpoint makes of a user endpoint's YAML; nothing is started.

    An address that only the login node knows is replaced by this machine's, and a module that only
    the provider of jobs needs by a stand-in: what is loaded here is for reading.

    Args:
        text: The YAML.
        source: The file of the YAML, or of the template it was rendered from, for messages.
        written: The YAML as people know it, where *text* differs from that.

    Raises:
        ConfigError: The endpoint's loader refuses the YAML, or the YAML has no engine.
    """
    with _no_kubernetes_needed():
        config = load_to_start(_readable_here(text), source, written or text)
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
        known = written or text
        explained = _explained(known, source)
        if explained is None:
            explained = place_of_complaint(error, known, source).error(complaint_of(error))
        raise explained from error
    except RecursionError as error:  # which older loaders let through
        raise Place(os.fspath(source)).error(
            "it holds an alias of what the alias is in, so that it has no end"
        ) from error

    if not isinstance(config, UserEndpointConfig):
        raise ConfigError(
            f"{source} has no 'engine:' section, so it is not the configuration of a user endpoint",
            os.fspath(source),
        )
    return config


def _explained(text: str, source: str | os.PathLike[str]) -> ConfigError | None:
    """Return what is said of each old setting that the loader refuses; None if there is none."""
    document, root = parse_with_nodes(text)
    _, found = repairs.repair(document, root)
    errors = [
        place_in_source(each.place, text, source).error(each.text)
        for each in found
        if each.is_refused
    ]
    return all_of(errors) if errors else None


@contextlib.contextmanager
def _no_kubernetes_needed() -> Iterator[None]:
    """Let the provider for Kubernetes be made without its module, and without a cluster."""
    stand_ins = {"config": mock.MagicMock(), "client": mock.MagicMock()}
    with mock.patch.multiple(kube, create=True, _kubernetes_enabled=True, **stand_ins):
        yield


def localize(text: str) -> str:
    """Return a cluster's YAML, changed so that its jobs run as processes of this machine.

    There are as many managers, with as many workers. The provider is swapped, and with it goes the
    walltime; cores are not bound, since this machine may have fewer. A launcher that starts one
    manager for all nodes stays.

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

    launcher = provider.get("launcher") or {}
    if isinstance(launcher, dict) and launcher.get("type") == "SimpleLauncher":
        local["launcher"] = launcher

    engine["address"] = LOOPBACK
    if engine.get("type") == "GlobusMPIEngine":
        worker_init = local.get("worker_init") or ""
        nodes = provider.get("nodes_per_block") or 1
        local["worker_init"] = _LIST_OF_NODES.format(nodes=nodes) + worker_init
    else:  # the other binds no workers, and takes no such setting
        engine["cpu_affinity"] = "none"
    engine["provider"] = {"type": "LocalProvider"} | local
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
        is_own_name = address == {"type": "address_by_hostname"}
        is_by_interface = address.get("type") == "address_by_interface"
        is_here = str(address.get("ifname")) in psutil.net_if_addrs()
        if not is_own_name and (not is_by_interface or is_here):
            return text

    engine["address"] = LOOPBACK
    try:
        return str(yaml.safe_dump(document))
    except RecursionError:  # of which the loader will tell
        return text
