import copy
from dataclasses import replace

import pytest
import torch

from tests.train import toys
from tests.train.toys import DEVICE_BATCHES, KINDS, MODELS, PROMPTS, SAMPLING, moved, roles
from tether.data.batches import device_batches
from tether.errors import CheckError
from tether.models.chat import encode_prompt
from tether.models.language_model import load
from tether.sections import (
    ComputeConfig,
    GAEConfig,
    KLConfig,
    OptimizerConfig,
    PolicyLossConfig,
    StopConfig,
    ValueConfig,
)
from tether.train import loop
from tether.train.aim import aim, rollout_metrics, target_metrics
from tether.train.collect import collect
from tether.train.improve import accumulate, check_first_minibatch, improve, kl_penalty
from tether.train.score import score


def rolled_out(roles, config, prompts=PROMPTS):
    """A scored rollout with its targets."""
    asked = [row["prompt"] for row in prompts]
    ids = [encode_prompt(roles.policy.tokenizer, prompt) for prompt in asked]
    rollout = collect(roles.source, asked, ids, config.sampling, seed=config.seed, step=0)
    scored, _ = score(
        rollout,
        roles.policy,
        roles.reference,
        roles.rewards,
        roles.value,
        temperature=config.sampling.temperature,
        missing_eos_penalty=config.missing_eos_penalty,
        bootstrap=config.gae.bootstrap,
        device_batch_size=config.device_batch_size,
        rescore=True,
    )
    return aim(scored, config, config.kl.beta)


def parameters(roles):
    """All that trains, by name."""
    trained = {**dict(roles.policy.model.named_parameters(prefix="policy"))}
    trained |= dict(roles.value.head.named_parameters(prefix="head"))
    if roles.value.model is not roles.policy.model:
        trained |= dict(roles.value.model.base_model.named_parameters(prefix="value"))
    return trained


def settings(tmp_path, **changes):
    return toys.ppo(tmp_path, "unused", **{"minibatches": 1, **changes})


# --- device batches -------------------------------------------------------------------------------

