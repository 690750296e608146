from dataclasses import replace

import numpy as np
import pytest

from tests.feedback.made import crowd, item, judge, judged
from tether.feedback.consensus import agreement
from tether.feedback.habits import habits, wilson
from tether.feedback.labelers import assess, weights
from tether.feedback.reliability import leave_one_out, reliabilities
from tether.feedback.simulated import Labeler
from tether.feedback.strengths import agreed
from tether.feedback.tally import tally
from tether.records import Ranking


def by_name(items, judgments):
    return {one.labeler: one for one in assess(items, judgments, num_resamples=50)}


# --- reliability ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_bad_are_found_and_the_good_are_not(seed):
    # benchmarks/labelers.py counts over twenty seeds and more
    found = by_name(*judged(seed, crowd(0.5))[:2])
    assert {name for name, one in found.items() if one.flags} == {"random", "reversed"}
    assert [one.judgments for one in found.values()] == pytest.approx([34] * 7, abs=1)
    assert found["random"].reliability.low < 0.5 < found["random"].reliability.high
    assert "Reliability" in found["random"].flags[0]
    assert len(found["random"].flags) == 1
    assert found["reversed"].reliability.high < 0.3
    assert "reverse order" in found["reversed"].flags[1]
    assert 0 < found["reversed"].weight <= found["random"].weight < 0.5
    assert {one.weight for name, one in found.items() if name.startswith("good")} == {1.0}
    assert [one.competent for one in found.values()] == [True] * 5 + [False] * 2


def test_few_judgments_flag_nobody():
    found = by_name(*judged(0, crowd(0.5), num_items=60)[:2])
    assert max(one.judgments for one in found.values()) <= 30
    assert not any(one.flags for one in found.values())
    assert found["reversed"].weight < 0.5  # and yet counts less


def test_planted_scores_lie_in_their_intervals():
    # σ(1.70 d) is nearest to Φ(d), and two labelers' noise of 0.5 differs by N(0, 0.5 √2)
    scale = 1.70 / (0.5 * 2**0.5)
    inside, unweighted = [], []
    for seed in (2, 3):
        items, judgments, scores = judged(seed, crowd(0.5), num_items=100)
        quality = assess(items, judgments, num_resamples=50)
        for trusted, into in ((weights(quality), inside), (None, unweighted)):
            for key, one in agreed(items, judgments, trusted).items():
                truth = scale * (scores[key] - scores[key].mean())
                into.extend(np.abs(np.array(one.scores) - truth) < 1.96 * np.array(one.errors))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)  # 800 scores
    assert np.mean(unweighted) < 0.7


def test_reliability_is_eta():
    # "mixed" turns each ranking round with probability 1/4, so its η is 3/4 of the way.
    labelers = [Labeler(name=str(i), noise=0.1) for i in range(3)]
    items, judgments, _scores = judged(1, [*labelers, Labeler(name="mixed", noise=0.1)], each=4)
    generator = np.random.default_rng(0)
    turned = [
        replace(one, ranks=[5 - rank for rank in one.ranks])
        if one.labeler == "mixed" and generator.random() < 0.25
        else one
        for one in judgments
    ]
    tallied = tally(items, turned)
    found = dict(zip(tallied.labelers, reliabilities(tallied), strict=True))
    assert found["mixed"].eta.low < 0.75 < found["mixed"].eta.high
    assert found["mixed"].eta.mean == pytest.approx(0.75, abs=0.1)
    assert found["mixed"].weight == pytest.approx(2 * 0.75 - 1, abs=0.2)


def test_alone_nothing_is_known():
    items = {"p": item("p", 2)}
    [one] = assess(items, [judge("p", "ann", [1.0, 2.0])])
    assert one.others is None
    assert one.agreement is None
    assert one.weight == 1
    assert one.reliability == pytest.approx((0.5, 0.025, 0.975), abs=0.01)  # uniform
    assert not one.competent


def test_leaving_one_out_equals_the_agreement_of_rankings():
    items, judgments, _scores = judged(5, crowd(0.8), num_items=30, tie=0.4)
    tallied = tally(items, judgments)
    rankings = [
        Ranking(
            prompt=one.item,
            completions=items[one.item].completions,
            ranks=one.ranks,
            labeler=one.labeler,
        )
        for one in judgments
    ]
    found = dict(zip(tallied.labelers, leave_one_out(tallied), strict=True))
    expected = agreement(rankings)
    assert {name: taus.mean() for name, taus in found.items()} == pytest.approx(expected)


def test_thumbs_have_reliability_too():
    generator = np.random.default_rng(0)
    items = {f"i{i}": item(f"i{i}", 1) for i in range(60)}
    judgments = []
    for key in items:
        up = generator.random() < 0.5
        judgments += [judge(key, name, [1.0 if up else None]) for name in "abc"]
        judgments.append(judge(key, "z", [1.0 if generator.random() < 0.5 else None]))
    found = by_name(items, judgments)
    assert found["z"].unreliable
    assert found["z"].flags
    assert found["a"].competent
    assert found["a"].tie_rate is None


# --- habits ---------------------------------------------------------------------------------------


