import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.core import policy_losses
from tether.core.policy_losses import clipped_policy_loss, explained_variance, value_loss

from .strategies import FEW, JUNK, batches, close

CLIP = st.floats(0.05, 0.5)
VARIANTS = st.sampled_from(
    [
        {"clip_high": 0.4},
        {"dual_clip": 1.2},
        {"sequence_level": True},
        {"clip_high": 0.03, "dual_clip": 1.1, "sequence_level": True},
    ]
)
ADDITIVE = ("loss", "clip_fraction", "approx_kl", "ratio_mean")


def policy_inputs(batch, spread=0.5):
    old = batch.normal() - 3
    return old + spread * batch.normal(), old, batch.normal()


def widened(x, columns, junk):
    """`x` with columns of padding after it."""
    return torch.cat([x, torch.full((len(x), columns), junk, dtype=x.dtype)], dim=1)


@FEW
@given(batches(), CLIP, JUNK)
def test_a_hundred_columns_of_padding_change_no_metric(batch, clip, junk):
    mask = widened(batch.mask, 100, False)
    inputs = policy_inputs(batch)
    short = clipped_policy_loss(*inputs, batch.mask, clip=clip)
    long = clipped_policy_loss(*(widened(x, 100, junk) for x in inputs), mask, clip=clip)
    for expected, actual in zip(short, long, strict=True):
        close(actual, expected)
    short = value_loss(*inputs, batch.mask, clip=clip)
    long = value_loss(*(widened(x, 100, junk) for x in inputs), mask, clip=clip)
    for expected, actual in zip(short, long, strict=True):
        close(actual, expected)
    values, returns, _ = inputs
    close(
        explained_variance(widened(values, 100, junk), widened(returns, 100, junk), mask),
        explained_variance(values, returns, batch.mask),
    )


@FEW
@given(batches(), CLIP, JUNK, st.sampled_from([clipped_policy_loss, value_loss]))
def test_junk_on_padding_reaches_no_gradient(batch, clip, junk, loss):
    inputs = policy_inputs(batch)
    gradients = []
    for first, *rest in (inputs, [batch.junked(x, junk) for x in inputs]):
        leaf = first.clone().requires_grad_()
        loss(leaf, *rest, batch.mask, clip=clip).loss.backward()
        gradients.append(leaf.grad)
    close(gradients[1], gradients[0])
    assert (gradients[1][~batch.mask] == 0).all()


@FEW
@given(batches(max_rows=6), CLIP, st.integers(1, 5))
def test_device_batches_add_up(batch, clip, rows):
    """Loss, statistics and gradient of an optimizer batch do not depend on how it is split."""
    inputs, num_tokens = policy_inputs(batch), int(batch.mask.sum())
    for loss in (clipped_policy_loss, value_loss):
        leaf = inputs[0].clone().requires_grad_()
        whole = loss(leaf, *inputs[1:], batch.mask, clip=clip)
        (gradient,) = torch.autograd.grad(whole.loss, leaf)
        parts = [
            loss(*part, clip=clip, num_tokens=num_tokens)
            for part in zip(*(x.split(rows) for x in (leaf, *inputs[1:], batch.mask)), strict=True)
        ]
        for name in set(ADDITIVE) & set(whole._fields):
            close(sum(getattr(part, name) for part in parts), getattr(whole, name))
        close(torch.autograd.grad(sum(part.loss for part in parts), leaf)[0], gradient)
    parts = zip(*(x.split(rows) for x in (*inputs, batch.mask)), strict=True)
    largest = max(clipped_policy_loss(*part, num_tokens=num_tokens).ratio_max for part in parts)
    close(largest, clipped_policy_loss(*inputs, batch.mask).ratio_max)


def test_a_device_batch_may_hold_no_token():
    x, mask = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    assert all(part == 0 for part in clipped_policy_loss(x, x, x, mask, num_tokens=5))
    assert all(part == 0 for part in value_loss(x, x, x, mask, num_tokens=5))


@FEW
@given(batches())
def test_at_ratio_1_it_is_the_plain_policy_gradient(batch):
    logprobs, _, advantages = policy_inputs(batch)
    logprobs.requires_grad_()
    result = clipped_policy_loss(logprobs, logprobs.detach(), advantages, batch.mask)
    close(result.loss, -advantages[batch.mask].mean())
    assert result.ratio_mean == pytest.approx(1, abs=1e-12)
    assert result.ratio_max == 1
    assert result.approx_kl == result.clip_fraction == 0
    result.loss.backward()
    close(logprobs.grad, torch.where(batch.mask, -advantages / batch.mask.sum(), 0))


