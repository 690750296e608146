"""From scores to what each completion token is blamed or praised for."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.core import masked


def token_rewards(
    scores: Float[Tensor, " B"],
    kl_penalties: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Reward of each completion token: minus its KL penalty, plus the score on the last one.

        rₜ = -β·KLₜ + (score if t is the last completion token, else 0)

    Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2; Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155, section 3.5. The last completion token is the EOS of a
    completion that ended, never the padding after it.

    Args:
        scores: Score of each completion, in reward units.
        kl_penalties: β times the KL of each token, already scaled, in reward units.
        mask: True on completion tokens. Padding may stand before, between and after them.

    Returns:
        Rewards in reward units; 0 where the mask is False.

    Raises:
        ValueError: If a row of `mask` has no True entry: an empty completion cannot be rewarded.
    """
    rewarded = mask.any(dim=1)
    if not rewarded.all():
        raise ValueError(
            f"mask row {int(rewarded.int().argmin())} has no completion token, each needs one or "
            "more; drop empty completions"
        )
    still_to_come = mask.flip(1).cumsum(dim=1).flip(1)  # completion tokens from t on, t included
    is_last = mask & (still_to_come == 1)
    rewards = torch.where(mask, -kl_penalties, 0.0)
    return torch.where(is_last, rewards + scores.unsqueeze(1), rewards)


def rewards_to_go(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, discount: float
) -> Float[Tensor, "B T"]:
    """Discounted sum of the rewards from each completion token on.

        Gₜ = rₜ + γ Gₜ₊₁

    It is the advantage with V = 0 and λ = 1.

    Source: Sutton & Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, eq. 3.9.

    Args:
        rewards: Reward of each completion token, in reward units.
        mask: True on completion tokens; what stands elsewhere is skipped, also in between.
        discount: γ per completion token, in [0, 1].

    Returns:
        Sums in reward units; 0 where the mask is False.

    Raises:
        ValueError: If `discount` is outside [0, 1].
    """
    no_values = torch.zeros_like(rewards)
    return gae(rewards, no_values, mask, discount=discount, trace_decay=1.0)[0]


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    bootstrap: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Estimate the advantage and the return of each completion token.

        δₜ = rₜ + γ V(sₜ₊₁) - V(sₜ);   Âₜ = δₜ + γλ Âₜ₊₁;   Rₜ = Âₜ + V(sₜ)

    Source: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 11-16. Departs from it:
    t+1 is the next *completion* token, so a gap (a tool's output, another speaker's turn) is
    passed over as if its columns were not there.

    Args:
        rewards: Reward of each completion token, in reward units.
        values: V(sₜ), the value of the state in which token t is chosen, in reward units.
        mask: True on completion tokens. Padding may stand before, between and after them.
        discount: γ per completion token, in [0, 1].
        trace_decay: λ, in [0, 1]: 0 trusts the values (Âₜ = δₜ), 1 the sampled rewards
            (Rₜ = rewards to go).
        bootstrap: Value of the state after the last completion token, for completions that were
            cut there; 0 for a row that ended. None = 0 for all.

    Returns:
        Advantages (not standardized) and returns in reward units; both 0 where the mask is False.

    Raises:
        ValueError: If `discount` or `trace_decay` is outside [0, 1].
    """
    _require_fraction("discount", discount)
    _require_fraction("trace_decay", trace_decay)
    backwards: list[Tensor] = []
    trace = torch.zeros_like(values[:, 0])  # (B,): Â of the next completion token
    next_value = torch.zeros_like(trace) if bootstrap is None else bootstrap
    for t in reversed(range(values.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        trace = torch.where(counts, delta + discount * trace_decay * trace, trace)
        next_value = torch.where(counts, values[:, t], next_value)
        backwards.append(trace)
    advantages = torch.where(mask, torch.stack(backwards[::-1], dim=1), 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_normalized(
    scores: Float[Tensor, "N K"], *, divide_by_std: bool = True
) -> Float[Tensor, "N K"]:
    """Advantage of each completion of a prompt beside the others, without a value model.

        Âₖ = (sₖ - s̄) / (σ + 10⁻⁴),   σ² = Σₖ (sₖ - s̄)² / (K-1);   without the std   Âₖ = sₖ - s̄

    Source: Shao et al. 2024 (GRPO), https://arxiv.org/abs/2402.03300, section 4.1.2; without the
    std, which favours prompts that are too easy or too hard, Liu et al. 2025 (Dr. GRPO),
    https://arxiv.org/abs/2503.20783.

    Args:
        scores: Scores of the K completions of each of N prompts, in reward units.
        divide_by_std: Whether advantages are in standard deviations of their group.

    Returns:
        Advantages of the whole completions, each to be that of all its tokens: in standard
        deviations or in reward units, of mean 0 in each group; exactly 0 where scores are equal.

    Raises:
        ValueError: If K is 1.
    """
    _require_company(scores)
    deviations = _deviations(scores)
    if not divide_by_std:
        return deviations
    return deviations / (deviations.std(dim=1, keepdim=True) + 1e-4)


def leave_one_out(scores: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Advantage of each completion over the mean of the others of its prompt.

        Âₖ = sₖ - Σ_{j≠k} sⱼ / (K-1) = (sₖ - s̄) K/(K-1)

    The baseline does not depend on the completion it is for, so that the gradient is unbiased.

    Source: Ahmadian et al. 2024 (RLOO), https://arxiv.org/abs/2402.14740, eq. 8; Kool et al. 2019,
    https://openreview.net/forum?id=r1lgTGL5DE.

    Args:
        scores: Scores of the K completions of each of N prompts, in reward units.

    Returns:
        Advantages of the whole completions in reward units; exactly 0 where scores are equal.

    Raises:
        ValueError: If K is 1.
    """
    _require_company(scores)
    completions = scores.shape[1]
    return _deviations(scores) * (completions / (completions - 1))


def batch_baseline(
    scores: Float[Tensor, "N K"], *, divide_by_std: bool = True
) -> Float[Tensor, "N K"]:
    """Advantage of each completion over the mean of the whole rollout batch.

        Â = (s - s̄) / σ,   s̄ and σ² = mean of (s - s̄)² over all N·K

    One completion a prompt is enough, and hard prompts count as bad luck.

    Source: Hu 2025 (REINFORCE++), https://arxiv.org/abs/2501.03262. Departs from it: the KL
    penalty is not in it, and nothing is added to σ.

    Args:
        scores: Scores of the K completions of each of N prompts, in reward units.
        divide_by_std: Whether advantages are in standard deviations, or else in reward units.

    Returns:
        Advantages of the whole completions, of mean 0 in the batch; exactly 0 where all scores are
        equal.
    """
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    if divide_by_std:
        return masked.standardize(scores, everywhere)
    return _deviations(scores.reshape(1, -1)).reshape(scores.shape)


def _deviations(scores: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Scores minus the mean of their row, without a rounding error where they are equal."""
    offsets = scores - scores[:, :1]
    return offsets - offsets.mean(dim=1, keepdim=True)


def _require_company(scores: Float[Tensor, "N K"]) -> None:
    if scores.shape[1] < 2:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} are of groups of one, and a group of one has "
            "nothing to compare with; sample 2 or more completions a prompt"
        )


def _require_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be in [0, 1]; 1 means no decay")
