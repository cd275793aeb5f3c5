"""The options of a config: read from a file or a command line, and held against its schema.

The endpoint checks them, too, and then answers with the first that does not fit, in the words of
the schema. Here all of them are named, with the place they come from.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from gc_warm.configs.text import Place, place_of, read_text
from gc_warm.exceptions import ConfigError

Options = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Place]]:
    """Read options from a YAML or JSON file.

    Args:
        path: The file.

    Returns:
        The options, and the place of each.

    Raises:
        ConfigError: The file is no mapping of names, or names an option twice.
        OSError: The file cannot be read.
    """
    file = os.fspath(path)
    text = read_text(path)
    try:
        options = yaml.safe_load(text) or {}
        document = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        raise place.error(str(error.problem)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # a control character, a date that is none, too deep a nest
        raise ConfigError(f"{path} cannot be read: {error}", file) from None

    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ConfigError(
            f"{path} has to hold options, one to a line, such as `keep_warm: 30`", file
        )

    origin: dict[str, Place] = {}
    for key, _ in document.value if isinstance(document, yaml.MappingNode) else ():
        place = place_of(document, key, path)
        if key.value in origin:
            raise place.error(f"{key.value} is given twice")
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
    if described(schema).get(name, {}).get("type") == "string":
        return name, value

    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(
            f"-o {assignment}: the value cannot be read; a list is written [a, b]", option=name
        ) from None


def gather(
    schema: Mapping[str, Any], assignments: Sequence[str], file: str | None
) -> tuple[dict[str, Any], dict[str, Place | str]]:
    """Return all options of a command line, and the place of each.

    Args:
        schema: The schema of the config.
        assignments: Options as ``name=value``, which have the last word.
        file: A YAML or JSON file of more; None if there is none.

    Raises:
        ConfigError: The file, or an assignment, cannot be read.
        OSError: The file cannot be read.
    """
    given, places = read(file) if file else ({}, {})
    origin: dict[str, Place | str] = {**places}
    for assignment in assignments:
        name, value = parse(assignment, schema)
        given[name] = value
        origin[name] = f"-o {name}"
    return given, origin


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
    known = described(schema)
    no_numbers: set[tuple[str | int, ...]] = set()
    for error in _errors(options, schema, path):
        if error.validator == "additionalProperties" and not error.path:
            for name in options:
                if name not in known:
                    yield name, _unknown(name, list(known))
            continue

        place = tuple(error.path)
        if place in no_numbers:  # then it need not be told that it is too large, too
            continue
        if _wants_number(error):
            no_numbers.add(place)

        name = str(place[0]) if place else ""
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
        raise Place(os.fspath(path), error.lineno, error.colno).error(error.msg) from None

    if not isinstance(schema, dict):
        raise ConfigError(f"{path} has to hold a JSON object, not {schema!r}", os.fspath(path))
    return schema


def described(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a schema says of each option that it names; nothing of one that it just lets in.

    Args:
        schema: The schema.
    """
    properties = schema.get("properties")
    named = properties.items() if isinstance(properties, dict) else ()
    return {name: kind if isinstance(kind, dict) else {} for name, kind in named}


def _errors(
    options: Options, schema: Mapping[str, Any], path: Path
) -> list[jsonschema.ValidationError]:
    """Return all errors that the schema finds in options, by the names of the options."""
    kind: Any = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = ".".join(str(part) for part in error.path)
        raise ConfigError(f"{path}: {place}: {error.message}", os.fspath(path)) from None

    try:
        found = list(_without_nan(kind)(schema).iter_errors(dict(options)))
    except Exception as error:  # a reference that leads nowhere, of another class in each version
        raise ConfigError(f"{path}: {error}", os.fspath(path)) from None
    return sorted(
        found, key=lambda error: ([str(part) for part in error.path], not _wants_number(error))
    )


@functools.cache
def _without_nan(kind: Any) -> Any:
    """Return a kind of validator for which NaN, which is in every range, is no number."""

    def is_number(checker: Any, value: Any) -> bool:
        is_nan = value != value
        return not is_nan and bool(kind.TYPE_CHECKER.is_type(value, "number"))

    checker = kind.TYPE_CHECKER.redefine("number", is_number)
    return jsonschema.validators.extend(kind, type_checker=checker)


def _wants_number(error: jsonschema.ValidationError) -> bool:
    """Return whether the schema wants a number where there is none."""
    return error.validator == "type" and error.validator_value in ("number", "integer")


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
    if error.validator == "type":
        return _of_another_type(error)
    if error.validator == "pattern":
        return _odd_text(value)

    if error.validator == "maxLength":
        why = f"it has {len(value):,} characters, and may have {wanted:,}"
    elif error.validator == "minimum":
        why = f"{_as_yaml(value)} is less than the minimum of {wanted}"
    elif error.validator == "maximum":
        why = f"{_as_yaml(value)} is greater than the maximum of {wanted}"
    elif error.validator == "not":
        why = f"give only one of {' and '.join(wanted.get('required', ()))}"
    else:
        why = error.message
    return f"{why}."


def _of_another_type(error: jsonschema.ValidationError) -> str:
    """Return why a value is not of the type that the schema wants."""
    if _wants_number(error):
        return _no_number(error)

    is_number = isinstance(error.instance, (int, float))
    if error.validator_value == "string" and is_number:
        return f"{error.instance!r} is not text: write it in quotes."
    return f"{error.message}."


def _no_number(error: jsonschema.ValidationError) -> str:
    """Return why a value is not the number that the schema wants, and what to write instead."""
    value = error.instance
    is_whole = error.validator_value == "integer"
    kind = "a whole number" if is_whole else "a number"

    schema: Any = error.schema
    limits = [
        f"{word} {schema[name]}"
        for name, word in (("minimum", "from"), ("maximum", "to"))
        if name in schema
    ]
    remedy = " ".join(["write one", *limits]) if limits else "write one"
    if isinstance(value, str):
        remedy = f"{remedy}, in digits and without quotes"
    elif value is None:
        remedy = f"{remedy}, or leave the option out"
    return f"{_as_yaml(value)} is not {kind}: {remedy}."


def _as_yaml(value: Any) -> str:
    """Return a value, shortened, as it is written in YAML where Python writes it otherwise."""
    if isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf"
        return f"-{text}" if value < 0 else text
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)


def _odd_text(value: str) -> str:
    """Return why text is of no use, with the first character in it that cannot be printed."""
    for character in value:
        if not character.isprintable() and character not in "\n\t":
            return (
                f"{reprlib.repr(value)} cannot be used, since it has the character {character!r}."
            )
    return f"{reprlib.repr(value)} cannot be used."
