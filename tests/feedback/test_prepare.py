import io
import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.errors import ConfigError, DataError
from tether.feedback.prepare import (
    Candidates,
    ImportConfig,
    Imported,
    import_feedback,
    make_items,
)
from tether.feedback.store import Project, Store
from tether.records import Completions, to_dict, write_jsonl

MESSAGES = [{"role": "user", "content": "Hi"}]


def completions(prompt, texts, model="", category=""):
    finished = [True] * len(texts)
    return Completions(
        prompt=prompt, completions=texts, finished=finished, model=model, category=category
    )


def add(store, records, pairs=0):
    """How many items were new."""
    given = [Candidates(one.prompt, one.completions, one.category, one.model) for one in records]
    return store.add_items(make_items(given, store.project, pairs=pairs)[0])


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="rows.jsonl"):
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "project.db")


def items(path):
    store = Store(path)
    found = list(store.items().values())
    store.close()
    return found


# --- items by mode --------------------------------------------------------------------------------


def test_completions_of_several_models_become_one_item(db, file):
    first = file(to_dict(completions("p", ["b", "c"], "small", "cat")), name="one.jsonl")
    second = file(
        to_dict(completions("p", ["a", "b"], "large")),
        to_dict(completions(MESSAGES, ["x", "y"], "large")),
        name="two.jsonl",
    )
    found = import_feedback(ImportConfig(path=db, data=(first, second)))
    assert found == Imported(items=2, gold=0, judgments=0, skipped=0)
    [item, other] = items(db)
    # Sorted, so that no order tells who wrote what; both models wrote "b".
    assert item.completions == ["a", "b", "c"]
    assert item.sources == ["large", "small, large", "small"]
    assert (item.prompt, item.category, item.gold) == ("p", "cat", None)
    assert (other.prompt, other.completions) == (MESSAGES, ["x", "y"])


def test_importing_twice_adds_nothing_in_any_order(db, file):
    texts = ["b", "a", "c"]
    for mode in ("rank", "pair", "thumbs"):
        path = db.replace("project", mode)
        store = Store.create(path, Project(name="x", mode=mode))
        assert add(store, [completions("p", texts)], pairs=2) > 0
        assert add(store, [completions("p", texts[::-1])], pairs=2) == 0


def test_pairs_are_all_or_some_drawn_by_the_seed(db):
    four = [Candidates("p", ["a", "b", "c", "d"])]

    def drawn(number, seed=0):
        project = Project(name="x", mode="pair", seed=seed)
        return [tuple(item.completions) for item in make_items(four, project, pairs=number)[0]]

    every = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert drawn(0) == drawn(6) == drawn(9) == every
    assert len(set(drawn(2))) == 2
    assert set(drawn(2)) <= set(every)
    assert drawn(2) == drawn(2)
    assert len({tuple(drawn(2, seed)) for seed in range(20)}) > 3


def test_thumbs_are_one_item_a_completion(db, file):
    data = file(
        {"prompt": "p", "completion": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completions": ["a"], "ranks": [1]},
    )
    found = import_feedback(ImportConfig(path=db, data=(data,), mode="thumbs"))
    assert found.items == 3
    assert [(one.prompt, one.completions) for one in items(db)] == [
        ("p", ["a"]),
        ("p", ["b"]),
        ("q", ["a"]),
    ]


def test_prompts_without_two_completions_are_skipped_and_counted(db, file):
    data = file(
        {"prompt": "p", "completions": ["a", "a"]},
        {"prompt": "q", "completions": []},
        {"prompt": "r", "completions": ["a", "b"]},
    )
    assert import_feedback(ImportConfig(path=db, data=(data,))) == Imported(1, 0, 0, 2)


def test_more_completions_than_number_keys_are_refused(db, file):
    nine = {"prompt": "p", "completions": list("abcdefghi")}
    assert import_feedback(ImportConfig(path=db, data=(file(nine),))).items == 1
    ten = {"prompt": "q", "completions": list("abcdefghij")}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: prompt='q' has 10 different .* at most 9"):
        import_feedback(ImportConfig(path=db, data=(file(nine, ten),)))
    assert len(items(db)) == 1


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.lists(st.sampled_from("abcd")))))
def test_every_distinct_text_is_in_one_item(rows):
    made, skipped = make_items([Candidates(*row) for row in rows], Project(name="x"))
    texts = {}
    for prompt, answers in rows:
        texts.setdefault(prompt, set()).update(answers)
    wanted = {prompt: sorted(answers) for prompt, answers in texts.items() if len(answers) > 1}
    assert {item.prompt: item.completions for item in made} == wanted
    assert skipped == len(texts) - len(wanted)


# --- reading --------------------------------------------------------------------------------------


