"""The losses of pairs, computed anew with plain numbers, and what holds for all of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.core.direct_losses import dpo, ipo, kto, orpo, robust_dpo, simpo
from tether.core.score_losses import bradley_terry

from .strategies import FEW, close

LOGPROB = st.floats(-30, -0.01)
BETA = st.floats(0.01, 3)
FRACTION = st.floats(0, 1)
SMOOTHING = st.floats(0, 0.45)


@st.composite
def pairs(draw):
    """Log-probs of chosen and rejected under policy and reference, and probabilities."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    count = draw(st.integers(1, 9))
    uniform = torch.rand(5, count, generator=generator, dtype=torch.float64)
    return list(-5 * uniform[:4] - 0.01), uniform[4]


def losses_of(beta, smoothing):
    """Each loss as a function of the four log-probs."""
    return {
        "dpo": lambda c, r, rc, rr, **k: dpo(
            c, r, rc, rr, beta=beta, label_smoothing=smoothing, **k
        ),
        "ipo": lambda c, r, rc, rr, **k: ipo(c, r, rc, rr, beta=beta, **k),
        "simpo": lambda c, r, rc, rr, **k: simpo(c, r, beta=beta, margin=smoothing, **k),
        "orpo": lambda c, r, rc, rr, **k: orpo(c, r, beta=beta, **k),
        "robust": lambda c, r, rc, rr, *, probability=None, **k: robust_dpo(
            c, r, rc, rr, beta=beta, label_smoothing=smoothing, **k
        ),
    }


def surprise(logit):
    """-log σ(logit) in plain numbers."""
    return math.log1p(math.exp(-logit)) if logit > 0 else math.log1p(math.exp(logit)) - logit


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def each(*numbers):
    return [torch.tensor([x], dtype=torch.float64) for x in numbers]


@FEW
@given(LOGPROB, LOGPROB, LOGPROB, LOGPROB, BETA, FRACTION, SMOOTHING)
def test_dpo_and_robust_dpo_anew(pc, pr, rc, rr, beta, p, e):
    h = beta * ((pc - rc) - (pr - rr))
    right, wrong = surprise(h), surprise(-h)
    q = p * (1 - e) + (1 - p) * e
    (probability,) = each(p)
    result = dpo(*each(pc, pr, rc, rr), beta=beta, label_smoothing=e, probability=probability)
    assert result.loss.item() == pytest.approx(q * right + (1 - q) * wrong, rel=1e-9)
    assert result.margin_mean.item() == pytest.approx(h, abs=1e-9)
    assert result.chosen_mean.item() == pytest.approx(beta * (pc - rc), abs=1e-9)
    assert result.rejected_mean.item() == pytest.approx(beta * (pr - rr), abs=1e-9)
    result = robust_dpo(*each(pc, pr, rc, rr), beta=beta, label_smoothing=e)
    expected = ((1 - e) * right - e * wrong) / (1 - 2 * e)
    assert result.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@FEW
@given(LOGPROB, LOGPROB, LOGPROB, LOGPROB, BETA, FRACTION)
def test_ipo_anew(pc, pr, rc, rr, beta, p):
    h, target = pc - rc - pr + rr, 1 / (2 * beta)
    expected = p * (h - target) ** 2 + (1 - p) * (h + target) ** 2
    (probability,) = each(p)
    result = ipo(*each(pc, pr, rc, rr), beta=beta, probability=probability)
    assert result.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert result.margin_mean.item() == pytest.approx(beta * h, abs=1e-9)


@FEW
@given(LOGPROB, LOGPROB, BETA, st.floats(0, 3), FRACTION)
def test_simpo_anew(pc, pr, beta, margin, p):
    d = beta * pc - beta * pr
    expected = p * surprise(d - margin) + (1 - p) * surprise(-d - margin)
    (probability,) = each(p)
    result = simpo(*each(pc, pr), beta=beta, margin=margin, probability=probability)
    assert result.loss.item() == pytest.approx(expected, rel=1e-9)
    assert result.margin_mean.item() == pytest.approx(d, abs=1e-9)


