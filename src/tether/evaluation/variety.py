"""How varied texts are: word n-grams, openings, BLEU between two of them.

Words are what spaces part, so texts in scripts without spaces need another measure.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

OPENING = 3  # words


def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of words comes in a text."""
    words = text.split()
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def opening(text: str) -> str:
    """The first words of a text, in small letters."""
    return " ".join(text.lower().split()[:OPENING])


class Variety(NamedTuple):
    """Of things that were counted over a whole set of texts."""

    distinct: float
    """Different ones, as a share of all"""
    entropy: float
    """−Σ p log p of their shares p, nats"""
    commonest: float
    """Share of the one that comes most often"""


class Varieties(NamedTuple):
    """The fields of `Variety`, each for the whole set and then without each count."""

    distinct: Float[np.ndarray, " all_and_each"]
    entropy: Float[np.ndarray, " all_and_each"]
    commonest: Float[np.ndarray, " all_and_each"]


def varieties(counts: Sequence[Counter[Hashable]]) -> list[Variety]:
    """Variety of all counts together, then of all but the i-th, for each i in turn.

    What one count changes is worked out from its own entries, so the whole takes as long as
    counting does.
    """
    total: Counter[Hashable] = Counter()
    for each in counts:
        total.update(each)
    everything = total.total()
    logs = math.fsum(map(_nlogn, total.values()))
    order = total.most_common()
    found = [_variety(len(total), everything, logs, order[0][1] if order else 0)]
    for each in counts:
        left = {key: total[key] - n for key, n in each.items()}
        changed = sum(_nlogn(n) - _nlogn(total[key]) for key, n in left.items())
        most = max(
            max(left.values(), default=0),
            next((n for key, n in order if key not in each), 0),
        )
        distinct = len(total) - sum(n == 0 for n in left.values())
        found.append(_variety(distinct, everything - each.total(), logs + changed, most))
    return found


def _variety(distinct: int, everything: int, logs: float, most: int) -> Variety:
    if everything == 0:
        return Variety(0.0, 0.0, 0.0)
    entropy = math.log(everything) - logs / everything
    return Variety(distinct / everything, max(0.0, entropy), most / everything)


def _nlogn(n: int) -> float:
    return n * math.log(n) if n else 0.0


# --- BLEU -----------------------------------------------------------------------------------------


def bleu(text: str, reference: str) -> float:
    """BLEU-4 of a text against one other, smoothed.

        BLEU = min(1, exp(1 − r/c)) · exp( ¼ Σₙ log pₙ ),   p₁ = m₁/c,   pₙ = (mₙ + 1)/(cₙ + 1)

    c and r are the words of the text and of the reference, cₙ the n-grams of the text and mₙ those
    that the reference has too, each as often as it stands there. 1 for equal texts, 0 where they
    share no word or one of them is empty.

    Source: Papineni et al. 2002 (BLEU); Lin & Och 2004, ORANGE (adding 1 for n > 1).
    """
    ours, theirs = _all_grams(text), _all_grams(reference)
    length, other = ours[0].total(), theirs[0].total()
    if not (length and other):
        return float(length == other)
    logs = 0.0
    for n, (mine, there) in enumerate(zip(ours, theirs, strict=True), start=1):
        matches = sum(min(count, there[gram]) for gram, count in mine.items() if gram in there)
        if n == 1 and matches == 0:
            return 0.0
        more = int(n > 1)
        logs += math.log((matches + more) / (mine.total() + more))
    return min(1.0, math.exp(1 - other / length)) * math.exp(logs / 4)


def alike(first: str, second: str) -> float:
    """Mean of the BLEU of each against the other, in [0, 1]; 1 = equal."""
    return (bleu(first, second) + bleu(second, first)) / 2


@lru_cache(maxsize=4096)
def _all_grams(text: str) -> tuple[Counter[tuple[str, ...]], ...]:
    return tuple(grams(text, n) for n in (1, 2, 3, 4))


def ring(number: int, partners: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of different numbers below `number`, such that each is in equally many.

    Everything stands in a ring in random order, and each is paired with the `partners` after it;
    no pair comes twice, so there are at most (number − 1)/2 partners.
    """
    order = np.random.default_rng(seed).permutation(number).tolist()
    steps = range(1, min(partners, (number - 1) // 2) + 1)
    return [(order[i], order[(i + step) % number]) for step in steps for i in range(number)]


def without_each(
    values: Float[np.ndarray, " M"], pairs: Sequence[tuple[int, int]], number: int
) -> Float[np.ndarray, " P"]:
    """Mean of the values of all pairs in which i does not stand, for each i below `number`."""
    sums, counts = np.zeros(number), np.zeros(number)
    for value, pair in zip(values, pairs, strict=True):
        for end in pair:
            sums[end] += value
            counts[end] += 1
    return (values.sum() - sums) / (len(values) - counts)
