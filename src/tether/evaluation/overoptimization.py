"""How much of what was reachable a policy reached, and where the gold score turns.

Frontier   what an evaluation found beside a pool; written as frontier.json
Tilted     the best policies by their β: score against KL
Chosen     best of n on the pool
Measured   a policy, or a model kept along its run, beside the best at its KL
Law        Gao's law of over-optimization, fitted to the models of a run or to best-of-n
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tether.core import tilt
from tether.errors import DataError
from tether.evaluation.plain import plain, with_intervals
from tether.rundir import write_json
from tether.statistics import Interval

FILE = "frontier.json"
ENOUGH = 5.0  # effective samples, mean over prompts; with fewer a tilt is a few lucky samples
NEAR = 0.01  # nats; a policy this near the reference has nothing to reach
LEAST_POINTS = 4  # of a law, which has two coefficients
LEAST_DISTANCE = 0.1  # √KL; nearer, the slope of the law of RL is infinite
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Tilted:
    """The reference tilted by exp(proxy/β): no policy at that KL has a higher mean proxy score."""

    beta: float
    """Proxy units per nat, one for all prompts"""
    kl: float
    """Mean over prompts, nats per sequence"""
    ess: float
    """Mean effective samples a prompt"""
    scores: dict[str, float]
    """Mean score by scorer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Best of n by the proxy, each choice of n from the pool averaged."""

    n: int
    kl: float
    """Exact on the pool, mean over prompts, nats per sequence"""
    bound: float
    """log n - (n-1)/n"""
    ess: float
    """Mean effective samples a prompt"""
    scores: dict[str, float]
    """Mean score by scorer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A policy beside the best that its KL allows."""

    policy: str
    step: int | None
    """Of a model kept along the run; None = the policy itself"""
    kl: Interval
    """Nats per sequence"""
    kl_by: Literal["samples", "ranks", "bound"]
    """Along its own samples; by the ranks of best-of-n in the pool; an upper bound of best-of-n"""
    gains: dict[str, Interval]
    """Mean score by scorer, minus that of the pool's samples"""
    best: float | None = None
    """The best gain of the proxy reachable at its KL; None = not known"""
    efficiency: Interval | None = None
    """gain / best; its interval is over prompts"""
    ess: float | None = None
    """Mean effective samples a prompt that `best` comes from; None = its KL is beyond them all"""
    by: Literal["pool", "mixture", ""] = ""
    """Samples that `best` comes from: the reference's, or those and its own; "" = too few"""

    @property
    def name(self) -> str:
        """The policy, and the step of a kept model."""
        return self.policy if self.step is None else f"{self.policy} at step {self.step}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """R(d) fitted by least squares: gold minus its start, over d = √KL.

        RL:         R(d) = d (α - β log d),   peak at d = exp(α/β - 1)
        best of n:  R(d) = d (α - β d),       peak at d = α / 2β

    Source: Gao et al. 2022, https://arxiv.org/abs/2210.10760, eq. 1 and 2.
    """

    policy: str
    """The policy whose kept models are the points; "best of n" on the pool"""
    form: Literal["rl", "bon"]
    alpha: float
    beta: float
    residual: float
    """Root of the mean squared residual, in units of the gold score"""
    points: int
    farthest: float
    """Largest d among the points"""
    peak: Interval | None
    """d of the highest gold, with its interval over prompts (an end that is NaN: no peak there);
    None = the law has no top"""

    @property
    def turned(self) -> bool:
        """True where the peak lies within what was measured."""
        return self.peak is not None and self.peak.mean <= self.farthest

    def gold(self, d: float) -> float:
        """R(d)."""
        if d == 0:
            return 0.0
        return d * (self.alpha - self.beta * (math.log(d) if self.form == "rl" else d))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """What an evaluation found beside a pool of the reference's samples."""

    proxy: str
    """Scorer that training optimized"""
    gold: str
    """Scorer that says what is really good; "" = there is none but the proxy"""
    num_prompts: int
    num_samples: int
    """Samples a prompt in the pool"""
    cap: float
    """log of it: no KL above can be seen in the pool, nats"""
    start: dict[str, float]
    """Mean score of the pool's samples by scorer; gains are counted from here"""
    tilted: list[Tilted]
    """By rising KL"""
    chosen: list[Chosen]
    """By rising n"""
    measured: list[Measured]
    """By policy and step, the policy itself after the models of its run"""
    laws: list[Law]

    @property
    def policies(self) -> list[Measured]:
        """The measured policies, without the models along their runs."""
        return [each for each in self.measured if each.step is None]

    @classmethod
    def from_dict(cls, row: Any) -> "Frontier":
        """Read what `write_frontier` wrote.

        Raises:
            DataError: A field is missing or unknown.
        """
        try:
            parts = {
                "tilted": [Tilted(**each) for each in row["tilted"]],
                "chosen": [Chosen(**each) for each in row["chosen"]],
                "measured": [Measured(**with_intervals(each)) for each in row["measured"]],
                "laws": [Law(**with_intervals(each)) for each in row["laws"]],
            }
            return cls(**{**row, **parts})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not the frontier of an evaluation ({error}); evaluate again"
            ) from None