LOSSES = {
    "policy": {"value": ValueConfig(coefficient=0.0)},
    "value": {"value": ValueConfig(coefficient=0.7)},
    "entropy": {"policy_loss": PolicyLossConfig(entropy_coefficient=0.3)},
    "kl": {"kl": KLConfig(beta=0.5, placement="loss", estimator="k3")},
}


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("loss", LOSSES)
@KINDS
def test_device_batches_change_neither_step_nor_metric(tmp_path, kind, loss, shared):
    """The second step starts where the ratio is not 1 and some tokens are clipped."""
    start = roles(tmp_path, kind, shared=shared)
    changes = {"value": ValueConfig(coefficient=0.0, shared=shared), **LOSSES[loss]}
    targets = rolled_out(start, settings(tmp_path))
    assert len(set(targets.scored.rollout.mask.sum(1).tolist())) > 2
    found = []
    for size in DEVICE_BATCHES:
        some = copy.deepcopy(start)
        config = settings(
            tmp_path,
            device_batch_size=size,
            optimizer=OptimizerConfig(max_grad_norm=0.0),  # it would hide a factor
            **changes,
        )
        optimizer = torch.optim.SGD(parameters(some).values(), lr=0.1)
        metrics = improve(
            some.policy, some.value, optimizer, targets, config, step=0, beta=config.kl.beta
        )
        found.append((metrics, parameters(some)))
    metrics, last = found[-1]
    assert metrics["clip_fraction"] > 0
    for other_metrics, stepped in found:
        assert other_metrics == pytest.approx(metrics, abs=1e-5)
        toys.assert_same(stepped, last, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@KINDS
def test_every_loss_has_its_part_in_the_gradient(tmp_path, kind, loss):
    """Else the test above would compare nothing."""
    some = roles(tmp_path, kind)
    targets = rolled_out(some, settings(tmp_path))
    found = []
    off = {"value": ValueConfig(coefficient=0.0), "kl": KLConfig(beta=0.0)}
    for changes in (off, off | LOSSES[loss]):
        config = settings(tmp_path, **changes)
        accumulate(some.policy, some.value, targets, list(range(8)), config, config.kl.beta)
        found.append(toys.gradients(some.policy.model, some.value.head))
    one, other = found
    different = [name for name in one if not torch.allclose(one[name], other[name], atol=1e-4)]
    expected = {"policy": 0, "value": 2}.get(loss, len(one) - 2)  # of the head, or the policy
    assert len(different) == expected


# --- padding --------------------------------------------------------------------------------------


def check(policy, reference, targets, config):
    """The check of a run's first minibatch, on all rows of a rollout."""
    rows, size = targets.scored.rollout.rows, config.device_batch_size
    temperature = config.sampling.temperature
    check_first_minibatch(policy, reference, rows, temperature=temperature, device_batch_size=size)


def widened(tensor, columns, junk):
    return torch.cat([tensor, torch.full((len(tensor), columns), junk, dtype=tensor.dtype)], dim=1)


@pytest.mark.parametrize("junk", [1e6, float("nan")])
@KINDS
def test_pad_columns_change_no_metric(tmp_path, kind, junk):
    config = settings(
        tmp_path,
        gae=GAEConfig(bootstrap=True),
        policy_loss=PolicyLossConfig(entropy_coefficient=0.1),
        kl=KLConfig(beta=0.3, placement="loss", estimator="k2"),
    )
    found = []
    for columns in (0, 100):
        some = roles(tmp_path, kind)
        targets = rolled_out(some, config)
        scored = targets.scored
        wide = {
            name: widened(getattr(scored, name), columns, junk)
            for name in ("old_logprobs", "reference_logprobs", "values")
        }
        rollout = scored.rollout._replace(
            mask=widened(scored.rollout.mask, columns, False),
            logprobs=widened(scored.rollout.logprobs, columns, junk),
        )
        # Once with β in the reward, so that KL on pads would reach the returns.
        in_reward = settings(tmp_path, gae=GAEConfig(bootstrap=True), kl=KLConfig(beta=0.3))
        targets = aim(scored._replace(rollout=rollout, **wide), in_reward, 0.3)
        optimizer = torch.optim.SGD(some.policy.model.parameters(), lr=0.01)
        metrics = {**rollout_metrics(targets.scored), **target_metrics(targets)}
        metrics |= improve(
            some.policy, some.value, optimizer, targets, config, step=0, beta=config.kl.beta
        )
        found.append((metrics, some.policy.model.state_dict()))
    (metrics, parameters), (wide_metrics, wide_parameters) = found
    assert wide_metrics == pytest.approx(metrics, abs=1e-6)
    toys.assert_same(parameters, wide_parameters, atol=1e-7)


# --- before anything has moved --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@MODELS
def test_at_first_ratio_is_1_and_the_loss_minus_the_mean_advantage(
    tmp_path, kind, pad_is_eos, temperature
):
    some = roles(tmp_path, kind, pad_is_eos)
    sampling = replace(SAMPLING, temperature=temperature)
    config = settings(tmp_path, gae=GAEConfig(standardize=False), sampling=sampling)
    targets = rolled_out(some, config)
    metrics = accumulate(some.policy, some.value, targets, list(range(8)), config, 0.0)
    mask = targets.scored.rollout.mask
    assert metrics["logprob_gap"].item() < 2e-6
    assert metrics["approx_kl"].item() < 1e-9
    assert metrics["clip_fraction"].item() == 0
    expected = -targets.advantages[mask].mean().item()
    assert metrics["policy_loss"].item() == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1
    errors = (targets.scored.values - targets.returns)[mask].square().mean() / 2
    assert metrics["value_loss"].item() == pytest.approx(errors.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@MODELS
def test_the_check_is_content_with_a_clean_start(tmp_path, kind, pad_is_eos, temperature):
    some = roles(tmp_path, kind, pad_is_eos)
    some.reference = load(toys.save(tmp_path, kind, pad_is_eos), ComputeConfig())
    sampling = replace(SAMPLING, temperature=temperature)
    config = settings(tmp_path, minibatches=2, sampling=sampling)
    targets = rolled_out(some, config)
    kl = (targets.scored.old_logprobs - targets.scored.reference_logprobs).abs().max()
    assert kl.item() < 1e-5
    check(some.policy, some.reference, targets, config)


def test_planted_dropout_is_caught(tmp_path):
    some = roles(tmp_path, "gpt2")
    config = settings(tmp_path)
    targets = rolled_out(some, config)
    some.policy.model.transformer.drop.p = 0.1
    with pytest.raises(CheckError, match=r"ratio differs from 1 by .* look for dropout"):
        check(some.policy, None, targets, config)
    some.policy.model.eval()  # it was the dropout
    check(some.policy, None, targets, config)


@KINDS
def test_planted_noise_is_caught(tmp_path, kind):
    some = roles(tmp_path, kind)
    config = settings(tmp_path)
    targets = rolled_out(some, config)
    some.policy.model.base_model.register_forward_hook(
        lambda module, inputs, output: output.__setitem__(
            "last_hidden_state",
            output.last_hidden_state + 1e-4 * torch.randn_like(output.last_hidden_state),
        )
    )
    with pytest.raises(CheckError, match="ratio differs from 1"):
        check(some.policy, None, targets, config)


@KINDS
def test_a_wrong_reference_is_caught(tmp_path, kind):
    some = roles(tmp_path, kind)  # its reference is not the start
    config = settings(tmp_path)
    targets = rolled_out(some, config)
    with pytest.raises(CheckError, match="the reference is not the frozen start"):
        check(some.policy, some.reference, targets, config)


@pytest.mark.parametrize("by", [0.05, float("nan")])
@KINDS
def test_a_stale_sampler_is_caught(tmp_path, kind, by):
    """What sampled is not what is improved."""
    some = roles(tmp_path, kind)
    config = settings(tmp_path)
    targets = rolled_out(some, config)
    moved(some, by=by)
    before = copy.deepcopy(some.policy.model.state_dict())
    optimizer = torch.optim.SGD(some.policy.model.parameters(), lr=0.1)
    with pytest.raises(CheckError, match=r"π_old differs .* step 4: the sampler did not use"):
        improve(some.policy, some.value, optimizer, targets, config, step=3, beta=0.1)
    for name, parameter in some.policy.model.state_dict().items():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


# --- the update -----------------------------------------------------------------------------------


def counting(optimizer):
    """Count the steps of an optimizer."""
    steps, step = [], optimizer.step
    optimizer.step = lambda: steps.append(1) or step()
    return steps


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 6), (1e-9, 2), (100.0, 6)])
def test_an_update_that_has_gone_far_enough_ends_early(tmp_path, limit, expected):
    # 3 epochs of 2 minibatches. The first minibatch is still at π_old, the second is not.
    some = roles(tmp_path)
    config = settings(tmp_path, epochs=3, minibatches=2, stop=StopConfig(update_kl=limit))
    optimizer = torch.optim.SGD(some.policy.model.parameters(), lr=0.05)
    steps = counting(optimizer)
    improve(some.policy, some.value, optimizer, rolled_out(some, config), config, step=0, beta=0.1)
    assert len(steps) == expected


