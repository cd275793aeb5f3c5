"""The options of a config: read from a file or a command line, and held against its schema.

The endpoint checks them, too, and then answers with the first that does not fit, in the words of
the schema. Here all of them are named, with the place they come from.
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from gc_warm.configs.text import read_text
from gc_warm.exceptions import ConfigError

Options = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read options from a YAML or JSON file.

    Args:
        path: The file.

    Returns:
        The options, and the place of each: ``{"walltime": "perlmutter.yaml:3"}``.

    Raises:
        ConfigError: The file is no mapping of names, or names an option twice.
        OSError: The file cannot be read.
    """
    text = read_text(path)
    try:
        options = yaml.safe_load(text) or {}
        document = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # a control character, a date that is none, too deep a nest
        raise ConfigError(f"{path} cannot be read: {error}") from None

    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ConfigError(f"{path} has to hold options, one to a line, such as `keep_warm: 30`")

    origin: dict[str, str] = {}
    for key, _ in document.value if isinstance(document, yaml.MappingNode) else ():
        place = f"{path}:{key.start_mark.line + 1}"
        if key.value in origin:
            raise ConfigError(f"{place}: {key.value} is given twice")
        origin[key.value] = place
    return options, origin


def parse(assignment: str, schema: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of an option from a command line.

    The value is the text as it stands where the schema wants text, and else is read as YAML.

    Args:
        assignment: The option, as ``name=value``.
        schema: The schema of the config.

    Raises:
        ConfigError: The assignment has no ``=``, or its value is no YAML.
    """
    name, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigError(f"-o {assignment}: write -o name=value")
    if schema.get("properties", {}).get(name, {}).get("type") == "string":
        return name, value

    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(
            f"-o {assignment}: the value cannot be read; a list is written [a, b]"
        ) from None


def misfits(options: Options, schema: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """Yield each option that does not fit the schema, and why.

    Args:
        options: The options of a task, by name.
        schema: The schema; one that is empty takes any options.
        path: The file of the schema, for messages.

    Raises:
        ConfigError: The schema itself is wrong.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if schema else []
    known = schema.get("properties", {})
    for error in _errors(options, schema, path):
        if error.validator == "additionalProperties" and not error.path:
            for name in options:
                if name not in known:
                    yield name, _unknown(name, list(known))
            continue

        name = str(error.path[0]) if error.path else ""
        words = [
            f"{name}:" if name else "",
            _misfit(error),
            known.get(name, {}).get("description", ""),
            f"({path}:{_line_of_option(name, lines)})",
        ]
        yield name, " ".join(word for word in words if word)


def schema_of(path: Path) -> dict[str, Any]:
    """Return the schema in a file; an empty one if there is no such file.

    Args:
        path: The file.

    Raises:
        ConfigError: The file does not hold a JSON object.
    """
    try:
        schema = json.loads(read_text(path)) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None

    if not isinstance(schema, dict):
        raise ConfigError(f"{path} has to hold a JSON object, not {schema!r}")
    return schema


def _errors(
    options: Options, schema: Mapping[str, Any], path: Path
) -> list[jsonschema.ValidationError]:
    """Return all errors that the schema finds in options, by the names of the options."""
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = ".".join(str(part) for part in error.path)
        raise ConfigError(f"{path}: {place}: {error.message}") from None

    return sorted(
        kind(schema).iter_errors(dict(options)),
        key=lambda error: [str(part) for part in error.path],
    )


def _line_of_option(name: str, lines: Sequence[str]) -> int:
    """Return the line of a schema that defines an option; 1 if none does."""
    return next((number for number, line in enumerate(lines, 1) if f'"{name}":' in line), 1)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    if near:
        return f"there is no option {name!r}; did you mean {near[0]!r}?"
    return f"there is no option {name!r}; there are {', '.join(known)}"


def _misfit(error: jsonschema.ValidationError) -> str:
    """Return why an option does not fit, in plainer words than the schema's where there are any."""
    value = error.instance
    wanted = error.validator_value
    if error.validator == "pattern":
        return _odd_text(value)
    if error.validator == "maxLength":
        return f"it has {len(value):,} characters, and may have {wanted:,}."
    if error.validator == "not":
        return f"give only one of {' and '.join(wanted.get('required', ()))}."

    wants_text = error.validator == "type" and wanted == "string"
    if wants_text and isinstance(value, (int, float)):
        return f"{value!r} is not text: write it in quotes."
    return f"{error.message}."


def _odd_text(value: str) -> str:
    """Return why text is of no use, with the first character in it that cannot be printed."""
    for character in value:
        if not character.isprintable() and character not in "\n\t":
            return (
                f"{reprlib.repr(value)} cannot be used, since it has the character {character!r}."
            )
    return f"{reprlib.repr(value)} cannot be used."
