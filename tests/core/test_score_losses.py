import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.core.score_losses import (
    binary,
    bradley_terry,
    centering_penalty,
    plackett_luce,
)

from .strategies import FEW, JUNK, close


@st.composite
def pairs(draw):
    """Scores of chosen and rejected, margins and probabilities."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    count = draw(st.integers(1, 9))
    normals = torch.randn(3, count, generator=generator, dtype=torch.float64)
    return *normals, torch.rand(count, generator=generator, dtype=torch.float64)


@FEW
@given(pairs())
def test_swapping_the_pair_and_its_labels_changes_nothing(drawn):
    chosen, rejected, margin, probability = drawn
    one = bradley_terry(chosen, rejected, margin=margin, probability=probability)
    other = bradley_terry(rejected, chosen, margin=-margin, probability=1 - probability)
    close(other.loss, one.loss)
    close(other.accuracy, 1 - one.accuracy)
    close(other.margin_mean, -one.margin_mean)
    close(other.chosen_mean, one.rejected_mean)


@FEW
@given(pairs(), st.floats(-100, 100))
def test_only_the_difference_matters(drawn, shift):
    chosen, rejected, margin, probability = drawn
    settings = {"margin": margin, "probability": probability}
    one = bradley_terry(chosen, rejected, **settings)
    other = bradley_terry(chosen + shift, rejected + shift, **settings)
    for expected, actual in zip(one[:3], other[:3], strict=True):
        close(actual, expected)
    close(other.chosen_mean, one.chosen_mean + shift)
    close(other.rejected_mean, one.rejected_mean + shift)


@FEW
@given(pairs())
def test_no_margin_and_certain_labels_are_the_defaults(drawn):
    chosen, rejected, *_ = drawn
    plain = bradley_terry(chosen, rejected)
    spelled = bradley_terry(
        chosen, rejected, margin=torch.zeros_like(chosen), probability=torch.ones_like(chosen)
    )
    for expected, actual in zip(plain, spelled, strict=True):
        close(actual, expected)


@FEW
@given(pairs())
def test_the_loss_is_least_at_margin_plus_log_odds(drawn):
    _, rejected, margin, probability = drawn
    probability = probability.clamp(0.01, 0.99)
    best = (rejected + margin + probability.logit()).requires_grad_()
    bradley_terry(best, rejected, margin=margin, probability=probability).loss.backward()
    close(best.grad, torch.zeros_like(best))


@FEW
@given(pairs(), st.integers(1, 5))
def test_device_batches_add_up(drawn, size):
    chosen, rejected, margin, probability = drawn
    weight = probability + 0.5
    settings = {"margin": margin, "probability": probability, "weight": weight}
    whole = bradley_terry(chosen, rejected, **settings)
    parts = [
        bradley_terry(c, r, margin=m, probability=p, weight=w, num_pairs=float(weight.sum()))
        for c, r, m, p, w in zip(*(x.split(size) for x in (*drawn, weight)), strict=True)
    ]
    for total, *summands in zip(whole, *parts, strict=True):
        close(sum(summands), total)


@FEW
@given(pairs())
def test_a_pair_of_weight_two_counts_as_two(drawn):
    chosen, rejected, margin, probability = drawn
    weight = torch.ones_like(chosen)
    weight[0] = 2
    weighted = bradley_terry(
        chosen, rejected, margin=margin, probability=probability, weight=weight
    )
    c, r, m, p = (torch.cat([x, x[:1]]) for x in drawn)
    for expected, actual in zip(
        bradley_terry(c, r, margin=m, probability=p), weighted, strict=True
    ):
        close(actual, expected)


def test_equal_scores_cost_log_2():
    scores = torch.tensor([0.3, -4.0, 70.0])
    result = bradley_terry(scores, scores)
    assert result.loss.item() == pytest.approx(math.log(2))
    assert result.accuracy == 0.5


@pytest.mark.parametrize(("difference", "gradient"), [(-200.0, -1), (200.0, 0)])
def test_scores_far_apart_stay_finite_and_keep_their_gradient(difference, gradient):
    chosen = torch.tensor([difference], requires_grad=True)
    result = bradley_terry(chosen, torch.zeros(1), probability=torch.ones(1))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(max(-difference, 0), abs=1e-6)
    assert chosen.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_planted_strengths_are_recovered():
    # Strengths 0, ln 2, ln 6: the second beats the first with probability 2/3, the third the
    # first with 6/7 and the second with 3/4. Newton's direction is not needed: the loss is convex.
    strengths = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    winners, losers = torch.tensor([1, 2, 2]), torch.tensor([0, 0, 1])
    odds = torch.tensor([2 / 3, 6 / 7, 3 / 4], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([strengths], max_iter=50, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = bradley_terry(strengths[winners], strengths[losers], probability=odds).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    found = (strengths - strengths[0]).detach()
    torch.testing.assert_close(
        found, torch.tensor([0, 0.6931472, 1.7917595]).double(), rtol=0, atol=1e-4
    )


@st.composite
def rankings(draw):
    """Scores and ranks of a few completions, with ties and fails."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    ranks = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, math.inf]), min_size=1, max_size=6))
    scores = torch.randn(len(ranks), generator=generator, dtype=torch.float64)
    return scores, torch.tensor(ranks, dtype=torch.float64)


