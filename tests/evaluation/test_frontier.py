import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.test_compare import PROMPTS, SAMPLING, samples, settings
from tests.evaluation.test_pool import settings as pool_settings
from tests.tiny import save_tiny
from tether.config import PolicyConfig
from tether.core import tilt
from tether.errors import ConfigError
from tether.evaluation.compare import evaluate
from tether.evaluation.overoptimization import ENOUGH, read_frontier
from tether.evaluation.pool import make_pool
from tether.pools import read_pool
from tether.records import read_jsonl, write_jsonl
from tether.statistics import cluster_bootstrap


def nudged(folder, name, by):
    """The first model a little changed, so that a small pool reaches it."""
    save_tiny(folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder / name)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(by * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder / name)
    return str(folder / name)


def beside_a_pool(folder, *, by=0.08, num=64, **changes):
    """An evaluation of the reference, a nudged policy and the best of 4, beside a pool."""
    config = settings(folder)
    pool = make_pool(pool_settings(folder, prompts=config.prompts, num=num))
    near = nudged(folder, "near", by)
    policies = (
        PolicyConfig(name="one", model=config.reference),
        PolicyConfig(name="near", model=near),
        PolicyConfig(name="best", model=config.reference, best_of=4),
    )
    values = {
        "policies": policies,
        "pool": f"{pool}/pool.jsonl",
        "num_samples": 8,
        "apart": ("new topic",),
        "proxy": "length",
    }
    return replace(config, **(values | changes))


def found(config):
    frontier = read_frontier(evaluate(config))
    return frontier, {each.policy: each for each in frontier.policies}


def test_the_frontier_is_that_of_the_pool_and_the_samples(tmp_path, capsys):
    config = beside_a_pool(tmp_path)
    answers = samples(config)
    frontier, by_policy = found(config)
    rows = read_pool(config.pool)[:3]  # the fourth prompt is reported apart
    scores = np.stack([row.of("length") for row in rows])
    assert (frontier.proxy, frontier.gold) == ("length", "vowels")
    assert (frontier.num_prompts, frontier.num_samples) == (3, 64)
    assert frontier.cap == pytest.approx(math.log(64))
    assert frontier.start["length"] == pytest.approx(scores.mean())
    near = by_policy["near"]
    own = np.array([[answers["near", i, j].scores["length"] for j in range(8)] for i in range(3)])
    gain = own.mean(axis=1) - scores.mean(axis=1)
    assert near.gains["length"] == pytest.approx(cluster_bootstrap(gain))
    nats = np.mean([answers["near", i, j].kl for i in range(3) for j in range(8)])
    assert near.kl.mean == pytest.approx(nats)
    assert nats > 0.02
    weights = tilt.weights(scores, tilt.solve_beta(scores, nats))
    best = (weights * scores).sum(axis=1).mean() - scores.mean()
    assert near.best == pytest.approx(best)
    assert near.efficiency.mean == pytest.approx(gain.mean() / best)
    assert (near.by, near.kl_by) == ("pool", "samples")
    assert near.ess >= ENOUGH
    # Nobody went from the reference to itself.
    assert (by_policy["one"].efficiency, by_policy["one"].by) == (None, "")
    printed = capsys.readouterr().out
    assert "3 prompts with 64 samples of the reference" in printed


def test_best_of_n_has_the_kl_of_its_ranks_in_the_pool(tmp_path):
    config = beside_a_pool(tmp_path, best_by="length")
    _, by_policy = found(config)
    scores = np.stack([row.of("length") for row in read_pool(config.pool)[:3]])
    exact = tilt.kl(tilt.best_of_n(scores, 4))
    assert by_policy["best"].kl.mean == pytest.approx(exact.mean())
    assert by_policy["best"].kl_by == "ranks"
    assert exact.mean() < tilt.best_of_n_bound(4)  # lengths tie
    assert by_policy["best"].efficiency.mean > 0.5


def test_best_of_n_of_another_model_has_a_bound(tmp_path):
    config = beside_a_pool(tmp_path)
    policies = tuple(replace(p, best_of=4) if p.name == "near" else p for p in config.policies)
    config = replace(config, policies=policies)
    answers = samples(config)
    _, by_policy = found(config)
    ratio = np.mean([answers["near", i, j].log_ratio for i in range(3) for j in range(8)])
    assert by_policy["near"].kl_by == "bound"
    assert by_policy["near"].kl.mean == pytest.approx(math.log(4) - 0.75 + ratio, rel=0.2)


