"""The curves of a training run and of its monitor: what each is, and what is healthy.

A curve that a stage did not log is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tether.evaluation.figures import COLOURS, Figure, axes, label, thin

_MAX_POINTS = 600  # of a curve; about as many as a screen has room for
_MARKED = 40  # points of a curve that are marked each; more would be a chain
_MAX_ROWS = 24  # of the table behind a curve
_DASHES = ["solid", "solid", "dash", "dot", "dashdot"]

Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A figure of metrics.jsonl or monitor.jsonl: one key or several over the steps."""

    title: str
    unit: str
    keys: dict[str, str]
    """Key of the rows: name in the legend. Its held-out twin, `held_out_KEY`, is drawn with it"""
    meaning: str
    """One sentence or two: what it is, and what is healthy"""
    detail: bool = False
    """True for what is looked at when something is wrong"""
    steady: bool = True
    """False: left out where it does not change"""


SCORE = Curve(
    title="Score of the reward",
    unit="normalized",
    keys={"score": "score"},
    meaning="What training climbs, on its own samples. Healthy: it rises and levels off. Its rise "
    "alone says nothing of quality: that is what the evaluation is for.",
)

CURVES = [
    Curve(
        title="Score less the KL penalty",
        unit="normalized",
        keys={"reward": "reward"},
        meaning="The return that the policy gradient sees: the score with the KL penalty taken "
        "off. Healthy: it rises; where it falls while the score rises, the penalty is losing.",
        detail=True,
    ),
    Curve(
        title="KL to the reference",
        unit="nats per answer",
        keys={"kl": "KL"},
        meaning="How far the policy has gone from where it started. Healthy: it grows ever more "
        "slowly; a few nats are usual, and tens mean that the reward model judges texts unlike "
        "any it was trained on.",
    ),
    Curve(
        title="Weight of the KL penalty",
        unit="β",
        keys={"beta": "β"},
        meaning="β, where it adapts or an alarm raised it. Healthy: it settles.",
        steady=False,
    ),
    Curve(
        title="Length",
        unit="tokens per answer",
        keys={"length": "length"},
        meaning="Mean tokens of an answer. Healthy: about that of the start; a steady rise is the "
        "commonest way to please a reward model without being better.",
    ),
    Curve(
        title="Finished answers",
        unit="share",
        keys={"finished": "finished"},
        meaning="Share of answers that end by themselves. Healthy: near 1; where it falls, "
        "answers ramble into the length limit.",
    ),
    Curve(
        title="Loss",
        unit="nats",
        keys={"loss": "training"},
        meaning="What the optimizer lowers. Healthy: it falls; a held-out loss that turns up "
        "while the training loss falls is overfitting.",
    ),
    Curve(
        title="Accuracy",
        unit="share of pairs",
        keys={"accuracy": "training"},
        meaning="How often the preferred answer gets the higher score. Healthy: held out well "
        "above one half; 1 on training pairs alone is memory.",
    ),
    Curve(
        title="Margin",
        unit="implicit reward",
        keys={"margin": "margin"},
        meaning="By how much the chosen answer beats the rejected one. Healthy: it grows and "
        "levels off.",
        detail=True,
    ),
    Curve(
        title="Log-probability of chosen and rejected answers",
        unit="nats per answer",
        keys={
            "chosen_logprob": "chosen",
            "rejected_logprob": "rejected",
            "desirable_logprob": "liked",
            "undesirable_logprob": "disliked",
        },
        meaning="Healthy: the two part while the upper one stays near its start; where it sinks, "
        "the model unlearns the chosen answers with the rejected ones.",
        detail=True,
    ),
    Curve(
        title="Entropy",
        unit="nats per token",
        keys={"entropy": "entropy"},
        meaning="How undecided the policy is at a token. Healthy: it sinks slowly; near 0 the "
        "policy says one thing only, and there is nothing left to explore.",
    ),
    Curve(
        title="Clip fraction",
        unit="share of tokens",
        keys={"clip_fraction": "policy", "value_clip_fraction": "value"},
        meaning="Share of tokens whose ratio to the sampling policy left the clip range. "
        "Healthy: below about 0.2; above it, updates are too large.",
        detail=True,
    ),
    Curve(
        title="Explained variance of the value model",
        unit="share",
        keys={"explained_variance": "explained"},
        meaning="Share of the variance of returns that the value model foretells. Healthy: it "
        "rises towards 1; at 0 or below, advantages are noise.",
        detail=True,
    ),
    Curve(
        title="Losses of policy and value",
        unit="per token",
        keys={"policy_loss": "policy", "value_loss": "value"},
        meaning="Healthy: the value loss falls; the policy loss lies around 0 and says little.",
        detail=True,
    ),
    Curve(
        title="KL of one update",
        unit="nats per token",
        keys={"approx_kl": "update"},
        meaning="How far one update moves from the policy that sampled. Healthy: around 0.01; "
        "0.1 and more are steps into the dark.",
        detail=True,
    ),
    Curve(
        title="Disagreement of the ensemble",
        unit="normalized score",
        keys={"disagreement": "disagreement"},
        meaning="Spread of the reward models' scores. Healthy: as at the start; a rise says that "
        "the answers are unlike those the models were trained on.",
    ),
    Curve(
        title="Gradient norm",
        unit="before clipping",
        keys={"grad_norm": "policy", "value_grad_norm": "value"},
        meaning="Healthy: of one size throughout; spikes come before a run falls apart.",
        detail=True,
    ),
    Curve(
        title="Time of a step",
        unit="seconds",
        keys={
            "seconds_generate": "sampling",
            "seconds_score": "scoring",
            "seconds_train": "training",
        },
        meaning="Where the time goes. Healthy: level; sampling grows with the length of answers.",
        detail=True,
    ),
]