def write_frontier(folder: Path, frontier: Frontier | None) -> None:
    """Write `frontier.json` into an evaluation's folder, where there is a frontier."""
    if frontier is not None:
        write_json(folder / FILE, plain(frontier))


def read_frontier(folder: Path) -> Frontier | None:
    """The frontier in an evaluation's folder; None where there is no such file.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Frontier.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, DataError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from None


# --- the best at a KL -----------------------------------------------------------------------------


class Reached(NamedTuple):
    """What is known of the best gain at a policy's KL; None = not known."""

    best: float | None = None
    efficiency: Interval | None = None
    ess: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tilts:
    """Scored samples of P prompts that stand for the reference, and their tilts by many β."""

    scores: Float[np.ndarray, "P N"]
    """By the proxy"""
    start: Float[np.ndarray, " P"]
    """The reference's mean score of each prompt"""
    base: Float[np.ndarray, "P N"] | None
    betas: Float[np.ndarray, " G"]
    """From the nearest to the farthest tilt"""
    kl: Float[np.ndarray, "G P"]
    gain: Float[np.ndarray, "G P"]
    """Mean score of the tilt minus the start"""

    @classmethod
    def of(
        cls,
        scores: Float[np.ndarray, "P N"],
        start: Float[np.ndarray, " P"],
        base: Float[np.ndarray, "P N"] | None = None,
        count: int = 120,
    ) -> "Tilts":
        """Tilt the samples by `count` values of β, from almost 0 nats to almost the farthest."""
        farthest = tilt.largest_kl(scores, base)
        near, far = (tilt.solve_beta(scores, x * farthest, base) for x in (0.0005, 0.99))
        betas = np.geomspace(near, far, count)
        tilts = [tilt.weights(scores, float(beta), base) for beta in betas]
        return cls(
            scores=scores,
            start=start,
            base=base,
            betas=betas,
            kl=np.stack([tilt.kl(each, base) for each in tilts]),
            gain=np.stack([tilt.expected(each, scores) - start for each in tilts]),
        )

    def reached(
        self, kl: Float[np.ndarray, " P"], gain: Float[np.ndarray, " P"], seed: int
    ) -> Reached:
        """Best gain at the mean KL of a policy, and the share of it that the policy gained.

            best = max E[r] - start at KL = mean kl;   efficiency = mean gain / best

        The interval is over prompts: each resample has its own KL, its own β and its own best
        gain. Those are read off the tilts in `betas`, between which the gain is almost linear in
        √KL, so that no resample needs a search of its own.

        Args:
            kl: The policy's KL by prompt.
            gain: Its mean score by prompt minus `start`.
            seed: Of the bootstrap over prompts.
        """
        nats = float(kl.mean())
        if nats < NEAR or nats >= tilt.largest_kl(self.scores, self.base):
            return Reached()
        beta = tilt.solve_beta(self.scores, nats, self.base)
        weights = tilt.weights(self.scores, beta, self.base)
        ess = float(tilt.effective_samples(weights).mean())
        best = float((tilt.expected(weights, self.scores) - self.start).mean())
        if ess < ENOUGH or best <= 0:
            return Reached(ess=ess)
        drawn = _resamples(len(kl), seed)  # (R, P)
        distances, gains = np.maximum(drawn @ kl, 0.0), drawn @ gain
        curves = zip(distances, drawn @ self.kl.T, drawn @ self.gain.T, strict=True)
        bests = [np.interp(math.sqrt(nats), np.sqrt(x), y) for nats, x, y in curves]
        efficiency = _interval(float(gain.mean()) / best, gains / np.array(bests))
        return Reached(best=best, efficiency=efficiency, ess=ess)


