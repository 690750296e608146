import math

import pytest

from tether.constitution.agreement import calibration_error, labels_of, log_loss, report
from tether.records import PreferencePair, Ranking


def test_labels_of_several_people_by_hand():
    labels = labels_of(
        [
            Ranking(prompt="p", completions=["a", "b", "c"], ranks=[1.0, 2.0, None]),
            Ranking(prompt="p", completions=["b", "a"], ranks=[1.0, 1.0]),
            PreferencePair(prompt="p", chosen="b", rejected="a", probability=0.8),
            PreferencePair(prompt="q", chosen="a", rejected="b"),
        ]
    )
    # a before b: yes, a tie, and 0.2 of b's 0.8: (1 + 0.5 + 0.2) / 3
    assert labels['"p"', "a", "b"] == pytest.approx(1.7 / 3)
    assert labels['"p"', "b", "a"] == pytest.approx(1.3 / 3)
    assert labels['"p"', "a", "c"] == labels['"p"', "b", "c"] == 1  # c is a fail
    assert labels['"q"', "b", "a"] == 0
    assert len(labels) == 8


def test_messages_are_what_they_say():
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in "ab")
    prompt = [{"role": "user", "content": "p"}]
    labels = labels_of([PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected)])
    assert labels['[{"role": "user", "content": "p"}]', "a", "b"] == 1


def judged(first, second, probability, **changes):
    row = {"prompt": "p", "first": first, "second": second, "probability": probability}
    return {**row, "flipped": False, "first_place": 0.5, "mass": 1.0, **changes}


ROWS = [
    judged("a", "b", 0.9, first_place=0.7),
    judged("a", "c", 0.4, flipped=True),
    judged("b", "c", 0.7, mass=0.4),
    judged("b", "d", 0.2),
    {"prompt": "p", "first": "a", "second": "d", "problem": "too long"},
]
LABELS = {
    ('"p"', "a", "b"): 1.0,
    ('"p"', "a", "c"): 1.0,
    ('"p"', "b", "c"): 0.5,
}


def test_a_report_by_hand():
    found = report(ROWS, LABELS)
    assert (found.judged, found.too_long) == (4, 1)
    assert found.flipped == 1 / 4
    assert found.first_place == pytest.approx((0.7 + 0.5 + 0.5 + 0.5) / 4)
    assert found.mass == pytest.approx(3.4 / 4)
    # b and c tie, nobody knows b and d: of the two left the judge leans right once
    assert (found.labeled, found.agreement) == (2, 0.5)
    # −log 0.9, −log 0.4, and −(log 0.7 + log 0.3)/2 for the tie
    expected = -math.log(0.9) - math.log(0.4) - (math.log(0.7) + math.log(0.3)) / 2
    assert found.log_loss == pytest.approx(expected / 3)
    # bins of width 0.05 from 0.5: 0.9 → |0.9 − 1|; 0.4 → 0.6 for c, |0.6 − 0|; 0.7 → |0.7 − 0.5|
    assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert found.facts()["agreement"] == 0.5


def test_without_labels_only_the_judge_is_told():
    facts = report(ROWS, {}).facts()
    assert facts.keys() == {"judged", "too_long", "flipped", "first_place", "mass", "labeled"}
    assert report([], {}).facts() == {"judged": 0, "too_long": 0, "labeled": 0}


def test_a_sure_judge_that_errs_has_a_finite_loss():
    assert log_loss(0.0, 1.0) == pytest.approx(6 * math.log(10), abs=1e-5)
    assert log_loss(0.25, 0.0) == pytest.approx(-math.log(0.75))


def test_calibration_pools_within_a_bin_and_does_not_depend_on_the_order():
    # 0.82 and 0.84 share the bin from 0.8: |0.83 − 0.5|; turned round they are 0.18 and 0.16
    known = [(0.82, 1.0), (0.84, 0.0)]
    assert calibration_error(known) == pytest.approx(0.33)
    assert calibration_error([(1 - p, 1 - label) for p, label in known]) == pytest.approx(0.33)
    assert calibration_error([(1.0, 1.0), (0.5, 0.5)]) == 0
