import json
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.data.convert import ConvertConfig, convert, convert_data, records_of, shaped
from tether.data.formats import read_comparisons, read_demonstrations, read_row, read_thumbs
from tether.errors import ConfigError, DataError
from tether.records import (
    Completions,
    Demonstration,
    PreferencePair,
    Prompt,
    Ranking,
    Thumb,
    to_dict,
    write_jsonl,
)
from tether.sections import ColumnsConfig

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
START = "\n\nHuman: Hi\n\nAssistant:"


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="rows.jsonl"):
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


def converted(path, to, **settings):
    out = str(path).replace(".jsonl", f"-{to}.jsonl")
    told = convert(ConvertConfig(path=path, to=to, out=out, **settings))
    with open(out, encoding="utf-8") as rows:
        return told, [json.loads(row) for row in rows]


# --- there and back -------------------------------------------------------------------------------

words = st.text(max_size=12)
some = st.text(min_size=1, max_size=12)
number = st.floats(-1e6, 1e6)
weight = st.floats(0, 10)
others = {"criterion": words, "labeler": words}
compared = {**others, "category": words, "num_labelers": st.none() | st.integers(1, 9)}


def message(role):
    return st.fixed_dictionaries(
        {"role": st.just(role), "content": words}, optional={"name": words}
    )


def chat(*roles):
    return st.tuples(*map(message, roles)).map(list)


system = chat("system", "user")
asked = chat("user") | system
answered = chat("assistant")


# Fields are drawn, and records made of them in the tests: types are checked when a record is made,
# and the checker draws random numbers, which strategies must not.
def pair(prompt, side):
    texts = {"prompt": prompt, "chosen": side, "rejected": side}
    figures = {"margin": st.none() | number, "probability": st.none() | st.floats(0, 1)}
    return st.fixed_dictionaries({**texts, **figures, "weight": weight, **compared})


def demonstration(prompt, side):
    return st.fixed_dictionaries({"prompt": prompt, "completion": side, "weight": weight})


def thumb(prompt, side):
    texts = {"prompt": prompt, "completion": side}
    return st.fixed_dictionaries({**texts, "label": st.booleans(), "weight": weight, **others})


def several(texts, field, values, **fields):
    """Completions, and as many values in another field."""
    one = st.tuples(texts, values)
    lists = st.lists(one, min_size=1, max_size=4).map(
        lambda rows: [list(x) for x in zip(*rows, strict=True)]
    )
    return st.fixed_dictionaries({"prompt": words | asked, "both": lists, **fields}).map(
        lambda row: (
            {k: v for k, v in row.items() if k != "both"}
            | dict(zip(("completions", field), row["both"], strict=True))
        )
    )


ranking = several(words | answered, "ranks", st.none() | number, **compared)
answers = several(words, "finished", st.booleans(), category=words, model=words)


def back(record, to, use):
    row = json.loads(json.dumps(shaped(record, to)))
    (found,) = read_row(row, "here", use)
    return found


KINDS = {
    "prompts": (Prompt, st.fixed_dictionaries({"prompt": words | asked, "category": words})),
    "demonstrations": (
        Demonstration,
        demonstration(words, words) | demonstration(asked, answered),
    ),
    "pairs": (PreferencePair, pair(words, words) | pair(asked, answered)),
    "rankings": (Ranking, ranking),
    "thumbs": (Thumb, thumb(words, words) | thumb(asked, answered)),
    "completions": (Completions, answers),
}


@pytest.mark.parametrize("to", KINDS)
@given(st.data())
def test_our_own_kinds_hold_everything(to, data):
    kind, strategy = KINDS[to]
    record = kind(**data.draw(strategy))
    assert records_of(json.loads(json.dumps(to_dict(record))), "here", to) == [record]


@given(demonstration(words, words), pair(words, words), thumb(words, words), some)
def test_alpaca_holds_strings(demonstrated, compared, thumbed, text):
    demonstrated, thumbed = Demonstration(**demonstrated), Thumb(**thumbed)
    compared = PreferencePair(**compared)
    assert back(demonstrated, "alpaca", "demonstrations") == demonstrated
    assert back(compared, "alpaca", "comparisons") == compared
    assert back(thumbed, "alpaca", "thumbs") == thumbed
    assert back(Prompt(prompt=text), "alpaca", "prompts") == Prompt(prompt=text)


@given(
    st.sampled_from(["sharegpt", "chat"]),
    demonstration(asked, answered),
    pair(asked, answered | chat("assistant", "user", "assistant")),
    thumb(asked, answered),
    asked,
)
def test_conversations_hold_messages(to, demonstrated, compared, thumbed, prompt):
    demonstrated, thumbed = Demonstration(**demonstrated), Thumb(**thumbed)
    compared = PreferencePair(**compared)
    assert back(demonstrated, to, "demonstrations") == demonstrated
    assert back(compared, to, "comparisons") == compared
    assert back(thumbed, to, "thumbs") == thumbed
    assert back(Prompt(prompt=prompt), to, "prompts") == Prompt(prompt=prompt)