@FEW
@given(batches(), CLIP)
def test_the_clipped_losses_are_the_pessimistic_ones(batch, clip):
    logprobs, old, advantages = policy_inputs(batch)
    loose = clipped_policy_loss(logprobs, old, advantages, batch.mask, clip=1e9)
    tight = clipped_policy_loss(logprobs, old, advantages, batch.mask, clip=clip)
    assert tight.loss >= loose.loss - 1e-12
    assert (tight.loss > loose.loss + 1e-12) == (tight.clip_fraction > 0)
    assert tight.approx_kl >= 0
    plain = value_loss(logprobs, old, advantages, batch.mask)
    tight = value_loss(logprobs, old, advantages, batch.mask, clip=clip)
    assert tight.loss >= plain.loss - 1e-12
    assert (tight.loss > plain.loss + 1e-12) == (tight.clip_fraction > 0)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "gradient"),
    # -ρÂ where the trust region does not hold the token, 0 where it does; beyond 20 nats as at 20
    [
        (0.1, 1.0, -1.1051709),
        (0.3, 1.0, 0.0),
        (0.3, -1.0, 1.3498588),
        (-0.3, 1.0, -0.7408182),
        (-0.3, -1.0, 0.0),
        (30.0, 1.0, 0.0),
        (30.0, -1.0, 485165195.41),
        (-30.0, 1.0, -2.0611536e-9),
        (-30.0, -1.0, 0.0),
    ],
)
def test_where_the_policy_gradient_is_zero_and_where_not(log_ratio, advantage, gradient):
    logprobs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero, advantages = torch.zeros_like(logprobs), torch.full_like(logprobs, advantage)
    result = clipped_policy_loss(logprobs, zero, advantages, torch.tensor([[True]]))
    result.loss.backward()
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-7, abs=0)
    assert result.clip_fraction == (gradient == 0)


def test_only_the_loss_carries_a_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for result in (clipped_policy_loss(x, x + 1, x, mask), value_loss(x, x + 1, x, mask, clip=0.1)):
        assert result.loss.requires_grad
        assert not any(statistic.requires_grad for statistic in result[1:])
    assert not explained_variance(x, torch.randn(2, 3), mask).requires_grad


@FEW
@given(batches(), st.floats(-20, 20))
def test_a_value_that_has_not_moved_is_not_clipped(batch, offset):
    """Float32 on purpose: V_old + (V - V_old) differs from V by rounding, and must not count."""
    values = (batch.normal() + offset).float()
    old, returns = values + 0.1 * batch.normal().float().clamp(-1, 1), batch.normal().float()
    result = value_loss(values, old, returns, batch.mask, clip=0.2)
    assert result.clip_fraction == 0
    torch.testing.assert_close(result.loss, value_loss(values, old, returns, batch.mask).loss)


@FEW
@given(batches(), st.floats(-9, 9))
def test_explained_variance_is_1_up_to_a_constant_and_0_for_a_constant(batch, constant):
    returns = batch.normal()
    some = float(batch.mask.sum() > 1)  # a single return has no variance to explain
    close(explained_variance(returns + constant, returns, batch.mask), torch.tensor(some).double())
    flat = torch.full_like(returns, constant)
    close(explained_variance(flat, returns, batch.mask), torch.tensor(0.0).double())


@FEW
@given(st.integers(0, 999), st.integers(1, 30), st.floats(0, 20))
def test_entropy_lies_between_0_and_log_v(seed, vocabulary, scale):
    logits = scale * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed))
    entropies = policy_losses.entropy(logits)
    limit = torch.tensor(float(vocabulary)).log()
    assert (entropies >= 0).all()
    assert (entropies <= limit + 1e-5).all()
    uniform = policy_losses.entropy(torch.zeros(vocabulary))
    torch.testing.assert_close(uniform, limit, rtol=1e-5, atol=1e-6)


