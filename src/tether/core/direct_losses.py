"""Losses that train a policy on preferences directly, without a reward model.

A policy has an implicit reward, β times its log-ratio to the reference; the losses on pairs of
scores then apply to it. Log-probs are in nats: of a whole completion, summed over its tokens, or,
where an argument is called `mean`, per token of it. The loss of an uncertain label is the expected
one: p times that of the pair, and 1-p times that of the swapped pair. Everything is computed in
float32 at least, and only a loss carries a gradient.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.core.score_losses import (
    PreferenceLoss,
    cross_entropy,
    expected,
    of_pairs,
    require_fractions,
    weighing,
    widened,
)

LARGEST_LOGPROB = -1e-6  # nats per token: odds of a million to one


class KTOLoss(NamedTuple):
    """The loss of `kto` and what to log about it; all add up over device batches.

    Attributes:
        loss: A pure number, in [0, the larger of the two class weights].
        accuracy: Share of examples on the right side of the baseline β·KL; on it counts one half.
        desirable_share: Share of examples that are desirable.
        desirable_mean: Implicit rewards of the desirable examples, summed and divided by N, the
            count of all examples; divide by `desirable_share` for the mean of the desirable.
        undesirable_mean: The same of the others; divide by 1 - `desirable_share`.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    desirable_share: Float[Tensor, ""]
    desirable_mean: Float[Tensor, ""]
    undesirable_mean: Float[Tensor, ""]


