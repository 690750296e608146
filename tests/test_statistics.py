import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether import statistics
from tether.statistics import (
    Interval,
    bootstrap_of,
    cluster_bootstrap,
    cluster_mean,
    distinct_n,
    holm,
    jackknife,
    paired_difference,
    repetition,
    unpaired_difference,
    win_rate,
)

# --- intervals ------------------------------------------------------------------------------------


def test_bootstrap_of_two_prompts_spans_the_four_draws():
    # Prompt means 0 and 3. Draws 00, 01, 10, 11 have means 0, 1.5, 1.5, 3, each with chance 1/4:
    # the outermost points are 0 and 3. For a confidence of 20 %: t of one degree of freedom is
    # tan(-0.1 π) = -0.325 at 40 %, √2 times that is -0.459, Φ(-0.459) = 32 %; the 32 % and 68 %
    # points are both 1.5.
    values = np.array([[-1.0, 1.0], [2.0, 4.0]])
    assert cluster_bootstrap(values) == Interval(1.5, 0.0, 3.0)
    assert cluster_bootstrap(values, confidence=0.2) == Interval(1.5, 1.5, 1.5)


def test_equal_values_have_an_interval_of_no_width():
    assert cluster_bootstrap(np.full((7, 3), 0.1)) == pytest.approx((0.1, 0.1, 0.1), abs=1e-15)
    mean, low, high = cluster_bootstrap(np.full(7, 0.1))
    assert low == mean == high


def test_the_interval_has_the_width_of_the_standard_error():
    # 0, 1, ..., 99: population sd = sqrt((100² - 1) / 12) = 28.866, standard error 2.8866,
    # so 95 % lie within 49.5 ± 1.96 · 2.8866 = 49.5 ± 5.658.
    mean, low, high = cluster_bootstrap(np.arange(100), num_resamples=20_000)
    assert mean == 49.5
    assert low == pytest.approx(49.5 - 5.658, abs=0.15)
    assert high == pytest.approx(49.5 + 5.658, abs=0.15)


def test_prompts_are_drawn_not_rows():
    # Ten samples of a prompt that are all equal are one piece of information: the interval of
    # (P, 10) copies is the interval of (P,), not one narrower by sqrt(10).
    once = np.random.default_rng(1).normal(size=40)
    copies = np.repeat(once[:, None], 10, axis=1)
    assert cluster_bootstrap(copies) == pytest.approx(cluster_bootstrap(once), abs=1e-12)


def test_truth_values_and_integers_are_numbers():
    assert cluster_bootstrap(np.array([True, True, False, True])).mean == 0.75
    assert cluster_bootstrap(np.array([[1, 2], [3, 6]], dtype=np.float32)).mean == 3.0


def test_one_prompt_says_nothing_about_others():
    interval = cluster_bootstrap(np.array([[1.0, 3.0]]))
    assert interval.mean == 2.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.excludes_zero


def test_the_seed_decides_the_draws():
    values = np.random.default_rng(0).normal(size=50)
    assert cluster_bootstrap(values, seed=3) == cluster_bootstrap(values, seed=3)
    assert cluster_bootstrap(values, seed=3) != cluster_bootstrap(values, seed=4)


def test_resampling_in_blocks_changes_nothing_but_memory(monkeypatch):
    values = np.random.default_rng(0).normal(size=64)
    at_once = cluster_bootstrap(values)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 64 * 7)
    assert cluster_bootstrap(values) == at_once


def test_excludes_zero():
    assert Interval(1.0, 0.1, 2.0).excludes_zero
    assert Interval(-1.0, -2.0, -0.1).excludes_zero
    assert not Interval(0.5, 0.0, 1.0).excludes_zero
    assert not Interval(0.5, -0.1, 1.0).excludes_zero


