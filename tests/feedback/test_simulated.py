import pytest

from tether.config import USUAL_LABELERS
from tether.errors import DataError
from tether.feedback.consensus import agreement, consensus
from tether.feedback.simulated import Labeler, rank, simulate
from tether.records import Completions, pairs

HONEST = Labeler(name="honest")


def _items(count, texts):
    return [
        Completions(prompt=f"p{i}", completions=texts, finished=[True] * len(texts), category="c")
        for i in range(count)
    ]


def _ranks(labeler, texts, scores, **settings):
    [ranking] = simulate(_items(1, texts), [scores], [labeler], 0, **settings)
    return ranking.ranks


def test_without_noise_the_gold_order_comes_back():
    assert _ranks(HONEST, ["a", "b", "c", "d"], [0.2, -1.0, 1.3, 0.1]) == [2, 4, 1, 3]


def test_length_is_counted_in_words_and_can_outweigh_gold():
    # 0.5 * 1.0 + 0.04 * 2 = 0.58 against 0.5 * 0.6 + 0.04 * 9 = 0.66
    labeler = Labeler(name="l", gold_weight=0.5, length_weight=0.04)
    texts = ["extraordinarily inconsequential", " a b c d e f g h i"]
    assert _ranks(labeler, texts, [1.0, 0.6]) == [2, 1]


def test_close_utilities_tie_and_poor_ones_fail():
    # from the top: 1.0; 0.95 is within 0.1 of it; 0.85 is not (0.15); -0.5 fails
    assert rank([0.85, -0.5, 1.0, 0.95], tie=0.1, fail_below=0.0) == [3, None, 1, 1]
    assert rank([-2.0, -3.0], fail_below=0.0) == [None, None]
    assert rank([]) == []
    assert rank([0.5, 0.5, 0.7]) == [2, 2, 1]


def test_equal_texts_tie_whatever_the_noise():
    for labeler in USUAL_LABELERS:
        ranks = _ranks(labeler, ["same", "other", "same"], [0.4, 0.1, 0.4])
        assert ranks[0] == ranks[2] != ranks[1]


def test_one_ranking_a_labeler_item_by_item():
    labelers = USUAL_LABELERS
    rankings = simulate(_items(2, ["a", "b"]), [[0.0, 1.0]] * 2, labelers, 0)
    assert [(row.prompt, row.labeler) for row in rankings] == [
        (prompt, labeler.name) for prompt in ("p0", "p1") for labeler in labelers
    ]
    assert {row.category for row in rankings} == {"c"}
    assert len(labelers) == 5


def test_noise_depends_on_seed_and_labeler_alone():
    items, scores = _items(50, ["a", "b", "c", "d"]), [[0.0, 0.1, 0.2, 0.3]] * 50
    labelers = USUAL_LABELERS
    first = simulate(items, scores, labelers, 1)
    assert first == simulate(items, scores, labelers, 1)
    assert first != simulate(items, scores, labelers, 2)
    assert simulate(items, scores, labelers[:2], 1) == [
        row for row in first if row.labeler in (labelers[0].name, labelers[1].name)
    ]


def test_noise_has_the_stated_size():
    # P(the better one wins) = Φ(0.3 / (0.3 √2)) = Φ(0.7071) = 0.7602; 4 standard errors of 4,000
    noisy = Labeler(name="noisy", noise=0.3)
    rankings = simulate(_items(4000, ["a", "b"]), [[0.5, 0.2]] * 4000, [noisy], 5)
    assert sum(row.ranks[0] == 1 for row in rankings) / 4000 == pytest.approx(0.7602, abs=0.027)


def test_a_random_labeler_ignores_gold_and_length():
    clicker = Labeler(name="r", random=True, gold_weight=5.0, length_weight=5.0)
    rankings = simulate(_items(4000, ["a b c", "d"]), [[9.0, 0.0]] * 4000, [clicker], 5)
    assert sum(row.ranks[0] == 1 for row in rankings) / 4000 == pytest.approx(0.5, abs=0.032)


def test_careful_labelers_agree_most_and_the_random_one_not_at_all():
    scores = [[(7 * i + 3 * k * k) % 11 / 5 - 1 for k in range(4)] for i in range(300)]
    rankings = simulate(_items(300, ["a", "b", "c", "d"]), scores, USUAL_LABELERS, 0)
    found = agreement(rankings)
    assert abs(found["clicks at random"]) < 0.1
    assert found["careful"] > found["hasty"] > 0.3
    decided = [
        scores[i][winner] > scores[i][loser]
        for i, merged in enumerate(consensus(rankings))
        for winner, loser in pairs(merged)
        if scores[i][winner] != scores[i][loser]
    ]
    assert sum(decided) / len(decided) > 0.85


def test_bad_input_is_told():
    with pytest.raises(DataError, match=r"scores=\[1.0\] must hold 2 numbers"):
        simulate(_items(1, ["a", "b"]), [[1.0]], [HONEST], 0)
    with pytest.raises(DataError, match="different names"):
        simulate([], [], [HONEST, HONEST], 0)