@FEW
@given(rankings())
def test_plackett_luce_anew(drawn):
    """With plain numbers: the better ones are taken before the worse, tied ones at once."""
    scores, ranks = (x.tolist() for x in drawn)
    terms = [
        math.log(sum(math.exp(s) for s, r in zip(scores, ranks, strict=True) if r >= rank)) - score
        for score, rank in zip(scores, ranks, strict=True)
        if rank < max(ranks)
    ]
    expected = sum(terms) / len(terms) if terms else 0.0
    assert plackett_luce(*drawn).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@FEW
@given(rankings(), st.floats(-100, 100), JUNK)
def test_order_shift_and_absent_completions_do_not_matter(drawn, shift, junk):
    scores, ranks = drawn
    order = torch.arange(len(ranks)).flip(0)
    close(plackett_luce(scores[order] + shift, ranks[order]), plackett_luce(scores, ranks))
    leaf = torch.cat([scores, torch.tensor([junk])]).requires_grad_()
    padded = plackett_luce(leaf, torch.cat([ranks, torch.tensor([math.nan])]))
    close(padded, plackett_luce(scores, ranks))
    (gradient,) = torch.autograd.grad(padded, leaf)
    assert gradient.isfinite().all()
    assert gradient[-1] == 0
    close(gradient.sum(), torch.tensor(0.0).double())  # what some gain, others lose


@FEW
@given(pairs())
def test_a_ranking_of_two_is_a_pair(drawn):
    chosen, rejected, *_ = drawn
    ranks = torch.tensor([1.0, 2.0], dtype=torch.float64).expand(len(chosen), 2)
    loss = plackett_luce(torch.stack([chosen, rejected], dim=1), ranks).mean()
    close(loss, bradley_terry(chosen, rejected).loss)


@FEW
@given(pairs(), st.integers(1, 5))
def test_binary_is_a_pair_whose_other_score_is_0_and_adds_up(drawn, size):
    scores, _, _, labels = drawn
    weight = labels + 0.5
    whole = binary(scores, labels, weight=weight)
    pair = bradley_terry(scores, torch.zeros_like(scores), probability=labels, weight=weight)
    close(whole.loss, pair.loss)
    parts = [
        binary(s, y, weight=w, num_examples=float(weight.sum()))
        for s, y, w in zip(*(x.split(size) for x in (scores, labels, weight)), strict=True)
    ]
    for total, *summands in zip(whole, *parts, strict=True):
        close(sum(summands), total)
    close(binary(-scores, 1 - labels, weight=weight).loss, whole.loss)


@FEW
@given(pairs(), st.integers(1, 5))
def test_the_centering_penalty_is_least_about_0_and_adds_up(drawn, size):
    chosen, rejected, _, weight = drawn
    weight = weight + 0.5
    settings = {"weight": weight, "num_pairs": 7.0}
    whole = centering_penalty(chosen, rejected, **settings)
    parts = [
        centering_penalty(c, r, weight=w, num_pairs=7.0)
        for c, r, w in zip(*(x.split(size) for x in (chosen, rejected, weight)), strict=True)
    ]
    close(sum(parts), whole)
    middle = (chosen + rejected) / 2
    close(centering_penalty(chosen - middle, rejected - middle, **settings), 0 * whole)