@FEW
@given(LOGPROB, LOGPROB, BETA, FRACTION)
def test_orpo_anew(pc, pr, beta, p):
    odds_chosen = math.exp(pc) / (1 - math.exp(pc))
    odds_rejected = math.exp(pr) / (1 - math.exp(pr))
    kept = -pc + beta * math.log(1 + odds_rejected / odds_chosen)
    swapped = -pr + beta * math.log(1 + odds_chosen / odds_rejected)
    (probability,) = each(p)
    result = orpo(*each(pc, pr), beta=beta, probability=probability)
    assert result.loss.item() == pytest.approx(p * kept + (1 - p) * swapped, rel=1e-9)
    assert result.chosen_mean.item() == pytest.approx(beta * pc)


@FEW
@given(LOGPROB, LOGPROB, LOGPROB, LOGPROB, BETA, st.floats(-2, 5), st.floats(0, 3))
def test_kto_anew(liked, other, liked_reference, other_reference, beta, kl, class_weight):
    gain = beta * (liked - liked_reference) - beta * max(0, kl)
    loss = beta * max(0, kl) - beta * (other - other_reference)
    expected = 1.5 * (1 - sigmoid(gain)) + class_weight * (1 - sigmoid(loss))
    result = kto(
        torch.cat(each(liked, other)),
        torch.cat(each(liked_reference, other_reference)),
        torch.tensor([True, False]),
        kl,
        beta=beta,
        desirable_weight=1.5,
        undesirable_weight=class_weight,
    )
    assert result.loss.item() == pytest.approx(expected / 2, rel=1e-9, abs=1e-12)
    mean = result.desirable_mean / result.desirable_share
    assert mean.item() == pytest.approx(beta * (liked - liked_reference), abs=1e-9)
    mean = result.undesirable_mean / (1 - result.desirable_share)
    assert mean.item() == pytest.approx(beta * (other - other_reference), abs=1e-9)


@FEW
@given(pairs(), BETA, SMOOTHING)
def test_where_policy_and_reference_agree(drawn, beta, smoothing):
    (chosen, rejected, *_), probability = drawn
    logprobs = (chosen, rejected, chosen, rejected)
    for result in (
        dpo(*logprobs, beta=beta, label_smoothing=smoothing, probability=probability),
        robust_dpo(*logprobs, beta=beta, label_smoothing=smoothing),
    ):
        assert result.loss.item() == pytest.approx(math.log(2), rel=1e-12)
        assert result.chosen_mean == result.rejected_mean == result.margin_mean == 0
        assert result.accuracy == 0.5
    loss = ipo(*logprobs, beta=beta, probability=probability).loss
    assert loss.item() == pytest.approx((1 / (2 * beta)) ** 2, rel=1e-12)
    for liked in (True, False):
        desirable = torch.full(chosen.shape, liked)
        assert kto(chosen, chosen, desirable, 0.0, beta=beta).loss == 0.5


@FEW
@given(pairs(), BETA)
def test_labels_that_are_wrong_half_the_time_teach_nothing_at_the_reference(drawn, beta):
    (chosen, rejected, *_), _ = drawn
    policy = chosen.clone().requires_grad_()
    dpo(policy, rejected, chosen, rejected, beta=beta, label_smoothing=0.5).loss.backward()
    assert (policy.grad == 0).all()


@FEW
@given(pairs(), BETA, SMOOTHING)
def test_swapping_the_pair_and_its_label_changes_nothing(drawn, beta, smoothing):
    (pc, pr, rc, rr), probability = drawn
    for name, loss in losses_of(beta, smoothing).items():
        one = loss(pc, pr, rc, rr, probability=probability)
        other = loss(pr, pc, rr, rc, probability=1 - probability)
        close(other.margin_mean, -one.margin_mean)
        close(other.chosen_mean, one.rejected_mean)
        close(other.accuracy, 1 - one.accuracy)
        if name != "robust":  # which takes no probability
            close(other.loss, one.loss)


