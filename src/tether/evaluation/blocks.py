"""Blocks of an evaluation: toxicity, variety, refusals, alignment tax, … as tables of measures.

Every block says the same things of every policy, so that the terminal, the report and the model
card show any of them alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from scipy import stats

from tether.errors import DataError
from tether.evaluation.plain import plain, with_intervals
from tether.rundir import write_json
from tether.statistics import Interval, cluster_bootstrap, holm, paired_difference

FILE = "blocks.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One figure of one policy (or reward model), with its difference to the baseline."""

    name: str
    policy: str
    value: Interval
    better: Literal["high", "low", ""] = ""
    """Which way is better; "" = neither by itself"""
    unit: Literal["", "share"] = ""
    """"share" is printed in percent"""
    difference: Interval | None = None
    """To the baseline on the same prompts; None for the baseline itself, or where there is none"""
    p: float | None = None
    """Of no difference; paired t-test over prompts, adjusted by Holm over the whole evaluation"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points to draw: y over x, where known with the ends of their intervals."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list[float])
    high: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What one part of an evaluation found."""

    title: str
    meaning: str
    """One or two sentences: what is measured, how, and what is healthy"""
    baseline: str
    """Policy of the differences; "" = none"""
    measures: list[Measure]
    note: str = ""
    """What limits it: few prompts, a crude detector"""
    series: list[Series] = field(default_factory=list[Series])
    x: str = ""
    """Title of the series' x axis, with its unit"""
    y: str = ""
    """Title of the series' y axis, with its unit"""
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Texts to look at: rows of strings, all with the same keys"""

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Block":
        """Read what `write_blocks` wrote.

        Raises:
            DataError: A field is missing or unknown.
        """
        try:
            measures = [Measure(**with_intervals(each)) for each in row["measures"]]
            series = [Series(**each) for each in row.get("series", [])]
            return cls(**{**row, "measures": measures, "series": series})
        except (KeyError, TypeError) as error:
            raise DataError(f"not a block of an evaluation ({error}); evaluate again") from None


def measure(
    name: str,
    policy: str,
    values: Shaped[np.ndarray, "P *N"],
    baseline: Shaped[np.ndarray, "Q *M"] | None = None,
    *,
    better: Literal["high", "low", ""] = "",
    unit: Literal["", "share"] = "",
    seed: int = 0,
) -> Measure:
    """The mean of a policy's values by prompt, and its paired difference to the baseline's.

    Args:
        name: What is measured.
        policy: Whose values they are.
        values: One or more for each prompt.
        baseline: The baseline's on the same prompts; None = this is the baseline.
        better: Which way is better.
        unit: "share" for shares.
        seed: Of the bootstrap over prompts.
    """
    value = cluster_bootstrap(values, seed=seed)
    if baseline is None:
        return Measure(name=name, policy=policy, value=value, better=better, unit=unit)
    return Measure(
        name=name,
        policy=policy,
        value=value,
        better=better,
        unit=unit,
        difference=paired_difference(values, baseline, seed=seed),
        p=paired_p(values, baseline),
    )


def measures(
    name: str,
    values: Mapping[str, Shaped[np.ndarray, "P *N"]],
    baseline: str,
    *,
    better: Literal["high", "low", ""] = "",
    unit: Literal["", "share"] = "",
    seed: int = 0,
) -> list[Measure]:
    """`measure` of every policy, each against the baseline's values where it has some."""
    rival = values.get(baseline)
    return [
        measure(
            name,
            policy,
            each,
            None if policy == baseline else rival,
            better=better,
            unit=unit,
            seed=seed,
        )
        for policy, each in values.items()
    ]


def paired_p(a: Shaped[np.ndarray, "P *N"], b: Shaped[np.ndarray, "Q *M"]) -> float:
    """Two-sided p of equal means: paired t-test over the prompts' means; 1 where all are equal."""
    gaps = a.reshape(len(a), -1).mean(axis=1) - b.reshape(len(b), -1).mean(axis=1)
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return 1.0 if not gaps.any() or len(gaps) < 2 else 0.0
    return float(np.asarray(stats.ttest_1samp(gaps, 0.0))[1])


def adjusted(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks with every p adjusted by Holm over all of them."""
    known = [each.p for block in blocks for each in block.measures if each.p is not None]
    left = iter(holm(known))
    return [
        replace(
            block,
            measures=[m if m.p is None else replace(m, p=next(left)) for m in block.measures],
        )
        for block in blocks
    ]


def write_blocks(folder: Path, blocks: Sequence[Block]) -> None:
    """Write `blocks.json` into a stage's folder."""
    write_json(folder / FILE, [plain(block) for block in blocks])


def read_blocks(folder: Path) -> list[Block]:
    """The blocks of a stage's folder; none where there is no such file.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [Block.from_dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, DataError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from None
