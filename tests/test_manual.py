"""The manual does what it says: every example runs, every link leads somewhere.

Its pages are the READMEs of the rooms. A block of ```python is a session, run as a script's would
be; or a file, if the sentence before it names one in backticks; or source of this project, quoted.
Blocks of other languages, ```py among them, are not run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gc_warm.check import function_rules
from tests import rules_page

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        *sorted(ROOT.glob("gc_warm/*/README.md")),
        ROOT / "endpoint_configs" / "README.md",
        ROOT / "endpoint_configs" / "ADMINS.md",
        ROOT / "tests" / "README.md",
        ROOT / "tests" / "benchmarks" / "README.md",
        *sorted(ROOT.glob(".github/*.md")),
    ]
}

BLOCK = re.compile(r"([^\n]*)\n\n```python\n(.*?)```", re.DOTALL)
FILE = re.compile(r"`((?:modules/)?\w+\.py)`[^`]*$")

# As a user's script or session would: the examples' functions belong to the real __main__, where a
# doctest has a copy of it.
RUN_EXAMPLES = """
import doctest, sys, __main__
text = open(sys.argv[1]).read()
test = doctest.DocTestParser().get_doctest(text, {}, "manual", sys.argv[1], 0)
test.globs = vars(__main__)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
runner.run(test, clear_globs=False)
print(runner.summarize(verbose=False))
sys.exit(runner.failures != 0 or runner.tries == 0)
"""


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yield each block of ```python on a page, after the line before it."""
    for found in BLOCK.finditer(PAGES[page]):
        yield found[1], found[2]


def files(page: str) -> dict[str, str]:
    """Return the files that a page has its reader write."""
    named = ((FILE.search(line), text) for line, text in blocks(page))
    return {found[1]: text for found, text in named if found}


def write_files(page: str, folder: Path) -> None:
    """Write what a reader of a page has, who has read the others, too."""
    (folder / "modules").mkdir()
    for other in (*PAGES, page):
        for name, text in files(other).items():
            (folder / name).write_text(text)


def run(*command: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


SESSIONS = [page for page in PAGES if any(">>>" in text for _, text in blocks(page))]


def sampled(pages: list[str]) -> list[Any]:
    """Mark the pages that the quick suite leaves to the one that runs all."""
    quick = ("README.md", "gc_warm/worker/README.md")
    return [
        page if page in quick else pytest.param(page, marks=pytest.mark.engine) for page in pages
    ]


@pytest.mark.parametrize("page", sampled(SESSIONS))
def test_sessions(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    run("-c", RUN_EXAMPLES, str(ROOT / page), folder=tmp_path)


def files_of_tests(page: str) -> list[str]:
    """Return the names of the files of tests on a page that need no whole stack."""
    return [
        name
        for name, text in files(page).items()
        if name.startswith("test_") and "local_cloud" not in text
    ]


@pytest.mark.parametrize("page", sampled([page for page in PAGES if files_of_tests(page)]))
def test_tests(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    run("-m", "pytest", "-q", *files_of_tests(page), folder=tmp_path)


@pytest.mark.engine
def test_test_of_the_whole_stack(tmp_path: Path) -> None:
    write_files("gc_warm/local/README.md", tmp_path)
    run("-m", "pytest", "-q", "test_stack.py", folder=tmp_path)


@pytest.mark.programs
def test_programs_as_they_are(tmp_path: Path) -> None:
    write_files("gc_warm/programs/README.md", tmp_path)
    code = "from my_codes import bc, power_of_two; assert power_of_two(10) == 1024; bc.close()"
    run("-c", code, folder=tmp_path / "modules")


@pytest.mark.parametrize("page", PAGES)
def test_files_are_python(page: str) -> None:
    for name, text in files(page).items():
        compile(text, name, "exec")


def bare(source: str) -> str:
    """Return source as the manual shows it, without docstrings and annotations."""
    without = re.sub(r'^ *""".*?"""\n', "", source, flags=re.DOTALL | re.MULTILINE)
    return without.replace(" -> int", "")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_quoted(page: str) -> None:
    paths = [ROOT / "gc_warm" / "functions.py", *(ROOT / "gc_warm" / "warmables").glob("*.py")]
    sources = [bare(path.read_text()) for path in paths]
    for line, text in blocks(page):
        is_quoted = any(text.strip() in source for source in sources)
        assert ">>>" in text or FILE.search(line) or is_quoted, text


@pytest.mark.parametrize("page", PAGES)
def test_number_of_blocks(page: str) -> None:
    assert len(list(blocks(page))) == PAGES[page].count("```python\n")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"[a-z]+:", target):
            continue

        path, _, anchor = target.partition("#")
        file = (here / path).resolve() if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_index_names_every_page() -> None:
    pages = {page for page in PAGES if page.endswith("README.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)\)", PAGES["README.md"]))


def test_files_break_no_rule_of_our_own(tmp_path: Path) -> None:
    write_files("README.md", tmp_path)
    for module in sorted((tmp_path / "modules").glob("*.py")):
        assert function_rules.examine(str(module)) == []

    functions = str(tmp_path / "modules" / "my_functions.py")
    assert function_rules.examine(functions, "AllCodeStrategies") == []


def test_table_of_rules_is_that_of_the_linter() -> None:
    page = PAGES["gc_warm/check/README.md"]
    assert rules_page.rewritten(page) == page, "python -m tests.rules_page writes it anew"
    without = re.sub(r"^\| GCW016 .*\n", "", page, flags=re.MULTILINE)
    assert rules_page.rewritten(without) == page
