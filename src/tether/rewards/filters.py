"""Several rewards as one number: terms are summed, filters bound the sum."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.config import RewardConfig


def total(scores: Float[Tensor, "R B"], configs: Sequence[RewardConfig]) -> Float[Tensor, " B"]:
    """The total score of each completion of a batch.

    With x_r the scores (centred, clipped, weighted) of reward r:

        S  = Σ x_r                        over the terms
        S' = min(S, x_r)                  for each cap
        T  = min(S', F)  if x_r < threshold_r for a reject, else S'

    where F is the reject's floor, or the lowest S' of the batch where it has none; of several
    rejects that hold, the lowest F counts. A filter never raises a total.

    Args:
        scores: One row for each reward.
        configs: What each reward is, in the same order.
    """
    summed = scores[[config.role == "term" for config in configs]].sum(0)
    if not summed.numel():
        return summed
    for config, row in zip(configs, scores, strict=True):
        if config.role == "cap":
            summed = torch.minimum(summed, row)
    bounded = summed
    for config, row in zip(configs, scores, strict=True):
        if config.role == "reject":
            floor = summed.min() if config.floor == -math.inf else summed.new_tensor(config.floor)
            bounded = torch.where(rejected(row, config), torch.minimum(bounded, floor), bounded)
    return bounded


def rejected(scores: Float[Tensor, " B"], config: RewardConfig) -> Bool[Tensor, " B"]:
    """True where a reject holds: its score is below its threshold."""
    return scores < config.threshold


def metrics(scores: Float[Tensor, "R B"], configs: Sequence[RewardConfig]) -> dict[str, float]:
    """Of several rewards the mean score of each, and the share of completions a filter acts on."""
    if len(configs) < 2:
        return {}
    names, found = names_of(configs), dict[str, float]()
    summed = scores[[config.role == "term" for config in configs]].sum(0)
    for name, config, row in zip(names, configs, scores, strict=True):
        found[f"score_{name}"] = float(row.mean())
        if config.role == "reject":
            found[f"rejected_{name}"] = float(rejected(row, config).float().mean())
        if config.role == "cap":
            found[f"capped_{name}"] = float((row < summed).float().mean())
    return found


def names_of(configs: Sequence[RewardConfig]) -> list[str]:
    """What each reward is called in the metrics.

    Its name or its rule, where no other is called so; else its number from 1.
    """
    wanted = [config.name or config.rule for config in configs]
    return [
        name if name not in ("", "raw") and wanted.count(name) == 1 else str(number)
        for number, name in enumerate(wanted, start=1)
    ]
