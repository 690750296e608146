"""Improve: minibatches of the clipped policy loss, of the value loss, and of texts mixed in."""

import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.config import PolicyGradientConfig, PPOConfig
from tether.core import kl, masked, policy_losses
from tether.data.batches import Batch, Row, device_batches, to_grid
from tether.data.rollout import Targets
from tether.errors import CheckError
from tether.models.language_model import (
    LanguageModel,
    completion_logprobs,
    logprobs_and_entropies,
    predicting,
)
from tether.models.scalar_head import ScalarModel
from tether.sections import KLConfig
from tether.train import loop
from tether.train.ptx import Ptx
from tether.train.score import MEAN_GAP_LIMIT

EXACT = 1e-6  # what two passes of the same numbers may differ by, in ratio and in nats


def improve(
    policy: LanguageModel,
    value: ScalarModel | None,
    optimizer: torch.optim.Optimizer,
    targets: Targets,
    config: PolicyGradientConfig,
    *,
    step: int,
    beta: float,
    ptx: Ptx | None = None,
) -> dict[str, float]:
    """Update policy and value on one scored rollout; returns the mean metrics of its minibatches.

        L = L_policy + c1·L_value − c2·H   (+ β·KL with kl.placement = "loss")
                                           (+ γ·NLL of other texts with ptx)

    Raises:
        CheckError: Before anything has moved, π_old is off by more than 0.005 nats a token.
    """

    def backward(minibatch: list[int], number: int) -> dict[str, Tensor]:
        row = accumulate(policy, value, targets, minibatch, config, beta)
        if number == 0 and not row["logprob_gap"] <= MEAN_GAP_LIMIT:
            raise CheckError(
                f"π_old differs from the policy by {float(row['logprob_gap']):.4f} nats a "
                f"token (limit {MEAN_GAP_LIMIT}) before the first update of step {step + 1}: "
                "the sampler did not use the policy's weights or distribution"
            )
        if ptx:
            row["ptx_loss"] = ptx.accumulate(policy, config, len(minibatch), step, number)
        return row

    sets = trained_sets(policy, value)
    return loop.improve_in_minibatches(config, optimizer, sets, config.batch_size, backward, step)


def accumulate(
    policy: LanguageModel,
    value: ScalarModel | None,
    targets: Targets,
    minibatch: list[int],
    config: PolicyGradientConfig,
    beta: float,
) -> dict[str, Tensor]:
    """Accumulate the gradient of one minibatch over its device batches; returns its metrics.

    Every part is divided by the tokens of the whole minibatch, so that the gradient does not
    depend on `device_batch_size`, nor on the number of processes that the passes are dealt to.
    """
    rows = [targets.scored.rollout.rows[i] for i in minibatch]
    num_tokens = int(targets.scored.rollout.mask[minibatch].sum())
    sums: dict[str, Tensor] = {}
    rows_a_pass = parallel.rows_a_pass(len(rows), config.device_batch_size)
    for (chunk, batch), counts in parallel.dealt(device_batches(rows, rows_a_pass)):
        part = [minibatch[i] for i in chunk]
        loss, metrics = device_loss(policy, value, targets, part, batch, num_tokens, config, beta)
        (counts * loss).backward()
        loop.add_up(sums, {name: counts * metric for name, metric in metrics.items()})
    return loop.summed(sums)


