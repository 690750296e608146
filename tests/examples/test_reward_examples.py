"""Examples of reward models: rankings from pairwise choices, a classifier as others train them."""

import json
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from tether.config import RewardConfig
from tether.config_file import read_toml
from tether.functions import load_function
from tether.pipeline import plan
from tether.records import Ranking, from_dict
from tether.rewards.load import load_reward
from tether.sections import ComputeConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RECIPES = ["pandalm_reward", "classifier_reward", "reward_losses"]


def choice(first, second, votes, instruction="Say it.", given=""):
    return {
        "cmp_key": f"{first}_{second}",
        "instruction": instruction,
        "input": given,
        "response1": f"said {first}",
        "response2": f"said {second}",
        **{f"annotator{i + 1}": vote for i, vote in enumerate(votes)},
    }


def test_votes_become_ranks():
    prepare = load_function(f"{EXAMPLES}/pandalm/prepare.py:prepare")
    rows = [
        choice("a", "b", (1, 1, 0)),  # a 2.5 of 3, b 0.5 of 3
        choice("b", "c", (1, 2, 2)),  # b 1, c 2
        choice("c", "d", (1, 1, 1)),  # c 3, d 0
        choice("d", "e", (0, 0, 0)),  # d 1.5, e 1.5
        choice("a", "e", (2, 2, 2)),  # a 0, e 3
        choice("a", "b", (1, 1, 1), instruction="Only two models."),
    ]
    # a 2.5/6, b 1.5/6, c 5/6, d 1.5/6, e 4.5/6
    (found,) = prepare(rows)["rankings"]
    assert found["prompt"] == "Say it.\n\n"
    assert found["completions"] == ["said a", "said b", "said c", "said d", "said e"]
    assert found["ranks"] == [3, 4, 1, 4, 2]
    from_dict(Ranking, found, "rankings")


def test_equal_answers_have_the_votes_of_both_models_and_inputs_are_asked():
    prepare = load_function(f"{EXAMPLES}/pandalm/prepare.py:prepare")
    rows = [
        choice("a", "b", (1, 1, 1), given="An input."),
        choice("c", "d", (1, 1, 1), given="An input."),
        choice("d", "e", (2, 2, 1), given="An input."),
    ]
    rows[0]["response2"] = rows[1]["response1"] = "the same"  # b lost 3, c won 3: a half
    (found,) = prepare(rows)["rankings"]
    assert found["prompt"] == "Say it.\n\nAn input.\n\n"
    # a 1, same 3/6, d 1/6, e 2/3
    assert dict(zip(found["completions"], found["ranks"], strict=True)) == {
        "said a": 1,
        "the same": 3,
        "said d": 4,
        "said e": 2,
    }


def test_a_classifier_of_others_is_a_reward_by_label_name(tmp_path, capsys):
    main = load_function(f"{EXAMPLES}/classifier_reward/train_classifier.py:main")
    texts = {"kind": "please thanks kind", "rude": "rude no sorry", "plain": "the cat sees"}
    rows = [
        {"text": f"{text} {word}", "label": name}
        for name, text in texts.items()
        for word in ["a", "cat", "dog", "bird", "big", "small", "red", "who", "why", "what"]
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", str(data), "--model", str(save_tiny(tmp_path / "start"))]
    words += ["--out", str(tmp_path / "out"), "--epochs", "15", "--learning-rate", "3e-3"]
    main(words)
    assert "kind: 1.000 of its held-out texts" in capsys.readouterr().out
    for name, text in texts.items():
        config = RewardConfig(path=str(tmp_path / "out"), label=name, output="probability")
        reward = load_reward(config, ComputeConfig())
        said = [f"{text} me", *(f"{other} me" for other in texts.values() if other != text)]
        right, *wrong = reward.raw([""] * 3, said)
        assert right > 0.8
        assert max(wrong) < 0.2


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_plan(tmp_path, name):
    stages = plan(read_toml(ROOT / "recipes" / f"{name}.toml"), tmp_path)
    assert all(stage.config.compute.threads == 1 for stage in stages)
    if name != "classifier_reward":
        one, other = (stage.config for stage in stages if stage.kind == "reward")
        settings = ("model", "data", "epochs", "batch_size", "held_out", "seed", "optimizer")
        assert all(getattr(one, field) == getattr(other, field) for field in settings)
        assert (one.loss, other.loss) == ("pairwise", "listwise")
