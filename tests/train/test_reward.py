import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.tiny import CHAT_TEMPLATE, WORDS, byte_bpe_tokenizer
from tests.train import toys
from tests.train.toys import DEVICE_BATCHES, KIND_WORDS, KINDS, MODELS
from tether.config import RewardModelConfig
from tether.data.formats import read_comparisons
from tether.errors import DataError
from tether.models.scalar_head import new_reward_model, save_reward_model
from tether.records import PreferencePair, Ranking
from tether.sections import ComputeConfig, OptimizerConfig
from tether.train import reward as training
from tether.train.reward import train_reward

# One ranking with a tie and two fails, pairs on the same prompt and on another, a longer ranking.
ROWS = [
    {
        "prompt": "the cat ",
        "completions": ["sees it", "likes the big dog", "no", "fears a small bird yes", "sorry"],
        "ranks": [1, 2, 2, None, None],
    },
    {"prompt": "why ", "chosen": "please tell me", "rejected": "no"},
    {"prompt": "who helps ", "completions": ["a kind dog", "me", "it"], "ranks": [3, 1, 2]},
    {"prompt": "why ", "chosen": "thanks", "rejected": "please tell me"},
]
LABELED = [
    {"prompt": "why ", "chosen": "yes", "rejected": "no", "margin": 0.75},
    {"prompt": "why ", "chosen": "thanks", "rejected": "no", "probability": 0.25, "weight": 3.0},
    {"prompt": "who ", "chosen": "a cat", "rejected": "the big red dog", "weight": 0.5},
    {"prompt": "who ", "chosen": "it", "rejected": "a cat", "margin": -0.5, "probability": 0.9},
]


def reward_model(path, trainable=False):
    """A reward model whose head is not 0, so that scores differ by about one unit."""
    reward = new_reward_model(path, ComputeConfig())
    with torch.no_grad():
        reward.head.weight.copy_(torch.linspace(-0.5, 0.7, 32))
    reward.model.requires_grad_(trainable)
    return reward


def groups_of(reward, rows, folder, max_length=0):
    comparisons = read_comparisons(toys.write_rows(folder / "rows.jsonl", rows))
    config = settings(folder, max_length=max_length)
    return training.tokenize(reward, training.group(comparisons), config)


def settings(folder, **changes):
    """Settings of a training; only those of the loss and the batch matter here."""
    config = {"model": "-", "data": "rows.jsonl", "out": str(folder / "-"), **changes}
    return RewardModelConfig(**config)