def device_loss(
    policy: LanguageModel,
    value: ScalarModel | None,
    targets: Targets,
    part: list[int],
    batch: Batch,
    num_tokens: int,
    config: PolicyGradientConfig,
    beta: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Loss of one device batch and its metrics, each its share of the minibatch's."""
    logprobs, entropies, values = forward(policy, value, batch, config)
    mask = targets.scored.rollout.mask[part].to(logprobs.device)
    grid = to_grid(logprobs, mask)
    old = targets.scored.old_logprobs[part].to(logprobs.device)
    advantages = targets.advantages[part].to(logprobs.device)
    settings = config.policy_loss
    policy_part = policy_losses.clipped_policy_loss(
        grid,
        old,
        advantages,
        mask,
        clip=settings.clip,
        clip_high=settings.clip_high or None,
        dual_clip=settings.dual_clip or None,
        sequence_level=settings.level == "sequence",
        num_tokens=num_tokens,
    )
    entropy = entropies.sum() / num_tokens
    loss = policy_part.loss - settings.entropy_coefficient * entropy
    metrics = {
        "policy_loss": policy_part.loss,
        "entropy": entropy,
        "clip_fraction": policy_part.clip_fraction,
        "approx_kl": policy_part.approx_kl,
        "logprob_gap": masked.mean((grid - old).abs().detach(), mask, num_tokens),
    }
    if beta and config.kl.placement == "loss":
        reference = targets.scored.reference_logprobs[part].to(logprobs.device)
        penalty = kl_penalty(grid, old, reference, config.kl)
        loss = loss + beta * masked.mean(penalty, mask, num_tokens)
    if values is not None:
        assert isinstance(config, PPOConfig)
        value_part = value_loss(to_grid(values, mask), targets, part, config, num_tokens)
        loss = loss + config.value.coefficient * value_part.loss
        metrics["value_loss"] = value_part.loss
        metrics["value_clip_fraction"] = value_part.clip_fraction
    return loss, metrics


def value_loss(
    values: Float[Tensor, "B T"],
    targets: Targets,
    part: list[int],
    config: PPOConfig,
    num_tokens: int,
) -> policy_losses.ValueLoss:
    """The value loss of one device batch, its share of the minibatch's."""
    assert targets.scored.values is not None
    return policy_losses.value_loss(
        values,
        targets.scored.values[part].to(values.device),
        targets.returns[part].to(values.device),
        targets.scored.rollout.mask[part].to(values.device),
        clip=config.value.clip or None,
        num_tokens=num_tokens,
    )


def forward(
    policy: LanguageModel, value: ScalarModel | None, batch: Batch, config: PolicyGradientConfig
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Log-probs, entropies and values of the completion tokens; one pass where they share it."""
    hidden = policy.hidden_states(batch, predicting(batch))
    logprobs, entropies = logprobs_and_entropies(
        policy,
        batch,
        hidden,
        temperature=config.sampling.temperature,
        with_entropy=True,
        entropy_grad=config.policy_loss.entropy_coefficient > 0,
    )
    if value is None:
        return logprobs, entropies, None
    shared = value.shares_pass(policy)
    return logprobs, entropies, value.numbers(hidden) if shared else value.values(batch)


def kl_penalty(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    settings: KLConfig,
) -> Float[Tensor, "B T"]:
    """Per-token KL estimate whose gradient is that of the reverse KL, also off-policy.

        (π/π_old) · k,   for k2 with the ratio held constant

    k1 alone has zero expected gradient and k3 alone that of the forward KL; weighting them by the
    ratio mends both. k2 has the right one where π is π_old; elsewhere the ratio accounts for who
    sampled. Source: Tang & Munos 2025, https://arxiv.org/abs/2506.09477.
    """
    ratio = (logprobs - old_logprobs).exp()
    estimate = kl.estimate(logprobs, reference_logprobs, settings.estimator)
    return (ratio.detach() if settings.estimator == "k2" else ratio) * estimate


def trained_sets(
    policy: LanguageModel, value: ScalarModel | None
) -> list[list[torch.nn.Parameter]]:
    """Parameters of policy and value, each to be clipped to its own norm."""
    return [policy.own_parameters, *([value.apart_from(policy)] if value else [])]


@torch.no_grad()
def check_first_minibatch(
    policy: LanguageModel,
    reference: LanguageModel | None,
    rows: list[Row],
    *,
    temperature: float,
    device_batch_size: int,
) -> None:
    """Before the first update: two passes agree (ratio 1) and, from the reference, KL is 0.

    Run on the very minibatch that trains first, with gradients and without. `reference` is given
    only where it must equal the policy.

    Raises:
        CheckError: They differ by more than 1e-6.
    """
    for _, batch in device_batches(rows, device_batch_size):
        once = completion_logprobs(policy, batch, temperature=temperature)[0]
        with torch.enable_grad():
            training = completion_logprobs(policy, batch, temperature=temperature)[0].detach()
        worst = float(((training - once).exp() - 1).abs().max())
        if not worst <= EXACT:
            raise CheckError(
                f"the ratio differs from 1 by {worst:.2g} before the first update (limit {EXACT}): "
                "two passes of one model disagree; look for dropout or randomness in its forward"
            )
        if reference is None:
            continue
        held = completion_logprobs(reference, batch, temperature=temperature)[0]
        worst = float((once - held).abs().max())
        if not worst <= EXACT:
            raise CheckError(
                f"the policy differs from its own starting point by {worst:.2g} nats a token "
                f"before the first update (limit {EXACT}): the reference is not the frozen start"
            )
    parallel.reshard(policy.model)  # no backward pass has followed
