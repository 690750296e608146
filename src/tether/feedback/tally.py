"""Judgments as arrays: who preferred what in every pair of completions, all items at once.

Items of one size stand together in a block, so that everything that follows is array arithmetic.
A thumb is a comparison with a bar that every labeler carries in mind: the bar stands as a second
completion, a thumb up beats it and a thumb down loses to it.

J judgments on n items of K completions; P = K(K - 1)/2 pairs, in the order of `pairs_of(K)`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

from tether.feedback.judgments import Item, Judgment, Ranks

Floats = NDArray[np.float64]

# A choice by "slightly" tells less of what the next labeler will choose than one by "much".
EMPHASIS = {None: 1.0, 0: 1.0, 1: 0.5, 2: 1.0, 3: 1.5}


class Block(NamedTuple):
    """All judgments on the items of one size."""

    thumbs: bool
    """True where the items have one completion; the second is the bar then"""
    keys: list[str]
    """The n items"""
    judgment: Int[np.ndarray, " J"]
    """Place of each judgment in the list it comes from"""
    item: Int[np.ndarray, " J"]
    """Its item, a place in `keys`"""
    labeler: Int[np.ndarray, " J"]
    """Its labeler, a place in `Tally.labelers`"""
    signs: Float[np.ndarray, "J P"]
    """1 where the first of a pair is better, -1 where the second is, 0 otherwise"""
    seen: Bool[np.ndarray, "J P"]
    """True where the labeler saw both completions of a pair"""
    compared: Bool[np.ndarray, "J P"]
    """True where the pair was seen and the two are not both fails, which tells nothing"""

    emphasis: Float[np.ndarray, " J"]
    """What a judgment counts for how clear its choice was (`Judgment.strength`)"""

    @property
    def size(self) -> int:
        """K, with the bar."""
        return size_of(self.signs.shape[1])

    def num_judgments(self) -> list[int]:
        """Of each item."""
        return np.bincount(self.item, minlength=len(self.keys)).tolist()

    def mid_ranks(self) -> Float[np.ndarray, "J K"]:
        """Places from 1, equal ones and fails sharing theirs: (K + 1)/2 less half the net wins."""
        first, second = pairs_of(self.size)
        ranks = np.full((len(self.signs), self.size), (self.size + 1) / 2)
        for pair, (i, j) in enumerate(zip(first, second, strict=True)):
            ranks[:, i] -= self.signs[:, pair] / 2
            ranks[:, j] += self.signs[:, pair] / 2
        return ranks

    def of_items(self, values: Shaped[np.ndarray, "J *rest"]) -> Float[np.ndarray, "n *rest"]:
        """The sum over each item's judgments."""
        return sums_by(self.item, values, len(self.keys))


class Tally(NamedTuple):
    """Judgments in blocks by the size of their items."""

    labelers: list[str]
    blocks: list[Block]


def tally(items: Mapping[str, Item], judgments: Sequence[Judgment]) -> Tally:
    """Every item and every judgment, in blocks of one size each, small sizes first.

    A completion that is not among `Judgment.shown` was not seen; where `shown` is None all were.
    So judgments of pairs can speak of an item of many completions.

    Raises:
        KeyError: A judgment's item is not among the items.
    """
    names = sorted({judgment.labeler for judgment in judgments})
    number = {name: i for i, name in enumerate(names)}
    by_size: dict[int, tuple[list[str], list[int]]] = {}
    for key, item in items.items():
        by_size.setdefault(len(item.completions), ([], []))[0].append(key)
    for i, judgment in enumerate(judgments):
        by_size[len(items[judgment.item].completions)][1].append(i)
    blocks: list[Block] = []
    for size, (keys, places) in sorted(by_size.items()):
        if size > 0:
            chosen = [judgments[i] for i in places]
            ranks = _ranks([judgment.ranks for judgment in chosen], size)
            seen = _seen([judgment.shown for judgment in chosen], size)
            row = {key: i for i, key in enumerate(keys)}
            blocks.append(
                Block(
                    size == 1,
                    keys,
                    np.array(places, dtype=np.intp),
                    np.array([row[judgment.item] for judgment in chosen], dtype=np.intp),
                    np.array([number[judgment.labeler] for judgment in chosen], dtype=np.intp),
                    *_pairwise(ranks, seen),
                    np.array([EMPHASIS[judgment.strength] for judgment in chosen], dtype=float),
                )
            )
    return Tally(names, blocks)


def one_voice(judgments: Sequence[Judgment]) -> list[Judgment]:
    """The judgments without repeats; a repeat whose first showing no longer stands is kept."""
    first = {(one.item, one.labeler) for one in judgments if not one.repeat}
    return [one for one in judgments if not one.repeat or (one.item, one.labeler) not in first]


def kinds(tallied: Tally) -> list[Tally]:
    """Thumbs and rankings apart, where there are judgments: they are fitted on their own."""
    judged = [block for block in tallied.blocks if len(block.judgment)]
    parted = ([one for one in judged if one.thumbs], [one for one in judged if not one.thumbs])
    return [Tally(tallied.labelers, blocks) for blocks in parted if blocks]


def pairs_of(size: int) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """First and second completion of every pair: (0, 1), (0, 2), ..., (1, 2), ..."""
    first, second = np.triu_indices(size, k=1)
    return first, second


def size_of(num_pairs: int) -> int:
    """K of P = K(K - 1)/2."""
    return round((1 + (1 + 8 * num_pairs) ** 0.5) / 2)


def sums_by(
    group: Int[np.ndarray, " J"], values: Shaped[np.ndarray, "J *rest"], num_groups: int
) -> Float[np.ndarray, "n *rest"]:
    """The sum of each group's rows."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    columns = [np.bincount(group, weights=column, minlength=num_groups) for column in flat.T]
    sums = np.stack(columns, axis=-1).astype(np.float64)  # counts, where there are no rows
    return sums.reshape(num_groups, *values.shape[1:])


def _ranks(ranks: list[Ranks], size: int) -> Floats:
    """(J, K); a fail is infinite, and the bar stands between up and down."""
    numbers = np.array(ranks, dtype=np.float64).reshape(len(ranks), size)
    numbers[np.isnan(numbers)] = np.inf
    if size == 1:
        numbers = np.concatenate([numbers, np.full_like(numbers, 1e9)], axis=1)
    return numbers


def _seen(shown: list[list[int] | None], size: int) -> NDArray[np.bool_]:
    seen = np.ones((len(shown), max(size, 2)), dtype=np.bool_)
    for row, order in zip(seen, shown, strict=True):
        if order is not None and len(order) < size:
            row[:] = False
            row[order] = True
    return seen


def _pairwise(
    ranks: Floats, seen: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = pairs_of(ranks.shape[1])
    a, b = ranks[:, first], ranks[:, second]
    both = seen[:, first] & seen[:, second]
    signs = np.where(both, (a < b).astype(np.float64) - (a > b), 0.0)
    return signs, both, both & ~(np.isinf(a) & np.isinf(b))
