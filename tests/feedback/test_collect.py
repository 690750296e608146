"""The collect stage: rounds that share a project, simulated labelers and people."""

import json
import threading
from collections import Counter

import pytest

import tether.feedback.collect as collect_module
from tether.config import CollectConfig
from tether.errors import CheckError, ConfigError, DataError
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.collect import collect, progress, simulated_answer
from tether.feedback.people import local_person
from tether.feedback.store import Store
from tether.records import read_jsonl

# The known score is the number a completion spells: far apart, so honest labelers agree.
FUNCTIONS = """
def number(prompts, completions):
    return [float(text) for text in completions]

def nan(prompts, completions):
    return [float("nan")] + [0.0] * (len(completions) - 1)
"""
ROUNDS = [
    [
        {"prompt": "p", "completions": ["20", "-10", "10"], "finished": [True] * 3},
        {"prompt": "q", "completions": ["-20", "30"], "finished": [True, True]},
    ],
    [{"prompt": "r", "completions": ["5", "40"], "finished": [True, True]}],
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "gold.py").write_text(FUNCTIONS)
    for number, rows in enumerate(ROUNDS, start=1):
        (tmp_path / f"data-{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(number=1, function="number", **settings):
        scorer = f"{tmp_path / 'gold.py'}:{function}" if function else ""
        data, out = str(tmp_path / f"data-{number}.jsonl"), str(tmp_path / f"labels-{number}")
        return CollectConfig(data=(data,), out=out, scorer=scorer, **settings)

    return make


def rows(folder, name):
    return [row for _, row in read_jsonl(folder / f"{name}.jsonl")]


def test_simulated_labelers_judge_what_came_and_each_item_has_its_three(config):
    folder = collect(config())
    judgments = rows(folder, "judgments")
    assert Counter(row["prompt"] for row in judgments) == {"p": 3, "q": 3}
    pairs = {(row["chosen"], row["rejected"]): row["probability"] for row in rows(folder, "pairs")}
    assert pairs["30", "-20"] > 0.5
    result = json.loads((folder / "result.json").read_text())
    assert result["judgments"] == 6
    assert result["project"].endswith("feedback.db")


def test_the_next_round_has_the_judgments_of_both_and_whatever_came_between(config, tmp_path):
    first = collect(config(1))
    store = Store(tmp_path / "feedback.db")
    late = local_person(store, "late").id
    # All items are full; a labeler more is let in by asking for one more judgment of q.
    with store.write() as db:
        db.execute("UPDATE items SET needed = needed + 1 WHERE prompt = '\"q\"'")
    given = next_assignment(store, late)
    submit(
        store,
        late,
        Answer(assignment=given.id, submission="by hand 1", verdict="ranked", ranks=[1.0, 1.0]),
    )
    second = collect(config(2))
    assert "late" not in {row["labeler"] for row in rows(first, "judgments")}
    assert Counter(row["prompt"] for row in rows(second, "judgments")) == {"p": 3, "q": 4, "r": 3}
    assert "late" in {row["labeler"] for row in rows(second, "judgments")}


def test_a_finished_stage_is_kept_and_equal_seeds_give_equal_judgments(config, tmp_path):
    folder = collect(config(1))
    before = (folder / "judgments.jsonl").read_bytes()
    assert collect(config(1)) == folder
    (tmp_path / "feedback.db").rename(tmp_path / "old.db")
    for rest in tmp_path.glob("feedback.db-*"):
        rest.unlink()
    (folder / "result.json").unlink()
    collect(config(1))
    assert (folder / "judgments.jsonl").read_bytes() == before


def test_only_some_labelers_or_groups_come_out(config):
    folder = collect(config(labelers=("careful",)))
    assert {row["labeler"] for row in rows(folder, "judgments")} == {"careful"}


def test_it_waits_for_people(config, tmp_path, monkeypatch):
    """A person judges while the stage waits: it ends once the share asked for is there."""
    looked, judged = threading.Event(), threading.Event()

    def look(_):
        looked.set()
        assert judged.wait(30)

    monkeypatch.setattr(collect_module.time, "sleep", look)
    done = []
    settings = config(function="", num_labelers=1, enough=0.5)
    stage = threading.Thread(target=lambda: done.append(collect(settings)))
    stage.start()
    assert looked.wait(30)
    store = Store(tmp_path / "feedback.db")
    ann = local_person(store, "ann").id
    given = next_assignment(store, ann)
    ranks = [float(place + 1) for place in range(len(given.completions))]
    submit(
        store,
        ann,
        Answer(assignment=given.id, submission="by hand 1", verdict="ranked", ranks=ranks),
    )
    assert progress(store) == (2, 1)
    judged.set()
    stage.join(30)
    assert len(rows(done[0], "judgments")) == 1


def test_what_the_modes_answer():
    # ranks by utility; 1.2 apart is clear (2), 0.4 slight (1), 2 much (3), none a tie
    assert simulated_answer(1, "rank", [0.5, 2.0, -1.0]).ranks == [2.0, 1.0, 3.0]
    pairs = {apart: simulated_answer(1, "pair", [0.0, apart]) for apart in (1.2, 0.4, 2.0, 0.0)}
    assert [pairs[apart].strength for apart in (1.2, 0.4, 2.0, 0.0)] == [2, 1, 3, 0]
    assert pairs[1.2].ranks == [2.0, 1.0]
    assert pairs[0.0].ranks == [1.0, 1.0]
    assert simulated_answer(1, "thumbs", [0.1]).ranks == [1.0]
    assert simulated_answer(1, "thumbs", [-0.1]).ranks == [None]


def test_thumbs_come_out_as_thumbs(config):
    folder = collect(config(mode="thumbs"))
    labels = {row["completion"]: row["label"] for row in rows(folder, "thumbs")}
    assert (labels["30"], labels["-20"]) == (True, False)
    assert not (folder / "pairs.jsonl").exists()


def test_bad_input(config, tmp_path):
    with pytest.raises(CheckError, match=r"returned 5 scores for 5 completions, 4 of them finite"):
        collect(config(function="nan"))
    collect(config(1))
    with pytest.raises(ConfigError, match="mode='pair' but"):
        collect(config(2, mode="pair"))
    (tmp_path / "data-2.jsonl").write_text("")
    with pytest.raises(DataError, match=r"data-2\.jsonl"):
        collect(config(2))
