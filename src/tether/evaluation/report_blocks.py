"""Blocks of an evaluation as the report and the model card print them."""

from dataclasses import dataclass
from typing import Any

from tether.evaluation.block_table import cell_of, marked
from tether.evaluation.blocks import Block, Measure
from tether.evaluation.figures import COLOURS, SYMBOLS, Figure, arm, axes, label
from tether.evaluation.table import number
from tether.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One measure of one policy in print."""

    policy: str
    value: str
    interval: str
    difference: str
    reading: str
    """Better, worse or different where the difference is clear, else empty"""
    p: str


def by_measure(block: Block) -> list[tuple[str, list[Line]]]:
    """The lines of a block under the names of their measures, which say which way is better."""
    groups: dict[str, list[Line]] = {}
    for one in block.measures:
        way = {"high": " (high is better)", "low": " (low is better)", "": ""}[one.better]
        groups.setdefault(one.name + way, []).append(_line(one))
    return list(groups.items())


def _line(one: Measure) -> Line:
    value = cell_of(one)
    return Line(
        policy=one.policy,
        value=value.value,
        interval=value.interval,
        difference="" if one.difference is None else _difference(one.difference, one.unit),
        reading=_reading(one),
        p="" if one.p is None else ("< 0.001" if one.p < 0.001 else f"{one.p:.3f}"),
    )


def _difference(of: Interval, unit: str) -> str:
    if unit != "share":
        return str(number(of))
    points = Interval(*(100 * end for end in of))
    return f"{number(points, 1)} points"


def _reading(one: Measure) -> str:
    if one.difference is None or not marked(one):
        return ""
    if not one.better:
        return "different"
    return "better" if (one.difference.mean > 0) == (one.better == "high") else "worse"


def block_figure(block: Block) -> Figure | None:
    """The series of a block in one plot; None where it has none."""
    if not block.series:
        return None
    ends = [f"{of.name} from {of.y[0]:.3g} to {of.y[-1]:.3g}" for of in block.series if of.y]
    layout = axes(x=label(block.x), y=label(block.y), legend=len(block.series) > 1)
    return Figure(
        title=block.title,
        description=f"{block.y} over {block.x}: {'; '.join(ends)}",
        plot={
            "data": [_series(block, i) for i in range(len(block.series))],
            "layout": layout | {"height": 380, "hovermode": "closest"},
        },
        header=["series", block.x or "x", block.y or "y", "interval"],
        rows=[row for i in range(len(block.series)) for row in _rows(block, i)],
    )


def _series(block: Block, index: int) -> dict[str, Any]:
    of = block.series[index]
    drawn: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(of.name),
        "x": of.x,
        "y": of.y,
        "line": {"color": COLOURS[(index + 1) % len(COLOURS)], "width": 1.5},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
    }
    if of.low and of.high:
        drawn["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [arm(high - y) for high, y in zip(of.high, of.y, strict=True)],
            "arrayminus": [arm(y - low) for low, y in zip(of.low, of.y, strict=True)],
        }
    return drawn


def _rows(block: Block, index: int) -> list[list[str]]:
    of = block.series[index]
    ends = list(zip(of.low, of.high, strict=True)) or [None] * len(of.x)
    return [
        [of.name, f"{x:.4g}", f"{y:.4g}", f"[{end[0]:.4g}, {end[1]:.4g}]" if end else ""]
        for x, y, end in zip(of.x, of.y, ends, strict=True)
    ]
