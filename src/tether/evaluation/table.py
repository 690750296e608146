"""The figures of an evaluation as columns and sentences, and on the terminal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tether.errors import DataError
from tether.evaluation.summary import ALL, Comparison, Row, Summary
from tether.statistics import Interval

SURE = 0.05  # an adjusted p below it excludes chance


class Cell(NamedTuple):
    """A figure in print: "0.98" and "[0.82, 1.14]"; `interval` is "" where there is none."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


class Column(NamedTuple):
    """One column: its title, what it means, and the cell of a row."""

    title: str
    meaning: str
    cell: Callable[[Row], Cell]
    of_text: bool = False
    """True for what describes the texts (length, variety) rather than their quality"""


def columns(summary: Summary) -> list[Column]:
    """The columns that the summary has figures for, scores first."""
    first, rows = summary.scorers[0], summary.rows
    chosen = [_score_column(name, rows) for name in summary.scorers]
    if any(row.kl for row in rows):
        meaning = "distance from the reference, in nats per answer (KL divergence)"
        chosen.append(Column("KL", meaning, lambda row: number(row.kl, 2, signed=False)))
    if any(row.win_rate for row in rows):
        meaning = (
            f"share of answers with a higher {first} score than an answer of {summary.baseline} "
            "to the same prompt; a tie is half a win"
        )
        chosen.append(
            Column(f"wins vs {summary.baseline}", meaning, lambda row: percent(row.win_rate))
        )
        meaning = "length-controlled wins: the same, were the answers of both equally long"
        even = Column("LC", meaning, lambda row: percent(row.even_win_rate))
        chosen += [even] if any(row.even_win_rate for row in rows) else []
    chosen += _TEXT_COLUMNS
    if summary.cpu_seconds:
        seconds = summary.cpu_seconds
        meaning = "CPU seconds of the stage that made the policy, not of those before it"
        chosen.append(Column("CPU s", meaning, lambda row: _seconds(seconds.get(row.policy)), True))
    if any(row.reference_perplexity is not None for row in rows):
        meaning = "how surprising the answers are to the reference model; 1 = not at all"
        chosen.append(Column("perplexity", meaning, _perplexity, of_text=True))
    return chosen


def _score_column(scorer: str, rows: list[Row]) -> Column:
    decimals = max(_decimals(row.scores[scorer]) for row in rows if row.category == ALL)
    meaning = f"mean {scorer} score of the answers"
    return Column(scorer, meaning, lambda row: number(row.scores[scorer], decimals, signed=False))


_TEXT_COLUMNS = [
    Column("length", "mean tokens of an answer", lambda row: Cell(f"{row.length:.1f}"), True),
    Column(
        "finished",
        "share of answers that end by themselves rather than at the length limit",
        lambda row: Cell(f"{row.finished:.0%}"),
        True,
    ),
    Column(
        "distinct-2",
        "distinct pairs of words as a share of all pairs over all answers; low = all alike",
        lambda row: Cell(f"{row.distinct_2:.3f}"),
        True,
    ),
    Column(
        "repetition",
        "share of three-word sequences that repeat an earlier one of the same answer",
        lambda row: Cell(f"{row.repetition:.1%}"),
        True,
    ),
]


def _seconds(seconds: float | None) -> Cell:
    return Cell("" if seconds is None else f"{seconds:.0f}")


def _perplexity(row: Row) -> Cell:
    value = row.reference_perplexity
    return Cell("" if value is None else f"{value:.2f}")


# --- figures in print -----------------------------------------------------------------------------


def number(interval: Interval | None, decimals: int | None = None, *, signed: bool = True) -> Cell:
    """A number and its interval, with as many decimals as the interval deserves."""
    if interval is None:
        return Cell("")
    decimals = _decimals(interval) if decimals is None else decimals
    form = f"{'+' if signed else ''}z.{decimals}f"  # z: no "-0.00"
    value, low, high = (format(end, form) for end in interval)
    return Cell(value, f"[{low}, {high}]" if math.isfinite(interval.low) else "")


