import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize

from tether.feedback.davidson import fit, outcomes, posterior, win_probability


def test_the_model_by_hand():
    # e^(ln 4) = 4, ν √4 = 1: 4/6, 1/6, 1/6
    difference = np.array([np.log(4), -np.log(4)])
    win, tie, loss = outcomes(difference, 0.5)
    np.testing.assert_allclose(win, [4 / 6, 1 / 6])
    np.testing.assert_allclose(tie, [1 / 6, 1 / 6])
    np.testing.assert_allclose(loss, [1 / 6, 4 / 6])


def test_far_apart_does_not_overflow():
    win, tie, loss = outcomes(np.array([2000.0, -2000.0]), 0.5)
    assert (win.tolist(), tie.tolist(), loss.tolist()) == ([1, 0], [0, 0], [0, 1])


def test_two_votes_to_one_are_about_six_tenths():
    # slope of the log-posterior in s₀ = d/2: 2 - 3 σ(d) - d/2 = 0
    root = brentq(lambda d: 2 - 3 / (1 + np.exp(-d)) - d / 2, 0, 3)
    [found] = fit([np.array([[[2.0, 0.0, 1.0]]])], nu=1e-12)
    assert found.scores[0] == pytest.approx([root / 2, -root / 2], abs=1e-6)
    win = 1 / (1 + np.exp(-root))
    assert win == pytest.approx(0.6, abs=0.002)


def objective(x, counts, ridge):
    """The log-posterior, written out pair by pair."""
    *strengths, tie = x
    nu, place, value = np.exp(tie), 0, 0.0
    # the prior of ν: one comparison of equals, a tenth of it a tie
    value += 0.1 * np.log(nu / (2 + nu)) + 0.9 * np.log(2 / (2 + nu))
    for block, size in counts:
        for pairs in block:
            s = strengths[place : place + size]
            place += size
            row = iter(pairs)
            for i in range(size):
                for j in range(i + 1, size):
                    wins, ties, losses = next(row)
                    p, q = np.exp(s[i]), np.exp(s[j])
                    total = p + q + nu * np.sqrt(p * q)
                    value += wins * np.log(p / total) + losses * np.log(q / total)
                    value += ties * np.log(nu * np.sqrt(p * q) / total)
            value -= ridge / 2 * sum(one**2 for one in s)
    return -value


@pytest.mark.parametrize("ridge", [0.3, 1.0])
def test_it_equals_an_independent_optimum(ridge):
    generator = np.random.default_rng(3)
    three = generator.integers(0, 4, size=(2, 3, 3)).astype(float)
    two = np.array([[[3.0, 1.0, 0.0]], [[0.5, 0.0, 2.25]]])
    found = fit([three, two], ridge=ridge)
    counts = [(three, 3), (two, 2)]
    best = minimize(objective, np.zeros(11), (counts, ridge), method="BFGS", options={"gtol": 1e-7})
    expected = np.concatenate([found[0].scores.reshape(-1), found[1].scores.reshape(-1)])
    np.testing.assert_allclose(expected, best.x[:-1], atol=1e-5)
    assert found[0].nu == found[1].nu == pytest.approx(np.exp(best.x[-1]), rel=1e-4)


def test_the_covariance_is_that_of_the_curvature():
    counts = np.array([[[3.0, 1.0, 1.0], [2.0, 0.0, 2.0], [4.0, 2.0, 0.0]]])
    [found] = fit([counts], ridge=0.7)
    base, step = np.array([*found.scores[0], np.log(found.nu)]), 1e-4
    moves = np.eye(4)[:3] * step
    curvature = [
        [
            sum(
                sign * objective(base + a + b * flip, [(counts, 3)], 0.7)
                for sign, b, flip in ((1, b, 1), (-1, b, -1))
            )
            - sum(
                sign * objective(base - a + b * flip, [(counts, 3)], 0.7)
                for sign, b, flip in ((1, b, 1), (-1, b, -1))
            )
            for b in moves
        ]
        for a in moves
    ]
    centred = np.eye(3) - 1 / 3
    expected = centred @ np.linalg.inv(np.array(curvature) / (4 * step**2)) @ centred
    np.testing.assert_allclose(found.covariance[0], expected, atol=1e-4)


def test_planted_strengths_and_ties_come_back():
    truth, nu = np.array([1.0, 0.4, 0.0, -0.5, -0.9]), 0.6
    generator = np.random.default_rng(0)
    first, second = np.triu_indices(5, 1)
    chances = np.stack(outcomes(truth[first] - truth[second], nu), axis=-1)
    counts = generator.multinomial(4000, chances).astype(float)
    [found] = fit([counts[None]], ridge=1e-6)
    assert found.scores[0] == pytest.approx(truth, abs=0.05)
    assert found.nu == pytest.approx(nu, abs=0.02)


def test_unanimity_stays_finite():
    # Three labelers of one mind on four completions: strengths of about 1.5, 0.5, -0.5, -1.5
    counts = np.zeros((1, 6, 3))
    counts[..., 0] = 3
    [top] = fit([counts])
    mean = posterior(counts, top)
    assert mean.scores[0] == pytest.approx([1.5, 0.5, -0.5, -1.5], abs=0.1)
    [alone] = fit([np.zeros((2, 6, 3))])
    assert not alone.scores.any()


@pytest.mark.parametrize("votes", [(3.0, 0.0, 0.0), (2.0, 0.0, 1.0), (5.0, 0.0, 1.0)])
@pytest.mark.parametrize("ridge", [0.0625, 1.0])
def test_the_nearest_normal_has_the_posterior_s_moments(votes, ridge):
    # The difference of two strengths N(0, 1/ridge) is N(0, 2/ridge); moments by quadrature. No
    # normal is skewed, so the spread of the most skewed, three votes of three, is a fifth short.
    def density(d):
        wins, _, losses = votes
        log = -wins * np.logaddexp(0, -d) - losses * np.logaddexp(0, d) - ridge * d * d / 4
        return np.exp(log)

    area, first, second = (
        quad(lambda d, power=power: d**power * density(d), -40, 60)[0] for power in (0, 1, 2)
    )
    mean = first / area
    spread = np.sqrt(second / area - mean**2)
    win = quad(lambda d: density(d) / (1 + np.exp(-d)), -40, 60)[0] / area
    counts = np.array([[votes]])
    [top] = fit([counts], ridge=ridge, nu=1e-9)
    found = posterior(counts, top, ridge=ridge)
    difference = found.scores[:, 0] - found.scores[:, 1]
    variance = found.covariance[:, 0, 0] * 4  # the two are each other's negative
    assert difference[0] == pytest.approx(mean, rel=0.05)
    assert np.sqrt(variance[0]) == pytest.approx(spread, rel=0.21)
    assert win_probability(difference, variance, 1e-9)[0] == pytest.approx(win, abs=0.004)


def test_intervals_hold_what_was_planted():
    # 8,000 strengths from the prior, 3 comparisons a pair; 4 standard errors of 95% are 1%, and
    # the approximation is given another 1%.
    generator = np.random.default_rng(1)
    truth = generator.normal(size=(2000, 4))
    truth -= truth.mean(axis=1, keepdims=True)
    first, second = np.triu_indices(4, 1)
    chances = np.stack(outcomes(truth[:, first] - truth[:, second], 0.5), axis=-1)
    counts = generator.multinomial(3, chances).astype(float)
    [top] = fit([counts])
    found = posterior(counts, top)
    errors = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    inside = np.abs(found.scores - truth) < 1.96 * errors
    assert inside.mean() == pytest.approx(0.95, abs=0.02)
