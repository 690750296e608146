import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from tests.rewards.made_up import make_reward
from tether.config import RewardEvaluationConfig, ScorerConfig
from tether.errors import DataError
from tether.evaluation import calibration
from tether.evaluation.blocks import Block, read_blocks
from tether.evaluation.reward_model import evaluate_reward
from tether.evaluation.robustness import BOILERPLATE, PRAISE, SPOILED
from tether.evaluation.scored_pairs import Choice, read_pairs
from tether.models.scalar_head import Centering, save_reward_model
from tether.records import write_jsonl
from tether.sections import ComputeConfig

LN2 = math.log(2)
REWARDS = """
def length(prompts, completions):
    return [float(len(text)) for text in completions]

def kind(prompts, completions):
    return [float("kind" in text.split()) - 0.01 * len(text) for text in completions]

def first_word(prompts, completions):
    return [float(text.split()[:1] == ["kind"]) for text in completions]

def constant(prompts, completions):
    return [1.0] * len(completions)
"""
ROWS = [
    {"prompt": "1", "chosen": "kind", "rejected": "the dog sees", "subset": "easy"},
    {"prompt": "1", "chosen": "kind cat", "rejected": "cat", "subset": "easy"},
    {"prompt": "2", "completions": ["a", "kind bird sees", "a big"], "ranks": [2, 1, 2]},
    {"prompt": "3", "chosen": "big", "rejected": "kind big", "subset": "hard"},
    {"prompt": "4", "chosen": "same", "rejected": "same"},
]


def evaluation(folder, *names, rows=ROWS, **settings):
    """The blocks of an evaluation of rewards that are functions, by title."""
    (folder / "rewards.py").write_text(REWARDS)
    write_jsonl(folder / "pairs.jsonl", rows)
    scorers = tuple(ScorerConfig(name=name, path=f"{folder}/rewards.py:{name}") for name in names)
    config = RewardEvaluationConfig(
        data=str(folder / "pairs.jsonl"), scorers=scorers, out=str(folder / "out"), **settings
    )
    return {block.title: block for block in read_blocks(evaluate_reward(config))}


def figures(block: Block):
    return {(each.name, each.policy): each for each in block.measures}


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_read_with_their_category_and_order(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    found = read_pairs(str(tmp_path / "pairs.jsonl"))
    assert found.texts == [
        *("kind", "the dog sees", "kind cat", "cat"),
        *("kind bird sees", "a", "a big", "big", "kind big", "same"),
    ]
    assert found.prompt_of == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert found.choices == [
        Choice(0, 1, 0, "easy", 0.5),
        Choice(2, 3, 0, "easy", 0.5),
        Choice(4, 5, 1, "", 0.0),  # of the second listed against the first
        Choice(4, 6, 1, "", 1.0),
        Choice(7, 8, 2, "hard", 0.5),
    ]
    assert found.dropped == 1


def test_messages_are_scored_by_what_is_said_last(tmp_path):
    user = {"role": "user", "content": "hi"}
    good, bad = ({"role": "assistant", "content": text} for text in ("hello", "what"))
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": [user], "chosen": [good], "rejected": [bad]}])
    found = read_pairs(str(tmp_path / "p.jsonl"))
    assert found.texts == ["hello", "what"]
    assert found.prompts == [[user], [user]]


def test_what_decides_nothing_is_refused(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}])
    with pytest.raises(DataError, match="decides between no two different completions"):
        read_pairs(str(tmp_path / "p.jsonl"))


# --- accuracy -------------------------------------------------------------------------------------


