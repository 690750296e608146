"""Blocks of an evaluation on the terminal: a row a measure, a column a policy."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tether.evaluation.blocks import Block, Measure
from tether.evaluation.table import SURE, Cell, number, percent


def cell_of(measure: Measure) -> Cell:
    """The figure of a measure with its interval; shares in percent."""
    if measure.unit == "share":
        return percent(measure.value)
    return number(measure.value, signed=False)


def marked(measure: Measure) -> bool:
    """Whether the measure differs from the baseline's: its adjusted p, else its interval."""
    if measure.p is not None:
        return measure.p < SURE
    return measure.difference is not None and measure.difference.excludes_zero


def print_blocks(blocks: Sequence[Block], console: Console) -> None:
    """Print each block as a table, and what a mark means where there is one."""
    for block in blocks:
        console.print(_table(block), Text())
    baselines = [b.baseline for b in blocks if any(marked(each) for each in b.measures)]
    if baselines:
        told = (
            f"* differs from {baselines[0]} (p < {SURE} after Holm over all measures; where no p "
            "is known, by its interval)"
        )
        console.print(Text(told, style="dim"))


def _table(block: Block) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column(Text(block.title))
    policies = list(dict.fromkeys(each.policy for each in block.measures))
    for policy in policies:
        table.add_column(Text(policy), justify="right")
    found = {(each.name, each.policy): each for each in block.measures}
    for name in dict.fromkeys(each.name for each in block.measures):
        row = [found.get((name, policy)) for policy in policies]
        table.add_row(Text(name), *(_printed(each) for each in row))
    return table


def _printed(measure: Measure | None) -> Text:
    if measure is None:
        return Text()
    return Text(f"{cell_of(measure)}{' *' if marked(measure) else ''}")
