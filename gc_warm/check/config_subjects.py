"""Configs as rules see them: as they are written, and as the endpoint loads them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig

from gc_warm.check.rules import RuleSet
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import meaning
from gc_warm.configs.repairs import Repair
from gc_warm.configs.text import Place

SCALING = ("engine", "job_status_kwargs")
"""The place of the settings by which jobs are started and ended."""

COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
"""A comment in a shell script."""


@dataclass(frozen=True)
class Written:
    """A config as it is written, but for old settings, which are repaired."""

    document: Any
    root: yaml.Node | None
    repairs: Sequence[Repair]
    refusal: tuple[Place, str] | None
    is_rendered: bool

    @property
    def engine(self) -> Mapping[str, Any]:
        """The engine's section; empty if there is none."""
        engine = self.document.get("engine") if isinstance(self.document, dict) else None
        return engine if isinstance(engine, dict) else {}


class Workers:
    """A config as the endpoint loads it, whose engine starts workers in jobs."""

    def __init__(
        self, document: Mapping[str, Any], config: UserEndpointConfig, numbers: Numbers
    ) -> None:
        self.document = document
        self.config = config
        self.numbers = numbers

        self.engine: Any = config.engine
        self.executor = self.engine.executor
        self.provider = self.executor.provider

        self.is_local = type(self.provider).__name__ == "LocalProvider"
        self.is_mpi = type(self.engine).__name__ == "GlobusMPIEngine"
        self.profile = meaning.warmth_profile(config)

    def written(self, *place: str) -> Any:
        """Return the value at a place of the YAML, None if there is none."""
        value: Any = self.document
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def max_idletime(self) -> float:
        """Seconds without tasks after which jobs end; infinite if they never end for that."""
        return self.profile.job_idle

    @property
    def cores(self) -> float | None:
        """Cores of a node, as its manager will count them; None if only the node knows."""
        return first(meaning.exported(self.engine, "PARSL_CORES"), self.cores_here)

    @property
    def cores_here(self) -> int | None:
        """Cores of this machine, where it is the node; None where it is not.

        A manager counts all of them, also those that it may not run on.
        """
        return os.cpu_count() if self.is_local else None

    @property
    def memory(self) -> float | None:
        """Memory of a node in GB, at most, as its manager will count it.

        None if only the node knows.
        """
        memory_here = psutil.virtual_memory().total / 2**30 if self.is_local else None
        return first(meaning.exported(self.engine, "PARSL_MEMORY_GB"), memory_here)

    @property
    def memory_limit(self) -> float | None:
        """Memory in GB that the workers of a node may use, at most; None if nothing says it.

        A pod has its limit, which its manager does not know.
        """
        limit = getattr(self.provider, "max_mem", None)
        in_pod = (getattr(self.provider, "extra_limits", None) or {}).get("memory", limit)
        in_job = getattr(self.provider, "mem_per_node", None)
        return first(_gigabytes(str(in_pod)), in_job, self.memory)

    @property
    def gpus(self) -> int | None:
        """Number of NVIDIA GPUs of a node, as far as the job asks for them by number."""
        number, maker = meaning.requested_gpus(self.provider)
        return number if maker == "NVIDIA" else None


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _gigabytes(quantity: str) -> float | None:
    """Return a size as Kubernetes writes it, in GB; None if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]|[KMGT]i)?", quantity)
    return float(match[1]) * _UNITS[match[2] or ""] / 2**30 if match else None


def first(*values: float | None) -> float | None:
    """Return the first value that is not None; None if there is none."""
    return next((value for value in values if value is not None), None)


WRITTEN: RuleSet[Written] = RuleSet()
"""The rules for configs as they are written."""

WORKERS: RuleSet[Workers] = RuleSet()
"""The rules for configs that the endpoint loads, and whose engine starts workers in jobs."""


def is_nan(value: Any) -> bool:
    """Tell whether a value is the number that is none."""
    return isinstance(value, float) and math.isnan(value)


def shown(value: Any) -> str:
    """Return a value as it is written in YAML."""
    return ".nan" if is_nan(value) else repr(value)


def starts_on_all_nodes(script: str) -> bool:
    """Tell whether a script, but for its comments, has a program that starts others on nodes."""
    return meaning.starts_on_all_nodes(COMMENT.sub("", script))
