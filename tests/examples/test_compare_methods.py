"""The comparison of methods: thumbs from rankings, and the table over seeds."""

import dataclasses
from pathlib import Path

import pytest

from tests.evaluation import made_up
from tether.config_file import read_toml
from tether.functions import load_function
from tether.pipeline import plan
from tether.statistics import Interval

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "compare_methods"
RECIPE = ROOT / "recipes" / "compare_methods.toml"


def thumbs(ranks):
    row = {"prompt": "p", "completions": [f"c{i}" for i in range(len(ranks))], "ranks": ranks}
    found = load_function(f"{EXAMPLE}/thumbs.py:from_rankings")([row])["thumbs"]
    assert all(thumb["prompt"] == "p" for thumb in found)
    return {thumb["completion"]: thumb["label"] for thumb in found}


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # the middle of 1 and 4 is 2.5
        ([1.0, 2.0, 3.0, 4.0], {"c0": True, "c1": True, "c2": False, "c3": False}),
        ([1.0, 2.0, 3.0], {"c0": True, "c2": False}),
        ([2.0, None, 1.0], {"c0": False, "c1": False, "c2": True}),
        ([1.0, 1.0], {}),
        ([None, None], {}),
    ],
)
def test_thumbs_are_up_near_the_best_rank(ranks, expected):
    assert thumbs(ranks) == expected


def test_the_table_is_of_all_seeds():
    summary = made_up.summary()
    other = dataclasses.replace(
        summary,
        comparisons=[
            dataclasses.replace(each, difference=Interval(-0.5, -0.75, -0.25))
            if each.policy == "ppo" and each.other == "sft"
            else each
            for each in summary.comparisons
        ],
    )
    table = load_function(f"{EXAMPLE}/table.py:table")
    times = {"ppo": {"cpu_seconds": 40.4, "seconds": 80.0}}
    _, _, base, sft, ppo = table([(summary, times), (other, {"ppo": {"cpu_seconds": 50.2}})])
    # ppo: gold 1.75 in both; +0.5 [0, 1] in the first (across 0), -0.5 in the second
    assert ppo.startswith("| ppo | 1.75 | +0.00 | -0.50, +0.50 | 0/1/1 | 3.50 | 2.00 |")
    assert ppo.endswith("| 45 | 80 |")
    # sft is the baseline: no gain, no KL; base loses in both
    assert sft.startswith("| sft | 1.25 |  |  |  | 2.50 | 0.00 |")
    assert base.startswith("| base | -1.00 | -2.25 | -2.25, -2.25 | 0/0/2 |")


def test_the_recipe_plans(tmp_path):
    stages = {stage.name: stage for stage in plan(read_toml(RECIPE), tmp_path)}
    tuned = [name for name, stage in stages.items() if stage.config.out and name in METHODS]
    assert tuned == METHODS
    limits = {s.config.sampling.max_new_tokens for n, s in stages.items() if n in METHODS[:6]}
    assert limits == {40}
    rewards = {str(stages[name].config.rewards) for name in METHODS[:6]}
    assert len(rewards) == 1
    data = {stages[name].config.data for name in METHODS[6:10]}
    assert data == {str(tmp_path / "labels" / "rankings.jsonl")}
    assert {stages[name].config.model for name in METHODS} == {str(tmp_path / "sft" / "model")}


METHODS = [
    "ppo",
    "grpo",
    "rloo",
    "reinforce",
    "online-dpo",
    "best-of-n",
    "dpo",
    "ipo",
    "simpo",
    "orpo",
    "kto",
]