def test_accuracy_by_hand_beside_its_baselines(tmp_path):
    found = figures(evaluation(tmp_path, "kind", "constant")["Accuracy"])
    # Pairs in order: easy, easy, "", "", hard. kind: the kind one always scores higher.
    assert found["accuracy", "kind"].value.mean == pytest.approx(4 / 5)
    assert found["accuracy", "constant"].value.mean == 0.5
    assert found["accuracy", "longer wins"].value.mean == pytest.approx(3 / 5)
    assert found["accuracy", "first wins"].value.mean == pytest.approx((3 * 0.5 + 0 + 1) / 5)
    assert found["accuracy: easy", "kind"].value.mean == 1
    assert found["accuracy: easy", "longer wins"].value.mean == 0.5
    assert found["accuracy: hard", "kind"].value.mean == 0
    assert found["accuracy: other", "first wins"].value.mean == 0.5
    assert found["accuracy", "kind"].difference.mean == pytest.approx(1 / 5)
    assert found["accuracy", "longer wins"].difference is None
    assert found["accuracy", "first wins"].difference is None
    assert len(found) == 4 * 4  # all, easy, hard, other


def test_intervals_draw_prompts_and_not_pairs(tmp_path):
    # Forty pairs of two prompts, one prompt all right and one all wrong: the mean of two draws.
    rows = [
        {"prompt": prompt, "chosen": chosen + " x" * i, "rejected": rejected + " x" * i}
        for prompt, chosen, rejected in (("1", "kind", "dogs"), ("2", "dogs", "kind"))
        for i in range(20)
    ]
    value = figures(evaluation(tmp_path, "kind", rows=rows, num_texts=0)["Accuracy"])
    assert value["accuracy", "kind"].value == (0.5, 0.0, 1.0)


# --- calibration ----------------------------------------------------------------------------------


def test_losses_by_hand():
    d = np.array([math.log(3), -math.log(4), 0.0])  # σ = 3/4, 1/5, 1/2
    np.testing.assert_allclose(calibration.log_losses(d), [math.log(4 / 3), math.log(5), LN2])
    np.testing.assert_allclose(calibration.brier(d), [1 / 16, 16 / 25, 1 / 4])
    np.testing.assert_allclose(calibration.confidence(d), [3 / 4, 4 / 5, 1 / 2])
    np.testing.assert_allclose(calibration.right(d), [1, 0, 0.5])


def test_calibration_error_and_curve_by_hand():
    # Confidence 0.75 four times, three right; 0.9 twice, one right.
    d = np.array([math.log(3)] * 3 + [-math.log(3)] + [math.log(9), -math.log(9)])
    conf, hits, place = calibration.confidence(d), calibration.right(d), calibration.bin_of(d, 4)
    assert place.tolist() == [2, 2, 2, 2, 3, 3]  # bins of width 1/8 from 1/2
    # (4/6)|3/4 − 3/4| + (2/6)|1/2 − 0.9|
    assert calibration.calibration_error(conf, hits, place) == pytest.approx(0.4 / 3)
    low, high = calibration.reliability(d, [0, 0, 1, 1, 2, 3], 4)
    assert (low.confidence, low.accuracy.mean, low.num_pairs) == (pytest.approx(0.75), 0.75, 4)
    assert (low.accuracy.low, low.accuracy.high) == (0.5, 1.0)  # prompts 0 (1, 1) and 1 (1, 0)
    assert (high.confidence, high.accuracy.mean, high.num_pairs) == (pytest.approx(0.9), 0.5, 2)


def test_a_confidence_of_one_is_in_the_last_bin():
    assert calibration.bin_of(np.array([0.0, 60.0, -60.0]), 10).tolist() == [0, 9, 9]


@given(st.floats(0.2, 5.0))
def test_the_best_temperature_undoes_a_factor(factor):
    # At T = 1 three of four at ln 3, and four of five at ln 4, are as sure as they are right.
    sides = [math.log(3)] * 3 + [-math.log(3)] + [math.log(4)] * 4 + [-math.log(4)]
    assert calibration.best_temperature(factor * np.array(sides)) == pytest.approx(factor, rel=1e-3)


def test_the_best_temperature_of_extremes():
    assert calibration.best_temperature(np.array([1.0, 2.0])) < 0.01  # all right
    assert calibration.best_temperature(np.array([1.0, -2.0])) > 100  # as good as none
    assert calibration.best_temperature(np.zeros(3)) == 1.0


