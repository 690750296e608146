import json

import pytest

from tests.feedback.made import crowd, item, judge, judged
from tether.errors import DataError
from tether.feedback import report
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.people import local_person
from tether.feedback.report import print_agreement, read_judgments, summarize
from tether.feedback.store import Project, Store
from tether.records import PreferencePair, Ranking, Thumb, to_dict, write_jsonl
from tether.statistics import Interval


@pytest.fixture
def rankings(tmp_path):
    items, judgments, _scores = judged(0, crowd(0.5))
    path = tmp_path / "rankings.jsonl"
    write_jsonl(
        path,
        [
            to_dict(
                Ranking(
                    prompt=one.item,
                    completions=items[one.item].completions,
                    ranks=one.ranks,
                    labeler=one.labeler,
                )
            )
            for one in judgments
        ],
    )
    return str(path)


def test_what_is_printed_of_a_file(rankings, capsys):
    print_agreement(rankings)
    text = " ".join(capsys.readouterr().out.split())
    assert "240 rankings on 80 items, 80 of them by several" in text
    assert "Krippendorff's α, ranks (ordinal)" in text
    assert "random: Reliability" in text
    assert "reversed: Ranks in the reverse order" in text
    assert "Labelers differ most on:" in text


def test_the_summary_of_a_project(tmp_path):
    path = str(tmp_path / "p.db")
    store = Store.create(path, Project(name="colours", criterion="honest", repeat_share=0.0))
    store.add_items([item("p", 2), item("q", 2)])
    for name in ("ann", "bob"):
        person = local_person(store, name).id
        while given := next_assignment(store, person):
            ranks = [1.0 if text.endswith("0") else 2.0 for text in given.completions]
            answer = {"assignment": given.id, "submission": f"{name} number {given.id}"}
            submit(store, person, Answer(verdict="ranked", ranks=ranks, seconds=3.0, **answer))
    store.close()
    items, judgments, project = read_judgments(path)
    summary = summarize(items, judgments, project)
    assert (summary.project, summary.criterion) == ("colours", "honest")
    [found] = summary.agreement
    assert (found.kind, found.items, found.overlapping, found.judgments) == ("rankings", 2, 2, 4)
    assert found.unanimous == found.tau.mean == 1
    assert found.alpha_ranks is None  # of two completions, ranks tell what pairs do
    assert [one.labeler for one in summary.labelers] == ["ann", "bob"]
    assert summary.labelers[0].seconds == 3
    assert summary.disputed == []
    assert {one.shares[0][1] for one in summary.consensus.values()} == {1.0}


def test_pairs_and_thumbs(tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    records = [
        PreferencePair(prompt="p", chosen="a", rejected="b", labeler="ann"),
        PreferencePair(prompt="p", chosen="b", rejected="a", labeler="bob"),
        Thumb(prompt="p", completion="a", label=True, labeler="ann"),
        Thumb(prompt="p", completion="a", label=False, labeler="bob"),
        Thumb(prompt="q", completion="c", label=True, labeler="[bold]cem"),
    ]
    write_jsonl(path, map(to_dict, records))
    summary = summarize(*read_judgments(str(path)))
    assert [(one.kind, one.items, one.overlapping) for one in summary.agreement] == [
        ("rankings", 1, 1),
        ("thumbs", 2, 1),
    ]
    assert [one.dispute for one in summary.disputed] == [1, 1]
    print_agreement(str(path))
    text = capsys.readouterr().out
    assert "Krippendorff's α, up or down" in text
    assert "[bold]cem" in text


def test_one_labeler_alone(tmp_path, capsys):
    path = tmp_path / "alone.jsonl"
    write_jsonl(path, [to_dict(Thumb(prompt="q", completion="c", label=True, labeler="ann"))])
    print_agreement(str(path))
    assert "Nobody has judged the same item as another" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "a", "label": True}, "1: labeler='' names nobody"),
        (
            {"prompt": "p", "completion": "a"},
            "1: is no ranking .* fields found are 'prompt', 'comp",
        ),
        ({"prompt": "p", "ranks": [1]}, "1: a Ranking needs the field 'completions'"),
        (None, "holds no judgments"),
    ],
)
def test_bad_files_are_told(tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    path.write_text("" if row is None else json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        print_agreement(str(path))


def test_an_empty_project_is_told(tmp_path):
    Store.create(tmp_path / "p.db", Project(name="p")).close()
    with pytest.raises(DataError, match=r"holds no judgments; label some with `tether label"):
        print_agreement(str(tmp_path / "p.db"))


def test_partial_rankings_leave_whole_ranks_out():
    items = {"p": item("p", 3)}
    judgments = [judge("p", name, [1.0, 2.0, None], shown=[0, 1]) for name in "ab"]
    [found] = summarize(items, judgments).agreement
    assert found.judgments == 2
    assert found.unanimous == 1


def test_a_figure_is_shown_as_far_as_it_is_known():
    nan = float("nan")
    assert report.figure(Interval(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert report.figure(Interval(0.5, nan, nan)) == "0.50"
    assert report.figure(Interval(nan, nan, nan)) == report.figure(nan) == "undefined"
    assert report.figure(None) == ""
