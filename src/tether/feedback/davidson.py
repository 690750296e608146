"""The Davidson model: how much better each completion is, and how sure that is.

    P(i beats j) = eˢⁱ / D,   P(tie) = ν e^((sᵢ + sⱼ)/2) / D,   D = eˢⁱ + eˢʲ + ν e^((sᵢ + sⱼ)/2)

Every completion has a strength s, and all items share one ν, since how readily labelers call a tie
is their habit and not the item's. Three labelers of one mind are the common case; without a prior
their item's strengths would be infinite. The prior s ~ N(0, 1/ridge) makes two votes to one a
probability of 0.6.

Source: Davidson 1970, On Extending the Bradley-Terry Model to Accommodate Ties in Paired
Comparison Experiments, https://doi.org/10.1080/01621459.1970.10481082.

n items of K completions, P = K(K - 1)/2 pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tether.feedback.tally import pairs_of, size_of

Floats = NDArray[np.float64]

TIES, DECIDED = 0.1, 0.9  # comparisons of equals, as if seen before: one more, a tenth of it a tie
TOLERANCE = 1e-7
NODES = 7  # of the quadrature over a normal difference of strengths


class Strengths(NamedTuple):
    """The posterior of the items of one size, in log-odds, measured from each item's mean."""

    scores: Float[np.ndarray, "n K"]
    """Where the posterior is highest (`fit`), or its mean (`posterior`)"""
    covariance: Float[np.ndarray, "n K K"]
    """Of the scores"""
    nu: float
    """The tie parameter, shared by all items: two equals tie with probability ν/(2 + ν)"""


def fit(
    counts: Sequence[Float[np.ndarray, "_ _ 3"]],
    *,
    ridge: float = 1.0,
    nu: float | None = None,
    max_steps: int = 100,
) -> list[Strengths]:
    """The strengths of all items, by Newton's method on the log-posterior, which is concave.

    Args:
        counts: An array (n, P, 3) for each size of items: how often the first of a pair won, how
            often there was a tie, and how often the second won; any numbers ≥ 0, such as sums of
            weights. Pairs that nobody compared are zeros.
        ridge: Precision of the prior of the strengths, 1/variance.
        nu: The tie parameter where it is known; otherwise it is fitted.
        max_steps: Newton steps at most; about six are needed.

    Returns:
        As many as `counts`, in its order: where the posterior is highest, and the inverse of its
        curvature there (Laplace).
    """
    blocks = [_Block(count) for count in counts]
    scores = [np.zeros((block.num_items, block.size)) for block in blocks]
    even = TIES + sum(np.sum(count[..., 1]) for count in counts)
    decided = DECIDED + sum(np.sum(count[..., ::2]) for count in counts)
    tie = float(np.log(2 * even / decided if nu is None else nu))
    best = _objective(blocks, scores, tie, ridge)
    for _ in range(max_steps):
        steps, tie_step = _newton(blocks, scores, tie, ridge, nu is None)
        length = 1.0
        while True:
            moved = [s + length * step for s, step in zip(scores, steps, strict=True)]
            reached = _objective(blocks, moved, tie + length * tie_step, ridge)
            if reached >= best - 1e-9 * abs(best) or length < 1e-6:
                break
            length /= 2
        scores, tie, best = moved, tie + length * tie_step, reached
        if max([abs(tie_step), *(np.abs(step).max(initial=0) for step in steps)]) < TOLERANCE:
            break
    return [
        Strengths(s, _covariance(block, s, tie, ridge), float(np.exp(tie)))
        for block, s in zip(blocks, scores, strict=True)
    ]


def posterior(
    counts: Float[np.ndarray, "n P 3"], start: Strengths, *, ridge: float = 1.0, steps: int = 6
) -> Strengths:
    """The normal distribution that is nearest to the posterior of the strengths.

    Few votes of one mind leave the posterior skewed: its mean lies further out than its top, and
    it is wider than the curvature there says. For the nearest normal (by KL divergence) the
    log-posterior's slope is 0 and its curvature the inverse covariance *on average over it*, so a
    few Newton steps with averaged slope and curvature find it.

    Source: Opper & Archambeau 2009, The Variational Gaussian Approximation Revisited,
    https://doi.org/10.1162/neco.2008.08-07-592.

    Args:
        counts: As for `fit`, of one size.
        start: What `fit` found for them, or for about the same counts.
        ridge: As for `fit`.
        steps: Number of steps; half as many do where the start is a posterior itself.
    """
    block, scores, covariance = _Block(counts), start.scores, start.covariance
    centred = np.eye(block.size) - 1 / block.size
    win, _, loss = outcomes(scores @ block.ends.T, start.nu)
    weight = win + loss - (win - loss) ** 2
    for _ in range(steps):
        variances = np.einsum("pi,nij,pj->np", block.ends, covariance, block.ends, optimize=True)
        lead, wanted = _averaged(scores @ block.ends.T, variances, start.nu)
        weight = (weight + wanted) / 2  # the whole way would swing where the prior is wide
        push = (block.counts[..., 0] - block.counts[..., 2] - block.total * lead) / 2
        inverse = np.linalg.inv(block.curvature(block.total * weight / 4, ridge))
        gradient = push @ block.ends - ridge * scores
        scores = scores + (inverse @ gradient[..., None])[..., 0]
        covariance = centred @ inverse @ centred
    return Strengths(scores, covariance, start.nu)