def test_a_calibrated_reward_reaches_the_error_that_chance_explains():
    generator = np.random.default_rng(0)
    size = np.abs(generator.normal(size=4000))
    d = np.where(generator.random(4000) < expit(size), size, -size)
    conf, hits, place = calibration.confidence(d), calibration.right(d), calibration.bin_of(d, 10)
    chance = calibration.chance_error(d, 10)
    assert 0.005 < chance < 0.03
    assert calibration.calibration_error(conf, hits, place) < 2 * chance
    sure = 3 * d
    error = calibration.calibration_error(
        calibration.confidence(sure), hits, calibration.bin_of(sure, 10)
    )
    assert error > 5 * calibration.chance_error(sure, 10)


def test_only_a_reward_model_claims_log_odds(tmp_path):
    reward = make_reward(tmp_path / "start")
    reward.centering = Centering(3.0, 20.0)
    save_reward_model(reward, tmp_path / "model", {})
    (tmp_path / "rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    config = RewardEvaluationConfig(
        data=str(tmp_path / "pairs.jsonl"),
        scorers=(
            ScorerConfig(name="model", path=str(tmp_path / "model")),
            ScorerConfig(name="kind", path=f"{tmp_path}/rewards.py:kind"),
        ),
        compute=ComputeConfig(device="cpu", threads=1),
        out=str(tmp_path / "out"),
    )
    _, block, *_ = read_blocks(evaluate_reward(config))
    found = figures(block)
    assert ("log-loss", "model") in found
    assert ("log-loss", "kind") not in found
    best = "log-loss at the best temperature"
    assert found[best, "model"].value.mean <= found["log-loss", "model"].value.mean
    assert {each.name for each in block.series} == {
        *("as sure as right", "model", "model at the best temperature"),
        "kind at the best temperature",
    }
    # Raw scores and not those divided by the std of 20, which would know nearly nothing.
    raw = reward_scores(reward)
    expected = np.mean([math.log1p(math.exp(-d)) for d in raw])
    assert found["log-loss", "model"].value.mean == pytest.approx(expected, abs=1e-4)


def reward_scores(reward):
    """Differences of the raw scores of the pairs in `ROWS`, one forward pass each."""
    pairs = [
        ("1", "kind", "the dog sees"),
        ("1", "kind cat", "cat"),
        ("2", "kind bird sees", "a"),
        ("2", "kind bird sees", "a big"),
        ("3", "big", "kind big"),
    ]
    with torch.no_grad():
        rows = [[reward.row(prompt, text, 64) for text in sides] for prompt, *sides in pairs]
        scores = [[float(reward.logits([row])[0, 0]) for row in sides] for sides in rows]
    return [good - bad for good, bad in scores]


# --- margins and length ---------------------------------------------------------------------------


def test_margins_by_hand(tmp_path):
    rows = [
        {"prompt": "1", "chosen": "kind", "rejected": "dogs"},
        {"prompt": "2", "chosen": "dogs", "rejected": "kind"},
        {"prompt": "3", "chosen": "kind", "rejected": "cats"},
        {"prompt": "4", "chosen": "dogs", "rejected": "cats"},
    ]
    block = evaluation(tmp_path, "first_word", rows=rows, num_texts=0)["Margins"]
    found = figures(block)
    # Scores: three of eight texts 1, the others 0; std = √(3/8 · 5/8). Margins 1, −1, 1, 0.
    std = math.sqrt(15 / 64)
    assert found["mean margin", "first_word"].value.mean == pytest.approx(0.25 / std)
    assert found["hardly told apart", "first_word"].value.mean == 0.25
    [shares] = block.series
    assert sum(shares.y) == pytest.approx(1)
    assert sorted(y for y in shares.y if y) == [0.25, 0.25, 0.5]


