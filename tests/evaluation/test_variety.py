"""Word n-grams, openings and BLEU: by hand, and against a slow computation."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.evaluation.variety import (
    alike,
    bleu,
    grams,
    opening,
    ring,
    varieties,
    without_each,
)

TEXTS = st.text("ab ", max_size=12)


def test_grams_and_openings():
    assert grams("a b a b", 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert grams("a", 2) == {}
    assert opening("The Cat sees\na dog") == "the cat sees"
    assert opening("") == ""


def test_variety_of_a_set_by_hand():
    # 4 a, 1 b, 1 c: H = log 6 - 4 log 4 / 6
    whole, *without = varieties([Counter("aab"), Counter("aa"), Counter("c")])
    assert whole.distinct == pytest.approx(3 / 6)
    assert whole.entropy == pytest.approx(math.log(6) - 4 * math.log(4) / 6)
    assert whole.commonest == pytest.approx(4 / 6)
    # Without "aab": 2 a, 1 c.
    assert without[0].distinct == pytest.approx(2 / 3)
    assert without[0].entropy == pytest.approx(math.log(3) - 2 * math.log(2) / 3)
    assert without[0].commonest == pytest.approx(2 / 3)


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_leaving_one_out_equals_counting_anew(texts):
    counts = [grams(text, 1) for text in texts]
    _, *without = varieties(counts)
    for i, found in enumerate(without):
        (anew, *_) = varieties(counts[:i] + counts[i + 1 :] or [Counter()])
        assert found == pytest.approx(anew, abs=1e-9)


def test_bleu_by_hand():
    # "the cat sat here" against "the cat lay here now": 3 of 4 words; pairs: "the cat" of 3, so
    # (1+1)/(3+1); triples 0 of 2: 1/3; fours 0 of 1: 1/2. Length 4 against 5: exp(1 - 5/4).
    wanted = math.exp(-0.25) * (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert bleu("the cat sat here", "the cat lay here now") == pytest.approx(wanted)
    # The other way round no penalty: 3/5, (1+1)/(4+1), 1/4, 1/3.
    other = (3 / 5 * 2 / 5 * 1 / 4 * 1 / 3) ** 0.25
    assert bleu("the cat lay here now", "the cat sat here") == pytest.approx(other)
    both = alike("the cat sat here", "the cat lay here now")
    assert both == pytest.approx((wanted + other) / 2)
    # A word counts as often as the reference has it: 1 of 3, 1/3 of pairs, 1/2, 1/1.
    assert bleu("the the the", "the cat sat") == pytest.approx((1 / 3 * 1 / 3 * 1 / 2) ** 0.25)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [("a b c", "a b c", 1.0), ("a", "a", 1.0), ("a b", "c d", 0.0), ("", "a", 0.0), ("", "", 1.0)],
)
def test_bleu_of_equal_and_of_foreign_texts(first, second, wanted):
    assert alike(first, second) == pytest.approx(wanted)


@given(TEXTS, TEXTS)
def test_likeness_is_symmetric_and_a_share(first, second):
    assert alike(first, second) == pytest.approx(alike(second, first))
    assert 0 <= alike(first, second) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("number", "partners", "each"), [(7, 2, 4), (7, 9, 6), (3, 1, 2), (2, 1, 0)]
)
def test_a_ring_pairs_everything_equally_often(number, partners, each):
    pairs = ring(number, partners, seed=3)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == number * each // 2
    assert all(first != second for first, second in pairs)
    counts = Counter(end for pair in pairs for end in pair)
    assert set(counts.values()) == ({each} if each else set())


def test_the_mean_of_pairs_without_each():
    values, pairs = np.array([1.0, 2.0, 4.0, 8.0]), [(0, 1), (1, 2), (2, 0), (0, 3)]
    # Without 0: the pair (1, 2). Without 3: 7/3.
    assert without_each(values, pairs, 4).tolist() == pytest.approx([2.0, 6.0, 4.5, 7 / 3])
