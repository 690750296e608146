import json
import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tether.feedback.export as export_module
from tether.data.formats import read_comparisons, read_thumbs
from tether.data.shapes import hh_transcripts
from tether.errors import ConfigError, DataError
from tether.feedback.export import (
    ExportConfig,
    export,
    export_feedback,
    in_test,
    prompts,
    transcript,
)
from tether.feedback.groups import by_labeler
from tether.feedback.labels import add_labels, read_label
from tether.feedback.store import Project, Store
from tether.feedback.strengths import agreed
from tether.records import PreferencePair, Ranking, Thumb, from_dict, read_jsonl

TEXTS = ["a", "b", "c"]


def project(folder, *rows, mode="rank", **settings):
    """A project with one label a row: (labeler, prompt, ranks), of the completions a, b, c."""
    store = Store.create(folder / "p.db", Project(name="x", mode=mode, **settings))
    labels = [
        {"prompt": prompt, "completions": TEXTS[: len(ranks)], "ranks": ranks, "labeler": who}
        for who, prompt, ranks in rows
    ]
    add_labels(store, [read_label(row, "row") for row in labels])
    return store


@pytest.fixture
def shares(monkeypatch):
    """Opinions by hand: p = (wins + ties / 2 + 1/2) / (n + 1), s = mean log-odds."""

    def opinion(judgments, size):
        beats = [[0.5] * size for _ in range(size)]
        for i, j in permutations(range(size), 2):
            said = [(_order(one.ranks[i]), _order(one.ranks[j])) for one in judgments]
            said = [(a, b) for a, b in said if min(a, b) < 9]
            wins = sum((a < b) + (a == b) / 2 for a, b in said)
            beats[i][j] = (wins + 0.5) / (len(said) + 1)
        odds = [sum(math.log(p / (1 - p)) for p in row) / size for row in beats]
        return export_module.Opinion(odds, beats)

    def opinions(items, judgments):
        by_item = {key: [one for one in judgments if one.item == key] for key in items}
        sizes = {key: len(item.completions) for key, item in items.items()}
        return {key: opinion(by_item[key], sizes[key]) for key in items if by_item[key]}

    monkeypatch.setattr(export_module, "opinions", opinions)


def told(rows):
    return [(row["chosen"], row["rejected"], row["probability"]) for row in rows]


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_of_three_labelers(tmp_path, shares):
    store = project(
        tmp_path,
        ("ann", "p", [1, 2, 3]),
        ("bob", "p", [1, 1, None]),
        ("cat", "p", [2, 1, 3]),
        criterion="brief",
    )
    rows = export(store, "pairs")
    # a against b: one win, one tie, one loss: (1 + 1/2 + 1/2) / 4 = 1/2, so no pair. Both against
    # c: three wins of three, (3 + 1/2) / 4 = 0.875, and log-odds log 7 = 1.945910. Scores: a and b
    # have (0 + log 7)/3, c has -2 (log 7)/3; the margin is log 7.
    assert told(rows) == [("a", "c", 0.875), ("b", "c", 0.875)]
    assert rows[0] == {
        "prompt": "p",
        "chosen": "a",
        "rejected": "c",
        "margin": pytest.approx(1.945910, abs=1e-6),
        "probability": 0.875,
        "criterion": "brief",
        "num_labelers": 3,
    }


def test_probability_and_margin_are_those_of_the_consensus(tmp_path):
    rows = [(name, "p", [1, 2, 3]) for name in ("ann", "bob")] + [("cat", "p", [3, 1, 2])]
    store = project(tmp_path, *rows)
    [consensus] = agreed(store.items(), store.judgments()).values()
    found = {(row["chosen"], row["rejected"]): row for row in export(store, "pairs")}
    assert {frozenset(pair) for pair in found} >= {frozenset("ac"), frozenset("bc")}
    for (chosen, rejected), row in found.items():
        i, j = TEXTS.index(chosen), TEXTS.index(rejected)
        assert row["probability"] == pytest.approx(consensus.beats[i][j], abs=1e-6)
        assert row["margin"] == pytest.approx(consensus.scores[i] - consensus.scores[j], abs=1e-6)


