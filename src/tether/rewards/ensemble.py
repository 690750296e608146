"""Several reward models, or several heads of one, as one reward.

Each member is centred and scaled by its own mean and std before they are put together, since raw
reward units of two models cannot be compared. What they disagree about is where their training
data did not decide, and so where a policy could earn score without merit.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tether.config import RewardConfig
from tether.errors import ConfigError
from tether.models.scalar_head import Centering, RewardModel
from tether.records import Text
from tether.rewards.reward_model import logits_of_texts


def member_scores(
    models: Sequence[RewardModel],
    config: RewardConfig,
    prompts: list[Text],
    completions: list[str],
) -> Float[Tensor, "N M"]:
    """Score of each completion by each member: every head of every model.

    In units of the member's own std on its training completions; raw with `normalize = false`, and
    probabilities with `output = "probability"`.
    """
    parts = []
    for path, model in zip((config.path, *config.members), models, strict=True):
        logits = logits_of_texts(model, prompts, completions).double()
        if config.output == "probability":
            parts.append(logits.sigmoid())
            continue
        shift, scale = torch.tensor(centrings(model, config, path), dtype=torch.float64).T
        parts.append((logits - shift) / scale)
    return torch.cat(parts, dim=1)


def centrings(model: RewardModel, config: RewardConfig, path: str) -> tuple[Centering, ...]:
    """The centring of each head.

    Raises:
        ConfigError: Normalization is asked of a reward model that stored no statistics.
    """
    if not config.normalize or config.output == "probability":
        return (Centering(0.0, 1.0),) * model.head.out_features
    found = model.heads or (model.centering,)
    known = tuple(centering for centering in found if centering is not None)
    if not known:
        raise ConfigError(
            f"reward {path!r} stored no mean and std to normalize by; "
            "train it with `tether reward`, or set normalize = false"
        )
    return known


def combine(members: Float[Tensor, "N M"], config: RewardConfig) -> Float[Tensor, " N"]:
    """Mean, least, or mean − λ·std over the members (std over the M members, not M − 1).

    Source: Coste et al. 2023, https://arxiv.org/abs/2310.02743, section 3; departs from it: the
    std in place of the variance, so that λ has no unit.
    """
    if config.ensemble == "min":
        return members.amin(dim=1)
    mean = members.mean(dim=1)
    if config.ensemble == "mean":
        return mean
    return mean - config.pessimism * members.std(dim=1, correction=0)


def disagreement(members: Float[Tensor, "N M"]) -> float:
    """Mean over completions of the std over members, in the members' units; 0 without any."""
    return float(members.std(dim=1, correction=0).mean()) if len(members) else 0.0
