"""The two groups of the personalize recipe, and that the recipe itself can be read."""

import importlib.util
from pathlib import Path

import pytest

from tether import pipeline
from tether.config_file import read_toml

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("groups", ROOT / "examples/personalize/groups.py")
groups = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(groups)

PROMPT = "how do i bake bread?"
SHORT, LONG = "mix it.", "mix it." + " then mix it again." * 5


def test_the_groups_differ_by_a_tenth_a_word_in_opposite_directions():
    brief, thorough = groups.brief([PROMPT], [LONG])[0], groups.thorough([PROMPT], [LONG])[0]
    assert thorough - brief == pytest.approx(2 * 0.1 * (2 + 5 * 4))


def test_each_group_ranks_as_it_likes():
    rows = [{"prompt": PROMPT, "completions": [SHORT, LONG], "finished": [True, True]}] * 40
    parts = groups.label(rows)
    assert list(parts) == ["brief", "thorough"]
    first = {name: sum(r["ranks"][0] == 1 for r in part) for name, part in parts.items()}
    assert first["brief"] > 30 > 10 > first["thorough"]


def test_the_recipe_trains_an_adapter_a_group(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = pipeline.plan(read_toml(ROOT / "recipes/personalize.toml"), tmp_path)
    pipeline.check_functions(stages)
    found = {stage.name: stage.config for stage in stages}
    assert found["brief"].lora.rank == found["thorough"].lora.rank == 8
    assert found["both"].adapters == tuple(
        str(tmp_path / n / "model") for n in ("brief", "thorough")
    )
