"""Score: what reference, reward and value model say of a rollout."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.data.batches import Batch, device_batches, to_grid
from tether.data.rollout import Rollout, Scored
from tether.errors import CheckError
from tether.models.language_model import LanguageModel, completion_logprobs
from tether.models.place import at_work
from tether.models.scalar_head import ScalarModel
from tether.rewards import filters
from tether.rewards.load import Reward

MEAN_GAP_LIMIT = 0.005  # nats a token; above either, the sampler's log-probs are not used
MAX_GAP_LIMIT = 0.05


def score(
    rollout: Rollout,
    policy: LanguageModel,
    reference: LanguageModel | None,
    rewards: list[Reward],
    value: ScalarModel | None,
    *,
    temperature: float,
    missing_eos_penalty: float,
    device_batch_size: int,
    rescore: bool,
    bootstrap: bool = False,
    max_importance: float = 0.0,
) -> tuple[Scored, dict[str, float]]:
    """Score a rollout: reference log-probs, values, rewards, and π_old.

    The score of a completion is Σ weight · normalized reward, bounded by the filters, lowered by
    `missing_eos_penalty` where it was cut at the length limit.

    Args:
        rollout: Completions with the sampler's log-probs.
        policy: The policy that sampled them.
        reference: What the tether holds to; None = no tether (its log-probs are then π_old's).
        rewards: One or more rewards.
        value: The value model; None = the method has none.
        temperature: The sampling temperature; it divides every logit here too.
        missing_eos_penalty: In units of the normalized score.
        device_batch_size: Rows a forward pass.
        rescore: True computes the policy's log-probs anew and compares; where the sampler's are
            off by more than 0.005 (mean) or 0.05 (max) nats a token, the new ones become π_old.
        bootstrap: True adds the value after the last token of completions that were cut.
        max_importance: Above 0: an older policy sampled. π_old is then the policy's own, and
            `importance` its ratio to the sampler's, at most this.

    Returns:
        The scored rollout, and metrics: scores by reward, and the gap if it was measured.

    Raises:
        CheckError: They are off by more in float32, where rounding cannot be the reason.
    """

    def per_token(of: Callable[[Batch], Tensor]) -> Float[Tensor, "B T"]:
        return by_buckets(rollout, of, device_batch_size)

    def logprobs_of(model: LanguageModel) -> Float[Tensor, "B T"]:
        with at_work(model.model, model.place):
            return per_token(
                lambda batch: completion_logprobs(model, batch, temperature=temperature)[0]
            )

    raw, scores, metrics = score_texts(rollout, rewards)
    with torch.no_grad():
        values = per_token(value.values) if value else None
        after = values_after_cut(rollout, value, device_batch_size) if value and bootstrap else None
        old_logprobs, importance = rollout.logprobs, None
        if max_importance:
            old_logprobs = logprobs_of(policy)
            importance, figures = truncated_importance(rollout, old_logprobs, max_importance)
            metrics |= figures
        elif rescore:
            trainer = logprobs_of(policy)
            gap = (trainer - rollout.logprobs)[rollout.mask].abs()
            metrics |= {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}
            trusted = bool(gap.mean() <= MEAN_GAP_LIMIT and gap.max() <= MAX_GAP_LIMIT)
            if not trusted and policy.place.dtype == torch.float32:
                raise CheckError(
                    f"the sampler's log-probs differ from the policy's by {gap.mean():.2g} nats a "
                    f"token (mean; limit {MEAN_GAP_LIMIT}) and {gap.max():.2g} (max; limit "
                    f"{MAX_GAP_LIMIT}): more than rounding, so it sampled from something else"
                )
            metrics["sampler_trusted"] = float(trusted)
            old_logprobs = rollout.logprobs if trusted else trainer
        reference_logprobs = old_logprobs if reference is None else logprobs_of(reference)
    scores = scores - missing_eos_penalty * (~rollout.finished).float()
    found = (old_logprobs, reference_logprobs, raw, scores, values, after, importance)
    return Scored(rollout, *found), metrics


def truncated_importance(
    rollout: Rollout, old_logprobs: Float[Tensor, "B T"], limit: float
) -> tuple[Float[Tensor, "B T"], dict[str, float]]:
    """How much likelier each token is to the policy than to the older one that sampled it.

        w = min(π_old / π_sampler, C)

    With it a gradient over what the older policy sampled is, up to the truncation, one over what
    the present policy would have. Source: Ionides 2008, Truncated importance sampling; for rollouts
    of another engine, Yao et al. 2025, https://fengyao.notion.site/off-policy-rl.

    Returns:
        The weights, 0 off the mask, and their mean, their largest before truncation, and the share
        truncated.
    """
    ratio = (old_logprobs - rollout.logprobs).exp().masked_fill(~rollout.mask, 0.0)
    known = ratio[rollout.mask]
    figures = {
        "importance_mean": float(known.mean()),
        "importance_max": float(known.max()),
        "importance_truncated": float((known > limit).float().mean()),
    }
    return ratio.clamp(max=limit), figures


def score_texts(
    rollout: Rollout, rewards: list[Reward]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], dict[str, float]]:
    """Raw score of the first reward, total of all normalized ones, and the mean of each.

    Of an ensemble also how much its members disagree, in normalized units: where that rises, the
    policy has left what the rewards were trained on.
    """
    judged = [reward.judge(rollout.prompts, rollout.completions) for reward in rewards]
    configs = [reward.config for reward in rewards]
    parts = torch.tensor([each.scores for each in judged])
    raw = torch.tensor(judged[0].raw)
    metrics = {"score_raw": float(raw.mean()), **filters.metrics(parts, configs)}
    known = [each.disagreement for each in judged if each.disagreement is not None]
    if known:
        metrics["disagreement"] = max(known)
    return raw, filters.total(parts, configs), metrics


def by_buckets(
    rollout: Rollout, of: Callable[[Batch], Tensor], device_batch_size: int
) -> Float[Tensor, "B T"]:
    """Per-token numbers of a rollout, computed on rows of similar length; 0 off the mask.

    Of several processes each computes a part of the rows, and all get the whole grid.
    """
    grid = torch.zeros(rollout.mask.shape)
    rows_a_pass = parallel.rows_a_pass(len(rollout.rows), device_batch_size)
    for (chunk, batch), counts in parallel.dealt(device_batches(rollout.rows, rows_a_pass)):
        grid[chunk] += counts * to_grid(of(batch).float().cpu(), rollout.mask[chunk])
    return parallel.summed(grid)


def values_after_cut(
    rollout: Rollout, value: ScalarModel, device_batch_size: int
) -> Float[Tensor, " B"]:
    """Value of the state after the last token, 0 where the completion ended by itself."""
    values = torch.zeros(len(rollout.rows))
    rows_a_pass = parallel.rows_a_pass(len(rollout.rows), device_batch_size)
    for (chunk, batch), counts in parallel.dealt(device_batches(rollout.rows, rows_a_pass)):
        values[chunk] += counts * value.scores(batch).cpu()
    return parallel.summed(values) * (~rollout.finished)
