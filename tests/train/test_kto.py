import pytest
import torch

from tests.train import plain, toys
from tests.train.toys import DEVICE_BATCHES, KINDS, MODELS, PAIRS
from tether.config import KTOConfig
from tether.errors import DataError
from tether.sections import OptimizerConfig
from tether.train import kto as training
from tether.train.kto import train_kto

# The partner of each, by hand: the next one with another prompt, after the last the first.
THUMBS = [
    {"prompt": "the cat ", "completion": "sees the small kind dog", "label": True},  # 2
    {"prompt": "the cat ", "completion": "no", "label": False, "weight": 3.0},  # 2
    {"prompt": "who likes the big red dog ", "completion": "a bird", "label": True},  # 3
    {"prompt": "why ", "completion": "please tell me about it", "label": True, "weight": 0.5},  # 4
    {"prompt": "a ", "completion": "dog dog dog dog dog dog", "label": False},  # 5
    {"prompt": "the cat ", "completion": "thanks", "label": False},  # 2
]
PARTNERS = (2, 2, 3, 4, 5, 2)
STILL = OptimizerConfig(learning_rate=1e-12)


def tune(tmp_path, model, rows=THUMBS, **changes):
    """Train as the settings say; the rows of metrics.jsonl."""
    return toys.metrics(train_kto(toys.preference(tmp_path, model, KTOConfig, rows, **changes)))


def plain_ratios(path, other, rows, partners):
    """Log-ratios of policy and reference of the completions, and of the mismatched ones."""
    texts = [(row["prompt"], row["completion"]) for row in rows]
    crossed = [
        (row["prompt"], THUMBS[j]["completion"]) for row, j in zip(rows, partners, strict=True)
    ]
    return (
        plain.logprobs(path, each)[0] - plain.logprobs(other, each)[0] for each in (texts, crossed)
    )


def plain_losses(ratios, kl, rows, beta=0.1, up=1.0, down=1.0):
    """The loss of each example by the paper's equation 8, with 1 - σ(x) = σ(-x)."""
    liked = torch.tensor([row["label"] for row in rows])
    gain = beta * torch.where(liked, ratios - kl, kl - ratios)
    return torch.where(liked, up, down) * torch.sigmoid(-gain)


@MODELS
def test_the_loss_is_the_papers_by_plain_transformers(tmp_path, kind, pad_is_eos):
    # Seeds by which the KL's estimate is above 0 one way round, and so 0 the other.
    paths = [toys.save(tmp_path / str(seed), kind, pad_is_eos, seed=seed) for seed in (0, 3)]
    weight = torch.tensor([row.get("weight", 1.0) for row in THUMBS])
    liked = torch.tensor([row["label"] for row in THUMBS])
    estimates = []
    for path, other in (paths, paths[::-1]):
        ratios, crossed = plain_ratios(path, other, THUMBS, PARTNERS)
        kl = crossed.mean().clamp(min=0)
        losses = plain_losses(ratios, kl, THUMBS, up=1.5, down=0.7)
        changes = {"reference": other, "desirable_weight": 1.5, "undesirable_weight": 0.7}
        [row] = tune(tmp_path, path, **changes, out=f"{path}-tuned")
        assert row["kl"] == pytest.approx(kl.item(), abs=1e-4)
        assert row["loss"] == pytest.approx(((weight * losses).sum() / 7.5).item(), rel=1e-5)
        for name, chosen in (("desirable_reward", liked), ("undesirable_reward", ~liked)):
            mean = (weight * 0.1 * ratios)[chosen].sum() / weight[chosen].sum()
            assert row[name] == pytest.approx(mean.item(), abs=1e-4)
        estimates.append(row["kl"])
    assert max(estimates) > 1 and min(estimates) == 0


def test_it_starts_at_one_half_with_kl_0(tmp_path):
    [row] = tune(tmp_path, toys.save(tmp_path))
    assert row["loss"] == pytest.approx(0.5, abs=1e-6)  # σ(0), whatever the label
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["desirable_reward"] == pytest.approx(0, abs=1e-5)


def test_log_probs_are_of_the_liked_and_of_the_others(tmp_path):
    path = toys.save(tmp_path)
    sums, counts = plain.logprobs(path, [(row["prompt"], row["completion"]) for row in THUMBS])
    [row] = tune(tmp_path, path)
    liked = (sums[0] + sums[2] + 0.5 * sums[3]) / 2.5
    assert row["desirable_logprob"] == pytest.approx(liked.item(), rel=1e-5)
    others = (3 * sums[1] + sums[4] + sums[5]) / 5
    assert row["undesirable_logprob"] == pytest.approx(others.item(), rel=1e-5)
    assert row["tokens"] == counts.sum()


def test_a_batch_of_one_kind_has_no_mean_of_the_other(tmp_path):
    rows = [*THUMBS[:2], *(dict(THUMBS[2], completion=text) for text in ("a dog", "it", "me"))]
    history = tune(tmp_path, toys.save(tmp_path), rows, batch_size=2, max_steps=5)
    missing = [row["undesirable_reward"] for row in history].count(None)
    assert 0 < missing < 5


@KINDS
def test_device_batches_change_nothing(tmp_path, kind):
    path, found = toys.save(tmp_path, kind), []
    other = toys.save(tmp_path / "reference", kind, seed=3)
    for size in DEVICE_BATCHES:
        out = str(tmp_path / str(size))
        [row] = tune(tmp_path, path, reference=other, device_batch_size=size, out=out)
        found.append((row, toys.weights(out)))
    for row, weights in found:
        for name, value in found[-1][0].items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        toys.assert_same(weights, found[-1][1], atol=2e-6)


def test_rewards_part_and_held_out_examples_follow(tmp_path):
    nouns = ("cat", "dog", "bird", "it", "me", "who", "what", "why")
    rows = [
        {"prompt": f"the {noun} ", "completion": text, "label": label}
        for noun in nouns
        for text, label in (("thanks please", True), ("no sorry", False), ("helps", True))
    ]
    settings = {"batch_size": 8, "max_steps": 30, "held_out": 0.25, "evaluate_every": 30}
    fast = OptimizerConfig(learning_rate=3e-3)
    history = tune(tmp_path, toys.save(tmp_path), rows, **settings, optimizer=fast)
    gaps = [row["desirable_reward"] - row["undesirable_reward"] for row in history]
    assert gaps[-1] > gaps[0] + 0.2
    found = toys.result(tmp_path / "tuned")
    assert (found["completions"], found["held_out_completions"]) == (18, 6)
    for name in ("loss", "accuracy"):
        interval = found[f"held_out_{name}"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert history[-1][f"held_out_{name}"] == pytest.approx(interval["mean"])
    assert found["held_out_accuracy"]["mean"] == 1


def test_pairs_train_as_one_of_each(tmp_path):
    path, other = toys.save(tmp_path), toys.save(tmp_path / "reference", seed=3)
    thumbs = [
        {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
        for pair in PAIRS
        for key in ("chosen", "rejected")
    ]
    [one] = tune(tmp_path, path, PAIRS, batch_size=12, reference=other)
    [two] = tune(tmp_path, path, thumbs, reference=other, out=str(tmp_path / "thumbs"))
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-6), name


# --- partners -------------------------------------------------------------------------------------


def examples_of(path, rows, max_length=0):
    policy = training.load(path, toys.preference.__globals__["ComputeConfig"]())
    return policy
