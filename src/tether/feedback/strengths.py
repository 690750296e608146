"""What labelers say together about every item: strengths, and the chance that i beats j.

The pairs of one ranking hang together: where labelers rank at random, the signs of all pairs of k
completions sum to a number whose variance is (2k + 5)/9 times that of independent pairs (Kendall
1948, the variance of S). So a pair of a ranking of k counts 9/(2k + 5): 1 of two, 0.69 of four.

How far the completions of an item differ is not known beforehand. The prior's precision, `ridge`,
is the one by which the votes of each labeler are best foretold from those of the others, so that
the probabilities are calibrated for the next vote; with few judgments it stays near 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tether.feedback.davidson import Strengths, fit, posterior, win_probability
from tether.feedback.judgments import Item, Judgment
from tether.feedback.tally import Block, Tally, kinds, one_voice, pairs_of, sums_by, tally

RIDGES = 2.0 ** np.arange(-4, 5)
HELD_OUT = 1000  # judgments by which a ridge is chosen, about
NO_TIES = 1e-9  # ν of thumbs, which are up or down


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the labelers of one item say together, in the stored order of its completions.

    An item of thumbs has one completion; its score is the log-odds of a thumb up.

    Attributes:
        scores: Strengths in log-odds, of mean 0.
        errors: Their standard errors.
        beats: [i][j] is the chance that the next labeler prefers i to j, ties split.
        shares: [i][j] is the share of labelers who preferred i to j, ties split (majority); 0.5
            where nobody saw both.
        mean_ranks: Mean mid-ranks over the labelers (Borda); 1 is best.
        up: The chance that the next thumb is up; None where there are several completions.
        num_labelers: Different labelers.
    """

    scores: list[float]
    errors: list[float]
    beats: list[list[float]]
    shares: list[list[float]]
    mean_ranks: list[float]
    up: float | None
    num_labelers: int


class Fitted(NamedTuple):
    """A fit of all blocks of a tally."""

    strengths: list[Strengths]
    nu: float
    ridge: float


def agreed(
    items: Mapping[str, Item],
    judgments: Sequence[Judgment],
    weights: Mapping[str, float] | None = None,
    *,
    ridge: float | None = None,
) -> dict[str, Consensus]:
    """The consensus on every item that was judged.

    One labeler has one voice on an item: planned repeats do not count. Two fails are not compared;
    a fail loses to every rank.

    Args:
        items: By their keys.
        judgments: Whole rankings, or of the completions named by `Judgment.shown` alone.
        weights: What each labeler counts (`labelers.assess`); 1 for those not named.
        ridge: Precision of the prior of strengths; chosen by the data where None.
    """
    said: dict[str, Consensus] = {}
    for kind in kinds(tally(items, one_voice(judgments))):
        numbers = np.array([(weights or {}).get(name, 1.0) for name in kind.labelers])
        fitted = fit_tally(kind, numbers, ridge)
        for block, strengths in zip(kind.blocks, fitted.strengths, strict=True):
            said |= _consensus(block, strengths)
    return {key: said[key] for key in items if key in said}


def fit_tally(
    tallied: Tally, weights: Float[np.ndarray, " labelers"], ridge: float | None = None
) -> Fitted:
    """Fit the blocks of one kind: all thumbs, or none."""
    cast = [votes(block, judgment_weights(block, weights)) for block in tallied.blocks]
    counts = [block.of_items(one) for block, one in zip(tallied.blocks, cast, strict=True)]
    nu = NO_TIES if tallied.blocks[0].thumbs else None
    if ridge is None:
        ridge = choose_ridge(tallied, weights, nu or fit(counts)[0].nu)
    tops = fit(counts, ridge=ridge, nu=nu)
    strengths = [
        posterior(count, top, ridge=ridge) for count, top in zip(counts, tops, strict=True)
    ]
    return Fitted(strengths, tops[0].nu, ridge)


def judgment_weights(
    block: Block, weights: Float[np.ndarray, " labelers"]
) -> Float[np.ndarray, " J"]:
    """What each pair of each judgment counts."""
    return weights[block.labeler] * block.emphasis * rank_discount(block)


def rank_discount(block: Block) -> Float[np.ndarray, " J"]:
    """9/(2k + 5), k the number of completions that a labeler saw."""
    seen = (1 + np.sqrt(1 + 8 * block.seen.sum(axis=1))) / 2
    return 9 / (2 * seen + 5)


def votes(block: Block, weights: Float[np.ndarray, " J"]) -> Float[np.ndarray, "J P 3"]:
    """First wins, tie, second wins; zeros where the pair was not compared."""
    kinds = [block.signs == 1, block.compared & (block.signs == 0), block.signs == -1]
    return np.stack(kinds, axis=-1) * weights[:, None, None]


