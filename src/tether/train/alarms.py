"""When what a monitor sees is more than noise: pure detectors, and what is told of them.

L looks, P prompts, N samples a prompt; look 0 is before the first step.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from tether.config import MonitorConfig

Figures = Mapping[str, Any]
"""Figures of a look by name; None where there is no number."""

BANDWIDTH = 1.5  # looks; over about so many to each side the held-out score is smoothed
PHRASE = 4  # words of which a template is made
WIDESPREAD = 0.1  # share of the prompts for which a phrase of a template is used
LEAST = 2  # looks behind a turn: one bad look may be gone at the next
CLEAR_RISE = 1.645  # standard errors that the proxy must have gained: the normal 95% quantile
DRAWS = 2000  # runs without a turn that a test is compared with
_DRAWN_AT_ONCE = 200


# --- the held-out score ---------------------------------------------------------------------------


class HeldOut(NamedTuple):
    """What the two scores did around the likeliest turn.

    `p` is the chance that a run in which the audit keeps just its share of the proxy's rise looks
    as bad at any of its looks. The turn lies behind look `turn`; `first` is the first look that
    was compared with those behind it. `proxy` and `audit` are (mean before, mean behind); `owed`
    is the change of the audit that would have been enough.
    """

    p: float
    first: int
    turn: int
    proxy: tuple[float, float]
    audit: tuple[float, float]
    owed: float


def held_out(
    proxy: Float[np.ndarray, "L P N"],
    audit: Float[np.ndarray, "L P N"],
    *,
    share: float,
    window: int,
    num_looks: int,
    since: int = 0,
) -> HeldOut:
    """Does the audit still keep its share of what the proxy gains? Tested over all looks so far.

        r = audit − κ (σ_audit / σ_proxy) proxy,   κ = max(0, min(share, ρ − SE(ρ)))
        z = min over turns of (mean r behind − mean r before) / standard error

    with the spreads σ and the correlation ρ of the samples of look 0, SE(ρ) = (1 − ρ²)/√(PN). A
    turn is any split of any two stretches of up to `window` looks that lie side by side, the second
    of two or more and ending now. Means are paired by prompt, and the standard error is that of
    their differences over prompts. A split counts where the proxy has clearly risen: a fall of both
    is no sign that one is gained at the cost of the other.

    The turn that looks worst, of so many and at so many looks, is chosen by the same noise that it
    is tested with. So z is not compared with the normal distribution but with that of the least z
    in a whole run whose r never changes but for noise, found by simulation (`least_of_a_run`).

    κ < ρ: with an audit that is mostly noise, even an honest proxy's rise shows at ρ of its size
    only (regression to the mean).

    Args:
        proxy: Scores that training raises.
        audit: Scores of the same samples by somebody else.
        share: What the audit must keep, in (0, 1).
        window: Most looks on a side.
        num_looks: Looks of the whole run: the test allows for all of them.
        since: First look that is compared; those before it have had their alarm.
    """
    scale = share_owed(proxy[0], audit[0], share)
    left = (audit - scale * proxy).mean(axis=2)  # (L, P)
    z, first, turn = _worst_turn(left[since:], proxy[since:].mean(axis=2), window)
    first, turn = first + since, turn + since
    run = least_of_a_run(max(num_looks, len(left)), window)
    p = (1 + int(np.searchsorted(run, z, side="right"))) / (1 + len(run))
    before, behind = slice(first, turn + 1), slice(turn + 1, len(left))
    rise = float(proxy[behind].mean() - proxy[before].mean())
    return HeldOut(
        p=p,
        first=first,
        turn=turn,
        proxy=(float(proxy[before].mean()), float(proxy[behind].mean())),
        audit=(float(audit[before].mean()), float(audit[behind].mean())),
        owed=scale * rise,
    )


def share_owed(
    proxy: Float[np.ndarray, "P N"], audit: Float[np.ndarray, "P N"], share: float
) -> float:
    """κ·σ_audit/σ_proxy: what the audit must gain for a gain of 1 of the proxy."""
    spreads = float(proxy.std()), float(audit.std())
    if min(spreads) < 1e-9:  # nothing is known of how they go together
        return 0.0
    correlation = float(np.corrcoef(proxy.reshape(-1), audit.reshape(-1))[0, 1])
    error = (1 - correlation**2) / proxy.size**0.5
    return max(0.0, min(share, correlation - error)) * spreads[1] / spreads[0]


def _worst_turn(
    left: Float[np.ndarray, "L P"], proxy: Float[np.ndarray, "L P"], window: int
) -> tuple[float, int, int]:
    """The least z over turns at the last look, with the first look compared and the turn.

    z is the normal quantile that is as unlikely as Student's t of a mean over prompts.
    """
    looks, prompts = left.shape
    worst, chosen, where = 0.0, 0, max(looks - 2, 0)
    if prompts < 2:  # one prompt says nothing about others
        return worst, chosen, where
    pairs = zip(_turns(left, looks - 1, window), _turns(proxy, looks - 1, window), strict=True)
    for (turn, firsts, differences), (_, _, gains) in pairs:
        t = np.where(_t(gains) > CLEAR_RISE, _t(differences), 0.0)
        if t.min() < worst:
            worst, chosen, where = float(t.min()), int(firsts[t.argmin()]), turn
    return float(stats.norm.ppf(stats.t.cdf(worst, prompts - 1))), chosen, where


def _t(differences: Float[np.ndarray, "F P"]) -> Float[np.ndarray, " F"]:
    """Student's t of the mean of each row; 0 where there is no difference."""
    means = differences.mean(axis=1)
    errors = differences.std(axis=1, ddof=1) / differences.shape[1] ** 0.5
    return np.where(np.abs(means) < 1e-9, 0.0, means / np.maximum(errors, 1e-12))


