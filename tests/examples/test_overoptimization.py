"""The over-optimization recipe: rankings cut to numbers of pairs, and stages that plan."""

from pathlib import Path

import pytest

from tether.config_file import read_toml
from tether.evaluation.overoptimization import Law
from tether.functions import load_function
from tether.pipeline import plan
from tether.statistics import Interval

ROOT = Path(__file__).parents[2]
SUBSETS = f"{ROOT}/examples/overoptimization/subsets.py"
RECIPE = ROOT / "recipes" / "overoptimization.toml"


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    [
        ([1.0, 2.0, 3.0, 4.0], 6),  # 4 · 3 / 2
        ([1.0, 1.0, 3.0], 2),  # the tie of the first two is no pair
        ([1.0, None, None], 2),  # fails tie with each other and lose to the first
        ([None, None], 0),
    ],
)
def test_pairs_of_a_ranking(ranks, pairs):
    assert load_function(f"{SUBSETS}:count_pairs")(ranks) == pairs


def test_subsets_hold_whole_prompts_until_there_are_enough_pairs():
    rows = [{"prompt": str(i), "ranks": [1.0, 2.0, 3.0, 4.0]} for i in range(2000)]
    found = load_function(f"{SUBSETS}:subsets")(rows)
    # 6 pairs a prompt: 17 prompts are the first with 100, 167 with 1,000, 1,667 with 10,000
    assert {name: len(chosen) for name, chosen in found.items()} == {
        "pairs-100": 17,
        "pairs-1000": 167,
        "pairs-10000": 1667,
    }
    assert found["pairs-1000"] == rows[:167]


def test_the_recipe_plans(tmp_path):
    stages = {stage.name: stage for stage in plan(read_toml(RECIPE), tmp_path)}
    for size in (100, 1000, 10000):
        ppo = stages[f"ppo-{size}"].config
        assert ppo.rewards[0].path == str(tmp_path / f"reward-{size}" / "model")
        assert (ppo.kl.beta, ppo.keep_every) == (0.0, 2)
        evaluation = stages[f"evaluation-{size}"].config
        assert evaluation.pool == str(tmp_path / "pool" / "pool.jsonl")
        assert evaluation.proxy == f"proxy-{size}" == evaluation.scorers[1].name
        assert evaluation.scorers[1].path == ppo.rewards[0].path
        assert evaluation.policies[1].curve
        assert stages["pool"].config.sampling == evaluation.sampling == ppo.sampling


def test_cells_of_the_table():
    table = f"{ROOT}/examples/overoptimization/table.py"
    accuracy, peak = (load_function(f"{table}:{name}") for name in ("accuracy", "peak"))
    known = {"held_out_accuracy": {"mean": 0.75, "low": 0.7, "high": 0.8}}
    assert accuracy(known) == "0.75 [0.70, 0.80]"
    assert accuracy({"held_out_accuracy": {"mean": 1.0, "low": None, "high": None}}) == "1.00"
    law = Law(
        policy="ppo",
        form="rl",
        alpha=1.0,
        beta=0.5,
        residual=0.1,
        points=9,
        farthest=3.0,
        peak=Interval(2.72, 2.5, 3.0),
    )
    assert peak(law) == "2.72 [2.50, 3.00]"
    assert peak(None) == "none"
