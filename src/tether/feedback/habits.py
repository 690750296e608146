"""How somebody labels, whatever the others say: places on the page, ties, pace, control items.

A pattern is what a labeler answered place by place on the page; inf stands for a fail.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from math import erfc, inf, sqrt
from statistics import median
from typing import NamedTuple

import numpy as np

from tether.feedback.consensus import kendall_tau
from tether.feedback.judgments import Item, Judgment, Ranks
from tether.statistics import Interval, cluster_bootstrap

Pattern = tuple[float, ...]


class Share(NamedTuple):
    """A share of `total`, with its 95% interval."""

    share: float
    low: float
    high: float
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """Of one labeler; None where nothing is known. See `LabelerQuality` for the meanings."""

    gold: Share | None
    consistency: Interval | None
    position: Interval | None
    position_p: float | None
    tie_rate: float | None
    seconds: float | None
    straight: Share | None


def habits(
    items: Mapping[str, Item], judgments: Sequence[Judgment], *, num_resamples: int = 500
) -> Habits:
    """The habits that one labeler's judgments show, in the order in which they were given."""
    once = [one for one in judgments if not one.repeat]
    leads = [lead for one in once if one.shown and (lead := _lead(_pattern(one))) is not None]
    position, chance = _mean_and_p(leads) if len(leads) > 1 else (None, None)
    ties = [tie for one in once if (tie := _ties(_pattern(one))) is not None]
    pace = [one.seconds for one in once if one.seconds is not None]
    right = [
        value
        for one in once
        if (known := items[one.item].gold) and (value := _as_known(known, one.ranks)) is not None
    ]
    return Habits(
        gold=wilson(sum(right), len(right)) if right else None,
        consistency=_consistency(judgments, num_resamples),
        position=position,
        position_p=chance,
        tie_rate=sum(ties) / len(ties) if ties else None,
        seconds=median(pace) if pace else None,
        straight=_straight([_pattern(one) for one in once if one.shown]),
    )


def wilson(count: float, total: int) -> Share:
    """A share with its 95% interval, which is never empty, not even at 0 or 1.

        (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    z, share = 1.96, count / total
    middle = share + z * z / (2 * total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Share(share, (middle - half) / scale, (middle + half) / scale, total)


# --- one judgment ---------------------------------------------------------------------------------


def _pattern(judgment: Judgment) -> Pattern:
    order = judgment.shown or range(len(judgment.ranks))
    return tuple(inf if (rank := judgment.ranks[i]) is None else rank for i in order)


@cache
def _lead(pattern: Pattern) -> float | None:
    """How much more often the earlier place is better, over its pairs, from -1 to 1."""
    signs = [(a < b) - (a > b) for a, b in combinations(pattern, 2)]
    return sum(signs) / len(signs) if signs else None


@cache
def _ties(pattern: Pattern) -> float | None:
    """Share of the pairs that are equal, of those that are not both fails."""
    pairs = [(a, b) for a, b in combinations(pattern, 2) if a < inf or b < inf]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def signs(ranks: Ranks) -> list[int]:
    """1, 0, -1 for each pair, and for a thumb 1 up, -1 down."""
    places = [inf if rank is None else rank for rank in ranks]
    if len(places) == 1:
        return [1 if places[0] < inf else -1]
    return [(a < b) - (a > b) for a, b in combinations(places, 2)]


def _as_known(known: Ranks, ranks: Ranks) -> float | None:
    """Share of the pairs that the known ranks decide which are ordered alike, ties half."""
    both = [(a, b) for a, b in zip(signs(known), signs(ranks), strict=True) if a]
    return sum((1 + a * b) / 2 for a, b in both) / len(both) if both else None


# --- many judgments -------------------------------------------------------------------------------


def _mean_and_p(values: Sequence[float]) -> tuple[Interval, float]:
    """The mean of independent values with its normal 95% interval, and the p-value of 0."""
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / sqrt(count)
    if error == 0:  # all equal: as likely as so many equal coins
        return Interval(mean, mean, mean), 1.0 if mean == 0 else 2.0 ** (1 - count)
    return Interval(mean, mean - 1.96 * error, mean + 1.96 * error), erfc(
        abs(mean) / error / sqrt(2)
    )


def _consistency(judgments: Iterable[Judgment], num_resamples: int) -> Interval | None:
    """Kendall's τ-b between the first showing and the repeat; for thumbs 1 alike, -1 not."""
    first: dict[str, Judgment] = {}
    taus: list[float] = []
    for one in judgments:
        if not one.repeat:
            first[one.item] = one
        elif one.item in first:
            taus.append(_tau(first[one.item].ranks, one.ranks))
    return cluster_bootstrap(np.array(taus), num_resamples=num_resamples) if taus else None


def _tau(a: Ranks, b: Ranks) -> float:
    if a == b:  # also where both prefer nothing
        return 1.0
    if len(a) == 1:
        return -1.0
    x, y = (np.array([1e9 if rank is None else rank for rank in ranks]) for ranks in (a, b))
    return kendall_tau(x, y)


def _straight(patterns: Sequence[Pattern]) -> Share | None:
    """How often a pattern is that of the judgment before, among those of equal length."""
    alike = [a == b for a, b in pairwise(patterns) if len(a) == len(b)]
    return wilson(sum(alike), len(alike)) if alike else None
