import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tether.errors import DataError
from tether.feedback.elsewhere import read_labels
from tether.feedback.prepare import ImportConfig, Imported, import_feedback
from tether.feedback.store import Store

ITEMS = [
    {"id": "m1", "title": "1", "body": "Wars led to its ruin."},
    {"id": "m2", "title": "2", "body": "It burned."},
    {"id": "m3", "title": "3", "body": "I cannot say."},
]


def ranker(buckets, kind="ranker"):
    return {"type": kind, "from_name": "rank", "to_name": "list", "value": {"ranker": buckets}}


def task(results, data=None, completed_by=7, **fields):
    annotation = {"completed_by": completed_by, "lead_time": 12.5, "was_cancelled": False}
    return {
        "id": 11,
        "data": data or {"prompt": "Why?", "items": ITEMS},
        "annotations": [{**annotation, "result": results, **fields}],
        "predictions": [],
    }


@pytest.fixture
def file(tmp_path):
    def write(content, name="export.json"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return write


# --- Label Studio ---------------------------------------------------------------------------------


def test_a_label_studio_ranking(file):
    who = {"id": 3, "email": "ann@example.org"}
    rows = [
        task([ranker({"rank": ["m2", "m1", "m3"]})]),
        task([ranker({"rank": ["m1", "m2"], "fail": ["m3"], "_": []})], completed_by=who),
        task([ranker({"rank": ["m1", "m2", "m3"]})], was_cancelled=True),
    ]
    first, second = read_labels(file(rows), "label-studio")
    assert first.prompt == "Why?"
    assert first.completions == ["It burned.", "Wars led to its ruin.", "I cannot say."]
    assert (first.ranks, first.labeler, first.seconds) == ([1, 2, 3], "user 7", 12.5)
    assert second.completions == ["Wars led to its ruin.", "It burned.", "I cannot say."]
    assert (second.ranks, second.labeler) == ([1, 2, None], "ann@example.org")


@pytest.mark.parametrize(
    ("result", "ranks"),
    [
        ({"type": "pairwise", "value": {"selected": "left"}}, [1, 2]),
        ({"type": "pairwise", "value": {"selected": "right"}}, [2, 1]),
        ({"type": "choices", "value": {"choices": ["B"]}}, [2, 1]),
        ({"type": "choices", "value": {"choices": ["answer1"]}}, [1, 2]),
        ({"type": "choices", "value": {"choices": ["Tie"]}}, [1, 1]),
        ({"type": "choices", "value": {"choices": ["Both bad"]}}, [None, None]),
    ],
)
def test_label_studio_pairs(file, result, ranks):
    data = {"prompt": "Q1", "answer1": "yes", "answer2": "no"}
    [label] = read_labels(file([task([{"type": "textarea"}, result], data)]), "label-studio")
    assert (label.completions, label.ranks) == (["yes", "no"], ranks)


def test_label_studio_thumbs(file):
    result = {"type": "choices", "value": {"choices": ["Bad"]}}
    rows = [task([result], {"question": "Q", "answer": "A"})]
    [label] = read_labels(file(rows), "label-studio")
    assert (label.prompt, label.completions, label.ranks) == ("Q", ["A"], [None])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (task([]), r"export.json: task 1 \(id=11\): result=\[\] must hold one of type"),
        (task([ranker({"good": ["m1"], "bad": ["m2", "m3"]})]), "must be one list in order"),
        (task([ranker({"rank": ["m1", "m2"]})]), "must name every id of a list"),
        (task([ranker({"rank": "m1"})]), "value.ranker.rank='m1' must be a list"),
        (task([ranker([1])]), r"value.ranker=\[1\] must be an object"),
        (task([{"type": "pairwise", "value": {"selected": "up"}}], {"prompt": "p", "a1": "x",
          "a2": "y"}), "'up' must be one of left"),
        (task([], {"items": ITEMS}), "must hold a prompt under one of the names"),
        (task([ranker({"rank": ["m1", "m2", "m3"]})], completed_by=""), "names nobody"),
        ({"id": 1, "data": "x"}, "data='x' must be an object"),
        ({"id": 1, "data": {}, "annotations": "x"}, "annotations='x' must be a list"),
        ({"id": 1, "data": {"prompt": "p"}, "annotations": []}, "holds no label"),
        (3, "element=3 must be an object"),
    ],
)  # fmt: skip
def test_bad_label_studio_exports(file, row, message):
    with pytest.raises(DataError, match=message):
        read_labels(file([row]), "label-studio")


# --- Argilla --------------------------------------------------------------------------------------

FIELDS = {"instruction": "Why?", "reply_1": "a", "reply_2": "b", "reply_3": "c"}


