"""Mends of configs: what is mended is clean, and nothing else changes."""

from __future__ import annotations

import inspect
import os
import shutil
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from globus_compute_endpoint.endpoint import config as endpoint_config

from gc_warm import cli
from gc_warm.check import mending, targets
from gc_warm.check.config_targets import Config
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, installing
from gc_warm.exceptions import ConfigError
from tests.check.test_config_rules import CASES, DOCUMENTED, OLDER_LOADER, engine, slurm
from tests.check.test_public_configs import CONFIGS
from tests.support import cli_runner

MENDED = {
    "GCW001-max_blocks",
    "GCW005-nodes_per_block",
    "GCW005-max_blocks",
    "GCW012-idle_heartbeats_soft",
    "GCW013-min_blocks",
    "GCW016-drain_period",
    "GCW017-prefetch_capacity",
    "GCW025-heartbeat_period",
    "GCW025-heartbeat_threshold",
    "GCW027-available_accelerators",
    "GCW032-heartbeat_threshold",
    "GCW034-strategy",
    "GCW035-scheduler_options",
}
"""Miniatures that are mended, by rule and the setting where it is broken."""

OTHERS = {name: each["yaml"] for name, each in {**DOCUMENTED, **CONFIGS}.items()}


def fix(path: Path, numbers: Numbers | None = None) -> mending.Mended:
    return mending.mend(Config(path, numbers or Numbers()))


def keys(path: Path, numbers: Numbers | None = None) -> list[mending.Key]:
    findings = Config(path, numbers or Numbers()).inspect().findings
    return [mending.key_of(each) for each in findings]


