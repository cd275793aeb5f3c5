"""The page for administrators: its schema of safe options, and the names that it gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from globus_compute_endpoint.endpoint.config.utils import _validate_user_opts

from gc_warm.configs import folders, rendering
from gc_warm.exceptions import ConfigError
from gc_warm.hooks import boot, switch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "endpoint_configs" / "ADMINS.md"
UNSAFE = {
    "environment": "id",
    "python_path": ["/tmp"],
    "preload": ["os:abort"],
    "survive_idle_kill": True,
    "handover": True,
    "warm_first": True,
    "launcher_overrides": "--export=ALL",
}


@pytest.mark.parametrize("name", sorted(folders.shipped()))
def test_schema_of_safe_options_refuses_others(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(folders.shipped()[name], folder)
    path = folders.schema_path(folder)
    former = json.loads(path.read_text())
    lines = "#PBS -l place=free" if name == "pbs" else "#SBATCH --output=/tmp/mine"
    unsafe = {**UNSAFE, "scheduler_options": lines}

    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", script, path], check=True)

    schema = json.loads(path.read_text())
    for option in unsafe.keys() & former["properties"].keys():
        options = {option: unsafe[option]}
        _validate_user_opts(options, former)
        with pytest.raises(jsonschema.ValidationError):
            _validate_user_opts(options, schema)
        with pytest.raises(ConfigError):
            rendering.render(folder, options)

    safe = {"keep_warm": 5, "workers_per_node": 4}
    assert rendering.render(folder, safe) == rendering.render(folders.shipped()[name], safe)


def test_page_names_hooks_variables_and_sources_that_are_there() -> None:
    page = PAGE.read_text()
    for name in (*switch.HOOKS, switch.DISABLE, boot.PRELOAD, boot.SURVIVE):
        assert f"`{name}" in page

    for source in re.findall(r"`([a-z_/]+\.py)`", page):
        if source != "restrict_schema.py":
            assert (ROOT / source).exists() or (ROOT / "gc_warm" / source).exists(), source
