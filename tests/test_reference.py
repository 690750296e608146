"""The reference pages are those that the sources make, and nothing is missing from them."""

import dataclasses

import pytest
from tools.reference import PAGES, pages

import tether
from tether.cli import COMMANDS
from tether.config import STAGES
from tether.glossary import FAMILIES, METRICS

MADE = pages()


@pytest.mark.parametrize("name", MADE)
def test_pages_are_up_to_date(name):
    assert (PAGES / name).read_text(encoding="utf-8") == MADE[name], "run `make reference`"


def test_every_command_has_its_own_heading():
    for command in COMMANDS:
        assert f"\n### tether {command}\n" in MADE["commands.md"], command


@pytest.mark.parametrize("kind", STAGES)
def test_every_setting_is_told(kind):
    both = MADE["commands.md"] + MADE["settings.md"]
    for field in dataclasses.fields(STAGES[kind]):
        assert f"| `{field.name}" in both or f"--{field.name}".replace("_", "-") in both, field.name


def test_every_metric_is_told():
    for key in (*METRICS, *FAMILIES):
        assert f"| `{key}" in MADE["metrics.md"], key


def test_every_public_name_is_told():
    for name in tether.__all__:
        assert f"{name}" in MADE["api.md"], name


def test_no_row_lacks_its_text():
    for name, page in MADE.items():
        for line in page.splitlines():
            cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
            if line.startswith("| `"):
                assert cells[-1], f"{name}: {line}"
