"""Listwise and binary losses, ensembles and encoders, against plain transformers."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.tiny import WORDS, save_encoder
from tests.train import toys
from tests.train.test_reward import (
    LABELED,
    ROWS,
    plain_pairs,
    plain_scores,
    reward_model,
    settings,
)
from tests.train.toys import KINDS
from tether.config import RewardConfig
from tether.errors import DataError
from tether.models.scalar_head import new_reward_model, save_reward_model
from tether.rewards.load import load_reward
from tether.sections import ComputeConfig, OptimizerConfig
from tether.train import reward as training
from tether.train.reward import train_reward

# --- the other losses -----------------------------------------------------------------------------

THUMBS = [
    {"prompt": "the cat ", "completion": "sees it", "label": True},
    {"prompt": "the cat ", "completion": "no", "label": False, "weight": 2.5},
    {"prompt": "the cat ", "completion": "likes the big dog", "label": True, "weight": 0.5},
    {"prompt": "why ", "completion": "please tell me", "label": True},
    {"prompt": "who helps ", "completion": "sorry it cannot", "label": False},
    {"prompt": "the cat ", "completion": "sees it", "label": False},  # opinions differ
]
MODES = {
    "pairwise": ([*ROWS, *LABELED], {"centering": 0.25}),
    "listwise": (ROWS, {"loss": "listwise"}),
    "binary": (THUMBS, {"loss": "binary"}),
    "heads": ([*ROWS, *LABELED], {"heads": 3}),
    "listwise heads": (ROWS, {"loss": "listwise", "heads": 2, "seed": 3}),
    "binary heads": (THUMBS, {"loss": "binary", "heads": 2, "seed": 3}),
}
each_mode = pytest.mark.parametrize("mode", MODES)


def prepared(reward, rows, folder, **changes):
    """Groups with their rows, and the settings they are for."""
    data = toys.write_rows(folder / "rows.jsonl", rows)
    config = settings(folder, data=data, **changes)
    return training.tokenize(reward, training.read(config), config)[0], config


def plain_lists(rows):
    """Texts from best to worst in groups of equal rank, of every ranking and pair."""
    for row in rows:
        if "chosen" in row:
            yield [[row["prompt"] + row["chosen"]], [row["prompt"] + row["rejected"]]]
            continue
        places = [99 if rank is None else rank for rank in row["ranks"]]
        yield [
            [row["prompt"] + c for c, p in zip(row["completions"], places, strict=True) if p == q]
            for q in sorted(set(places))
        ]


def plain_listwise(folder, rows):
    """Of each ranking: minus log of the share of the best that is left, averaged over stages."""
    losses = []
    for tiers in plain_lists(rows):
        strengths = [plain_scores(folder, tier).exp() for tier in tiers]
        stages = [
            math.log(sum(float(each.sum()) for each in strengths[t:]) / float(strength))
            for t in range(len(tiers) - 1)
            for strength in strengths[t]
        ]
        losses.append(np.mean(stages))
    return losses


@KINDS
def test_listwise_loss_by_plain_transformers(tmp_path, kind):
    reward = reward_model(toys.save(tmp_path, kind), trainable=True)
    save_reward_model(reward, tmp_path / "saved", {})
    groups, config = prepared(reward, ROWS, tmp_path, loss="listwise")
    found = training._backward(reward, groups, config)
    # one ranking of five, one of three, two pairs
    expected = np.mean(plain_listwise(tmp_path / "saved", ROWS))
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    better, worse = zip(*plain_pairs(ROWS), strict=True)
    gaps = plain_scores(tmp_path / "saved", better) - plain_scores(tmp_path / "saved", worse)
    assert found["accuracy"] == pytest.approx((gaps > 0).double().mean().item())
    loss, agreed = training.held_out(reward, groups, "listwise")
    assert (loss, agreed.accuracy) == pytest.approx((expected, found["accuracy"]), abs=1e-5)


@KINDS
def test_on_pairs_listwise_is_pairwise(tmp_path, kind):
    rows = [row for row in [*ROWS, *LABELED] if "chosen" in row]
    rows = [
        {k: row[k] for k in ("prompt", "chosen", "rejected", "weight") if k in row} for row in rows
    ]
    reward = reward_model(toys.save(tmp_path, kind), trainable=True)
    found = []
    for loss in ("pairwise", "listwise"):
        groups, config = prepared(reward, rows, tmp_path, loss=loss)
        found.append((training._backward(reward, groups, config), toys.gradients(reward.model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    toys.assert_same(found[0][1], found[1][1], atol=1e-6)


@KINDS
def test_binary_loss_by_plain_transformers(tmp_path, kind):
    reward = reward_model(toys.save(tmp_path, kind), trainable=True)
    save_reward_model(reward, tmp_path / "saved", {})
    scores = plain_scores(tmp_path / "saved", [row["prompt"] + row["completion"] for row in THUMBS])
    side = torch.tensor([1, -1, 1, 1, -1, -1])
    weight = torch.tensor([1, 2.5, 0.5, 1, 1, 1])
    expected = (weight * torch.log1p((-side * scores).exp())).sum() / 7
    groups, config = prepared(reward, THUMBS, tmp_path, loss="binary")
    assert [len(group.rows) for group in groups] == [3, 1, 1]
    found = training._backward(reward, groups, config)
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-5)
    right = (side * scores > 0).double()
    assert found["accuracy"] == pytest.approx(((weight * right).sum() / 7).item())
    loss, agreed = training.held_out(reward, groups, "binary")
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert sorted(agreed.correct) == sorted(right.tolist())


def test_centering_is_added_to_the_loss(tmp_path):
    reward = reward_model(toys.save(tmp_path), trainable=True)
    save_reward_model(reward, tmp_path / "saved", {})
    better, worse = zip(*plain_pairs(LABELED), strict=True)
    sums = plain_scores(tmp_path / "saved", better) + plain_scores(tmp_path / "saved", worse)
    penalty = (torch.tensor([1, 3, 0.5, 1]) * sums**2).sum().item() / 5.5
    groups, config = prepared(reward, LABELED, tmp_path)
    plain = training._backward(reward, groups, config)["loss"]
    groups, config = prepared(reward, LABELED, tmp_path, centering=0.25)
    held = training._backward(reward, groups, config)["loss"]
    assert held - plain == pytest.approx(0.25 * penalty, abs=1e-5)


# --- ensembles ------------------------------------------------------------------------------------


@KINDS
def test_each_head_learns_from_its_resample(tmp_path, kind):
    reward = new_reward_model(toys.save(tmp_path, kind), ComputeConfig(), heads=3, seed=1)
    with torch.no_grad():
        reward.head.weight *= 20
    reward.model.requires_grad_(True)
    groups, config = prepared(reward, ROWS, tmp_path, heads=3)
    for group_, copies in zip(groups, [(0, 1, 2), (1, 0, 1), (3, 1, 0)], strict=True):
        group_.copies = copies
    found = training._backward(reward, groups, config)["loss"]
    gradient = toys.gradients(reward.model)["0.score.weight"]
    # Each head by itself on the pairs as often as they are there, by plain transformers.
    save_reward_model(reward, tmp_path / "saved", {})
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")

    def scores(text):
        return model(input_ids=tokenizer(f"{text} <eos>", return_tensors="pt")["input_ids"]).logits[
            0
        ]

    times = {"the cat ": (0, 1, 2), "why ": (1, 0, 1), "who helps ": (3, 1, 0)}
    losses = torch.zeros(3)
    pairs = list(plain_pairs(ROWS))
    for better, worse in pairs:
        count = next(torch.tensor(c) for prompt, c in times.items() if better.startswith(prompt))
        losses = losses + count * torch.log1p((scores(worse) - scores(better)).exp())
    expected = losses.sum() / len(pairs) / 3
    assert found == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    torch.testing.assert_close(gradient, model.score.weight.grad, atol=1e-5, rtol=1e-4)


def test_resamples_are_poisson_of_mean_one_and_functions_of_seed_head_and_prompt():
    drawn = np.array([[training.copies(0, h, f"prompt {i}") for i in range(2000)] for h in (0, 1)])
    # P(0) = 1/e = 0.368; four standard errors of a share of 2,000 are 0.043
    for counts in drawn:
        assert np.mean(counts == 0) == pytest.approx(0.368, abs=0.043)
        assert counts.mean() == pytest.approx(1, abs=0.09)
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.09
    assert training.copies(0, 1, "prompt 7") == drawn[1, 7]
    other = [training.copies(1, 0, f"prompt {i}") for i in range(2000)]
    assert abs(np.corrcoef(drawn[0], other)[0, 1]) < 0.09


def test_heads_train_apart_and_are_centred_one_by_one(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-2)
    config = toys.reward(
        tmp_path, toys.save(tmp_path), ROWS, heads=3, epochs=6.0, optimizer=optimizer
    )
    train_reward(config)
    folder = tmp_path / "reward" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = sorted({text for pair in plain_pairs(ROWS) for text in pair})
    with torch.no_grad():
        ids = [tokenizer(f"{text} <eos>", return_tensors="pt")["input_ids"] for text in texts]
        logits = torch.cat([model(input_ids=each).logits for each in ids]).double()
    stored = json.loads((folder / "tether.json").read_text())
    assert stored["centering"] is None
    for head, each in zip(logits.T, stored["heads"], strict=True):
        assert each["shift"] == pytest.approx(head.mean().item(), abs=1e-5)
        assert each["scale"] == pytest.approx(head.std(correction=0).item(), abs=1e-5)
    assert toys.result(tmp_path / "reward")["centering"] == stored["heads"]
    correlations = np.corrcoef(logits.T.numpy())
    assert correlations[np.triu_indices(3, 1)].max() < 0.9999


@pytest.mark.parametrize("heads", [1, 2])
def test_models_kept_on_the_way_are_rewards_too(tmp_path, heads):
    config = toys.reward(
        tmp_path, toys.save(tmp_path), ROWS, heads=heads, max_steps=2, keep_every=1
    )
    train_reward(config)
    written = {file.parent for file in (tmp_path / "reward").rglob("tether.json")}
    (kept,) = written - {tmp_path / "reward" / "model"}
    reward = load_reward(RewardConfig(path=str(kept)), ComputeConfig())
    assert (reward.judge(["why "], ["no"]).disagreement is None) == (heads == 1)


# --- all of them ----------------------------------------------------------------------------------


@each_mode
def test_device_batches_change_nothing_in_any_mode(tmp_path, mode):
    rows, changes = MODES[mode]
    heads, seed = changes.get("heads", 1), changes.get("seed", 0)
    reward = new_reward_model(toys.save(tmp_path), ComputeConfig(), heads=heads, seed=seed)
    with torch.no_grad():
        reward.head.weight += torch.linspace(-0.5, 0.7, 32)
    reward.model.requires_grad_(True)
    found = []
    for size in (1, 4, 0):
        groups, config = prepared(reward, rows, tmp_path, device_batch_size=size, **changes)
        figures = training._backward(reward, groups, config)
        found.append((figures, toys.gradients(reward.model)))
    for figures, gradient in found:
        assert figures == pytest.approx(found[-1][0], abs=1e-6)
        toys.assert_same(gradient, found[-1][1], atol=3e-6)
    assert found[-1][1]["0.score.weight"].abs().max() > 1e-3


def test_figures_on_held_out_labels(tmp_path):
    # 16 prompts of one label each; half are held out. Liked ones are longer, always.
    rows = [
        {
            "prompt": f"{word} ",
            "completion": "it helps the dog" if i % 4 == 0 else "no",
            "label": int(i % 4 == 0),
        }
        for i, word in enumerate(WORDS[:16])
    ]
    config = toys.reward(
        tmp_path,
        toys.save(tmp_path),
        rows,
        loss="binary",
        held_out=0.5,
        epochs=40.0,
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    train_reward(config)
    found = toys.result(tmp_path / "reward")
    assert (found["labels"], found["held_out_labels"], found["dropped_labels"]) == (8, 8, 0)
    assert found["held_out_accuracy"]["mean"] == 1.0
    assert 0 < found["held_out_loss"] < 0.5
    assert 0.5 <= found["majority_baseline_accuracy"] < 1


def test_labels_of_one_kind_are_refused(tmp_path):
    rows = [{"prompt": "why ", "completion": word, "label": False} for word in ("no", "yes")]
    config = toys.reward(tmp_path, toys.save(tmp_path), rows, loss="binary")
    with pytest.raises(DataError, match="all 2 labels are false; nothing can be told apart"):
        train_reward(config)
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize("row", [LABELED[0], LABELED[1]])
def test_rankings_cannot_hold_margins_and_probabilities(tmp_path, row):
    config = toys.reward(tmp_path, toys.save(tmp_path), [row], loss="listwise")
    with pytest.raises(DataError, match=r'which a ranking cannot hold; set loss = "pairwise"'):
        train_reward(config)


def test_a_ranking_loses_what_is_too_long(tmp_path):
    rows = [
        {"prompt": "why ", "completions": ["it", "cat " * 70, "dog"], "ranks": [1, 2, 3]},
        {"prompt": "who ", "completions": ["cat " * 70, "dog", "it"], "ranks": [1, 2, 2]},  # a tie
        {"prompt": "what ", "completions": ["it", "it"], "ranks": [1, 2]},
        {"prompt": "what ", "completions": ["it", "no", "me"], "ranks": [None, 2, 1]},
    ]
    reward = reward_model(toys.save(tmp_path, "gpt2"))
    data = toys.write_rows(tmp_path / "rows.jsonl", rows)
    config = settings(tmp_path, data=data, loss="listwise")
    groups, dropped = training.tokenize(reward, training.read(config), config)
    assert dropped == 2
    assert [[order[:2] for order in group.orders] for group in groups] == [
        [((0, 1), (1.0, 3.0))],
        [((0, 1, 2), (math.inf, 2.0, 1.0))],
    ]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("mode", ["pairwise", "listwise", "binary", "heads"])
def test_encoders_train_by_the_same_loop(tmp_path, kind, mode):
    rows, changes = MODES[mode]
    path = save_encoder(tmp_path / "encoder", kind)
    optimizer = OptimizerConfig(learning_rate=5e-3)
    config = toys.reward(
        tmp_path,
        path,
        rows,
        epochs=30.0,
        batch_size=3,
        device_batch_size=4,
        optimizer=optimizer,
        **changes,
    )
    train_reward(config)
    losses = [row["loss"] for row in toys.metrics(tmp_path / "reward")]
    assert losses[-1] < 0.8 * losses[0]
    found = load_reward(
        RewardConfig(path=str(tmp_path / "reward" / "model"), clip=0.0), ComputeConfig()
    )
    texts = ROWS[0]["completions"]
    scores = found.judge(["the cat "] * len(texts), texts).scores
    if mode == "listwise":
        assert scores[0] == max(scores)


def test_a_head_at_0_starts_an_encoder_at_log_2(tmp_path):
    train_reward(toys.reward(tmp_path, save_encoder(tmp_path / "encoder"), ROWS))
    assert toys.metrics(tmp_path / "reward")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