@pytest.mark.parametrize("bad", [np.array([]), np.zeros((0, 3)), np.zeros((3, 0))])
def test_nothing_has_no_mean(bad):
    with pytest.raises(ValueError, match="hold nothing"):
        cluster_bootstrap(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        cluster_bootstrap(np.array([1.0, bad]))


def test_coverage_of_clustered_samples():
    # Prompt effect sd 1, sample noise sd 1, 4 samples a prompt. Of 200 intervals of 95 %, 190 ± 3.1
    # (one sd) hold the true mean 0. Intervals over rows would be narrower by sqrt(2/5), the ratio
    # of 2/240 to 1/60 + 1/240, and hold it in 78 % only: 157 of 200.
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = generator.normal(size=(60, 1)) + generator.normal(size=(60, 4))
        _, low, high = cluster_bootstrap(values, seed=seed, num_resamples=400)
        covered += low <= 0 <= high
    assert 180 <= covered <= 199


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=30),
    st.floats(-50, 50),
    st.floats(0.1, 10),
)
def test_intervals_move_and_stretch_with_the_values(numbers, shift, scale):
    values = np.array(numbers)
    interval = cluster_bootstrap(values, num_resamples=100)
    moved = cluster_bootstrap(shift + scale * values, num_resamples=100)
    assert interval.low <= interval.mean <= interval.high
    assert moved == pytest.approx([shift + scale * end for end in interval], abs=1e-8)


def test_two_thousand_resamples_of_500_prompts_are_quick():
    values = np.random.default_rng(0).normal(size=(500, 4))
    start = time.process_time()
    cluster_bootstrap(values)
    assert time.process_time() - start < 0.2


# --- comparisons ----------------------------------------------------------------------------------


def test_what_both_sides_share_does_not_widen_the_difference():
    # a is b + 2 on every prompt, however different the prompts are.
    b = np.array([0.0, 50.0, -20.0])
    assert paired_difference(b + 2, b) == pytest.approx((2, 2, 2), abs=1e-12)


def test_paired_difference_by_hand():
    # Prompt means of a: 3, 1; of b: 1, 4; differences 2, -3, mean -0.5, draws from -3 to 2.
    a, b = np.array([[2.0, 4.0], [0.0, 2.0]]), np.array([1.0, 4.0])
    assert paired_difference(a, b) == Interval(-0.5, -3.0, 2.0)
    assert paired_difference(b, a) == Interval(0.5, -2.0, 3.0)


def test_win_rate_with_ties_by_hand():
    # Prompt 0: pairs 1>0, 1=1, 3>0, 3>1 -> (1 + ½ + 1 + 1)/4 = 0.875.
    # Prompt 1: pairs 0<2, 0=0, 2=2, 2>0 -> (0 + ½ + ½ + 1)/4 = 0.5.   Mean 0.6875.
    a, b = np.array([[1, 3], [0, 2]]), np.array([[0, 1], [2, 0]])
    assert win_rate(a, b) == Interval(0.6875, 0.5, 0.875)
    assert win_rate(b, a) == Interval(0.3125, 0.125, 0.5)


def test_win_rate_takes_different_numbers_of_samples():
    # Prompt 0: 5 against 1, 9 -> ½.  Prompt 1: 5 against 5, 4 -> (½ + 1)/2 = 0.75.
    assert win_rate(np.array([5, 5]), np.array([[1, 9], [5, 4]])).mean == 0.625


@pytest.mark.parametrize("compare", [paired_difference, win_rate])
def test_both_sides_need_the_same_prompts(compare):
    with pytest.raises(ValueError, match="3 prompts in a but 2 in b"):
        compare(np.zeros(3), np.zeros(2))


def test_cluster_mean_weighs_every_value_the_same():
    # Prompt x: 1 of 1 right; prompt y: 1 of 3 right. Pooled 2/4, not (1 + 1/3)/2.
    # Draws: xx 1, xy and yx 2/4, yy 1/3.
    values = np.array([True, False, False, True])
    mean, low, high = cluster_mean(values, ["x", "y", "y", "y"])
    assert mean == 0.5
    assert low == pytest.approx(1 / 3)
    assert high == 1


