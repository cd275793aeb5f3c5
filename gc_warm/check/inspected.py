"""The result of a look at one target: its findings, and what its config is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gc_warm.check.rules import Finding

if TYPE_CHECKING:  # else functions, which need none, would wait for it
    from globus_compute_endpoint.endpoint.config import UserEndpointConfig


@dataclass(frozen=True)
class Target:
    """A target that was inspected.

    Attributes:
        name: The folder, the file, or the module.
        findings: The rules that it breaks, the worst first.
        text: The YAML of a user endpoint; None for functions.
        config: The config that the endpoint makes of the YAML; None for functions, and where it
            makes nothing that can be relied on.
        is_folder: Whether it is the folder of a config, from which an endpoint can be made.
        mapping: The file by which its endpoint maps identities to local users; None where tasks run
            as the user who runs the endpoint.
        is_seen_whole: Whether all rules could look: those for workers cannot where the endpoint
            makes no engine of the config.
        is_empty: Whether there is nothing in it that a rule could look at.
    """

    name: str
    findings: list[Finding]
    text: str | None = None
    config: UserEndpointConfig | None = None
    is_folder: bool = False
    mapping: Path | None = None
    is_seen_whole: bool = True
    is_empty: bool = False
