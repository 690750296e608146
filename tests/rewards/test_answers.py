import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.errors import ConfigError, DataError
from tether.rewards.answers import answer, final, letters, number_in

CHAT = [{"role": "user", "content": "3 + 4?"}]


@pytest.fixture
def file(tmp_path):
    rows = [
        {"prompt": "a thousand?", "answer": "1,000"},
        {"prompt": "half?", "answer": 0.5},
        {"prompt": CHAT, "answer": "3 + 4 = 7\n#### 7"},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", 1000.0),
        ("1,000", 1000.0),
        ("$1,234,567.50 in total", 1234567.5),
        ("1e3", 1000.0),
        ("2.5E-1.", 0.25),
        ("first 3, then 4.", 4.0),
        ("-5", -5.0),
        ("− 5", 5.0),  # a minus that stands apart is none of the number's
        ("−5", -5.0),
        ("x=-.5", -0.5),
        ("10-5", 5.0),  # a difference, not minus five
        ("1,2", 2.0),
        ("5%", 5.0),
        ("٣", 3.0),
        ("none", None),
        ("", None),
        ("1e9999", None),  # infinite
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert number_in(text) == number


def test_a_box_is_the_final_answer():
    assert final(r"2 \boxed{3} so \boxed{\frac{1}{2}} 9", "text") == r"\frac{1}{2}"
    assert final(r"the answer is \boxed{4} or 5", "number") == "4"
    assert final(r"open \boxed{4", "number") == r"open \boxed{4"


def test_else_what_follows_the_word_answer_or_the_last_line():
    assert final("I think.\nThe answer is Paris, of course\nBye", "text") == "Paris, of course"
    assert final("Straße: İ Answer: no, answer: Yes!", "text") == "Yes!"
    assert final("well\n Paris \n\n", "text") == " Paris "
    assert final(" \n", "text") == ""


def test_texts_are_equal_in_their_letters():
    assert letters("  The  ＥＩＦＦＥＬ-Tower! ") == "the eiffel tower"


def test_numbers_are_compared_with_those_on_file(file):
    prompts = ["a thousand?"] * 4 + ["half?\n", CHAT]
    said = ["It is 1e3.", "1000.0005", "1000.5", "no", r"1 \boxed{.5} 2", "seven: 7"]
    # 1000.0005 - 1000 = 0.0005 <= 1e-6 · 1000 = 0.001
    assert answer(prompts, said, answers=file) == [1, 1, 0, 0, 1, 1]
    assert answer(["half?"], ["0.54"], answers=file, tolerance=0.05) == [1.0]


def test_texts_are_compared_with_those_on_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "New York"}))
    said = ["The answer is: new-york!", "New York City", "It is\nNew York.", ""]
    assert answer(["p"] * 4, said, answers=str(path), match="text") == [1, 0, 1, 0]


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": 1}))
    assert answer(["p"], ["1"], answers=str(path)) == [1.0]
    path.write_text(json.dumps({"prompt": "p", "answer": 22}))
    assert answer(["p"], ["1"], answers=str(path)) == [0.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"prompt": "p"}'], "a.jsonl:1: needs prompt and answer"),
        (['{"prompt": 3, "answer": 3}'], "a.jsonl:1: needs prompt and answer"),
        (['{"prompt": "p", "answer": "many"}'], "answer='many' holds no number"),
        (['{"prompt": "p", "answer": 1}', '{"prompt": "p ", "answer": 2}'], "a.jsonl:2: another"),
        (['{"prompt": "q", "answer": 1}'], "no answer for the prompt 'p'; add a row"),
        (["{"], "a.jsonl:1: not JSON"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, rows, message):
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=message) as error:
        answer(["p"], ["1"], answers=str(tmp_path / "a.jsonl"))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_negative_tolerance_are_refused_without_a_text(tmp_path, file):
    with pytest.raises(DataError, match=r"missing.jsonl' does not exist; give JSON lines"):
        answer([], [], answers=str(tmp_path / "missing.jsonl"))
    with pytest.raises(ConfigError, match=r"tolerance=-1.0"):
        answer([], [], answers=file, tolerance=-1.0)


@given(
    st.text(alphabet=st.characters(), max_size=80),
    st.text(alphabet="0123,.eE+-−\\boxed{} ", max_size=40),
)
def test_any_text_has_a_number_or_none(text, digits):
    for some in (text, digits, text + digits):
        found = number_in(final(some, "number"))
        assert found is None or abs(found) < float("inf")
        assert isinstance(letters(final(some, "text")), str)
