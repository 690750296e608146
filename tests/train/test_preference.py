import math
import re

import pytest
import torch

from tests.tiny import CHAT_TEMPLATE, byte_bpe_tokenizer
from tests.train import plain, toys
from tests.train.toys import DEVICE_BATCHES, KINDS, MODELS, PAIRS
from tether.config import DPOConfig, IPOConfig, ORPOConfig, SimPOConfig
from tether.data.batches import split_by_prompt
from tether.errors import ConfigError, DataError, ModelError
from tether.sections import OptimizerConfig
from tether.train.preference import train_dpo, train_ipo, train_orpo, train_simpo
from tether.train.sft import train_sft

TRAIN = {
    DPOConfig: train_dpo,
    IPOConfig: train_ipo,
    SimPOConfig: train_simpo,
    ORPOConfig: train_orpo,
}
METHODS = pytest.mark.parametrize("method", TRAIN)
KEYS = ("chosen", "rejected")
# Soft labels and weights on top of the plain pairs.
LABELED = [
    {**row, "probability": p, "weight": w}
    for row, p, w in zip(PAIRS, (1, 0.75, 1, 0.3, 0, 0.5), (1, 2, 0.5, 1, 3, 1), strict=True)
]


def tune(tmp_path, method, model, rows=PAIRS, **changes):
    """Train as the settings say; the rows of metrics.jsonl."""
    out = TRAIN[method](toys.preference(tmp_path, model, method, rows, **changes))
    return toys.metrics(out)


@pytest.fixture
def models(tmp_path):
    """A policy and a reference that differ."""
    return toys.save(tmp_path), toys.save(tmp_path / "reference", seed=3)


# --- the losses, against plain transformers -------------------------------------------------------


def softplus(x):
    return torch.log1p(x.exp())


def expected_loss(method, policy, reference):
    """(loss of a pair, loss of the swapped pair) by the papers' equations, with the defaults."""
    (c, r, nc, nr), (rc, rr, _, _) = policy, reference
    if method is DPOConfig:
        h = 0.1 * ((c - rc) - (r - rr))
        return softplus(-h), softplus(h)
    if method is IPOConfig:
        h = (c - rc) / nc - (r - rr) / nr
        return (h - 5) ** 2, (h + 5) ** 2  # 1/(2 · 0.1)
    if method is SimPOConfig:
        d = 2 * (c / nc - r / nr)
        return softplus(1 - d), softplus(1 + d)
    odds = [(m - torch.log(1 - m.exp())) for m in (c / nc, r / nr)]
    gap = odds[0] - odds[1]
    return -c / nc + 0.1 * softplus(-gap), -r / nr + 0.1 * softplus(gap)


@METHODS
@MODELS
def test_the_loss_is_the_papers_by_plain_transformers(tmp_path, kind, pad_is_eos, method):
    path, other = (toys.save(tmp_path / str(s), kind, pad_is_eos, seed=s) for s in (0, 3))
    policy, reference = plain.pairs(path, LABELED), plain.pairs(other, LABELED)
    right, swapped = expected_loss(method, policy, reference)
    p, w = (torch.tensor([row[name] for row in LABELED]) for name in ("probability", "weight"))
    expected = (w * (p * right + (1 - p) * swapped)).sum() / w.sum()
    named = {"reference": other} if method in (DPOConfig, IPOConfig) else {}
    [row] = tune(tmp_path, method, path, LABELED, **named)
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert row["chosen_logprob"] == pytest.approx(
        ((w * policy[0]).sum() / w.sum()).item(), rel=1e-5
    )
    assert row["rejected_logprob"] == pytest.approx(
        ((w * policy[1]).sum() / w.sum()).item(), rel=1e-5
    )
    assert row["tokens"] == (policy[2] + policy[3]).sum()