def record(responses, fields=FIELDS):
    return {"id": "r1", "fields": fields, "metadata": {}, "suggestions": {}, "vectors": {}} | {
        "responses": responses
    }


@pytest.mark.parametrize(
    ("value", "texts", "ranks"),
    [
        (["reply-2", "reply-1", "reply-3"], ["b", "a", "c"], [1, 2, 3]),
        ([{"value": "reply_3", "rank": 1}, {"value": "reply_1", "rank": 1}], ["c", "a"], [1, 1]),
        (["3", "1"], ["c", "a"], [1, 2]),
    ],
)
def test_argilla_rankings(file, value, texts, ranks):
    responses = {
        "ranking": [{"value": value, "user_id": "u1"}],
        "why": [{"value": "since", "user_id": "u1"}],
        "rating": [{"value": 4, "user_id": "u1"}],
    }
    [label] = read_labels(file([record(responses)]), "argilla")
    assert (label.prompt, label.completions) == ("Why?", texts)
    assert (label.ranks, label.labeler, label.seconds) == (ranks, "u1", None)


def test_argilla_labels_and_drafts(file):
    pair = {"prompt": [{"role": "user", "content": "Hi"}], "response_a": "x", "response_b": "y"}
    said = [
        {"value": "response_b", "user_id": "u1", "status": "submitted"},
        {"value": "response_a", "user_id": "u2", "status": "draft"},
        {"value": "tie", "user_id": "u3", "status": None},
    ]
    thumb = record({"good?": [{"value": "yes", "user_id": "u1"}]}, {"prompt": "p", "response": "z"})
    found = read_labels(file([record({"which": said}, pair), thumb]), "argilla")
    assert [(one.completions, one.ranks, one.labeler) for one in found] == [
        (["x", "y"], [2, 1], "u1"),
        (["x", "y"], [1, 1], "u3"),
        (["z"], [1], "u1"),
    ]
    assert found[0].prompt == pair["prompt"]


def test_a_flattened_argilla_export_as_json_lines(file):
    row = FIELDS | {
        "ranking.responses": [["reply_1", "reply_2"], ["reply_2", "reply_1"]],
        "ranking.responses.users": ["u1", "u2"],
        "ranking.responses.status": ["submitted", "discarded"],
    }
    text = json.dumps(row) + "\n" + json.dumps(row | {"instruction": "How?"})
    found = read_labels(file(text, "export.jsonl"), "argilla")
    assert [(one.prompt, one.ranks, one.labeler) for one in found] == [
        ("Why?", [1, 2], "u1"),
        ("How?", [1, 2], "u1"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (record("x"), r"export.json: record 1 \(id='r1'\): responses='x' must be an object"),
        (record({"ranking": [{"value": ["reply_1", "reply_2"]}]}), "labeler='' names nobody"),
        (record({"ranking": [{"value": ["nobody"], "user_id": "u"}]}), "holds no label"),
        (
            record({"ranking": [{"value": [{"value": "reply_1", "rank": "x"}], "user_id": "u"}]}),
            r"ranks=\['x'\] must be a list of numbers",
        ),
    ],
)
def test_bad_argilla_exports(file, row, message):
    with pytest.raises(DataError, match=message):
        read_labels(file([row]), "argilla")


# --- CSV and our own ------------------------------------------------------------------------------


def test_csv_rankings_with_hostile_texts(file):
    text = (
        "labeler,prompt,completion_1,rank_1,completion_2,rank_2,completion_3,rank_3,seconds\r\n"
        'ann,"Why, ""you""?","two\nlines",2,=cmd(),1,,,3.5\r\n'
        "bob,p,a,fail,b,1,c,1,\r\n"
    )
    ann, bob = read_labels(file("\ufeff" + text, "labels.csv"), "csv")
    assert (ann.prompt, ann.completions) == ('Why, "you"?', ["two\nlines", "=cmd()"])
    assert (ann.ranks, ann.labeler, ann.seconds) == ([2, 1], "ann", 3.5)
    assert (bob.completions, bob.ranks, bob.seconds) == (["a", "b", "c"], [None, 1, 1], None)