def win_probability(
    differences: Float[np.ndarray, "*shape"], variances: Float[np.ndarray, "*shape"], nu: float
) -> Float[np.ndarray, "*shape"]:
    """P(first wins) + P(tie)/2, averaged over normal differences of strengths."""
    lead, _ = _averaged(differences, np.maximum(variances, 0), nu)
    return (1 + lead) / 2


def _averaged(differences: Floats, variances: Floats, nu: float) -> tuple[Floats, Floats]:
    """P(win) - P(loss), and 4 times the curvature, averaged over normal differences."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    spread = np.sqrt(variances)
    lead, weight = np.zeros_like(differences), np.zeros_like(differences)
    for node, share in zip(nodes, weights / weights.sum(), strict=True):
        moved = differences + spread * node
        small = np.exp(-np.abs(moved) / 2)
        total = 1 + nu * small + small**2
        gap = (1 - small**2) / total
        lead += share * np.copysign(gap, moved)
        weight += share * ((1 + small**2) / total - gap**2)
    return lead, weight


def outcomes(
    difference: Float[np.ndarray, "*shape"], nu: float
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """P(first wins), P(tie) and P(second wins) by the difference of strengths, first - second."""
    small = np.exp(-np.abs(difference) / 2)  # numerators, divided by the larger strength's
    total = 1 + nu * small + small**2
    better, worse = 1 / total, small**2 / total
    first = difference > 0
    return np.where(first, better, worse), nu * small / total, np.where(first, worse, better)


class _Block:
    """The votes on items of one size, and which completions a pair joins."""

    def __init__(self, counts: Float[np.ndarray, "n P 3"]) -> None:
        self.num_items, num_pairs, _ = counts.shape
        self.size = size_of(num_pairs)
        self.counts = counts
        self.total = counts.sum(axis=-1)  # (n, P)
        first, second = pairs_of(self.size)
        self.ends = np.zeros((num_pairs, self.size))  # difference of a pair = ends @ scores
        self.ends[np.arange(num_pairs), first] = 1
        self.ends[np.arange(num_pairs), second] = -1
        self.products = (self.ends[:, :, None] * self.ends[:, None, :]).reshape(num_pairs, -1)

    def curvature(self, weights: Floats, ridge: float) -> Floats:
        """(n, K, K): Σ weight (eᵢ - eⱼ)(eᵢ - eⱼ)ᵀ + ridge · 1."""
        sums = (weights @ self.products).reshape(-1, self.size, self.size)
        return sums + ridge * np.eye(self.size)


def _objective(blocks: list[_Block], scores: list[Floats], tie: float, ridge: float) -> float:
    even = np.exp(tie) / (2 + np.exp(tie))
    value = TIES * np.log(even) + DECIDED * np.log1p(-even)
    for block, s in zip(blocks, scores, strict=True):
        gap = s @ block.ends.T
        small = np.exp(-np.abs(gap) / 2)
        norm = np.abs(gap) / 2 + np.log(1 + np.exp(tie) * small + small**2)
        value += np.sum((block.counts[..., 0] - block.counts[..., 2]) * gap) / 2
        value += np.sum(block.counts[..., 1]) * tie - np.sum(block.total * norm)
        value -= ridge / 2 * np.sum(s**2)
    return float(value)


def _newton(
    blocks: list[_Block], scores: list[Floats], tie: float, ridge: float, tie_is_free: bool
) -> tuple[list[Floats], float]:
    """One step: items touch each other through ν alone, so it is eliminated (Schur complement)."""
    even = np.exp(tie) / (2 + np.exp(tie))
    slope = TIES - (TIES + DECIDED) * even
    curvature = (TIES + DECIDED) * even * (1 - even)
    solved: list[Floats] = []
    for block, s in zip(blocks, scores, strict=True):
        win, even, loss = outcomes(s @ block.ends.T, np.exp(tie))
        lead = win - loss
        push = (block.counts[..., 0] - block.counts[..., 2] - block.total * lead) / 2
        gradient = push @ block.ends - ridge * s
        mixed = -(block.total * even * lead / 2) @ block.ends
        matrix = block.curvature(block.total * (win + loss - lead**2) / 4, ridge)
        both: Floats = np.linalg.solve(matrix, np.stack([gradient, mixed], axis=-1)).astype(float)
        slope += np.sum(block.counts[..., 1] - block.total * even) - np.sum(mixed * both[..., 0])
        curvature += np.sum(block.total * even * (1 - even)) - np.sum(mixed * both[..., 1])
        solved.append(both)
    tie_step = float(slope / curvature) if tie_is_free else 0.0
    return [both[..., 0] - tie_step * both[..., 1] for both in solved], tie_step


def _covariance(block: _Block, scores: Floats, tie: float, ridge: float) -> Floats:
    """(n, K, K), of the scores less their item's mean: comparisons tell of differences alone."""
    win, _, loss = outcomes(scores @ block.ends.T, np.exp(tie))
    weights = block.total * (win + loss - (win - loss) ** 2) / 4
    inverse = np.linalg.inv(block.curvature(weights, ridge))
    centred = np.eye(block.size) - 1 / block.size
    return centred @ inverse @ centred
