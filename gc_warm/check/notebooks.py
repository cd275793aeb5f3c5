"""Notebooks, read like scripts: their code cells in order, without what IPython alone runs."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_KEPT_MAGICS = ("time", "timeit", "capture", "prun", "memit")
"""Magics whose text is Python that runs in the notebook."""

_MAGIC = re.compile(
    r"""(?P<before>\s*(?:[\w.,\s]+=\s*)?)  # an indentation, or what is assigned to
        (?:%{1,2}(?P<name>\w+)(?P<rest>.*) | !.* | \?.*)
      | (?P<asked>\s*)[\w.]+\?{1,2}\s*$""",
    re.VERBOSE,
)


class NotebookError(ValueError):
    """A file that is no notebook with Python."""


@dataclass(frozen=True)
class Notebook:
    """The Python in a notebook.

    Attributes:
        text: The text of all code cells.
        starts: The number of lines before each code cell.
    """

    text: str
    starts: list[int]

    def place(self, line: int) -> tuple[int, int]:
        """Return the code cell that a line is in, and the line in that cell, both from 1.

        Args:
            line: The line in the text, from 1.
        """
        cell = sum(start < line for start in self.starts)
        return cell, line - self.starts[cell - 1] if cell else line


def read(written: bytes) -> Notebook:
    """Read a notebook.

    Args:
        written: The contents of its file.

    Raises:
        NotebookError: It is no notebook of format 4 for Python.
    """
    try:
        notebook = json.loads(written)
    except ValueError as error:
        raise NotebookError(f"this is no notebook, since it is no JSON: {error}") from None

    version = notebook.get("nbformat") if isinstance(notebook, dict) else None
    if isinstance(version, int) and version < 4:
        raise NotebookError(
            f"this is a notebook of format {version}, and 4 is read: "
            "run `jupyter nbconvert --to notebook --inplace` on it"
        )

    try:
        language = _language(notebook)
        cells = [
            "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
        ]
    except (KeyError, TypeError, AttributeError):
        raise NotebookError("this is no notebook: it is JSON without cells") from None
    if language.lower() not in ("python", "ipython"):
        raise NotebookError(f"this is a notebook for {language}, and only Python is read")

    lines: list[str] = []
    starts: list[int] = []
    for cell in cells:
        starts.append(len(lines))
        lines += _python(cell)
    return Notebook("\n".join(lines), starts)


def _language(notebook: dict[str, dict[str, dict[str, str]]]) -> str:
    metadata = notebook.get("metadata", {})
    by_kernel = metadata.get("kernelspec", {}).get("language", "python")
    return metadata.get("language_info", {}).get("name", by_kernel)


def _python(cell: str) -> list[str]:
    """Return the lines of a cell, in which Python stands in place of what IPython alone runs.

    A line is taken for such only where Python cannot read it.
    """
    if cell[:1].isspace():  # IPython takes an indentation of the whole away
        cell = textwrap.dedent(cell)
    lines = cell.split("\n")
    if cell.lstrip().startswith("%%"):
        name = re.match(r"\s*%%(\w*)", cell)
        if name is None or name[1] not in _KEPT_MAGICS:
            return [""] * len(lines)
        first = next(number for number, line in enumerate(lines) if line.strip())
        lines[first] = ""

    for _ in range(len(lines)):
        try:
            ast.parse("\n".join(lines))
            break
        except (SyntaxError, ValueError) as error:
            number = (getattr(error, "lineno", None) or 0) - 1
        if not 0 <= number < len(lines) or not _MAGIC.match(lines[number]):
            break  # the reader of the whole says what is wrong
        lines[number:] = _without_magic(lines[number:])
    return lines


def _without_magic(lines: list[str]) -> Iterator[str]:
    """Yield lines of which the first is a magic, with Python in its place."""
    found = _MAGIC.match(lines[0])
    assert found
    before = found["before"] or found["asked"] or ""

    rest = (found["rest"] or "").strip()
    is_timed = found["name"] in _KEPT_MAGICS and not before.strip()
    if is_timed and not rest.startswith("-"):  # there are no options before the statement
        yield before + (rest or "pass")
        yield from lines[1:]
        return

    yield before + ("None" if before.strip() else "pass")
    is_continued = lines[0].endswith("\\")
    for line in lines[1:]:
        yield "" if is_continued else line
        is_continued = is_continued and line.endswith("\\")
