"""The text of the package keeps its limits, and the script that measures it counts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

import gc_warm
from tests.style import Style, measure

SAMPLE = '''\
"""What nobody can guess."""


def dense(self, a, *, b):
    """Return the sum."""
    text = """

    """
    c = 1 if a else 2
    d, e = 1, 2
    f = [g for g in range(c)]
    h, i = f
    j = b
    return j + d + e + h + i


def paragraphs():
    a = 1
    b = 2
    c = 3
    d = 4

    e = 5
    f = 6
    return a + b + c + d + e + f


def empty():
    """Do nothing."""


'''


@pytest.fixture(scope="module")
def style() -> Style:
    return measure(Path(gc_warm.__file__).parent)


def test_no_line_is_wide(style: Style) -> None:
    assert style.wide == []


def test_bodies_have_paragraphs(style: Style) -> None:
    assert len(style.dense) / style.long_bodies < 0.3, style.dense


def test_docstrings_open_with_a_subject(style: Style) -> None:
    assert len(style.riddles) / style.docstrings < 0.02, style.riddles


def test_functions_are_small(style: Style) -> None:
    assert {where: lines for where, lines in style.bodies.items() if lines > 45} == {}
    many = {where: number for where, number in style.parameters.items() if number > 7}
    # options of an ExternalProcess, and of a MockClient, that one reads by their names
    assert {where.rpartition(":")[0].rpartition("gc_warm/")[2]: many[where] for where in many} == {
        "programs/process.py": 8,
        "testing/mock.py": 8,
    }


def test_counts(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE + "#" * 100 + "\n" + "#" * 101 + "\n")
    style = measure(tmp_path)

    assert style.wide == [f"{file}:33"]
    assert style.bodies == {f"{file}:4 dense": 9, f"{file}:17 paragraphs": 8, f"{file}:28 empty": 0}
    assert style.dense == [f"{file}:4 dense"], "the blank line in a text is none"
    assert style.parameters[f"{file}:4 dense"] == 2
    assert (style.docstrings, style.riddles) == (3, [f"{file}:1"])
    assert style.constructs == {"ternaries": 1, "tuple assignments": 1, "comprehensions": 1}


def test_table_has_a_row_for_each_measure(style: Style) -> None:
    assert [name.partition(":")[0] for name, _ in style.rows()] == [
        "function body, lines",
        "most parameters",
        "lines over 100 columns",
        "bodies of 8 and more lines without a blank line",
        "per 1,000 statements",
        "docstrings that open with What, As, How, Where, Who",
    ]
