import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.config import RewardConfig
from tether.errors import ConfigError
from tether.rewards.filters import metrics, names_of, total

TERM = RewardConfig(path="a.py:f")
CAP = RewardConfig(path="a.py:f", role="cap")
SCORES = torch.tensor(
    [
        [1.0, 2.0, -3.0, 0.5],
        [0.5, 0.25, 1.0, -1.0],
        [1.0, 0.0, 2.0, 0.25],
    ]
)


def reject(**settings):
    return RewardConfig(path="a.py:f", role="reject", **settings)


def test_terms_are_summed():
    assert total(SCORES, [TERM] * 3).tolist() == [2.5, 2.25, 0.0, -0.25]


def test_a_cap_bounds_the_total_by_its_score():
    # sums of the first two: 1.5, 2.25, -2, -0.5; caps: 1, 0, 2, 0.25
    assert total(SCORES, [TERM, TERM, CAP]).tolist() == [1.0, 0.0, -2.0, -0.5]


def test_what_is_rejected_falls_to_the_lowest_total_of_the_batch():
    # sums of the first and third: 2, 2, -1, 0.75; the second is below 0.5 for the 2nd and the 4th
    found = total(SCORES, [TERM, reject(threshold=0.5), TERM])
    assert found.tolist() == [2.0, -1.0, -1.0, -1.0]


def test_or_to_its_floor_and_never_rises():
    found = total(SCORES, [TERM, reject(threshold=0.5, floor=0.8), TERM])
    assert found.tolist() == [2.0, pytest.approx(0.8), -1.0, 0.75]
    found = total(SCORES, [TERM, reject(threshold=9.0, floor=-4.0), TERM])
    assert found.tolist() == [-4.0] * 4


def test_caps_come_before_rejects_and_the_lower_of_two_floors_counts():
    configs = [TERM, reject(threshold=0.5, floor=-5.0), reject(threshold=0.3, floor=-4.0)]
    # 2nd: both, 4th: both, the others neither
    assert total(SCORES, configs).tolist() == [1.0, -5.0, -3.0, -5.0]
    # the cap makes the 4th -1 and so the lowest but one: -3
    found = total(SCORES, [TERM, CAP, reject(threshold=0.5)])
    assert found.tolist() == [0.5, -3.0, -3.0, -3.0]


@given(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), min_size=1))
def test_a_filter_never_raises_a_total(rows):
    scores = torch.tensor(rows).T
    free = total(scores, [TERM] * 3)
    bounded = total(torch.cat([scores, scores]), [TERM] * 3 + [CAP, reject(), reject(floor=2.0)])
    assert (bounded <= free).all()


def test_no_completions_no_totals():
    assert total(torch.zeros(2, 0), [TERM, reject()]).tolist() == []


def test_each_reward_is_logged_under_its_name():
    configs = [RewardConfig(rule="citations"), RewardConfig(rule="length", role="cap")]
    configs.append(reject(threshold=0.5, name="safe"))
    # term 1, 2, -3, 0.5: mean 0.125; the cap is below it twice; two of four below 0.5
    assert metrics(SCORES, configs) == {
        "score_citations": 0.125,
        "score_length": 0.1875,
        "capped_length": 0.75,
        "score_safe": 0.8125,
        "rejected_safe": 0.5,
    }
    assert metrics(SCORES[:1], [TERM]) == {}


def test_what_has_no_name_of_its_own_has_its_number():
    twice = [RewardConfig(rule="length")] * 2
    assert names_of([TERM, *twice, RewardConfig(path="x", name="mine")]) == ["1", "2", "3", "mine"]
    assert names_of([RewardConfig(path="x", name="raw"), TERM]) == ["1", "2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, r'reward.threshold=1.0 is for filters; .* set reward.role = "reject"'),
        ({"floor": 1.0}, "reward.floor=1.0 is for filters"),
        ({"role": "cap", "threshold": 1.0}, "reward.threshold=1.0"),
        ({"role": "reject", "floor": math.inf}, "reward.floor=inf must be a number, or -inf"),
        ({"role": "reject", "floor": math.nan}, "reward.floor=nan"),
        ({"role": "reject", "threshold": math.nan}, "reward.threshold=nan must be a number"),
    ],
)
def test_settings_of_filters(settings, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(path="a.py:f", **settings)