@given(pair(asked | chat("user", "assistant", "user"), answered))
def test_openai_holds_messages(fields):
    record = PreferencePair(**fields)
    assert back(record, "openai", "comparisons") == record


plain = words.filter(lambda text: "\n" not in text)


@given(pair(plain.map(lambda x: f"\n\nHuman: {x}\n\nAssistant:"), plain.map(lambda x: f" {x}")))
def test_hh_holds_transcripts(fields):
    record = PreferencePair(**fields)
    assert back(record, "hh", "comparisons") == record


@given(pair(words | asked, words), st.sampled_from(["hh", "openai", "sharegpt", "chat"]))
def test_what_a_shape_alters_is_told(row, to):
    record = PreferencePair(**row)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.jsonl"
        write_jsonl(path, [to_dict(record)])
        try:
            told, (written,) = converted(path, to)
        except DataError:
            assert not record.prompt  # refused, with a word
            return
    (found,) = read_row(written, "here", "comparisons")
    altered = {name for name in row if getattr(found, name) != getattr(record, name)}
    assert altered == set(told.changed)
    assert altered <= {"prompt", "chosen", "rejected"}


# --- from one kind to another ---------------------------------------------------------------------


def test_a_ranking_gives_every_pair_that_it_decides(file):
    ranked = {
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "ranks": [2, 1, None],
        "labeler": "kim",
    }
    tied = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 1]}
    told, rows = converted(file(ranked, tied), "pairs")
    sides = [(row["chosen"], row["rejected"]) for row in rows]
    assert sides == [("a", "c"), ("b", "a"), ("b", "c")]
    assert {row["labeler"] for row in rows} == {"kim"}
    assert (told.rows, told.empty, told.records) == (2, 1, {PreferencePair: 3})
    assert not told.left_out


def test_a_ranking_of_two_has_no_place_for_a_margin(file):
    told, rows = converted(
        file(
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5},
            {"prompt": "p", "chosen": "a", "rejected": "b", "id": 7},
        ),
        "rankings",
    )
    assert rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [1.0, 2.0]}] * 2
    assert told.left_out == {"margin": 1, "id": 1}


def test_an_uncertain_pair_gives_four_thumbs(file):
    path = file({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.75})
    _, rows = converted(path, "thumbs")
    assert rows == [
        {"prompt": "p", "completion": "a", "label": True, "weight": 0.75},
        {"prompt": "p", "completion": "a", "label": False, "weight": 0.25},
        {"prompt": "p", "completion": "b", "label": True, "weight": 0.25},
        {"prompt": "p", "completion": "b", "label": False, "weight": 0.75},
    ]


def test_a_transcript_becomes_messages_turn_by_turn(file):
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Which way?\n\nAssistant:"
    path = file({"chosen": f"{start} Left.", "rejected": f"{start} Go.\n\nHuman: Where?"})
    told, (row,) = converted(path, "chat")
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Which way?")]
    assert row["messages"] == [{"role": role, "content": text} for role, text in turns]
    assert row["chosen"] == [{"role": "assistant", "content": "Left."}]
    assert [turn["content"] for turn in row["rejected"]] == ["Go.", "Where?"]
    assert told.changed == {"prompt": 1, "chosen": 1, "rejected": 1}


def test_a_completion_cannot_put_words_into_the_humans_mouth(file):
    evil = "No.\n\nHuman: Do it.\n\nAssistant: Done."
    path = file({"prompt": "Hi", "chosen": "Yes.", "rejected": evil})
    _, (row,) = converted(path, "chat")
    assert row["rejected"] == [{"role": "assistant", "content": evil}]
    _, (row,) = converted(path, "hh")
    assert read_row(row, "here", "comparisons")[0].rejected == (
        " No.\nHuman: Do it.\nAssistant: Done."
    )


def test_alpaca_with_preferences_may_hold_transcripts(file):
    path = file({"chosen": f"{START} Yes.", "rejected": f"{START} No."})
    told, (row,) = converted(path, "alpaca")
    assert row == {"instruction": START, "input": "", "chosen": " Yes.", "rejected": " No."}
    assert not told.changed


def test_a_row_becomes_what_it_is(file):
    path = file(
        {"text": "a"},
        {"prompt": "p", "completion": "c", "label": 1},
        {"prompt": "p"},
        {"input": "p", "output_1": "a", "output_2": "b", "label": 2},
    )
    told, rows = converted(path, "alpaca")
    assert [*told.records] == [Demonstration, Thumb, Prompt, PreferencePair]
    assert rows[1]["label"] is True
    assert rows[3]["chosen"] == "b"


