"""The losses of one PPO update: L = L_policy + c₁·L_value - c₂·H.

Every loss returns a NamedTuple of scalars. Its loss and all statistics called *additive* are
sums over completion tokens divided by `num_tokens`: given the count of the whole optimizer batch,
those of its device batches add up to those of the whole. Only the loss carries a gradient.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from tether.core import logprobs as token_logprobs
from tether.core import masked

LOG_RATIO_LIMIT = 20.0  # nats: e²⁰ ≈ 5·10⁸ is far outside any trust region, and far from overflow


class PolicyLoss(NamedTuple):
    """The clipped policy loss and what to log about it.

    Attributes:
        loss: In units of the advantages; additive.
        clip_fraction: Share of tokens whose loss is a clipped one, which has no gradient;
            additive.
        approx_kl: KL(old policy ‖ policy) in nats per token, estimated by k3; additive.
        ratio_mean: Mean of ρ, 1 in expectation; additive.
        ratio_max: Largest ρ; not additive, the maximum over device batches is that of the whole.
            On the first minibatch of a rollout both must be 1.
    """

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    ratio_mean: Float[Tensor, ""]
    ratio_max: Float[Tensor, ""]


class ValueLoss(NamedTuple):
    """The value loss and what to log about it.

    Attributes:
        loss: In squared reward units; additive.
        clip_fraction: Share of tokens whose loss is the clipped one, 0 without clipping; additive.
    """

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


def clipped_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    sequence_level: bool = False,
    num_tokens: int | float | None = None,
) -> PolicyLoss:
    """Clipped surrogate loss of the policy, the pessimistic one of two.

        L = -1/N Σₜ min(ρₜ Âₜ, clip(ρₜ, 1-ε, 1+ε⁺) Âₜ),   ρₜ = π(aₜ|sₜ) / π_old(aₜ|sₜ)
        with a dual clip, where Âₜ < 0:   max(that minimum, c Âₜ)
        sequence level:   log ρₜ = mean of log π - log π_old over the completion tokens of the row

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; ε⁺ from Yu et al. 2025
    (DAPO), https://arxiv.org/abs/2503.14476; the dual clip from Ye et al. 2020,
    https://arxiv.org/abs/1912.09729; the sequence level from Zheng et al. 2025 (GSPO),
    https://arxiv.org/abs/2507.18071. Departs from the first: the value of log ρ is bounded to
    ±20 nats, so that one token cannot overflow exp; its gradient is passed on as at the bound, so
    a token with Â < 0 that has become far too likely is still pushed down, unless there is a dual
    clip. The statistics see the bounded ρ. Departs from the last: a row counts with its number
    of tokens, here as elsewhere.

    Args:
        logprobs: Log-probs (nats) of the completion tokens under the policy.
        old_logprobs: The same under the policy that sampled them; a constant.
        advantages: Advantage of each token; a constant.
        mask: True on completion tokens.
        clip: ε, how far below 1 the trust region on ρ reaches, above 0.
        clip_high: ε⁺, how far above 1, above 0: more than ε lets unlikely tokens become likely.
            None = ε.
        dual_clip: c, above 1: a token with Âₜ < 0 costs at most c |Âₜ|. None = no such limit.
        sequence_level: Whether the tokens of a row share their geometric mean ρ, through which the
            gradient reaches them all; its trust region is then about a thousandth as wide.
        num_tokens: Completion tokens in the whole optimizer batch. None = those of this mask.

    Returns:
        The loss and its statistics.

    Raises:
        ValueError: If `clip`, `clip_high` or `num_tokens` is not above 0, `dual_clip` is not above
            1, or `mask` selects no token and `num_tokens` is None.
    """
    _require_width("clip", clip)
    clip_high = clip if clip_high is None else clip_high
    _require_width("clip_high", clip_high)
    token_log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    log_ratio = _bounded(_shared(token_log_ratio, mask) if sequence_level else token_log_ratio)
    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip, 1 + clip_high) * advantages
    losses, held = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        _require_dual_clip(dual_clip)
        most = torch.where(advantages < 0, -dual_clip * advantages, math.inf)
        losses, held = torch.minimum(losses, most), held | (losses > most)
    loss = masked.mean(losses, mask, num_tokens)
    with torch.no_grad():
        of_tokens = _bounded(token_log_ratio)
        return PolicyLoss(
            loss=loss,
            clip_fraction=masked.mean(held.to(ratio.dtype), mask, num_tokens),
            approx_kl=masked.mean(torch.expm1(of_tokens) - of_tokens, mask, num_tokens),
            ratio_mean=masked.mean(ratio, mask, num_tokens),
            ratio_max=torch.where(mask, ratio, 0.0).amax(),
        )


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip: float | None = None,
    num_tokens: int | float | None = None,
) -> ValueLoss:
    """Half the mean squared error of the values, optionally the larger of it and a clipped one.

        L = 1/(2N) Σₜ (Vₜ - Rₜ)²;   with clip   L = 1/(2N) Σₜ max((Vₜ - Rₜ)², (V̂ₜ - Rₜ)²),
        V̂ₜ = clip(Vₜ, V_oldₜ - ε, V_oldₜ + ε)

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 9; the clipping is that of
    its published code (Huang et al. 2022,
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 9).

    Args:
        values: V, predicted now, in reward units.
        old_values: V_old, predicted when the completions were sampled; a constant.
        returns: R, from `advantages.gae`; a constant.
        mask: True on completion tokens.
        clip: ε in reward units, above 0: a value that has moved further than this from V_old
            towards its return has no gradient. None = no clipping.
        num_tokens: Completion tokens in the whole optimizer batch. None = those of this mask.

    Returns:
        The loss and the share of tokens clipped.

    Raises:
        ValueError: If `clip` or `num_tokens` is not above 0, or `mask` selects no token and
            `num_tokens` is None.
    """
    values = torch.where(mask, values, 0.0)  # a NaN on padding would come back as a NaN gradient
    error = (values - returns).square()
    clipped_error = error
    if clip is not None:
        _require_width("clip", clip)
        clipped_values = torch.clamp(values, old_values - clip, old_values + clip)
        clipped_error = (clipped_values - returns).square()
    clipped = (clipped_error > error).to(error.dtype)
    return ValueLoss(
        loss=masked.mean(torch.maximum(error, clipped_error), mask, num_tokens) / 2,
        clip_fraction=masked.mean(clipped, mask, num_tokens),
    )


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Share of the variance of the returns that the values account for.

        EV = 1 - Var(R - V) / Var(R)

    1 is a perfect value model, 0 one no better than a constant, below 0 worse than that. It is a
    quotient of variances, so it is not additive: compute it once, over a whole rollout batch.

    Args:
        values: V, in reward units.
        returns: R, in reward units.
        mask: True on completion tokens.

    Returns:
        A pure number, at most 1; 0 where all returns are equal, when there is nothing to explain.

    Raises:
        ValueError: If `mask` selects nothing.
    """
    total = masked.variance(returns, mask)
    unexplained = masked.variance(returns - values.detach(), mask)
    return torch.where(total > 0, 1 - unexplained / total, 0.0)


def entropy(logits: Float[Tensor, "*shape V"]) -> Float32[Tensor, "*shape"]:
    """Entropy of the policy at each position.

        H = -Σᵥ π(v) log π(v),   with 0 log 0 = 0

    Source: Shannon 1948, https://doi.org/10.1002/j.1538-7305.1948.tb01338.x, section 6.

    Args:
        logits: Unnormalized scores of the V tokens, of any float type, divided by the sampling
            temperature where it is not 1.

    Returns:
        Entropies in nats per token, float32, in [0, log V]; average them with `masked.mean`.
    """
    return token_logprobs.entropy_of(token_logprobs.of_vocabulary(logits))


def _shared(log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The mean over the completion tokens of each row, in the place of each of them."""
    means = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return torch.where(mask, means, 0.0)  # in a row without any, nothing of 0/0 is left


def _bounded(log_ratio: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The log-ratio with its value, but not its gradient, bounded."""
    bounded = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio + (bounded - log_ratio).detach()


def _require_width(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value!r} must be above 0; 0.2 is usual")


def _require_dual_clip(dual_clip: float) -> None:
    if not dual_clip > 1:
        raise ValueError(
            f"dual_clip={dual_clip!r} must be above 1, a bound on the ratio; 3 is usual"
        )
