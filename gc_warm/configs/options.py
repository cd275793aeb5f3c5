"""The options of a config: read from a file or a command line, and held against the config's schema.

The endpoint checks them, too, and then answers with the first that does not fit, in the words of
the schema. Here all of them are named, with the place they come from.
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from gc_warm.configs.text import read_text
from gc_warm.exceptions import ConfigError

Options = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options from a YAML or JSON file, and where each is: ``{"walltime": "perlmutter.yaml:3"}``.

    Raises:
        ConfigError: It is not a mapping, or names an option twice.
        OSError: The file cannot be read.
    """
    text = read_text(path)
    try:
        options, document = yaml.safe_load(text) or {}, yaml.compose(text, yaml.SafeLoader)
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
        if key.value in origin:
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: {key.value} is given twice")
        origin[key.value] = f"{path}:{key.start_mark.line + 1}"
    return options, origin


def parse(assignment: str, schema: Mapping[str, Any]) -> tuple[str, Any]:
    """An option from a command line, ``name=value``: text as it stands where the schema wants text, else as YAML.

    Raises:
        ConfigError: It has no ``=``, or its value is no YAML.
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
    """Each option that does not fit the schema in the file *path*, and why."""
    lines = path.read_text(encoding="utf-8").splitlines() if schema else []
    known = schema.get("properties", {})
    for error in _errors(options, schema, path):
        if error.validator == "additionalProperties" and not error.path:
            yield from (
                (name, _unknown(name, list(known))) for name in options if name not in known
            )
            continue
        name = str(error.path[0]) if error.path else ""
        line = next((number for number, line in enumerate(lines, 1) if f'"{name}":' in line), 1)
        words = [
            f"{name}:" if name else "",
            _misfit(error),
            known.get(name, {}).get("description", ""),
            f"({path}:{line})",
        ]
        yield name, " ".join(word for word in words if word)


def _errors(
    options: Options, schema: Mapping[str, Any], path: Path
) -> list[jsonschema.ValidationError]:
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(
            f"{path}: {'.'.join(str(part) for part in error.path)}: {error.message}"
        ) from None
    return sorted(
        kind(schema).iter_errors(dict(options)),
        key=lambda error: [str(part) for part in error.path],
    )


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    return f"there is no option {name!r}" + (
        f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    )


def _misfit(error: jsonschema.ValidationError) -> str:
    value = error.instance
    if error.validator == "pattern":
        odd = next(
            (
                character
                for character in value
                if not character.isprintable() and character not in "\n\t"
            ),
            None,
        )
        return f"{reprlib.repr(value)} cannot be used" + (
            f", since it has the character {odd!r}." if odd else "."
        )
    if error.validator == "maxLength":
        return f"it has {len(value):,} characters, and may have {error.validator_value:,}."
    if (
        error.validator == "type"
        and error.validator_value == "string"
        and isinstance(value, (int, float))
    ):
        return f"{value!r} is not text: write it in quotes."
    if error.validator == "not":
        return f"give only one of {' and '.join(error.validator_value.get('required', ()))}."
    return f"{error.message}."


def schema_of(path: Path) -> dict[str, Any]:
    """The schema in a file; empty if there is none.

    Raises:
        ConfigError: It is not a JSON object.
    """
    try:
        schema = json.loads(read_text(path)) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"{path} has to hold a JSON object, not {schema!r}")
    return schema
