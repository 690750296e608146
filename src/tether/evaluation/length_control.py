"""Win-rates at equal length: what is left of a win once longer answers do not count for it.

Judges of all kinds like length, so a policy that only writes more wins more. The length-controlled
win-rate asks how often it would win if its completions were as long as its rival's.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tether.statistics import Interval

PENALTY = 0.1  # λ: the effect of length is N(0, 1/λ) beforehand, which hardly pulls at it
STEPS = 50
RESAMPLES = 2000

Scores = Float[np.ndarray, "P N"]
Rivals = Float[np.ndarray, "P M"]


def length_controlled(
    scores: Scores, lengths: Scores, rival_scores: Rivals, rival_lengths: Rivals, *, seed: int = 0
) -> Interval:
    """Chance of a win at equal length, and its interval over prompts; a tie is half a win.

        logit P(win) = θ + φ · tanh( Δ / sd(Δ) ),   Δ = length − rival's length;   read at Δ = 0

    θ and φ minimize, over all pairs of samples of a prompt (every prompt weighs 1),

        − (1/NM) Σ [ y log P + (1 − y) log(1 − P) ] + λ/2 φ²,   y = 1, ½ or 0

    With no differences in length this is the plain win-rate. The interval draws prompts with
    replacement and takes one Newton step from θ, φ for each draw, on the scale of the logit.

    Source: the form is alpaca_eval's "length_controlled_minimal" (Dubois et al. 2024,
    https://arxiv.org/abs/2404.04475); the step instead of a new fit: Davison & Hinkley 1997,
    section 7.2 (linear approximation), and Moulton & Zeger 1991.

    Args:
        scores: N samples a prompt.
        lengths: Of the same samples; any unit, such as characters.
        rival_scores: M samples a prompt, of the other policy.
        rival_lengths: Of the same.
        seed: Decides which prompts are drawn; the same draws as `win_rate` with that seed.

    Returns:
        A share; its ends are NaN where there is one prompt. Where one side wins everything, or
        nothing, there is nothing to control for, and the plain rate is returned.
    """
    first, second = scores[:, :, None], rival_scores[:, None, :]
    wins = (first > second) + 0.5 * (first == second)  # (P, N, M)
    gaps = lengths[:, :, None] - rival_lengths[:, None, :]
    number = len(scores)
    y, x = wins.reshape(number, -1), _squashed(gaps).reshape(number, -1)
    missing = (math.nan, math.nan)
    rate = float(y.mean())
    if rate in (0.0, 1.0):
        return Interval(rate, *((rate, rate) if number > 1 else missing))
    fitted = _fit(y, x)
    if number == 1:
        return Interval(_share(float(fitted[0])), *missing)
    drawn = _steps_of_resamples(fitted, y, x, seed)
    low, high = (_share(float(end)) for end in np.quantile(drawn, [0.025, 0.975]))
    value = _share(float(fitted[0]))
    return Interval(value, min(low, value), max(high, value))


def _squashed(gaps: Float[np.ndarray, "P N M"]) -> Float[np.ndarray, "P N M"]:
    spread = gaps.std()
    return np.tanh(gaps / spread) if spread > 0 else np.zeros_like(gaps)


def _fit(y: Float[np.ndarray, "P K"], x: Float[np.ndarray, "P K"]) -> NDArray[np.float64]:
    """θ and φ by Newton's method, a step halved until it does not make things worse."""
    at = np.array([_logit(float(y.mean())), 0.0])
    loss = _loss(at, y, x)
    for _ in range(STEPS):
        slopes, curvatures = _derivatives(at, y, x)
        step = np.linalg.solve(curvatures.sum(axis=0) + _RIDGE, slopes.sum(axis=0) - _RIDGE @ at)
        while _loss(at + step, y, x) > loss + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        at, loss = at + step, _loss(at + step, y, x)
        if np.abs(step).max() < 1e-10:
            break
    return at


def _steps_of_resamples(
    at: NDArray[np.float64],
    y: Float[np.ndarray, "P K"],
    x: Float[np.ndarray, "P K"],
    seed: int,
) -> NDArray[np.float64]:
    """θ after one Newton step from the fit, for each set of prompts drawn."""
    slopes, curvatures = _derivatives(at, y, x)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(y), size=(RESAMPLES, len(y)), dtype=np.int32)
    counts = np.zeros((RESAMPLES, len(y)))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    slope = counts @ slopes - _RIDGE @ at
    curvature = np.tensordot(counts, curvatures, axes=1) + _RIDGE
    return at[0] + np.linalg.solve(curvature, slope[:, :, None])[:, 0, 0]


def _derivatives(
    at: NDArray[np.float64], y: Float[np.ndarray, "P K"], x: Float[np.ndarray, "P K"]
) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P 2 2"]]:
    """Of each prompt: the slope of its log-likelihood, and minus its second derivatives."""
    chance = 1 / (1 + np.exp(-(at[0] + at[1] * x)))
    missed, weight = y - chance, chance * (1 - chance)
    slopes = np.stack([missed.mean(axis=1), (missed * x).mean(axis=1)], axis=1)
    entries = [each.mean(axis=1) for each in (weight, weight * x, weight * x * x)]
    curvatures = np.stack([entries[0], entries[1], entries[1], entries[2]], axis=1)
    return slopes, curvatures.reshape(-1, 2, 2)


def _loss(
    at: NDArray[np.float64], y: Float[np.ndarray, "P K"], x: Float[np.ndarray, "P K"]
) -> float:
    logits = at[0] + at[1] * x
    nats = np.logaddexp(0, logits) - y * logits
    return float(nats.mean(axis=1).sum() + at @ _RIDGE @ at / 2)


_RIDGE = np.diag([0.0, PENALTY])


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
