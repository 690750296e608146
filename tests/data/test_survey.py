import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tether.data.survey import BINS, Hashes, Lengths, is_empty, loosely, shown_numbers


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.lists(st.sampled_from("abcde")))
def test_repeats_and_what_is_in_both(texts, others):
    hashes = Hashes(texts)
    again = [i for i, text in enumerate(texts) if text in texts[:i]]
    number, first = hashes.repeats()
    assert number == len(again)
    assert first == ((texts.index(texts[again[0]]) + 1, again[0] + 1) if again else None)
    assert hashes.distinct == len(set(texts))
    assert hashes.within(Hashes(others)) == [i + 1 for i, t in enumerate(texts) if t in others]
    assert len(hashes) == len(texts)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_quantiles_are_lengths_that_there_are(lengths):
    found = Lengths()
    for length in lengths:
        found.add(length)
    ordered = sorted(lengths)
    quantiles = found.quantiles()
    assert (quantiles[0], quantiles[-1]) == (ordered[0], ordered[-1])
    half = quantiles[3]  # the smallest length that at least half do not exceed
    assert sum(each <= half for each in lengths) >= len(lengths) / 2
    assert sum(each < half for each in lengths) < len(lengths) / 2
    bars = found.histogram()
    assert len(bars) == BINS
    filled = {min(int(each / max(max(lengths), 1) * BINS), BINS - 1) for each in lengths}
    assert {i for i, bar in enumerate(bars) if bar != " "} == filled


def test_the_highest_bar_is_where_most_are():
    found = Lengths()
    for length in [100] * 8 + [0]:
        found.add(length)
    assert found.histogram() == "▂" + " " * 30 + "█"  # 1/8 of the highest: the second of eight


def test_near_copies_are_found_but_other_roles_are_others():
    assert loosely("  Why\n so ") == loosely("why so")
    said = [{"role": "user", "content": "Why  so"}]
    assert loosely(said) == [{"role": "user", "content": "why so"}]
    assert len(np.unique(Hashes([said, [{**said[0], "role": "system"}]])._all)) == 2


def test_what_says_nothing():
    assert is_empty(" \n")
    assert is_empty([{"role": "assistant", "content": ""}])
    assert not is_empty([{"role": "assistant", "content": ""}, {"role": "user", "content": "a"}])


def test_many_numbers_are_cut():
    assert list(shown_numbers([1, 2, 3])) == ["1", "2", "3"]
    assert list(shown_numbers([1, 2, 3], most=2)) == ["1", "2", "…"]
