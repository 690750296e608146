"""Losses on the scores of completions of which some were preferred.

Losses and statistics are weighted sums over pairs, or examples, divided by their weight in the
whole optimizer batch, so that those of its device batches add up. Everything is computed in
float32 at least, and only a loss carries a gradient.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class PreferenceLoss(NamedTuple):
    """A loss over preference pairs and what to log about it; all add up over device batches.

    Attributes:
        loss: In nats per pair; that of `ipo` in squared nats.
        accuracy: Share of pairs whose chosen completion scores higher; equal scores count one half.
        margin_mean: Mean of chosen minus rejected, in reward units.
        chosen_mean: Mean score, or implicit reward, of the chosen completions, in reward units.
        rejected_mean: The same of the rejected.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    margin_mean: Float[Tensor, ""]
    chosen_mean: Float[Tensor, ""]
    rejected_mean: Float[Tensor, ""]


class BinaryLoss(NamedTuple):
    """The loss of `binary` and what to log about it; both add up over device batches.

    Attributes:
        loss: In nats per example.
        accuracy: Share of examples whose score has the sign that the label asks for; a score of 0
            and a label of 1/2 count one half.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def bradley_terry(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    margin: Float[Tensor, " P"] | None = None,
    probability: Float[Tensor, " P"] | None = None,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """Cross-entropy between the labels and the preferences that two scores predict.

        L = -1/N Σ w [p log σ(d - m) + (1-p) log σ(-(d - m))],   d = r_chosen - r_rejected

    A pair's loss is least at d = m + log(p/(1-p)): the margin m is how much better the chosen
    completion must score at even odds, the probability p how sure the label is that it is the
    better one. With p = 1 and m = 0 this is -log σ(d), and log 2 at d = 0; with p = 1/2 and m = 0
    equal scores are right and the label has no direction.

    Source: Bradley & Terry 1952, https://doi.org/10.2307/2334029; Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155, eq. 1; the margin from Touvron et al. 2023,
    https://arxiv.org/abs/2307.09288, eq. 2; soft labels from Christiano et al. 2017,
    https://arxiv.org/abs/1706.03741, section 2.2.3. Departs from Ouyang et al.: a pair's weight is
    the given one, however many completions its ranking had.

    Args:
        chosen: Scores of the preferred completions, in reward units.
        rejected: Scores of the others, in the same order.
        margin: m of each pair, in reward units. None = 0.
        probability: p of each pair, that the chosen completion is the better one, in [0, 1].
            None = 1.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a probability is outside [0, 1].
    """
    chosen, rejected = widened(chosen), widened(rejected)
    difference = chosen - rejected
    excess = difference if margin is None else difference - margin
    return of_pairs(cross_entropy(excess, probability), chosen, rejected, weight, num_pairs)


def plackett_luce(
    scores: Float[Tensor, "*batch K"], ranks: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch"]:
    """Minus log-likelihood per stage of rankings, in which the best that is left is taken in turn.

        L = 1/S Σᵢ log Σ_{j: rankⱼ ≥ rankᵢ} exp(sⱼ - sᵢ)

    over the S completions i that are not in the last group. Tied ones share the sum that has them
    all in it. Of two completions it is -log σ(s_better - s_worse).

    Source: Plackett 1975, https://doi.org/10.2307/2346567; Luce 1959,
    https://doi.org/10.1037/14396-000; ties from Breslow 1974, https://doi.org/10.2307/2529620.
    Departs from them: divided by S, so that a long ranking does not outweigh short ones.

    Args:
        scores: s of each completion, in reward units.
        ranks: 1 = best; only their order matters. Equal = tie, inf = fail (all fails are one last
            group), NaN = there is no completion (what `scores` holds there never matters).

    Returns:
        Loss of each ranking in nats; 0, with gradient 0, where nothing is decided.
    """
    scores = widened(scores)
    worst = torch.where(ranks.isnan(), -math.inf, ranks).amax(dim=-1, keepdim=True)
    stages = ranks < worst  # NaN is neither a stage nor, below, left
    left = ranks.unsqueeze(-2) >= ranks.unsqueeze(-1)  # (*batch, K, K): j is there when i is taken
    ahead = scores.unsqueeze(-2) - scores.unsqueeze(-1)  # sⱼ - sᵢ
    terms = torch.where(left, ahead, -math.inf).logsumexp(dim=-1)
    return torch.where(stages, terms, 0.0).sum(dim=-1) / stages.sum(dim=-1).clamp(min=1)


def binary(
    scores: Float[Tensor, " N"],
    labels: Float[Tensor, " N"],
    *,
    weight: Float[Tensor, " N"] | None = None,
    num_examples: int | float | None = None,
) -> BinaryLoss:
    """Cross-entropy of labels of single completions, with the score as the logit of a good one.

        L = -1/N Σ w [y log σ(s) + (1-y) log σ(-s)]

    Source: Cox 1958, https://doi.org/10.1111/j.2517-6161.1958.tb00292.x.

    Args:
        scores: s, in reward units.
        labels: y in [0, 1]: 1 = good, 0 = bad, between = the probability that it is good.
        weight: w of each example, 0 or more: one of weight 2 counts as two. None = 1.
        num_examples: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_examples` is None, `num_examples` is not
            above 0, a weight is below 0, or a label is outside [0, 1].
    """
    scores = widened(scores)
    weight, num_examples = weighing(weight, scores, "num_examples", num_examples)
    losses = cross_entropy(scores, labels, "label")
    agreement = scores.detach().sign() * (labels - 0.5).sign()
    return BinaryLoss(
        loss=(weight * losses).sum() / num_examples,
        accuracy=(weight * (agreement + 1) / 2).sum() / num_examples,
    )


def centering_penalty(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> Float[Tensor, ""]:
    """What holds scores near 0, which pairs alone leave free: add 0.01 of it to a loss.

        C = 1/N Σ w (r_chosen + r_rejected)²

    Source: Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244.

    Args:
        chosen: Scores of the preferred completions, in reward units.
        rejected: Scores of the others, in the same order.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Returns:
        One number in squared reward units; it adds up over device batches.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            or a weight is below 0.
    """
    sums = widened(chosen) + widened(rejected)
    weight, num_pairs = weighing(weight, sums, "num_pairs", num_pairs)
    return (weight * sums.square()).sum() / num_pairs


def of_pairs(
    losses: Float[Tensor, " P"],
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    weight: Float[Tensor, " P"] | None,
    num_pairs: int | float | None,
) -> PreferenceLoss:
    """Weighted means of the losses of pairs and of their scores, or implicit rewards."""
    weight, num_pairs = weighing(weight, losses, "num_pairs", num_pairs)
    chosen, rejected = chosen.detach(), rejected.detach()
    difference = chosen - rejected
    return PreferenceLoss(
        loss=(weight * losses).sum() / num_pairs,
        accuracy=(weight * (difference.sign() + 1)).sum() / 2 / num_pairs,
        margin_mean=(weight * difference).sum() / num_pairs,
        chosen_mean=(weight * chosen).sum() / num_pairs,
        rejected_mean=(weight * rejected).sum() / num_pairs,
    )


def cross_entropy(
    logit: Float[Tensor, " P"],
    probability: Float[Tensor, " P"] | None = None,
    name: str = "probability",
) -> Float[Tensor, " P"]:
    """-log σ(logit), or its mean with -log σ(-logit) where the label is soft."""
    return expected(
        -functional.logsigmoid(logit), -functional.logsigmoid(-logit), probability, name
    )


def expected(
    loss: Float[Tensor, " P"],
    swapped: Float[Tensor, " P"],
    probability: Float[Tensor, " P"] | None,
    name: str = "probability",
) -> Float[Tensor, " P"]:
    """The loss of a pair whose label is right with the given probability, None = 1."""
    if probability is None:
        return loss
    require_fractions(name, probability)
    return probability * loss + (1 - probability) * swapped


def widened(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Scores or log-probs in float32 or wider: their differences are small beside them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def weighing(
    weight: Float[Tensor, " P"] | None,
    like: Float[Tensor, " P"],
    name: str,
    total: int | float | None,
) -> tuple[Float[Tensor, " P"], int | float]:
    """The weights, 1 each unless given, and what weighted sums are divided by."""
    if weight is None:
        weight = torch.ones_like(like)
    below = weight[~(weight >= 0)]  # NaN is below, too
    if len(below):
        raise ValueError(
            f"weight={below[0].item()!r} must be 0 or more, how many this one counts as; "
            "None where all count the same"
        )
    if total is None:
        total = weight.sum().item()
    if not total > 0:
        raise ValueError(f"{name}={total!r} must be above 0; give one or more")
    return weight, total


def require_fractions(name: str, x: Float[Tensor, " P"]) -> None:
    """Refuse probabilities outside [0, 1]."""
    outside = x[~((x >= 0) & (x <= 1))]  # NaN is outside, too
    if len(outside):
        raise ValueError(
            f"{name}={outside[0].item()!r} must be in [0, 1], how likely the completion is the "
            "better or a good one; 1 where that is certain"
        )
