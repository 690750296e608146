import io
import json
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from rich.console import Console

from tests.evaluation import made_up
from tests.evaluation.test_overoptimization import made
from tether.evaluation.overoptimization import write_frontier
from tether.evaluation.plane import law_sentence, plane, print_efficiency, sentences
from tether.statistics import Interval


@pytest.fixture
def folder(tmp_path):
    write_frontier(tmp_path, made())
    return tmp_path


def test_every_policy_and_law_has_a_sentence():
    assert sentences(made()) == [
        "ppo reached 71% [65, 77] of the best proxy gain reachable at its KL of 2.9 nats",
        "<far> is 9 nats from the reference, beyond what the pool can tell: fewer than 5 "
        "effective samples a prompt",
        "ppo: gold is highest at √KL = 1.65 [1.50, ∞) (KL 2.7 nats), "
        "though the interval reaches beyond what was measured",
        "best of n: the law of gold has no peak within what was measured, up to √KL = 2.00",
    ]


def test_a_peak_that_is_sure_is_said_to_be_one():
    law = replace(made().laws[0], peak=Interval(1.65, 1.5, 1.8))
    assert law_sentence(made(), law) == (
        "ppo: gold is highest at √KL = 1.65 [1.50, 1.80] (KL 2.7 nats), then falls"
    )


def test_without_a_pool_there_is_no_figure_and_no_table(tmp_path):
    assert plane(tmp_path, made_up.summary()) == []
    console = Console(file=io.StringIO())
    print_efficiency(tmp_path, console)
    assert console.file.getvalue() == ""


def test_the_table_on_the_terminal(folder):
    console = Console(file=io.StringIO(), width=72)
    print_efficiency(folder, console)
    printed = console.file.getvalue()
    line = next(line for line in printed.splitlines() if line.startswith("ppo"))
    assert " ".join(line.split()) == ("ppo 2.94 +1.70 +2.40 71% [65, 77] 12 pool and own")
    far = next(line for line in printed.splitlines() if line.startswith("<far>"))
    assert far.split()[:2] == ["<far>", "≤"]
    assert far.endswith("too few")
    assert "step" not in printed  # models along a run are in the figure
    assert "8 prompts with 256 samples" in printed
    assert "- ppo: gold is highest" in printed


def test_the_figures_hold_what_was_measured(folder):
    reach, efficiency, laws = plane(folder, made_up.summary())
    by_name = {trace["name"]: trace for trace in reach.plot["data"]}
    best = by_name["best reachable: proxy"]
    # Gains over the start of 0.1, while at least five samples carry the tilt; the rest is grey.
    assert (best["x"], best["y"]) == ([0.01, 2.0], pytest.approx([0.1, 2.0]))
    grey = by_name["best reachable, too few samples: proxy"]
    assert (grey["x"], grey["y"]) == ([2.0, 4.9], pytest.approx([2.0, 2.8]))
    assert by_name["of the same policies: gold"]["y"] == pytest.approx([0.1, 1.0])
    assert by_name["best of n: gold"]["x"] == [0.6]
    assert by_name["best of n by its bound: gold"]["x"] == [0.636]
    ppo = by_name["ppo: proxy"]
    assert (ppo["x"], ppo["y"]) == ([1.0, 2.94], [0.9, 1.7])
    assert ppo["text"] == ["ppo at step 6", "ppo"]
    assert ppo["error_x"]["array"] == pytest.approx([0.1, 0.16])
    assert reach.plot["layout"]["shapes"][0]["x0"] == pytest.approx(5.545, abs=1e-3)
    assert ["best of 4 (bound 0.64)", "0.60", "90.0", "+1.000", "+0.600"] in reach.rows
    assert [row[0] for row in efficiency.rows] == ["ppo", "<far>"]
    assert efficiency.plot["data"][0]["x"] == pytest.approx([70.8])
    assert "though the interval" in laws.rows[0][-1]
    peak = next(trace for trace in laws.plot["data"] if trace["name"] == "peak: ppo")
    # 1.65 (1.2 - 0.8 log 1.65), log 1.65 = 0.50078
    assert (peak["x"], peak["y"]) == ([1.65], pytest.approx([1.319], abs=1e-3))
    for figure in (reach, efficiency, laws):
        json.dumps(figure.plot, allow_nan=False)
        go.Figure(figure.plot)  # refuses what plotly does not know
        assert all(len(row) == len(figure.header) for row in figure.rows)
    assert "&lt;far&gt;" not in json.dumps(efficiency.rows)  # escaped by the page, not here
