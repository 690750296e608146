"""Aim: from a scored rollout to what each completion token is praised or blamed for.

This is all that PPO, GRPO, RLOO and REINFORCE++ differ in, besides having a value model or not.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.config import GRPOConfig, PolicyGradientConfig, PPOConfig, RLOOConfig
from tether.core import advantages, kl, masked, policy_losses
from tether.data.rollout import Scored, Targets
from tether.train.own import checked

Advantage = Callable[..., Any]
"""A user's function in place of a method's own: (rewards of each prompt's completions, (N, K)) →
advantages, (N, K); for PPO (token rewards, values, mask) → (advantages, returns), all (B, T)."""


def aim(
    scored: Scored, config: PolicyGradientConfig, beta: float, own: Advantage | None = None
) -> Targets:
    """Advantages of the completion tokens, and the returns that a value model is to learn.

    PPO spreads the reward over tokens and weighs it by the value model:

        r_t = −β·k(π_old, π_ref)_t + [t is last]·score,   Â from GAE

    The others compare a completion's whole reward with others', the same Â for all its tokens:

        R = score − β·Σ_t k(π_old, π_ref)_t,   Â = (R − mean of the group) / std   GRPO
                                               Â = R − mean of the group's others  RLOO
                                               Â = (R − mean of the batch) / std   REINFORCE++

    With `kl.placement = "loss"` the KL is no part of the reward. What an older policy sampled is
    weighed by its importance; the clipped loss is linear in Â, so there is nothing else to change.

    Args:
        scored: A scored rollout; the completions of a prompt stand together.
        config: The method's settings.
        beta: β in reward units per nat.
        own: In place of the method's own estimate of the advantages.

    Raises:
        CheckError: `own` does not return finite numbers of the right shape.
    """
    targets = _targets(scored, config, beta, own)
    if scored.importance is None:
        return targets
    return targets._replace(advantages=targets.advantages * scored.importance)


def _targets(
    scored: Scored, config: PolicyGradientConfig, beta: float, own: Advantage | None
) -> Targets:
    penalties = kl_penalties(scored, config, beta)
    if isinstance(config, PPOConfig):
        return _by_value(scored, penalties, config, own)
    mask = scored.rollout.mask
    rewards = scored.scores - penalties.sum(1)
    groups = rewards.view(-1, config.num)
    if own:
        estimated = _checked(own(groups), groups, config)
    elif isinstance(config, GRPOConfig):
        estimated = advantages.group_normalized(groups, divide_by_std=config.divide_by_std)
    elif isinstance(config, RLOOConfig):
        estimated = advantages.leave_one_out(groups)
    else:
        estimated = advantages.batch_baseline(groups)
    columns = (estimated.view(-1, 1), rewards.view(-1, 1))
    return Targets(scored, *(column.where(mask, 0.0) for column in columns))


def _by_value(
    scored: Scored, penalties: Float[Tensor, "B T"], config: PPOConfig, own: Advantage | None
) -> Targets:
    mask = scored.rollout.mask
    assert scored.values is not None
    rewards = advantages.token_rewards(scored.scores, penalties, mask)
    if own:
        found = own(rewards, scored.values, mask)
        estimated, returns = (_checked(one, rewards, config).where(mask, 0.0) for one in found)
    else:
        estimated, returns = advantages.gae(
            rewards,
            scored.values,
            mask,
            discount=config.gae.discount,
            trace_decay=config.gae.trace_decay,
            bootstrap=scored.bootstrap,
        )
    if config.gae.standardize:
        estimated = masked.standardize(estimated, mask)
    return Targets(scored, estimated, returns)


def _checked(found: Any, like: Tensor, config: PolicyGradientConfig) -> Tensor:
    return checked(found, like, "policy_loss.advantage", config.policy_loss.advantage).detach()


def kl_penalties(scored: Scored, config: PolicyGradientConfig, beta: float) -> Float[Tensor, "B T"]:
    """β·k of each completion token in reward units; 0 where the KL is a term of the loss."""
    if not beta or config.kl.placement == "loss":
        return torch.zeros_like(scored.old_logprobs)
    kind = config.kl.estimator
    estimates = kl.estimate(scored.old_logprobs, scored.reference_logprobs, kind)
    return beta * estimates.masked_fill(~scored.rollout.mask, 0.0)


def sampled_kl(scored: Scored) -> float:
    """Mean KL to the reference of a rollout (nats per sequence, k1)."""
    log_ratios = scored.old_logprobs - scored.reference_logprobs
    return float(log_ratios.masked_fill(~scored.rollout.mask, 0.0).sum(1).mean())


def rollout_metrics(scored: Scored) -> dict[str, float]:
    """Means of a rollout: score, KL per sequence, length, share that ended by itself."""
    return {
        "score": float(scored.scores.mean()),
        "kl": sampled_kl(scored),
        "length": float(scored.rollout.mask.sum(1).float().mean()),
        "finished": float(scored.rollout.finished.float().mean()),
    }


def target_metrics(targets: Targets) -> dict[str, float]:
    """Mean return of a completion, and the share of the returns that the value model explains."""
    scored, mask = targets.scored, targets.scored.rollout.mask
    metrics = {"reward": float(targets.returns[:, 0].mean())}
    if scored.values is not None:
        explained = policy_losses.explained_variance(scored.values, targets.returns, mask)
        metrics["explained_variance"] = float(explained)
    return metrics
