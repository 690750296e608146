"""What the monitor of an online run saw: its curves, its best step, and its alarms with examples.

The monitor leaves monitor.jsonl (one row a look) and events.jsonl (one row an alarm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tether.evaluation.curves import Curve, Points, curves, points
from tether.evaluation.figures import COLOURS, Figure, axes
from tether.records import Text, read_text

DETECTORS = {
    "held_out": "held-out score did not keep up with the proxy",
    "kl": "KL above its limit",
    "length": "length jumped",
    "repetition": "repetition jumped",
    "variety": "variety fell",
    "template": "one template spread",
    "entropy": "entropy collapsed",
    "disagreement": "the reward models disagree more",
}
ACTIONS = {
    "warn": "warned",
    "raise": "raised β",
    "stop": "stopped the run",
    "rollback": "rolled back",
}
_EXAMPLES = 5  # texts shown of an alarm

LOOKS = [
    Curve(
        title="KL on the monitor's prompts",
        unit="nats per answer",
        keys={"kl": "KL"},
        meaning="Distance from the reference on prompts that are not trained on.",
    ),
    Curve(
        title="Length on the monitor's prompts",
        unit="tokens per answer",
        keys={"length": "length"},
        meaning="Healthy: about that of the first look.",
    ),
    Curve(
        title="Sameness",
        unit="share",
        keys={
            "repetition": "repetition within an answer",
            "template": "answers with the commonest opening",
            "distinct_2": "distinct pairs of words",
        },
        meaning="Healthy: level. Repetition and templates that rise, or distinct pairs that fall, "
        "mean that one pattern pays.",
    ),
    Curve(
        title="Entropy on the monitor's prompts",
        unit="nats per token",
        keys={"entropy": "entropy"},
        meaning="Healthy: it sinks slowly.",
        detail=True,
    ),
    Curve(
        title="Finished answers on the monitor's prompts",
        unit="share",
        keys={"finished": "finished"},
        meaning="Healthy: near 1.",
        detail=True,
    ),
    Curve(
        title="Disagreement on the monitor's prompts",
        unit="normalized score",
        keys={"disagreement": "disagreement"},
        meaning="Spread of the reward models of an ensemble. Healthy: level. Models of the same "
        "labelers err alike, so a level one proves nothing.",
        detail=True,
    ),
    Curve(
        title="Score against length",
        unit="correlation",
        keys={"score_length_correlation": "correlation"},
        meaning="Do longer answers score higher? Healthy: near what it was at the first look.",
        detail=True,
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One row of events.jsonl."""

    step: int
    title: str
    action: str
    text: str
    examples: list[tuple[Text, str, str]]
    """(prompt, completion, score in print)"""


def alarms(events: Sequence[dict[str, Any]]) -> list[Alarm]:
    """The alarms of a run in words; what a row lacks is left out."""
    return [
        Alarm(
            step=int(row.get("step", 0)),
            title=DETECTORS.get(str(row.get("alarm")), str(row.get("alarm", "alarm"))),
            action=ACTIONS.get(str(row.get("action")), str(row.get("action", ""))),
            text=str(row.get("text", "")),
            examples=[_example(each) for each in row.get("examples", [])[:_EXAMPLES]],
        )
        for row in events
    ]


def _example(row: dict[str, Any]) -> tuple[Text, str, str]:
    score = row.get("score")
    printed = f"{score:z.2f}" if isinstance(score, int | float) else ""
    return read_text(row.get("prompt", "")), str(row.get("completion", "")), printed


def monitor_figures(rows: Sequence[dict[str, Any]], events: Sequence[Alarm]) -> list[Figure]:
    """Proxy and audit over the steps with best step and alarms, then what else was watched."""
    both = _proxy_and_audit(rows, events)
    return ([] if both is None else [both]) + curves(rows, known=LOOKS)


def _proxy_and_audit(rows: Sequence[dict[str, Any]], events: Sequence[Alarm]) -> Figure | None:
    found = [(name, points(name, rows)) for name in ("proxy", "audit")]
    series = [(name, of) for name, of in found if of]
    if not series:
        return None
    best = [int(row["best_step"]) for row in rows if row.get("best_step") is not None]
    marks = [(best[-1], "best")] if best else []
    marks += [(each.step, "alarm") for each in events]
    told = [f"{name} from {of[0][1]:.3g} to {of[-1][1]:.3g}" for name, of in series]
    told += [f"{kind} at step {step}" for step, kind in marks]
    by_step = [dict(of) for _, of in series]
    steps = sorted({step for of in by_step for step in of})
    at = {each.step: f"{each.title}: {each.action}" for each in events}
    return Figure(
        title="What training climbs, and what an audit of it says",
        description=f"Over steps {steps[0]} to {steps[-1]}: {'; '.join(told)}",
        plot=_stacked(series, marks),
        header=["step", *(name for name, _ in series), "alarm"],
        rows=[
            [str(step), *(_printed(of, step) for of in by_step), at.get(step, "")] for step in steps
        ],
        note="On prompts that are not trained on. The proxy is the reward that training climbs; "
        "the audit is a judgment of current samples by somebody whom it was not learned from. "
        "Healthy: both rise. Where the proxy rises and the audit falls, the reward is hacked.",
    )


def _printed(of: dict[int, float], step: int) -> str:
    return f"{of[step]:.4g}" if step in of else ""


def _stacked(
    series: Sequence[tuple[str, Points]], marks: Sequence[tuple[int, str]]
) -> dict[str, Any]:
    """One plot above the other, since their units differ, with marks through both."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [step for step, _ in of],
            "y": [float(f"{value:.5g}") for _, value in of],
            "yaxis": "y" if i == 0 else "y2",
            "line": {"color": COLOURS[1 + i], "width": 2},
        }
        for i, (name, of) in enumerate(series)
    ]
    layout: dict[str, Any] = axes(x="step", y=series[0][0], legend=False) | {"height": 380}
    if len(series) > 1:
        layout["yaxis"] |= {"domain": [0.54, 1]}
        layout["yaxis2"] = layout["yaxis"] | {"domain": [0, 0.46], "title": {"text": series[1][0]}}
        layout["xaxis"] |= {"anchor": "y2"}
    layout["shapes"] = [_mark(step, kind) for step, kind in marks]
    layout["annotations"] = [_name(step, kind) for step, kind in marks]
    return {"data": data, "layout": layout}


def _mark(step: int, kind: str) -> dict[str, Any]:
    colour, dash = (COLOURS[3], "dash") if kind == "best" else (COLOURS[5], "dot")
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _name(step: int, kind: str) -> dict[str, Any]:
    place = {"x": step, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return place | {"text": kind}
