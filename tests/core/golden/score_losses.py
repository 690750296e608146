import pytest
import torch

from .numbers import INF, NAN, close, floats

# Four pairs
#   d = 1, -2, 0, 3          -ln σ(d) = 0.3132617, 2.1269280, 0.6931472, 0.0485874   sum 3.1819243
#   m = 0.5, 1, 0, -1
#   d-m = 0.5, -3, 0, 4      -ln σ    = 0.4740770, 3.0485874, 0.6931472, 0.0181499   sum 4.2339615
#   p = 0.9, 0.25, 0.5, 1    -ln σ(-z) = -ln σ(z) + z, so p adds (1-p) z to each:
#                            on d: 0.1 - 1.5 + 0 + 0;  on d-m: 0.05 - 2.25 + 0 + 0
#   w = 2, 0.5, 1, 3  (sum 6.5)
#   -w ln σ(d) = 0.6265234, 1.0634640, 0.6931472, 0.1457621                         sum 2.5288966

CHOSEN, REJECTED = floats(1, -1, 0.5, 2), floats(0, 1, 0.5, -1)
MARGIN, PROBABILITY = floats(0.5, 1, 0, -1), floats(0.9, 0.25, 0.5, 1)
WEIGHT = floats(2, 0.5, 1, 3)


def check_bradley_terry(score_losses):
    result = score_losses.bradley_terry(CHOSEN, REJECTED)
    close(result.loss, 0.7954811)
    close(result.accuracy, 0.625)  # right, wrong, undecided, right
    close(result.margin_mean, 0.5)
    close(result.chosen_mean, 0.625)
    close(result.rejected_mean, 0.125)
    result = score_losses.bradley_terry(CHOSEN, REJECTED, num_pairs=16)
    close(result.loss, 0.1988703)
    close(result.accuracy, 0.15625)
    close(result.margin_mean, 0.125)


def check_bradley_terry_margin_and_probability(score_losses):
    loss = score_losses.bradley_terry
    close(loss(CHOSEN, REJECTED, margin=MARGIN).loss, 1.0584904)
    close(loss(CHOSEN, REJECTED, probability=PROBABILITY).loss, 0.4454811)
    both = loss(CHOSEN, REJECTED, margin=MARGIN, probability=PROBABILITY)
    close(both.loss, 0.5084904)
    close(both.margin_mean, 0.5)  # of the scores, not of what they should exceed


def check_bradley_terry_weight(score_losses):
    result = score_losses.bradley_terry(CHOSEN, REJECTED, weight=WEIGHT)
    close(result.loss, 0.3890610)  # 2.5288966 / 6.5
    close(result.accuracy, 0.8461538)  # (2 + 0 + 1/2 + 3) / 6.5
    close(result.margin_mean, 1.5384615)  # (2·1 - 0.5·2 + 0 + 3·3) / 6.5
    close(result.chosen_mean, 1.2307692)  # (2·1 - 0.5·1 + 0.5 + 3·2) / 6.5
    close(result.rejected_mean, -0.3076923)  # (0 + 0.5 + 0.5 - 3) / 6.5
    result = score_losses.bradley_terry(CHOSEN, REJECTED, weight=WEIGHT, num_pairs=16)
    close(result.loss, 0.1580560)
    close(result.accuracy, 0.34375)
    close(result.margin_mean, 0.625)
    close(result.chosen_mean, 0.5)
    close(result.rejected_mean, -0.125)
    # With labels: 2·0.3132617+0.2, 0.5·2.1269280-0.75, 0.6931472, 0.1457621: sum 1.9788966
    result = score_losses.bradley_terry(CHOSEN, REJECTED, probability=PROBABILITY, weight=WEIGHT)
    close(result.loss, 0.3044456)


def check_bradley_terry_gradient(score_losses):
    # (σ(z) - p)/4 with σ(0.5) = 0.6224593, σ(-3) = 0.0474259, σ(4) = 0.9820138
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    result = score_losses.bradley_terry(chosen, rejected, margin=MARGIN, probability=PROBABILITY)
    result.loss.backward()
    close(chosen.grad, -0.0693852, -0.0506435, 0, -0.0044966)
    close(rejected.grad, 0.0693852, 0.0506435, 0, 0.0044966)
    assert not any(statistic.requires_grad for statistic in result[1:])


def check_bradley_terry_widens_low_precision(score_losses):
    # bfloat16 has 8 bits: 16 - 0.0625 = 15.9375 would be rounded to 16
    chosen = torch.tensor([16.0], dtype=torch.bfloat16)
    rejected = torch.tensor([0.0625], dtype=torch.bfloat16)
    result = score_losses.bradley_terry(chosen, rejected)
    assert result.loss.dtype == torch.float32
    close(result.margin_mean, 15.9375)


# Rankings of completions whose exp(s) are 1, 2, 4, 3 (sum 10)
#   ranks 2 1 3 3       10/2, then (10-2)/1                  ln 40 / 2   = 1.8444397
#   ranks 1 1 2 fail    10/1 and 10/2 tied, then 7/4         ln 87.5 / 3 = 1.4905463
#   ranks 1 fail fail 2 10/1, then 9/3                       ln 30 / 2   = 1.7005987
#   ranks 2 - 1 -       5/4                                  ln 1.25     = 0.2231436
RANKS = floats([2, 1, 3, 3], [1, 1, 2, INF], [1, INF, INF, 2], [2, NAN, 1, NAN])


