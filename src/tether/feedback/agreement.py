"""How far labelers agree, beyond what chance would give: 1 perfectly, 0 as if by chance.

Whatever is measured, items are what is drawn anew for an interval, since the judgments of one item
resemble each other. Kendall's W is left out on purpose: its chance level is 1/m for m labelers, so
noise looks like agreement.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray

from tether.feedback.tally import Block, sums_by
from tether.statistics import Interval, cluster_bootstrap

Floats = NDArray[np.float64]
Metric = Literal["nominal", "ordinal", "interval"]

DRAWS_AT_ONCE = 2_000_000  # numbers held by one batch of resamples, about 16 MB


class Ratings(NamedTuple):
    """N values, each given by somebody to a unit; units of a cluster (an item) are drawn together.

    Values are equal where their numbers are.
    """

    unit: Int[np.ndarray, " N"]
    value: Num[np.ndarray, " N"]
    cluster: Int[np.ndarray, " U"]


def ratings(units: Sequence[Sequence[float]] | Float[np.ndarray, "U raters"]) -> Ratings:
    """Values by unit: a table with NaN where a rater gave none, or a list of values for each."""
    rows = [np.asarray(row, dtype=np.float64) for row in units]
    unit = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    value = np.concatenate(rows) if rows else np.zeros(0)
    given = ~np.isnan(value)
    return Ratings(unit[given], value[given], np.arange(len(rows)))


def krippendorff_alpha(
    data: Ratings, metric: Metric, *, seed: int = 0, num_resamples: int = 1000
) -> Interval:
    """Krippendorff's α, for any number of raters and with values missing.

        α = 1 - Dₒ/Dₑ = 1 - (n - 1) Σᵤ Σ_{c,k} nᵤ꜀ nᵤₖ δ²(c, k)/(mᵤ - 1) / Σ_{c,k} n꜀ nₖ δ²(c, k)

    with nᵤ꜀ values c in unit u, mᵤ ≥ 2 values in a unit (others are left out), n values in all, and

        nominal   δ² = [c ≠ k]          ordinal   δ = n꜀/2 + Σ_{c<g<k} n_g + nₖ/2
        interval  δ = c - k

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability,
    https://repository.upenn.edu/asc_papers/43.

    Args:
        data: See `ratings`.
        metric: How values differ: not at all or wholly, by rank, or by their difference.
        seed: Of the resampling.
        num_resamples: Times that all clusters are drawn with replacement; 0 for no interval.

    Returns:
        α with its 95% percentile interval. NaN where no two values of a unit can be compared or
        all values are equal: then chance itself would agree always.
    """
    counted = _count(data)
    if counted is None:
        return Interval(float("nan"), float("nan"), float("nan"))
    num_clusters = len(np.unique(counted.cluster))
    alpha = float(_alphas(counted, np.ones((1, counted.cluster.max() + 1)), metric)[0])
    if num_resamples == 0 or num_clusters < 2:
        return Interval(alpha, float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // max(counted.counts.shape))
    found: list[Floats] = []
    for start in range(0, num_resamples, rows):
        drawn = _draws(generator, min(rows, num_resamples - start), counted.cluster)
        found.append(_alphas(counted, drawn, metric))
    low, high = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return Interval(alpha, min(float(low), alpha), max(float(high), alpha))


class _Counted(NamedTuple):
    counts: Any  # sparse, U x C: how often each unit got each value
    values: Floats  # C, rising
    sizes: Floats  # U: values of a unit, ≥ 2
    cluster: NDArray[np.intp]  # U


def _count(data: Ratings) -> _Counted | None:
    from scipy.sparse import coo_array  # pyright: ignore[reportMissingTypeStubs]

    values, code = np.unique(data.value, return_inverse=True)
    if len(values) < 2:
        return None
    shape = (len(data.cluster), len(values))
    counts: Any = coo_array((np.ones(len(code)), (data.unit, code)), shape=shape).tocsr()
    sizes = np.asarray(counts.sum(axis=1)).reshape(-1)
    several = np.flatnonzero(sizes >= 2)
    if len(several) == 0:
        return None
    _, cluster = np.unique(data.cluster[several], return_inverse=True)
    return _Counted(counts[several], values.astype(np.float64), sizes[several], cluster)


def _draws(generator: np.random.Generator, number: int, cluster: NDArray[np.intp]) -> Floats:
    """(number, clusters): how often each cluster is drawn."""
    size = int(cluster.max()) + 1
    drawn = generator.integers(size, size=(number, size)) + size * np.arange(number)[:, None]
    times = np.bincount(drawn.reshape(-1), minlength=number * size)
    return times.reshape(number, size).astype(np.float64)


def _alphas(counted: _Counted, draws: Floats, metric: Metric) -> Floats:
    """α for each row of `draws`, which says how often each cluster counts."""
    times = draws[:, counted.cluster]  # (B, U)
    marginal = (counted.counts.T @ times.T).T  # (B, C)
    total = marginal.sum(axis=1)
    pairs = times / (counted.sizes - 1)
    if metric == "nominal":
        apart = counted.sizes**2 - np.asarray((counted.counts**2).sum(axis=1)).reshape(-1)
        observed, expected = pairs @ apart, total**2 - np.sum(marginal**2, axis=1)
    else:
        if metric == "ordinal":  # δ is the difference of mid-ranks, which depend on the draw
            place = np.cumsum(marginal, axis=1) - marginal / 2
        else:
            place = np.broadcast_to(counted.values - counted.values.mean(), marginal.shape)
        place = place - np.sum(marginal * place, axis=1, keepdims=True) / total[:, None]
        sums, squares = (counted.counts @ place.T).T, (counted.counts @ place.T**2).T
        observed = np.sum(pairs * 2 * (counted.sizes * squares - sums**2), axis=1)
        expected = 2 * total * np.sum(marginal * place**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def fleiss_kappa(counts: Num[np.ndarray, "U C"]) -> float:
    """Fleiss' κ of `counts[u, c]`, how many labelers put unit u into category c.

        κ = (P̄ - Pₑ)/(1 - Pₑ),   P̄ = mean over units of Σ꜀ n꜀(n꜀ - 1)/(n(n - 1)),   Pₑ = Σ꜀ p꜀²

    Units of fewer than two labelers are left out; the number of labelers may differ between units.
    NaN where all are in one category.

    Source: Fleiss 1971, https://doi.org/10.1037/h0031619.
    """
    sizes = counts.sum(axis=1)
    counts, sizes = counts[sizes >= 2].astype(np.float64), sizes[sizes >= 2]
    if len(counts) == 0:
        return float("nan")
    alike: Floats = np.sum(counts * (counts - 1), axis=1) / (sizes * (sizes - 1))
    same = float(np.mean(alike))
    chance = float(np.sum((counts.sum(axis=0) / counts.sum()) ** 2))
    return (same - chance) / (1 - chance) if chance < 1 else float("nan")


# --- judgments ------------------------------------------------------------------------------------


def rank_ratings(blocks: Sequence[Block]) -> Ratings:
    """Mid-ranks as ratings of completions, by item; for α with the ordinal metric."""
    unit: list[NDArray[np.intp]] = []
    value: list[Floats] = []
    cluster: list[NDArray[np.intp]] = []
    num_units = num_items = 0
    for block in blocks:
        whole = block.seen.all(axis=1)
        rows = block.item[whole, None] * block.size + np.arange(block.size)
        unit.append((num_units + rows).reshape(-1))
        value.append(block.mid_ranks()[whole].reshape(-1))
        cluster.append(num_items + np.repeat(np.arange(len(block.keys)), block.size))
        num_units += len(block.keys) * block.size
        num_items += len(block.keys)
    return Ratings(*(np.concatenate(parts) for parts in (unit, value, cluster)))


def sign_ratings(blocks: Sequence[Block], seed: int = 0) -> Ratings:
    """Signs of pairs (1, 0, -1) as ratings, by item; for α with the interval or nominal metric.

    Which of a pair comes first is drawn by the seed: where the stored order goes with quality, most
    signs would be equal, chance would seem to agree, and α would be far too small. Thumbs keep
    theirs, since up and down are not interchangeable.
    """
    generator = np.random.default_rng(seed)
    unit: list[NDArray[np.intp]] = []
    value: list[Floats] = []
    cluster: list[NDArray[np.intp]] = []
    num_units = num_items = 0
    for block in blocks:
        num_pairs = block.signs.shape[1]
        turned = np.where(generator.random((len(block.keys), num_pairs)) < 0.5, -1.0, 1.0)
        signs = block.signs if block.thumbs else block.signs * turned[block.item]
        first = num_units + block.item[:, None] * num_pairs
        units: NDArray[np.intp] = first + np.arange(num_pairs)
        unit.append(units[block.compared])
        value.append(signs[block.compared] + 0.0)  # no -0.0
        cluster.append(num_items + np.repeat(np.arange(len(block.keys)), num_pairs))
        num_units += len(block.keys) * num_pairs
        num_items += len(block.keys)
    return Ratings(*(np.concatenate(parts) for parts in (unit, value, cluster)))


def category_counts(data: Ratings) -> Float[np.ndarray, "U C"]:
    """How often each unit got each value; for `fleiss_kappa`."""
    values, code = np.unique(data.value, return_inverse=True)
    places = data.unit * len(values) + code
    size = len(data.cluster) * len(values)
    return np.bincount(places, minlength=size).reshape(-1, len(values)).astype(np.float64)


def pairwise_tau(
    blocks: Sequence[Block], *, seed: int = 0, num_resamples: int = 1000
) -> Interval | None:
    """Mean Kendall's τ-b over all pairs of labelers of an item, then over items.

    With unit vectors of signs, v = signs/‖signs‖, τ-b is v·w; so the pairs of m labelers have the
    sum (‖Σ v‖² - Σ ‖v‖²)/2. τ is 0 where one prefers nothing. None where no item has two labelers.
    """
    means: list[Floats] = []
    for block in blocks:
        norms = np.sqrt(np.sum(block.signs**2, axis=1, keepdims=True))
        unit = block.signs / np.maximum(norms, 1)
        together = np.sum(block.of_items(unit) ** 2, axis=1)
        alone = block.of_items(np.sum(unit**2, axis=1))
        number = np.bincount(block.item, minlength=len(block.keys))
        several = number > 1
        pairs = (number * (number - 1))[several]
        means.append((together - alone)[several] / pairs)
    values = np.concatenate(means) if means else np.zeros(0)
    if len(values) == 0:
        return None
    return cluster_bootstrap(values, seed=seed, num_resamples=num_resamples)


def unanimous_share(blocks: Sequence[Block]) -> float:
    """Share of the items of two labelers or more whose labelers all said the same; NaN of none."""
    same = several = 0
    for block in blocks:
        number = np.bincount(block.item, minlength=len(block.keys))[:, None]
        total = sums_by(block.item, block.signs, len(block.keys))
        squares = sums_by(block.item, block.signs**2, len(block.keys))
        # All signs of a pair are equal where (Σ s)² = m Σ s².
        equal = np.all(total**2 == number * squares, axis=1)
        several += int(np.sum(number > 1))
        same += int(np.sum(equal & (number[:, 0] > 1)))
    return same / several if several else float("nan")
