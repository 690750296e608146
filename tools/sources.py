"""Definitions of the package, read from its sources: texts, signatures, settings."""

import ast
import functools
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"


@functools.cache
def tree(module: str) -> ast.Module:
    """The source of a module."""
    place = SRC.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


class Found(NamedTuple):
    """A definition, and the module that it stands in."""

    module: str
    node: ast.stmt


@functools.cache
def find(module: str, name: str) -> Found | None:
    """What a name stands for in a module of ours, wherever it comes from."""
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return Found(module, node)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tether"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(str(node.module), alias.name)
    return None


def defined(module: str, name: str) -> Found:
    """The same, of a name that must be there."""
    found = find(module, name)
    if found is None:
        raise SystemExit(f"{module} has no {name}")
    return found


def first_line(node: ast.stmt) -> str:
    """The first paragraph of a docstring, on one line."""
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    return " ".join(text.split())


# --- settings -------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A field of settings, or an argument of a function."""

    name: str
    module: str
    type: ast.expr
    default: ast.expr | None
    text: str


@functools.cache
def settings(module: str, name: str) -> tuple[Setting, ...]:
    """The fields of a class of settings, those of its bases first, each with its latest text."""
    module, node = defined(module, name)
    assert isinstance(node, ast.ClassDef)
    fields: dict[str, Setting] = {}
    for base in node.bases:
        if found := find(module, ast.unparse(base)):
            fields |= {one.name: one for one in settings(found.module, ast.unparse(base))}
    for one, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(one, ast.AnnAssign):
            field = ast.unparse(one.target)
            value = after.value if isinstance(after, ast.Expr) else None
            told = str(value.value) if isinstance(value, ast.Constant) else ""
            text = " ".join(told.split())
            fields[field] = Setting(field, module, one.annotation, one.value, text)
    return tuple(fields.values())


def bare(setting: Setting) -> ast.expr:
    """A setting's type without what only concerns the command line, and without None."""
    node, module = setting.type, setting.module
    while True:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in (
            *("Annotated", "Positional", "tyro.conf.Positional", "OmitArgPrefixes"),
        ):
            node = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        elif isinstance(node, ast.BinOp) and ast.unparse(node.right) == "None":
            node = node.left
        elif isinstance(node, ast.Name) and (found := find(module, node.id)):
            if not isinstance(found.node, ast.Assign):
                return node
            node, module = found.node.value, found.module
        else:
            return node


def section_of(setting: Setting) -> Found | None:
    """The class of settings that a setting is, or is a list of."""
    node = bare(setting)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        node = node.slice.elts[0]
    found = find(setting.module, node.id) if isinstance(node, ast.Name) else None
    return found if found and isinstance(found.node, ast.ClassDef) else None


def is_positional(setting: Setting) -> bool:
    """Whether it stands on the command line without its name."""
    text = ast.unparse(setting.type)
    return "Positional" in text or text in ("ProjectFile", "Name")


def arguments(path: str) -> list[Setting]:
    """The arguments of a command that is a function, or the fields of its one argument."""
    module, node = defined(*path.split(":"))
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    plain = len(given.posonlyargs) + len(given.args)
    defaults: list[ast.expr | None] = [None] * (plain - len(given.defaults))
    defaults += [*given.defaults, *given.kw_defaults]
    texts = named_texts(ast.get_docstring(node) or "")
    found: list[Setting] = []
    for one, default in zip(named, defaults, strict=True):
        assert one.annotation is not None
        setting = Setting(one.arg, module, one.annotation, default, texts.get(one.arg, ""))
        section = section_of(setting)
        if section and len(named) == 1:
            return list(settings(section.module, key_of(section).split(":")[1]))
        found.append(setting)
    return found


def named_texts(docstring: str, part: str = "Args") -> dict[str, str]:
    """What a docstring says of each argument (or attribute)."""
    _, _, text = docstring.partition(f"{part}:\n")
    text = textwrap.dedent(text.split("\n\n")[0])
    found = re.findall(r"^(\w+): (.*(?:\n .*)*)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in found}


def key_of(section: Found) -> str:
    """A section's key in `sections`."""
    assert isinstance(section.node, ast.ClassDef)
    return f"{section.module}:{section.node.name}"