def dpo(
    policy_chosen: Float[Tensor, " P"],
    policy_rejected: Float[Tensor, " P"],
    reference_chosen: Float[Tensor, " P"],
    reference_rejected: Float[Tensor, " P"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    probability: Float[Tensor, " P"] | None = None,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """Cross-entropy of the labels under the implicit rewards of a policy.

        L = -1/N Σ w [q log σ(h) + (1-q) log σ(-h)],   q = p(1-ε) + (1-p)ε
        h = r_chosen - r_rejected,   r = β (log π - log π_ref)

    log 2 where policy and reference agree. Without a reference, pass zeros for it.

    Source: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; ε (conservative DPO)
    from Mitchell 2023, https://ericmitchell.ai/cdpo.pdf.

    Args:
        policy_chosen: Log-prob (nats) of each preferred completion under the policy, summed over
            its tokens.
        policy_rejected: The same of the others.
        reference_chosen: Those of `policy_chosen` under the reference; constants.
        reference_rejected: Those of `policy_rejected` under the reference.
        beta: β in reward units per nat, above 0: the larger, the nearer to the reference.
        label_smoothing: ε in [0, 1/2], the share of labels that are taken to be wrong.
        probability: p of each pair, that the chosen completion is the better one, in [0, 1].
            None = 1.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a probability or setting is out of range.
    """
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(
            f"label_smoothing={label_smoothing!r} must be in [0, 0.5], the share of wrong labels; "
            "0 trusts them all"
        )
    chosen = _implicit_rewards(policy_chosen, reference_chosen, beta)
    rejected = _implicit_rewards(policy_rejected, reference_rejected, beta)
    right = torch.ones_like(chosen) if probability is None else probability
    require_fractions("probability", right)
    soft = right * (1 - label_smoothing) + (1 - right) * label_smoothing
    return of_pairs(cross_entropy(chosen - rejected, soft), chosen, rejected, weight, num_pairs)


def robust_dpo(
    policy_chosen: Float[Tensor, " P"],
    policy_rejected: Float[Tensor, " P"],
    reference_chosen: Float[Tensor, " P"],
    reference_rejected: Float[Tensor, " P"],
    *,
    beta: float,
    label_smoothing: float,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """The loss of `dpo`, unbiased by labels of which a known share is flipped.

        L = -1/N Σ w [(1-ε) log σ(h) - ε log σ(-h)] / (1-2ε),   h as in `dpo`

    Averaged over labels flipped with probability ε it is the DPO loss of the true ones. The loss
    of a pair has no lower bound for ε > 0.

    Source: Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409.

    Args:
        policy_chosen: Log-prob (nats) of each preferred completion under the policy, summed over
            its tokens.
        policy_rejected: The same of the others.
        reference_chosen: Those of `policy_chosen` under the reference; constants.
        reference_rejected: Those of `policy_rejected` under the reference.
        beta: β in reward units per nat, above 0: the larger, the nearer to the reference.
        label_smoothing: ε in [0, 1/2), the share of labels that are flipped.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a setting is out of range.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing={label_smoothing!r} must be in [0, 0.5), the share of flipped "
            "labels; from one half on they say nothing"
        )
    chosen = _implicit_rewards(policy_chosen, reference_chosen, beta)
    rejected = _implicit_rewards(policy_rejected, reference_rejected, beta)
    kept, flipped = cross_entropy(chosen - rejected), cross_entropy(rejected - chosen)
    losses = ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return of_pairs(losses, chosen, rejected, weight, num_pairs)


def ipo(
    policy_chosen_mean: Float[Tensor, " P"],
    policy_rejected_mean: Float[Tensor, " P"],
    reference_chosen_mean: Float[Tensor, " P"],
    reference_rejected_mean: Float[Tensor, " P"],
    *,
    beta: float,
    probability: Float[Tensor, " P"] | None = None,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """Squared error of the difference of two log-ratios, which is not to grow without end.

        L = 1/N Σ w [p (h - t)² + (1-p) (h + t)²],   t = 1/(2β)
        h = (log π - log π_ref of chosen) - (log π - log π_ref of rejected)

    t² where policy and reference agree.

    Source: Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17, where β is τ. Departs from
    it, as TRL does: log-probs are means over the tokens of a completion and not sums, so that
    β need not follow the length of completions.

    Args:
        policy_chosen_mean: Log-prob (nats per token) of each preferred completion under the
            policy, the mean over its tokens.
        policy_rejected_mean: The same of the others.
        reference_chosen_mean: Those of `policy_chosen_mean` under the reference; constants.
        reference_rejected_mean: Those of `policy_rejected_mean` under the reference.
        beta: β, above 0: the larger, the nearer to the reference. The statistics are of the
            rewards β (log π - log π_ref), per token.
        probability: p of each pair, that the chosen completion is the better one, in [0, 1].
            None = 1.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a probability or setting is out of range.
    """
    chosen = _implicit_rewards(policy_chosen_mean, reference_chosen_mean, beta)
    rejected = _implicit_rewards(policy_rejected_mean, reference_rejected_mean, beta)
    gap, target = (chosen - rejected) / beta, 1 / (2 * beta)
    losses = expected((gap - target).square(), (gap + target).square(), probability)
    return of_pairs(losses, chosen, rejected, weight, num_pairs)


def simpo(
    policy_chosen_mean: Float[Tensor, " P"],
    policy_rejected_mean: Float[Tensor, " P"],
    *,
    beta: float,
    margin: float,
    probability: Float[Tensor, " P"] | None = None,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """Cross-entropy of the labels under log-probs per token, which need no reference.

        L = -1/N Σ w [p log σ(d - γ) + (1-p) log σ(-d - γ)],   d = β (log π_chosen - log π_rejected)

    Source: Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6.

    Args:
        policy_chosen_mean: Log-prob (nats per token) of each preferred completion under the
            policy, the mean over its tokens.
        policy_rejected_mean: The same of the others.
        beta: β in reward units per nat, above 0.
        margin: γ in reward units, 0 or more: subtracted after β, in the swapped pair too.
        probability: p of each pair, that the chosen completion is the better one, in [0, 1].
            None = 1.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a probability or setting is out of range.
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin!r} must be 0 or more, and finite; half of beta is usual")
    chosen = _implicit_rewards(policy_chosen_mean, torch.zeros_like(policy_chosen_mean), beta)
    rejected = _implicit_rewards(policy_rejected_mean, torch.zeros_like(policy_rejected_mean), beta)
    difference = chosen - rejected
    losses = expected(
        cross_entropy(difference - margin), cross_entropy(-difference - margin), probability
    )
    return of_pairs(losses, chosen, rejected, weight, num_pairs)


def orpo(
    policy_chosen_mean: Float[Tensor, " P"],
    policy_rejected_mean: Float[Tensor, " P"],
    *,
    beta: float,
    probability: Float[Tensor, " P"] | None = None,
    weight: Float[Tensor, " P"] | None = None,
    num_pairs: int | float | None = None,
) -> PreferenceLoss:
    """Fine-tuning on the chosen completion, and odds that favour it, without a reference.

        L = 1/N Σ w [-ℓ_chosen - β log σ(o_chosen - o_rejected)],   o = log(π/(1-π)), ℓ = log π

    Source: Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 6 and 7, where β is λ. Departs
    from it: in o, ℓ is at most -10⁻⁶ nats, with the gradient of that bound beyond it.

    Args:
        policy_chosen_mean: ℓ, log-prob (nats per token) of each preferred completion under the
            policy, the mean over its tokens, below 0.
        policy_rejected_mean: The same of the others.
        beta: β, above 0, the weight of the odds. The statistics are of the rewards β ℓ.
        probability: p of each pair, that the chosen completion is the better one, in [0, 1].
            None = 1.
        weight: w of each pair, 0 or more: one of weight 2 counts as two. None = 1.
        num_pairs: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_pairs` is None, `num_pairs` is not above 0,
            a weight is below 0, or a probability or setting is out of range.
    """
    _require_beta(beta)
    chosen, rejected = widened(policy_chosen_mean), widened(policy_rejected_mean)
    odds = _log_odds(chosen) - _log_odds(rejected)
    losses = expected(
        beta * cross_entropy(odds) - chosen, beta * cross_entropy(-odds) - rejected, probability
    )
    return of_pairs(losses, beta * chosen, beta * rejected, weight, num_pairs)


def kto(
    policy: Float[Tensor, " N"],
    reference: Float[Tensor, " N"],
    desirable: Bool[Tensor, " N"],
    kl: Float[Tensor, ""] | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weight: Float[Tensor, " N"] | None = None,
    num_examples: int | float | None = None,
) -> KTOLoss:
    """Prospect theory on single completions: gains and losses beside what the policy does anyway.

        L = 1/N Σ w λ (1 - σ(±(r - β·KL))),   r = β (log π - log π_ref),   + if desirable

    Source: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8.

    Args:
        policy: Log-prob (nats) of each completion under the policy, summed over its tokens.
        reference: The same under the reference; a constant.
        desirable: True where the completion is liked.
        kl: KL(policy ‖ reference) in nats per sequence, estimated on a batch; a constant, 0 where
            the estimate is below.
        beta: β in reward units per nat, above 0.
        desirable_weight: λ of the desirable, 0 or more. N does not count it.
        undesirable_weight: λ of the others; let λ times their number be about equal in both.
        weight: w of each example, 0 or more: one of weight 2 counts as two. None = 1.
        num_examples: N, the sum of the weights in the whole optimizer batch. None = that of these.

    Raises:
        ValueError: If the weights add up to 0 and `num_examples` is None, `num_examples` is not
            above 0, a weight is below 0, or a setting is out of range.
    """
    for name, value in (
        ("desirable_weight", desirable_weight),
        ("undesirable_weight", undesirable_weight),
    ):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be 0 or more, and finite; 1 is usual")
    rewards = _implicit_rewards(policy, reference, beta)
    weight, num_examples = weighing(weight, rewards, "num_examples", num_examples)
    kl = torch.as_tensor(kl, dtype=rewards.dtype, device=rewards.device).detach()
    excess = rewards - beta * kl.clamp(min=0)
    gain = torch.where(desirable, excess, -excess)
    pain = torch.sigmoid(-gain)  # 1 - σ(gain), without its rounding
    losses = torch.where(desirable, desirable_weight * pain, undesirable_weight * pain)
    rewards, liked = rewards.detach(), desirable.to(rewards.dtype)
    return KTOLoss(
        loss=(weight * losses).sum() / num_examples,
        accuracy=(weight * (gain.detach().sign() + 1) / 2).sum() / num_examples,
        desirable_share=(weight * liked).sum() / num_examples,
        desirable_mean=(weight * liked * rewards).sum() / num_examples,
        undesirable_mean=(weight * (1 - liked) * rewards).sum() / num_examples,
    )


def _implicit_rewards(
    policy: Float[Tensor, " P"], reference: Float[Tensor, " P"], beta: float
) -> Float[Tensor, " P"]:
    _require_beta(beta)
    return beta * (widened(policy) - widened(reference))


def _log_odds(logprob: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """log(π/(1-π)) of a log-prob; its value, but not its gradient, is bounded."""
    bounded = logprob + (logprob.clamp(max=LARGEST_LOGPROB) - logprob).detach()
    return bounded - (-torch.expm1(bounded)).log()


def _require_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta={beta!r} must be above 0, and finite; 0.1 is usual, for simpo 2")
