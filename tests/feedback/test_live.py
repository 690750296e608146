"""Judgments of what was written just now: stored like any other, whatever order was shown."""

import pytest

from tether.data.formats import read_comparisons, read_thumbs
from tether.errors import DataError
from tether.feedback.assignment import next_assignment
from tether.feedback.live import Written, judge, open_project
from tether.feedback.people import local_person

A, B = Written("zebra", "model a"), Written("ant", "model b")  # stored order: ant, zebra


@pytest.fixture
def store(tmp_path):
    return open_project(tmp_path / "pairs.db", "pair")


@pytest.fixture
def ann(store):
    return local_person(store, "Ann").id


def test_a_choice_becomes_an_item_and_a_judgment(store, ann):
    judge(store, ann, "Which?", [A, B], [1.0, 2.0], strength=2, submission="number-1", seconds=3.5)
    [item] = store.items().values()
    assert item.completions == ["ant", "zebra"]
    assert item.sources == ["model b", "model a"]
    [said] = store.judgments()
    assert said.ranks == [2, 1]  # zebra, which stood at A, is stored second
    assert said.shown == [1, 0]
    assert (said.labeler, said.strength, said.seconds) == ("Ann", 2, 3.5)
    [pair] = read_comparisons(store.path)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Which?", "zebra", "ant")


def test_it_is_handed_out_to_nobody_once_it_has_its_labelers(store, ann):
    judge(store, ann, "Which?", [A, B], [1.0, 2.0], strength=2, submission="number-1")
    assert next_assignment(store, ann) is None
    assert next_assignment(store, local_person(store, "Bob").id) is None


def test_sent_twice_is_stored_once(store, ann):
    numbers = {
        judge(store, ann, "Which?", [A, B], [1.0, 2.0], strength=2, submission="number-1")
        for _ in range(2)
    }
    assert len(numbers) == len(store.judgments()) == 1
    assert next_assignment(store, ann) is None


def test_the_same_texts_again_supersede(store, ann):
    judge(store, ann, "Which?", [A, B], [1.0, 2.0], strength=2, submission="number-1")
    judge(store, ann, "Which?", [B, A], [1.0, 2.0], strength=3, submission="number-2")
    [said] = store.judgments()
    assert (said.ranks, said.shown, said.strength) == ([1, 2], [0, 1], 3)


def test_a_text_that_two_models_wrote_names_both(store, ann):
    judge(store, ann, "Which?", [A, B], [1.0, 2.0], strength=2, submission="number-1")
    swapped = [Written("zebra", "model b"), Written("ant", "model a")]
    judge(store, ann, "Which?", swapped, [1.0, 2.0], strength=2, submission="number-2")
    [item] = store.items().values()
    assert item.sources == ["model b, model a", "model a, model b"]


def test_both_bad_are_fails_and_no_pair(store, ann):
    judge(store, ann, "Which?", [A, B], [None, None], strength=0, submission="number-1")
    assert store.judgments()[0].ranks == [None, None]
    with pytest.raises(DataError, match="comparison"):
        read_comparisons(store.path)


def test_thumbs(tmp_path):
    store = open_project(tmp_path / "chat.db", "thumbs")
    ann = local_person(store, "Ann").id
    chat = [{"role": "user", "content": "Hi"}]
    judge(store, ann, chat, [Written("Hello!", "m")], [1.0], submission="number-1")
    judge(store, ann, chat, [Written("Go away", "m")], [None], submission="number-2")
    told = [(thumb.prompt, thumb.completion, thumb.label) for thumb in read_thumbs(store.path)]
    assert told == [(chat, "Hello!", True), (chat, "Go away", False)]


def test_refusals(store, ann, tmp_path):
    with pytest.raises(DataError, match="must be 2 in mode='pair'"):
        judge(store, ann, "Which?", [A], [1.0], submission="number-1")
    with pytest.raises(DataError, match=r"mode='pair', and this needs 'thumbs'"):
        open_project(store.path, "thumbs")
    with pytest.raises(DataError, match=r"ends in \.db"):
        open_project(tmp_path / "chat.sqlite", "thumbs")
    with pytest.raises(DataError, match="strength"):
        judge(store, ann, "Which?", [A, B], [1.0, 2.0], submission="number-1")
    assert store.judgments() == []