class Others(NamedTuple):
    """What all but one say about an item, for every labeler of every item: G groups."""

    counts: Float[np.ndarray, "G P 3"]
    item: Int[np.ndarray, " G"]
    """The item of each group"""
    group: Int[np.ndarray, " J"]
    """The group of each judgment"""


def others(block: Block, cast: Float[np.ndarray, "J P 3"]) -> Others:
    """The votes on each item without those of one labeler."""
    num_labelers = int(block.labeler.max(initial=0)) + 1
    names, group = np.unique(block.item * num_labelers + block.labeler, return_inverse=True)
    item = names // num_labelers
    rest = block.of_items(cast)[item] - sums_by(group, cast, len(names))
    return Others(np.maximum(rest, 0), item, group)


def choose_ridge(tallied: Tally, weights: Float[np.ndarray, " labelers"], nu: float) -> float:
    """The precision of the prior by which votes are best foretold from the other labelers' votes.

        ridge = argmax  Σ log P(vote | votes of the others, ridge) - (ln ridge)²/2

    The second term holds it near 1 until there are votes enough. Ties foretell nothing.
    """
    loss = np.log(RIDGES) ** 2 / 2
    every = max(1, sum(len(block.judgment) for block in tallied.blocks) // HELD_OUT)
    for block in tallied.blocks:
        held = others(block, votes(block, judgment_weights(block, weights)))
        chosen, place = np.unique(held.group[::every], return_inverse=True)
        signs, counts = block.signs[::every], held.counts[chosen]
        shares = np.abs(signs) * (weights[block.labeler] ** 2 * rank_discount(block))[::every, None]
        [found] = fit([counts], ridge=float(RIDGES[-1]), nu=nu)
        for i in reversed(range(len(RIDGES))):
            found = posterior(counts, found, ridge=float(RIDGES[i]), steps=3)
            surprise = np.logaddexp(0, -foretold(found)[place] * signs)
            loss[i] += every * np.sum(surprise * shares)
    best = int(np.clip(np.argmin(loss), 1, len(RIDGES) - 2))
    left, middle, right = loss[best - 1 : best + 2]
    bend = max(left - 2 * middle + right, 1e-9)  # the lowest point of a parabola through the three
    return float(RIDGES[best] * 2 ** np.clip((left - right) / (2 * bend), -1, 1))


def foretold(strengths: Strengths) -> Float[np.ndarray, "n P"]:
    """Log-odds that the first of a pair wins, were there no tie.

    The average of σ over a normal difference d of variance v is about σ(d/√(1 + πv/8)).

    Source: MacKay 1992, The Evidence Framework Applied to Classification Networks,
    https://doi.org/10.1162/neco.1992.4.5.720.
    """
    scores, covariance, _ = strengths
    first, second = pairs_of(scores.shape[1])
    own = np.diagonal(covariance, axis1=1, axis2=2)
    variances = own[:, first] + own[:, second] - 2 * covariance[:, first, second]
    return (scores[:, first] - scores[:, second]) / np.sqrt(1 + np.pi / 8 * variances)


def _consensus(block: Block, strengths: Strengths) -> dict[str, Consensus]:
    size = block.size
    scores, nu = strengths.scores, strengths.nu
    own = np.diagonal(strengths.covariance, axis1=1, axis2=2)
    errors = np.sqrt(own)
    variances = own[:, :, None] + own[:, None, :] - 2 * strengths.covariance
    beats = win_probability(scores[:, :, None] - scores[:, None, :], variances, nu)
    majority = block.of_items(block.signs) / np.maximum(block.of_items(block.seen), 1)
    lead = np.zeros((len(block.keys), size, size))  # of i over j: preferred less not, as a share
    first, second = pairs_of(size)
    lead[:, first, second], lead[:, second, first] = majority, -majority
    mean_ranks = (size + 1) / 2 - lead.sum(axis=2) / 2
    pairs = np.unique(np.stack([block.item, block.labeler]), axis=1)
    num_labelers = np.bincount(pairs[0], minlength=len(block.keys))
    up = [None] * len(block.keys)
    if block.thumbs:  # the one completion, as it stands to the bar
        up = beats[:, 0, 1].tolist()
        scores, errors = 2 * scores[:, :1], 2 * errors[:, :1]
        beats, lead, mean_ranks = beats[:, :1, :1], lead[:, :1, :1], np.ones((len(up), 1))
    columns = (scores, errors, beats, (1 + lead) / 2, mean_ranks)
    rows = zip(*(column.tolist() for column in columns), up, num_labelers.tolist(), strict=True)
    return {key: Consensus(*row) for key, row in zip(block.keys, rows, strict=True) if row[-1] > 0}
