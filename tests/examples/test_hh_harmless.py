"""HH-RLHF: how its dialogues are parted, and that the recipe fits together."""

from pathlib import Path

from tether.config_file import read_toml
from tether.functions import load_function
from tether.pipeline import plan
from tether.records import Demonstration, PreferencePair, from_dict

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hh_harmless"
RECIPE = ROOT / "recipes" / "hh_harmless.toml"

prepare = load_function(f"{EXAMPLE}/prepare.py:prepare")


def dialogue(opening: str, reply: str) -> str:
    return f"\n\nHuman: {opening}\n\nAssistant: go on\n\nHuman: yes\n\nAssistant:{reply}"


def test_dialogues_of_one_opening_stay_on_one_side():
    rows = [
        {
            "chosen": dialogue(f"May I {i // 2}?", f" No {i}."),
            "rejected": dialogue(f"May I {i // 2}?", " Do."),
        }
        for i in range(400)
    ]
    parts = prepare(rows)
    assert len(parts["demonstrations"]) + len(parts["pairs"]) == 400
    assert 80 < len(parts["demonstrations"]) < 160  # 0.3 of 400 is 120, in 200 pieces of two
    openings = [{row["prompt"] for row in part} for part in parts.values()]
    assert not openings[0] & openings[1]
    first = from_dict(Demonstration, parts["demonstrations"][0], "row")
    assert first.prompt.endswith("\n\nAssistant:")
    assert first.completion.startswith(" No ")
    pair = from_dict(PreferencePair, parts["pairs"][0], "row")
    assert (pair.chosen[:4], pair.rejected) == (" No ", " Do.")


def test_rows_that_teach_nothing_are_left_out():
    rows = [
        {"chosen": dialogue("a", " "), "rejected": dialogue("a", " x")},
        {"chosen": dialogue("a", " x"), "rejected": dialogue("a", "")},
        {"chosen": dialogue("a", " x "), "rejected": dialogue("a", " x")},
        {"chosen": dialogue("a", " y"), "rejected": dialogue("a", " x")},
    ]
    parts = prepare(rows)
    assert len(parts["demonstrations"]) + len(parts["pairs"]) == 1


def test_the_recipe_plans(tmp_path):
    stages = {stage.name: stage.config for stage in plan(read_toml(RECIPE), tmp_path)}
    assert list(stages) == ["prepare", "sft", "reward", "dpo"]
    assert stages["reward"].data == stages["dpo"].data
    assert (stages["reward"].held_out, stages["reward"].seed) == (stages["dpo"].held_out, 0)
