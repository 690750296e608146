import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.core import tilt
from tether.errors import DataError
from tether.evaluation.overoptimization import (
    Chosen,
    Frontier,
    Law,
    Measured,
    Tilted,
    Tilts,
    fit_law,
    read_frontier,
    write_frontier,
)
from tether.statistics import Interval

D = np.array([0.4, 0.9, 1.5, 2.2, 3.0])


def on(law, d=D, prompts=6):
    """KL and gold of models that lie on a law, the same on every prompt."""
    gold = np.array([law(x) for x in d])
    return np.repeat(d[:, None] ** 2, prompts, 1), np.repeat(gold[:, None], prompts, 1)


# --- laws -----------------------------------------------------------------------------------------


def test_the_law_of_rl_by_hand():
    """R = d (1.2 - 0.8 log d): R' = 1.2 - 0.8 log d - 0.8 = 0 at log d = 0.4 / 0.8."""
    law = fit_law("ppo", "rl", *on(lambda d: d * (1.2 - 0.8 * math.log(d))))
    assert (law.alpha, law.beta) == (pytest.approx(1.2), pytest.approx(0.8))
    assert law.peak == pytest.approx((math.exp(0.5),) * 3)
    assert law.residual == pytest.approx(0, abs=1e-9)
    assert (law.points, law.farthest, law.turned) == (5, pytest.approx(3.0), True)
    assert law.gold(math.e) == pytest.approx(math.e * 0.4)
    assert law.gold(0.0) == 0


def test_the_law_of_best_of_n_by_hand():
    """R = d (1.5 - 0.3 d) peaks at 1.5 / 0.6 = 2.5."""
    law = fit_law("best of n", "bon", *on(lambda d: d * (1.5 - 0.3 * d)))
    assert (law.alpha, law.beta) == (pytest.approx(1.5), pytest.approx(0.3))
    assert law.peak.mean == pytest.approx(2.5)
    assert law.gold(2.0) == pytest.approx(2 * (1.5 - 0.6))


def test_a_law_that_only_rises_has_no_peak():
    rising = fit_law("ppo", "rl", *on(lambda d: d * (0.5 + 0.2 * math.log(d))))
    assert rising.peak is None
    assert not rising.turned
    far = fit_law("best of n", "bon", *on(lambda d: d * (1.5 - 0.1 * d)))  # at 7.5
    assert far.peak.mean == pytest.approx(7.5)
    assert not far.turned
    falling = fit_law("best of n", "bon", *on(lambda d: -d * (0.1 + d)))
    assert falling.peak.mean == 0


def test_models_at_the_start_and_too_few_models_give_no_law():
    law = lambda d: d * (1.2 - 0.8 * math.log(d))  # noqa: E731
    d = np.array([0.01, 0.05, 0.9, 1.5, 2.2, 3.0])
    kl, gold = on(law, d)
    gold[:2] = 5.0  # of models so near that the slope of the law is infinite: not looked at
    assert fit_law("ppo", "rl", kl, gold).alpha == pytest.approx(1.2)
    assert fit_law("ppo", "rl", kl[:5], gold[:5]) is None


def test_the_peak_is_as_sure_as_the_prompts_agree():
    """The interval of many noisy prompts holds the true peak and is wider than that of few."""
    true = lambda d: d * (1.2 - 0.8 * math.log(d))  # noqa: E731
    rng = np.random.default_rng(0)
    widths = []
    for prompts in (40, 640):
        kl, gold = on(true, prompts=prompts)
        law = fit_law("ppo", "rl", kl, gold + rng.normal(0, 0.7, gold.shape))
        assert law.peak.low < math.exp(0.5) < law.peak.high
        assert law.peak.low < law.peak.mean < law.peak.high
        widths.append(law.peak.high - law.peak.low)
    assert widths[1] < widths[0] / 2
    assert law.residual > 0


def test_prompts_that_disagree_on_a_peak_leave_its_end_open():
    """Half of the prompts rise, the others fall: many a resample has no peak."""
    kl, gold = on(lambda d: d * (1.0 - 0.02 * d), prompts=8)
    gold[:, ::2] += 0.4 * D[:, None] ** 2
    gold[:, 1::2] -= 0.42 * D[:, None] ** 2
    law = fit_law("best of n", "bon", kl, gold)
    assert math.isnan(law.peak.high)
    assert math.isfinite(law.peak.low)


# --- efficiency -----------------------------------------------------------------------------------


def gaussian(prompts=48, samples=1024, seed=0):
    scores = np.random.default_rng(seed).normal(size=(prompts, samples))
    return Tilts.of(scores, scores.mean(axis=1))


def test_the_tilt_itself_is_fully_efficient_and_a_worse_policy_is_not():
    tilts = gaussian()
    weights = tilt.weights(tilts.scores, 0.6)
    kl = tilt.kl(weights)
    gain = tilt.expected(weights, tilts.scores) - tilts.start
    full = tilts.reached(kl, gain, seed=0)
    assert full.efficiency == pytest.approx((1, 1, 1), abs=5e-3)
    assert full.best == pytest.approx(gain.mean())
    assert full.ess == pytest.approx(tilt.effective_samples(weights).mean())
    half = tilts.reached(kl, gain / 2, seed=0)
    assert half.efficiency.mean == pytest.approx(0.5)
    assert half.efficiency.low < 0.5 < half.efficiency.high
    # Scores of the standard normal: sqrt(2 KL) is reachable.
    assert full.best == pytest.approx(math.sqrt(2 * kl.mean()), rel=0.05)


