import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.train import toys
from tests.train.toys import DEVICE_BATCHES, KINDS, MODELS, PROMPTS, SAMPLING, moved, roles
from tether.config import RewardConfig
from tether.core.kl import exact
from tether.data.batches import Row, pad
from tether.data.rollout import Rollout, Scored
from tether.errors import CheckError, ConfigError
from tether.models.chat import encode_prompt
from tether.models.language_model import completion_logprobs, load
from tether.models.scalar_head import Centering, new_reward_model
from tether.rewards.load import Reward, load_reward
from tether.sections import ComputeConfig, GAEConfig, KLConfig
from tether.train.aim import aim, rollout_metrics, sampled_kl, target_metrics
from tether.train.collect import Source, collect
from tether.train.score import score, score_texts

RAW = GAEConfig(standardize=False)

ASKED = [row["prompt"] for row in PROMPTS]
WARM = replace(SAMPLING, temperature=0.6)


def collected(policy, sampling=SAMPLING, *, prompts=ASKED, seed=0, step=0):
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    return collect(Source(policy, policy), prompts, ids, sampling, seed=seed, step=step)


def scored(roles, rollout, **changes):
    settings = {
        "temperature": 1.0,
        "missing_eos_penalty": 0.0,
        "bootstrap": False,
        "device_batch_size": 0,
        "rescore": True,
        **changes,
    }
    return score(rollout, roles.policy, roles.reference, roles.rewards, roles.value, **settings)


