"""What the documents show is true: code runs, commands exist, links lead somewhere.

A ```python block is run, all blocks of a file in one namespace; ```python no-run is only compiled.
A ```toml block is parsed; ```toml recipe must also be a recipe that `tether run` accepts.
"""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tether.cli import COMMANDS
from tether.config_file import read_toml
from tether.pipeline import plan

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ROOT / "examples" / "changing_one_thing" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
REQUIRED = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "docs" / "design.md"]

FENCE = re.compile(r"^```(\w*)[ ]?([^\n]*)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\$ )?(?:\S*/)?tether ([a-z][\w-]*)(?: +([a-z]+))?", re.MULTILINE)
SHELL = {"bash", "console", "sh"}


class Block(NamedTuple):
    language: str
    mark: str
    code: str
    line: int


def blocks(path, *languages):
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, mark, code = found.groups()
        if language in languages:
            yield Block(language, mark.strip(), code, text.count("\n", 0, found.start()) + 1)


def prose(path):
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def each_document(test):
    return pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))(test)


# --- code -----------------------------------------------------------------------------------------


@each_document
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(path, "python"):
        # Empty lines in front make a traceback name the line of the document.
        code = compile("\n" * block.line + block.code, str(path), "exec")
        if block.mark != "no-run":
            exec(code, namespace)


@each_document
def test_toml_blocks_parse(path, tmp_path):
    for block in blocks(path, "toml"):
        table = tomllib.loads(block.code)
        if block.mark == "recipe":
            plan(table, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_recipes_are_accepted(path, tmp_path):
    plan(read_toml(path), tmp_path)


# --- commands -------------------------------------------------------------------------------------


@each_document
def test_every_command_exists(path):
    shown = "\n".join(block.code for block in blocks(path, *SHELL))
    shown += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", prose(path)))
    for word, second in set(COMMAND.findall(shown)):
        known = {word, f"{word} {second}"} & COMMANDS.keys()
        assert known, f"{path.name} names `tether {word} {second}`, which is no command"


# --- links ----------------------------------------------------------------------------------------


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+?)\s*$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@each_document
def test_links_lead_somewhere(path):
    for link in LINK.findall(prose(path)):
        if re.match(r"\w+:", link):
            continue  # another site: tests use no network
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name} links to {link}, which is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path.name} links to {link}: no such heading"


# --- what must be there ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", REQUIRED, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_document_is_there(path):
    assert path.is_file()


def test_readme_opens_with_the_two_commands():
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    for command in ("make demo", "make test"):
        assert any(command in line for line in first_screen), f"{command!r} is not on top"


def test_changelog_keeps_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions
    for version in versions:
        form = r"\[(Unreleased|\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d)\]?"
        assert re.fullmatch(form, version), f"{version!r} is not [Unreleased] or [1.2.3] - date"
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_page_is_in_the_navigation_of_the_site_and_on_the_entry_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entry = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        name = str(path.relative_to(ROOT))
        assert f"- {name}\n" in navigation.replace("All pages: ", ""), name
        assert name == "docs/index.md" or f"]({name.removeprefix('docs/')})" in entry, name
