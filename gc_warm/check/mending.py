"""Mends of findings in the file that people edit, where one value on one literal line is enough.

A mend is tried in memory first, and all rules are run again: only if its finding is gone, and there
is no new one, is its line written. Comments, quotes, indentation, line ends and permissions stay.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gc_warm.check.config_subjects import WORKERS
from gc_warm.check.config_targets import Config
from gc_warm.check.inspected import Target
from gc_warm.check.rules import Finding, Fix
from gc_warm.configs import folders, installing
from gc_warm.configs.text import Place, node_at, nodes_of, place_of
from gc_warm.exceptions import ConfigError

_LINE_ENDS = re.compile(r"(\r\n|\r|\n)")
_BRACES = ("{{", "{%", "{#")

Key = tuple[str, str | None]
"""A finding's rule and option, by which it is known again."""


@dataclass(frozen=True)
class Mend:
    """A line that was changed.

    Attributes:
        finding: The finding that is gone.
        file: The file.
        line: The line's number, from 1.
        before: The line as it was.
        after: The line as it is.
    """

    finding: Finding
    file: Path
    line: int
    before: str
    after: str


@dataclass
class Mended:
    """The result of mending a config.

    Attributes:
        mends: The lines that were changed, in order.
        patches: What is to be written for findings with a mend that was not made, and why not.
    """

    mends: list[Mend] = field(default_factory=list)
    patches: dict[Key, str] = field(default_factory=dict)


class _NotMended(Exception):
    """A mend that is not for this module, and the reason."""


class _Source:
    """The text of a file, whose lines can be replaced, and its line ends."""

    def __init__(self, data: bytes) -> None:
        self._parts = _LINE_ENDS.split(data.decode("utf-8"))

    @property
    def lines(self) -> list[str]:
        """The lines, without their ends."""
        return self._parts[::2]

    @property
    def data(self) -> bytes:
        """The content of the file."""
        return "".join(self._parts).encode("utf-8")

    def with_line(self, number: int, line: str) -> _Source:
        """Return the same with another line.

        Args:
            number: The line's number, from 1.
            line: The line.
        """
        changed = _Source(b"")
        changed._parts = list(self._parts)
        changed._parts[2 * (number - 1)] = line
        return changed

    def __str__(self) -> str:
        return "\n".join(self.lines)


def key_of(finding: Finding) -> Key:
    """Return what a finding is known by.

    Args:
        finding: The finding.
    """
    return finding.rule, finding.option


def mend(config: Config) -> Mended:
    """Make the mends of a config's findings that are one value on one literal line.

    Args:
        config: The config.

    Raises:
        ConfigError: The template refuses the options, the file is not UTF-8 text, or it was changed
            meanwhile.
        OSError: A file cannot be read or written.
    """
    target = config.inspect()
    data = config.file.read_bytes()
    source = _Source(data)
    mended = Mended()
    tried: set[Finding] = set()

    while finding := next((each for each in target.findings if _is_new(each, tried)), None):
        tried.add(finding)
        assert finding.fix is not None
        try:
            done = _mend_line(config, source, target, finding)
            changed = source.with_line(done.line, done.after)
            after = _inspect_again(config, changed)
            _refuse_unless_better(target, after, finding)
        except _NotMended as reason:
            mended.patches[key_of(finding)] = _patch(finding.fix, str(reason))
        else:
            mended.mends.append(done)
            source = changed
            target = after

    if mended.mends:
        _replace(config.file, data, source.data)
    return mended


def _is_new(finding: Finding, tried: set[Finding]) -> bool:
    return finding.fix is not None and finding not in tried


def _mend_line(config: Config, source: _Source, target: Target, finding: Finding) -> Mend:
    """Return the line with the value that mends a finding.

    Raises:
        _NotMended: There is no such line.
    """
    fix = finding.fix
    assert fix is not None
    shipped = [folder.resolve() for folder in folders.shipped().values()]
    if config.folder and config.folder.resolve() in shipped:
        raise _NotMended("the file comes with gc_warm: make an endpoint of it, and edit that")

    rendered = target.text or ""
    place, value = _setting(rendered, fix)
    line = dict(enumerate(rendered.split("\n"), 1)).get(place.line, "")
    start = value.start_mark.column
    end = value.end_mark.column
    _refuse_other_forms(line, place, value)

    number = config.source_lines(rendered, str(source))[place.line - 1]
    is_literal = source.lines[number - 1 : number] == [line]
    if not is_literal or any(brace in line for brace in _BRACES):
        raise _NotMended("the template makes that line")

    after = line[:start] + _written(fix.value, value) + line[end:]
    return Mend(finding, config.file, number, line, after)


