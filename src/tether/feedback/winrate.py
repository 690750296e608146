"""Win-rates between models by people who saw only their texts."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tether.errors import DataError
from tether.feedback.judgments import Item, Judgment
from tether.feedback.store import Store
from tether.statistics import Interval, cluster_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """How often one source's completion was preferred to the other's of the same prompt."""

    source: str
    other: str
    rate: Interval
    """Share of comparisons that `source` won, a tie being half; interval over prompts"""
    ties: float
    """Share of ties"""
    comparisons: int
    prompts: int
    labelers: int


def win_rates(items: Mapping[str, Item], judgments: Iterable[Judgment]) -> list[WinRate]:
    """Every source against every other one that it was compared with, in both directions.

    A ranking compares every two completions in it; a fail is below everything else, two fails tie.
    Control items and repeated judgments are left out. A text that several sources wrote stands for
    each of them against other texts, never against itself.
    A judgment counts the same wherever it was made, and prompts are drawn anew with all of theirs:
    the intervals speak of other prompts, not of other labelers.

    Args:
        items: By their keys.
        judgments: Rankings or pairs.
    """
    found: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for judgment in judgments:
        item = items[judgment.item]
        if judgment.repeat or item.gold is not None:
            continue
        prompt = json.dumps(item.prompt, sort_keys=True)
        wrote = [set(filter(None, source.split(", "))) for source in item.sources]
        for i, j in permutations(range(len(wrote)), 2):
            won = _won(judgment.ranks[i], judgment.ranks[j])
            for pair in ((a, b) for a in wrote[i] for b in wrote[j] if a != b):
                found.setdefault(pair, []).append((won, prompt, judgment.labeler))
    return [_rate(*pair, found[pair]) for pair in sorted(found)]


def _won(rank: float | None, other: float | None) -> float:
    """1 for a win, ½ for a tie; None is a fail."""
    if rank == other:
        return 0.5
    return float(other is None or (rank is not None and rank < other))


def _rate(source: str, other: str, told: list[tuple[float, str, str]]) -> WinRate:
    wins, prompts, labelers = zip(*told, strict=True)
    return WinRate(
        source=source,
        other=other,
        rate=cluster_mean(np.array(wins, dtype=np.float64), list(prompts)),
        ties=wins.count(0.5) / len(wins),
        comparisons=len(wins),
        prompts=len(set(prompts)),
        labelers=len(set(labelers)),
    )


def project_win_rates(store: Store) -> list[WinRate]:
    """The win-rates of a project.

    Raises:
        DataError: It has thumbs, which compare nothing; or nobody compared two named sources.
    """
    if store.project.mode == "thumbs":
        raise DataError(
            f"{store.path}: thumbs up and down compare nothing; make a project of mode = "
            '"pair" or "rank"'
        )
    found = win_rates(store.items(), store.judgments())
    if not found:
        raise DataError(
            f"{store.path}: nobody has compared completions of two named models yet; import "
            "rows with a `model` (or the samples.jsonl of an evaluation) and label them"
        )
    return found


def print_win_rates(found: Iterable[WinRate], console: Console) -> None:
    """Print a table: every two sources once."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("preferred")
    table.add_column("to")
    for name in ("wins", "ties", "comparisons", "prompts", "labelers"):
        table.add_column(name, justify="right")
    for each in found:
        if each.source < each.other:
            counts = (each.comparisons, each.prompts, each.labelers)
            cells = [each.source, each.other, _percent(each.rate), f"{each.ties:.0%}"]
            table.add_row(*(Text(str(cell)) for cell in (*cells, *counts)))
    console.print(table)
    told = "a tie is half a win; [95% interval over prompts: it says nothing of other labelers]"
    console.print(Text(told, style="dim"))


def _percent(rate: Interval) -> str:
    ends = f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]" if rate.low == rate.low else ""
    return f"{rate.mean:.0%}{ends}"
