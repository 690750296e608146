"""Settings in and out of TOML; unknown keys are refused with the nearest name."""

import dataclasses
import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from tether.errors import ConfigError, DataError

C = TypeVar("C")


def from_table(cls: type[C], table: dict[str, Any], where: str = "") -> C:
    """Build a settings dataclass from a TOML table; `where` is the dotted prefix for messages.

    Raises:
        ConfigError: Unknown key (with the nearest name), missing key, or wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, list(fields), n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ConfigError(f"{where}{key}={table[key]!r} is not a setting; {mend}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ConfigError(f"{where}{name} is missing; {cls.__name__} needs it")
    return cls(**{key: convert(hints[key], value, where + key) for key, value in table.items()})


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError that names where it stands."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        inner = typing.cast(dict[str, Any], value)
        return from_table(typing.cast(type[Any], hint), inner, where + ".")
    if origin is tuple and isinstance(value, list | tuple):
        items = typing.cast(list[Any], value)
        fixed = not (len(arguments) == 2 and arguments[1] is Ellipsis)
        if fixed and len(items) != len(arguments):
            raise ConfigError(f"{where}={value!r} must have {len(arguments)} entries")
        kinds = arguments if fixed else [arguments[0]] * len(items)
        return tuple(
            convert(k, v, f"{where}[{i}]")
            for i, (k, v) in enumerate(zip(kinds, items, strict=True))
        )
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [a for a in arguments if a], n=1)
            mend = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(map(repr, arguments))
            raise ConfigError(f"{where}={value!r} must be one of {known}{mend}")
        return value
    if origin is dict and isinstance(value, dict):
        return typing.cast(dict[str, Any], value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(hint, type) and isinstance(value, hint)
    if plain and not (hint is int and isinstance(value, bool)):  # in Python, True is an int
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}={value!r} must be of type {name}, not {type(value).__name__}")


def to_table(config: object) -> dict[str, Any]:
    """A settings dataclass as plain values that TOML can hold."""
    return typing.cast(dict[str, Any], _plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in typing.cast(list[Any], value)]
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        DataError: No such file, or not TOML (with the place).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from None


def toml_text(table: dict[str, Any]) -> str:
    """A table as TOML."""
    return tomli_w.dumps(table)


def set_dotted(table: dict[str, Any], dotted: str, text: str) -> None:
    """Set `a.b.c` in nested tables; the text is read as a TOML value, else taken as a string.

    In a list of tables a number picks one, from 0: `policies.0.model`.

    Raises:
        ConfigError: What should hold the setting is a value, or the list is shorter.
    """
    *parents, last = dotted.replace("-", "_").split(".")
    inner: Any = table
    for name in parents:
        inner = _enter(inner, name, dotted)
    if not isinstance(inner, dict):
        raise ConfigError(
            f"--{dotted}: {parents[-1]!r} holds several; write {parents[-1]}.0.{last}"
        )
    table = typing.cast(dict[str, Any], inner)
    try:
        table[last] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        table[last] = text


def _enter(place: dict[str, Any] | list[Any], name: str, dotted: str) -> dict[str, Any] | list[Any]:
    """The table or list called `name` in a table, or the one of that number in a list."""
    if isinstance(place, dict):
        inner = place.setdefault(name, {})
    elif name.isdecimal() and int(name) < len(place):
        inner = place[int(name)]
    else:
        raise ConfigError(f"--{dotted}: {name!r} must be a number from 0 to {len(place) - 1}")
    if not isinstance(inner, dict | list):
        raise ConfigError(f"--{dotted}: {name!r} is a value, not a table")
    return typing.cast(dict[str, Any] | list[Any], inner)
