"""The table of rules in the linter's manual: written anew from what the rules say of themselves.

Usage: python -m tests.rules_page
"""

from __future__ import annotations

import re
from pathlib import Path

from gc_warm.check import rulebook

PAGE = Path(rulebook.__file__).with_name("README.md")
_ROWS = re.compile(r"(?:^\| GCW\d+ \| .* \|\n)+", re.MULTILINE)


def rewritten(page: str) -> str:
    """The text of the page with the rows of its table as they should be."""
    rules = rulebook.RULES.values()
    rows = "".join(f"| {rule.id} | {rule.level} | {rule.title} |\n" for rule in rules)
    return _ROWS.sub(lambda _: rows, page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