def _setting(rendered: str, fix: Fix) -> tuple[Place, yaml.Node]:
    """Return the place of a setting's name, and the node of its value."""
    root = nodes_of(rendered)
    names = fix.option.split(".")
    value = node_at(root, names)
    if value is None:
        raise _NotMended("there is no such line yet")

    return place_of(root, names), value


def _refuse_other_forms(line: str, place: Place, value: yaml.Node) -> None:
    """Refuse a setting that is not ``name: value`` on a line of its own."""
    start = value.start_mark
    end = value.end_mark
    is_on_line = start.line == end.line == place.line - 1 and start.column < end.column
    before = line[: start.column]
    # a name after a dash, or in braces, begins elsewhere
    indentation = " " * (place.column - 1)
    is_alone = re.fullmatch(rf"{indentation}[\w\"']+ *: +", before)
    is_last = re.fullmatch(r"\s*|\s+#.*", line[end.column :])
    # an anchor, an alias or a tag would be lost
    is_bare = not line[start.column :].startswith(("&", "*", "!"))
    if not (is_on_line and is_alone and is_last and is_bare):
        raise _NotMended("it is not one value on a line of its own")


def _written(value: str | int | float, former: yaml.Node) -> str:
    """Return a value as YAML, text in the quotes of the former one."""
    if not isinstance(value, str):
        return str(value)

    quote = former.style if isinstance(former, yaml.ScalarNode) else None
    if quote == "'":
        return quote + value.replace("'", "''") + quote
    is_plain = (
        quote is None and re.fullmatch(r"[A-Za-z]\w*", value) and yaml.safe_load(value) == value
    )
    return value if is_plain else json.dumps(value)


def _inspect_again(config: Config, source: _Source) -> Target:
    try:
        return config.inspect(str(source))
    except ConfigError as error:
        raise _NotMended(f"the template refuses it: {error}") from None


def _refuse_unless_better(before: Target, after: Target, finding: Finding) -> None:
    """Refuse a mend that leaves its finding, or makes another.

    Where the rules for workers could not look before, theirs are no new ones.
    """
    former = Counter(map(key_of, before.findings))
    present = Counter(map(key_of, after.findings))
    key = key_of(finding)
    if present[key] >= former[key]:
        raise _NotMended("it is not enough: something else has to change, too")
    if before.is_seen_whole and not after.is_seen_whole:
        raise _NotMended("the endpoint would make nothing of it")

    unseen = () if before.is_seen_whole else WORKERS.rules
    new = sorted({rule for rule, _ in present - former if rule not in unseen})
    if new:
        raise _NotMended(f"it would break {', '.join(new)}")


def _patch(fix: Fix, reason: str) -> str:
    """Return what is to be written, and where, and why somebody else has to."""
    section, _, name = fix.option.rpartition(".")
    where = f"under {section}:" if section else "at the top level:"
    value = fix.value
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z]\w*", value):
        value = json.dumps(value)
    return f"write {where} {name}: {value} ({reason})"


def _replace(file: Path, former: bytes, data: bytes) -> None:
    """Replace a file by renaming, if it is still as it was read, and keep its mode and owner."""
    path = file.resolve()
    with tempfile.TemporaryDirectory(prefix=".gc-warm-", dir=path.parent) as place:
        beside = Path(place, path.name)
        installing.write_beside(beside, data, path)
        owner = path.stat()
        made = beside.stat()
        if (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
            os.chown(beside, owner.st_uid, owner.st_gid)

        with path.open("r+b") as file_now:  # which also refuses what is not to be written
            is_changed = file_now.read() != former
        if is_changed:
            raise ConfigError(
                f"{file} was changed meanwhile, and nothing was written: call this again",
                os.fspath(file),
            )
        os.replace(beside, path)