@FEW
@given(pairs(), BETA, SMOOTHING, st.integers(1, 5))
def test_device_batches_add_up(drawn, beta, smoothing, size):
    """Loss, statistics and gradient of an optimizer batch do not depend on how it is split."""
    logprobs, probability = drawn
    weight = probability + 0.5
    policy = logprobs[0].clone().requires_grad_()
    columns = [policy, *logprobs[1:], probability, weight]
    for loss in losses_of(beta, smoothing).values():
        whole = loss(policy, *logprobs[1:], probability=probability, weight=weight)
        parts = [
            loss(*four, probability=p, weight=w, num_pairs=float(weight.sum()))
            for *four, p, w in zip(*(x.split(size) for x in columns), strict=True)
        ]
        for total, *summands in zip(whole, *parts, strict=True):
            close(sum(summands), total)
        (gradient,) = torch.autograd.grad(whole.loss, policy)
        close(torch.autograd.grad(sum(part.loss for part in parts), policy)[0], gradient)
    desirable = probability > 0.5
    whole = kto(policy, logprobs[1], desirable, 0.3, beta=beta, weight=weight)
    parts = [
        kto(p, r, d, 0.3, beta=beta, weight=w, num_examples=float(weight.sum()))
        for p, r, d, w in zip(
            *(x.split(size) for x in (policy, logprobs[1], desirable, weight)), strict=True
        )
    ]
    for total, *summands in zip(whole, *parts, strict=True):
        close(sum(summands), total)


@FEW
@given(pairs(), BETA)
def test_one_loss_is_another(drawn, beta):
    """DPO is Bradley-Terry on implicit rewards; SimPO is DPO without a reference and a margin."""
    (pc, pr, rc, rr), probability = drawn
    zero = torch.zeros_like(pc)
    one = dpo(pc, pr, rc, rr, beta=beta, probability=probability)
    other = bradley_terry(beta * (pc - rc), beta * (pr - rr), probability=probability)
    for expected, actual in zip(other, one, strict=True):
        close(actual, expected)
    one = simpo(pc, pr, beta=beta, margin=0.0, probability=probability)
    other = dpo(pc, pr, zero, zero, beta=beta, probability=probability)
    for expected, actual in zip(other, one, strict=True):
        close(actual, expected)
    one = robust_dpo(pc, pr, rc, rr, beta=beta, label_smoothing=0.0)
    for expected, actual in zip(dpo(pc, pr, rc, rr, beta=beta), one, strict=True):
        close(actual, expected)


@FEW
@given(pairs(), BETA, SMOOTHING)
def test_flipped_labels_do_not_bias_robust_dpo(drawn, beta, share):
    (pc, pr, rc, rr), _ = drawn
    settings = {"beta": beta, "label_smoothing": share}
    kept = robust_dpo(pc, pr, rc, rr, **settings).loss
    flipped = robust_dpo(pr, pc, rr, rc, **settings).loss
    close((1 - share) * kept + share * flipped, dpo(pc, pr, rc, rr, beta=beta).loss)


@pytest.mark.parametrize("chosen", [-80.0, -1e-9, 0.0, 1e-7])
@pytest.mark.parametrize("rejected", [-80.0, -1e-9, 0.0, 1e-7])
def test_orpo_stays_finite_and_keeps_its_direction(chosen, rejected):
    """Float32, where a mean over certain tokens may be 0 or, by rounding, above."""
    chosen = torch.tensor([chosen], requires_grad=True)
    rejected = torch.tensor([rejected], requires_grad=True)
    result = orpo(chosen, rejected, beta=0.1)
    result.loss.backward()
    assert result.loss.isfinite()
    assert -math.inf < chosen.grad < 0 <= rejected.grad < math.inf


@pytest.mark.parametrize(("gap", "gradient"), [(-3000.0, -1), (3000.0, 0)])
def test_policies_far_apart_stay_finite_and_keep_their_gradient(gap, gradient):
    policy, zero = torch.tensor([gap], requires_grad=True), torch.zeros(1)
    result = dpo(policy, zero, zero, zero, beta=1.0)
    result.loss.backward()
    assert result.loss.item() == max(-gap, 0)
    assert policy.grad.item() == gradient