def check_plackett_luce(score_losses):
    scores = floats(1, 2, 4, 3).log().repeat(4, 1)
    scores[3, 1::2] = floats(NAN, INF)
    scores.requires_grad_()
    losses = score_losses.plackett_luce(scores, RANKS)
    close(losses, 1.8444397, 1.4905463, 1.7005987, 0.2231436)
    losses[[0, 3]].sum().backward()
    # Row 1: ((1, 2, 4, 3)/10 - second + (1, 0, 4, 3)/8 - first) / 2; row 4: (1, 4)/5 - third
    nothing = [0, 0, 0, 0]
    close(scores.grad, [-0.3875, -0.4, 0.45, 0.3375], nothing, nothing, [0.2, 0, -0.2, 0])
    far = score_losses.plackett_luce(floats(1000, 0) + 1e6, floats(2, 1))
    close(far, 1000.0)


def check_plackett_luce_where_nothing_is_decided(score_losses):
    ranks = floats([1, 1, 1], [INF, INF, INF], [NAN, 2, NAN], [NAN, NAN, NAN])
    scores = floats(0.5, -1, 2).repeat(4, 1).requires_grad_()
    losses = score_losses.plackett_luce(scores, ranks)
    close(losses, 0, 0, 0, 0)
    losses.sum().backward()
    assert (scores.grad == 0).all()


def check_plackett_luce_widens_low_precision(score_losses):
    scores = torch.tensor([16, 0.0625], dtype=torch.bfloat16)
    loss = score_losses.plackett_luce(scores, torch.tensor([2.0, 1.0]))
    assert loss.dtype == torch.float32
    close(loss, 15.9375001)


# Labels 1, 1, 1/4, 0 of scores d: -ln σ(1), -ln σ(-2), ln 2, -ln σ(-3) = 3.0485874: sum 6.1819243
# times w: 0.6265234 + 1.0634640 + 0.6931472 + 9.1457621 = 11.5288967


def check_binary(score_losses):
    scores, labels = (CHOSEN - REJECTED).requires_grad_(), floats(1, 1, 0.25, 0)
    result = score_losses.binary(scores, labels)
    close(result.loss, 1.5454811)
    close(result.accuracy, 0.375)  # right, wrong, undecided, wrong
    assert not result.accuracy.requires_grad
    result.loss.backward()  # (σ(d) - y) / 4
    close(scores.grad, -0.0672354, -0.2201993, 0.0625, 0.2381435)
    result = score_losses.binary(scores, labels, weight=WEIGHT)
    close(result.loss, 1.7736764)
    close(result.accuracy, 0.3846154)  # (2 + 0 + 1/2 + 0) / 6.5
    result = score_losses.binary(scores, labels, weight=WEIGHT, num_examples=16)
    close(result.loss, 0.7205560)
    close(result.accuracy, 0.15625)
    # A label of 1/2 says nothing; the loss is that of pairs with these probabilities
    result = score_losses.binary(floats(1, -2, 0.5, 3), PROBABILITY)
    close(result.accuracy, 0.875)
    close(score_losses.binary(scores, PROBABILITY).loss, 0.4454811)
    low = score_losses.binary(scores.bfloat16(), labels.bfloat16())
    assert low.loss.dtype == torch.float32


def check_centering_penalty(score_losses):
    # (2+1)² = 9 and (-1-3.5)² = 20.25; weighted 18 + 10.125 = 28.125
    chosen, rejected = floats(2, -1).requires_grad_(), floats(1, -3.5)
    penalty = score_losses.centering_penalty(chosen, rejected)
    close(penalty, 14.625)
    penalty.backward()
    close(chosen.grad, 3, -4.5)
    weight = floats(2, 0.5)
    close(score_losses.centering_penalty(chosen, rejected, weight=weight), 11.25)
    penalty = score_losses.centering_penalty(chosen, rejected, weight=weight, num_pairs=16)
    close(penalty, 1.7578125)
    low = torch.tensor([16.0], dtype=torch.bfloat16)
    close(score_losses.centering_penalty(low, low / 256), 258.00390625)


def check_score_losses_errors(score_losses):
    loss = score_losses.bradley_terry
    with pytest.raises(ValueError, match=r"num_pairs=0\.0 must be above 0"):
        loss(CHOSEN[:0], REJECTED[:0])
    with pytest.raises(ValueError, match="num_pairs=-1 must be above 0"):
        loss(CHOSEN, REJECTED, num_pairs=-1)
    with pytest.raises(ValueError, match=r"num_pairs=0\.0 must be above 0"):
        loss(CHOSEN, REJECTED, weight=0 * WEIGHT)
    for bad in (-0.5, NAN):
        with pytest.raises(ValueError, match=f"weight={bad} must be 0 or more"):
            loss(CHOSEN, REJECTED, weight=floats(1, 0, bad, 2))
    for bad in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"probability={bad} must be in \[0, 1\]"):
            loss(CHOSEN, REJECTED, probability=floats(0.5, 0, 1, bad))
    for bad in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"label={bad} must be in \[0, 1\]"):
            score_losses.binary(CHOSEN, floats(0.5, 0, 1, bad))
    with pytest.raises(ValueError, match="num_examples=0 must be above 0"):
        score_losses.binary(CHOSEN, CHOSEN.clamp(0, 1), num_examples=0)
    with pytest.raises(ValueError, match="num_pairs=0 must be above 0"):
        score_losses.centering_penalty(CHOSEN, REJECTED, num_pairs=0)
