"""The public names of `import tether` with their signatures, as they stand in the source.

    python -m tests.public_names > tests/public_names.txt

writes them anew, after a change that is meant. Signatures are taken from the source and not from
the running objects, so they are the same under every Python.
"""

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tether


@functools.cache
def _definitions(module: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name: node for node in tree.body if isinstance(node, kinds)}


def _definition(thing: Any) -> ast.FunctionDef | ast.ClassDef:
    return _definitions(thing.__module__)[thing.__name__]


def _function(node: ast.FunctionDef, name: str) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Its own fields and methods; what begins with an underscore is not public."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign):
            yield ast.unparse(one)
        elif isinstance(one, ast.FunctionDef) and (
            one.name == "__init__" or not one.name.startswith("_")
        ):
            marks = [f"@{ast.unparse(mark)} " for mark in one.decorator_list]
            yield "".join(marks) + _function(one, one.name)


def described(name: str, thing: Any) -> str:
    """One public name: a function's signature, or a class with what it adds to its bases."""
    node = _definition(thing)
    if isinstance(node, ast.FunctionDef):
        return _function(node, name)
    bases = ", ".join(map(ast.unparse, node.bases))
    return "\n    ".join([f"class {name}({bases})" if bases else f"class {name}", *_members(node)])


def listing() -> str:
    """All of them and the bases of their classes, in alphabetical order."""
    public = {name: getattr(tether, name) for name in tether.__all__}
    for thing in [*public.values()]:
        for base in thing.__mro__ if inspect.isclass(thing) else ():
            if base.__module__.startswith("tether."):
                public.setdefault(base.__name__, base)
    return "".join(described(name, public[name]) + "\n" for name in sorted(public))


if __name__ == "__main__":
    sys.stdout.write(listing())