def plain_scores(folder, texts):
    """Scores of whole texts by plain transformers, padded on the right, end token added."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([f"{text} <eos>" for text in texts], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**batch).logits[:, 0].double()


def plain_pairs(rows):
    """(prompt + better, prompt + worse) of every decided pair, counted out here anew."""
    for row in rows:
        if "chosen" in row:
            yield row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]
            continue
        places = [99 if rank is None else rank for rank in row["ranks"]]
        for i, better in enumerate(row["completions"]):
            for j, worse in enumerate(row["completions"]):
                if places[i] < places[j]:
                    yield row["prompt"] + better, row["prompt"] + worse


# --- the loss -------------------------------------------------------------------------------------


@MODELS
def test_loss_is_that_of_all_pairs_by_plain_transformers(tmp_path, kind, pad_is_eos):
    reward = reward_model(toys.save(tmp_path, kind, pad_is_eos), trainable=True)
    save_reward_model(reward, tmp_path / "saved", {})
    better, worse = zip(*plain_pairs(ROWS), strict=True)
    assert len(better) == 8 + 3 + 2  # 1st before 4, two seconds before 2 fails each; 3; 2 pairs
    gaps = plain_scores(tmp_path / "saved", better) - plain_scores(tmp_path / "saved", worse)
    groups, dropped = groups_of(reward, ROWS, tmp_path)
    assert (len(groups), dropped) == (3, 0)
    found = training._backward(reward, groups, settings(tmp_path))
    assert found["loss"] == pytest.approx(torch.log1p((-gaps).exp()).mean().item(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((gaps > 0).double().mean().item())
    assert 0.2 < found["accuracy"] < 0.8


@KINDS
def test_probability_margin_and_weight_are_used(tmp_path, kind):
    reward = reward_model(toys.save(tmp_path, kind), trainable=True)
    save_reward_model(reward, tmp_path / "saved", {})
    better, worse = zip(*plain_pairs(LABELED), strict=True)
    gaps = plain_scores(tmp_path / "saved", better) - plain_scores(tmp_path / "saved", worse)
    z = gaps - torch.tensor([0.75, 0, 0, -0.5])
    p = torch.tensor([1, 0.25, 1, 0.9])
    losses = p * torch.log1p((-z).exp()) + (1 - p) * torch.log1p(z.exp())
    expected = (torch.tensor([1, 3, 0.5, 1]) * losses).sum() / 5.5
    for size in (0, 1):
        config = settings(tmp_path, device_batch_size=size)
        found = training._backward(reward, groups_of(reward, LABELED, tmp_path)[0], config)
        assert found["loss"] == pytest.approx(expected.item(), abs=1e-5)
    loss, _ = training.held_out(reward, groups_of(reward, LABELED, tmp_path)[0], "pairwise")
    assert loss == pytest.approx(expected.item(), abs=1e-5)


def test_training_starts_at_log_2(tmp_path):
    train_reward(toys.reward(tmp_path, toys.save(tmp_path), ROWS))
    assert toys.metrics(tmp_path / "reward")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


# --- device batches -------------------------------------------------------------------------------


@MODELS
def test_device_batches_change_neither_loss_nor_gradient(tmp_path, kind, pad_is_eos):
    reward = reward_model(toys.save(tmp_path, kind, pad_is_eos), trainable=True)
    groups, _ = groups_of(reward, [*ROWS, *LABELED], tmp_path)
    assert len(groups) == 4
    found = []
    for size in DEVICE_BATCHES:
        loss = training._backward(reward, groups, settings(tmp_path, device_batch_size=size))
        found.append((loss, toys.gradients(reward.model)))
    for loss, gradient in found:
        assert loss == pytest.approx(found[-1][0], abs=1e-6)
        toys.assert_same(gradient, found[-1][1], atol=3e-6)


@KINDS
def test_device_batches_give_the_same_parameters_after_a_step(tmp_path, kind):
    path, stepped = toys.save(tmp_path, kind), []
    for size in DEVICE_BATCHES:
        out = str(tmp_path / f"reward-{size}")
        config = toys.reward(tmp_path, path, ROWS, out=out, batch_size=3, device_batch_size=size)
        train_reward(config)
        stepped.append((toys.weights(out), toys.metrics(out)[0]))
    last, row = stepped[-1]
    for found, metrics in stepped:
        toys.assert_same(found, last, atol=1e-6)
        assert metrics["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-5)
    assert last["score.weight"].abs().max() > 5e-4


def test_device_batches_hold_whole_groups_and_few_rows(tmp_path):
    groups, _ = groups_of(reward_model(toys.save(tmp_path)), ROWS, tmp_path)
    for rows, sizes in {0: [11], 1: [5, 3, 3], 6: [5, 6], 8: [8, 3]}.items():
        parts = training.chunks(groups, rows)
        assert [sum(len(group.rows) for group in part) for part in parts] == sizes


def test_batches_of_one(tmp_path):
    config = toys.reward(
        tmp_path, toys.save(tmp_path), ROWS[1:2], batch_size=1, device_batch_size=1
    )
    train_reward(config)
    [row] = toys.metrics(tmp_path / "reward")
    assert math.isfinite(row["loss"])
    assert row["accuracy"] == 0.5  # equal scores


# --- which pairs train ----------------------------------------------------------------------------


def test_groups_hold_all_that_is_known_of_a_prompt():
    records = [
        Ranking(prompt="a", completions=["x", "y", "z"], ranks=[2.0, 1.0, 2.0]),
        PreferencePair(prompt="b", chosen="x", rejected="y"),
        PreferencePair(
            prompt="a", chosen="w", rejected="x", margin=2.0, probability=0.75, weight=3.0
        ),
    ]
    one, other = training.group(records)
    assert (one.completions, other.completions) == (["x", "y", "z", "w"], ["x", "y"])
    assert one.pairs == [(1, 0, 1, 0, 1), (1, 2, 1, 0, 1), (3, 0, 0.75, 2, 3)]


def test_equal_long_and_weightless_pairs_are_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": "why ", "chosen": "yes", "rejected": "yes "},  # the same tokens
        {"prompt": "why ", "chosen": "yes", "rejected": "no", "weight": 0.0},
        {"prompt": "why ", "chosen": "no " * 70, "rejected": "no"},  # 64 positions
        {"prompt": "why ", "completions": ["it", "cat " * 70, "dog"], "ranks": [1, 2, 3]},
        {"prompt": "who ", "chosen": "cat " * 70, "rejected": "dog " * 70},
    ]
    train_reward(toys.reward(tmp_path, toys.save(tmp_path, "gpt2"), rows))
    found = toys.result(tmp_path / "reward")
    assert (found["pairs"], found["dropped_pairs"]) == (1, 6)
    reward = reward_model(toys.save(tmp_path, "gpt2"))
    [group], _ = groups_of(reward, rows, tmp_path)
    texts = [reward.tokenizer.decode(row.ids) for row in group.rows]
    assert [texts[i] for i in group.pairs[0][:2]] == ["why it <eos>", "why dog <eos>"]
    assert max(len(row.ids) for row in group.rows) <= 64


def test_pairs_that_truncation_would_make_equal_are_dropped(tmp_path):
    rows = [
        {"prompt": "the cat ", "chosen": "sees it and", "rejected": "sees it or"},
        {"prompt": "why ", "chosen": "yes", "rejected": "no"},
    ]
    reward = reward_model(toys.save(tmp_path))
    groups, dropped = groups_of(reward, rows, tmp_path, max_length=5)
    assert dropped == 1
    assert [group.prompt for group in groups] == ["why "]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why ", "chosen": "yes", "rejected": "yes"},
        {"prompt": "why ", "completions": ["yes", "no"], "ranks": [1, 1]},
        {"prompt": "why ", "completions": ["yes", "no"], "ranks": [None, None]},
    ],
)
def test_nothing_left_to_learn_is_refused(tmp_path, row):
    config = toys.reward(tmp_path, toys.save(tmp_path), [row])
    with pytest.raises(DataError, match=r"none of \d pairs can be used: each is a tie"):
        train_reward(config)
    assert not (tmp_path / "reward").exists()


def test_held_out_prompts_share_no_pair_with_training(tmp_path):
    rows = [
        {"prompt": f"the {noun} ", "chosen": better, "rejected": "no"}
        for better in ("yes", "please", "thanks")  # three rows a prompt, far apart
        for noun in ("cat", "dog", "bird", "a", "it", "me", "who", "what")
    ]
    train_reward(toys.reward(tmp_path, toys.save(tmp_path), rows, held_out=0.25))
    found = toys.result(tmp_path / "reward")
    # 8 prompts of 3 pairs; a quarter is 2 prompts with all their pairs
    assert (found["pairs"], found["held_out_pairs"]) == (18, 6)


# --- the result -----------------------------------------------------------------------------------


@MODELS
def test_centring_is_mean_and_std_of_the_raw_scores(tmp_path, kind, pad_is_eos):
    optimizer = OptimizerConfig(learning_rate=1e-2)
    path = toys.save(tmp_path, kind, pad_is_eos)
    train_reward(toys.reward(tmp_path, path, ROWS, epochs=6.0, optimizer=optimizer))
    folder = tmp_path / "reward" / "model"
    texts = {text for pair in plain_pairs(ROWS) for text in pair}
    scores = plain_scores(folder, sorted(texts)).numpy()
    stored = json.loads((folder / "tether.json").read_text())["centering"]
    assert stored["shift"] == pytest.approx(scores.mean(), abs=1e-5)
    assert stored["scale"] == pytest.approx(np.std(scores), abs=1e-5)
    assert stored["scale"] > 0.1
    assert toys.result(tmp_path / "reward")["centering"] == stored


@KINDS
def test_it_learns_a_planted_preference(tmp_path, kind):
    # Better is what holds more kind words; neither length nor the other words tell.
    draw = np.random.default_rng(5)
    rows = []
    for number in range(300):
        texts = [" ".join(draw.choice(WORDS, draw.integers(2, 7))) for _ in range(3)]
        counts = [sum(text.split().count(word) for word in KIND_WORDS) for text in texts]
        ranks = [1 + sum(other > count for other in counts) for count in counts]
        prompt = f"{WORDS[number % len(WORDS)]} {WORDS[number // len(WORDS)]} "
        rows.append({"prompt": prompt, "completions": texts, "ranks": ranks})
    config = toys.reward(
        tmp_path,
        toys.save(tmp_path, kind),
        rows,
        epochs=8.0,
        batch_size=12,
        held_out=0.3,
        evaluate_every=40,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    train_reward(config)
    found = toys.result(tmp_path / "reward")
    accuracy = found["held_out_accuracy"]
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert accuracy["mean"] > 0.9
    assert found["held_out_loss"] < 0.4
    assert found["length_baseline_accuracy"] < 0.75
    evaluated = {r["step"]: r for r in toys.metrics(tmp_path / "reward") if "held_out_loss" in r}
    assert list(evaluated) == [40, 80, found["steps"]]
    assert evaluated[found["steps"]]["held_out_accuracy"] == pytest.approx(accuracy["mean"])


def test_one_held_out_prompt_has_an_accuracy_without_an_interval(tmp_path):
    train_reward(toys.reward(tmp_path, toys.save(tmp_path), ROWS, held_out=0.3))
    found = toys.result(tmp_path / "reward")
    assert 0 <= found["held_out_accuracy"].pop("mean") <= 1
    assert found["held_out_accuracy"] == {"low": None, "high": None}


def test_without_held_out_prompts_there_is_no_accuracy(tmp_path):
    train_reward(toys.reward(tmp_path, toys.save(tmp_path), ROWS))
    found = toys.result(tmp_path / "reward")
    assert found["held_out_pairs"] == 0
    assert "held_out_accuracy" not in found


def test_long_chats_keep_their_pairs_and_lose_their_oldest_turns(tmp_path, capsys):
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    asked = [{"role": "user", "content": "why"}]
    before = [{"role": "user", "content": "the cat " * 30}, {"role": "assistant", "content": "a"}]
    rows = [{"prompt": before + asked, "chosen": "yes", "rejected": "no"}]
    model = reward_model(toys.save(tmp_path, tokenizer=tokenizer))
    [found], dropped = groups_of(model, rows, tmp_path)
    assert dropped == 0
    assert "1 of 1 prompts truncated" in " ".join(capsys.readouterr().err.split())
    [short], _ = groups_of(model, [{**rows[0], "prompt": asked}], tmp_path)
    assert found.rows == short.rows
    assert found.prompt == before + asked
