"""Labelers made of numbers: they know the gold score, more or less, and rank by what they like.

    utility = gold_weight * gold + length_weight * words + noise * N(0, 1)

gold is the score that all know, or the labeler's own where it has a scorer. A labeler with
`random=True` looks at nothing: its utility is the noise alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tether.config import Labeler
from tether.errors import CheckError, DataError
from tether.functions import load_function
from tether.records import Completions, Ranking, Text


def known_scores(
    scorer: str, scale: float, prompts: Sequence[Text], texts: Sequence[Text]
) -> list[float]:
    """The known score of each completion, times `scale`.

    Raises:
        CheckError: The scorer does not return one finite number for each completion.
    """
    scores = [float(score) * scale for score in load_function(scorer)(prompts, texts)]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise CheckError(
            f"scorer {scorer!r} returned {len(scores)} scores for {len(texts)} completions, "
            f"{sum(map(math.isfinite, scores))} of them finite; it must return one number for each"
        )
    return scores


def simulate(
    completions: Iterable[Completions],
    scores: Iterable[Sequence[float]],
    labelers: Sequence[Labeler],
    seed: int,
    *,
    tie: float = 0.0,
    fail_below: float = -np.inf,
    own: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> list[Ranking]:
    """Let every labeler rank the completions of every item.

    Equal completions of an item have equal utility, so they tie. Each labeler has its own stream
    of noise: its rankings do not change when another labeler joins.

    Args:
        completions: The items.
        scores: The gold scores of each item's completions.
        labelers: Who ranks; their names must differ.
        seed: Of the noise.
        tie: Utilities that differ from the best of their rank by no more than this are a tie.
        fail_below: A completion of lower utility is a fail (rank None).
        own: The scores of labelers that have a scorer of their own, by its name.

    Returns:
        Item by item one ranking a labeler; ranks 1, 2, 2, 4, ... as in sports.

    Raises:
        DataError: An item and its scores differ in number, or two labelers share a name.
    """
    if len({labeler.name for labeler in labelers}) < len(labelers):
        names = [labeler.name for labeler in labelers]
        raise DataError(f"labelers={names!r} must have different names")
    streams = [np.random.default_rng([seed, index]) for index in range(len(labelers))]
    rankings: list[Ranking] = []
    for index, (item, usual) in enumerate(zip(completions, scores, strict=True)):
        for labeler, stream in zip(labelers, streams, strict=True):
            golds = own[labeler.scorer][index] if own and labeler.scorer else usual
            if len(golds) != len(item.completions):
                rule = f"must hold {len(item.completions)} numbers, one a completion"
                raise DataError(f"scores={list(golds)!r} {rule}")
            values = utilities(labeler, item.completions, golds, stream)
            rankings.append(
                Ranking(
                    prompt=item.prompt,
                    completions=list(item.completions),
                    ranks=rank(values, tie=tie, fail_below=fail_below),
                    labeler=labeler.name,
                    category=item.category,
                )
            )
    return rankings


def utilities(
    labeler: Labeler, texts: Sequence[str], golds: Sequence[float], stream: np.random.Generator
) -> list[float]:
    """What each completion of one item is worth to a labeler; equal texts are worth the same."""
    draws = stream.standard_normal(len(texts)).tolist()
    worth: dict[str, float] = {}
    for text, gold, draw in zip(texts, golds, draws, strict=True):
        liked = labeler.gold_weight * gold + labeler.length_weight * len(text.split())
        worth.setdefault(text, draw if labeler.random else liked + labeler.noise * draw)
    return [worth[text] for text in texts]


def rank(
    values: Sequence[float], *, tie: float = 0.0, fail_below: float = -np.inf
) -> list[float | None]:
    """Ranks of utilities: 1 for the highest, equal for a tie, None for a fail."""
    ranks: list[float | None] = [None] * len(values)
    place, best = 0, np.inf
    for count, i in enumerate(sorted(range(len(values)), key=lambda i: -values[i]), start=1):
        if values[i] < fail_below:
            break
        if best - values[i] > tie or count == 1:
            place, best = count, values[i]
        ranks[i] = float(place)
    return ranks