def test_cluster_mean_of_equal_clusters_is_the_bootstrap():
    values = np.random.default_rng(2).normal(size=(30, 4))
    flat = cluster_mean(values.reshape(-1), [i // 4 for i in range(120)])
    assert flat == pytest.approx(cluster_bootstrap(values), abs=1e-12)


def test_cluster_mean_refuses_another_number_of_clusters():
    with pytest.raises(ValueError, match="2 values but 3 clusters"):
        cluster_mean(np.zeros(2), [1, 1, 2])


def test_holm_by_hand():
    # Sorted .01, .02, .03, .5 times 4, 3, 2, 1: .04, .06, .06, .5; each at least the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # .2 · 3 = .6, then .4 · 2 = .8 and .9; .9 · 3 would be above 1.
    assert holm([0.9, 0.2, 0.4]) == pytest.approx([0.9, 0.6, 0.8])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        holm([0.5, bad])


# --- texts ----------------------------------------------------------------------------------------


def test_distinct_n_counts_over_the_whole_set():
    # Bigrams: "a b", "b a", "a b" | "a b", "b c": 3 distinct of 5. Words: a b c of 7.
    texts = ["a b a b", "a b c"]
    assert distinct_n(texts, 2) == pytest.approx(3 / 5)
    assert distinct_n(texts, 1) == pytest.approx(3 / 7)


def test_distinct_n_does_not_join_texts():
    assert distinct_n(["a b", "c d"], 2) == 1.0  # "b c" is no bigram
    assert distinct_n(["a", ""], 2) == 0.0


def test_repetition_by_hand():
    # Trigrams of "please" x 5: 3, all the same, 2 of 3 repeat.
    assert repetition("please " * 5) == pytest.approx(2 / 3)
    # Bigrams "a b", "b a", "a b", "b c": 1 of 4 repeats.
    assert repetition("a b a b c", n=2) == pytest.approx(1 / 4)
    assert repetition("a b c d e") == 0.0
    assert repetition("a b") == 0.0


def test_statistics_need_no_torch():
    code = "import sys, tether.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- statistics of sets ---------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_the_t_interval():
    # 1, 2, 6: mean 3, variance 7, standard error √(7/3) = 1.5275; t with 2 degrees of freedom has
    # its 97.5% point at 4.3027. t = 3/1.5275 = 1.964, p = 1 - t/√(2 + t²) = 0.1885.
    values = np.array([1.0, 2.0, 6.0])
    interval, p = jackknife(3.0, (values.sum() - values) / 2)
    assert interval == pytest.approx((3.0, 3 - 4.3027 * 1.5275, 3 + 4.3027 * 1.5275), abs=1e-3)
    assert p == pytest.approx(0.1885, abs=1e-4)


def test_the_jackknife_of_one_prompt_and_of_equal_ones():
    interval, p = jackknife(2.0, np.array([0.0]))
    assert (interval.mean, math.isnan(interval.low), p) == (2.0, True, 1.0)
    assert jackknife(2.0, np.array([2.0, 2.0])) == (Interval(2, 2, 2), 0.0)
    assert jackknife(0.0, np.array([0.0, 0.0])) == (Interval(0, 0, 0), 1.0)


def test_the_bootstrap_of_a_mean_is_that_of_any_statistic():
    values = np.random.default_rng(3).normal(size=(20, 4))
    found = bootstrap_of(20, lambda chosen: float(values[chosen].mean()), seed=5)
    assert found == pytest.approx(cluster_bootstrap(values, seed=5, num_resamples=1000))
    alone = bootstrap_of(1, lambda chosen: 4.0)
    assert (alone.mean, math.isnan(alone.high)) == (4.0, True)


def test_an_unpaired_difference_adds_the_variances_of_both_sides():
    generator = np.random.default_rng(0)
    a, b = generator.normal(2, 1, (200, 1)), generator.normal(0, 3, (300, 1))
    found = unpaired_difference(a, b)
    error = math.sqrt(a.var() / 200 + b.var() / 300)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    # The same prompts on both sides are drawn apart: the difference is not sure to be 0.
    same = unpaired_difference(a, a)
    assert same.low < 0 < same.high
    assert math.isnan(unpaired_difference(a[:1], b).low)