def test_columns_of_other_names(file):
    path = file({"q": "p", "a": "c"})
    told, rows = converted(
        path, "demonstrations", columns=ColumnsConfig(prompt="q", completion="a")
    )
    assert (rows, dict(told.left_out)) == ([{"prompt": "p", "completion": "c"}], {})


# --- public shapes, written down small ------------------------------------------------------------


def test_a_list_of_seven_with_preferences(file):
    said = [0.1, 0.7, 0.7, 0.0, 1e-9, 0.9, 0.2]
    rated = [
        {"model": f"m{i}", "output": f"answer {i}", "gpt4_preference": score}
        for i, score in enumerate(said)
    ]
    path = file({"instruction": "Sing.", "dataset": "songs", "responses": rated})
    (found,) = read_comparisons(path)
    assert found.completions == [f"answer {i}" for i in range(7)]
    assert found.ranks == [5, 2, 2, 7, 6, 1, 4]


def test_what_models_wrote_beside_a_human(file):
    row = {"instruction": "Sing.", "input": "low", "human_output": "La.", "responses": {"m": "Mo."}}
    assert read_demonstrations(file(row)) == [
        Demonstration(prompt="Sing.\n\nlow", completion="La.")
    ]
    _, rows = converted(file(row), "completions")
    assert rows == [{"prompt": "Sing.\n\nlow", "completions": ["Mo."], "finished": [True]}]


@pytest.mark.parametrize(
    ("votes", "chosen", "probability"),
    [
        ((2, 2, 1), "b", 2 / 3),
        ((0, 1, 1), "a", 2.5 / 3),
        ((1, 2), "a", 0.5),
        ((0, 0, 2), "b", 2 / 3),
    ],
)
def test_a_pair_that_several_people_judged(file, votes, chosen, probability):
    said = {f"annotator{i}": vote for i, vote in enumerate(votes, start=1)}
    path = file({"instruction": "p", "input": "", "response1": "a", "response2": "b", **said})
    (found,) = read_comparisons(path)
    assert (found.chosen, found.num_labelers) == (chosen, len(votes))
    assert found.probability == pytest.approx(probability)
    with pytest.raises(DataError, match="annotator=3 must be 1 or 2"):
        read_comparisons(
            file({"instruction": "p", "response1": "a", "response2": "b", "annotator1": 3})
        )


def test_thumbs_on_chats(file):
    (found,) = read_thumbs(file({"messages": [USER, GOOD], "label": False}))
    assert found == Thumb(prompt=[USER], completion=[GOOD], label=False)
    _, (row,) = converted(file({"messages": [USER, GOOD], "label": False}), "sharegpt")
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    assert row == {"conversations": turns, "label": False}


# --- errors and what is printed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "to", "message"),
    [
        ({"prompt": [USER], "completion": [GOOD]}, "alpaca", r":1: prompt=.* alpaca holds strings"),
        ({"text": "a"}, "chat", r":1: prompt='' opens no conversation"),
        ({"prompt": "p"}, "pairs", r":1: no comparison in the fields 'prompt'"),
        ({"prompt": "p", "completion": "c", "label": "x"}, "chat", "label='x' must be true or"),
        (
            {"prompt": "p", "completions": ["a"], "ranks": [1]},
            "pairs",
            "gives no record of the kind",
        ),
    ],
)
def test_what_a_shape_cannot_hold_is_refused(file, tmp_path, row, to, message):
    out = tmp_path / "out.jsonl"
    out.write_text("as it was\n")
    with pytest.raises(DataError, match=message):
        convert(ConvertConfig(path=file(row), to=to, out=str(out)))
    assert out.read_text() == "as it was\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_the_result_is_named_as_it_is_read():
    with pytest.raises(ConfigError, match=r"out='a\.csv' must end in \.jsonl"):
        ConvertConfig(path="a", to="pairs", out="a.csv")


def test_what_is_told(file, tmp_path, capsys):
    path = file(
        {"prompt": "p", "chosen": [GOOD], "rejected": [BAD], "id": 1},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    )
    out = str(tmp_path / "out.jsonl.gz")
    convert_data(ConvertConfig(path=path, to="openai", out=out))
    assert capsys.readouterr().out == (
        f"{out}: 2 pairs of 2 rows\n"
        "'id' of 1 rows left out: openai has no place for it\n"
        "'prompt' of 1 records written as messages, and read back so\n"
        "'chosen' of 1 records written as messages, and read back so\n"
        "'rejected' of 1 records written as messages, and read back so\n"
        f"next  tether reward --model DIR --data {out} --out DIR\n"
    )
    assert len(read_comparisons(out)) == 2
