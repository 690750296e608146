import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.core.advantages import (
    batch_baseline,
    gae,
    group_normalized,
    leave_one_out,
    rewards_to_go,
    token_rewards,
)

from .strategies import FEW, JUNK, batches, close

FRACTION = st.floats(0, 1)


@FEW
@given(batches(), FRACTION, FRACTION, JUNK)
def test_what_stands_outside_the_mask_never_matters(batch, discount, trace_decay, junk):
    rewards, values, bootstrap = batch.normal(), batch.normal(), batch.normal(len(batch.mask))
    settings = {"discount": discount, "trace_decay": trace_decay, "bootstrap": bootstrap}
    clean = gae(rewards, values, batch.mask, **settings)
    dirty = gae(batch.junked(rewards, junk), batch.junked(values, junk), batch.mask, **settings)
    for expected, actual in zip(clean, dirty, strict=True):
        close(actual, expected)
        assert (actual[~batch.mask] == 0).all()


@FEW
@given(batches(), FRACTION, FRACTION)
def test_a_gap_equals_its_deletion(batch, discount, trace_decay):
    rewards, values, bootstrap = batch.normal(), batch.normal(), batch.normal(len(batch.mask))
    settings = {"discount": discount, "trace_decay": trace_decay}
    whole = gae(rewards, values, batch.mask, bootstrap=bootstrap, **settings)
    for row, tokens in enumerate(batch.mask):
        r, v = rewards[row, tokens][None], values[row, tokens][None]
        alone = gae(r, v, torch.ones_like(v).bool(), bootstrap=bootstrap[[row]], **settings)
        for expected, actual in zip(alone, whole, strict=True):
            close(actual[row, tokens], expected[0])


@FEW
@given(st.integers(1, 7), st.integers(0, 999), FRACTION, FRACTION)
def test_the_recursion_is_the_sum_it_stands_for(tokens, seed, discount, trace_decay):
    """Âₜ = Σₖ (γλ)ᵏ δₜ₊ₖ, summed as written."""
    generator = torch.Generator().manual_seed(seed)
    r, v = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    deltas = [r[t] + (discount * v[t + 1] if t + 1 < tokens else 0) - v[t] for t in range(tokens)]
    expected = [
        sum((discount * trace_decay) ** (k - t) * deltas[k] for k in range(t, tokens))
        for t in range(tokens)
    ]
    mask = torch.ones(1, tokens, dtype=torch.bool)
    advantages, returns = gae(r[None], v[None], mask, discount=discount, trace_decay=trace_decay)
    close(advantages[0], torch.stack(expected))
    close(returns, advantages + v)


@FEW
@given(batches(), FRACTION)
def test_at_trace_decay_1_returns_are_rewards_to_go(batch, discount):
    rewards, values = batch.normal(), batch.normal()
    _, returns = gae(rewards, values, batch.mask, discount=discount, trace_decay=1.0)
    close(returns, rewards_to_go(rewards, batch.mask, discount=discount))


@FEW
@given(batches())
def test_undiscounted_rewards_to_go_begin_with_the_sum_of_all(batch):
    rewards = batch.normal()
    sums = rewards_to_go(rewards, batch.mask, discount=1.0)
    first = batch.mask.int().argmax(dim=1)
    close(sums[torch.arange(len(first)), first], torch.where(batch.mask, rewards, 0).sum(dim=1))


@FEW
@given(batches(), FRACTION, FRACTION)
def test_rows_do_not_see_each_other(batch, discount, trace_decay):
    rewards, values = batch.normal(), batch.normal()
    order = torch.randperm(len(rewards), generator=batch.generator)
    settings = {"discount": discount, "trace_decay": trace_decay}
    whole = gae(rewards, values, batch.mask, **settings)
    permuted = gae(rewards[order], values[order], batch.mask[order], **settings)
    for expected, actual in zip(whole, permuted, strict=True):
        close(actual, expected[order])


@FEW
@given(batches(), JUNK)
def test_token_rewards_spend_the_score_once_on_the_last_completion_token(batch, junk):
    scores, penalties = batch.normal(len(batch.mask)), batch.normal()
    rewards = token_rewards(scores, batch.junked(penalties, junk), batch.mask)
    kept = torch.where(batch.mask, penalties, 0)
    close(rewards.sum(dim=1), scores - kept.sum(dim=1))
    credited = rewards + kept
    for row, tokens in enumerate(batch.mask):
        last = int(tokens.nonzero().max())
        close(credited[row, last], scores[row])
        close(credited[row, :last], torch.zeros(last, dtype=torch.float64))


def test_moving_the_padding_moves_nothing_else():
    """The score sits on EOS whether padding stands left, right or in between."""
    scores, penalties = torch.tensor([1.0]), torch.zeros(1, 5)
    for row in ("11100", "00111", "10101"):
        mask = torch.tensor([[digit == "1" for digit in row]])
        rewards = token_rewards(scores, penalties, mask)
        advantages, _ = gae(rewards, torch.zeros(1, 5), mask)
        torch.testing.assert_close(advantages[mask], torch.tensor([0.9025, 0.95, 1.0]))


@st.composite
def groups(draw, least=2):
    """Scores of a few completions of each of a few prompts."""
    shape = draw(st.integers(1, 4)), draw(st.integers(least, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@FEW
@given(groups())
def test_advantages_of_groups_anew(scores):
    """With plain numbers, a group and a completion at a time."""
    normalized, alone = group_normalized(scores), leave_one_out(scores)
    plain = group_normalized(scores, divide_by_std=False)
    for n, row in enumerate(scores.tolist()):
        mean, spread = statistics.fmean(row), statistics.stdev(row)
        for k, score in enumerate(row):
            others = row[:k] + row[k + 1 :]
            assert plain[n, k].item() == pytest.approx(score - mean, abs=1e-12)
            assert normalized[n, k].item() == pytest.approx((score - mean) / (spread + 1e-4))
            assert alone[n, k].item() == pytest.approx(score - statistics.fmean(others))


@FEW
@given(groups(least=1))
def test_the_batch_baseline_anew(scores):
    every = scores.flatten().tolist()
    mean, spread = statistics.fmean(every), statistics.pstdev(every) or 1.0
    close(batch_baseline(scores, divide_by_std=False), scores - mean)
    close(batch_baseline(scores), (scores - mean) / spread)


@FEW
@given(groups(), st.floats(-100, 100), st.floats(0.1, 9))
def test_what_all_of_a_group_have_is_no_advantage(scores, shift, scale):
    for function in (group_normalized, leave_one_out, batch_baseline):
        close(function(scores + shift), function(scores))
    shifts = shift * torch.arange(len(scores), dtype=torch.float64).unsqueeze(1)
    for function in (group_normalized, leave_one_out):
        close(function(scores + shifts), function(scores))
        close(function(scores).sum(dim=1), torch.zeros(len(scores)).double())
    close(leave_one_out(scale * scores), scale * leave_one_out(scores))
    close(batch_baseline(scale * scores), batch_baseline(scores))


@FEW
@given(st.integers(1, 4), st.integers(2, 6), st.floats(-1000, 1000))
def test_a_group_with_equal_scores_gives_exact_zeros(prompts, completions, score):
    """Float32 on purpose, where a mean of equal numbers may differ from them."""
    scores = torch.full((prompts, completions), score)
    for function in (group_normalized, leave_one_out, batch_baseline):
        assert (function(scores) == 0).all()
