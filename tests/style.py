"""Measure how the text of a package reads: width, density, size, and how docstrings open.

Usage: python tests/style.py [FOLDER or FILE]
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WIDTH = 100
LONG_BODY = 8  # lines, from which on a body without a blank line counts as dense
RIDDLES = ("What", "As", "How", "Where", "Who")
"""Words that name no subject, so that a docstring which opens with one has to be guessed."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Style:
    """What was counted, over all files of a package.

    Attributes:
        wide: Where lines are wider than `WIDTH`.
        bodies: Lines of each function's body, without its docstring.
        dense: Functions whose bodies have `LONG_BODY` and more lines, and no blank line.
        parameters: Number of each function's parameters, without self and cls.
        docstrings: How many there are.
        riddles: Where docstrings open with one of `RIDDLES`.
        statements: How many there are.
        constructs: How many ternaries, comprehensions and tuple assignments there are.
    """

    wide: list[str] = field(default_factory=list)
    bodies: dict[str, int] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    docstrings: int = 0
    riddles: list[str] = field(default_factory=list)
    statements: int = 0
    constructs: Counter[str] = field(default_factory=Counter)

    @property
    def long_bodies(self) -> int:
        """How many bodies have `LONG_BODY` and more lines."""
        return sum(length >= LONG_BODY for length in self.bodies.values())

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the rows of the table."""
        lengths = sorted(self.bodies.values())
        p90 = lengths[int(len(lengths) * 0.9)]
        yield (
            "function body, lines: median / p90 / longest",
            (f"{statistics.median(lengths):.0f} / {p90} / {lengths[-1]}"),
        )
        yield "most parameters", str(max(self.parameters.values()))
        yield f"lines over {WIDTH} columns", str(len(self.wide))

        dense = len(self.dense) / self.long_bodies
        yield f"bodies of {LONG_BODY} and more lines without a blank line", f"{dense:.1%}"

        names = ("ternaries", "comprehensions", "tuple assignments")
        rates = [f"{1000 * self.constructs[name] / self.statements:.0f}" for name in names]
        yield f"per 1,000 statements: {' / '.join(names)}", " / ".join(rates)

        riddles = len(self.riddles) / self.docstrings
        yield f"docstrings that open with {', '.join(RIDDLES)}", f"{riddles:.1%}"


def measure(place: Path) -> Style:
    """Count over all Python files in a folder, or over one file."""
    style = Style()
    for path in sorted(place.rglob("*.py")) or [place]:
        _measure_file(path, style)
    return style


def _measure_file(path: Path, style: Style) -> None:
    text = path.read_text(encoding="utf-8")
    style.wide += [
        f"{path}:{number}" for number, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH
    ]

    filled = _filled_lines(text)
    for node in ast.walk(ast.parse(text)):
        _count(node, style)
        if isinstance(node, Definition):
            _measure_function(node, path, filled, style)
        if isinstance(node, ast.Module | ast.ClassDef | Definition):
            _measure_docstring(node, path, style)


def _filled_lines(text: str) -> set[int]:
    """Return the numbers of all lines that hold a part of a token, a long text's included."""
    filled: set[int] = set()
    empty = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            filled.update(range(token.start[0], token.end[0] + 1))
    return filled


def _measure_function(node: Definition, path: Path, filled: set[int], style: Style) -> None:
    where = f"{path}:{node.lineno} {node.name}"
    names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    style.parameters[where] = len(names) - (names[:1] in (["self"], ["cls"]))

    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        style.bodies[where] = 0
        return

    first = body[0].lineno
    last = body[-1].end_lineno or first
    style.bodies[where] = last - first + 1
    if style.bodies[where] >= LONG_BODY and filled.issuperset(range(first, last + 1)):
        style.dense.append(where)


def _measure_docstring(
    node: ast.Module | ast.ClassDef | Definition, path: Path, style: Style
) -> None:
    docstring = ast.get_docstring(node)
    if docstring is None:
        return

    style.docstrings += 1
    opening = docstring.split(maxsplit=1)[0].rstrip(",.:;")
    if opening in RIDDLES:
        line = 1 if isinstance(node, ast.Module) else node.lineno
        style.riddles.append(f"{path}:{line}")


def _count(node: ast.AST, style: Style) -> None:
    style.statements += isinstance(node, ast.stmt)
    if isinstance(node, ast.IfExp):
        style.constructs["ternaries"] += 1
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        style.constructs["comprehensions"] += 1
    elif isinstance(node, ast.Assign):
        is_tuple = any(isinstance(target, ast.Tuple) for target in node.targets)
        unfolds = is_tuple and isinstance(node.value, ast.Tuple)
        style.constructs["tuple assignments"] += unfolds


def main(place: str = "gc_warm") -> None:
    """Print the table, and the places that it counts."""
    style = measure(Path(place))
    rows = list(style.rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")

    long = [where for where, length in style.bodies.items() if length > 45]
    for heading, places in (
        ("wide", style.wide),
        ("long", long),
        ("dense", style.dense),
        ("riddle", style.riddles),
    ):
        for place in places:
            print(f"{heading}: {place}")


if __name__ == "__main__":
    main(*sys.argv[1:])