def test_the_interval_is_that_of_solving_for_beta_in_every_resample():
    """Of two prompts there are three resamples, so the ends are the least and the most of three."""
    tilts = gaussian(prompts=2, samples=256)
    kl, gain = np.array([0.4, 1.3]), np.array([0.5, 1.5])
    shares = []
    for drawn in ([0, 0], [0, 1], [1, 1]):
        scores = tilts.scores[drawn]
        weights = tilt.weights(scores, tilt.solve_beta(scores, kl[drawn].mean()))
        best = (tilt.expected(weights, scores) - tilts.start[drawn]).mean()
        shares.append(gain[drawn].mean() / best)
    expected = shares[1], min(shares), max(shares)
    assert tilts.reached(kl, gain, seed=5).efficiency == pytest.approx(expected, rel=1e-3)
    assert max(shares) > min(shares) + 0.1


def test_nothing_is_said_at_the_start_nor_where_few_samples_carry_the_tilt():
    tilts = gaussian(prompts=4, samples=32)
    gain = np.ones(4)
    assert tilts.reached(np.full(4, 0.001), gain, 0) == (None, None, None)
    few = tilts.reached(np.full(4, 2.6), gain, 0)
    assert few[:2] == (None, None)
    assert 1 < few.ess < 5
    assert tilts.reached(np.full(4, math.log(32)), gain, 0) == (None, None, None)
    assert tilts.reached(np.full(4, 1.0), gain, 0).ess > 5


@settings(max_examples=8)
@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_no_reweighting_is_more_than_fully_efficient(seed, share):
    """A policy that is any other reweighting of the pool gains at most the best gain."""
    rng = np.random.default_rng(seed)
    tilts = Tilts.of(scores := rng.normal(size=(3, 40)), scores.mean(axis=1), count=10)
    other = tilt.weights(scores + rng.normal(size=scores.shape), 0.3 + share)
    reached = tilts.reached(tilt.kl(other), tilt.expected(other, scores) - tilts.start, seed)
    if reached.efficiency is not None:
        assert reached.efficiency.mean <= 1 + 1e-6


# --- the file -------------------------------------------------------------------------------------


def made():
    """A frontier with everything in it, made up."""
    return Frontier(
        proxy="proxy",
        gold="gold",
        num_prompts=8,
        num_samples=256,
        cap=math.log(256),
        start={"proxy": 0.1, "gold": -0.2},
        tilted=[
            Tilted(beta=9.0, kl=0.01, ess=255.0, scores={"proxy": 0.2, "gold": -0.1}),
            Tilted(beta=0.5, kl=2.0, ess=30.0, scores={"proxy": 2.1, "gold": 0.8}),
            Tilted(beta=0.1, kl=4.9, ess=1.5, scores={"proxy": 2.9, "gold": 0.3}),
        ],
        chosen=[Chosen(n=4, kl=0.6, bound=0.636, ess=90.0, scores={"proxy": 1.1, "gold": 0.4})],
        measured=[
            Measured(
                policy="ppo",
                step=6,
                kl=Interval(1.0, 0.9, 1.1),
                kl_by="samples",
                gains={"proxy": Interval(0.9, 0.8, 1.0), "gold": Interval(0.5, 0.4, 0.6)},
                best=1.4,
                efficiency=Interval(0.643, 0.6, 0.7),
                ess=60.0,
                by="pool",
            ),
            Measured(
                policy="ppo",
                step=None,
                kl=Interval(2.94, 2.8, 3.1),
                kl_by="samples",
                gains={"proxy": Interval(1.7, 1.6, 1.8), "gold": Interval(0.7, 0.6, 0.8)},
                best=2.4,
                efficiency=Interval(0.708, 0.65, 0.771),
                ess=12.0,
                by="mixture",
            ),
            Measured(
                policy="<far>",
                step=None,
                kl=Interval(9.0, 8.0, 10.0),
                kl_by="bound",
                gains={
                    "proxy": Interval(3.0, 2.9, 3.1),
                    "gold": Interval(-1.0, math.nan, math.nan),
                },
            ),
        ],
        laws=[
            Law(
                policy="ppo",
                form="rl",
                alpha=1.2,
                beta=0.8,
                residual=0.02,
                points=5,
                farthest=3.0,
                peak=Interval(1.65, 1.5, math.nan),
            ),
            Law(
                policy="best of n",
                form="bon",
                alpha=1.2,
                beta=-0.1,
                residual=0.01,
                points=6,
                farthest=2.0,
                peak=None,
            ),
        ],
    )


def test_a_frontier_is_read_as_it_was_written(tmp_path):
    assert read_frontier(tmp_path) is None
    write_frontier(tmp_path, None)
    assert read_frontier(tmp_path) is None
    write_frontier(tmp_path, made())
    assert repr(read_frontier(tmp_path)) == repr(made())  # NaN differs from itself
    assert "NaN" not in (tmp_path / "frontier.json").read_text()
    (tmp_path / "frontier.json").write_text('{"tilted": []}')
    with pytest.raises(DataError, match=r"frontier\.json: cannot be read .*; evaluate again"):
        read_frontier(tmp_path)
