import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from tests.evaluation import made_up
from tether.errors import DataError
from tether.evaluation.summary import Comparison, summarize
from tether.evaluation.table import (
    Cell,
    columns,
    number,
    percent,
    print_table,
    read_summary,
    sentence,
)
from tether.statistics import Interval

NAN = math.nan


def printed(summary, width):
    file = io.StringIO()
    print_table(summary, Console(file=file, width=width, color_system=None))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.974, 0.9, 1.04), "+0.97 [+0.90, +1.04]"),
        (Interval(-0.004, -0.1, 0.092), "+0.00 [-0.10, +0.09]"),
        (Interval(0.0123, 0.0101, 0.0149), "+0.012 [+0.010, +0.015]"),
        (Interval(31.5, 29.0, 34.2), "+31.5 [+29.0, +34.2]"),
        (Interval(314.6, 290.0, 342.0), "+315 [+290, +342]"),
        (Interval(2.0, 2.0, 2.0), "+2.00 [+2.00, +2.00]"),
        (Interval(2.5, NAN, NAN), "+2.50"),
    ],
)
def test_a_number_has_the_decimals_its_interval_deserves(interval, text):
    assert str(number(interval)) == text


def test_numbers_without_sign_and_shares():
    assert number(Interval(-0.001, -0.2, 0.1), signed=False) == Cell("0.00", "[-0.20, 0.10]")
    assert number(Interval(2.5, 2.0, 3.0), 1, signed=False) == Cell("2.5", "[2.0, 3.0]")
    assert percent(Interval(0.5625, 0.25, 0.875)) == Cell("56%", "[25, 88]")
    assert percent(Interval(0.75, NAN, NAN)) == Cell("75%")
    assert str(number(None)) == str(percent(None)) == ""


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (Interval(0.5, 0.25, 0.75), "gold +0.50 [+0.25, +0.75] (excludes 0)"),
        (Interval(-0.5, -0.75, -0.25), "gold -0.50 [-0.75, -0.25] (excludes 0)"),
        (Interval(0.5, -0.25, 1.25), "gold +0.50 [-0.25, +1.25] (includes 0: no clear difference)"),
        (Interval(0.5, NAN, NAN), "gold +0.50 (one prompt: no interval)"),
    ],
)
def test_a_sentence_says_what_the_interval_allows(difference, says):
    told = sentence(
        Comparison(
            policy="ppo",
            other="sft",
            scorer="gold",
            category="all",
            difference=difference,
            win_rate=Interval(0.8, 0.75, 0.85),
        )
    )
    assert told == f"ppo against sft: {says}, wins 80% [75, 85]"


def test_only_columns_with_figures_exist():
    titles = [column.title for column in columns(made_up.summary())]
    scores = ["gold", "proxy", "KL", "wins vs sft", "LC"]
    texts = ["length", "finished", "distinct-2", "repetition", "perplexity"]
    assert titles == scores + texts
    bare = [
        dataclasses.replace(each, kl=None, reference_perplexity=None)
        for each in made_up.samples()
        if each.policy == "sft"
    ]
    alone = summarize(bare, baseline="sft", scorers=["gold"])
    assert [column.title for column in columns(alone)] == ["gold", *texts[:-1]]


def test_one_row_a_policy_in_one_table_where_there_is_room():
    lines = printed(made_up.summary(), 140)
    assert " ".join(lines[0].split()) == (
        "policy gold proxy KL wins vs sft LC length finished distinct-2 repetition perplexity"
    )
    # ppo: gold 1.75 [1.5, 2], proxy 3.5, KL 2, wins .5625, 4 tokens, all finished. Bigrams of
    # "ppo answers i j": "ppo answers" 4 times; "answers 0", "answers 1" twice each; 0 0, 0 1, 1 0,
    # 1 1: 7 distinct of 12.
    (ppo,) = [line for line in lines[2:5] if line.startswith("ppo")]
    assert " ".join(ppo.split()) == (
        "ppo 1.75 [1.50, 2.00] 3.50 2.00 56% [25, 88] 56% 4.0 100% 0.583 0.0% 3.00"
    )
    assert "new topic (apart)" in lines
    assert [line.split()[0] for line in lines if line.startswith(("base", "sft", "ppo"))] == [
        "base",
        "sft",
        "ppo",
    ] * 2


