"""Intervals and text statistics: how sure a measured difference is, and how varied texts are.

Samples of one prompt resemble each other, so what is drawn anew is always the *prompt* with all
its samples: an interval that draws rows one by one is too narrow. Every interval here is the
expanded percentile interval of that cluster bootstrap, and the same seed draws the same prompts.

P prompts (and Q, which must equal P), N and M samples a prompt.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1_000_000  # bounds the memory of a resampling, about 20 MB


class Interval(NamedTuple):
    """A mean with the ends of its interval; the ends are NaN where one prompt was measured."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True where both ends lie on the same side of 0."""
        return self.low > 0 or self.high < 0


def cluster_bootstrap(
    values: Shaped[np.ndarray, "P *N"],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of all values, and its interval from drawing prompts with replacement.

        m* = (1/P) Σᵢ x̄_{j(i)},  j(i) uniform on the prompts
        interval = quantiles of m* at a and 1 − a,   a = Φ(−√(P/(P−1)) · t_{P−1, 97.5%})

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (clusters);
    Hesterberg 2015, https://arxiv.org/abs/1411.5279, section 4.3 (expanded percentiles: plain ones
    are too narrow for few prompts).

    Args:
        values: One number, or N numbers, for each prompt; numbers or truth values.
        seed: Decides which prompts are drawn.
        num_resamples: Number of times that P prompts are drawn.
        confidence: Share of the resampled means that lies within the interval, in (0, 1).

    Returns:
        The mean and the ends of its interval, in the unit of `values`. One prompt says nothing
        about other prompts: its ends are NaN.

    Raises:
        ValueError: There is no value, or one is NaN or infinite: leave such prompts out before.
    """
    means = _prompt_means(values)
    return _bootstrap(means, np.ones_like(means), seed, num_resamples, confidence)


def paired_difference(
    a: Shaped[np.ndarray, "P *N"],
    b: Shaped[np.ndarray, "Q *M"],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """mean(a) - mean(b) on the same prompts, and its interval.

    Row i of `a` and row i of `b` belong to the same prompt and are drawn together, so that what
    makes a prompt easy or hard for both does not widen the interval. The number of samples a
    prompt may differ between the two.

    Raises:
        ValueError: As `cluster_bootstrap`, or the two hold different numbers of prompts.
    """
    _require_same_prompts(a, b)
    differences = _prompt_means(a) - _prompt_means(b)
    return _bootstrap(differences, np.ones_like(differences), seed, num_resamples, confidence)


def unpaired_difference(
    a: Shaped[np.ndarray, "P *N"],
    b: Shaped[np.ndarray, "Q *M"],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """mean(a) - mean(b) on different prompts, of which each side draws its own.

    Raises:
        ValueError: As `cluster_bootstrap`.
    """
    sides = [_prompt_means(a), _prompt_means(b)]
    difference = float(sides[0].mean() - sides[1].mean())
    if min(map(len, sides)) == 1:
        return Interval(difference, math.nan, math.nan)
    first, second = (
        _resampled(means, np.ones_like(means), np.random.default_rng((seed, side)), num_resamples)
        for side, means in enumerate(sides)
    )
    return _ends(difference, first - second, min(map(len, sides)), confidence)


def win_rate(
    a: Shaped[np.ndarray, "P *N"],
    b: Shaped[np.ndarray, "Q *M"],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Chance that a sample of `a` beats a sample of `b` on the same prompt; a tie is half a win.

        w = (1/P) Σᵢ (1/NM) Σₙₘ ( [aᵢₙ > bᵢₘ] + ½ [aᵢₙ = bᵢₘ] )

    Returns:
        A share in [0, 1] with its interval over prompts.

    Raises:
        ValueError: As `paired_difference`.
    """
    _require_same_prompts(a, b)
    first = _finite(a).reshape(len(a), -1, 1)  # (P, N, 1)
    second = _finite(b).reshape(len(b), 1, -1)  # (P, 1, M)
    wins = (first > second) + 0.5 * (first == second)  # (P, N, M)
    means = wins.mean(axis=(1, 2))
    return _bootstrap(means, np.ones_like(means), seed, num_resamples, confidence)


