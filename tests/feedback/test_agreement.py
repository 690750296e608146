from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from tests.feedback.made import crowd, item, judge, judged
from tether.feedback.agreement import (
    category_counts,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_tau,
    rank_ratings,
    ratings,
    sign_ratings,
    unanimous_share,
)
from tether.feedback.simulated import Labeler
from tether.feedback.tally import tally

METRICS = ("nominal", "ordinal", "interval")
_ = float("nan")
# Krippendorff 2011, section C: four observers, twelve units, values missing.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def alpha(units, metric, **settings):
    return krippendorff_alpha(ratings(units), metric, num_resamples=0, **settings).mean


@pytest.mark.parametrize(
    ("metric", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_the_published_example(metric, expected):
    table = np.array(PUBLISHED).T
    assert alpha(table, metric) == pytest.approx(expected, abs=0.0005)
    lists = [[value for value in row if value == value] for row in table.tolist()]
    assert alpha(lists, metric) == pytest.approx(expected, abs=0.0005)


def by_definition(units, metric):
    """1 - Dₒ/Dₑ by sums over all pairs of values."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    count = {value: values.count(value) for value in values}

    def apart(a, b):
        if metric == "nominal":
            return float(a != b)
        if metric == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(number for value, number in count.items() if low <= value <= high)
        return (between - (count[a] + count[b]) / 2) ** 2

    observed = sum(
        2 * sum(apart(a, b) for a, b in combinations(unit, 2)) / (len(unit) - 1) for unit in units
    ) / len(values)
    n = len(values)
    expected = 2 * sum(apart(a, b) for a, b in combinations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


UNITS = st.lists(st.lists(st.integers(-3, 3), max_size=5), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(UNITS, st.sampled_from(METRICS))
def test_alpha_equals_its_definition(units, metric):
    values = {value for unit in units if len(unit) > 1 for value in unit}
    found = alpha(units, metric)
    if len(values) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(by_definition(units, metric), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(UNITS, st.randoms(use_true_random=False))
def test_who_gave_a_value_and_what_it_is_called_do_not_matter(units, random):
    shuffled = [random.sample(unit, len(unit)) for unit in random.sample(units, len(units))]
    names = dict(zip(range(-3, 4), random.sample(range(7), 7), strict=True))
    renamed = [[names[value] for value in unit] for unit in units]
    for metric in METRICS:
        np.testing.assert_allclose(alpha(shuffled, metric), alpha(units, metric), atol=1e-9)
    np.testing.assert_allclose(alpha(renamed, "nominal"), alpha(units, "nominal"), atol=1e-9)


def test_the_interval_holds_alpha_and_narrows():
    generator = np.random.default_rng(0)

    def table(size):
        truth = generator.integers(0, 5, size=(size, 1))
        return (truth + generator.integers(-1, 2, size=(size, 3))).astype(float)

    few, many = (krippendorff_alpha(ratings(table(size)), "interval") for size in (50, 800))
    assert few.low < few.mean < few.high
    # 16 times as many units: a quarter of the width
    assert (many.high - many.low) / (few.high - few.low) == pytest.approx(1 / 4, rel=0.4)


def test_the_interval_covers():
    # Two raters who agree with probability 0.8 on one of two equally likely values: α = 0.6.
    generator = np.random.default_rng(1)
    inside = 0
    for _unused in range(200):
        first = generator.integers(0, 2, size=100)
        second = np.where(generator.random(100) < 0.8, first, 1 - first)
        table = np.stack([first, second], axis=1).astype(float)
        found = krippendorff_alpha(ratings(table), "nominal", num_resamples=200)
        inside += found.low <= 0.6 <= found.high
    assert inside / 200 == pytest.approx(0.94, abs=0.05)


def test_nothing_to_compare_is_nan():
    for units in ([], [[1.0]], [[1.0], [2.0]], [[1.0, 1.0], [1.0, 1.0]]):
        assert np.isnan(krippendorff_alpha(ratings(units), "nominal").mean)


def test_fleiss_published_example():
    # Ten subjects, fourteen raters, five categories: κ = 0.210 (P̄ = 0.378, Pₑ = 0.213)
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=0.0005)
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [2, 0]])))
    assert np.isnan(fleiss_kappa(np.array([[1, 0]])))


# --- judgments ------------------------------------------------------------------------------------


def blocks(items, judgments):
    return tally({one.key: one for one in items}, judgments).blocks


def test_rankings_by_hand():
    # p: three labelers, of whom two agree; q: two who agree; r: one alone
    made = blocks(
        [item("p", 3), item("q", 3), item("r", 3)],
        [
            judge("p", "ann", [1.0, 2.0, 3.0]),
            judge("p", "bob", [1.0, 2.0, 3.0]),
            judge("p", "cem", [1.0, 3.0, 2.0]),
            judge("q", "ann", [2.0, None, 1.0]),
            judge("q", "bob", [2.0, 3.0, 1.0]),
            judge("r", "ann", [3.0, 2.0, 1.0]),
        ],
    )
    # τ in p: 1, 1/3, 1/3, mean 5/9; in q 1
    assert pairwise_tau(made, num_resamples=100).mean == pytest.approx((5 / 9 + 1) / 2)
    assert unanimous_share(made) == 1 / 2
    found = rank_ratings(made)
    units = [found.value[found.unit == u].tolist() for u in range(9)]
    assert units[:6] == [[1, 1, 1], [2, 2, 3], [3, 3, 2], [2, 2], [3, 3], [1, 1]]
    assert found.cluster.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_two_fails_are_not_compared():
    made = blocks([item("p", 3)], [judge("p", "ann", [1.0, None, None])])
    found = sign_ratings(made)
    assert sorted(found.unit.tolist()) == [0, 1]
    assert np.abs(found.value).tolist() == [1, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 4), min_size=4, max_size=4), min_size=2, max_size=4))
def test_mean_tau_equals_scipy(rows):
    made = blocks(
        [item("p", 4)], [judge("p", str(i), list(map(float, row))) for i, row in enumerate(rows)]
    )
    taus = [
        0.0 if len(set(a)) == 1 or len(set(b)) == 1 else kendalltau(a, b).statistic
        for a, b in combinations(rows, 2)
    ]
    assert pairwise_tau(made, num_resamples=1).mean == pytest.approx(np.mean(taus), abs=1e-9)


@pytest.mark.parametrize(("noise", "low", "high"), [(None, -0.05, 0.05), (0.15, 0.75, 0.95)])
def test_noise_is_zero_and_care_is_near_one(noise, low, high):
    labelers = [Labeler(name=str(i), random=noise is None, noise=noise or 0.0) for i in range(3)]
    made = tally(*judged(0, labelers, num_items=300)[:2]).blocks
    ranks = krippendorff_alpha(rank_ratings(made), "ordinal", num_resamples=0).mean
    pairs = krippendorff_alpha(sign_ratings(made), "interval", num_resamples=0).mean
    tau = pairwise_tau(made, num_resamples=1).mean
    assert all(
        low < value < high
        for value in (ranks, pairs, tau, fleiss_kappa(category_counts(sign_ratings(made))))
    )


def test_a_stored_order_that_goes_with_quality_changes_nothing():
    items, judgments, scores = judged(2, crowd(0.7)[:3], num_items=300)
    ordered = []
    for one in judgments:
        best_first = np.argsort(-scores[one.item])
        ordered.append(judge(one.item, one.labeler, [one.ranks[i] for i in best_first]))

    def alphas(judgments):
        made = tally(items, judgments).blocks
        turned = krippendorff_alpha(sign_ratings(made), "interval", num_resamples=0).mean
        [block] = made
        units = [block.signs[block.item == i].T.tolist() for i in range(len(items))]
        return turned, alpha([pair for unit in units for pair in unit], "interval")

    assert alphas(ordered)[0] == pytest.approx(alphas(judgments)[0], abs=0.03)
    # without turning pairs at random, agreement seems far smaller
    assert alphas(ordered)[1] < alphas(ordered)[0] - 0.15


def test_thumbs_keep_their_sides():
    made = blocks(
        [item("p", 1), item("q", 1)],
        [judge(key, name, [up]) for key, up in (("p", 1.0), ("q", None)) for name in "ab"],
    )
    found = sign_ratings(made)
    assert found.value.tolist() == [1, 1, -1, -1]
    assert unanimous_share(made) == 1
