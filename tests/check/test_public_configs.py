"""Rules held against the configs of other people, as public repositories have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gc_warm.check import config_rules
from tests.check.test_config_rules import OLDER_LOADER

CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("public.yaml").read_text()
)


@pytest.mark.parametrize("name", CONFIGS)
def test_finds_what_is_right_to_say(name: str) -> None:
    expected: list[str] = CONFIGS[name]["finds"]
    found = [
        f"{each.rule}: {each.text}"
        for each in config_rules.examine(CONFIGS[name]["yaml"], "x").findings
    ]

    # whose words cannot be repaired, to look at the rest
    if OLDER_LOADER and any(said.startswith("GCW000") for said in expected):
        assert found[0].startswith("GCW000")
        return

    assert len(found) == len(expected), found
    for said, start in zip(found, expected, strict=True):
        assert said.startswith(start)
