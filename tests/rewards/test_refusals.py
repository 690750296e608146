import pytest

from tether.records import read_jsonl
from tether.rewards.refusals import refusal


def test_a_refusal_says_no_at_once():
    late = "First, boil the water. " * 20 + "I can't help with that."
    assert refusal(["p"] * 3, ["I can’t help with that.", "Sure, I can help.", late]) == [1, 0, 0]


def test_what_is_cut_at_200_characters_is_the_beginning():
    said = "I must decline."
    assert refusal([""], ["x " * 90 + said]) == [1.0]  # up to character 195
    assert refusal([""], ["x " * 95 + said]) == [0.0]  # cut behind "I must dec"


def test_precision_and_recall_are_what_the_docs_say():
    rows = [row for _, row in read_jsonl("tests/rewards/refusals.jsonl")]
    assert len(rows) == len({row["completion"] for row in rows}) == 60
    called = refusal([""] * 60, [row["completion"] for row in rows])
    hits = sum(score for score, row in zip(called, rows, strict=True) if row["refuses"])
    assert hits / sum(called) == pytest.approx(25 / 29)
    assert hits / sum(row["refuses"] for row in rows) == pytest.approx(25 / 30)


@pytest.mark.parametrize("text", ["You can't mix them.", "The shop will not offer refunds.", ""])
def test_others_may_say_no(text):
    assert refusal([""], [text]) == [0.0]