def cluster_mean(
    values: Shaped[np.ndarray, " values"],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean over values of which each prompt may have a different number.

        m* = Σᵢ sum_{j(i)} / Σᵢ count_{j(i)}

    Every value counts the same, so a prompt with more values weighs more. For instance the
    accuracy on preference pairs: `values` tells of each pair whether it is ordered rightly,
    `clusters` from which prompt it comes.

    Args:
        values: Numbers or truth values.
        clusters: The prompt (or its number) that each value belongs to.
        seed: Decides which prompts are drawn.
        num_resamples: Number of times that prompts are drawn.
        confidence: Share of the resampled means that lies within the interval.

    Raises:
        ValueError: As `cluster_bootstrap`, or `clusters` has another length than `values`.
    """
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters; one each is needed")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.bincount(index, weights=_finite(values)).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    return _bootstrap(sums, counts, seed, num_resamples, confidence)


def bootstrap_of(
    num_prompts: int,
    statistic: Callable[[Shaped[np.ndarray, " P"]], float],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """A statistic of the whole set of prompts, and its interval from drawing prompts anew.

    For what is no mean over prompts but hardly changes where a prompt comes twice, such as a
    quantile of all samples. What counts different things (distinct words) needs `jackknife`.

    Args:
        num_prompts: P.
        statistic: Takes numbers of P prompts, of which some may come several times, and returns
            the statistic of their samples.
        seed: Decides which prompts are drawn; the same seed draws the same as `cluster_bootstrap`.
        num_resamples: Number of times that P prompts are drawn.
        confidence: Share of the resampled statistics that lies within the interval.
    """
    value = statistic(np.arange(num_prompts))
    if num_prompts == 1:
        return Interval(value, math.nan, math.nan)
    size = (num_resamples, num_prompts)
    drawn = np.random.default_rng(seed).integers(num_prompts, size=size, dtype=np.int32)
    resampled = np.array([statistic(chosen) for chosen in drawn])
    return _ends(value, resampled, num_prompts, confidence)


def jackknife(
    value: float, without: Float[np.ndarray, " P"], *, confidence: float = 0.95
) -> tuple[Interval, float]:
    """Interval of a statistic of the whole set of prompts, from leaving each prompt out once.

        se² = (P − 1)/P Σᵢ (θ₍ᵢ₎ − θ̄)²,   θ ± t_{P−1} · se

    For smooth statistics of sets that drawing prompts with replacement would spoil: texts that
    come twice are less varied by themselves. It is wrong for quantiles.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 11.

    Args:
        value: θ, of all prompts.
        without: θ₍ᵢ₎, of all prompts but the i-th.
        confidence: Of the interval.

    Returns:
        θ with its interval, and the two-sided p of θ = 0. With one prompt the ends are NaN, p 1.
    """
    from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

    number = len(without)
    if number < 2:
        return Interval(value, math.nan, math.nan), 1.0
    error = math.sqrt((number - 1) / number * float(((without - without.mean()) ** 2).sum()))
    half = float(stdtrit(number - 1, (1 + confidence) / 2)) * error
    if error == 0:
        return Interval(value, value, value), 1.0 if value == 0 else 0.0
    p = 2 * float(stdtr(number - 1, -abs(value) / error))
    return Interval(value, value - half, value + half), p


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests so that one false alarm among all of them stays unlikely.

        p̃₍ᵢ₎ = max_{j ≤ i} min(1, (m - j + 1) p₍ⱼ₎),  p₍₁₎ ≤ … ≤ p₍ₘ₎

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.

    Returns:
        The adjusted p-values, in the order given; compare each with the level (0.05).

    Raises:
        ValueError: A p-value lies outside [0, 1].
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p_values holds {p!r}; a p-value lies in [0, 1]")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[i]))
        adjusted[i] = largest
    return adjusted


# --- texts ----------------------------------------------------------------------------------------


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words as a share of all n-grams, over the whole set of texts.

    1 where no n-gram comes twice; near 0 where every text says the same. More texts give a lower
    share by themselves: compare sets of the same size only. 0 where there is no n-gram at all.

    Source: Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.
    """
    counts = Counter(gram for text in texts for gram in _n_grams(text, n))
    return len(counts) / counts.total() if counts else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of the n-grams of one text that repeat an earlier one: 1 - distinct/all.

    0 where nothing is repeated, and for texts of fewer than n words.
    """
    grams = list(_n_grams(text, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _n_grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(n)), strict=False)


# --- resampling -----------------------------------------------------------------------------------


def _bootstrap(
    sums: Float[np.ndarray, " P"],
    counts: Float[np.ndarray, " P"],
    seed: int,
    num_resamples: int,
    confidence: float,
) -> Interval:
    """Interval of sum(sums) / sum(counts) over prompts drawn with replacement."""
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    resampled = _resampled(sums, counts, generator, num_resamples)
    return _ends(mean, resampled, len(sums), confidence)


def _resampled(
    sums: Float[np.ndarray, " P"],
    counts: Float[np.ndarray, " P"],
    generator: np.random.Generator,
    num_resamples: int,
) -> NDArray[np.float64]:
    """sum(sums) / sum(counts) of each set of P prompts drawn."""
    rows = max(1, _DRAWS_AT_ONCE // len(sums))
    means: list[NDArray[np.float64]] = []
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), len(sums))
        drawn = generator.integers(len(sums), size=size, dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _ends(
    value: float, resampled: NDArray[np.float64], num_prompts: int, confidence: float
) -> Interval:
    """Percentiles of what was resampled, as far out as Student's t is for so few prompts.

    Plain percentiles are too narrow by √(P/(P−1)) and by the normal's tails instead of t's.
    """
    from scipy.special import ndtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

    far = float(stdtrit(num_prompts - 1, (1 - confidence) / 2))
    tail = float(ndtr(math.sqrt(num_prompts / (num_prompts - 1)) * far))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # Rounding must not put the mean of equal values outside its own interval.
    return Interval(value, min(float(low), value), max(float(high), value))


def _prompt_means(values: Shaped[np.ndarray, "P *N"]) -> NDArray[np.float64]:
    return _finite(values).reshape(len(values), -1).mean(axis=1)


def _finite(values: Shaped[np.ndarray, "*shape"]) -> NDArray[np.float64]:
    if values.size == 0:
        raise ValueError(f"values of shape {values.shape} hold nothing to take a mean of")
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("values hold NaN or infinity; leave such prompts out of all sides before")
    return numbers


def _require_same_prompts(a: Shaped[np.ndarray, "P *N"], b: Shaped[np.ndarray, "Q *M"]) -> None:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} prompts in a but {len(b)} in b; both must answer the same ones")