def test_two_to_one(tmp_path, shares):
    rows = [("ann", "p", [1, 2]), ("bob", "p", [1, 2]), ("cat", "p", [2, 1])]
    [row] = export(project(tmp_path, *rows, mode="pair"), "pairs")
    # (2 + 1/2) / 4 = 0.625; the margin is log(0.625 / 0.375) = log(5/3).
    assert (row["probability"], row["num_labelers"]) == (0.625, 3)
    assert row["margin"] == pytest.approx(0.510826, abs=1e-6)


def test_fails_stand_below_everything_and_make_no_pair_with_each_other(tmp_path, shares):
    store = project(tmp_path, ("ann", "p", [None, None, 1]), ("bob", "p", [None, None, 3]))
    # Each against c: 2 of 2, (2 + 1/2) / 3.
    assert told(export(store, "pairs")) == [
        ("c", "a", pytest.approx(2.5 / 3, abs=1e-6)),
        ("c", "b", pytest.approx(2.5 / 3, abs=1e-6)),
    ]


def test_what_most_failed_is_never_chosen(tmp_path):
    # Three of five fail a; of the two others both prefer it. b is failed by two.
    votes = [[None, None], [None, None], [None, 1], [1, 2], [1, 2]]
    rows = [(f"l{i}", "p", ranks) for i, ranks in enumerate(votes)]
    store = project(tmp_path, *rows, mode="pair")
    assert export(store, "pairs") == []


def test_a_repeat_is_no_second_voice_and_control_items_are_left_out(tmp_path, shares):
    store = project(
        tmp_path, ("ann", "p", [1, 2]), ("ann", "p", [2, 1]), ("ann", "gold", [1, 2]), mode="pair"
    )
    assert [one.repeat for one in store.judgments()] == [False, True, False]
    with store.write() as db:
        db.execute("UPDATE items SET gold = '[1.0, 2.0]' WHERE prompt = '\"gold\"'")
    assert told(export(store, "pairs")) == [("a", "b", 0.75)]  # (1 + 1/2) / 2
    assert prompts(store) == [{"prompt": "p"}]


def test_labelers_and_groups(tmp_path, shares):
    store = project(tmp_path, ("ann", "p", [1, 2]), ("bob", "p", [2, 1]), mode="pair")
    with store.write() as db:
        db.execute("UPDATE people SET team = 'cooks' WHERE name = 'bob'")
    assert export(store, "pairs") == []
    assert told(export(store, "pairs", labelers=["ann"])) == [("a", "b", 0.75)]
    assert told(export(store, "pairs", groups=["cooks"])) == [("b", "a", 0.75)]
    with pytest.raises(DataError, match="labeler='eve' is not in"):
        export(store, "pairs", labelers=["eve"])


def test_each_labeler_alone(tmp_path):
    store = project(tmp_path, ("ann", "p", [1, 2]), ("bob", "p", [2, 1]), ("bob", "q", [1, 1]))
    rows = export(store, "pairs", each=True)
    assert [(row["chosen"], row["labeler"]) for row in rows] == [("a", "ann"), ("b", "bob")]
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "criterion", "labeler"}
    ranked = by_labeler(export(store, "rankings", each=True))
    assert {who: [row["ranks"] for row in given] for who, given in ranked.items()} == {
        "ann": [[1, 2]],
        "bob": [[2, 1], [1, 1]],
    }
    with pytest.raises(ConfigError, match="each=True belongs to"):
        export(store, "hh", each=True)


# --- rankings and thumbs --------------------------------------------------------------------------


def test_rankings(tmp_path):
    store = project(
        tmp_path,
        ("ann", "p", [1, 2, 3]),
        ("bob", "p", [1, 1, None]),
        ("cat", "p", [2, 1, None]),
        ("ann", "q", [3, 1, 1]),
    )
    first, second = export(store, "rankings")
    # a and b are even, as above; two of three failed c. A single labeler's ranks are their own.
    assert (first["ranks"], first["num_labelers"]) == ([1, 1, None], 3)
    assert (second["ranks"], second["num_labelers"]) == ([3, 1, 1], 1)