@FEW
@given(batches(), CLIP, st.floats(0.05, 0.9), st.floats(1.05, 2), st.booleans())
def test_the_variants_anew(batch, clip, clip_high, dual_clip, sequence_level):
    """With plain numbers, a row and a token at a time."""
    logprobs, old, advantages = policy_inputs(batch)
    result = clipped_policy_loss(
        logprobs,
        old,
        advantages,
        batch.mask,
        clip=clip,
        clip_high=clip_high,
        dual_clip=dual_clip,
        sequence_level=sequence_level,
    )
    losses, clipped, ratios = [], 0, []
    for tokens, *row in zip(batch.mask, logprobs, old, advantages, strict=True):
        news, olds, praise = (x[tokens].tolist() for x in row)
        logs = [new - before for new, before in zip(news, olds, strict=True)]
        for log, advantage in zip(logs, praise, strict=True):
            ratio = math.exp(sum(logs) / len(logs) if sequence_level else log)
            bounded = min(max(ratio, 1 - clip), 1 + clip_high)
            gain = min(ratio * advantage, bounded * advantage)
            if advantage < 0:
                gain = max(gain, dual_clip * advantage)
            losses.append(-gain)
            clipped += gain != ratio * advantage
            ratios.append(ratio)
    assert result.loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert result.clip_fraction.item() == pytest.approx(clipped / len(losses), abs=1e-9)
    assert result.ratio_mean.item() == pytest.approx(sum(ratios) / len(ratios))
    assert result.ratio_max.item() == pytest.approx(max(ratios))
    plain = clipped_policy_loss(logprobs, old, advantages, batch.mask)
    close(result.approx_kl, plain.approx_kl)


@FEW
@given(batches(max_rows=6), VARIANTS, JUNK, st.integers(1, 5))
def test_variants_neither_see_padding_nor_how_a_batch_is_split(batch, variant, junk, rows):
    inputs, num_tokens = policy_inputs(batch), int(batch.mask.sum())
    leaf = inputs[0].clone().requires_grad_()
    whole = clipped_policy_loss(leaf, *inputs[1:], batch.mask, **variant)
    (gradient,) = torch.autograd.grad(whole.loss, leaf)
    dirty = batch.junked(inputs[0], junk).requires_grad_()
    others = (batch.junked(x, junk) for x in inputs[1:])
    parts = [
        clipped_policy_loss(*part, num_tokens=num_tokens, **variant)
        for part in zip(*(x.split(rows) for x in (dirty, *others, batch.mask)), strict=True)
    ]
    for name in ADDITIVE:
        close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    close(torch.autograd.grad(sum(part.loss for part in parts), dirty)[0], gradient)


@FEW
@given(batches(), CLIP)
def test_tokens_of_a_row_of_one_are_their_own_sequence(batch, clip):
    inputs = [x[batch.mask].unsqueeze(1) for x in policy_inputs(batch)]
    mask = torch.ones_like(inputs[0]).bool()
    token = clipped_policy_loss(*inputs, mask, clip=clip)
    sequence = clipped_policy_loss(*inputs, mask, clip=clip, sequence_level=True)
    for expected, actual in zip(token, sequence, strict=True):
        close(actual, expected)


@FEW
@given(batches())
def test_at_ratio_1_the_sequence_level_gives_each_token_the_mean_advantage_of_its_row(batch):
    logprobs, _, advantages = policy_inputs(batch)
    logprobs.requires_grad_()
    result = clipped_policy_loss(
        logprobs, logprobs.detach(), advantages, batch.mask, sequence_level=True
    )
    close(result.loss, -advantages[batch.mask].mean())
    assert result.ratio_max == 1
    result.loss.backward()
    means = torch.where(batch.mask, advantages, 0).sum(dim=1) / batch.mask.sum(dim=1)
    expected = torch.where(batch.mask, -means.unsqueeze(1) / batch.mask.sum(), 0)
    close(logprobs.grad, expected)


@pytest.mark.parametrize(
    ("log_ratio", "gradient"),
    # -ρÂ up to ρ = 2, for Â = -1; beyond it, and below 1-ε, none
    [(0.6, 1.8221188), (0.7, 0.0), (30.0, 0.0), (-0.3, 0.0), (-0.2, 0.8187308)],
)
def test_a_dual_clip_holds_what_has_become_far_too_likely(log_ratio, gradient):
    logprobs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero, blame = torch.zeros_like(logprobs), torch.full_like(logprobs, -1)
    result = clipped_policy_loss(logprobs, zero, blame, torch.tensor([[True]]), dual_clip=2.0)
    result.loss.backward()
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-7, abs=0)
    assert result.clip_fraction == (gradient == 0)
