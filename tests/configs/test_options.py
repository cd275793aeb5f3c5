"""Options from files and command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gc_warm.configs import folders, options
from gc_warm.configs.text import Place
from gc_warm.exceptions import ConfigError

SCHEMA = options.schema_of(folders.schema_path(folders.find_folder("slurm-gpu")))


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("workers_per_node=4", 4),
        ("keep_warm=0.5", 0.5),
        ("walltime=10:00:00", "10:00:00"),  # which YAML takes for 36000
        ("account=0123", "0123"),
        ("account=yes", "yes"),
        ("account=", ""),
        ("environment=a=b # c", "a=b # c"),
        ("python_path=[/a, /b c]", ["/a", "/b c"]),
        ("accelerators=['0', '1']", ["0", "1"]),
        ("bind_cores=true", True),
        ("amqp_port=443", 443),
        ("unknown=1", 1),
    ],
)
def test_option_of_a_command_line_is_what_the_schema_wants(assignment: str, expected: Any) -> None:
    assert options.parse(assignment, SCHEMA) == (assignment.partition("=")[0], expected)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("workers_per_node", "-o workers_per_node: write -o name=value"),
        (
            "python_path=[/a",
            "-o python_path=[/a: the value cannot be read; a list is written [a, b]",
        ),
    ],
)
def test_option_that_cannot_be_read(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        options.parse(assignment, SCHEMA)
    assert str(found.value) == message


def test_file_tells_each_option_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        '# a comment\nkeep_warm: 5\n\nwalltime: "10:00:00"\nenvironment: |\n  one\n  two\n'
    )
    found, origin = options.read(path)
    assert found == {"keep_warm": 5, "walltime": "10:00:00", "environment": "one\ntwo\n"}
    assert [*origin.values()] == [
        Place(str(path), 2, 1, "keep_warm"),
        Place(str(path), 4, 1, "walltime"),
        Place(str(path), 5, 1, "environment"),
    ]


def test_file_may_be_json_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"keep_warm": 5}')
    assert options.read(path) == (
        {"keep_warm": 5},
        {"keep_warm": Place(str(path), 1, 2, "keep_warm")},
    )
    path.write_text("")
    assert options.read(path) == ({}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- keep_warm\n", "has to hold options, one to a line, such as `keep_warm: 30`"),
        ("keep_warm 5\n", "has to hold options"),
        ("nodes: 1\nnodes: 2\n", ":2: nodes is given twice"),
        ("nodes: 1\nwalltime: [\n", ":3: expected the node content"),
        ("nodes: 1\n\twalltime: 1\n", ":2: found character '\\t' that cannot start any token"),
    ],
)
def test_file_that_holds_no_options(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as found:
        options.read(path)
    assert str(found.value).startswith(str(path))
    assert message in str(found.value)