def _resamples(count: int, seed: int) -> Float[np.ndarray, "R P"]:
    """Prompts drawn with replacement: the share of each in each resample."""
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]) / count


def _interval(value: float, resampled: Float[np.ndarray, " R"]) -> Interval:
    """A value with the 95% percentiles of its resamples; an end that is infinite becomes NaN."""
    low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
    ends = (min(float(low), value), max(float(high), value))
    return Interval(value, *(end if math.isfinite(end) else math.nan for end in ends))


# --- laws -----------------------------------------------------------------------------------------


def fit_law(
    policy: str,
    form: Literal["rl", "bon"],
    kl: Float[np.ndarray, "K P"],
    gold: Float[np.ndarray, "K P"],
    *,
    seed: int = 0,
) -> Law | None:
    """Fit a law to K models on P prompts; None where fewer than four are away from the start.

    Args:
        policy: Whose law it is.
        form: Of RL or of best-of-n.
        kl: KL to the reference of each model and prompt, nats per sequence.
        gold: Mean gold score of each, minus that of the reference on the prompt.
        seed: Of the bootstrap over prompts.
    """
    d, gains = np.sqrt(np.maximum(kl.mean(axis=1), 0.0)), gold.mean(axis=1)
    away = d >= LEAST_DISTANCE
    if away.sum() < LEAST_POINTS:
        return None
    d, gains, kl, gold = d[away], gains[away], kl[away], gold[away]
    fitted = _coefficients(d, gains, form)
    drawn = _resamples(kl.shape[1], seed)  # (R, P)
    resampled = _coefficients(np.sqrt(np.maximum(drawn @ kl.T, 0.0)), drawn @ gold.T, form)
    peak = float(_peak(fitted[None], form)[0])
    residuals = gains - _columns(d, form) @ fitted
    return Law(
        policy=policy,
        form=form,
        alpha=float(fitted[0]),
        beta=float(fitted[1]),
        residual=float(np.sqrt(np.square(residuals).mean())),
        points=len(d),
        farthest=float(d.max()),
        peak=_interval(peak, _peak(resampled, form)) if math.isfinite(peak) else None,
    )


def _columns(d: Float[np.ndarray, "*R K"], form: str) -> Float[np.ndarray, "*R K 2"]:
    return np.stack([d, -d * (np.log(d) if form == "rl" else d)], axis=-1)


def _coefficients(
    d: Float[np.ndarray, "*R K"], gains: Float[np.ndarray, "*R K"], form: str
) -> Float[np.ndarray, "*R 2"]:
    """α and β by linear least squares."""
    columns = _columns(np.maximum(d, 1e-6), form)
    return (np.linalg.pinv(columns) @ gains[..., None])[..., 0]


def _peak(fitted: Float[np.ndarray, "R 2"], form: str) -> Float[np.ndarray, " R"]:
    """Where, in √KL, gold is highest; infinite where the law has no top, 0 where it only falls."""
    alpha, beta = fitted[:, 0], fitted[:, 1]
    ratio = alpha / np.where(beta > 0, beta, 1.0)
    top = np.exp(np.minimum(ratio - 1, 700.0)) if form == "rl" else np.maximum(ratio / 2, 0.0)
    return np.where(beta > 0, top, np.inf)
