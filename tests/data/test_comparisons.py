"""What is known of a prompt, gathered: pairs, whole rankings, verdicts on single completions."""

import math

from tether.data.batches import Row
from tether.data.comparisons import Comparisons, Order, Pair, Verdict, group
from tether.records import PreferencePair, Ranking, Thumb


def test_rankings_and_pairs_are_both_orders_and_pairs():
    records = [
        Ranking(prompt="a", completions=["x", "y", "z"], ranks=[2.0, 1.0, None]),
        PreferencePair(prompt="a", chosen="w", rejected="x", weight=3.0),
    ]
    (found,) = group(records)
    assert found.completions == ["x", "y", "z", "w"]
    assert found.orders == [
        Order((0, 1, 2), (2.0, 1.0, math.inf)),
        Order((3, 0), (1.0, 2.0), 3.0),
    ]
    assert found.pairs == [Pair(0, 2), Pair(1, 0), Pair(1, 2), Pair(3, 0, weight=3.0)]


def test_a_completion_that_several_judged_is_one_row():
    records = [
        Thumb(prompt="a", completion="x", label=True),
        Thumb(prompt="b", completion="x", label=True, weight=0.5),
        Thumb(prompt="a", completion="y", label=False),
        Thumb(prompt="a", completion="x", label=False),
    ]
    one, other = group(records)
    assert one.completions == ["x", "y"]
    assert one.verdicts == [Verdict(0, True), Verdict(1, False), Verdict(0, False)]
    assert other.verdicts == [Verdict(0, True, 0.5)]


def test_messages_are_gathered_by_what_they_say():
    asked = [{"role": "user", "content": "why"}]
    turned = [{"content": "why", "role": "user"}]
    records = [Thumb(prompt=prompt, completion="x", label=True) for prompt in (asked, turned)]
    assert len(group(records)) == 1


def test_texts_without_a_prompt_stand_for_themselves():
    records = [
        Thumb(prompt="", completion="x", label=True),
        Thumb(prompt="", completion="y", label=False),
        Thumb(prompt="", completion="x", label=False),
    ]
    one, other = group(records)
    assert (one.completions, len(one.verdicts)) == (["x"], 2)
    assert other.completions == ["y"]
    assert one.key != other.key
    pairs = [PreferencePair(prompt="", chosen=text, rejected="z") for text in "xy"]
    assert len(group(pairs)) == 1


def test_what_cannot_be_used_is_dropped():
    rows = [Row([1, 2], 1), Row([1, 3, 4, 5], 1), Row([1, 2], 1), Row([1, 6], 1)]
    found = Comparisons(
        "p",
        completions=["a", "long", "a again", "b"],
        pairs=[Pair(0, 1), Pair(0, 2), Pair(3, 0), Pair(0, 3, weight=0.0)],
        orders=[
            Order((1, 3, 0), (1.0, 3.0, 2.0)),  # keeps the last two
            Order((0, 1), (1.0, 2.0)),  # one is left
            Order((0, 2), (1.0, 2.0)),  # the same row
            Order((0, 1, 3), (2.0, 1.0, 2.0)),  # a tie is left
            Order((0, 3), (1.0, 2.0), 0.0),
        ],
        verdicts=[Verdict(1, True), Verdict(3, False), Verdict(0, True, 0.0)],
        rows=rows,
    )
    found.keep_usable(3)
    assert found.completions == ["a", "a again", "b"]
    assert found.rows == [rows[0], rows[2], rows[3]]
    assert found.pairs == [Pair(2, 0)]
    assert found.orders == [Order((2, 0), (3.0, 2.0))]
    assert found.verdicts == [Verdict(2, False)]