def test_a_narrow_console_gets_two_whole_tables():
    lines = printed(made_up.summary(), 80)
    assert all(len(line) <= 80 for line in lines)
    assert not any("…" in line for line in lines)
    heads = [line.split()[1:] for line in lines if line.startswith("policy")]
    assert heads == [
        ["gold", "proxy", "KL", "wins", "vs", "sft", "LC"],
        ["length", "finished", "distinct-2", "repetition", "perplexity"],
    ]


def test_the_comparisons_on_the_first_score_follow():
    # By prompt ppo - base 3, 2.5: t = 2.75/0.25 = 11 with one degree of freedom, so
    # p = 1 - 2 atan(t)/π = 0.0577; base - sft -1.5, -3: t = 3, p = 0.205; ppo - sft 1.5, -0.5:
    # p = 0.705. Two scores: Holm gives 6 · 0.0577 = 0.35, 4 · 0.205 = 0.82. All answers are equally
    # long; the logit of 0.5625 is 0.2513, and a step towards 0.875, 0.3125/(0.5625 · 0.4375),
    # ends at 0.821, that towards 0.25 at 0.265.
    lines = printed(made_up.summary(), 200)
    start = lines.index("2 prompts; [95% interval over prompts]")
    many = "excludes 0, but not once all comparisons are counted: p ="
    assert lines[start + 1 :] == [
        "- ppo against sft: gold +0.50 [-0.50, +1.50] (includes 0: no clear difference), "
        "wins 56% [25, 88], at equal length 56% [27, 82]",
        f"- ppo against base: gold +2.75 [+2.50, +3.00] ({many} 0.35), wins 100% [100, 100], "
        "at equal length 100% [100, 100]",
        f"- base against sft: gold -2.25 [-3.00, -1.50] ({many} 0.82), wins 0% [0, 0], "
        "at equal length 0% [0, 0]",
        "- new topic: ppo against sft: gold +0.50 (one prompt: no interval), wins 75%, "
        "at equal length 75%",
        "- new topic: ppo against base: gold +8.50 (one prompt: no interval), wins 100%, "
        "at equal length 100%",
        "- new topic: base against sft: gold -8.00 (one prompt: no interval), wins 0%, "
        "at equal length 0%",
    ]


@pytest.mark.parametrize(("p", "says"), [(0.049, "excludes 0"), (0.05, "excludes 0, but not once")])
def test_a_sentence_counts_all_comparisons(p, says):
    told = Comparison(
        policy="ppo",
        other="sft",
        scorer="gold",
        category="all",
        difference=Interval(0.5, 0.25, 0.75),
        win_rate=Interval(0.8, 0.75, 0.85),
        even_win_rate=Interval(0.6, 0.5, 0.7),
        p=p,
    )
    assert f"({says}" in sentence(told)
    assert sentence(told).endswith("wins 80% [75, 85], at equal length 60% [50, 70]")


def test_a_summary_is_read_from_its_folder(tmp_path):
    before = made_up.summary()
    (tmp_path / "summary.json").write_text(json.dumps(before.to_dict()))
    assert printed(read_summary(tmp_path), 120) == printed(before, 120)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"summary\.json: cannot be read .*; evaluate again"),
        ("{", r"summary\.json: cannot be read .*; evaluate again"),
        ("[]", r"summary\.json: not the summary of an evaluation"),
        ("{}", r"summary\.json: not the summary of an evaluation"),
    ],
)
def test_a_summary_that_cannot_be_read_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_summary(tmp_path)


def test_names_are_text_not_markup():
    odd = [dataclasses.replace(each, policy="[red]p[/]") for each in made_up.samples()[:6]]
    lines = printed(summarize(odd, baseline="[red]p[/]", scorers=["gold"]), 120)
    assert any(line.startswith("[red]p[/]") for line in lines)
