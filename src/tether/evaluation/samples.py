"""Scored samples, and the ways to group them that every figure of an evaluation starts from."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tether.errors import DataError
from tether.evaluation.plain import or_none
from tether.records import Text

ALL = "all"  # the category of the overall figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion and what was measured of it; a row of samples.jsonl."""

    policy: str
    prompt_index: int
    """Number of the prompt: the same for every policy"""
    sample_index: int
    """Number of the sample among those of this policy and prompt"""
    category: str
    """Label of the prompt by which results are broken down; "" = none"""
    prompt: Text
    completion: str
    finished: bool
    """True where the completion ended by itself, False where the length limit cut it"""
    num_tokens: int
    scores: dict[str, float]
    """Score by scorer"""
    kl: float | None = None
    """Sampled KL to the reference, nats per sequence; None or NaN = not measured"""
    reference_perplexity: float | None = None
    """Perplexity of the completion under the reference; None or NaN = not measured"""
    log_ratio: float | None = None
    """log π - log π_ref of the completion, nats per sequence; None or NaN = not measured"""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this sample; what was not measured is null."""
        row = dataclasses.asdict(self)
        measured = ("kl", "reference_perplexity", "log_ratio")
        return row | {name: or_none(row[name]) for name in measured}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Sample":
        """Read what `to_dict` wrote.

        Raises:
            DataError: A field is missing or unknown.
        """
        try:
            return cls(**row)
        except TypeError as error:
            raise DataError(f"not a sample of an evaluation ({error}); evaluate again") from None


# The samples of a policy, grouped by prompt in the order of the prompts: group[prompt][sample].
Group = list[list[Sample]]


def by_policy(samples: Sequence[Sample]) -> dict[str, Group]:
    """Every policy's samples, grouped by prompt; prompts and samples in the order of numbers."""
    prompts: dict[str, dict[int, list[Sample]]] = {}
    for sample in samples:
        prompts.setdefault(sample.policy, {}).setdefault(sample.prompt_index, []).append(sample)
    return {
        policy: [sorted(group[i], key=lambda sample: sample.sample_index) for i in sorted(group)]
        for policy, group in prompts.items()
    }


def select(group: Group, category: str, apart: Sequence[str]) -> Group:
    """The prompts of one category; of `ALL` those of no category that is reported apart."""
    if category == ALL:
        return [row for row in group if row[0].category not in apart]
    return [row for row in group if row[0].category == category]


def overall(samples: Sequence[Sample], apart: Sequence[str]) -> dict[str, Group]:
    """Every policy's samples of the prompts that the overall figures are of."""
    return {name: select(group, ALL, apart) for name, group in by_policy(samples).items()}


def matrix(group: Group, value: Callable[[Sample], float]) -> Float[np.ndarray, "P N"]:
    """A number of each sample: a row for each of P prompts, N samples a prompt."""
    return np.array([[value(sample) for sample in row] for row in group], dtype=np.float64)


def scores_of(group: Group, scorer: str) -> Float[np.ndarray, "P N"]:
    """The scores of one scorer."""
    return matrix(group, lambda sample: sample.scores[scorer])


def as_text(prompt: Text) -> str:
    """A prompt to read: a string as it is, of a conversation every message after its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
