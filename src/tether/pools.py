"""Pools: many scored samples of the reference for a few prompts, as `tether pool` writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from numpy import array, float64, ndarray

from tether.errors import DataError
from tether.records import Text, read_jsonl

FLATTERY = "flattery"  # scorer that counts flattering phrases, for the simulator


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """One prompt with its samples; a row of pool.jsonl."""

    prompt: Text
    category: str
    completions: list[str]
    finished: list[bool]
    """True where the completion ended by itself"""
    token_ids: list[list[int]]
    """Of each completion, its end token included"""
    logprobs: list[float]
    """Of each whole completion under the reference, at the sampling temperature, nats"""
    scores: dict[str, list[float]]
    """By scorer, of each completion"""

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Pooled":
        """Read a row of pool.jsonl.

        Raises:
            DataError: A field is missing or unknown, or has another length than the others.
        """
        try:
            pooled = cls(**row)
            lists = [pooled.finished, pooled.token_ids, pooled.logprobs, *pooled.scores.values()]
            lengths = {len(each) for each in (pooled.completions, *lists)}
        except (TypeError, AttributeError) as error:
            raise DataError(f"not a prompt of a pool ({error}); run `tether pool` again") from None
        if len(lengths) != 1:
            raise DataError(f"a prompt's lists have lengths {sorted(lengths)}; all must be equal")
        return pooled

    def of(self, scorer: str) -> Float[ndarray, " N"]:
        """Scores of its completions by one scorer."""
        return array(self.scores[scorer], dtype=float64)


def rows_of(path: str) -> Iterator[Pooled]:
    """The prompts of a pool.jsonl, one by one.

    Raises:
        DataError: The file or a row cannot be read.
    """
    for number, row in read_jsonl(path):
        try:
            yield Pooled.from_dict(row)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None


def read_pool(path: str) -> list[Pooled]:
    """The prompts of a pool.jsonl.

    Raises:
        DataError: The file cannot be read, holds no prompt, or prompts of different sizes.
    """
    pool = list(rows_of(path))
    sizes = {len(pooled.completions) for pooled in pool}
    if len(sizes) != 1:
        found = f"{sorted(sizes)} completions a prompt" if sizes else "no prompt"
        raise DataError(f"{path}: holds {found}; a pool has prompts with equally many")
    return pool