def test_standard_input(db, monkeypatch):
    text = json.dumps({"prompt": "p", "completions": ["é", 'a "b"\n<script>']}) + "\n\nnonsense\n"
    lines = text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    with pytest.raises(DataError, match="standard input:3: not JSON"):
        import_feedback(ImportConfig(path=db, data=("-",)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines[: lines.index(b"\n")])))
    import_feedback(ImportConfig(path=db, data=("-",)))
    assert items(db)[0].completions == ["é", 'a "b"\n<script>']  # by their JSON


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "rows.jsonl:2: no completion in the fields 'prompt'; needed is"),
        ({"completions": ["a"]}, "rows.jsonl:2: .*needs the field 'prompt'"),
        ({"prompt": "p", "completions": "a"}, "rows.jsonl:2: completions='a' must be a list"),
        ({"prompt": "p", "completions": [3]}, r"rows.jsonl:2: completions=\[3\] must be"),
        ({"prompt": 3, "completion": "a"}, "rows.jsonl:2: prompt=3 must be"),
    ],
)
def test_a_bad_row_leaves_no_project(tmp_path, db, file, row, message):
    data = file({"prompt": "p", "completions": ["a", "b"]}, row)
    with pytest.raises(DataError, match=message):
        import_feedback(ImportConfig(path=db, data=(data,)))
    assert not (tmp_path / "project.db").exists()


def test_many_items_in_seconds(db):
    records = [completions(f"prompt {i}", ["a", "b", "c", "d"], "m") for i in range(5000)]
    store = Store.create(db, Project(name="x"))
    started = time.process_time()
    assert add(store, records) == 5000
    assert time.process_time() - started < 3  # 100,000 within a minute


# --- control items --------------------------------------------------------------------------------


def test_control_items_of_each_mode(tmp_path, file):
    ranking = {"prompt": "g", "completions": ["c", "a", "b"], "ranks": [None, 2, 1]}
    pair = {"prompt": "h", "chosen": "y", "rejected": "x"}
    thumb = {"prompt": "i", "completion": "z", "label": 0}

    def gold(mode, *rows):
        path = str(tmp_path / f"{mode}.db")
        data = file({"prompt": "p", "completions": ["a", "b"]})
        config = ImportConfig(path=path, data=(data,), mode=mode, gold=file(*rows, name="g.jsonl"))
        assert import_feedback(config).gold > 0
        known = [one for one in items(path) if one.gold is not None]
        return [(one.prompt, one.completions, one.gold) for one in known]

    assert gold("rank", ranking, pair) == [
        ("g", ["a", "b", "c"], [2, 1, None]),
        ("h", ["x", "y"], [2, 1]),
    ]
    # Each of the three pairs of the ranking: b before a, and both before the fail.
    assert gold("pair", ranking) == [
        ("g", ["a", "c"], [1, None]),
        ("g", ["b", "c"], [1, None]),
        ("g", ["a", "b"], [2, 1]),
    ]
    assert gold("thumbs", thumb) == [("i", ["z"], [None])]


def test_a_known_answer_must_fit_the_mode(db, file):
    config = ImportConfig(
        path=db, gold=file({"prompt": "h", "chosen": "y", "rejected": "x"}), mode="thumbs"
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*mode='thumbs' needs one completion"):
        import_feedback(config)


# --- the project ----------------------------------------------------------------------------------


def test_settings_of_a_new_project_and_of_one_that_exists(tmp_path, db, file):
    text = tmp_path / "how.md"
    text.write_text("Be *kind*.", encoding="utf-8")
    data = file({"prompt": "p", "completions": ["a", "b"]})
    made = ImportConfig(
        path=db, data=(data,), instructions=str(text), mode="pair", num_labelers=5, seed=3
    )
    import_feedback(made)
    store = Store(db)
    assert store.project == Project(name="project", mode="pair", num_labelers=5, seed=3)
    assert store.instructions() == (1, "Be *kind*.")
    import_feedback(ImportConfig(path=db, data=(data,)))  # what is left out stays as it is
    assert store.instructions() == (1, "Be *kind*.")
    text.write_text("Be brief.", encoding="utf-8")
    import_feedback(ImportConfig(path=db, instructions=str(text), mode="pair"))
    assert store.instructions() == (2, "Be brief.")
    with pytest.raises(ConfigError, match=r"mode='rank' but .*project\.db was made with 'pair'"):
        import_feedback(ImportConfig(path=db, data=(data,), mode="rank"))


def test_settings_that_cannot_work(db):
    with pytest.raises(ConfigError, match=r"data=.* must name at least one file"):
        import_feedback(ImportConfig(path=db))
    with pytest.raises(ConfigError, match="pairs=-1"):
        ImportConfig(path=db, data=("x",), pairs=-1)
    with pytest.raises(ConfigError, match="data='-' can be read with"):
        ImportConfig(path=db, data=("-",), labels="csv")
    with pytest.raises(ConfigError, match=r"instructions='nowhere\.md' cannot be read"):
        import_feedback(ImportConfig(path=db, instructions="nowhere.md"))
    with pytest.raises(ConfigError, match=r"path='a\.txt' must be a file name that ends in \.db"):
        ImportConfig(path="a.txt", data=("x",))
