import numpy as np
import pytest

from tests.feedback.made import crowd, item, judge, judged
from tether.feedback.disputed import disputed, uncertainties, uncertainty_of_scores, weak_spots
from tether.feedback.labelers import assess
from tether.feedback.strengths import agreed


def made(rows):
    items = {key: item(key, len(ranks[0])) for key, ranks in rows.items()}
    judgments = [judge(key, f"l{i}", r) for key, ranks in rows.items() for i, r in enumerate(ranks)]
    return items, judgments


def test_disputes_by_hand():
    found = disputed(
        *made(
            {
                "same": [[1.0, 2.0], [1.0, 2.0]],
                "tie": [[1.0, 2.0], [1.0, 1.0]],  # (1 - 0)²/4
                "opposite": [[1.0, 2.0], [2.0, 1.0]],
                "one of three": [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]],  # 2 of 3 pairs of labelers
                "last": [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]],  # 1 of 3 pairs of completions
                "alone": [[1.0, 2.0]],
                "thumbs": [[1.0], [None]],
            }
        )
    )
    assert [(one.item, one.judgments) for one in found] == [
        ("opposite", 2),
        ("thumbs", 2),
        ("one of three", 3),
        ("last", 2),
        ("tie", 2),
    ]
    assert [one.dispute for one in found] == pytest.approx([1, 1, 2 / 3, 1 / 3, 1 / 4])
    assert len(disputed(*made({"a": [[1.0, 2.0], [2.0, 1.0]]} | {}), most=0)) == 0


def test_weak_spots_are_those_of_competent_labelers():
    items, judgments, _scores = judged(0, crowd(0.2))
    items["vague"] = item("vague", 4)
    judgments += [
        judge("vague", "good 0", [1.0, 2.0, 3.0, 4.0]),
        judge("vague", "good 1", [4.0, 3.0, 2.0, 1.0]),
    ]
    quality = assess(items, judgments, num_resamples=20)
    assert weak_spots(items, judgments, quality)[0].item == "vague"
    # the one who ranks in reverse makes far more disputes, none of which is a weak spot
    assert disputed(items, judgments)[0].dispute >= 2 / 3
    most = weak_spots(items, judgments, quality, most=100)
    assert len(most) < len(disputed(items, judgments, most=100))
    assert weak_spots(items, judgments, []) == []


def test_uncertainty_of_judgments():
    items, judgments = made(
        {
            "new": [[1.0, 2.0]],
            "sure": [[1.0, 2.0]] * 3,
            "split": [[1.0, 2.0], [2.0, 1.0]],
            "thumb": [[1.0]],
        }
    )
    judgments = [one for one in judgments if one.item != "new"]
    consensus = agreed(items, judgments, ridge=1.0)
    found = uncertainties(items, consensus)
    assert list(found) == list(items)
    assert found["new"] == 1
    assert found["split"] == pytest.approx(1)
    p = consensus["sure"].beats[0][1]
    assert found["sure"] == pytest.approx(4 * p * (1 - p))
    assert found["sure"] < found["thumb"] < 1


def test_uncertainty_of_scores_by_hand():
    # σ(ln 3) = 3/4: 4 · 3/4 · 1/4
    assert uncertainty_of_scores([np.log(3), 0.0]) == pytest.approx(3 / 4)
    # two scorers who say the opposite: p = 1/2
    assert uncertainty_of_scores([[np.log(3), 0.0], [0.0, np.log(3)]]) == pytest.approx(1)
    # pairs (01) 3/4, (02) σ(ln 9) = 9/10: 0.36, (12) 3/4
    three = uncertainty_of_scores([2 * np.log(3), np.log(3), 0.0])
    assert three == pytest.approx((0.75 + 0.36 + 0.75) / 3)
    assert uncertainty_of_scores([np.log(3)]) == pytest.approx(3 / 4)
    assert uncertainty_of_scores([0.0, 1e6]) == pytest.approx(0, abs=1e-9)