@pytest.mark.engine
@pytest.mark.skipif(OLDER_LOADER, reason="refuses some of them")
def test_mended_miniatures_are_clean_and_others_untouched(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    mended = set()
    for rule, case in CASES:
        path.write_text(case.bad)
        made = fix(path, case.numbers).mends
        if not made:
            assert path.read_bytes() == case.bad.encode()
            continue

        mended.add(f"{rule}-{case.at}")
        target = Config(path, case.numbers).inspect()
        assert (target.findings, target.config is not None) == ([], True), path.read_text()
        before, after = case.bad.splitlines(), path.read_text().splitlines()
        changed = [each for each, line in enumerate(after, 1) if before[each - 1] != line]
        assert changed == [each.line for each in made]
    assert mended == MENDED


def test_good_miniatures_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    for case in (case for rule, case in CASES if f"{rule}-{case.at}" in MENDED):
        path.write_text(case.good)
        assert fix(path, case.numbers) == mending.Mended()
        assert path.read_text() == case.good


@pytest.mark.parametrize("name", OTHERS)
def test_configs_of_others_lose_findings_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(OTHERS[name])
    made = fix(path).mends
    if not made:
        assert path.read_text() == OTHERS[name]
        return

    after = keys(path)
    path.write_text(OTHERS[name])
    before = keys(path)
    assert len(before) - len(after) >= len(made)
    assert set(after) <= set(before)


@pytest.mark.parametrize("name", folders.shipped())
def test_own_configs_stay_as_they_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(folders.shipped()[name], folder)
    before = (folder / folders.TEMPLATE).read_bytes()
    assert targets.mend_target(str(folder), [], None, Numbers()) == mending.Mended()
    assert (folder / folders.TEMPLATE).read_bytes() == before


def test_config_that_comes_with_gc_warm_is_not_written(tmp_path: Path) -> None:
    shipped = tmp_path / "mine"
    shipped.mkdir()
    text = slurm("max_blocks: 2", engine_settings=("prefetch_capacity: 4",))
    (shipped / folders.TEMPLATE).write_text(text)
    with mock.patch.object(folders, "shipped", return_value={"mine": shipped}):
        made = targets.mend_target(str(shipped), [], None, Numbers())

    assert made is not None
    (patch,) = made.patches.values()
    assert patch.startswith("write under engine: prefetch_capacity: 0 (the file comes with gc_warm")
    assert (shipped / folders.TEMPLATE).read_text() == text


def test_keeps_comments_quotes_line_ends_mode_and_link(tmp_path: Path) -> None:
    text = slurm(
        "nodes_per_block: 2   # two",
        "launcher:",
        "  type: 'SingleNodeLauncher'  # é",
        engine_settings=("prefetch_capacity: 4  # more",),
    )
    path = tmp_path / "real.yaml"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    path.chmod(0o640)
    link = tmp_path / "endpoint.yaml"
    link.symlink_to(path)

    assert [each.finding.rule for each in fix(link).mends] == ["GCW010", "GCW017"]
    expected = text.replace("SingleNode", "Srun").replace("capacity: 4", "capacity: 0")
    assert path.read_bytes() == expected.replace("\n", "\r\n").encode()
    assert (stat.S_IMODE(path.stat().st_mode), link.is_symlink()) == (0o640, True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["endpoint.yaml", "real.yaml"]


OWN_LINE = "it is not one value on a line of its own"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (slurm().replace("drain_period: 3000", "label: a"), "there is no such line yet"),
        (slurm().replace("drain_period: 3000", "drain_period: &a 3600"), OWN_LINE),
        (slurm().replace("drain_period: 3000", "drain_period: !!int 3600"), OWN_LINE),
        (slurm().replace("drain_period: 3000", "drain_period:\n    3600"), OWN_LINE),
        (slurm().replace("drain_period: 3000", "? drain_period\n  : 3600"), OWN_LINE),
        (
            slurm().replace("  drain_period: 3000\n", "  <<: {drain_period: 3600}\n"),
            "there is no such line yet",
        ),
        (engine("heartbeat_threshold: 300", "heartbeat_period: 200"), "it would break GCW032"),
    ],
)
def test_patch_is_said_where_no_line_can_be_mended(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(text)
    made = fix(path)
    assert (made.mends, path.read_text()) == ([], text)
    (patch,) = made.patches.values()
    assert patch.startswith("write under engine: ")
    assert patch.endswith(f"({why})")


TEMPLATE = """\
{%- set blocks = blocks | default(2) %}
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: 1
{%- if blocks == 2 %}
  prefetch_capacity: 3   # literal
{%- else %}
  prefetch_capacity: {{ blocks }}
{%- endif %}
  provider:
    type: LocalProvider
    max_blocks: {{ blocks }}
{%- for name in ["init", "min"] %}
    {{ name }}_blocks: 0
{%- endfor %}
"""


def test_literal_line_of_a_template_is_mended(tmp_path: Path) -> None:
    path = tmp_path / folders.TEMPLATE
    path.write_text(TEMPLATE)
    made = targets.mend_target(str(tmp_path), ["blocks=4"], None, Numbers())
    assert made is not None
    (patch,) = made.patches.values()
    assert patch == "write under engine: prefetch_capacity: 0 (the template makes that line)"
    assert path.read_text() == TEMPLATE

    made = targets.mend_target(str(tmp_path), [], None, Numbers())
    assert made is not None
    assert [each.line for each in made.mends] == [7]
    assert path.read_text() == TEMPLATE.replace("3   # literal", "0   # literal")


def test_file_that_changed_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(slurm().replace("3000", "3600"))
    write = installing.write_beside

    def edit_then_write(*arguments: Any) -> None:
        path.write_text("mine\n")
        write(*arguments)

    monkeypatch.setattr(installing, "write_beside", edit_then_write)
    with pytest.raises(ConfigError, match="was changed meanwhile, and nothing was written"):
        fix(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("mine\n", ["endpoint.yaml"])


@pytest.mark.skipif(OLDER_LOADER, reason="refuses it")
def test_what_a_mend_lets_the_rules_see_is_no_reason_against_it(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(engine("prefetch_capacity: 3", workers="0", job=("max_blocks: '2'",)))
    assert keys(path) == [("GCW001", "engine.provider.max_blocks")]
    assert [each.finding.rule for each in fix(path).mends] == ["GCW001", "GCW017"]
    assert keys(path) == [("GCW005", "engine.max_workers_per_node")]


@pytest.mark.skipif(OLDER_LOADER, reason="says it in other words")
def test_command_says_lines_before_and_after_and_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(slurm("account: 0123", "nodes_per_block: 2").replace("3000", "3600"))
    done = cli_runner().invoke(cli.main, ["check", "--fix", str(path), "gc_warm.functions"])
    assert done.exit_code == 1, "an error is left"
    assert (
        f"{path}:5: GCW016, mended\n-   drain_period: 3600\n+   drain_period: 3180\n" in done.stdout
    )
    assert '-     account: 0123\n+     account: "0123"\n' in done.stdout
    patch = "write under engine.provider.launcher: type: SrunLauncher (there is no such line yet)"
    assert f"    not mended: {patch}\n" in done.stdout.partition("GCW010 error")[2]
    assert "1 error." in done.stdout

    refused = cli_runner().invoke(cli.main, ["check", "--fix", "--json", str(path)])
    assert "leave --yaml and --json away" in refused.stderr


def test_three_lines_make_the_stock_template_warm(tmp_path: Path) -> None:
    stock = Path(inspect.getfile(endpoint_config)).parent
    for name in (folders.TEMPLATE, "user_config_schema.json"):
        shutil.copy(stock / name, tmp_path)
    text = targets.inspect_target(str(tmp_path), [], None, Numbers(), "DillCode").text
    document = yaml.safe_load(text or "")
    job = {"type": "SlurmProvider", "walltime": "01:00:00", "max_blocks": 2}
    document["engine"]["provider"] = job

    path = tmp_path / "endpoint.yaml"
    numbers = Numbers(load_seconds=200, queue_seconds=300, task_seconds=300)
    path.write_text(yaml.safe_dump(document))
    assert [rule for rule, _ in keys(path, numbers)] == ["GCW011", "GCW016"]

    page = (Path(__file__).parents[2] / "endpoint_configs" / "README.md").read_text()
    block = page.partition("### You already have an endpoint")[2].partition("```yaml\n")[2]
    lines = yaml.safe_load(block.partition("```")[0])
    document["engine"] |= lines.pop("engine")
    path.write_text(yaml.safe_dump({**document, **lines}))
    assert keys(path, numbers) == []
