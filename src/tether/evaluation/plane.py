"""The plane of score against KL: what was reachable, what each policy reached, where gold turns.

The same as a figure of the report, as sentences, and as a table on the terminal.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tether.evaluation.figures import Figure, arm, axes, label
from tether.evaluation.overoptimization import (
    ENOUGH,
    NEAR,
    Frontier,
    Law,
    Measured,
    read_frontier,
)
from tether.evaluation.summary import Summary
from tether.evaluation.table import number, percent

_PROXY, _GOLD, _FAINT = "#3b7dd8", "#d9730d", "#9aa3ad"
_SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"]
_LAW_POINTS = 60


# --- in words -------------------------------------------------------------------------------------


def sentences(frontier: Frontier) -> list[str]:
    """What the frontier says of each policy and of each law."""
    return [
        *(efficiency_sentence(frontier, each) for each in frontier.policies),
        *(law_sentence(frontier, law) for law in frontier.laws),
    ]


def efficiency_sentence(frontier: Frontier, point: Measured) -> str:
    """How much of the best gain at its KL a policy reached."""
    proxy, nats = frontier.proxy, f"{point.kl.mean:.2g} nats"
    if point.efficiency is not None:
        reached = f"{point.name} reached {percent(point.efficiency)}"
        return f"{reached} of the best {proxy} gain reachable at its KL of {nats}"
    if point.kl.mean < NEAR:
        return f"{point.name} has not left the reference: there is nothing to reach"
    return (
        f"{point.name} is {nats} from the reference, beyond what the pool can tell: "
        f"fewer than {ENOUGH:.0f} effective samples a prompt"
    )


def law_sentence(frontier: Frontier, law: Law) -> str:
    """Where the gold score turns, or that it does not."""
    if law.turned and law.peak is not None:
        where = _peak_of(law)
        nats = f"{law.peak.mean**2:.2g} nats"
        sure = law.peak.high <= law.farthest  # False for an open end, too
        after = "then falls" if sure else "though the interval reaches beyond what was measured"
        return f"{law.policy}: {frontier.gold} is highest at √KL = {where} (KL {nats}), {after}"
    reach = f"up to √KL = {law.farthest:.2f}"
    return f"{law.policy}: the law of {frontier.gold} has no peak within what was measured, {reach}"


def _peak_of(law: Law) -> str:
    """The peak in √KL; its interval is open where a share of the resamples has none."""
    if law.peak is None:
        return ""
    value, low, high = law.peak
    ends = f"[{low:.2f}, {high:.2f}]" if math.isfinite(high) else f"[{low:.2f}, ∞)"
    return f"{value:.2f} {ends}"


# --- on the terminal ------------------------------------------------------------------------------


def print_efficiency(folder: Path, console: Console) -> None:
    """Print what of the reachable each policy reached; nothing where there is no frontier."""
    frontier = read_frontier(folder)
    if frontier is None:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column(Text("policy"), style="bold")
    for title in _HEADER[1:]:
        table.add_column(Text(_titled(title, frontier)), justify="right", no_wrap=True)
    for point in frontier.policies:
        table.add_row(*(Text(cell) for cell in _cells(frontier, point, brief=True)))
    console.print(table, Text())
    told = (
        f"{frontier.num_prompts} prompts with {frontier.num_samples} samples of the reference; "
        "efficiency = gain / best gain at the same KL [95% interval over prompts]; stated from "
        f"{ENOUGH:.0f} effective samples a prompt on"
    )
    console.print(Text(told, style="dim"))
    for law in frontier.laws:
        console.print(Text(f"- {law_sentence(frontier, law)}"))


_HEADER = ["policy", "KL", "{proxy} gain", "best", "efficiency", "samples", "from"]
_FROM = {"pool": "the pool", "mixture": "pool and own", "": "too few"}


def _titled(title: str, frontier: Frontier) -> str:
    return title.format(proxy=frontier.proxy)


def _cells(frontier: Frontier, point: Measured, *, brief: bool = False) -> list[str]:
    """A row of the table; on the terminal only the efficiency has room for its interval."""
    nats, gain = number(point.kl, 2, signed=False), number(point.gains[frontier.proxy])
    near = point.efficiency is None and point.kl.mean < NEAR
    return [
        point.name,
        ("≤ " if point.kl_by == "bound" else "") + (nats.value if brief else str(nats)),
        gain.value if brief else str(gain),
        "" if point.best is None else f"{point.best:+.2f}",
        str(percent(point.efficiency)),
        "" if point.ess is None else f"{point.ess:.3g}",
        "" if near else _FROM[point.by],
    ]


# --- figures --------------------------------------------------------------------------------------


def plane(folder: Path, summary: Summary) -> list[Figure]:
    """The figures of an evaluation's frontier; none where it was made without a pool.

    Args:
        folder: Of the evaluation.
        summary: Of the same evaluation: its policies keep their order and symbols.
    """
    frontier = read_frontier(folder)
    if frontier is None:
        return []
    figures = [_reachable(frontier, summary), _efficiencies(frontier)]
    if frontier.laws:
        figures.append(_laws(frontier, summary))
    return figures


def _reachable(frontier: Frontier, summary: Summary) -> Figure:
    """Gain of the proxy and of gold over KL: the best reachable, best of n, and what there is."""
    sides = [(frontier.proxy, _PROXY)] + [(frontier.gold, _GOLD)] * bool(frontier.gold)
    traces: list[dict[str, Any]] = []
    for scorer, colour in sides:
        traces += _tilted_lines(frontier, scorer, colour)
        x = [each.kl for each in frontier.chosen]
        y = [each.scores[scorer] - frontier.start[scorer] for each in frontier.chosen]
        names = [f"best of {each.n}" for each in frontier.chosen]
        dash = {"color": colour, "width": 1, "dash": "dot"}
        traces.append(_line(f"best of n: {scorer}", x, y, dash, names))
        bounds = [each.bound for each in frontier.chosen]
        faint = {"color": _FAINT, "width": 1, "dash": "dot"}
        traces.append(_line(f"best of n by its bound: {scorer}", bounds, y, faint, names))
        traces += _dots(frontier, summary, scorer, colour)
    shape = axes(x="KL to the reference, nats per answer", y="gain over the reference", legend=True)
    cap = {"type": "line", "x0": frontier.cap, "x1": frontier.cap, "y0": 0, "y1": 1}
    shape |= {
        "height": 520,
        "hovermode": "closest",
        "shapes": [{**cap, "yref": "paper", "line": {"color": _FAINT, "dash": "dash"}}],
    }
    told = [efficiency_sentence(frontier, each) for each in frontier.policies]
    return Figure(
        title="What was reachable, and what was reached",
        description=(
            f"Gain of {' and '.join(name for name, _ in sides)} over the reference against KL: the "
            f"best that the pool shows reachable (grey where fewer than {ENOUGH:.0f} of its "
            "samples carry it), best of n, and every measured model with its 95% interval. The "
            f"dashed line at {frontier.cap:.1f} nats is the log of {frontier.num_samples} samples, "
            f"beyond which the pool shows nothing. {'; '.join(told)}."
        ),
        plot={"data": traces, "layout": shape},
        header=["what", "KL", "effective samples", *(f"{name} gain" for name, _ in sides)],
        rows=_reachable_rows(frontier, [name for name, _ in sides]),
    )


def _tilted_lines(frontier: Frontier, scorer: str, colour: str) -> list[dict[str, Any]]:
    """The frontier, and grey its part that too few samples carry."""
    points = [(e.kl, e.scores[scorer] - frontier.start[scorer], e.ess) for e in frontier.tilted]
    sure = [each for each in points if each[2] >= ENOUGH]
    rest = [*sure[-1:], *(each for each in points if each[2] < ENOUGH)]
    title = "best reachable" if scorer == frontier.proxy else "of the same policies"
    known = {"color": colour, "width": 2.5}
    grey = {"color": _FAINT, "width": 1.5, "dash": "dash"}
    return [
        _line(f"{title}: {scorer}", [x for x, *_ in sure], [y for _, y, _ in sure], known),
        _line(
            f"{title}, too few samples: {scorer}",
            [x for x, *_ in rest],
            [y for _, y, _ in rest],
            grey,
        ),
    ]


def _line(
    name: str, x: list[float], y: list[float], line: dict[str, Any], text: Sequence[str] = ()
) -> dict[str, Any]:
    mode = "lines+markers" if text else "lines"
    trace = {"type": "scatter", "mode": mode, "name": label(name), "x": x, "y": y, "line": line}
    return trace | ({"text": list(text), "marker": {"size": 4}} if text else {})


def _dots(
    frontier: Frontier, summary: Summary, scorer: str, colour: str, root: bool = False
) -> list[dict[str, Any]]:
    """Every policy with the models along its run, with intervals in both directions."""
    scale: Callable[[float], float] = (lambda x: math.sqrt(max(x, 0.0))) if root else float
    traces: list[dict[str, Any]] = []
    for i, policy in enumerate(summary.policies):
        own = [each for each in frontier.measured if each.policy == policy]
        gains = [each.gains[scorer] for each in own]
        ends = [[scale(end) for end in each.kl] for each in own]
        trace = _line(
            f"{policy}: {scorer}",
            [mean for mean, *_ in ends],
            [each.mean for each in gains],
            {"color": colour, "width": 0.7},
            [label(each.name) for each in own],
        )
        trace["marker"] = {"size": 8, "symbol": _SYMBOLS[i % len(_SYMBOLS)], "color": colour}
        trace["error_x"] = _arms([tuple(each) for each in ends])
        trace["error_y"] = _arms([tuple(each) for each in gains])
        traces.append(trace)
    return traces


def _arms(ends: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Error bars of (mean, low, high); none where an end is not known."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "array": [arm(high - mean) for mean, _, high in ends],
        "arrayminus": [arm(mean - low) for mean, low, _ in ends],
    }


def _reachable_rows(frontier: Frontier, scorers: list[str]) -> list[list[str]]:
    def gains(scores: dict[str, float]) -> list[str]:
        return [f"{scores[name] - frontier.start[name]:+.3f}" for name in scorers]

    rows = [
        [f"tilt, β = {each.beta:.3g}", f"{each.kl:.2f}", f"{each.ess:.1f}", *gains(each.scores)]
        for each in frontier.tilted
    ]
    rows += [
        [
            f"best of {each.n} (bound {each.bound:.2f})",
            f"{each.kl:.2f}",
            f"{each.ess:.1f}",
            *gains(each.scores),
        ]
        for each in frontier.chosen
    ]
    for each in frontier.measured:
        ess = "" if each.ess is None else f"{each.ess:.1f}"
        cells = [str(number(each.gains[name])) for name in scorers]
        rows.append([each.name, str(number(each.kl, 2, signed=False)), ess, *cells])
    return rows


def _efficiencies(frontier: Frontier) -> Figure:
    """The efficiency of every policy for which it is known, with its interval."""
    known = [each for each in frontier.policies if each.efficiency is not None]
    shares = [each.efficiency for each in known if each.efficiency is not None]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "efficiency",
        "x": [100 * share.mean for share in shares],
        "y": [label(each.name) for each in known],
        "marker": {"size": 9, "color": _PROXY},
        "error_x": _arms([tuple(100 * end for end in share) for share in shares]),
    }
    shape = axes(x=f"% of the best {frontier.proxy} gain at the same KL", y="", legend=False)
    shape |= {"height": 120 + 26 * len(known), "hovermode": "closest"}
    return Figure(
        title="Efficiency",
        description=(
            f"Share of the best {frontier.proxy} gain reachable at its KL that each policy "
            "reached, with its 95% interval over prompts"
        ),
        plot={"data": [trace], "layout": shape},
        header=[_titled(title, frontier) for title in _HEADER],
        rows=[_cells(frontier, each) for each in frontier.policies],
    )


def _laws(frontier: Frontier, summary: Summary) -> Figure:
    """Gold over √KL with the fitted laws and their peaks."""
    traces = _dots(frontier, summary, frontier.gold, _GOLD, root=True)
    points = [each for each in frontier.chosen if each.ess >= ENOUGH]
    traces.append(
        _line(
            f"best of n: {frontier.gold}",
            [math.sqrt(each.kl) for each in points],
            [each.scores[frontier.gold] - frontier.start[frontier.gold] for each in points],
            {"color": _PROXY, "width": 0.7},
            [f"best of {each.n}" for each in points],
        )
    )
    for law in frontier.laws:
        d = [law.farthest * i / _LAW_POINTS for i in range(_LAW_POINTS + 1)]
        line = {"width": 2, "dash": "solid" if law.turned else "dash"}
        traces.append(_line(f"law: {law.policy}", d, [law.gold(x) for x in d], line))
        if law.turned and law.peak is not None:
            peak = {"x": [law.peak.mean], "y": [law.gold(law.peak.mean)], "mode": "markers"}
            arms = _arms([tuple(law.peak)])
            marker = {"size": 12, "symbol": "star", "color": _GOLD}
            name = label(f"peak: {law.policy}")
            traces.append(
                {"type": "scatter", "name": name, **peak, "error_x": arms, "marker": marker}
            )
    shape = axes(
        x="√KL to the reference", y=f"{frontier.gold} gain over the reference", legend=True
    )
    told = "; ".join(law_sentence(frontier, law) for law in frontier.laws)
    return Figure(
        title="Where the score turns",
        description=(
            f"Gain of {frontier.gold} against √KL with the laws of over-optimization, "
            f"d (α - β log d) for a run and d (α - β d) for best of n. {told}."
        ),
        plot={"data": traces, "layout": shape | {"height": 480, "hovermode": "closest"}},
        header=["law of", "form", "α", "β", "residual", "points", "peak √KL", "what it says"],
        rows=[_law_row(frontier, law) for law in frontier.laws],
    )


def _law_row(frontier: Frontier, law: Law) -> list[str]:
    form = "d (α - β log d)" if law.form == "rl" else "d (α - β d)"
    fitted = [f"{value:.3f}" for value in (law.alpha, law.beta, law.residual)]
    return [law.policy, form, *fitted, str(law.points), _peak_of(law), law_sentence(frontier, law)]