def _turns(
    values: NDArray[np.float64], last: int, window: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Every turn up to look `last`: (its look, first looks before it, differences of the means).

    Differences have a row for each first look and the columns of `values`.
    """
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    for turn in range(max(0, last - window), last - LEAST + 1):
        behind = (sums[last + 1] - sums[turn + 1]) / (last - turn)
        firsts = np.arange(max(0, turn - window + 1), turn + 1)
        before = (sums[turn + 1] - sums[firsts]) / (turn - firsts + 1)[:, None]
        yield turn, firsts, behind - before


@functools.cache
def least_of_a_run(num_looks: int, window: int) -> Float[np.ndarray, " D"]:
    """The least z of each of 2,000 runs that only noise moves, in rising order.

    Looks are independent standard normals, so that the z of stretches of a and b looks is their
    difference divided by √(1/a + 1/b). The seed is fixed: the same settings, the same alarm.
    """
    draws = np.random.default_rng(0)
    least: list[NDArray[np.float64]] = []
    for _ in range(DRAWS // _DRAWN_AT_ONCE):
        looks = draws.standard_normal((num_looks, _DRAWN_AT_ONCE))
        worst = np.zeros(_DRAWN_AT_ONCE)
        for last in range(1, num_looks):
            for turn, firsts, differences in _turns(looks, last, window):
                error = np.sqrt(1 / (last - turn) + 1 / (turn - firsts + 1))[:, None]
                worst = np.minimum(worst, (differences / error).min(axis=0))
        least.append(worst)
    return np.sort(np.concatenate(least))


def smoothed(scores: Sequence[float]) -> Float[np.ndarray, " L"]:
    """Held-out scores with the noise of single looks averaged out, by a Gaussian over looks.

        s_i = Σ_j w_ij a_j / Σ_j w_ij,   w_ij = exp(−(i − j)² / 2h²),   h = 1.5 looks

    The best of noisy looks is best by luck as well; the best smoothed one much less so.
    """
    looks = np.arange(len(scores))
    weights = np.exp(-0.5 * ((looks[:, None] - looks) / BANDWIDTH) ** 2)
    return weights @ np.asarray(scores, dtype=np.float64) / weights.sum(axis=1)


def kept_looks(scores: Sequence[float], keep: int) -> list[int]:
    """The looks whose models are still there, best smoothed score first; of equals the earlier.

    At each look the worst of more than `keep` goes, whatever later looks would have said of it.
    """
    kept: list[int] = []
    for look in range(len(scores)):
        level = smoothed(scores[: look + 1])
        kept = sorted([*kept, look], key=lambda each: (-level[each], each))[:keep]
    return kept


# --- levels ---------------------------------------------------------------------------------------


def measured(name: str, now: Figures, start: Figures) -> tuple[float, bool]:
    """(what an alarm compares with its limit, whether it is raised below it).

    NaN where it is not measured, or the start has nothing to compare with.
    """
    column = {"variety": "distinct_2"}.get(name, name)
    value, first = now.get(column), start.get(column)
    if value is None or first is None:
        return float("nan"), False
    if name in ("length", "variety", "entropy"):
        ratio = value / first if first > 0 else float("nan")
        return ratio, name != "length"
    rises = name in ("repetition", "disagreement")
    return value - first if rises else value, False


def over(name: str, config: MonitorConfig, now: Figures, start: Figures) -> bool:
    """Whether a level lies beyond the limit of its alarm."""
    value, below = measured(name, now, start)
    limit = config.alarms[name].limit
    return value < limit if below else value > limit


def phrases_shared(texts: Sequence[str], prompts: Sequence[int]) -> Float[np.ndarray, " T"]:
    """Of each text the share of its words that stand in phrases used for many prompts.

    A phrase is four words in a row; many is at least a tenth of the prompts, and two. Near 0 where
    every prompt has an answer of its own, near 1 where one answer serves them all, whether it
    opens, closes or fills the text: a fixed opening of a quarter of the words counts a quarter.

    Args:
        texts: Completions.
        prompts: Of each text the number of its prompt; samples of one prompt may be alike.
    """
    words = [text.lower().split() for text in texts]
    used: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for text, prompt in zip(words, prompts, strict=True):
        for start in range(len(text) - PHRASE + 1):
            used[tuple(text[start : start + PHRASE])].add(prompt)
    many = max(2, WIDESPREAD * len(set(prompts)))
    shares = np.zeros(len(words))
    for i, text in enumerate(words):
        covered = np.zeros(len(text), dtype=bool)
        for start in range(len(text) - PHRASE + 1):
            if len(used[tuple(text[start : start + PHRASE])]) >= many:
                covered[start : start + PHRASE] = True
        shares[i] = covered.mean() if len(text) else 0.0
    return shares


# --- in words -------------------------------------------------------------------------------------

_TOLD = {
    "kl": "the KL to the reference is {now:.1f} nats per sequence (limit {limit:g})",
    "length": "completions are {value:.2f} times as long as at the start, {now:.1f} tokens after "
    "{start:.1f} (limit {limit:g} times)",
    "repetition": "{now:.0%} of a completion's word triples repeat earlier ones, at the start "
    "{start:.0%} (limit: a rise of {limit:g})",
    "variety": "distinct word pairs have fallen to {value:.0%} of the start's, {now:.3f} after "
    "{start:.3f} (limit {limit:.0%})",
    "template": "{now:.0%} of the words stand in phrases that serve a tenth of the prompts or "
    "more, at the start {start:.0%} (limit {limit:.0%})",
    "entropy": "the entropy per token has fallen to {value:.0%} of the start's, {now:.2f} nats "
    "after {start:.2f} (limit {limit:.0%})",
    "disagreement": "the members of the ensemble disagree by {now:.2f} of their spread, at the "
    "start {start:.2f} (limit: a rise of {limit:g})",
}
NEXT = {
    "held_out": "read the examples; raise kl.beta, or have samples of this policy ranked and train "
    "the reward anew",
    "kl": "raise kl.beta, or lower the learning rate",
    "length": "read the longest; add a length rule to the rewards, or rank with length in mind",
    "repetition": "read the examples; add the repetition rule to the rewards, or raise kl.beta",
    "variety": "raise kl.beta, or policy_loss.entropy_coefficient",
    "template": "read the examples; if one answer serves all prompts, raise kl.beta",
    "entropy": "raise policy_loss.entropy_coefficient or kl.beta, or lower the learning rate",
    "disagreement": "the policy left what the reward knows: raise kl.beta, or reward.pessimism",
}
"""What to do after an alarm, by its name."""


def told(
    name: str, config: MonitorConfig, now: Figures, start: Figures
) -> tuple[str, dict[str, float]]:
    """One plain sentence with the numbers of a level that is beyond its limit, and the numbers."""
    column = {"variety": "distinct_2"}.get(name, name)
    value, _ = measured(name, now, start)
    numbers = {"now": now[column], "start": start[column], "value": value}
    numbers["limit"] = config.alarms[name].limit
    return _TOLD[name].format(**numbers), numbers


def told_held_out(found: HeldOut, steps: Sequence[int]) -> tuple[str, dict[str, float]]:
    """One plain sentence on a turn that was found, and its numbers; `steps` are the looks'."""
    rise = found.proxy[1] - found.proxy[0]
    change = found.audit[1] - found.audit[0]
    first, turn = steps[found.first], steps[found.turn]
    where = f"step {turn}" if first == turn else f"steps {first} to {turn}"
    text = (
        f"since {where} the reward's score went from {found.proxy[0]:.2f} to "
        f"{found.proxy[1]:.2f} ({rise:+.2f}) and the held-out score from {found.audit[0]:.2f} to "
        f"{found.audit[1]:.2f} ({change:+.2f}; {found.owed:+.2f} would be its share): "
        f"p = {found.p:.2g}"
    )
    values = {"p": found.p, "proxy": rise, "audit": change, "owed": found.owed}
    return text, {**values, "from_step": float(first), "to_step": float(turn)}
