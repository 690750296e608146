"""What training reads from a feedback project."""

import sys

import pytest

from tether.cli import main
from tether.data.comparisons import group
from tether.data.formats import (
    read_comparisons,
    read_completions,
    read_demonstrations,
    read_prompts,
    read_thumbs,
)
from tether.errors import DataError
from tether.feedback.export import export
from tether.feedback.labels import add_labels, read_label
from tether.feedback.store import Project, Store
from tether.records import PreferencePair, Prompt, Ranking, Thumb, to_dict, write_jsonl

RANKINGS = [("ann", [1, 2, None]), ("bob", [1, 2, None]), ("cat", [2, 1, None])]


def make(path, rows=RANKINGS, mode="rank"):
    store = Store.create(path, Project(name="x", mode=mode))
    texts = ["a", "b", "c"]
    labels = [
        {"prompt": "p", "completions": texts[: len(ranks)], "ranks": ranks, "labeler": who}
        for who, ranks in rows
    ]
    add_labels(store, [read_label({**row, "category": "cat"}, "row") for row in labels])
    return store


@pytest.fixture
def path(tmp_path):
    make(tmp_path / "p.db").close()
    return tmp_path / "p.db"


def test_comparisons_are_pairs_with_a_probability(path):
    found = read_comparisons(path)
    assert all(isinstance(one, PreferencePair) for one in found)
    # Two of three prefer a to b, all prefer both to c: the surest is the best against the worst.
    chosen = {(one.chosen, one.rejected): one.probability for one in found}
    assert list(chosen) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert 0.5 < chosen["a", "b"] < chosen["b", "c"] < chosen["a", "c"] < 1
    [comparisons] = group(found)
    assert [pair.probability for pair in comparisons.pairs] == list(chosen.values())


def test_the_margin_of_a_consensus_is_not_counted_beside_its_probability(path, tmp_path):
    rows = export(path, "pairs")
    assert all(row["margin"] > 0 for row in rows)
    [comparisons] = group(read_comparisons(path))
    assert [pair.margin for pair in comparisons.pairs] == [0, 0, 0]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert group(read_comparisons(tmp_path / "pairs.jsonl")) == [comparisons]
    alone = PreferencePair(prompt="p", chosen="a", rejected="b", margin=2.0, num_labelers=3)
    assert group([alone])[0].pairs[0].margin == 2.0


def test_whole_rankings_for_losses_on_lists(path):
    [ranking] = read_comparisons(path, whole=True)
    assert ranking == Ranking(
        prompt="p",
        completions=["a", "b", "c"],
        ranks=[1.0, 2.0, None],
        criterion="helpful",
        category="cat",
        num_labelers=3,
    )


def test_thumbs_and_prompts(path):
    up, down = read_thumbs(path)
    # a is first for two of three; all failed c.
    assert (up.completion, up.label, up.weight) == ("a", True, pytest.approx(2 / 3, abs=1e-6))
    assert down == Thumb(prompt="p", completion="c", label=False, criterion="helpful")
    assert read_prompts(path) == [Prompt(prompt="p", category="cat")]


def test_thumbs_stay_thumbs_where_all_are_up(tmp_path):
    make(tmp_path / "t.db", [("ann", [1])], mode="thumbs").close()
    assert [one.label for one in read_thumbs(tmp_path / "t.db")] == [True]


def test_a_new_judgment_is_read_at_once(path):
    store = Store(path)
    row = {"prompt": "q", "chosen": "x", "rejected": "y", "labeler": "ann"}
    assert len(read_comparisons(path)) == 3
    add_labels(store, [read_label(row, "row")])
    assert len(read_comparisons(path)) == 4


@pytest.mark.parametrize("read", [read_demonstrations, read_completions])
def test_what_is_no_judgment_is_refused(path, read):
    with pytest.raises(
        DataError, match=r"from a feedback project.*`tether feedback export .*p\.db"
    ):
        read(path)


def test_a_project_without_judgments(tmp_path):
    make(tmp_path / "empty.db", []).close()
    with pytest.raises(DataError, match=r"empty\.db: holds no comparisons.*`tether label"):
        read_comparisons(tmp_path / "empty.db")
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.db")


def test_what_is_no_project(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.db: no such project"):
        read_comparisons(tmp_path / "nowhere.db")
    (tmp_path / "text.db").write_text("not a database, whatever its name says")
    with pytest.raises(DataError, match=r"text\.db: no feedback project can be read"):
        read_comparisons(tmp_path / "text.db")


def test_data_check_says_what_a_project_is_for(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tether", "data", "check", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr().out
    for line in (
        "reward --data  3 records",
        "kto --data     2 records",
        "ppo --prompts  1 records",
    ):
        assert f"tether {line}" in said
    assert "not for sft --data: " in said


def test_the_number_of_labelers_is_a_field_of_records(tmp_path):
    pair = PreferencePair(prompt="p", chosen="a", rejected="b", num_labelers=3)
    write_jsonl(tmp_path / "x.jsonl", [to_dict(pair)])
    assert read_comparisons(tmp_path / "x.jsonl") == [pair]
    write_jsonl(tmp_path / "x.jsonl", [to_dict(pair) | {"num_labelers": 0}])
    with pytest.raises(DataError, match="num_labelers=0 must be a whole number from 1"):
        read_comparisons(tmp_path / "x.jsonl")