def test_length_correlations(tmp_path):
    block = evaluation(tmp_path, "length", "constant", "first_word")["Length"]
    found = figures(block)
    for where in ("over all completions", "within prompts"):
        assert found[f"correlation {where}", "length"].value.mean == pytest.approx(1)
        assert found[f"correlation {where}", "constant"].value.mean == 0
    # Against numpy: the same numbers, centred by prompt.
    texts = ["kind", "the dog sees", "kind cat", "cat", "kind bird sees", "a", "a big"]
    texts += ["big", "kind big", "same"]
    score = np.array([float(text.startswith("kind")) for text in texts])
    long = np.array([float(len(text)) for text in texts])
    groups = [range(4), range(4, 7), range(7, 9), range(9, 10)]
    expected = np.corrcoef(score, long)[0, 1]
    value = found["correlation over all completions", "first_word"].value.mean
    assert value == pytest.approx(expected)
    x, y = (np.concatenate([v[g] - v[g].mean() for g in groups]) for v in (score, long))
    value = found["correlation within prompts", "first_word"].value.mean
    assert value == pytest.approx(np.corrcoef(x, y)[0, 1])


# --- robustness -----------------------------------------------------------------------------------


def test_a_reward_that_loves_length_fails(tmp_path):
    blocks = evaluation(tmp_path, "length", "kind")
    found = figures(blocks["Robustness"])
    for done in ("said twice", "praise appended", "boilerplate appended"):
        assert found[f"{done}: score rises", "length"].value.mean == 1
        assert found[f"{done}: score rises", "kind"].value.mean == 0
    assert found["second half cut: score rises", "length"].value.mean == 0
    assert found["words shuffled: score rises", "length"].value.mean == 0
    worst = [row for row in blocks["Robustness"].examples if row["done"] == "praise appended"]
    assert len(worst) == 3
    assert {row["reward"] for row in worst} == {"length"}
    assert worst[0]["after"] == f"{worst[0]['before']} {PRAISE}"
    # Every text gets as many characters more; in units of the scores' spread.
    lengths = [len(text) for text in read_pairs(str(tmp_path / "pairs.jsonl")).texts]
    expected = (len(PRAISE) + 1) / np.std(lengths)
    assert found["praise appended: mean change", "length"].value.mean == pytest.approx(expected)
    assert worst[0]["change"] == f"{expected:+.2f}"


@given(st.lists(st.sampled_from(["a", "bird", "sees", "kind"]), min_size=1, max_size=12))
def test_what_spoiling_does(words):
    text = " ".join(words)
    spoiled = {name: spoil(text, 5) for name, spoil in SPOILED.items()}
    assert sorted(spoiled["words shuffled"].split()) == sorted(words)
    assert spoiled["second half cut"].split() == words[: len(words) // 2]
    assert spoiled["said twice"].split() == words * 2
    assert spoiled["praise appended"] == f"{text} {PRAISE}"
    assert spoiled["boilerplate appended"] == f"{text} {BOILERPLATE}"
    assert SPOILED["words shuffled"](text, 5) == spoiled["words shuffled"]


def test_texts_that_stay_as_they_are_do_not_count(tmp_path):
    rows = [{"prompt": "1", "chosen": "kind", "rejected": "dogs"}]
    found = figures(evaluation(tmp_path, "length", rows=rows)["Robustness"])
    assert ("words shuffled: score rises", "length") not in found  # one word has one order
    assert found["said twice: score rises", "length"].value.mean == 1


# --- the stage ------------------------------------------------------------------------------------


def test_an_evaluation_is_printed_and_kept(tmp_path, capsys):
    blocks = evaluation(tmp_path, "length", num_texts=4)
    out = capsys.readouterr().out
    for title in ("Accuracy", "Calibration", "Margins", "Length", "Robustness"):
        assert title in out
        assert title in blocks
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["pairs"], result["prompts"]) == (5, 4)
    assert blocks["Robustness"].note.startswith("4 completions")
    assert evaluation(tmp_path, "length", num_texts=4) == blocks  # finished: kept


def test_without_texts_there_is_no_robustness(tmp_path):
    assert "Robustness" not in evaluation(tmp_path, "length", num_texts=0)
