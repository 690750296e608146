import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.errors import DataError
from tether.feedback.assignment import next_assignment
from tether.feedback.judgments import item_key
from tether.feedback.labels import add_labels, read_label, split
from tether.feedback.people import everybody, local_person
from tether.feedback.store import Project, Store
from tether.records import Ranking, pairs

from .test_assignment import judge


def ranking(labeler="ann", ranks=(2, None, 1), **fields):
    return {"prompt": "p0", "completions": ["one", "two", "three"], "ranks": list(ranks)} | {
        "labeler": labeler,
        **fields,
    }


def labels(*rows):
    return [read_label(row, f"f.jsonl:{i}") for i, row in enumerate(rows, start=1)]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "p.db", Project(name="x", num_labelers=2, repeat_share=0.0))


def test_labels_become_people_and_judgments(store):
    rows = [ranking(seconds=4.5, group="cooks"), ranking("bob", (1, 1, 7))]
    assert add_labels(store, labels(*rows)) == 2
    assert [(one.name, one.group, one.role) for one in everybody(store)] == [
        ("ann", "cooks", "labeler"),
        ("bob", "", "labeler"),
    ]
    [item] = store.items().values()
    assert item.completions == ["one", "three", "two"]
    ann, bob = store.judgments()
    assert (ann.item, ann.labeler, ann.ranks, ann.seconds) == (item.key, "ann", [2, 1, None], 4.5)
    # Whole numbers from 1: one more than those that are better. The order shown is unknown.
    assert (bob.ranks, bob.shown, bob.strength) == ([1, 3, 1], None, None)


def test_adding_twice_adds_nothing(store):
    assert add_labels(store, labels(ranking())) == 1
    assert add_labels(store, labels(ranking())) == 0
    assert add_labels(store, labels(ranking(), ranking("bob"))) == 1


def test_a_second_label_is_a_repeat_and_a_third_corrects_it(store):
    rows = labels(ranking(), ranking(ranks=(1, 2, 3)), ranking(ranks=(3, 2, 1)))
    assert add_labels(store, rows) == 3
    assert [(one.repeat, one.ranks) for one in store.judgments()] == [
        (False, [2, 1, None]),
        (True, [3, 1, 2]),
    ]
    assert add_labels(store, rows) == 0


def test_a_later_export_corrects_an_earlier_one(store):
    add_labels(store, labels(ranking()))
    assert add_labels(store, labels(ranking(ranks=(1, 2, 3)))) == 1
    assert [one.ranks for one in store.judgments()] == [[1, 3, 2]]


def test_an_imported_label_never_replaces_what_was_judged_here(store):
    add_labels(store, labels(ranking("bob")))
    assert judge(store, local_person(store, "ann").id) == "p0"
    before = store.judgments()
    assert add_labels(store, labels(ranking())) == 0
    assert store.judgments() == before


def test_items_that_were_labeled_elsewhere_need_fewer_labelers_here(store):
    add_labels(store, labels(ranking("a"), ranking("b")))  # num_labelers = 2
    assert next_assignment(store, local_person(store, "carl").id) is None


def test_who_has_labeled_elsewhere_is_not_asked_again(store):
    add_labels(store, labels(ranking("a")))
    assert next_assignment(store, local_person(store, "a").id) is None
    assert next_assignment(store, local_person(store, "b").id) is not None


def test_nothing_is_half_added(store):
    with pytest.raises(DataError, match=r"f\.jsonl:2: labeler='' names nobody"):
        add_labels(store, labels(ranking(), ranking("")))
    assert not store.items()
    assert not everybody(store)


def test_pairs_in_pair_mode(tmp_path):
    store = Store.create(tmp_path / "pair.db", Project(name="x", mode="pair"))
    pair = {"prompt": "p", "chosen": "b", "rejected": "a", "labeler": "ann"}
    rows = labels(
        {**pair, "strength": 3},
        {**pair, "prompt": "q", "probability": 0.5},
        {**pair, "prompt": "r", "probability": 0.2},
        {"prompt": "s", "completions": ["y", "x", "z"], "ranks": [1, 5, 5], "labeler": "ann"},
    )
    add_labels(store, rows)
    prompts = {key: item.prompt for key, item in store.items().items()}
    assert [(prompts[one.item], one.ranks, one.strength) for one in store.judgments()] == [
        ("p", [2, 1], 3),
        ("q", [1, 1], 0),
        ("r", [1, 2], None),  # the other one is the better, by 4 to 1
        ("s", [2, 1], None),  # x, y
        ("s", [1, 2], None),  # y, z
        ("s", [1, 1], 0),  # x, z
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ranking(seconds=-1), "f.jsonl:1: seconds=-1 must be"),
        (ranking(seconds="4"), "f.jsonl:1: seconds='4' must be"),
        (ranking(strength=4), "f.jsonl:1: strength=4 must be"),
        (ranking(labeler=3), "f.jsonl:1: labeler=3 must be a string"),
        (ranking(labeler="x" * 81), "f.jsonl:1: labeler='x.* must be a name of 1 to 80"),
        (ranking(ranks=(0, 1, 2)), r"f.jsonl:1: rank=0.0 must be a number from 1"),
        (ranking(ranks=(1, 2)), r"f.jsonl:1: ranks=.* must hold 3 ranks"),
        ({"prompt": "p", "completion": "a", "label": "x"}, "f.jsonl:1: label='x' must be true or"),
        ({"prompt": "p", "completion": "a"}, "f.jsonl:1: no label in the fields"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(DataError, match=message):
        labels(row)


@pytest.mark.parametrize(
    ("row", "mode", "message"),
    [
        (ranking(), "thumbs", "one completion with a label"),
        ({"prompt": "p", "completion": "a", "label": True}, "rank", "at least two different"),
        ({"prompt": "p", "completions": ["a", "a"], "ranks": [1, 2]}, "pair", "at least two"),
        (
            {"prompt": "p", "completions": list("abcdefghij"), "ranks": list(range(1, 11))},
            "rank",
            "at most 9",
        ),
    ],
)
def test_labels_that_do_not_fit_a_mode(row, mode, message):
    [label] = labels(row)
    with pytest.raises(DataError, match=f"f.jsonl:1: .*mode='{mode}' needs {message}"):
        split(label, mode)


RANKS = st.lists(st.none() | st.sampled_from([1.0, 1.5, 2.0, 7.0, 9.0]), min_size=2, max_size=6)


@given(RANKS)
def test_splitting_keeps_every_order(ranks):
    texts = [f"t{i}" for i in range(len(ranks))]
    [label] = labels({"prompt": "p", "completions": texts[::-1], "ranks": ranks[::-1]})
    [whole] = split(label, "rank")
    assert whole.completions == texts
    before = Ranking(prompt="p", completions=texts, ranks=ranks)
    after = Ranking(prompt="p", completions=texts, ranks=whole.ranks)
    assert pairs(after) == pairs(before)
    assert all(rank is None or rank in range(1, len(ranks) + 1) for rank in whole.ranks)
    decided = {(texts[i], texts[j]) for i, j in pairs(before)}
    parts = split(label, "pair")
    assert len({item_key("p", part.completions) for part in parts}) == len(parts)
    found = set()
    for part in parts:
        one = Ranking(prompt="p", completions=part.completions, ranks=part.ranks)
        found |= {(part.completions[i], part.completions[j]) for i, j in pairs(one)}
    assert found == decided
