"""A rollout: prompts, sampled completions and what is known about every sampled token."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from tether.data.batches import Row
from tether.records import Text


class Rollout(NamedTuple):
    """One batch of completions; B rows, T = tokens of the longest completion.

    `mask` is True on completion tokens, the end token included. `logprobs` are those of sampling
    (nats, at the sampling temperature). `finished` is True where the completion ended by itself
    rather than at the length limit. `version` counts the steps of training of the weights that
    sampled.
    """

    prompts: list[Text]
    completions: list[str]
    rows: list[Row]
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    version: int = 0


class Scored(NamedTuple):
    """A rollout with reference, reward and value; shapes (B, T) or (B,).

    `old_logprobs` is π_old: the sampler's log-probs, or the trainer's own where the sampler's
    cannot be trusted. `raw_scores` are in the reward's units, `scores` normalized and clipped,
    with the penalty for a missing end. `values` is None without a value model. `bootstrap` is the
    value after the last token of completions that were cut (0 for those that ended); None = no
    bootstrap. `importance` is π_old / sampler, truncated, where an older policy sampled.
    """

    rollout: Rollout
    old_logprobs: Float[Tensor, "B T"]
    reference_logprobs: Float[Tensor, "B T"]
    raw_scores: Float[Tensor, " B"]
    scores: Float[Tensor, " B"]
    values: Float[Tensor, "B T"] | None
    bootstrap: Float[Tensor, " B"] | None
    importance: Float[Tensor, "B T"] | None = None


class Targets(NamedTuple):
    """What the update aims at; shapes (B, T), 0 off the mask."""

    scored: Scored
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
