"""Options as defaults of a template: what they render is what the options of a task would."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.endpoint.config.utils import _sanitize_user_json
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from gc_warm.configs import rendering
from gc_warm.configs.defaults import with_defaults
from gc_warm.configs.templates import defaults_of
from gc_warm.exceptions import ConfigError
from tests.configs.test_configs import (
    FOLDERS,
    SAME_EVERY_TIME,
    SCHEMAS,
    TEMPLATES,
    Values,
    all_options,
    make_folder,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # a file of UTF-8 cannot have been read with the others
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.text("{}%#-\"\\'\n |"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab{}", max_size=3), inner),
    max_leaves=5,
)


def rendered(folder: Path, options: Values) -> str:
    """Return what a config renders, or why it refuses the options."""
    random.seed(0)  # by which a port is chosen
    try:
        return rendering.render(folder, options)
    except ConfigError as error:
        return str(error).partition(": ")[2]


def with_own(name: str, options: Values, place: Path) -> Path:
    """Return the folder of a config that has these options as its defaults."""
    template = with_defaults(TEMPLATES[name], options, SCHEMAS[name])
    return make_folder(place / name, template, SCHEMAS[name])


@pytest.mark.parametrize("how", ["lowest", "highest", "every"])
@pytest.mark.parametrize("name", FOLDERS)
def test_defaults_render_what_options_do(name: str, how: str, tmp_path: Path) -> None:
    @settings(SAME_EVERY_TIME, max_examples=1)
    @given(all_options(name, how))
    def check(options: Values) -> None:
        assert rendered(with_own(name, options, tmp_path), {}) == rendered(FOLDERS[name], options)

    check()


@pytest.mark.parametrize("name", FOLDERS)
def test_options_of_a_task_win(name: str, tmp_path: Path) -> None:
    either = SCHEMAS[name].get("not", {}).get("required", [])

    @settings(SAME_EVERY_TIME, max_examples=2)
    @given(all_options(name, "some"), all_options(name, "some"))
    def check(options: Values, of_a_task: Values) -> None:
        folder = with_own(name, options, tmp_path)
        gone = either if set(either) & set(of_a_task) else []
        left = {option: value for option, value in options.items() if option not in gone}
        assert rendered(folder, of_a_task) == rendered(FOLDERS[name], left | of_a_task)

    check()


def test_default_gives_way_to_its_alternative(tmp_path: Path) -> None:
    folder = with_own("slurm", {"interface": "hsn0"}, tmp_path)
    address = {"address": "10.0.0.1"}
    assert rendered(folder, address) == rendered(FOLDERS["slurm"], address)
    with pytest.raises(ConfigError, match="give only one of interface and address"):
        rendering.render(folder, {**address, "interface": "hsn1"})


@settings(SAME_EVERY_TIME, max_examples=60)
@given(JSON)
@example('say "it\'s" \\ {{ {% {# ${#x} %} }} #} -%}\n\tcaf\xe9 \U0001f600 \u2028 \\x7b \\n')
@example(["\r\n", {"{{": "}}"}, -1, 1e300, 5e-324])
def test_any_value_arrives_as_from_a_task(value: Any) -> None:
    template = "{{ [x] | tojson }}"
    by_default = with_defaults(template, {"x": value}, {})
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    of_a_task = environment.from_string(template).render(**_sanitize_user_json({"x": value}))
    assert arrived(environment.from_string(by_default).render()) == arrived(of_a_task)
    assert len(list(defaults_of(by_default))) == 1
    assert by_default.isascii(), "the endpoint's locale may have any encoding"


def arrived(text: str) -> Any:
    """Return what is read from what was rendered, in which each text is JSON once more."""
    return with_texts_read(json.loads(text))


def with_texts_read(value: Any) -> Any:
    if isinstance(value, list):
        return [with_texts_read(item) for item in value]
    if isinstance(value, dict):
        return {key: with_texts_read(item) for key, item in value.items()}
    return json.loads(value) if isinstance(value, str) else value


def test_default_is_held_against_the_schema_as_it_was_given(tmp_path: Path) -> None:
    schema = {
        "properties": {
            "account": {"type": "string", "pattern": "^[a-z]+$"},
            "folders": {"type": "array", "items": {"type": "string", "pattern": "^/"}},
        }
    }
    given = {"account": "m1", "folders": ["/a", "b"]}
    folder = make_folder(tmp_path / "mine", with_defaults("a: 1\n", given, schema), schema)
    with pytest.raises(ConfigError) as refused:
        rendering.render(folder, {})
    lines = str(refused.value).splitlines()
    assert [line.partition("default of ")[2][:12] for line in lines] == [
        "account: 'm1",
        "folders: 'b'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a-b", 1, "'a-b': no template can use an option of this name"),
        ("a", float("inf"), "a: inf cannot be sent with a task: write it in quotes"),
        ("a", [{1: 2}], "a: {1: 2} cannot be sent with a task: write it in quotes"),
    ],
)
def test_option_that_cannot_be_a_default(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_defaults("", {name: value}, {})
    assert str(refused.value) == message


def test_no_options_leave_a_template_as_it_is() -> None:
    assert with_defaults("  a: 1\n", {}, {}) == "  a: 1\n"
