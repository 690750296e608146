"""GRPO, RLOO, REINFORCE++, online DPO and best-of-n: what they do otherwise than PPO."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.train import toys
from tests.train.toys import KINDS, roles
from tether.config import (
    BestOfNConfig,
    GRPOConfig,
    OnlineDPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from tether.data.batches import Row, lengths_mask
from tether.data.rollout import Rollout, Scored
from tether.errors import CheckError, DataError
from tether.rundir import StageFolder
from tether.sections import KLConfig, OptimizerConfig, PolicyLossConfig, PtxConfig
from tether.train import choose, online
from tether.train.aim import aim, target_metrics
from tether.train.choose import accumulate_pairs, extremes
from tether.train.ptx import load_ptx
from tether.train.reference import sequence_logprobs
from tether.train.reward import train_reward

METHODS = {
    "grpo": (GRPOConfig, online.train_grpo, {"num": 4}),
    "rloo": (RLOOConfig, online.train_rloo, {"num": 4}),
    "reinforce": (ReinforceConfig, online.train_reinforce, {}),
    "online-dpo": (OnlineDPOConfig, online.train_online_dpo, {}),
    "best-of-n": (BestOfNConfig, online.train_best_of_n, {}),
}
every_method = pytest.mark.parametrize("method", METHODS)


def run(method, tmp_path, path, **changes) -> Path:
    cls, train, settings = METHODS[method]
    settings = {"out": str(tmp_path / "run"), **settings, **changes}
    return train(toys.online(cls, tmp_path, path, **settings))


# --- aim ------------------------------------------------------------------------------------------


def given(scores, old, reference, lengths) -> Scored:
    """A scored rollout of which only these numbers matter."""
    mask = lengths_mask(lengths)
    rows = [Row([0] * (length + 1), 1) for length in lengths]
    texts = [""] * len(rows)
    finished = torch.ones(len(rows), dtype=torch.bool)
    old = torch.tensor(old)
    rollout = Rollout([*texts], texts, rows, mask, old, finished)
    scores = torch.tensor(scores)
    return Scored(rollout, old, torch.tensor(reference), scores, scores, None, None)


# Two prompts of two completions; scores 1, 3 and -2, 0.5; junk stands on the pads.
#   log π_old − log π_ref per token: (0.2, 0.4), (−0.2), (0.5, 0.5), (1)
#   R = score − 0.5·Σ k1 = 1 − 0.3, 3 + 0.1, −2 − 0.5, 0.5 − 0.5 = 0.7, 3.1, −2.5, 0
FOUR = given(
    [1.0, 3.0, -2.0, 0.5],
    [[-1.0, -2.0], [-0.7, 9e9], [-1.5, -0.5], [-1.0, math.inf]],
    [[-1.2, -2.4], [-0.5, -3e9], [-2.0, -1.0], [-2.0, math.nan]],
    [2, 1, 2, 1],
)
IN_REWARD = KLConfig(beta=0.5)


def advantages(config, beta=0.5):
    targets = aim(FOUR, config, beta)
    assert not targets.advantages[~FOUR.rollout.mask].any()
    assert target_metrics(targets).keys() == {"reward"}
    first, second = targets.advantages[:, 0], targets.advantages[[0, 2], 1]
    assert torch.equal(first[[0, 2]], second)  # the same for all tokens of a completion
    return first.tolist()


def settings(cls, tmp_path, **changes):
    return toys.online(cls, tmp_path, "unused", **{"kl": IN_REWARD, "batch_size": 4, **changes})


def test_rloo_compares_with_the_others_of_the_prompt(tmp_path):
    #   0.7 − 3.1, 3.1 − 0.7, −2.5 − 0, 0 + 2.5
    config = settings(RLOOConfig, tmp_path, num=2)
    assert advantages(config) == pytest.approx([-2.4, 2.4, -2.5, 2.5])
    # Four completions of one prompt: 0.7 − (3.1 − 2.5 + 0)/3 = 0.5, …
    config = settings(RLOOConfig, tmp_path, num=4)
    assert advantages(config) == pytest.approx([0.5, 3.7, -3.766667, -0.433333], abs=1e-5)


def test_grpo_standardizes_within_the_prompt(tmp_path):
    #   deviations ∓1.2 and ∓1.25; std with ddof 1: √2·1.2 = 1.6970563 and √2·1.25 = 1.7677670
    #   1.2 / 1.6971563 = 0.7070651, 1.25 / 1.7678670 = 0.7070668
    config = settings(GRPOConfig, tmp_path, num=2)
    assert advantages(config) == pytest.approx([-0.7070651, 0.7070651, -0.7070668, 0.7070668])
    config = settings(GRPOConfig, tmp_path, num=2, divide_by_std=False)
    assert advantages(config) == pytest.approx([-1.2, 1.2, -1.25, 1.25])
    # With the KL in the loss the reward is the score alone: ∓1 and ∓1.25
    config = replace(config, kl=KLConfig(beta=0.5, placement="loss", estimator="k3"))
    assert advantages(config) == pytest.approx([-1.0, 1.0, -1.25, 1.25])


def test_reinforce_standardizes_over_the_batch(tmp_path):
    #   mean (0.7 + 3.1 − 2.5 + 0)/4 = 0.325; deviations 0.375, 2.775, −2.825, −0.325
    #   variance (0.140625 + 7.700625 + 7.980625 + 0.105625)/4 = 3.981875, σ = 1.9954636
    config = settings(ReinforceConfig, tmp_path)
    expected = [0.1879263, 1.3906543, -1.4157111, -0.1628694]
    assert advantages(config) == pytest.approx(expected, abs=1e-6)


def test_the_mean_reward_is_told(tmp_path):
    targets = aim(FOUR, settings(RLOOConfig, tmp_path, num=2), 0.5)
    assert target_metrics(targets)["reward"] == pytest.approx(0.325)


# --- what is chosen -------------------------------------------------------------------------------


def test_best_and_worst_of_each_prompt():
    scores = torch.tensor([0.5, 2.0, -1.0, 3.0, 3.0, 3.0])
    best, worst = extremes(scores, 3)
    assert (best.tolist(), worst.tolist()) == ([1, 3], [2, 3])  # of equals the first


@KINDS
def test_sequence_logprobs_are_sums_over_completions(tmp_path, kind):
    policy = roles(tmp_path, kind).policy
    rows = [Row([3, 4, 5, 6], 2), Row([3, 4], 1), Row([7, 8, 9, 10, 11, 12], 3)]
    plain = AutoModelForCausalLM.from_pretrained(toys.save(tmp_path, kind))
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = plain(torch.tensor([row.ids])).logits[0] / 0.7
        logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(row.ids[1:])[:, None])
        expected.append(float(logprobs[row.num_prompt - 1 :].sum()))
    found = sequence_logprobs(policy, rows, temperature=0.7)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@KINDS
def test_online_dpo_is_dpo_on_best_and_worst(tmp_path, kind):
    """Its gradient is that of −log σ(β·difference of log-ratios), written out."""
    some = roles(tmp_path, kind)
    rows = [Row([3, 4, 5, 6], 2), Row([3, 4, 7], 2), Row([9, 8], 1), Row([9, 10, 11, 12], 1)]
    mask = lengths_mask([2, 1, 1, 3])
    reference = torch.tensor([[-1.0, -2.0, 8.0], [-3.0, 8.0, 8.0], [-2.5, 8.0, 8.0], [-1.0] * 3])
    scored = given([1.0, 3.0, 2.0, 0.5], reference.tolist(), reference.tolist(), [2, 1, 1, 3])
    scored = scored._replace(rollout=scored.rollout._replace(rows=rows, mask=mask))
    config = toys.online(OnlineDPOConfig, tmp_path, "unused", batch_size=4, beta=0.3)
    metrics = accumulate_pairs(some.policy, scored, [(1, 0), (2, 3)], config)
    found = toys.gradients(some.policy.model)
    logprobs = [sequence_logprobs(some.policy, [row])[0] for row in rows]
    ratios = [own - held for own, held in zip(logprobs, (-3.0, -3.0, -2.5, -3.0), strict=True)]
    margins = torch.stack([0.3 * (ratios[1] - ratios[0]), 0.3 * (ratios[2] - ratios[3])])
    loss = -torch.nn.functional.logsigmoid(margins).mean()
    loss.backward()
    toys.assert_same(toys.gradients(some.policy.model), found, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-6)
    assert float(metrics["margin"]) == pytest.approx(margins.mean().item(), abs=1e-5)
    for size in (1, 2, 3):
        part = replace(config, device_batch_size=size)
        accumulate_pairs(some.policy, scored, [(1, 0), (2, 3)], part)
        toys.assert_same(toys.gradients(some.policy.model), found, atol=1e-6)


def test_the_first_loss_of_online_dpo_is_log_2(tmp_path):
    path = toys.save(tmp_path)
    row = toys.metrics(run("online-dpo", tmp_path, path, minibatches=1, steps=1))[0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["margin"] == pytest.approx(0, abs=1e-5)
    assert 0 < row["decided"] <= 1


def test_equal_scores_decide_nothing(tmp_path):
    """No pair, no gradient, no NaN: the weights are those of the start."""
    (tmp_path / "same.py").write_text("def same(p, c):\n    return [1.0] * len(c)\n")
    path = toys.save(tmp_path)
    rewards = (toys.RewardConfig(path=f"{tmp_path}/same.py:same"),)
    out = run("online-dpo", tmp_path, path, rewards=rewards, missing_eos_penalty=0.0)
    assert [row["decided"] for row in toys.metrics(out)] == [0, 0]
    toys.assert_same(toys.weights(out), toys.load_file(Path(path) / "model.safetensors"))


def test_best_of_n_learns_the_best_alone(tmp_path, monkeypatch):
    """What it hands to supervised fine-tuning are the best rows of the rollout."""
    seen = []
    losses = choose.sft.losses

    def spied(policy, batch, size):
        seen.append(batch)
        return losses(policy, batch, size)

    monkeypatch.setattr(choose.sft, "losses", spied)
    scored = []
    improve = online.improve_on_best
    monkeypatch.setattr(
        online,
        "improve_on_best",
        lambda policy, optimizer, given, *rest, **more: (
            scored.append(given) or improve(policy, optimizer, given, *rest, **more)
        ),
    )
    out = run("best-of-n", tmp_path, toys.save(tmp_path), steps=1)
    [one] = scored
    groups = one.scores.view(2, 4)
    best = [4 * i + int(group.argmax()) for i, group in enumerate(groups)]
    learned = [row for batch in seen for row, _ in batch]
    assert sorted(learned) == sorted(one.rollout.rows[i] for i in best)
    assert all(weight == 1 for batch in seen for _, weight in batch)
    row = toys.metrics(out)[0]
    assert row["best_score"] == pytest.approx(groups.amax(1).mean().item())
    assert row["best_score"] >= row["score"]


# --- whole runs -----------------------------------------------------------------------------------


@every_method
@KINDS
def test_a_run_starts_at_no_distance_and_moves(tmp_path, method, kind):
    path = toys.save(tmp_path, kind)
    out = run(method, tmp_path, path, keep_every=1)
    rows = toys.metrics(out)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["kl"] != pytest.approx(0, abs=1e-5)
    assert "value_loss" not in rows[0]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert toys.result(out)["kind"] == method
    made_by = json.loads((out / "model" / "tether.json").read_text())["made_by"]
    assert made_by == f"tether {method}"
    # The model after the first step was kept; the last one is the stage's model.
    assert [each.name for each in (out / "models").iterdir()] == ["step-000001"]
    kept = AutoModelForCausalLM.from_pretrained(out / "models" / "step-000001")
    start = AutoModelForCausalLM.from_pretrained(path)
    last = AutoModelForCausalLM.from_pretrained(out / "model")
    weights = [next(iter(model.parameters())) for model in (start, kept, last)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@every_method
def test_the_device_batch_changes_nothing(tmp_path, method):
    path = toys.save(tmp_path)
    runs = [
        toys.weights(
            run(method, tmp_path, path, out=str(tmp_path / str(size)), device_batch_size=size)
        )
        for size in (0, 1, 3)
    ]
    toys.assert_same(runs[0], runs[1], atol=1e-6)
    toys.assert_same(runs[0], runs[2], atol=1e-6)


@every_method
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, method, monkeypatch):
    path = toys.save(tmp_path)
    options = {"steps": 4, "checkpoint_every": 1, "keep_every": 2}
    whole = run(method, tmp_path, path, out=str(tmp_path / "whole"), **options)
    log = StageFolder.log

    def stop(self, row, *rest):
        log(self, row, *rest)
        if row["step"] == 3 and not rest:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageFolder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run(method, tmp_path, path, out=str(tmp_path / "parts"), **options)
    monkeypatch.setattr(StageFolder, "log", log)
    parts = run(method, tmp_path, path, out=str(tmp_path / "parts"), **options)
    toys.assert_same(toys.weights(whole), toys.weights(parts))
    assert [row["step"] for row in toys.metrics(parts)] == [1, 2, 3, 4]


@every_method
def test_it_learns_to_be_kind(tmp_path, method):
    rates = {"best-of-n": 1e-2, "online-dpo": 5e-3}
    changes = {
        "steps": 20,
        "batch_size": 32,
        "optimizer": OptimizerConfig(learning_rate=rates.get(method, 5e-3), schedule="constant"),
        "missing_eos_penalty": 0.0,
    }
    if method in ("grpo", "rloo", "reinforce"):
        changes["kl"] = KLConfig(beta=0.02)
    out = run(method, tmp_path, toys.save(tmp_path, initializer_range=0.05), **changes)
    scores = [row["score_raw"] for row in toys.metrics(out)]
    assert sum(scores[:3]) / 3 < 1 < 2 < sum(scores[-3:]) / 3


@pytest.mark.parametrize("changes", [{"clip_high": 0.5}, {"dual_clip": 2.0}, {"level": "sequence"}])
def test_the_settings_of_the_policy_loss_reach_it(tmp_path, changes):
    path = toys.save(tmp_path)
    options = {"epochs": 4, "optimizer": OptimizerConfig(learning_rate=2e-2)}
    plain = run("rloo", tmp_path, path, out=str(tmp_path / "plain"), **options)
    changed = run(
        "rloo", tmp_path, path, policy_loss=PolicyLossConfig(clip=0.05, **changes), **options
    )
    with pytest.raises(AssertionError, match="differs"):
        toys.assert_same(toys.weights(plain), toys.weights(changed), atol=1e-5)


# --- texts mixed in -------------------------------------------------------------------------------


def with_ptx(**settings):
    return PolicyLossConfig(ptx=PtxConfig(**settings))


def test_ptx_adds_the_gradient_of_other_texts(tmp_path):
    some = roles(tmp_path)
    data = toys.write_rows(tmp_path / "texts.jsonl", toys.DEMONSTRATIONS)
    config = toys.online(
        RLOOConfig, tmp_path, "unused", num=2, policy_loss=with_ptx(data=data, coefficient=0.3)
    )
    texts = load_ptx(some.policy, config)
    loss = texts.accumulate(some.policy, config, 8, step=0, number=0)  # all eight
    found = toys.gradients(some.policy.model)
    tokens = sum(row.num_completion for row, _ in texts.examples)
    total = -sum(sequence_logprobs(some.policy, [row])[0] for row, _ in texts.examples)
    (0.3 * total / tokens).backward()
    toys.assert_same(toys.gradients(some.policy.model), found, atol=1e-6)
    assert float(loss) == pytest.approx(total.item() / tokens, abs=1e-5)
    assert load_ptx(some.policy, replace(config, policy_loss=PolicyLossConfig())) is None


def test_a_run_with_ptx_keeps_closer_to_the_texts(tmp_path):
    path = toys.save(tmp_path)
    data = toys.write_rows(tmp_path / "texts.jsonl", toys.DEMONSTRATIONS)
    options = {"steps": 6, "optimizer": OptimizerConfig(learning_rate=5e-3)}
    with_texts = with_ptx(data=data, coefficient=1.0, batch_size=4)
    rows = toys.metrics(run("rloo", tmp_path, path, policy_loss=with_texts, **options))
    assert rows[-1]["ptx_loss"] < rows[0]["ptx_loss"]
    assert data in toys.result(tmp_path / "run")["inputs"]


def test_texts_that_cannot_be_used_are_refused(tmp_path):
    path = toys.save(tmp_path)
    data = toys.write_rows(tmp_path / "empty.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match="has no completion token to learn from"):
        run("rloo", tmp_path, path, policy_loss=with_ptx(data=data))
    assert not (tmp_path / "run").exists()


# --- checks ---------------------------------------------------------------------------------------


@every_method
def test_a_reward_without_numbers_stops_it(tmp_path, method):
    rewards = (toys.RewardConfig(path=f"{toys.write_rewards(tmp_path)}:nan"),)
    with pytest.raises(CheckError, match="returned nan for the completion"):
        run(method, tmp_path, toys.save(tmp_path), rewards=rewards)


@pytest.mark.parametrize(("heads", "told"), [(1, False), (3, True)])
def test_an_ensemble_tells_how_much_it_disagrees(tmp_path, heads, told):
    path = toys.save(tmp_path)
    rows = [
        {"prompt": row["prompt"], "completions": ["kind", "no"], "ranks": [1, 2]}
        for row in toys.DEMONSTRATIONS
    ]
    reward = train_reward(toys.reward(tmp_path, path, rows, heads=heads, batch_size=4))
    rewards = (toys.RewardConfig(path=str(reward / "model")),)
    found = toys.metrics(run("rloo", tmp_path, path, rewards=rewards))
    assert all(("disagreement" in row) == told for row in found)
    assert not told or all(row["disagreement"] > 0 for row in found)
