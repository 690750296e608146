"""The page of the public names: signatures, first lines, equations and sources."""

import ast
import re
import textwrap
from inspect import cleandoc

from tools.reference_settings import (
    BY_HAND,
    anchor,
    heading_of_stage,
    sections,
    settings_link,
    table_row,
)
from tools.sources import SRC, defined, first_line, key_of, named_texts, tree

import tether
from tether.config import STAGES

HOME: dict[str, tuple[str, str]] = vars(tether)["_HOME"]  # where each public name is defined
WIDTH = 96  # longest signature on one line


def api_page() -> str:
    """Every public name of `tether`, then what else `tether.core` has."""
    parts = [BY_HAND["pages"]["api"].strip()]
    left = dict(HOME)
    for group in BY_HAND["api"]:
        mine = [name for name, (module, _) in left.items() if _in(module, group["modules"])]
        parts.append(f"## {group['title']}")
        if group.get("text"):
            parts.append(group["text"].strip())
        if group.get("brief"):
            parts.append(_brief({name: left.pop(name) for name in sorted(mine)}))
        else:
            parts += [public(name, *left.pop(name)) for name in sorted(mine)]
    if left:
        parts.append("## More")
        parts += [public(name, *left[name]) for name in sorted(left)]
    public_names = {*HOME.values()}
    for module in sorted(f"tether.core.{file.stem}" for file in (SRC / "tether/core").glob("*.py")):
        if names := [name for name in _public_of(module) if (module, name) not in public_names]:
            intro = (ast.get_docstring(tree(module)) or "").split("\n\n")[0]
            parts.append(f"## {module}\n\n{' '.join(intro.split())}")
            parts += [public(name, module, name, of_core=True) for name in names]
    return "\n\n".join(parts)


def _in(module: str, modules: list[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in modules)


def _public_of(module: str) -> list[str]:
    if module.endswith("__init__"):
        return []
    kinds = ast.FunctionDef | ast.ClassDef
    names = [node.name for node in tree(module).body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def _brief(names: dict[str, tuple[str, str]]) -> str:
    """Settings: one line each, since the other pages have them whole."""
    lines = ["| name | what it is |", "|---|---|"]
    stages = {cls.__name__: kind for kind, cls in STAGES.items()}
    for name, (module, its_name) in names.items():
        found = defined(module, its_name)
        text, link = first_line(found.node), ""
        if name in stages:
            link = f" ([settings](commands.md#{anchor(heading_of_stage(stages[name]))}))"
        elif isinstance(found.node, ast.ClassDef) and key_of(found) in sections():
            link = f" ([settings]({settings_link(found)}))"
        shown = name
        if isinstance(found.node, ast.FunctionDef):
            shown = f"{name}({ast.unparse(found.node.args)})"
        lines.append(table_row(f"`{shown}`", text + link))
    return "\n".join(lines)


def public(name: str, module: str, its_name: str, *, of_core: bool = False) -> str:
    """A public name: signature, first line, equation, source, errors."""
    module, node = defined(module, its_name)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    home = module if of_core or its_name == name else f"{module}.{its_name}"
    heading = f"### {module.removeprefix('tether.')}.{name}" if of_core else f"### {name}"
    if isinstance(node, ast.FunctionDef):
        code = signature(node, name)
    else:
        assert isinstance(node, ast.ClassDef)
        code = outline(node, name)
    text = _docstring(ast.get_docstring(node) or "")
    where = "" if of_core else f"\n\nIn `{home}`."
    return f"{heading}\n\n```python no-run\n{code}\n```\n\n{text or '**not documented**'}{where}"


def signature(node: ast.FunctionDef, name: str, indent: str = "") -> str:
    """A function's head, in one line or one line an argument."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    parts = _arguments_apart(node.args)
    line = f"{indent}def {name}({', '.join(parts)}){returns}: ..."
    if len(line) <= WIDTH:
        return line
    inside = "".join(f"{indent}    {part},\n" for part in parts)
    return f"{indent}def {name}(\n{inside}{indent}){returns}: ..."


def _arguments_apart(given: ast.arguments) -> list[str]:
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    parts = [_argument(*one) for one in zip(plain, [*defaults, *given.defaults], strict=True)]
    if given.vararg:
        parts.append(f"*{ast.unparse(given.vararg)}")
    elif given.kwonlyargs:
        parts.append("*")
    parts += [_argument(*one) for one in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*parts, *([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else [])]


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(one) + (f" = {ast.unparse(default)}" if default else "")


def outline(node: ast.ClassDef, name: str) -> str:
    """A class with its fields and public methods."""
    bases = ", ".join(map(ast.unparse, node.bases))
    lines = [f"class {name}({bases}):" if bases else f"class {name}:"]
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_"):
            lines.append(f"    {ast.unparse(one)}")
        elif isinstance(one, ast.FunctionDef) and (
            one.name == "__init__" or not one.name.startswith("_")
        ):
            lines += [f"    @{ast.unparse(mark)}" for mark in one.decorator_list]
            lines.append(signature(one, one.name, "    "))
            if said := first_line(one) if ast.get_docstring(one) else "":
                lines[-1] = lines[-1].removesuffix(": ...") + ":"
                lines.append(f'        """{said}"""')
    return "\n".join([*lines, *(["    ..."] if len(lines) == 1 else [])])


def _docstring(text: str) -> str:
    """A docstring as Markdown: prose, equations as code, arguments as a list."""
    kept: list[str] = []
    for part in re.split(r"\n\n(?=\S)", cleandoc(text)):
        head, _, rest = part.partition(":\n")
        if head in ("Args", "Attributes"):
            said = named_texts(part, head)
            kept.append("\n".join(f"- `{name}`: {_linked(of)}" for name, of in said.items()))
        elif head in ("Returns", "Raises", "Yields"):
            kept.append(f"*{head}* {_linked(' '.join(rest.split()))}")
        else:
            kept.append(_with_equations(part))
    return "\n\n".join(kept)


def _linked(text: str) -> str:
    """The same with addresses as links."""
    return re.sub(r"(?<![<(\"'`])https?://[^\s,;]*[^\s,;.:)]", r"<\g<0>>", text)


def _with_equations(part: str) -> str:
    """Prose on one line; indented blocks as code."""
    pieces: list[str] = []
    for block in re.split(r"\n\n", part):
        lines = block.split("\n")
        indented = [line.startswith("    ") for line in lines]
        if all(indented):
            code = textwrap.dedent(block)
            pieces.append(f"```\n{code}\n```")
        else:
            pieces.append(_linked(" ".join(block.split())))
    return "\n\n".join(pieces)
