import pytest
import torch

from tests.train import plain, toys
from tests.train.toys import DEVICE_BATCHES, KINDS, MODELS, PAIRS
from tether.config import KTOConfig
from tether.data.batches import Row
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
    assert max(estimates) > 0.1
    assert min(estimates) == 0


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
    assert history[0]["desirable_reward"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["desirable_reward"] > 0.5
    assert history[-1]["undesirable_reward"] < -0.5
    found = toys.result(tmp_path / "tuned")
    assert (found["completions"], found["held_out_completions"]) == (18, 6)
    for name in ("loss", "accuracy"):
        interval = found[f"held_out_{name}"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert history[-1][f"held_out_{name}"] == pytest.approx(interval["mean"])
    assert found["held_out_loss"]["mean"] < 0.45


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


def examples_of(*prompts):
    """One row of two prompt tokens (all but the last) and as many more as its number."""
    rows = [Row([i, i, *range(10, 10 + i + 1)], 2) for i in range(len(prompts))]
    examples = [
        training.Example(i, None, i % 2 == 0, 1.0, prompt) for i, prompt in enumerate(prompts)
    ]
    return rows, examples


def test_a_partner_is_the_next_completion_of_another_prompt():
    rows, examples = training.with_partners(*examples_of("a", "a", "b", "a"), 64, "file")
    assert [example.partner for example in examples] == [4, 5, 6, 7]
    # Of a: b, which is 2; of b: the next, 3; of the last: from the start again, 2 is the first.
    assert rows[4:] == [
        Row([0, 0, 10, 11, 12], 2),
        Row([1, 1, 10, 11, 12], 2),
        Row([2, 2, 10, 11, 12, 13], 2),
        Row([3, 3, 10, 11, 12], 2),
    ]


def test_a_partner_fits_into_the_longest_row():
    rows, examples = training.with_partners(*examples_of("a", "b", "c", "d"), 3, "file")
    # Of 3 tokens 1 is left for a completion, and only that of "a" has so few.
    assert [example.partner for example in examples] == [None, 4, 5, 6]
    assert rows[4:] == [Row([i, i, 10], 2) for i in (1, 2, 3)]


# --- what is refused, and what is told ------------------------------------------------------------


@pytest.mark.parametrize(("label", "missing"), [(True, "false"), (False, "true")])
def test_one_kind_only_is_refused(tmp_path, label, missing):
    rows = [{**row, "label": label} for row in THUMBS]
    told = rf"preferences.jsonl: no completion with label {missing} is left among 6; .*: add some"
    with pytest.raises(DataError, match=told):
        tune(tmp_path, toys.save(tmp_path), rows)
    assert not (tmp_path / "tuned").exists()


def test_one_prompt_only_is_refused(tmp_path):
    with pytest.raises(DataError, match="all 2 completions are of one prompt; KTO measures its KL"):
        tune(tmp_path, toys.save(tmp_path), THUMBS[:2])


def test_long_and_weightless_completions_are_dropped_and_counted(tmp_path, capsys):
    rows = [
        *THUMBS,
        {"prompt": "why ", "completion": "no " * 70, "label": True},  # 64 positions
        {"prompt": "why ", "completion": "it", "label": True, "weight": 0.0},
    ]
    tune(tmp_path, toys.save(tmp_path), rows)
    found = toys.result(tmp_path / "tuned")
    assert (found["completions"], found["dropped_completions"]) == (6, 2)
    assert "2 of 8 completions dropped: too long, or of weight 0" in capsys.readouterr().err


def test_nothing_left_to_learn_is_refused(tmp_path):
    rows = [{"prompt": "why ", "completion": "no", "label": True, "weight": 0.0}]
    with pytest.raises(DataError, match="each of 1 completions has weight 0 or exceeds 64 tokens"):
        tune(tmp_path, toys.save(tmp_path), rows, batch_size=2)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "why ", "completion": "no"}, "no liked or disliked completion in the fields"),
        ({"prompt": "why ", "completion": "no", "label": 2}, "label=2 must be true or false"),
    ],
)
def test_bad_rows_are_told_with_their_line(tmp_path, row, told):
    with pytest.raises(DataError, match=rf"preferences.jsonl:2: .*{told}"):
        tune(tmp_path, toys.save(tmp_path), [THUMBS[0], row])


def test_it_tells_of_kinds_that_do_not_balance(tmp_path, capsys):
    rows = [*THUMBS, *(dict(THUMBS[2], completion=text) for text in ("a dog", "it", "me", "dog"))]
    tune(tmp_path, toys.save(tmp_path), rows)
    told = " ".join(capsys.readouterr().err.split())
    assert "7 of 10 completions are liked" in told
    assert "they count as 7 against 3" in told
    weighted = {"undesirable_weight": 2.0, "out": str(tmp_path / "weighted")}
    tune(tmp_path, toys.save(tmp_path), rows, **weighted)
    assert "are liked" not in capsys.readouterr().err