def test_thumbs_by_majority(tmp_path):
    votes = {"p": [1, 1, None], "q": [None, None, None], "r": [1, None], "s": [1]}
    rows = [
        (f"l{i}", prompt, [one]) for prompt, said in votes.items() for i, one in enumerate(said)
    ]
    found = export(project(tmp_path, *rows, mode="thumbs"), "thumbs")
    assert [(row["prompt"], row["label"], row.get("weight", 1)) for row in found] == [
        ("p", True, pytest.approx(2 / 3, abs=1e-6)),
        ("q", False, 1),
        ("s", True, 1),
    ]
    assert export(Store(tmp_path / "p.db"), "pairs") == []


def test_thumbs_of_rankings(tmp_path):
    store = project(
        tmp_path,
        ("ann", "p", [1, 2, None]),
        ("bob", "p", [1, 2, None]),
        ("cat", "p", [2, 1, 3]),
        ("ann", "equal", [1, 1, 1]),
        ("ann", "only fails", [None, None, None]),
    )
    found = export(store, "thumbs")
    # a comes first, for two of three; two of three failed c. Of equals none is liked.
    assert [(row["prompt"], row["completion"], row["label"]) for row in found] == [
        ("p", "a", True),
        ("p", "c", False),
        *[("only fails", text, False) for text in TEXTS],
    ]
    assert found[0]["weight"] == found[1]["weight"] == pytest.approx(2 / 3, abs=1e-6)


# --- the shapes of others -------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Yes?"}


def test_transcripts():
    assert transcript("Hi", "Yes?") == "\n\nHuman: Hi\n\nAssistant: Yes?"
    whole = "\n\nHuman: Be kind.\n\nHi\n\nAssistant: Yes?\n\nHuman: Hi\n\nAssistant: Yes?"
    assert transcript([SYSTEM, USER, GOOD, USER], [GOOD]) == whole
    # A prompt that is a transcript stays as it is, and so does a completion that brings its blank.
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:"
    assert transcript(start, " on") == transcript(start, "on") == start + " on"


def test_a_completion_cannot_speak_for_the_human():
    evil = "Fine.\n\nHuman: thanks\n\n\nAssistant: bye"
    assert transcript("Hi", evil) == (
        "\n\nHuman: Hi\n\nAssistant: Fine.\nHuman: thanks\nAssistant: bye"
    )


PIECES = st.sampled_from(["\n", "Human:", "Assistant:", " ", '"', "x", "\u2028", "\r", "é"])


@given(st.lists(st.lists(PIECES).map("".join), min_size=3, max_size=3))
def test_every_transcript_is_read_back_to_the_same_turn(texts):
    prompt, chosen, rejected = texts
    row = {"chosen": transcript(prompt, chosen), "rejected": transcript(prompt, rejected)}
    read = hh_transcripts(row)
    assert read is not None
    assert read["prompt"] == transcript(prompt, "")[: len(read["prompt"])]
    assert row["chosen"].count("\n\nAssistant:") == 1
    assert row["chosen"].count("\n\nHuman:") == 1
    words = chosen.split()
    assert read["chosen"].split() == words


def test_hh_and_openai_rows(tmp_path):
    store = project(tmp_path, ("ann", "p", [2, 1]), mode="pair")
    assert export(store, "hh") == [
        {"chosen": "\n\nHuman: p\n\nAssistant: b", "rejected": "\n\nHuman: p\n\nAssistant: a"}
    ]
    assert export(store, "openai") == [
        {
            "input": {"messages": [{"role": "user", "content": "p"}]},
            "preferred_output": [{"role": "assistant", "content": "b"}],
            "non_preferred_output": [{"role": "assistant", "content": "a"}],
        }
    ]


# --- files ----------------------------------------------------------------------------------------


