"""The README's examples do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gc_warm.check import config_rules, function_rules

README = Path(__file__).parents[1] / "README.md"

# As a user's script or session would: the examples' functions belong to the real __main__, where a
# doctest has a copy of it.
RUN_EXAMPLES = """
import doctest, sys, __main__
text = open(sys.argv[1]).read()
test = doctest.DocTestParser().get_doctest(text, {}, "README", sys.argv[1], 0)
test.globs = vars(__main__)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
runner.run(test, clear_globs=False)
print(runner.summarize(verbose=False))
sys.exit(runner.failures != 0 or runner.tries < 12)
"""


def block(marker: str, number: int = 0) -> str:
    """The code block that follows *marker*, or a later one."""
    return str(
        re.findall(r"```python\n(.*?)```", README.read_text().partition(marker)[2], re.DOTALL)[
            number
        ]
    )


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """What a user has who followed the README."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_model.py").write_text(block("This is `modules/my_model.py`"))
    (tmp_path / "modules" / "my_engine.py").write_text(block("This is `modules/my_engine.py`"))
    (tmp_path / "modules" / "my_program.py").write_text(
        block("module like any other, `modules/my_program.py`")
    )
    (tmp_path / "modules" / "my_functions.py").write_text(block("`modules/my_functions.py` say"))
    (tmp_path / "test_mine.py").write_text(block("`modules/my_functions.py` say", 1))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [["-c", RUN_EXAMPLES, str(README)], ["-m", "pytest", "-q", "test_mine.py"]],
    ids=["examples", "test"],
)
def test_examples(command: list[str], user_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=user_folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.engine
def test_example_of_the_whole_stack(tmp_path: Path) -> None:
    (tmp_path / "test_stack.py").write_text(block("the fixture `local_cloud` is there"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("path", ["functions.py", "warmables/counter.py"])
def test_shown_source_is_the_source(path: str) -> None:
    source = (README.parent / "gc_warm" / path).read_text()
    bare = re.sub(r'^ *""".*?"""\n', "", source, flags=re.DOTALL | re.MULTILINE).replace(
        " -> int", ""
    )
    shown = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if ">>>" not in block
    ]
    assert any(block.strip() in bare for block in shown)


def test_functions_of_the_readme_break_no_rule_of_our_own(user_folder: Path) -> None:
    for module in sorted((user_folder / "modules").glob("*.py")):
        assert function_rules.examine(str(module)) == []
    assert (
        function_rules.examine(
            str(user_folder / "modules" / "my_functions.py"), "AllCodeStrategies"
        )
        == []
    )


def test_table_of_rules_is_that_of_the_linter() -> None:
    rules = sorted(
        [*config_rules.RULES.values(), *function_rules.RULES.values()], key=lambda rule: rule.id
    )
    assert re.findall(r"^\| (GCW\d+) \| (\w+) \| (.*) \|$", README.read_text(), re.MULTILINE) == [
        (rule.id, rule.level, rule.title) for rule in rules
    ]