def test_log_ratios_are_those_of_plain_transformers(tmp_path):
    config = beside_a_pool(tmp_path, num=4, num_samples=1, pool="")
    config = replace(config, sampling=replace(SAMPLING, temperature=0.7))
    answers = samples(config)
    near, one = (AutoModelForCausalLM.from_pretrained(tmp_path / x) for x in ("near", "one"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    for i, row in enumerate(PROMPTS):
        sample = answers["near", i, 0]
        text = f"{row['prompt']}{sample.completion}" + " <eos>" * (sample.num_tokens < 5)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        start = len(tokenizer(row["prompt"])["input_ids"])
        if ids.shape[1] - start != sample.num_tokens or (sample.finished and "<eos>" in text):
            continue  # it ended in a stop token whose text is not in the completion
        ours, theirs = (
            (model(ids).logits[0, start - 1 : -1].double() / 0.7)
            .log_softmax(-1)
            .gather(-1, ids[0, start:, None])
            .sum()
            .item()
            for model in (near, one)
        )
        assert sample.log_ratio == pytest.approx(ours - theirs, abs=1e-4)
        break
    else:
        pytest.fail("no completion to compare")


def test_far_policies_are_measured_with_their_own_samples(tmp_path):
    """Where the pool alone reaches with too few samples, the policy's own ones join it."""
    config = beside_a_pool(tmp_path, by=0.17, num=12, num_samples=24)
    answers = samples(config)
    _, by_policy = found(config)
    near, rows = by_policy["near"], read_pool(config.pool)[:3]
    assert near.by == "mixture"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "near")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "near")
    ratios, scores = [], []
    for i, row in enumerate(rows):
        own = [answers["near", i, j] for j in range(24)]
        prompt = tokenizer(row.prompt)["input_ids"]
        of_pool = []
        for token_ids, logprob in zip(row.token_ids, row.logprobs, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
            steps = logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])
            of_pool.append(steps.sum().item() - logprob)
        ratios.append(of_pool + [each.log_ratio for each in own])
        scores.append(row.scores["length"] + [each.scores["length"] for each in own])
    ratios, scores = np.array(ratios), np.array(scores)
    prior = 1 / (12 + 24 * np.exp(ratios))
    prior /= prior.sum(axis=1, keepdims=True)

    def tilted(beta):
        weights = prior * np.exp((scores - scores.max()) / beta)
        weights /= weights.sum(axis=1, keepdims=True)
        return weights, (weights * np.log(weights / prior)).sum(axis=1).mean()

    betas = np.geomspace(0.5, 500, 2000)
    beta = betas[np.argmin([abs(tilted(beta)[1] - near.kl.mean) for beta in betas])]
    weights, _ = tilted(beta)
    start = np.mean([row.scores["length"] for row in rows])
    assert near.best == pytest.approx((weights * scores).sum(axis=1).mean() - start, rel=1e-2)
    assert near.ess == pytest.approx((1 / (weights**2).sum(axis=1)).mean(), rel=1e-2)


def test_models_along_a_run_are_points_with_rows_by_prompt(tmp_path):
    config = beside_a_pool(tmp_path)
    stage = tmp_path / "stage"
    for step, by in ((1, 0.05), (2, 0.06), (3, 0.07)):
        model = nudged(tmp_path, f"step{step}", by)
        shutil.copytree(model, stage / f"models/step-00000{step}")
    shutil.copytree(tmp_path / "near", stage / "model")
    tuned = PolicyConfig(name="tuned", model=str(stage / "model"), curve=True)
    frontier, _ = found(replace(config, policies=(*config.policies, tuned)))
    rows = [row for _, row in read_jsonl(tmp_path / "evaluation/kept.jsonl")]
    assert [(row["step"], row["prompt_index"]) for row in rows] == [
        (step, i) for step in (1, 2, 3) for i in range(4)
    ]
    points = [each for each in frontier.measured if each.policy == "tuned"]
    assert [each.step for each in points] == [1, 2, 3, None]
    for point in points[:3]:
        own = [row for row in rows if row["step"] == point.step and row["prompt_index"] < 3]
        assert point.kl.mean == pytest.approx(np.mean([row["kl"] for row in own]))
        mean = np.mean([row["scores"]["length"] for row in own])
        assert point.gains["length"].mean == pytest.approx(mean - frontier.start["length"])
    assert [law.policy for law in frontier.laws] == ["tuned", "best of n"]
    assert frontier.laws[0].points == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": replace(SAMPLING, temperature=0.5)}, "sampled with temperature=1.0, not"),
        ({"sampling": replace(SAMPLING, max_new_tokens=4)}, "sampled with max_new_tokens=5, not"),
        ({"apart": ("harmless", "harmful")}, "shares 1 of its 4 prompts with"),
        ({"reference": "two"}, r"was sampled from .*one', not reference="),
        ({"rename": True}, "has no scores of 'size' but of length, vowels"),
        ({"rescore": True}, "was scored by another 'length' than"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(tmp_path, changes, message):
    config = beside_a_pool(tmp_path, num=2)
    first, second = config.scorers
    if changes.pop("rename", False):
        changes["scorers"], changes["proxy"] = (replace(first, name="size"), second), "vowels"
    if changes.pop("rescore", False):
        text = (tmp_path / "scorers.py").read_text()
        (tmp_path / "others.py").write_text(text + "\n# other")
        changes["scorers"] = (replace(first, path=f"{tmp_path}/others.py:length"), second)
    if "reference" in changes:
        changes["reference"] = str(tmp_path / changes["reference"])
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(replace(config, **changes))
    assert str(error.value).startswith("pool=")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evaluation").exists()


def test_a_pool_of_elsewhere_is_taken_at_its_word(tmp_path):
    config = beside_a_pool(tmp_path, num=8)
    rows = [row for _, row in read_jsonl(config.pool)]
    write_jsonl(tmp_path / "alone/pool.jsonl", rows)
    frontier, _ = found(replace(config, pool=str(tmp_path / "alone/pool.jsonl")))
    assert frontier.num_samples == 8


def test_a_pool_in_which_nothing_could_be_gained_is_refused(tmp_path):
    config = beside_a_pool(tmp_path, num=3)
    rows = [row for _, row in read_jsonl(config.pool)]
    flat = [row | {"scores": row["scores"] | {"length": [1.0] * 3}} for row in rows]
    write_jsonl(tmp_path / "alone/pool.jsonl", flat)
    with pytest.raises(ConfigError, match="has one 'length' score for all samples of a prompt"):
        evaluate(replace(config, pool=str(tmp_path / "alone/pool.jsonl")))


def test_a_pool_needs_a_reference(tmp_path):
    with pytest.raises(ConfigError, match="reference='' must be the model that the pool was sam"):
        settings(tmp_path, pool="pool.jsonl", reference="")
