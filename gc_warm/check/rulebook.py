"""The table of all rules."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gc_warm.check import config_rules, function_rules
from gc_warm.check.rules import Rule

RULES: Mapping[str, Rule[Any]] = MappingProxyType({**config_rules.RULES, **function_rules.RULES})
"""All rules for configs and for functions, by id."""
