import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.data import shelf
from tether.data.batches import Row, split_by_prompt
from tether.data.comparisons import Comparisons, Order, Pair, Verdict, comparison_shelf, group
from tether.data.formats import read_comparisons, read_thumbs
from tether.data.shelf import Made, Shelf, made, picked, shelved, text_hash, text_keys, watched
from tether.errors import DataError
from tether.records import PreferencePair, Ranking, Thumb, to_dict, write_jsonl

SAID = [
    Ranking(prompt="p", completions=["a", "b", "c"], ranks=[2.0, 1.0, None]),
    PreferencePair(prompt="q", chosen="x", rejected="y", probability=0.75, weight=2.0),
    PreferencePair(prompt="p", chosen="b", rejected="d", margin=1.5),
    PreferencePair(
        prompt=[{"role": "user", "content": "p"}],
        chosen=[{"role": "assistant", "content": "é\n"}],
        rejected="y",
    ),
    PreferencePair(prompt="q", chosen="z", rejected="x", labeler="kim"),
]


@pytest.fixture
def on_disk(monkeypatch):
    """Whatever is read is put on the disk at once."""
    monkeypatch.setattr(shelf, "IN_MEMORY", 1)


@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), max_size=5), max_size=30),
    st.integers(1, 400),
)
def test_a_shelf_is_the_list_whatever_fits_into_memory(items, size):
    found = shelved(items, tuple, list, size)
    assert len(found) == len(items)
    assert list(found) == items
    assert [found[i] for i in range(-len(items), 0)] == items
    assert list(found[1:7:2]) == items[1:7:2]
    with pytest.raises(IndexError):
        found[len(items)]


def test_a_shelf_moves_to_the_disk_and_can_be_read_in_between():
    # marshal writes 5 bytes for a tuple's frame, 5 for an int: an item takes 10
    found = Shelf(tuple, tuple, 20)
    states = []
    for i in range(4):
        found.append((i,))
        states.append((found.on_disk, list(found)))
    assert [disk for disk, _ in states] == [False, False, True, True]
    assert [items for _, items in states] == [[(j,) for j in range(i + 1)] for i in range(4)]
    assert found.plain() is found


def test_a_full_disk_is_told(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match=r"no room for large data \(No space left.*TMPDIR"):
        shelved([[1]], tuple, list, 1)


def test_items_made_when_asked_for():
    asked = []
    squares = Made(5, lambda i: asked.append(i) or i * i)
    assert (squares[-1], squares[1:3], len(squares)) == (16, [1, 4], 5)
    assert asked == [4, 1, 2]
    assert list(picked(squares, [3, 0])) == [9, 0]
    assert picked([5, 6, 7], [2, 0]) == [7, 5]
    assert made(2, str, like=[]) == ["0", "1"]


def test_many_items_are_watched(capsys):
    assert list(watched(Made(3, str), "reading")) == ["0", "1", "2"]
    assert "reading 3/3" in capsys.readouterr().err
    assert list(watched(["a"], "reading")) == ["a"]
    assert capsys.readouterr().err == ""


# --- splits ---------------------------------------------------------------------------------------


def test_keys_are_texts_until_they_are_many(monkeypatch):
    assert text_keys(iter(["a", "b"])) == ["a", "b"]
    monkeypatch.setattr(shelf, "IN_MEMORY", 2)
    assert list(text_keys(iter(["ab", "c", "ab"]))) == [text_hash(x) for x in ("ab", "c", "ab")]


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=25),
    st.floats(0, 0.99),
    st.integers(0, 9),
)
def test_hashes_part_prompts_as_their_texts_would(texts, share, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "IN_MEMORY", 0)
        train, held = split_by_prompt(text_keys(texts), share, seed)
    assert sorted([*train, *held]) == list(range(len(texts)))
    assert list(train) == sorted(train)
    assert not {texts[i] for i in train} & {texts[i] for i in held}
    # as many prompts are held out as by the texts, if others
    _, wanted = split_by_prompt(texts, share, seed)
    assert len({texts[i] for i in held}) == len({texts[i] for i in wanted})


# --- records and comparisons ----------------------------------------------------------------------


def test_records_come_back_from_the_disk(on_disk, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", map(to_dict, SAID))
    found = read_comparisons(tmp_path / "a.jsonl")
    assert isinstance(found, Shelf)
    assert found.on_disk
    assert list(found) == SAID
    assert list(group(found)) == list(group(SAID))


def test_texts_without_a_prompt_are_told_apart_on_the_disk(on_disk, tmp_path):
    thumbs = [Thumb(prompt="", completion=text, label=text == "b") for text in "abacb"]
    write_jsonl(tmp_path / "a.jsonl", map(to_dict, thumbs))
    found = read_thumbs(tmp_path / "a.jsonl")
    assert list(group(found)) == list(group(thumbs))
    assert [len(each.verdicts) for each in group(found)] == [2, 2, 1]


def test_comparisons_come_back_whole():
    whole = Comparisons(
        prompt="p",
        completions=["a", [{"role": "assistant", "content": "b"}]],
        pairs=[Pair(1, 0, 0.75, 0.5, 2.0)],
        orders=[Order((1, 0), (1.0, float("inf")), 2.0)],
        verdicts=[Verdict(0, False, 0.5)],
        rows=[Row([1, 2, 70000], 1), Row([3], 0)],
        copies=(0, 2),
    )
    found = comparison_shelf()
    found._in_memory = 1
    found.append(whole)
    assert found.on_disk
    assert found[0] == whole
    assert [type(x) for x in (found[0].pairs[0], found[0].rows[0])] == [Pair, Row]
