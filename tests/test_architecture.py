"""The import rule, the size budget and the speed of a bare import, checked on every run."""

import ast
import dataclasses
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import tether
import tether.sections as sections_module
from tether.config import STAGES

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "tether"

# Imports point down. A part may import what stands in its row, itself, and the base; the base and
# feedback load no torch, so that help and the labeling tools start at once.
BASE = {
    "errors",
    "records",
    "config",
    "config_file",
    "disk",
    "sections",
    "servers",
    "validation",
    "statistics",
    "stopping",
    "rundir",
    "progress",
    "ranks",
    "functions",
    "glossary",
    "pools",
    "trackers",
    "hub",
}
MODELS = {"core", "kernels", "parallel", "data", "models"}
LEARN = MODELS | {"engine", "rewards"}
PIPELINE = LEARN | {"train", "constitution", "evaluation", "sandbox", "feedback"}
MAY_IMPORT = {
    **{part: set[str]() for part in BASE},
    "feedback": set[str](),
    "web": {"feedback"},
    "core": set[str](),
    "kernels": set[str](),
    "parallel": {"core"},
    "data": {"core", "parallel", "feedback"},
    "models": {"core", "kernels", "parallel", "data"},
    "engine": MODELS,
    "rewards": MODELS | {"engine"},
    "train": LEARN | {"scale"},
    "constitution": LEARN | {"feedback"},
    "evaluation": LEARN | {"feedback"},
    "sandbox": LEARN | {"constitution"},
    "chat": LEARN | {"feedback"},
    "footprint": LEARN | {"train"},
    "scale": LEARN,
    "pipeline": PIPELINE | {"scale"},
    "plan": PIPELINE | {"pipeline", "footprint", "scale"},
    "cli": PIPELINE | {"pipeline", "plan", "footprint", "scale", "__version__"},
    "result": LEARN | {"evaluation", "feedback"},
    "__main__": {"cli"},
}
NO_TORCH = BASE | {"feedback", "web"}
HEAVY = {"torch", "transformers", "tokenizers", "safetensors"}

MODULES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def per_module(test):
    return pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))(test)


def part_of(path):
    """The folder below src/tether, or the module that stands there itself."""
    first = path.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def imported(path):
    """Absolute names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the import out in full"
            # `from tether import records` imports tether.records.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


# --- imports --------------------------------------------------------------------------------------


@per_module
def test_imports_point_down(path):
    here = part_of(path)
    assert here in MAY_IMPORT, f"give {here!r} its place in MAY_IMPORT"
    allowed = MAY_IMPORT[here] | BASE | {here}
    for name in imported(path):
        package, part = [*name.split("."), ""][:2]
        if package == "tether":
            assert part in allowed, f"{here} may not import {name}"
        if here in NO_TORCH:
            assert package not in HEAVY, f"{here} may not import {name}"


def loaded_by(code):
    """Names of the modules that a fresh Python holds after `code`."""
    code += "\nimport sys; print('\\n'.join(['loaded:', *sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("loaded:")[1].split())


HELP = """
import sys
from tether.cli import main
sys.argv = ["tether", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    "code",
    ["import tether.feedback.consensus", "import tether.web.app", "import tether.web.main", HELP],
    ids=["feedback", "label", "web", "help"],
)
def test_it_starts_without_torch(code):
    assert not loaded_by(code) & HEAVY


def test_a_bare_import_loads_nothing():
    assert not loaded_by("import tether") & {*HEAVY, "numpy", "rich", "tyro"}


# --- public names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tether.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(tether, name))
    assert name in dir(tether)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian_sft'"):
        _ = tether.trian_sft


def test_type_checkers_see_what_is_loaded():
    tree = ast.parse((SRC / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = {
        one.asname or one.name: (node.module, one.name) for node in imports for one in node.names
    }
    modules = {name: ".".join(home) for name, home in found.items() if name not in tether._HOME}
    seen = {name: home for name, home in found.items() if name in tether._HOME}
    for node in tree.body:  # NAME = module.its_name
        if isinstance(node, ast.Assign):
            [name], [module, its_name] = node.targets, ast.unparse(node.value).split(".")
            seen[ast.unparse(name)] = modules[module], its_name
    assert seen == tether._HOME


def test_the_package_is_typed_and_tells_its_version():
    assert (files("tether") / "py.typed").is_file()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in pyproject["project"]["dynamic"]  # it is said once, in the package
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tether.__version__"}


# --- size -----------------------------------------------------------------------------------------


def code_lines(node, lines):
    """Lines of a function's body that hold code: no docstring, comments or blank lines."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return 0
    inside = (line.strip() for line in lines[body[0].lineno - 1 : node.end_lineno])
    return sum(bool(line) and not line.startswith("#") for line in inside)


@per_module
def test_functions_fit_on_a_screen(path):
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = code_lines(node, text.splitlines())
            assert length <= 40, f"{path.name}:{node.name} has {length} lines of code"


@per_module
def test_files_can_be_read_in_one_go(path):
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= 400, f"{path.name} has {length} lines"


def test_settings_stay_few():
    sections = [one for one in vars(sections_module).values() if dataclasses.is_dataclass(one)]
    for settings in [*STAGES.values(), *sections]:
        fields = [field.name for field in dataclasses.fields(settings)]
        assert len(fields) <= 25, f"{settings.__name__} has {len(fields)} fields: {fields}"
