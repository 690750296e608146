"""Improve on what the reward chooses: online DPO on best and worst, best-of-n on the best.

Both learn from completions that the policy has just sampled, without advantages or a value model.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether import parallel
from tether.config import BestOfNConfig, OnlineDPOConfig
from tether.core.preference_losses import dpo
from tether.data.rollout import Scored
from tether.models.language_model import LanguageModel
from tether.train import loop, sft
from tether.train.reference import sequence_logprobs


def improve_on_pairs(
    policy: LanguageModel,
    optimizer: torch.optim.Optimizer,
    scored: Scored,
    config: OnlineDPOConfig,
    *,
    step: int,
) -> dict[str, float]:
    """DPO on each prompt's best completion against its worst, as the reward sees them.

    A prompt whose completions all have one score decides nothing and has no part in the loss.
    Source: Guo et al. 2024, https://arxiv.org/abs/2402.04792.
    """
    best, worst = extremes(scored.scores, config.num)
    different = scored.scores[best] > scored.scores[worst]

    def backward(prompts: list[int], number: int) -> dict[str, Tensor]:
        decided = [i for i in prompts if different[i]]
        pairs = [(int(best[i]), int(worst[i])) for i in decided]
        row = accumulate_pairs(policy, scored, pairs, config)
        return {**row, "decided": torch.tensor(len(decided) / len(prompts))}

    sets, num_prompts = [policy.model.parameters()], len(best)
    return loop.improve_in_minibatches(config, optimizer, sets, num_prompts, backward, step)


def accumulate_pairs(
    policy: LanguageModel, scored: Scored, pairs: list[tuple[int, int]], config: OnlineDPOConfig
) -> dict[str, Tensor]:
    """Accumulate the gradient of DPO over (chosen, rejected) rows of a rollout.

    Both of a pair are in one forward pass.
    """
    rows = scored.rollout.rows
    mask = scored.rollout.mask
    reference = scored.reference_logprobs.masked_fill(~mask, 0.0).sum(1)
    size = max(config.device_batch_size // 2, 1) if config.device_batch_size else len(pairs)
    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    sums: dict[str, Tensor] = {name: torch.zeros(()) for name in names}
    size = max(parallel.rows_a_pass(len(pairs), size), 1)
    passes = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    for part, counts in parallel.dealt(passes):
        chosen, rejected = map(list, zip(*part, strict=True))
        logprobs = sequence_logprobs(
            policy, [rows[i] for i in chosen + rejected], temperature=config.sampling.temperature
        )
        held = reference[chosen + rejected].to(logprobs.device)
        result = dpo(
            *logprobs.chunk(2),
            *held.chunk(2),
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            num_pairs=len(pairs),
        )
        (counts * result.loss).backward()
        loop.add_up(sums, {name: counts * each for name, each in zip(names, result, strict=True)})
    return loop.summed(sums)


def improve_on_best(
    policy: LanguageModel,
    optimizer: torch.optim.Optimizer,
    scored: Scored,
    config: BestOfNConfig,
    *,
    step: int,
) -> dict[str, float]:
    """Supervised fine-tuning on each prompt's best completion, as the reward sees them.

    Source: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325 (best of n); Dong et al. 2023,
    https://arxiv.org/abs/2304.06767 (fine-tuning on it, in turns with sampling).
    """
    best, _ = extremes(scored.scores, config.num)

    def backward(prompts: list[int], number: int) -> dict[str, Tensor]:
        batch = [(scored.rollout.rows[int(best[i])], 1.0) for i in prompts]
        loss = torch.zeros(())
        for part in sft.losses(policy, batch, config.device_batch_size):
            part.backward()
            loss = loss + part.detach().cpu()
        return {"loss": parallel.summed(loss)}

    sets, num_prompts = [policy.model.parameters()], len(best)
    metrics = loop.improve_in_minibatches(config, optimizer, sets, num_prompts, backward, step)
    return {**metrics, "best_score": float(scored.scores[best].mean())}


def extremes(scores: Float[Tensor, " B"], num: int) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Row of the best and of the worst of each prompt's `num` completions; the first of equals."""
    groups = scores.view(-1, num)
    starts = torch.arange(len(groups)) * num
    return starts + groups.argmax(1), starts + groups.argmin(1)
