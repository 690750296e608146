"""Where labelers differ, where the instructions are weak, and what is worth asking next."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tether.feedback.judgments import Item, Judgment
from tether.feedback.labelers import LabelerQuality
from tether.feedback.strengths import Consensus
from tether.feedback.tally import one_voice, pairs_of, tally


class Disputed(NamedTuple):
    """An item on which labelers differ."""

    item: str
    """Its key"""
    dispute: float
    """From 0, all say the same, to 1, any two say the opposite"""
    judgments: int


def disputed(
    items: Mapping[str, Item], judgments: Sequence[Judgment], *, most: int = 20
) -> list[Disputed]:
    """The items on which labelers differ most, the most disputed first; those without are left out.

        dispute = mean over pairs of (s - s')²/4,  over all two labelers who compared the pair

    with s = 1 where the first is better, -1 where the second is, 0 for a tie: two opposite votes
    count 1, a vote against a tie ¼. Equal disputes stand in the order of the items.
    """
    found: list[Disputed] = []
    for block in tally(items, one_voice(judgments)).blocks:
        number = block.of_items(block.compared.astype(np.float64))
        total = block.of_items(block.signs)
        squares = block.of_items(block.signs**2)
        several = number > 1
        apart = (number * squares - total**2) / (2 * np.maximum(number * (number - 1), 1))
        mean = np.sum(apart * several, axis=1) / np.maximum(several.sum(axis=1), 1)
        given = np.bincount(block.item, minlength=len(block.keys))
        found += [
            Disputed(block.keys[i], float(mean[i]), int(given[i])) for i in np.flatnonzero(mean > 0)
        ]
    place = {key: i for i, key in enumerate(items)}
    return sorted(found, key=lambda one: (-one.dispute, place[one.item]))[:most]


def weak_spots(
    items: Mapping[str, Item],
    judgments: Sequence[Judgment],
    quality: Sequence[LabelerQuality],
    *,
    most: int = 20,
) -> list[Disputed]:
    """The items on which competent labelers differ: what the instructions leave open.

    Competent are those whose reliability is surely above chance and not below the others' median.
    """
    competent = {one.labeler for one in quality if one.competent}
    chosen = [judgment for judgment in judgments if judgment.labeler in competent]
    return disputed(items, chosen, most=most)


# --- what to ask next -----------------------------------------------------------------------------


def uncertainties(
    items: Mapping[str, Item], consensus: Mapping[str, Consensus]
) -> dict[str, float]:
    """How uncertain the order of each item is, for active choice: 1 not known, 0 certain.

        u = mean over pairs of 4 p (1 - p),   p = P(i beats j)

    For thumbs p is the chance that the next is up. 1 where nobody has judged.
    """
    return {
        key: 1.0
        if key not in consensus
        else _uncertainty(np.array(consensus[key].beats), consensus[key].up)
        for key in items
    }


def uncertainty_of_scores(scores: Sequence[float] | Sequence[Sequence[float]]) -> float:
    """The same from reward scores of one item's completions, of one scorer or several.

    p = mean over scorers of σ(rᵢ - rⱼ): near ½ where scores are close, and where scorers differ. A
    single completion is held against the score 0.

    Args:
        scores: A score for each completion; or a list of them for each scorer.
    """
    table = np.atleast_2d(np.array(scores, dtype=np.float64))
    single = table.shape[1] == 1
    if single:
        table = np.concatenate([table, np.zeros_like(table)], axis=1)
    gap = table[:, :, None] - table[:, None, :]
    beats = np.mean((1 + np.tanh(gap / 2)) / 2, axis=0)
    return _uncertainty(beats, float(beats[0, 1]) if single else None)


def _uncertainty(beats: Float[np.ndarray, "K K"], up: float | None) -> float:
    p = beats[pairs_of(len(beats))] if up is None else np.array([up])
    return float(np.mean(4 * p * (1 - p))) if len(p) else 1.0