def percent(interval: Interval | None) -> Cell:
    """A share and its interval, in percent."""
    if interval is None:
        return Cell("")
    ends = f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
    return Cell(f"{interval.mean:.0%}", ends if math.isfinite(interval.low) else "")


def sentence(comparison: Comparison) -> str:
    """A comparison in words, with what its interval and its adjusted p allow to say."""
    difference, wins = comparison.difference, percent(comparison.win_rate)
    sides = f"{comparison.policy} against {comparison.other}"
    told = f"{comparison.scorer} {number(difference)}{_reading(difference, comparison.p)}"
    even = percent(comparison.even_win_rate)
    return f"{sides}: {told}, wins {wins}{f', at equal length {even}' if even.value else ''}"


def _reading(interval: Interval, p: float | None) -> str:
    if math.isnan(interval.low):
        return " (one prompt: no interval)"
    if not interval.excludes_zero:
        return " (includes 0: no clear difference)"
    if p is not None and p >= SURE:
        return f" (excludes 0, but not once all comparisons are counted: p = {p:.2f})"
    return " (excludes 0)"


def _decimals(interval: Interval) -> int:
    """Two for intervals of ordinary width; more for narrower, fewer for wider ones."""
    width = interval.high - interval.low
    if not width > 0:
        return 2
    fewest = 2 - (width > 4) - (width > 40)
    return min(6, max(fewest, math.ceil(-math.log10(width / 4))))


# --- on the terminal ------------------------------------------------------------------------------


def read_summary(folder: Path) -> Summary:
    """The summary that an evaluate stage left in its folder.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = folder / "summary.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from None
    try:
        return Summary.from_dict(row)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def print_table(summary: Summary, console: Console) -> None:
    """Print one row a policy, then the comparisons on the first score as sentences.

    Where the console is too narrow for one table, the columns that describe the texts become a
    second one.
    """
    all_columns = columns(summary)
    tables = [_table(summary, all_columns)]
    unbounded = console.options.update(width=10_000)
    if Measurement.get(console, unbounded, tables[0]).maximum > console.width:
        quality = [column for column in all_columns if not column.of_text]
        texts = [column for column in all_columns if column.of_text]
        tables = [_table(summary, quality), _table(summary, texts)]
    for table in tables:
        console.print(table, Text())
    num_prompts = summary.rows_of(ALL)[0].num_prompts
    console.print(Text(f"{num_prompts} prompts; [95% interval over prompts]", style="dim"))
    console.print(_sentences(summary))


def _sentences(summary: Summary) -> Table:
    lines = Table.grid(padding=(0, 1))
    for comparison in summary.comparisons:
        if comparison.scorer == summary.scorers[0]:
            where = "" if comparison.category == ALL else f"{comparison.category}: "
            lines.add_row("-", Text(where + sentence(comparison)))
    return lines


def _table(summary: Summary, chosen: list[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column(Text("policy"), style="bold")
    for column in chosen:
        table.add_column(Text(column.title), justify="right", no_wrap=True)
    for row in summary.rows_of(ALL):
        table.add_row(*_printed(row, chosen, summary.scorers[0]))
    for category in summary.apart:
        table.add_section()
        table.add_row(Text(f"{category} (apart)", style="italic not bold"))
        for row in summary.rows_of(category):
            table.add_row(*_printed(row, chosen, summary.scorers[0]))
    return table


def _printed(row: Row, chosen: list[Column], first: str) -> list[Text]:
    """The cells of a row; only the first score and the wins have room for their interval."""
    cells = [Text(row.policy)]
    for column in chosen:
        cell = column.cell(row)
        brief = column.title in ("KL", "LC") or (
            column.title in row.scores and column.title != first
        )
        cells.append(Text(cell.value if brief else str(cell)))
    return cells