def test_the_split_is_by_prompt(tmp_path):
    rows = [("ann", f"p{i}", [1, 2, 3]) for i in range(200)]
    store = project(tmp_path, *rows)
    out = tmp_path / "out.jsonl"
    written = export_feedback(
        ExportConfig(path=str(store.path), to="pairs", out=str(out), test_share=0.25)
    )
    assert written == [out, tmp_path / "out.jsonl.test"]
    train, test = ([row["prompt"] for _, row in read_jsonl(path)] for path in written)
    assert not set(train) & set(test)
    assert Counter(Counter([*train, *test]).values()) == {3: 200}  # three pairs of each, together
    assert 25 <= len(set(test)) <= 75  # 50 ± 4 standard deviations of 6.1
    wider = {prompt for prompt in train if in_test(prompt, 0.5)}
    assert all(in_test(prompt, 0.5) for prompt in test)  # a larger share keeps the smaller one
    assert wider


def test_nothing_decided_writes_nothing(tmp_path):
    store = project(tmp_path, ("ann", "p", [1, 1]), mode="pair")
    config = ExportConfig(path=str(store.path), to="pairs", out=str(tmp_path / "out.jsonl"))
    with pytest.raises(DataError, match=r"p\.db: holds no pairs: its judgments decide none"):
        export_feedback(config)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ConfigError, match="test_share=2"):
        ExportConfig(path="p.db", to="pairs", out="x", test_share=2.0)


def test_hostile_texts_come_back_as_they_were(tmp_path):
    store = Store.create(tmp_path / "p.db", Project(name="x", mode="pair"))
    texts = ['"\\\n\u2028</script>', "'; DROP TABLE items; --"]
    row = {"prompt": "\x00{}", "chosen": texts[0], "rejected": texts[1], "labeler": "o'\"x"}
    add_labels(store, [read_label(row, "row")])
    out = str(tmp_path / "out.jsonl")
    export_feedback(ExportConfig(path=str(store.path), to="pairs", out=out))
    [pair] = read_comparisons(out)
    assert [pair.prompt, pair.chosen, pair.rejected] == ["\x00{}", *texts]
    assert store.judgments()[0].labeler == "o'\"x"


# --- any judgments --------------------------------------------------------------------------------

RANKS = st.lists(st.none() | st.integers(1, 3), min_size=3, max_size=3)
JUDGMENTS = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "cat"]), st.sampled_from("pqrs"), RANKS), max_size=14
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(JUDGMENTS)
def test_of_any_judgments(tmp_path_factory, rows):
    store = project(tmp_path_factory.mktemp("any"), *rows)
    votes = {}
    for judgment in store.judgments():
        if not judgment.repeat:
            prompt = store.items()[judgment.item].prompt
            votes.setdefault(prompt, []).append(dict(zip(TEXTS, judgment.ranks, strict=True)))
    seen = set()
    for row in export(store, "pairs"):
        pair = from_dict(PreferencePair, row, "row")
        said = votes[pair.prompt]
        assert 0.5 < pair.probability <= 1
        assert pair.num_labelers == len(said)
        fails = [sum(one[text] is None for one in said) for text in (pair.chosen, pair.rejected)]
        assert fails[0] * 2 <= len(said)
        both = frozenset((pair.prompt, text) for text in (pair.chosen, pair.rejected))
        assert both not in seen
        seen.add(both)
    for row in export(store, "rankings"):
        from_dict(Ranking, row, "row")
    for row in export(store, "thumbs"):
        thumb = from_dict(Thumb, row, "row")
        assert 0 < thumb.weight <= 1
    json.dumps(export(store, "hh") + export(store, "openai"))
    store.close()


def _order(rank):
    return 9 if rank is None else rank


# --- methods read a project -----------------------------------------------------------------------


def test_thumbs_of_a_project_of_pairs_are_its_pairs(tmp_path, shares):
    store = project(tmp_path, ("ann", "p", [1, 2]), mode="pair")
    found = read_thumbs(store.path)
    assert [(one.completion, one.label, one.weight) for one in found] == [
        ("a", True, 0.75),
        ("a", False, 0.25),
        ("b", True, 0.25),
        ("b", False, 0.75),
    ]
