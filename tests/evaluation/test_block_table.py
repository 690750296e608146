"""Blocks in print."""

import io

from rich.console import Console

from tether.evaluation.block_table import print_blocks
from tether.evaluation.blocks import Block, Measure
from tether.statistics import Interval


def test_a_row_a_measure_and_a_mark_where_it_differs():
    def of(name, policy, *ends, **more):
        return Measure(name=name, policy=policy, value=Interval(*ends), **more)

    low, none = Interval(-0.3, -0.4, -0.2), Interval(-0.1, -0.2, 0.1)
    measures = [
        of("mean", "sft", 0.4, 0.3, 0.5),
        of("mean", "ppo", 0.1, 0.05, 0.15, difference=low, p=0.01),
        of("mean", "dpo", 0.3, 0.2, 0.4, difference=low, p=0.06),
        of("share", "ppo", 0.25, 0.2, 0.3, unit="share", difference=none, p=0.5),
        of("quantile", "ppo", 0.5, 0.4, 0.6, difference=low),
    ]
    block = Block(title="Toxicity", meaning="", baseline="sft", measures=measures)
    file = io.StringIO()
    print_blocks([block], Console(file=file, width=120))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines[0] == "Toxicity sft ppo dpo"
    assert lines[2:5] == [
        "mean 0.40 [0.30, 0.50] 0.10 [0.05, 0.15] * 0.30 [0.20, 0.40]",
        "share 25% [20, 30]",
        "quantile 0.50 [0.40, 0.60] *",
    ]
    assert lines[-1].startswith("* differs from sft (p < 0.05 after Holm over all measures;")


def test_nothing_marked_needs_no_legend():
    file = io.StringIO()
    print_blocks([], Console(file=file, width=120))
    assert file.getvalue() == ""
