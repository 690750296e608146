import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feedback.made import item, judge, judged
from tether.feedback.judgments import Judgment
from tether.feedback.simulated import Labeler
from tether.feedback.strengths import agreed
from tether.feedback.tally import tally

RANKS = st.one_of(st.none(), st.integers(1, 4).map(float))
ROWS = st.lists(st.lists(RANKS, min_size=4, max_size=4), min_size=1, max_size=4)


def consensus(rows, *, ridge=1.0, **fields):
    """Of one item, with a labeler a row."""
    size = len(rows[0])
    judgments = [judge("p", f"l{i}", row, **fields) for i, row in enumerate(rows)]
    return agreed({"p": item("p", size)}, judgments, ridge=ridge)["p"]


def test_three_labelers_by_hand():
    found = consensus([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [2.0, 3.0, 1.0]])
    assert found.mean_ranks == pytest.approx([2, 5 / 3, 7 / 3])
    # the second beats the first twice of three times, the first the third, the second the third
    thirds = [[0.5, 1 / 3, 2 / 3], [2 / 3, 0.5, 2 / 3], [1 / 3, 1 / 3, 0.5]]
    np.testing.assert_allclose(found.shares, thirds)
    assert found.num_labelers == 3
    assert found.up is None
    assert found.scores[1] > found.scores[0] > found.scores[2]
    assert 0.5 < found.beats[1][0] < 2 / 3