def curves(
    metrics: Sequence[dict[str, Any]], *, detail: bool | None = None, known: Sequence[Curve] = ()
) -> list[Figure]:
    """The figures that the rows of a metrics.jsonl allow.

    Args:
        metrics: The rows.
        detail: Only the curves that are, or are not, details; None = all of them.
        known: The curves to look for; none = those of training.
    """
    drawn = [
        _curve(curve, metrics)
        for curve in known or [SCORE, *CURVES]
        if detail in (None, curve.detail)
    ]
    if not known and detail is not True:
        drawn.insert(1, _by_reward(metrics))
    return [figure for figure in drawn if figure is not None]


def _by_reward(metrics: Sequence[dict[str, Any]]) -> Figure | None:
    """The mean score of each of several rewards: which of them does the policy climb?"""
    keys = dict.fromkeys(key for row in metrics for key in row if key.startswith("score_"))
    series = [(key[6:], points(key, metrics)) for key in keys if key != "score_raw"]
    found = [(name, of) for name, of in series if len(of) > 1]
    if not found:
        return None
    note = "A term that rises while the others fall is the one that the policy climbs."
    return lines("Score by reward", "weighted", found, note)


def _curve(curve: Curve, metrics: Sequence[dict[str, Any]]) -> Figure | None:
    series = [(name, points(key, metrics)) for key, name in curve.keys.items()]
    series = [(name, of) for name, of in series if len(of) > 1]
    if not series or not (curve.steady or any(len({y for _, y in of}) > 1 for _, of in series)):
        return None
    for key, name in curve.keys.items():
        if held_out := points(f"held_out_{key}", metrics):
            series.append(("held out" if len(curve.keys) == 1 else f"{name}, held out", held_out))
    return lines(curve.title, curve.unit, series, curve.meaning)


def lines(title: str, unit: str, series: Sequence[tuple[str, Points]], note: str = "") -> Figure:
    """Several series over the steps, what they say in words, and their numbers."""
    steps = sorted({step for _, of in series for step, _ in of})
    named = len(series) > 1 and series[1][0] != "held out"
    told = [
        f"{name} " * (named or i > 0) + f"from {of[0][1]:.3g} to {of[-1][1]:.3g}"
        for i, (name, of) in enumerate(series)
    ]
    by_step = [dict(of) for _, of in series]
    return Figure(
        title=title,
        description=f"{title} ({unit}) over steps {steps[0]} to {steps[-1]}: {'; '.join(told)}",
        plot={
            "data": [_line(name, of, i) for i, (name, of) in enumerate(series)],
            "layout": axes(x="step", y=unit, legend=len(series) > 1),
        },
        header=["step", *(name for name, _ in series)],
        rows=[
            [str(step), *(f"{of[step]:.4g}" if step in of else "" for of in by_step)]
            for step in thin(steps, _MAX_ROWS)
        ],
        note=note,
    )


def points(key: str, metrics: Sequence[dict[str, Any]]) -> Points:
    """(step, value) of the rows that have a finite number under this key."""
    rows = [(row.get("step", i), row.get(key)) for i, row in enumerate(metrics, start=1)]
    return [
        (step, float(value))
        for step, value in rows
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _line(name: str, of: Points, index: int) -> dict[str, Any]:
    shown = thin(of, _MAX_POINTS)
    return {
        "type": "scatter",
        "mode": "lines" if index == 0 or len(shown) > _MARKED else "lines+markers",
        "name": label(name),
        "x": [step for step, _ in shown],
        "y": [float(f"{value:.5g}") for _, value in shown],
        "line": {
            "color": COLOURS[(1 + index) % len(COLOURS)],
            "width": 2,
            "dash": _DASHES[index % len(_DASHES)],
        },
        "marker": {"size": 5},
    }