def test_habits_by_hand():
    items = {
        "p": item("p", 3, gold=[1.0, 2.0, 3.0]),
        "q": item("q", 3),
        "r": item("r", 3),
    }
    found = habits(
        items,
        [
            # on the page (1, 2, 2): the earlier wins in 2 of 3 pairs, one tie of 3
            judge("p", "a", [2.0, 1.0, 2.0], shown=[1, 0, 2], seconds=10.0),
            # on the page (3, 2, 1): lead -1, no tie
            judge("q", "a", [1.0, 2.0, 3.0], shown=[2, 1, 0], seconds=30.0),
            # on the page (3, 2, 1) again
            judge("r", "a", [3.0, 2.0, 1.0], shown=[0, 1, 2], seconds=50.0),
            # q (1, 2, 3) and (1, 3, 2): τ = 1/3
            judge("q", "a", [1.0, 3.0, 2.0], shown=[0, 1, 2], seconds=1.0, repeat=True),
        ],
    )
    # p against (1, 2, 3): pair (01) wrong, (02) a tie, (12) right: (0 + ½ + 1)/3
    assert found.gold[0] == pytest.approx(1 / 2)
    assert found.gold.total == 1
    assert found.consistency.mean == pytest.approx(1 / 3)
    assert found.position.mean == pytest.approx((2 / 3 - 1 - 1) / 3)
    assert found.tie_rate == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert found.seconds == 30
    assert found.straight[0] == 1 / 2  # r as q, q not as p
    assert found.straight.total == 2


def test_nothing_known_is_none():
    found = habits({"p": item("p", 1)}, [judge("p", "a", [1.0])])
    assert all(getattr(found, name) is None for name in found.__slots__)


def test_wilson_by_hand():
    # p = 8/10, z² = 3.8416: (0.8 + 0.19208 ± 1.96 √(0.016 + 0.009604))/1.38416
    share = wilson(8, 10)
    assert share == pytest.approx((0.8, 0.4902, 0.9433, 10), abs=1e-4)
    assert wilson(0, 10).low == pytest.approx(0)
    assert wilson(10, 10).low == pytest.approx(0.7225, abs=1e-4)


def with_habit(habit, count=40, size=3):
    """Three labelers who rank as the items are, and one, "z", who has a habit."""
    generator = np.random.default_rng(7)
    items, judgments = {}, []
    for number in range(count):
        key = f"i{number}"
        truth = generator.permutation(size)
        items[key] = item(key, size)
        for name in ("a", "b", "c", "z"):
            shown = generator.permutation(size).tolist()
            ranks = [float(1 + place) for place in truth]
            one = judge(key, name, ranks, shown=shown, seconds=20.0)
            judgments.append(habit(one, generator) if name == "z" else one)
    found = by_name(items, judgments)
    assert not any(found[name].flags for name in "abc")
    return found["z"]


def on_the_page(one, ranks):
    stored = [0.0] * len(ranks)
    for place, completion in enumerate(one.shown):
        stored[completion] = ranks[place]
    return replace(one, ranks=stored)


def test_always_the_same_answer_is_flagged():
    found = with_habit(lambda one, _: on_the_page(one, [1.0, 2.0, 3.0]))
    assert found.straight.share == 1
    assert found.position.mean == 1
    assert any("the same answer" in flag and "100% of 39" in flag for flag in found.flags)
    assert any("earlier on the page wins more often" in flag for flag in found.flags)


def test_a_later_place_that_wins_is_flagged():
    def last_first(one, generator):
        if generator.random() < 0.5:
            return one
        return on_the_page(one, [*generator.permuted([2.0, 3.0]).tolist(), 1.0])

    found = with_habit(last_first)
    assert any("later on the page wins more often" in flag for flag in found.flags)
    assert found.position_p < 0.01
    assert not any("the same answer" in flag for flag in found.flags)


def test_haste_is_flagged():
    found = with_habit(lambda one, _: replace(one, seconds=4.9))
    assert found.flags == [
        "Takes 4.9 seconds an item (median), less than a quarter of the 20.0 seconds of the other "
        "labelers."
    ]
    assert not with_habit(lambda one, _: replace(one, seconds=5.1)).flags


def test_control_items_and_repeats_are_flagged():
    generator = np.random.default_rng(0)
    items, judgments = {}, []
    for number in range(40):
        key = f"i{number}"
        gold = [1.0, 2.0] if number < 15 else None
        items[key] = item(key, 2, gold=gold)
        for name in "abz":
            wrong = name == "z" and generator.random() < 0.5
            judgments.append(judge(key, name, [2.0, 1.0] if wrong else [1.0, 2.0]))
            if number % 3 == 0:
                again = name == "z" and generator.random() < 0.5
                ranks = [2.0, 1.0] if again else [1.0, 2.0]
                judgments.append(judge(key, name, ranks, repeat=True))
    found = by_name(items, judgments)
    assert any("Control items" in flag and "100%" in flag for flag in found["z"].flags)
    assert any("twice are judged differently" in flag for flag in found["z"].flags)
    assert found["a"].gold.share == 1
    assert not found["a"].flags
    assert found["z"].judgments == 40
