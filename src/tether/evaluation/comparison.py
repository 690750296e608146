"""Several runs side by side: their verdicts, last evaluations, curves, and what the gain cost.

Runs of one recipe that differ by their seed alone are also told together, as means over seeds.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from tether.evaluation.curves import CURVES, SCORE, Points, lines, points
from tether.evaluation.figures import Figure
from tether.evaluation.report_stages import Evaluation, Run, flat
from tether.evaluation.summary import ALL, Comparison, Row, Summary
from tether.evaluation.table import Cell, number, percent
from tether.evaluation.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One run among several."""

    name: str
    run: Run
    evaluation: Evaluation | None
    """The last one"""

    @property
    def verdict(self) -> Verdict | None:
        """What its last evaluation says."""
        return self.evaluation.verdict if self.evaluation else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table by policy and run."""

    header: list[str]
    policies: list[tuple[str, list[tuple[str, list[Cell]]]]]
    """By policy: the runs that have it, and their cells"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """Runs of one recipe that differ by their seed."""

    names: list[str]
    baseline: str
    rows: list[list[str]]
    """Under SEEDS_HEADER"""


SEEDS_HEADER = ["policy", "score", "seeds", "mean", "sd", "lowest", "highest", "KL: mean", "KL: sd"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Everything that the page of several runs tells."""

    runs: list[Compared]
    results: Table
    costs: Table
    seeds: list[Seeds]
    curves: list[tuple[str, list[Figure]]]
    """By stage"""
    differing: list[list[str]]
    """Settings of the recipes that are not the same: name, then one value a run"""


def compare(runs: Sequence[Run]) -> Found:
    """Put runs side by side; each is named by its folder, or by its path where two are alike."""
    titles = [run.title for run in runs]
    names = [run.title if titles.count(run.title) == 1 else str(run.path) for run in runs]
    compared = [
        Compared(name=name, run=run, evaluation=run.evaluations[-1] if run.evaluations else None)
        for name, run in zip(names, runs, strict=True)
    ]
    return Found(
        runs=compared,
        results=_results(compared),
        costs=_costs(compared),
        seeds=[_seeds(group) for group in _same_but_seed(compared)],
        curves=_curves(compared),
        differing=_differing(compared),
    )


def _evaluated(runs: Sequence[Compared]) -> list[tuple[str, Evaluation]]:
    return [(each.name, each.evaluation) for each in runs if each.evaluation]


def _row(summary: Summary, policy: str) -> Row:
    return next(row for row in summary.rows_of(ALL) if row.policy == policy)


# --- tables ---------------------------------------------------------------------------------------


def _results(runs: Sequence[Compared]) -> Table:
    """The last evaluations: every column that one of them has."""
    evaluated = _evaluated(runs)
    titles = list(dict.fromkeys(c.title for _, each in evaluated for c in each.columns))

    def cells(evaluation: Evaluation, policy: str) -> list[Cell]:
        row = _row(evaluation.summary, policy)
        known = {column.title: column.cell(row) for column in evaluation.columns}
        return [known.get(title, Cell("")) for title in titles]

    return Table(
        header=titles,
        policies=[
            (policy, [(name, cells(of, policy)) for name, of in evaluated if _has(of, policy)])
            for policy in _policies(evaluated)
        ],
    )


def _costs(runs: Sequence[Compared]) -> Table:
    """What each policy gained over the baseline, and at what distance and cost."""
    evaluated = _evaluated(runs)

    def cells(evaluation: Evaluation, policy: str) -> list[Cell]:
        summary, row = evaluation.summary, _row(evaluation.summary, policy)
        gain = _against_baseline(summary, policy, summary.scorers[0])
        seconds = summary.cpu_seconds.get(policy)
        return [
            Cell("") if gain is None else number(gain.difference),
            number(row.kl, 2, signed=False),
            percent(evaluation.reached.get(policy)),
            Cell("" if seconds is None else f"{seconds:.0f}"),
        ]

    return Table(
        header=["gain over the baseline", "KL", "of the best reachable at its KL", "CPU s"],
        policies=[
            (policy, [(name, cells(of, policy)) for name, of in evaluated if _has(of, policy)])
            for policy in _policies(evaluated)
            if any(_has(of, policy) and policy != of.summary.baseline for _, of in evaluated)
        ],
    )


def _policies(evaluated: Sequence[tuple[str, Evaluation]]) -> list[str]:
    return list(dict.fromkeys(name for _, each in evaluated for name in each.summary.policies))


