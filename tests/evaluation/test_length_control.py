"""Win-rates at equal length, against an optimizer of another kind and against planted effects."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from tether.evaluation.length_control import length_controlled
from tether.statistics import win_rate


def planted(seed, theta, phi, prompts=400, longer=40.0):
    """One sample each; `a` wins with σ(θ + φ tanh(Δ/sd)), and is `longer` characters longer."""
    generator = np.random.default_rng(seed)
    ours = generator.normal(200 + longer, 60, (prompts, 1))
    theirs = generator.normal(200, 60, (prompts, 1))
    gaps = ours - theirs
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(gaps / gaps.std()))))
    wins = generator.random((prompts, 1)) < chance
    return wins.astype(float), ours, np.full_like(theirs, 0.5), theirs


def test_without_differences_in_length_it_is_the_plain_win_rate():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 4, (30, 3)) * 1.0, generator.integers(0, 4, (30, 2)) * 1.0
    even = length_controlled(a, np.full_like(a, 7.0), b, np.full_like(b, 7.0))
    plain = win_rate(a, b)
    assert even.mean == pytest.approx(plain.mean)
    assert even.low == pytest.approx(plain.low, abs=0.01)
    assert even.high == pytest.approx(plain.high, abs=0.01)


def test_wins_by_length_alone_are_taken_away():
    # θ = 0: at equal length nobody is better, yet the longer one wins most.
    data = planted(1, theta=0.0, phi=3.0, prompts=2000)
    assert win_rate(data[0], data[2]).low > 0.55
    even = length_controlled(*data)
    assert even.low < 0.5 < even.high
    assert even.mean == pytest.approx(0.5, abs=0.05)


def test_a_better_policy_stays_better():
    # σ(1.2) = 0.769 at equal length.
    even = length_controlled(*planted(2, theta=1.2, phi=2.0, prompts=2000))
    assert even.mean == pytest.approx(0.769, abs=0.03)


def test_the_other_way_round_it_is_the_rest():
    a, long, b, short = planted(3, theta=0.4, phi=1.0, prompts=60)
    one, other = length_controlled(a, long, b, short), length_controlled(b, short, a, long)
    assert one.mean + other.mean == pytest.approx(1)
    assert one.low + other.high == pytest.approx(1)


def reference_fit(wins, gaps):
    """θ by a general optimizer; one row a prompt, one column a pair of samples."""
    x = np.tanh(gaps / gaps.std())

    def loss(at):
        chance = 1 / (1 + np.exp(-(at[0] + at[1] * x)))
        nats = -(wins * np.log(chance) + (1 - wins) * np.log(1 - chance))
        return nats.mean(axis=1).sum() + 0.05 * at[1] ** 2

    return minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8}).x[0]


def test_several_samples_a_prompt_and_ties_as_another_optimizer_has_it():
    generator = np.random.default_rng(4)
    a, b = generator.integers(0, 3, (25, 2)) + 0.0, generator.integers(0, 3, (25, 3)) + 0.0
    ours, theirs = a * 9 + generator.integers(5, 50, (25, 2)), generator.integers(5, 50, (25, 3))
    theirs = theirs + 0.0
    pairs = [(i, j) for i in range(2) for j in range(3)]
    wins = np.array(
        [[(a[p, i] > b[p, j]) + (a[p, i] == b[p, j]) / 2 for i, j in pairs] for p in range(25)]
    )
    gaps = np.array([[ours[p, i] - theirs[p, j] for i, j in pairs] for p in range(25)])
    wanted = 1 / (1 + math.exp(-reference_fit(wins, gaps)))
    assert length_controlled(a, ours, b, theirs).mean == pytest.approx(wanted, abs=1e-5)


def test_a_newton_step_a_resample_is_as_good_as_a_fit():
    a, ours, b, theirs = planted(5, theta=0.5, phi=1.5, prompts=80)
    found = length_controlled(a, ours, b, theirs)
    generator, gaps = np.random.default_rng(9), ours - theirs
    spread = gaps.std()
    fits = []
    for _ in range(150):
        drawn = generator.integers(80, size=80)
        # The optimizer divides by the spread of what it is given: give it the spread of all.
        same = gaps[drawn] * gaps[drawn].std() / spread
        fits.append(1 / (1 + math.exp(-reference_fit(a[drawn], same))))
    low, high = np.quantile(fits, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_nothing_to_control_for():
    lengths = np.array([[3.0], [9.0]])
    ones, zeros = np.ones((2, 1)), np.zeros((2, 1))
    assert length_controlled(ones, lengths, zeros, lengths[::-1]) == (1, 1, 1)
    assert length_controlled(zeros, lengths, ones, lengths[::-1]) == (0, 0, 0)
    alone = length_controlled(
        np.array([[1.0, 0.0]]), lengths[:1] * [[1, 1]], zeros[:1], lengths[1:]
    )
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