def test_csv_pairs_and_thumbs(file):
    pairs = "prompt,chosen,rejected,labeler,strength\np,a,b,ann,2\n,c,d,ann,\n"
    first, second = read_labels(file(pairs, "pairs.csv"), "csv")
    assert (first.completions, first.ranks, first.strength) == (["a", "b"], [1, 2], 2)
    assert (second.prompt, second.completions, second.strength) == ("", ["c", "d"], None)
    thumbs = "prompt,completion,label,labeler\np,a,Up,ann\np,b,0,ann\n"
    found = read_labels(file(thumbs, "thumbs.csv"), "csv")
    assert [one.ranks for one in found] == [[1], [None]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion_1,rank_1,labeler\np,a,x,ann\n", "csv:2: rank_1='x' must be a number"),
        ("prompt,completion_1,rank_1,labeler\np,a,,ann\n", "csv:2: rank_1='' must be a number"),
        ("prompt,completion,label,labeler\np,a,maybe,ann\n", "csv:2: label='maybe' must be up or"),
        ("prompt,chosen,rejected,labeler\np,a,b\n", "csv:2: must have 4 cells"),
        ("prompt,chosen,rejected,labeler\np,a,b,ann,x\n", "csv:2: must have 4 cells"),
        ('prompt,chosen,rejected,labeler\np,"a,b,ann\n', "cannot be read as CSV"),
        ("prompt,chosen,rejected\np,a,b\n", "csv:2: labeler='' names nobody"),
        ("a,b\n1,2\n", "csv:2: no label in the fields"),
        ("prompt,chosen,rejected,labeler\n", "holds no label"),
    ],
)
def test_bad_csv(file, text, message):
    with pytest.raises(DataError, match=message):
        read_labels(file(text, "labels.csv"), "csv")


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    for source in ("csv", "argilla", "label-studio", "records"):
        with pytest.raises(DataError, match="nowhere"):
            read_labels(str(tmp_path / "nowhere"), source)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00,")
    for source in ("csv", "argilla", "label-studio", "records"):
        with pytest.raises(DataError, match="bytes"):
            read_labels(str(tmp_path / "bytes"), source)


def test_half_of_a_character(file):
    text = json.dumps([task([ranker({"rank": ["m1", "m2", "m3"]})])]).replace("Why?", "\\ud83d")
    with pytest.raises(DataError, match=r"export\.json: holds half of a character"):
        read_labels(file(text), "label-studio")
    whole = text.replace("\\ud83d", "\\ud83d\\ude00")
    assert read_labels(file(whole), "label-studio")[0].prompt == "\U0001f600"


# --- into a project -------------------------------------------------------------------------------


def test_the_same_file_twice_adds_nothing(tmp_path, file):
    rows = [task([ranker({"rank": ["m2", "m1", "m3"]})], completed_by=who) for who in (1, 2)]
    db = str(tmp_path / "p.db")
    config = ImportConfig(path=db, data=(file(rows),), labels="label-studio")
    assert import_feedback(config) == Imported(items=1, gold=0, judgments=2, skipped=0)
    assert import_feedback(config) == Imported(items=0, gold=0, judgments=0, skipped=0)
    [item] = Store(db).items().values()
    first, second = Store(db).judgments()
    assert dict(zip(item.completions, first.ranks, strict=True)) == {
        "It burned.": 1,
        "Wars led to its ruin.": 2,
        "I cannot say.": 3,
    }
    assert first.ranks == second.ranks


def test_a_bad_row_leaves_the_project_as_it_was(tmp_path, file):
    db = str(tmp_path / "p.db")
    good = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "ann"}
    path = file(json.dumps(good), "good.jsonl")
    import_feedback(ImportConfig(path=db, data=(path,), labels="records"))
    bad = [good | {"prompt": "q"}, good | {"labeler": ""}]
    path = file("\n".join(map(json.dumps, bad)), "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: labeler='' names nobody"):
        import_feedback(ImportConfig(path=db, data=(path,), labels="records"))
    assert [item.prompt for item in Store(db).items().values()] == ["p"]
    assert len(Store(db).judgments()) == 1


# --- any JSON -------------------------------------------------------------------------------------

NAMES = (
    "prompt items id body fields responses value rank ranker type pairwise choices selected left "
    "a1 a2 data annotations result r.responses r.responses.users user_id completed_by"
)
WORDS = st.sampled_from(NAMES.split())
SCALARS = st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | WORDS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=15,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    JSON, st.sampled_from(["records", "label-studio", "argilla"]), st.sampled_from(["", "d", "r"])
)
def test_any_json_is_read_or_refused(file, value, source, inside):
    row = {
        "": value,
        "d": {"id": 1, "data": {"prompt": "p", "a1": value, "a2": "y", "items": value}}
        | {"annotations": [{"completed_by": 1, "lead_time": value, "result": value}]},
        "r": {"fields": {"prompt": value, "a1": "x", "a2": value}, "responses": {"q": value}},
    }[inside]
    path = file(json.dumps(row), "any.json")
    refusal = ""
    try:
        labels = read_labels(path, source)
    except DataError as error:
        labels, refusal = [], str(error)
    assert all(label.labeler for label in labels)
    assert labels or refusal.startswith(path)
    assert "\n" not in refusal
