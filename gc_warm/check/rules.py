"""The common part of the linter's rules: their findings, explanations and silencing.

A rule is a function. Its docstring is its explanation, and its decorator says what it is called,
how bad a breach is, and how its claim is known: *reproduced* on the endpoint's real engine, by a
test that bears its name, or read in the source that is named.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

Level = Literal["error", "warning"]
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Fix:
    """The mend of a finding, where that is one value.

    Attributes:
        option: The setting, with the names of its sections before it and dots between them.
        value: The value that it is to have.
    """

    option: str
    value: str | int | float


Broken = tuple[str, Level, Any, str, "Fix | None"]
"""A rule that is broken: its id, level, place and text, and the mend if that is one value."""

REPRODUCED = "reproduced on the endpoint's real engine, by this project's tests"


@dataclass(frozen=True)
class Finding:
    """A rule that is broken at one place.

    Attributes:
        rule: The rule's id, such as GCW016.
        level: "error" for what cannot work or can never be warm, "warning" for what is likely to be
            cold, lost or dear.
        file: The template or YAML file, or the Python file.
        line: The line in that file, from 1.
        column: The column in that line, from 1.
        option: The setting, with the names of its sections before it and dots between them, such as
            ``engine.provider.walltime``; None where it is about none.
        text: What is wrong, with the value, and what to write instead.
        fix: The mend, where that is one value; None where it is not.
    """

    rule: str
    level: Level
    file: str
    line: int
    column: int
    option: str | None
    text: str
    fix: Fix | None = None

    @property
    def place(self) -> str:
        """File, line and column, in a form that editors and terminals understand."""
        return f"{self.file}:{self.line}:{self.column}"

    def __str__(self) -> str:
        return f"{self.place}: {self.rule} {self.level}: {self.text}"


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """A rule, with its explanation.

    Attributes:
        id: The name by which the rule is called and silenced.
        level: The level of the rule's findings, unless one of them says otherwise.
        evidence: How the rule's claim is known.
        check: Yields a place, which the subject understands, and the text of each finding, if need
            be with a level of its own, and with a `Fix`.
    """

    id: str
    level: Level
    evidence: str
    check: Callable[[Subject], Iterator[tuple[Any, ...]]]

    @property
    def title(self) -> str:
        """The rule in a line."""
        return self._docstring[0].rstrip(".")

    @property
    def _docstring(self) -> list[str]:
        """The first line of the rule's docstring, and the rest if there is any."""
        text = inspect.getdoc(self.check)
        assert text, f"{self.id} has no explanation"
        return text.split("\n", 1)

    def explanation(self) -> str:
        """Return all there is to say about the rule: title, reasons, evidence and silencing."""
        body = self._docstring[1].strip() if len(self._docstring) > 1 else ""
        parts = [
            f"{self.id} ({self.level}): {self.title}",
            body,
            f"Known how: {self.evidence}.",
            f"To silence it in one place, end that line with: # gc-warm: ignore[{self.id}]",
        ]

        return "\n\n".join(part for part in parts if part)


class RuleSet(Generic[Subject]):
    """The rules for one kind of subject, by id."""

    def __init__(self) -> None:
        self._rules: dict[str, Rule[Subject]] = {}

    def rule(
        self, id: str, level: Level, evidence: str = REPRODUCED
    ) -> Callable[[Check[Subject]], Check[Subject]]:
        """Enter the function below this decorator as a rule.

        Args:
            id: The name by which the rule is called and silenced.
            level: The level of the rule's findings, unless one of them says otherwise.
            evidence: How the rule's claim is known.

        Returns:
            A decorator that returns the function as it is.
        """

        def enter(check: Check[Subject]) -> Check[Subject]:
            assert id not in self._rules, f"{id} is taken"
            self._rules[id] = Rule(id, level, evidence, check)
            return check

        return enter

    @property
    def rules(self) -> Mapping[str, Rule[Subject]]:
        """All rules by id, in the order of harm."""
        return MappingProxyType(self._rules)

    def broken(self, subject: Subject) -> Iterator[Broken]:
        """Hold a subject against all rules.

        Args:
            subject: A config or functions, as the rules of this set understand them.

        Yields:
            Rule, level, place, text and mend of each finding.
        """
        for rule in self._rules.values():
            for place, text, *more in rule.check(subject):
                fix = next((each for each in more if isinstance(each, Fix)), None)
                level = next((each for each in more if not isinstance(each, Fix)), rule.level)
                yield rule.id, level, place, text, fix


Check = Callable[[Subject], Iterator[tuple[Any, ...]]]


def is_silenced(rule: str, line: str) -> bool:
    """Tell whether a comment on a line silences a rule there.

    Such a comment is ``# gc-warm: ignore[GCW016]``, with several ids between commas.

    Args:
        rule: The rule's id.
        line: The text of the line.

    Returns:
        True if the rule is not to be reported on this line.
    """
    comment = re.search(r"#\s*gc-warm:\s*ignore\[([\w\s,]+)\]", line)
    return comment is not None and rule in re.split(r"[\s,]+", comment[1])