def test_every_minibatch_of_every_epoch_is_used_once(tmp_path, monkeypatch):
    some, seen = roles(tmp_path), []
    config = settings(tmp_path, epochs=2, minibatches=4)

    def spied(policy, value, targets, minibatch, *rest):
        seen.append(minibatch)
        return accumulate(policy, value, targets, minibatch, *rest)

    monkeypatch.setattr("tether.train.improve.accumulate", spied)
    optimizer = torch.optim.SGD(some.policy.model.parameters(), lr=1e-4)
    improve(some.policy, some.value, optimizer, rolled_out(some, config), config, step=0, beta=0.1)
    assert [len(minibatch) for minibatch in seen] == [2] * 8
    first, second = ([i for minibatch in part for i in minibatch] for part in (seen[:4], seen[4:]))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@KINDS
def test_policy_and_value_both_move_and_nothing_else(tmp_path, kind, shared):
    some = roles(tmp_path, kind, shared=shared)
    config = settings(tmp_path, epochs=1, optimizer=OptimizerConfig(learning_rate=1e-3))
    groups = [(some.policy.model.parameters(), 1e-3), (some.value.head.parameters(), 1e-3)]
    if not shared:
        groups.append((some.value.model.base_model.parameters(), 1e-3))
    optimizer = loop.make_optimizer(groups, config.optimizer)
    modules = {"policy": some.policy.model, "head": some.value.head}
    modules |= {"value": some.value.model.base_model, "reference": some.reference.model}
    before = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
    metrics = improve(
        some.policy, some.value, optimizer, rolled_out(some, config), config, step=0, beta=0.1
    )
    assert metrics["grad_norm"] > 0
    assert metrics["value_grad_norm"] > 0
    for name, module in modules.items():
        still = [n for n, p in module.named_parameters() if torch.equal(p, before[name][n])]
        total = len(list(module.parameters()))
        # A word that no row has keeps its embedding, but not all of the matrix.
        assert len(still) == (total if name == "reference" else 0), still


def test_value_only_moves_the_value(tmp_path):
    """With equal advantages, and so none after standardization, the policy has no gradient."""
    some = roles(tmp_path)
    config = settings(tmp_path)
    targets = rolled_out(some, config)
    targets = targets._replace(advantages=torch.zeros_like(targets.advantages))
    accumulate(some.policy, some.value, targets, list(range(8)), config, 0.0)
    policy, value = toys.gradients(some.policy.model), toys.gradients(some.value.head)
    assert max(gradient.abs().max() for gradient in policy.values()) == 0
    assert min(gradient.abs().max() for gradient in value.values()) > 0


# --- KL as a loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_of_the_penalty_is_that_of_the_reverse_kl(kind, off_policy):
    """By enumeration over 7 tokens, also where an older policy sampled."""
    draw = torch.Generator().manual_seed(3)
    logits, reference, old = torch.randn(3, 7, generator=draw, dtype=torch.float64)
    logits.requires_grad_()
    if not off_policy:
        old = logits.detach()
    logp, logq, logo = (x.log_softmax(0)[None] for x in (logits, reference, old))
    expected = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits, retain_graph=True)[0]
    penalty = (logo.exp() * kl_penalty(logp, logo, logq, KLConfig(estimator=kind))).sum()
    found = torch.autograd.grad(penalty, logits)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.abs().max() > 0.1


# --- reading ahead --------------------------------------------------------------------------------


@MODELS
def test_values_are_read_before_the_token_they_judge(tmp_path, kind, pad_is_eos):
    """V(s_t) may not see token t: another last token changes no value."""
    some = roles(tmp_path, kind, pad_is_eos)
    targets = rolled_out(some, settings(tmp_path))
    rows = targets.scored.rollout.rows
    changed = [row._replace(ids=[*row.ids[:-1], (row.ids[-1] + 1) % 20]) for row in rows]
    with torch.no_grad():
        for (_, one), (_, other) in zip(
            device_batches(rows, 0), device_batches(changed, 0), strict=True
        ):
            torch.testing.assert_close(some.value.values(one), some.value.values(other))
            assert not torch.allclose(some.value.scores(one), some.value.scores(other))