def _has(evaluation: Evaluation, policy: str) -> bool:
    return policy in evaluation.summary.policies


def _against_baseline(summary: Summary, policy: str, scorer: str) -> Comparison | None:
    wanted = (policy, summary.baseline, scorer, ALL)
    for each in summary.comparisons:
        if (each.policy, each.other, each.scorer, each.category) == wanted:
            return each
    return None


# --- seeds ----------------------------------------------------------------------------------------


def _same_but_seed(runs: Sequence[Compared]) -> list[list[Compared]]:
    """Groups of two runs and more whose recipes are the same without their seeds."""
    groups: list[tuple[dict[str, Any], list[Compared]]] = []
    for each in runs:
        recipe = _without_seeds(_recipe(each.run))
        if not recipe or each.evaluation is None:
            continue
        for known, members in groups:
            if known == recipe:
                members.append(each)
                break
        else:
            groups.append((recipe, [each]))
    return [members for _, members in groups if len(members) > 1]


def _recipe(run: Run) -> dict[str, Any]:
    try:
        return tomllib.loads(run.recipe)
    except tomllib.TOMLDecodeError:
        return {}


def _without_seeds(recipe: dict[str, Any]) -> dict[str, Any]:
    stages = recipe.get("stage", [])
    kept = [{k: v for k, v in stage.items() if k != "seed"} for stage in stages]
    return {k: v for k, v in recipe.items() if k != "seed"} | ({"stage": kept} if kept else {})


def _seeds(runs: Sequence[Compared]) -> Seeds:
    """Differences to the baseline, as means over the runs with their spread."""
    evaluated = _evaluated(runs)
    summaries = [each.summary for _, each in evaluated]
    first = summaries[0]
    rows: list[list[str]] = []
    for policy in first.policies:
        for scorer in first.scorers:
            against = [_against_baseline(each, policy, scorer) for each in summaries]
            gains = [each.difference.mean for each in against if each]
            kls = [row.kl.mean for each in summaries if (row := _row(each, policy)).kl]
            if len(gains) > 1:
                ends = [f"{min(gains):+.2f}", f"{max(gains):+.2f}"]
                rows.append(
                    [policy, scorer, str(len(gains)), *_spread(gains, "+"), *ends, *_spread(kls)]
                )
    return Seeds(names=[name for name, _ in evaluated], baseline=first.baseline, rows=rows)


def _spread(values: Sequence[float], sign: str = "") -> list[str]:
    if len(values) < 2:
        return ["", ""]
    return [format(fmean(values), f"{sign}.2f"), f"{stdev(values):.2f}"]


# --- curves and settings --------------------------------------------------------------------------


def _curves(runs: Sequence[Compared]) -> list[tuple[str, list[Figure]]]:
    """Every main curve of a stage that two runs have, one line a run."""
    by_stage: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}
    for each in runs:
        for stage in each.run.stages:
            if stage.metrics:
                by_stage.setdefault(stage.name, []).append((each.name, stage.metrics))
    drawn = [(name, _overlaid(of)) for name, of in by_stage.items() if len(of) > 1]
    return [(name, figures) for name, figures in drawn if figures]


def _overlaid(metrics: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Figure]:
    figures: list[Figure] = []
    for curve in [SCORE, *(curve for curve in CURVES if not curve.detail)]:
        key = next(iter(curve.keys))
        found: list[tuple[str, Points]] = [(name, points(key, rows)) for name, rows in metrics]
        series = [(name, of) for name, of in found if len(of) > 1]
        changes = any(len({value for _, value in of}) > 1 for _, of in series)
        if len(series) > 1 and (curve.steady or changes):
            figures.append(lines(curve.title, curve.unit, series, curve.meaning))
    return figures


def _differing(runs: Sequence[Compared]) -> list[list[str]]:
    """What the recipes do not have in common, by stage and setting."""
    tables = [dict(flat(_named_stages(_recipe(each.run)))) for each in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    values = [[name, *(table.get(name, "") for table in tables)] for name in names]
    return [row for row in values if len(set(row[1:])) > 1]


def _named_stages(recipe: dict[str, Any]) -> dict[str, Any]:
    stages = recipe.get("stage", [])
    named = {str(stage.get("name", stage.get("kind"))): stage for stage in stages}
    return {k: v for k, v in recipe.items() if k != "stage"} | named
