"""Whether a reward is as sure as it is right, in pure numbers.

Of each pair of completions, d = r(better) − r(worse), the difference of two scores. A reward that
was trained by Bradley-Terry on pairs says P(better wins) = σ(d). Its confidence in whichever side
it prefers is c = σ(|d|), and it is right where d > 0; where d = 0 it is half right.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tether.evaluation.blocks import Series
from tether.statistics import Interval, cluster_mean

TEMPERATURES = (1e-3, 1e3)  # times the mean |d|: where the best one is looked for
SIMULATED = 200


def log_losses(d: Float[np.ndarray, " N"]) -> NDArray[np.float64]:
    """−log σ(d) of each pair, in nats; log 2 for a reward that knows nothing."""
    return np.logaddexp(0.0, -d)


def brier(d: Float[np.ndarray, " N"]) -> NDArray[np.float64]:
    """(1 − σ(d))² of each pair; ¼ for a reward that knows nothing."""
    return expit(-d) ** 2


def confidence(d: Float[np.ndarray, " N"]) -> NDArray[np.float64]:
    """How sure a reward is of the side it prefers: σ(|d|), in [½, 1]."""
    return expit(np.abs(d))


def right(d: Float[np.ndarray, " N"]) -> NDArray[np.float64]:
    """1 where the better completion scores higher, 0 where lower, ½ where equal."""
    return np.sign(d) / 2 + 0.5


def best_temperature(d: Float[np.ndarray, " N"]) -> float:
    """The T that makes the mean of −log σ(d/T) least: above 1 the scores are too sure.

    Where every pair is right the least is at T = 0, and where at least half are wrong at infinity;
    the nearest end of the range searched is returned.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks,
    https://arxiv.org/abs/1706.04599, section 4.2.
    """
    size = float(np.abs(d).mean())
    if size == 0:
        return 1.0
    low, high = (np.log(end * size) for end in TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: float(log_losses(d / np.exp(log_t)).mean()),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


class Bin(NamedTuple):
    """Pairs of like confidence."""

    confidence: float
    accuracy: Interval
    num_pairs: int


def reliability(
    d: Float[np.ndarray, " N"], prompts: list[int], bins: int, *, seed: int = 0
) -> list[Bin]:
    """Confidence and accuracy in bins of equal width on [½, 1]; empty ones are left out."""
    conf, hits, place = confidence(d), right(d), bin_of(d, bins)
    found: list[Bin] = []
    for k in np.unique(place):
        where = place == k
        clusters = [prompts[i] for i in np.flatnonzero(where)]
        accuracy = cluster_mean(hits[where], clusters, seed=seed)
        found.append(Bin(float(conf[where].mean()), accuracy, int(where.sum())))
    return found


def bin_of(d: Float[np.ndarray, " N"], bins: int) -> NDArray[np.int64]:
    """Bin of each pair by its confidence, from 0."""
    return np.minimum(((confidence(d) - 0.5) * 2 * bins).astype(np.int64), bins - 1)


def calibration_error(
    conf: Float[np.ndarray, " N"], hits: Float[np.ndarray, " N"], place: NDArray[np.int64]
) -> float:
    """ECE = Σ_k (n_k / N) |accuracy_k − confidence_k| over bins k.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    gaps = np.bincount(place, weights=hits - conf)
    return float(np.abs(gaps).sum() / len(conf))


def chance_error(d: Float[np.ndarray, " N"], bins: int, *, seed: int = 0) -> float:
    """The ECE that a perfectly calibrated reward of these confidences would show on average.

    Above 0, since in a bin of few pairs the accuracy strays from the confidence by itself.
    """
    conf, place = confidence(d), bin_of(d, bins)
    generator = np.random.default_rng(seed)
    drawn = generator.random((SIMULATED, len(d))) < conf
    return float(np.mean([calibration_error(conf, row.astype(float), place) for row in drawn]))


def curve(name: str, bins: list[Bin]) -> Series:
    """The reliability curve: accuracy over confidence."""
    return Series(
        name=name,
        x=[each.confidence for each in bins],
        y=[each.accuracy.mean for each in bins],
        low=[_end(each.accuracy.low, each) for each in bins],
        high=[_end(each.accuracy.high, each) for each in bins],
    )


def _end(end: float, point: Bin) -> float:
    """The end of an interval; the point itself where one prompt gives none."""
    return point.accuracy.mean if np.isnan(end) else end


def histogram(name: str, d: Float[np.ndarray, " N"], edges: Float[np.ndarray, " B"]) -> Series:
    """Share of the pairs by margin; what lies outside the edges counts at the ends."""
    counts, _ = np.histogram(np.clip(d, edges[0], edges[-1]), bins=edges)
    middle = (edges[:-1] + edges[1:]) / 2
    return Series(name=name, x=middle.tolist(), y=(counts / len(d)).tolist())


def correlation(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], groups: NDArray[np.int64]
) -> "Moments":
    """Sums of two variables by prompt, from which a correlation of any resample follows."""
    sums = [np.bincount(groups, weights=w) for w in (np.ones_like(x), x, y, x * x, y * y, x * y)]
    return Moments(np.stack(sums, axis=1))


class Moments(NamedTuple):
    """Of each prompt: the number of values, Σx, Σy, Σx², Σy², Σxy."""

    sums: Float[np.ndarray, "P 6"]

    def pearson(self, chosen: Shaped[np.ndarray, " P"]) -> float:
        """Correlation over the values of the chosen prompts; 0 where one of both is constant."""
        n, x, y, xx, yy, xy = self.sums[chosen].sum(axis=0)
        spread = (xx - x * x / n) * (yy - y * y / n)
        return float((xy - x * y / n) / np.sqrt(spread)) if spread > 1e-12 * (xx * yy) else 0.0
