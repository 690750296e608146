"""Changing one thing: each function against numbers worked out by hand, and each file run."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tether
from tests.train import toys

FOLDER = Path(__file__).parents[2] / "examples" / "changing_one_thing"
sys.path.append(str(FOLDER.parent))
reward, advantage, preference_loss, labeler = (
    importlib.import_module(f"{FOLDER.name}.{name}")
    for name in ("reward", "advantage", "preference_loss", "labeler")
)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_it_is_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) < 40


# --- the functions --------------------------------------------------------------------------------


def test_the_reward_counts_words_above_twenty_and_words_of_the_question():
    #   22 words, none of the question: 1 − 0.05·2;   "the cat" again: 1 − 0.05·2;   none: 1
    completions = ["yes " * 22, "The cat sleeps", ""]
    found = reward.to_the_point(["where is the cat ?"] * 3, completions)
    assert found == pytest.approx([0.9, 0.9, 1.0])


def test_the_advantage_is_the_distance_from_the_median():
    #   medians 2 and −0.5 (between −1 and 0); distances −1, 0, 7, −1.5 … see below
    rewards = torch.tensor([[1.0, 2.0, 2.0, 9.0], [0.0, -1.0, -4.0, 5.0]])
    #   −1, 0, 0, 7;  0.5, −0.5, −3.5, 5.5;  mean absolute (8 + 10) / 8 = 2.25
    expected = [[-1, 0, 0, 7], [0.5, -0.5, -3.5, 5.5]]
    found = advantage.above_the_median(rewards) * 2.2501
    assert found.tolist() == [pytest.approx(row) for row in expected]


def test_the_hinge_is_content_once_a_pair_is_far_enough_apart():
    #   h = 0.5·((−1 + 3) − (−2 + 1)) = 1.5 → 0;   h = 0.5·((−4 + 4) − (−1 + 2)) = −0.5 → 1.5
    pairs = SimpleNamespace(
        chosen=torch.tensor([-1.0, -4.0]),
        rejected=torch.tensor([-2.0, -1.0]),
        reference_chosen=torch.tensor([-3.0, -4.0]),
        reference_rejected=torch.tensor([-1.0, -2.0]),
    )
    assert preference_loss.hinge(pairs, 0.5).tolist() == [0.0, 1.5]


def test_politeness_counts_up_to_three():
    texts = ["Thanks, you are welcome!", "no", "please please please, thank you"]
    assert labeler.politeness([""] * 3, texts) == [2.0, 0.0, 3.0]


# --- each file run --------------------------------------------------------------------------------

SHORT = {
    "steps": 1,
    "num": 2,
    "batch_size": 4,
    "sampling": tether.SamplingConfig(max_new_tokens=4),
}


@pytest.fixture
def model(tmp_path):
    toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    return toys.save(tmp_path)


def test_the_reward_trains(model, tmp_path, capsys):
    reward.main(model, f"{tmp_path}/prompts.jsonl", f"{tmp_path}/out", **SHORT)
    assert "out (grpo)" in capsys.readouterr().out
    [row] = toys.metrics(tmp_path / "out")
    # Four or fewer words that may repeat the question, and 1 off for what did not end
    assert -0.2 <= row["score"] <= 1


def test_the_advantage_trains(model, tmp_path, capsys):
    path = f"{toys.write_rewards(tmp_path)}:short"
    advantage.main(model, f"{tmp_path}/prompts.jsonl", path, f"{tmp_path}/out", **SHORT)
    assert "policy loss" in capsys.readouterr().out
    [row] = toys.metrics(tmp_path / "out")
    assert math.isfinite(row["policy_loss"])


def test_the_preference_loss_trains(model, tmp_path, capsys):
    pairs = toys.write_rows(tmp_path / "pairs.jsonl", toys.PAIRS)
    preference_loss.main(model, pairs, f"{tmp_path}/out", max_steps=2, held_out=0.0)
    assert "margin" in capsys.readouterr().out
    first, second = toys.metrics(tmp_path / "out")
    assert first["loss"] == pytest.approx(1)  # h = 0 where policy and reference agree
    assert second["loss"] < 1


def test_the_labeler_judges(tmp_path, capsys):
    texts = ["thanks thanks thanks", "no", "you are welcome"]
    record = tether.Completions(prompt="p", completions=texts, finished=[True] * 3)
    tether.write_records(tmp_path / "completions.jsonl", [record] * 5)
    scorer = f"{toys.write_rewards(tmp_path)}:short"
    labeler.main(f"{tmp_path}/completions.jsonl", scorer, f"{tmp_path}/out")
    assert "judgments" in capsys.readouterr().out
    judgments = tether.read_comparisons(tmp_path / "out" / "judgments.jsonl", whole=True)
    polite = [each.ranks for each in judgments if each.labeler == "polite"]
    # Worth 3, 0 and 1 with noise of 0.3: all five times in this order but by five deviations
    assert polite == [[1, 3, 2]] * 5
