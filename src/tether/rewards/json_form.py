"""Format by JSON: a completion is a JSON value that fits a schema.

The schema is a small part of JSON Schema, as a TOML table. Its words:

    type                  "object", "array", "string", "number", "integer", "boolean" or "null"
    enum, const           the values that are allowed
    properties, required  of objects; additional = false allows no others
    items                 the schema of an array's items
    minimum, maximum      of numbers
    shortest, longest     of strings (characters), arrays (items)
"""

import difflib
import json
import math
from collections.abc import Callable
from typing import Any, cast

from tether.errors import ConfigError
from tether.records import Text
from tether.sections import share

Schema = dict[str, Any]

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
"""What is of each type."""


def json_form(
    prompts: list[Text],
    completions: list[str],
    *,
    schema: dict[str, Any],
    partial: float = 0.0,
) -> list[float]:
    """1 where a completion is JSON that fits the schema, `partial` for other JSON, else 0.

    The value may stand alone or in a fenced block, the first of the text.

    Args:
        prompts: Not read.
        completions: Texts that should be JSON.
        schema: See the module; {} = any JSON.
        partial: Score of JSON that does not fit, in [0, 1].

    Raises:
        ConfigError: The schema has an unknown word or type, or `partial` is out of range.
    """
    share("partial", partial)
    check_schema(schema)

    def score(text: str) -> float:
        try:
            value = json.loads(unfenced(text), parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):  # too deep, or a number of thousands of digits
            return 0.0
        return 1.0 if fits(value, schema) else partial

    return [score(text) for text in completions]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large")
    return value


def unfenced(text: str) -> str:
    """What the first fenced block of a text holds, or the whole text."""
    _, fence, rest = text.partition("```")
    inside, end, _ = rest.partition("```")
    if not fence or not end:
        return text
    first, _, others = inside.partition("\n")
    return others if first.strip().isalnum() or not first.strip() else inside


def fits(value: Any, schema: Schema) -> bool:
    """Whether a JSON value fits a schema."""
    kind = schema.get("type")
    if kind is not None and not TYPES[kind](value):
        return False
    if "enum" in schema and not any(_equal(value, each) for each in schema["enum"]):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    if TYPES["number"](value):
        return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    if isinstance(value, str | list) and not _size_fits(value, schema):
        return False
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    return _object_fits(value, schema) if isinstance(value, dict) else True


def _equal(value: Any, wanted: Any) -> bool:
    """Equal as JSON is: true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _size_fits(value: str | list[Any], schema: Schema) -> bool:
    return schema.get("shortest", 0) <= len(value) <= schema.get("longest", math.inf)


def _object_fits(value: dict[str, Any], schema: Schema) -> bool:
    known: dict[str, Schema] = schema.get("properties", {})
    if not all(name in value for name in schema.get("required", ())):
        return False
    if not schema.get("additional", True) and not value.keys() <= known.keys():
        return False
    return all(fits(value[name], each) for name, each in known.items() if name in value)


def check_schema(schema: Schema, where: str = "schema") -> None:
    """Refuse a schema with a word or type that is not known, or a value of the wrong kind.

    Raises:
        ConfigError: With the place, and the nearest word.
    """
    for word, value in schema.items():
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(WORDS)}"
            raise ConfigError(f"{where}.{word}={value!r} is no word of a schema; {mend}")
        if not WORDS[word](value):
            raise ConfigError(f"{where}.{word}={value!r} cannot be; {where}.{word} {RULES[word]}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(cast(Schema, inner), f"{where}.properties.{name}")
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items")


def _is_table_of_tables(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


WORDS: dict[str, Callable[[Any], bool]] = {
    "type": lambda value: isinstance(value, str) and value in TYPES,
    "enum": lambda value: isinstance(value, list) and len(value) > 0,
    "const": lambda value: True,
    "properties": _is_table_of_tables,
    "required": _is_names,
    "additional": TYPES["boolean"],
    "items": TYPES["object"],
    "minimum": TYPES["number"],
    "maximum": TYPES["number"],
    "shortest": _is_count,
    "longest": _is_count,
}
"""The words of a schema, and what may stand behind them."""

RULES = {
    "type": f"must be one of {', '.join(TYPES)}",
    "enum": "must be a list of values",
    "properties": "must be a table with a schema for each name",
    "required": "must be a list of names",
    "additional": "must be true or false",
    "items": "must be a schema",
    "minimum": "must be a number",
    "maximum": "must be a number",
    "shortest": "must be a whole number from 0",
    "longest": "must be a whole number from 0",
}