def plain_logprobs(path, rows, temperature):
    """Log-prob of every completion token by plain transformers, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(path)
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1] / temperature
        every = torch.log_softmax(logits, -1)
        yield every[torch.arange(len(every)), ids[0, 1:]][row.num_prompt - 1 :]


# --- collect --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [SAMPLING, WARM], ids=["T=1", "T=0.6"])
@MODELS
def test_a_rollout_holds_what_was_sampled(tmp_path, kind, pad_is_eos, sampling):
    some = roles(tmp_path, kind, pad_is_eos)
    rollout = collected(some.policy, sampling)
    lengths = rollout.mask.sum(1).tolist()
    assert len(set(lengths)) > 2
    assert {True, False} == set(rollout.finished.tolist())
    stops = {*sampling.stop_token_ids, some.policy.tokenizer.eos_token_id}
    path = toys.save(tmp_path, kind, pad_is_eos)
    plain = plain_logprobs(path, rollout.rows, sampling.temperature)
    for i, (row, expected) in enumerate(zip(rollout.rows, plain, strict=True)):
        assert row.num_completion == lengths[i] <= 6
        ended = row.ids[-1] in stops
        assert ended == bool(rollout.finished[i])
        assert not set(row.ids[row.num_prompt : -1]) & stops
        assert ended or lengths[i] == 6
        assert rollout.mask[i].tolist() == [t < lengths[i] for t in range(max(lengths))]
        torch.testing.assert_close(rollout.logprobs[i, : lengths[i]], expected, rtol=0, atol=1e-4)
        assert not rollout.logprobs[i, lengths[i] :].any()


@KINDS
def test_a_rollout_is_a_function_of_seed_and_step(tmp_path, kind):
    policy = roles(tmp_path, kind).policy
    first = collected(policy)
    again = collected(policy)
    assert again.rows == first.rows
    assert torch.equal(again.logprobs, first.logprobs)
    for other in (collected(policy, seed=1), collected(policy, step=1)):
        assert sum(a != b for a, b in zip(other.rows, first.rows, strict=True)) >= 6


def test_one_prompt_sampled_often_gives_different_completions(tmp_path):
    rollout = collected(roles(tmp_path).policy, prompts=["why "] * 16)
    assert len({tuple(row.ids) for row in rollout.rows}) > 12


# --- score: reward --------------------------------------------------------------------------------


def test_rewards_are_weighted_clipped_and_summed(tmp_path):
    # 2 · (4, -0.5), and ½ · (0.25 - 1)/0.5 = -0.75, ½ · (9 - 1)/0.5 = 8 cut to ½ · 3
    model = new_reward_model(toys.save(tmp_path), ComputeConfig())
    model.centering = Centering(1.0, 0.5)
    first = Reward(RewardConfig(path="x", weight=2.0), lambda p, c: [4.0, -0.5])
    config = RewardConfig(path="y", weight=0.5, clip=3.0)
    second = Reward(config, lambda p, c: [0.25, 9.0], model=model)
    rollout = Rollout(
        prompts=["p", "q"],
        completions=["a", "b"],
        rows=[Row([1, 2], 1)] * 2,
        mask=torch.ones(2, 1, dtype=torch.bool),
        logprobs=torch.zeros(2, 1),
        finished=torch.tensor([True, True]),
    )
    raw, total, metrics = score_texts(rollout, [first, second])
    assert raw.tolist() == [4.0, -0.5]
    assert total.tolist() == [8 - 0.75, -1 + 1.5]
    assert metrics == {"score_raw": 1.75, "score_1": 3.5, "score_2": 0.375}


def test_the_penalty_is_for_completions_that_were_cut(tmp_path):
    some = roles(tmp_path)
    rollout = collected(some.policy)
    free, _ = scored(some, rollout)
    fined, _ = scored(some, rollout, missing_eos_penalty=0.75)
    torch.testing.assert_close(fined.raw_scores, free.raw_scores)
    expected = torch.where(rollout.finished, 0.0, 0.75)
    torch.testing.assert_close(free.scores - fined.scores, expected)
    assert free.raw_scores.tolist() == [len(text) for text in rollout.completions]
    assert free.scores.max() == 5  # where rewards are cut


@pytest.mark.parametrize(("name", "message"), [("nan", "returned nan"), ("too_few", "1 scores")])
def test_a_reward_without_a_number_for_each_stops(tmp_path, name, message):
    some = roles(tmp_path)
    config = RewardConfig(path=f"{toys.write_rewards(tmp_path)}:{name}")
    some.rewards = [load_reward(config, ComputeConfig())]
    with pytest.raises(CheckError, match=message):
        scored(some, collected(some.policy))


def test_normalizing_by_statistics_that_are_not_there_is_refused(tmp_path):
    model = new_reward_model(toys.save(tmp_path), ComputeConfig())
    with pytest.raises(ConfigError, match="stored no mean and std to normalize by"):
        Reward(RewardConfig(path="x"), lambda p, c: [], model=model).normalize([1.0])
    plain = Reward(RewardConfig(path="x", normalize=False), lambda p, c: [], model=model)
    assert plain.normalize([1.0]) == [1.0]


# --- score: log-probs and values ------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [SAMPLING, WARM], ids=["T=1", "T=0.6"])
@MODELS
def test_at_the_start_sampler_trainer_and_reference_agree(tmp_path, kind, pad_is_eos, sampling):
    some = roles(tmp_path, kind, pad_is_eos)
    some.reference = some.policy
    temperature = sampling.temperature
    rollout = collected(some.policy, sampling)
    found, metrics = scored(some, rollout, temperature=temperature)
    assert metrics["sampler_trusted"] == 1
    assert metrics["logprob_gap_max"] < 1e-4
    assert torch.equal(found.old_logprobs, rollout.logprobs)
    gap = (found.old_logprobs - found.reference_logprobs).abs()
    assert gap.max() < 1e-4
    # The trainer's distribution is the sampler's: over the vocabulary it adds up to 1.
    row = rollout.rows[0]
    total = 0.0
    for token in range(some.policy.model.config.vocab_size):
        one = Row([*row.ids[: row.num_prompt], token], row.num_prompt)
        logprob, _ = completion_logprobs(some.policy, pad([one]), temperature=temperature)
        total += math.exp(logprob.item())
    assert total == pytest.approx(1, abs=1e-5)


def test_another_temperature_is_noticed(tmp_path):
    some = roles(tmp_path)
    with pytest.raises(CheckError, match="more than rounding, so it sampled from something else"):
        scored(some, collected(some.policy, WARM), temperature=1.0)


@KINDS
def test_weights_that_changed_since_sampling_are_noticed(tmp_path, kind):
    some = roles(tmp_path, kind)
    rollout = collected(some.policy)
    moved(some, by=0.05)
    with pytest.raises(CheckError, match="the sampler's log-probs differ from the policy's by"):
        scored(some, rollout)


def shifted(rollout, logprobs, by):
    return rollout._replace(logprobs=torch.where(rollout.mask, logprobs + by, 0.0))


@KINDS
def test_in_low_precision_the_trainer_s_log_probs_stand_in(tmp_path, kind):
    some = roles(tmp_path, kind)
    some.policy = load(toys.save(tmp_path, kind), ComputeConfig(precision="bfloat16"))
    rollout = collected(some.policy)
    trainer = scored(some, shifted(rollout, rollout.logprobs, 1.0))[0].old_logprobs
    assert (trainer - rollout.logprobs).abs().mean() < 0.05  # not those that were shifted
    one_token = torch.zeros_like(trainer)
    one_token[0, 0] = 0.06  # far off, but not on average
    cases = [(0.004, True), (0.006, False), (one_token, False), (one_token / 2, True)]
    for off, trusted in cases:
        claimed = shifted(rollout, trainer, off)
        found, metrics = scored(some, claimed)
        assert metrics["sampler_trusted"] == float(trusted)
        assert torch.equal(found.old_logprobs, claimed.logprobs if trusted else trainer)


@KINDS
def test_without_a_reference_there_is_no_distance(tmp_path, kind):
    some = roles(tmp_path, kind)
    some.reference = None
    found, metrics = scored(some, collected(some.policy), rescore=False)
    assert torch.equal(found.reference_logprobs, found.old_logprobs)
    assert "logprob_gap_max" not in metrics
    assert sampled_kl(found) == 0


@MODELS
def test_device_batches_change_no_score(tmp_path, kind, pad_is_eos):
    some = roles(tmp_path, kind, pad_is_eos)
    rollout = collected(some.policy)
    last, _ = scored(some, rollout, bootstrap=True)
    for size in DEVICE_BATCHES[:-1]:
        found, _ = scored(some, rollout, bootstrap=True, device_batch_size=size)
        for name in ("reference_logprobs", "values", "bootstrap"):
            torch.testing.assert_close(getattr(found, name), getattr(last, name), rtol=0, atol=1e-5)


@KINDS
def test_values_are_read_before_a_token_and_after_a_cut(tmp_path, kind):
    some = roles(tmp_path, kind)
    rollout = collected(some.policy)
    found, _ = scored(some, rollout, bootstrap=True)
    for i, row in enumerate(rollout.rows):
        with torch.no_grad():
            hidden = some.value.model.base_model(torch.tensor([row.ids])).last_hidden_state[0]
            every = some.value.head(hidden)[:, 0]
        n = row.num_completion
        torch.testing.assert_close(
            found.values[i, :n], every[row.num_prompt - 1 : -1], rtol=0, atol=1e-5
        )
        after = 0 if rollout.finished[i] else every[-1].item()
        assert found.bootstrap[i].item() == pytest.approx(after, abs=1e-5)
    assert not found.values[~rollout.mask].any()


# --- aim ------------------------------------------------------------------------------------------


@MODELS
def test_the_score_stands_on_the_last_completion_token(tmp_path, kind, pad_is_eos):
    """With V = 0, λ = 0.95 and no tether, what is paid on token n gives token t 0.95ⁿ⁻ᵗ of it."""
    some = roles(tmp_path, kind, pad_is_eos)
    found, _ = scored(some, collected(some.policy))
    found = found._replace(values=torch.zeros_like(found.values))
    config = toys.ppo(tmp_path, "unused", kl=KLConfig(beta=0.0), gae=RAW)
    targets = aim(found, config, 0.0)
    mask = found.rollout.mask
    for i, n in enumerate(mask.sum(1).tolist()):
        expected = [found.scores[i].item() * 0.95 ** (n - 1 - t) for t in range(n)]
        assert targets.advantages[i, :n].tolist() == pytest.approx(expected, abs=1e-5)
    assert not targets.advantages[~mask].any()


def test_rewards_advantages_and_kl_by_hand(tmp_path):
    # π_old, π_ref, V, score 2, β = 0.5, λ = 0.5, γ = 1; the second row has one token, score -1.
    #   k1 = (0.4, -0.2)     r = (-0.2, 0.1 + 2)    δ = (-0.2 + 0.3 - 1, 2.1 - 0.3) = (-0.9, 1.8)
    #   Â = (-0.9 + 0.5·1.8, 1.8) = (0, 1.8)        R = Â + V = (1, 2.1)
    #   second row: k1 = 0.6, r = -0.3 - 1 = -1.3, Â = -1.3 - 0.5 = -1.8, R = -1.3
    #   KL per sequence: (0.2 + 0.6)/2 = 0.4
    # Junk stands on the pad, and a bootstrap of 0.25 behind the first row's cut:
    #   δ = (-0.9, 2.05), Â = (0.125, 2.05), R = (1.125, 2.35)
    some = roles(tmp_path)
    rollout = collected(some.policy, prompts=["a ", "the cat "])
    rollout = rollout._replace(
        mask=torch.tensor([[True, True], [True, False]]), logprobs=torch.zeros(2, 2)
    )
    given = Scored(
        rollout=rollout,
        old_logprobs=torch.tensor([[-1.0, -2.0], [-0.5, 77.0]]),
        reference_logprobs=torch.tensor([[-1.4, -1.8], [-1.1, -55.0]]),
        raw_scores=torch.tensor([2.0, -1.0]),
        scores=torch.tensor([2.0, -1.0]),
        values=torch.tensor([[1.0, 0.3], [0.5, 1e6]]),
        bootstrap=None,
    )
    config = toys.ppo(tmp_path, "unused", gae=replace(RAW, trace_decay=0.5))
    targets = aim(given, config, 0.5)
    close(targets.advantages, [[0, 1.8], [-1.8, 0]])
    close(targets.returns, [[1, 2.1], [-1.3, 0]])
    found = {**rollout_metrics(given), **target_metrics(targets)}
    assert found["kl"] == pytest.approx(0.4)
    assert found["score"] == 0.5
    assert found["reward"] == pytest.approx(-0.15)  # first returns 1 and -1.3
    assert found["length"] == 1.5
    targets = aim(given._replace(bootstrap=torch.tensor([0.25, 0.0])), config, 0.5)
    close(targets.advantages, [[0.125, 2.05], [-1.8, 0]])
    close(targets.returns, [[1.125, 2.35], [-1.3, 0]])
    # With the KL in the loss, the rewards hold the score alone: δ = (-0.7, 1.7), -1 - 0.5.
    loss = replace(config, kl=KLConfig(beta=0.5, placement="loss"))
    targets = aim(given, loss, 0.5)
    close(targets.advantages, [[0.15, 1.7], [-1.5, 0]])
    # k3 in the reward: e^{-0.4} - 1 + 0.4 = 0.0703200 and e^{0.2} - 1.2 = 0.0214028
    k3 = replace(config, kl=KLConfig(beta=0.5, estimator="k3"))
    targets = aim(given, k3, 0.5)
    close(targets.returns[:, 1], [1.9892986, 0])


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("junk", [1e6, math.nan, math.inf])
def test_what_stands_behind_the_end_changes_nothing(tmp_path, junk):
    some = roles(tmp_path)
    found, _ = scored(some, collected(some.policy), bootstrap=True)
    mask, config = found.rollout.mask, toys.ppo(tmp_path, "unused")
    wrong = {
        name: torch.where(mask, getattr(found, name), junk)
        for name in ("values", "old_logprobs", "reference_logprobs")
    }
    clean, junked = aim(found, config, 0.1), aim(found._replace(**wrong), config, 0.1)
    assert torch.equal(junked.advantages, clean.advantages)
    assert torch.equal(junked.returns, clean.returns)
    assert rollout_metrics(junked.scored) == rollout_metrics(clean.scored)
    assert target_metrics(junked) == target_metrics(clean)


def test_advantages_are_standardized_over_the_whole_rollout(tmp_path):
    some = roles(tmp_path)
    found, _ = scored(some, collected(some.policy))
    targets = aim(found, toys.ppo(tmp_path, "unused"), 0.1)
    selected = targets.advantages[found.rollout.mask]
    assert selected.mean().item() == pytest.approx(0, abs=1e-6)
    assert selected.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw = aim(found, toys.ppo(tmp_path, "unused", gae=RAW), 0.1)
    assert torch.equal(raw.returns, targets.returns)  # from before the standardization


@KINDS
def test_sampled_kl_is_that_of_the_distributions(tmp_path, kind):
    """Its mean over many samples of one token is the exact KL over the vocabulary."""
    some = roles(tmp_path, kind)
    some.reference.model = roles(tmp_path, kind).policy.model
    moved(some, by=0.05)
    rollout = collected(some.policy, replace(SAMPLING, max_new_tokens=1), prompts=["why "] * 1000)
    found, _ = scored(some, rollout)
    ids = torch.tensor([rollout.rows[0].ids[:-1]])
    with torch.no_grad():
        logits = [m.model(input_ids=ids).logits[0, -1] for m in (some.policy, some.reference)]
    sampled = found.old_logprobs - found.reference_logprobs
    kl_mean = sampled_kl(found)
    error = sampled.std().item() / math.sqrt(1000)
    assert kl_mean == pytest.approx(exact(*logits).item(), abs=4 * error)
    assert kl_mean > 5 * error
