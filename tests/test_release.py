"""What a release holds: the files of the package, one version, the licences of what it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import tether
from tether.config_file import read_toml

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

# What setuptools itself would copy into a wheel: (package, its folder, where to, names).
DATA_FILES = """
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
distribution.include_package_data = False  # no search through what is tracked, which writes files
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
for package, folder, _, names in build.data_files:
    print(*(f"{folder}/{name}" for name in names), sep="\\n")
for _, _, file in build.find_all_modules():
    print(file)
print(distribution.get_version())
"""


def test_a_wheel_holds_every_file_of_the_package():
    command = [sys.executable, "-W", "ignore", "-c", DATA_FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    *copied, version = done.stdout.split("\n")[:-1]
    there = {
        str(file.relative_to(ROOT))
        for file in (SRC / "tether").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert set(filter(None, copied)) == there
    assert version == tether.__version__
    for kind in ("py.typed", ".pyi", ".html", ".css", ".js", ".sql", ".c", ".toml", ".json.gz"):
        assert any(name.endswith(kind) for name in copied), kind


def test_the_version_is_said_once():
    [cited] = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == tether.__version__
    project = read_toml(ROOT / "pyproject.toml")["project"]
    assert "version" not in project


def test_the_licence_of_every_dependency_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "THIRD_PARTY_LICENSES.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| \[.+?\]\(https://pypi\.org/project/(.+?)/\) \| (.+) \|$", text, re.M)
    )
    assert all(rows.values())
    for line in project["dependencies"]:
        name = re.split(r"[<>=!~\[ ;]", line)[0]
        assert name in rows, f"{name} is not in THIRD_PARTY_LICENSES.md: make dist writes it anew"
    # Their obligations reach beyond the package itself, so none may be needed.
    assert not [name for name, licence in rows.items() if re.search(r"\bA?GPL", licence)]


def test_what_is_tested_with_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[<>=!~\[ ;]", line)[0].lower()
        assert f"\n{name}==" in pinned, f"{name} has no version in constraints.txt"