def test_two_votes_to_one_and_three_of_three():
    two = consensus([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    three = consensus([[1.0, 2.0]] * 3)
    assert two.beats[0][1] == pytest.approx(0.59, abs=0.02)
    assert 0.7 < three.beats[0][1] < 0.85
    assert two.beats[1][0] == pytest.approx(1 - two.beats[0][1])


def test_the_prior_of_few_votes_is_near_one():
    rows = [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]
    chosen, given_ = consensus(rows, ridge=None), consensus(rows)
    assert chosen.beats[0][1] == pytest.approx(given_.beats[0][1], abs=0.02)


def test_a_fail_loses_and_two_fails_are_not_compared():
    found = consensus([[1.0, None, None], [2.0, None, 1.0]])
    assert found.shares[1] == [0, 0.5, 0.25]  # both fails once, then it loses
    assert found.beats[0][1] > 0.6
    # With two fails and nothing else, the two are as good as each other.
    alone = consensus([[1.0, None, None]])
    assert alone.beats[1][2] == pytest.approx(0.5)
    assert alone.scores[1] == pytest.approx(alone.scores[2])
    assert consensus([[None, None]]).scores == [0, 0]


def test_items_seen_through_pairs():
    # 0 beats 1 and 1 beats 2; 0 and 2 never met
    pairs = [("a", [1.0, 2.0, None], [1, 0]), ("b", [None, 1.0, 2.0], [1, 2])]
    judgments = [judge("p", name, ranks, shown=shown) for name, ranks, shown in pairs]
    found = agreed({"p": item("p", 3)}, judgments, ridge=1.0)["p"]
    assert found.scores[0] > found.scores[1] > found.scores[2]
    assert found.scores[1] == pytest.approx(0, abs=1e-6)
    assert found.shares[0] == [0.5, 1, 0.5]
    [block] = tally({"p": item("p", 3)}, judgments).blocks
    # pairs (01), (02), (12)
    assert block.seen.tolist() == [[True, False, False], [False, False, True]]


def test_thumbs():
    ups = [judge("p", name, [up]) for name, up in (("a", 1.0), ("b", 1.0), ("c", None))]
    found = agreed({"p": item("p", 1), "q": item("q", 1)}, ups, ridge=1.0)
    assert list(found) == ["p"]  # nobody has judged q
    assert found["p"].up == pytest.approx(0.59, abs=0.02)
    assert found["p"].beats == [[0.5]]
    # the log-odds of up, of which `up` is the average over its error
    assert 1 / (1 + np.exp(-found["p"].scores[0])) > found["p"].up
    assert found["p"].mean_ranks == [1]


def test_a_clear_choice_counts_more():
    chances = [
        consensus([[1.0, 2.0]], strength=strength).beats[0][1] for strength in (1, 2, 3, None)
    ]
    assert chances[0] < chances[1] < chances[2]
    assert chances[3] == chances[1]


def test_repeats_are_one_voice_unless_they_stand_alone():
    first, again = judge("p", "a", [1.0, 2.0]), judge("p", "a", [2.0, 1.0], repeat=True)
    items = {"p": item("p", 2)}
    assert agreed(items, [first, again], ridge=1.0) == agreed(items, [first], ridge=1.0)
    assert agreed(items, [again], ridge=1.0)["p"].shares[1][0] == 1


def test_weights():
    judgments = [judge("p", "a", [1.0, 2.0]), judge("p", "b", [2.0, 1.0])]
    items = {"p": item("p", 2)}
    even = agreed(items, judgments, ridge=1.0)["p"]
    tilted = agreed(items, judgments, {"b": 0.1}, ridge=1.0)["p"]
    assert even.beats[0][1] == pytest.approx(0.5)
    assert tilted.beats[0][1] > 0.55
    assert tilted.shares == even.shares  # the majority counts heads


@settings(deadline=None, max_examples=25)
@given(ROWS, st.permutations(range(4)), st.randoms(use_true_random=False))
def test_no_order_matters(rows, order, random):
    found = consensus(rows)
    shuffled = consensus(random.sample(rows, len(rows)))
    np.testing.assert_allclose(shuffled.scores, found.scores, atol=1e-6)
    moved = consensus([[row[i] for i in order] for row in rows])
    np.testing.assert_allclose(moved.scores, np.array(found.scores)[list(order)], atol=1e-6)
    np.testing.assert_allclose(moved.errors, np.array(found.errors)[list(order)], atol=1e-6)
    np.testing.assert_allclose(moved.beats, np.array(found.beats)[np.ix_(order, order)], atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(ROWS)
def test_more_of_the_same_narrows(rows):
    once, twice = consensus(rows), consensus(rows * 2)
    assert all(b <= a + 1e-9 for a, b in zip(once.errors, twice.errors, strict=True))
    assert once.mean_ranks == pytest.approx(twice.mean_ranks)


@settings(deadline=None, max_examples=25)
@given(ROWS, st.lists(st.text(min_size=1), min_size=4, max_size=4, unique=True))
def test_names_do_not_matter(rows, names):
    judgments = [judge("p", name, row) for name, row in zip(names, rows, strict=False)]
    found = agreed({"p": item("p", 4)}, judgments, ridge=1.0)["p"]
    np.testing.assert_allclose(found.scores, consensus(rows).scores, atol=1e-6)


@pytest.mark.parametrize("noise", [0.4, 1.5])
def test_probabilities_are_those_of_the_next_vote(noise):
    labelers = [Labeler(name=str(i), noise=noise) for i in range(4)]
    items, judgments, _scores = judged(4, labelers, num_items=600, each=4)
    known = [one for one in judgments if one.labeler != "3"]
    found = agreed(items, known)
    chance, won = [], []
    for one in judgments:
        if one.labeler == "3":
            for i in range(4):
                for j in range(i):
                    chance.append(found[one.item].beats[i][j])
                    won.append(one.ranks[i] < one.ranks[j])
    odds, won = np.log(np.array(chance) / (1 - np.array(chance))), np.array(won, dtype=float)
    slope = 1.0  # of the votes on the log-odds; 1 where these are neither too bold nor too timid
    for _step in range(20):
        expected = 1 / (1 + np.exp(-slope * odds))
        slope += np.sum(odds * (won - expected)) / np.sum(odds**2 * expected * (1 - expected))
    assert slope == pytest.approx(1, abs=0.15)


def test_items_and_judgments_must_fit():
    with pytest.raises(KeyError):
        agreed({}, [Judgment(item="p", labeler="a", ranks=[1.0])])
    assert agreed({}, []) == {}