def test_rewards_margin_and_accuracy_are_those_of_the_log_ratios(tmp_path, models):
    path, other = models
    (c, r, *_), (rc, rr, *_) = plain.pairs(path, PAIRS), plain.pairs(other, PAIRS)
    chosen, rejected = 0.3 * (c - rc), 0.3 * (r - rr)
    [row] = tune(tmp_path, DPOConfig, path, reference=other, beta=0.3)
    assert row["chosen_reward"] == pytest.approx(chosen.mean().item(), abs=1e-4)
    assert row["rejected_reward"] == pytest.approx(rejected.mean().item(), abs=1e-4)
    assert row["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
    assert row["accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert 0 < row["accuracy"] < 1


def test_without_a_reference_its_log_probs_are_0(tmp_path):
    path = toys.save(tmp_path)
    c, r, *_ = plain.pairs(path, PAIRS)
    [row] = tune(tmp_path, DPOConfig, path, reference="none", beta=0.05)
    assert row["loss"] == pytest.approx(softplus(0.05 * (r - c)).mean().item(), rel=1e-5)


def test_smoothed_and_robust_labels(tmp_path, models):
    path, other = models
    (c, r, *_), (rc, rr, *_) = plain.pairs(path, PAIRS), plain.pairs(other, PAIRS)
    h = 0.1 * ((c - rc) - (r - rr))
    smooth = (0.8 * softplus(-h) + 0.2 * softplus(h)).mean().item()
    robust = ((0.8 * softplus(-h) - 0.2 * softplus(h)) / 0.6).mean().item()
    settings = {"reference": other, "label_smoothing": 0.2}
    [row] = tune(tmp_path, DPOConfig, path, **settings)
    assert row["loss"] == pytest.approx(smooth, abs=1e-5)
    [row] = tune(tmp_path, DPOConfig, path, **settings, robust=True, out=str(tmp_path / "robust"))
    assert row["loss"] == pytest.approx(robust, abs=1e-5)


@pytest.mark.parametrize("size", [0, 1])
def test_nll_is_a_token_of_the_better_completions(tmp_path, size):
    path = toys.save(tmp_path)
    c, r, nc, nr = plain.pairs(path, LABELED)
    p, w = (torch.tensor([row[name] for row in LABELED]) for name in ("probability", "weight"))
    nll = -(w * (p * c + (1 - p) * r)).sum() / (w * (p * nc + (1 - p) * nr)).sum()
    [row] = tune(tmp_path, DPOConfig, path, LABELED, nll=0.25, device_batch_size=size)
    # Policy = reference, so the preference part is log 2.
    assert row["loss"] == pytest.approx(math.log(2) + 0.25 * nll.item(), rel=1e-5)


# --- at the start ---------------------------------------------------------------------------------


@KINDS
def test_dpo_starts_at_log_2_with_rewards_0(tmp_path, kind):
    [row] = tune(tmp_path, DPOConfig, toys.save(tmp_path, kind), device_batch_size=2)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("margin", "chosen_reward", "rejected_reward"):
        assert row[name] == pytest.approx(0, abs=1e-5)


@KINDS
def test_ipo_starts_at_the_square_of_its_target(tmp_path, kind):
    [row] = tune(tmp_path, IPOConfig, toys.save(tmp_path, kind), beta=0.25)
    assert row["loss"] == pytest.approx(4.0, abs=1e-4)  # (1/(2 · 0.25))²


def test_labels_of_one_half_have_no_gradient_at_the_start(tmp_path):
    [row] = tune(tmp_path, DPOConfig, toys.save(tmp_path), label_smoothing=0.5)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["grad_norm"] == pytest.approx(0, abs=1e-4)


def test_a_swapped_pair_with_the_opposite_label_is_the_same_pair(tmp_path, models):
    path, other = models
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "probability": 0.0}
        for row in PAIRS
    ]
    settings = {"reference": other, "nll": 0.5}
    [one] = tune(tmp_path, DPOConfig, path, **settings)
    [two] = tune(tmp_path, DPOConfig, path, swapped, **settings, out=str(tmp_path / "swapped"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["margin"] == pytest.approx(-one["margin"], abs=1e-5)
    toys.assert_same(
        toys.weights(tmp_path / "tuned"), toys.weights(tmp_path / "swapped"), atol=1e-5
    )


# --- device batches and learning ------------------------------------------------------------------


@METHODS
@KINDS
def test_device_batches_change_nothing(tmp_path, kind, method):
    path, found = toys.save(tmp_path, kind), []
    # With the policy as the reference, rounding would decide the accuracy.
    named = {"reference": toys.save(tmp_path / "reference", kind, seed=3)}
    changes = named if method in (DPOConfig, IPOConfig) else {}
    changes |= {"nll": 0.5} if method is DPOConfig else {}
    for size in DEVICE_BATCHES:
        changes |= {"device_batch_size": size, "out": str(tmp_path / str(size))}
        [row] = tune(tmp_path, method, path, LABELED, **changes)
        found.append((row, toys.weights(tmp_path / str(size))))
    for row, weights in found:
        for name, value in found[-1][0].items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        toys.assert_same(weights, found[-1][1], atol=2e-6)


@METHODS
def test_the_margin_grows(tmp_path, method):
    """Kind words are preferred in every pair; held-out prompts follow."""
    nouns = ("cat", "dog", "bird", "it", "me", "who", "what", "why")
    rows = [
        {"prompt": f"the {noun} ", "chosen": chosen, "rejected": rejected}
        for noun in nouns
        for chosen, rejected in (("thanks please", "no sorry"), ("helps", "fears it"))
    ]
    history = tune(
        tmp_path,
        method,
        toys.save(tmp_path),
        rows,
        batch_size=8,
        max_steps=25,
        held_out=0.25,
        evaluate_every=25,
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    assert history[-1]["margin"] > history[0]["margin"] + 0.1
    assert history[-1]["accuracy"] == 1
    found = toys.result(tmp_path / "tuned")
    assert (found["pairs"], found["held_out_pairs"]) == (12, 4)
    for name in ("loss", "accuracy", "margin"):
        interval = found[f"held_out_{name}"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert history[-1][f"held_out_{name}"] == pytest.approx(interval["mean"])
    assert found["held_out_accuracy"]["mean"] == 1


def test_held_out_figures_are_of_each_pair_by_itself(tmp_path, models):
    path, other = models
    still = OptimizerConfig(learning_rate=1e-12)
    settings = {"reference": other, "held_out": 0.5, "optimizer": still, "nll": 0.5}
    tune(tmp_path, DPOConfig, path, LABELED, **settings)
    found = toys.result(tmp_path / "tuned")
    _, held = split_by_prompt([row["prompt"] for row in LABELED], 0.5, seed=0)
    rows = [LABELED[i] for i in held]
    (c, r, nc, nr), (rc, rr, *_) = plain.pairs(path, rows), plain.pairs(other, rows)
    p, h = torch.tensor([row["probability"] for row in rows]), 0.1 * ((c - rc) - (r - rr))
    nll = -(p * c + (1 - p) * r) / (p * nc + (1 - p) * nr)
    losses = p * softplus(-h) + (1 - p) * softplus(h) + 0.5 * nll
    assert found["held_out_pairs"] == len(rows) > 1
    assert found["held_out_loss"]["mean"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["held_out_margin"]["mean"] == pytest.approx(h.mean().item(), abs=1e-5)
    assert found["held_out_accuracy"]["mean"] == pytest.approx((h > 0).double().mean().item())


def test_it_says_once_that_both_log_probs_fell(tmp_path, capsys):
    """The reference has been trained on all completions, so they are likelier under it."""
    path = toys.save(tmp_path)
    texts = [{"prompt": r["prompt"], "completion": r[k]} for r in PAIRS for k in KEYS]
    data = toys.write_rows(tmp_path / "texts.jsonl", texts)
    train_sft(toys.sft(tmp_path, path, data=data, max_steps=30))
    other = str(tmp_path / "sft" / "model")
    (c, r, nc, nr), (rc, rr, *_) = plain.pairs(path, PAIRS), plain.pairs(other, PAIRS)
    falls = ((rc - c) / nc).mean().item(), ((rr - r) / nr).mean().item()
    assert min(falls) > 0.2
    still = OptimizerConfig(learning_rate=1e-12)
    settings = {"max_steps": 3, "evaluate_every": 1, "optimizer": still}
    tune(tmp_path, DPOConfig, path, reference=other, **settings)
    told = " ".join(capsys.readouterr().err.split())
    figures = re.findall(r"both log-probs fell: [^.]*? are (\S+) and the rejected (\S+) nats", told)
    assert figures == [tuple(f"{fall:.2f}" for fall in falls)]


def test_it_does_not_say_so_where_they_did_not(tmp_path, capsys):
    tune(tmp_path, DPOConfig, toys.save(tmp_path))
    tune(tmp_path, SimPOConfig, toys.save(tmp_path), out=str(tmp_path / "simpo"))
    assert "fell" not in capsys.readouterr().err


# --- what trains ----------------------------------------------------------------------------------


@KINDS
def test_chat_messages_train_as_the_template_writes_them(tmp_path, kind):
    tokenizer = byte_bpe_tokenizer(bos=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    path = toys.save(tmp_path, kind, tokenizer=tokenizer)
    user = {"role": "user", "content": "the dog?"}
    said = [{"role": "assistant", "content": text} for text in ("yes", "the dog sat")]
    rows = [{"chosen": [user, said[0]], "rejected": [user, said[1]]}]
    [row] = tune(tmp_path, ORPOConfig, path, rows)
    texts = [("[user]\nthe dog?\n[assistant]\n", answer["content"]) for answer in said]
    sums, counts = plain.logprobs(path, texts)
    assert row["tokens"] == counts.sum()
    assert row["chosen_logprob"] == pytest.approx(sums[0].item(), rel=1e-4)
    assert row["rejected_logprob"] == pytest.approx(sums[1].item(), rel=1e-4)


def test_rankings_train_as_their_pairs(tmp_path):
    path = toys.save(tmp_path)
    texts = ["a bird", "no", "it fears the cat", "sorry"]
    ranking = {"prompt": "who ", "completions": texts, "ranks": [1, 2, 2, None]}
    order = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]  # the tie and nothing else is undecided
    rows = [{"prompt": "who ", "chosen": texts[i], "rejected": texts[j]} for i, j in order]
    [one] = tune(tmp_path, SimPOConfig, path, [ranking], batch_size=5)
    [other] = tune(tmp_path, SimPOConfig, path, rows, out=str(tmp_path / "pairs"))
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name
    assert toys.result(tmp_path / "tuned")["pairs"] == 5


def test_equal_long_and_weightless_pairs_are_dropped_and_counted(tmp_path, capsys):
    rows = [
        {"prompt": "why ", "chosen": "yes", "rejected": "yes "},  # the same tokens
        {"prompt": "why ", "chosen": "please", "rejected": "no", "weight": 0.0},
        {"prompt": "why ", "chosen": "no " * 70, "rejected": "no"},  # 64 positions
        {"prompt": "the cat ", "chosen": "sees", "rejected": "no " * 70},
        {"prompt": "the cat ", "chosen": "sees", "rejected": "no"},
    ]
    tune(tmp_path, DPOConfig, toys.save(tmp_path), rows)
    found = toys.result(tmp_path / "tuned")
    assert (found["pairs"], found["dropped_pairs"]) == (1, 4)
    assert "4 pairs dropped: too long, the same on both sides" in capsys.readouterr().err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why ", "chosen": "no", "rejected": "no"},
        {"prompt": "why ", "completions": ["a", "no"], "ranks": [1, 1]},
        {"prompt": "why ", "chosen": "no", "rejected": "thanks", "weight": 0},
        {"prompt": "why ", "chosen": "no " * 70, "rejected": "thanks"},
    ],
)
@METHODS
def test_nothing_left_to_learn_is_refused(tmp_path, row, method):
    with pytest.raises(DataError, match=r"preferences.jsonl: none of \d pairs? can be used"):
        tune(tmp_path, method, toys.save(tmp_path), [row])
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "why ", "chosen": "no"}, "no comparison in the fields 'prompt', 'chosen'"),
        ({"prompt": "why ", "completion": "no", "label": True}, "no comparison in the fields"),
        ({"prompt": "why ", "chosen": 3, "rejected": "no"}, "chosen=3 must be a string"),
        (
            {"prompt": "why ", "chosen": "a", "rejected": "no", "probability": 1.5},
            r"probability=1.5 must be in \[0, 1\]",
        ),
    ],
)
def test_bad_rows_are_told_with_their_line(tmp_path, row, told):
    with pytest.raises(DataError, match=rf"preferences.jsonl:2: .*{told}"):
        tune(tmp_path, DPOConfig, toys.save(tmp_path), [PAIRS[0], row])


def test_robust_labels_cannot_be_soft(tmp_path):
    settings = {"robust": True, "label_smoothing": 0.1}
    with pytest.raises(ConfigError, match="robust=True needs pairs without a probability, but"):
        tune(tmp_path, DPOConfig, toys.save(tmp_path), LABELED, **settings)


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    other = toys.save(tmp_path / "other", tokenizer=byte_bpe_tokenizer())
    with pytest.raises(ConfigError, match=r"reference=.* has another vocabulary than the policy"):
        tune(tmp_path, DPOConfig, toys.save(tmp_path), reference=other)


def test_a_reference_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model=.*nowhere' does not exist"):
        tune(tmp_path, IPOConfig, toys.save(tmp_path), reference=str(tmp_path / "nowhere"))
