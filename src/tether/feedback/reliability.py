"""How far each labeler can be relied on, as the other labelers see it.

The others' votes alone say what a vote should have been: where a labeler's own votes are let in,
free strengths bend towards them, and on many items even one who clicks at random looks fair.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tether.feedback.davidson import Strengths, posterior
from tether.feedback.strengths import (
    fit_tally,
    foretold,
    judgment_weights,
    others,
    rank_discount,
    votes,
)
from tether.feedback.tally import Tally, kinds, pairs_of
from tether.statistics import Interval

Floats = NDArray[np.float64]

LEAST_WEIGHT = 0.01
ROUNDS = 2  # of judging labelers by the others, who count as the round before found
THETA = np.linspace(-1, 1, 401)  # 2η - 1
EDGES = np.linspace(-0.5, 0.5, 402)  # of the bins of x


class Reliability(NamedTuple):
    """Of one labeler."""

    eta: Interval
    """1: votes as the others would, 0.5: at random, 0: the reverse"""
    others: float | None
    """Median η of the other labelers; None where there are none"""
    weight: float
    """What the votes of the labeler count, in (0, 1]"""


def reliabilities(tallied: Tally) -> list[Reliability]:
    """The reliability η of every labeler w, in the order of `Tally.labelers`.

        P(i beats j | w) = η σ(sᵢ - sⱼ) + (1 - η) σ(sⱼ - sᵢ) = ½ + (2η - 1) x,   x = σ(sᵢ - sⱼ) - ½

    with the strengths s that the votes of all but w give, by which typical votes are foretold; so
    1 is the reliability of a typical labeler. η has a uniform prior; its estimate is the mean of
    its posterior, its interval holds 95% of it. Pairs of a ranking of k count 9/(2k + 5)
    (`strengths`). Ties tell nothing of η.

    A labeler whose interval lies below the others' median weighs (2η - 1) at the upper end of the
    interval, divided by the median's, and 0.01 at least; everybody else weighs 1. So nobody loses
    weight by chance.

    Source: Chen et al. 2013, Pairwise Ranking Aggregation in a Crowdsourced Setting (Crowd-BT),
    https://doi.org/10.1145/2433396.2433420; the leaving out is ours.
    """
    found: list[Reliability] = []
    weights = np.ones(len(tallied.labelers))
    for _ in range(ROUNDS):
        found = _weighed(_posteriors(_evidence(tallied, weights)))
        weights = np.array([one.weight for one in found])
    return found


def leave_one_out(tallied: Tally) -> list[Floats]:
    """Kendall's τ-b of each labeler's rankings with the mean ranks of the others on that item.

    An array for each labeler, a number for each item that others have judged too; 0 where one side
    prefers nothing.
    """
    taus: list[list[Floats]] = [[] for _ in tallied.labelers]
    for block in tallied.blocks:
        first, second = pairs_of(block.size)
        ranks = block.mid_ranks()
        rest = block.of_items(ranks)[block.item] - ranks
        wanted = np.sign(rest[:, second] - rest[:, first]) * block.seen
        agree = np.sum(wanted * block.signs, axis=1)
        scale = np.sqrt(np.sum(wanted**2, axis=1) * np.sum(block.signs**2, axis=1))
        number = np.bincount(block.item, minlength=len(block.keys))[block.item]
        tau = agree / np.maximum(scale, 1)
        for labeler in np.unique(block.labeler).tolist():
            taus[labeler].append(tau[(block.labeler == labeler) & (number > 1)])
    return [np.concatenate(parts) if parts else np.zeros(0) for parts in taus]


def _evidence(
    tallied: Tally, weights: Float[np.ndarray, " labelers"]
) -> Float[np.ndarray, "labelers bins"]:
    """How much each labeler voted for what the others foretell with chance ½ + x, by bins of x."""
    num_bins = len(EDGES) - 1
    evidence = np.zeros(len(tallied.labelers) * num_bins)
    for kind in kinds(tallied):
        fitted = fit_tally(kind, weights)
        for block, all_say in zip(kind.blocks, fitted.strengths, strict=True):
            held = others(block, votes(block, judgment_weights(block, weights)))
            start = Strengths(all_say.scores[held.item], all_say.covariance[held.item], fitted.nu)
            rest_say = posterior(held.counts, start, ridge=fitted.ridge, steps=3)
            x = np.tanh(foretold(rest_say)[held.group] / 2) / 2 * block.signs
            bins = np.clip(((x + 0.5) * num_bins).astype(np.intp), 0, num_bins - 1)
            place = block.labeler[:, None] * num_bins + bins
            counts = np.abs(block.signs) * rank_discount(block)[:, None]
            evidence += np.bincount(place.reshape(-1), counts.reshape(-1), len(evidence))
    return evidence.reshape(-1, num_bins)


def _posteriors(evidence: Float[np.ndarray, "labelers bins"]) -> list[Interval]:
    """Mean and interval of η for each labeler."""
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    height = evidence @ np.log(0.5 + middle[:, None] * THETA)
    density = np.exp(height - height.max(axis=1, keepdims=True))
    density /= density.sum(axis=1, keepdims=True)
    eta, below = (1 + THETA) / 2, np.cumsum(density, axis=1)
    return [
        Interval(float(mean), *np.interp([0.025, 0.975], reached, eta).tolist())
        for mean, reached in zip(density @ eta, below, strict=True)
    ]


def _weighed(etas: list[Interval]) -> list[Reliability]:
    found: list[Reliability] = []
    for i, eta in enumerate(etas):
        rest = [other.mean for other in etas[:i] + etas[i + 1 :]]
        middle = float(np.median(rest)) if rest else None
        weight = 1.0
        if middle is not None and middle > 0.5 and eta.high < middle:
            weight = max(LEAST_WEIGHT, (2 * eta.mean - 1) / (2 * middle - 1))
        found.append(Reliability(eta, middle, weight))
    return found
