"""The tables of settings on the pages of docs/reference/, and the page of the sections."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tools.sources import (
    Found,
    Setting,
    bare,
    defined,
    first_line,
    is_positional,
    key_of,
    section_of,
    settings,
)

from tether.cli import COMMANDS
from tether.config import STAGES

BY_HAND = tomllib.loads((Path(__file__).parent / "reference.toml").read_text(encoding="utf-8"))
PLAIN_TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "Path": "path",
    "dict": "table",
}


def type_text(setting: Setting) -> str:
    """A setting's type, in words."""
    if section := section_of(setting):
        link = f"[{section_name(section)}]({settings_link(section)})"
        return f"list of {link}" if "tuple" in ast.unparse(setting.type) else link
    return words(bare(setting))


def words(node: ast.expr) -> str:
    """A type in words."""
    if isinstance(node, ast.Name):
        return PLAIN_TYPES.get(node.id, node.id)
    assert isinstance(node, ast.Subscript)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    match ast.unparse(node.value):
        case "Literal":
            return ", ".join(f"`{quoted(part)}`" for part in parts)
        case "dict":
            return "table"
        case _ if ast.unparse(parts[-1]) == "...":
            if isinstance(parts[0], ast.Name) and parts[0].id in PLAIN_TYPES:
                return {"str": "list of texts", "int": "list of whole numbers"}.get(
                    parts[0].id, "list of numbers"
                )
            return f"list of ({words(parts[0])})"
        case _:
            return ", ".join(words(part) for part in parts)


def quoted(node: ast.expr) -> str:
    """An expression as TOML would have it, with double quotes."""
    text = ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return '"' + node.value.replace('"', '\\"') + '"'
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return str(node.value).lower()
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) >= 10_000:
        return f"{node.value:_}"
    if isinstance(node, ast.Tuple):
        return "[" + ", ".join(quoted(one) for one in node.elts) + "]"
    return {"-math.inf": "-inf", "math.inf": "inf"}.get(text, text)


def default_text(setting: Setting) -> str:
    """A setting's default: the value, what differs in a section, or that it is required."""
    node = setting.default
    if node is None:
        return "required"
    if isinstance(node, ast.Constant) and node.value is None:
        return "not set"
    if isinstance(node, ast.Call):
        node = next((k.value for k in node.keywords if k.arg == "default_factory"), node)
        if isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call):
            changes = (f"`{k.arg} = {quoted(k.value)}`" for k in node.body.keywords)
            return ", ".join(changes)
        return "`{}`" if isinstance(node, ast.Subscript) else "as there"
    if isinstance(node, ast.Name):
        return BY_HAND["defaults"].get(node.id, f"`{node.id}`")
    return f"`{quoted(node)}`"


def table(rows: Iterable[Setting], flags: bool = False) -> str:
    """The table of some settings; with `flags` as they stand on the command line."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for one in rows:
        name = f"`{flag(one) if flags else one.name}`"
        cells = (name, type_text(one), default_text(one), one.text.strip() or "**not documented**")
        lines.append(table_row(*cells))
    return "\n".join(lines)


def table_row(*cells: str) -> str:
    """One row of a table; a | inside a cell does not end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def flag(setting: Setting) -> str:
    """How an argument is written on the command line."""
    if is_positional(setting):
        found = re.search(r"metavar='([^']+)'", ast.unparse(setting.type))
        known = {"ProjectFile": "PROJECT.db", "Name": "NAME"}.get(ast.unparse(setting.type))
        return known or (found.group(1) if found else setting.name.upper())
    return "--" + setting.name.replace("_", "-")


# --- sections of settings -------------------------------------------------------------------------


@functools.cache
def sections() -> dict[str, list[str]]:
    """Classes of settings that are parts of others: "module:class" → the names they have there."""
    found: dict[str, list[str]] = {}

    def walk(module: str, name: str, path: str) -> None:
        for one in settings(module, name):
            section = section_of(one)
            if section is None or not isinstance(section.node, ast.ClassDef):
                continue
            here = f"{path}{one.name}"
            places = found.setdefault(f"{section.module}:{section.node.name}", [])
            if here not in places:
                places.append(here)
                walk(section.module, section.node.name, f"{here}.")

    for cls in STAGES.values():
        walk(cls.__module__, cls.__name__, "")
    walk("tether.footprint.paper", "SizingConfig", "plan ")
    return found


def section_name(section: Found) -> str:
    """What a section is called: where it first stands, or by hand."""
    key = key_of(section)
    return BY_HAND["sections"].get(key.split(":")[1]) or sections().get(key, [key])[0]


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def settings_link(section: Found) -> str:
    """Where a section is documented, from another page of the reference."""
    return f"settings.md#{anchor(section_name(section))}"


def settings_page() -> str:
    """Every section that settings share."""
    parts = [BY_HAND["pages"]["settings"].strip()]
    found = {key: Found(*_at(key)) for key in sections()}
    order = {name: number for number, name in enumerate(BY_HAND["sections"].values())}
    names = {key: section_name(section) for key, section in found.items()}
    for key in sorted(found, key=lambda key: (order.get(names[key], len(order)), names[key])):
        section = found[key]
        node = section.node
        assert isinstance(node, ast.ClassDef)
        parts.append(f"## {names[key]}\n\n{first_line(node)}")
        places = [f"`{place}`" for place in sections()[key]]
        where = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        used = [kind for kind in STAGES if key in _sections_of(kind)]
        where += f" of {_stage_list(used)}" if used else ""
        parts.append(f"{where}. In Python `{node.name}`.")
        parts.append(table(settings(section.module, node.name)))
    return "\n\n".join(parts)


def _at(key: str) -> Found:
    module, name = key.split(":")
    return defined(module, name)


@functools.cache
def _sections_of(kind: str) -> frozenset[str]:
    """Keys of all sections that a stage has, at any depth."""
    left, found = [(STAGES[kind].__module__, STAGES[kind].__name__)], set[str]()
    while left:
        for one in settings(*left.pop()):
            section = section_of(one)
            if section and key_of(section) not in found:
                found.add(key_of(section))
                left.append((section.module, key_of(section).split(":")[1]))
    return frozenset(found)


def _stage_list(kinds: list[str]) -> str:
    if len(kinds) == len(STAGES):
        return "every stage"
    names = (heading_of_stage(kind).removeprefix("tether ") for kind in kinds)
    return commands_in_words([*names])


def heading_of_stage(kind: str) -> str:
    """The heading under which a stage is documented."""
    if kind in COMMANDS:
        return f"tether {kind}"
    return "tether feedback simulate" if kind == "simulate" else f"Stage {kind}"


def commands_in_words(names: list[str]) -> str:
    """Commands, families of them by their names."""
    left, said = list(dict.fromkeys(names)), list[str]()
    for words_, group in BY_HAND["families"].items():
        if {*group} <= {*left}:
            said.append(words_)
            left = [name for name in left if name not in group]
    return ", ".join([*said, *left])
