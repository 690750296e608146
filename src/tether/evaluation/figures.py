"""The plots of a report, as plain plotly specifications, each with the table of its numbers.

Colours of text and grid are left to the page's style sheet, which knows light, dark and print.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tether.evaluation.summary import ALL, Row, Summary
from tether.evaluation.table import number
from tether.statistics import Interval

Item = TypeVar("Item")

# Readable on white and on near-black, and told apart without colour vision by their symbols.
COLOURS = ["#7d8899", "#3b7dd8", "#d9730d", "#2a9d6f", "#9a6fd6", "#c8506e", "#8a7a1f"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"]
_GROUPED = {"scattermode": "group", "scattergap": 0.4, "hovermode": "closest"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A plot, what it says in words, and the numbers behind it."""

    title: str
    description: str
    plot: dict[str, Any]
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    """What is shown and what is healthy"""


def by_category(summary: Summary) -> Figure | None:
    """The first score of every policy on every category of prompts, with intervals."""
    scorer, categories = summary.scorers[0], summary.categories()
    if not categories:
        return None
    traces = []
    for i, policy in enumerate(summary.policies):
        rows = {row.category: row for row in summary.rows if row.policy == policy}
        scores = [rows[category].scores[scorer] for category in categories]
        traces.append(_dots(policy, categories, scores, i))
    layout = axes(x="", y=f"mean {label(scorer)} score", legend=True)
    names = [*categories, ALL]
    return Figure(
        title=f"{scorer} by category",
        description=f"Mean {scorer} score of each policy on each category of prompts, "
        "with its 95% interval",
        plot={"data": traces, "layout": layout | _GROUPED},
        header=["category", "prompts", *summary.policies],
        rows=[_category_row(name, summary.rows_of(name), scorer) for name in names],
    )


def by_distance(summary: Summary) -> Figure | None:
    """The first score against the KL to the reference, one line a policy from the baseline on.

    The models that a run kept are the points of its line, the policy itself its end.
    """
    scorer = summary.scorers[0]
    rows = {row.policy: row for row in summary.rows_of(ALL) if row.kl}
    start = rows.get(summary.baseline)
    if not summary.kept or start is None:
        return None
    traces, table = [], []
    for i, (policy, row) in enumerate(rows.items()):
        kept = [each for each in summary.kept if each.policy == policy and each.kl]
        points = [(f"step {each.step}", each.kl, each.scores[scorer]) for each in kept]
        points.append(("end", row.kl, row.scores[scorer]))
        if kept:
            points.insert(0, (summary.baseline, start.kl, start.scores[scorer]))
        traces.append(_path(policy, points, i))
        table += [
            [policy, name, *(str(number(each, 2, signed=False)) for each in (kl, score))]
            for name, kl, score in points
        ]
    layout = axes(
        x="KL to the reference, nats per answer", y=f"mean {label(scorer)} score", legend=True
    )
    return Figure(
        title=f"{scorer} against distance from the reference",
        description=f"Mean {scorer} score over the KL to the reference as training went on, "
        f"from {summary.baseline} to each policy, with 95% intervals",
        plot={"data": traces, "layout": layout | {"height": 460, "hovermode": "closest"}},
        header=["policy", "model", "KL", scorer],
        rows=table,
    )


def _path(
    name: str, points: list[tuple[str, Interval | None, Interval]], index: int
) -> dict[str, Any]:
    drawn = _dots(name, [], [score for _, _, score in points], index)
    return drawn | {
        "mode": "lines+markers",
        "x": [kl.mean for _, kl, _ in points if kl],
        "text": [label(model) for model, _, _ in points],
        "line": {"color": drawn["marker"]["color"], "width": 1.5},
        "marker": drawn["marker"] | {"size": 7},
    }


def _category_row(category: str, rows: list[Row], scorer: str) -> list[str]:
    cells = [str(number(row.scores[scorer], signed=False)) for row in rows]
    return [category, str(rows[0].num_prompts), *cells]


def _dots(name: str, categories: list[str], scores: list[Interval], index: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [label(category) for category in categories],
        "y": [score.mean for score in scores],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [arm(score.high - score.mean) for score in scores],
            "arrayminus": [arm(score.mean - score.low) for score in scores],
        },
        "marker": {
            "color": COLOURS[index % len(COLOURS)],
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "size": 9,
        },
    }


def arm(length: float) -> float:
    """The length of an error bar; 0 where it is not known."""
    return length if math.isfinite(length) else 0.0


def axes(*, x: str, y: str, legend: bool) -> dict[str, Any]:
    """The layout of a plot with these titles on its axes."""
    return {
        "height": 300,
        "margin": {"l": 52, "r": 12, "t": 12, "b": 44 if x else 30},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hovermode": "x unified",
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "xaxis": {"title": {"text": x}, "zeroline": False, "fixedrange": True, "automargin": True},
        "yaxis": {"title": {"text": y}, "zeroline": False, "fixedrange": True, "automargin": True},
    }


def label(text: str) -> str:
    """A name as plotly shows it: plotly reads tags in labels, and a name is not a tag."""
    return html.escape(text, quote=False)


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """At most about `most` items at equal distances, the last one included."""
    stride = math.ceil(len(items) / most)
    kept = list(items[::stride])
    return kept if (len(items) - 1) % stride == 0 else [*kept, items[-1]]
