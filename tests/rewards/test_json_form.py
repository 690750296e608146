import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import ConfigError
from tether.rewards.json_form import json_form, unfenced

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "shortest": 2, "longest": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", None, 1]},
        "tags": {"type": "array", "items": {"type": "string"}, "longest": 2},
        "ok": {"const": True},
    },
    "required": ["name"],
    "additional": False,
}


def score(text, schema=SCHEMA, **settings):
    (found,) = json_form([""], [text], schema=schema, **settings)
    return found


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "Ann"}', True),
        (' {"name": "Ann", "age": 7, "kind": null, "tags": ["a", "b"], "ok": true}\n', True),
        ('{"name": "Ann", "age": 7.0}', True),  # 7.0 is a whole number, as JSON Schema has it
        ('{"name": "Ann", "age": 7.5}', False),
        ('{"name": "Ann", "age": true}', False),
        ('{"name": "Ann", "age": -1}', False),
        ('{"name": "Ann", "age": 121}', False),
        ('{"name": "A"}', False),
        ('{"name": "Annabel"}', False),
        ('{"name": "Ann", "kind": "cow"}', False),
        ('{"name": "Ann", "kind": true}', False),  # true is not 1
        ('{"name": "Ann", "tags": ["a", 1]}', False),
        ('{"name": "Ann", "tags": ["a", "b", "c"]}', False),
        ('{"name": "Ann", "ok": 1}', False),
        ('{"name": "Ann", "more": 1}', False),
        ('{"age": 7}', False),
        ('["name"]', False),
    ],
)
def test_a_schema(text, fits):
    assert score(text) == float(fits)
    assert score(text, partial=0.25) == (1.0 if fits else 0.25)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'name': 1}", "NaN", "[Infinity]", "1e999", "[" * 5000, "9" * 5000, "true false"],
)
def test_what_is_no_json(text):
    assert score(text, schema={}, partial=0.5) == 0.0


def test_a_value_in_a_fenced_block():
    assert unfenced('Here:\n```json\n{"a": 1}\n```\nBye ```x```').strip() == '{"a": 1}'
    assert unfenced("```\n[1]\n```") == "[1]\n"
    assert unfenced("```[1]```") == "[1]"
    assert unfenced('```{"a": 1,\n"b": 2}```') == '{"a": 1,\n"b": 2}'
    assert unfenced("``` open") == "``` open"
    assert score('```json\n{"name": "Ann"}\n```') == 1.0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"typ": "object"}, r"schema.typ='object' is no word of a schema; did you mean 'type'\?"),
        (
            {"type": "text"},
            "schema.type='text' cannot be; schema.type must be one of object, array",
        ),
        ({"items": {"type": "x"}}, "schema.items.type='x'"),
        ({"properties": {"a": {"minimum": "1"}}}, "schema.properties.a.minimum='1'"),
        ({"properties": []}, "schema.properties=.* must be a table"),
        ({"enum": []}, "schema.enum"),
        ({"required": "name"}, "schema.required"),
        ({"additional": 1}, "schema.additional"),
        ({"longest": -1}, "schema.longest"),
        ({"zzz": 1}, "known: type, enum, const"),
    ],
)
def test_a_schema_that_cannot_be_is_refused_before_any_text(schema, message):
    with pytest.raises(ConfigError, match=message):
        json_form([], [], schema=schema)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
@settings(max_examples=40, deadline=None)
def test_any_value_is_json_and_equal_to_itself(value):
    finite = "Infinity" not in json.dumps(value)
    assert score(json.dumps(value), schema={}) == float(finite)
    if finite:
        assert score(json.dumps(value), schema={"const": value}) == 1.0
