"""Numbers worked out by hand, and what holds of any text."""

import math
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import CheckError, ConfigError
from tether.rewards import rules
from tether.rewards.citations import citations
from tether.rewards.json_form import json_form
from tether.rewards.refusals import refusal
from tether.rewards.rules import banned, format, length, repetition, required


def one(rule, text, **settings):
    (score,) = rule(["p"], [text], **settings)
    return score


# --- length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("a b c", 1.0),
        ("a b c d e", 1.0),
        ("a, b. c - d!", 1.0),  # marks are no words
        ("a b", 0.75),  # 1 below: 1 - 1/4
        ("a", 0.5),
        ("", 0.25),  # 3 below: 1 - 3/4
        ("a b c d e f g", 0.5),  # 2 above
        ("a b c d e f g h i", 0.0),  # 4 above
        ("a b c d e f g h i j k", 0.0),
    ],
)
def test_a_window_of_words(text, score):
    assert one(length, text, least=3, most=5, slack=3) == score


def test_a_window_without_an_end_and_without_slack():
    assert one(length, "a " * 500, least=3) == 1.0
    assert one(length, "a b", least=3) == 0.0
    assert one(length, "abcdé", most=5, unit="characters") == 1.0
    assert one(length, "abcdef", most=5, unit="characters", slack=1) == 0.5


# --- repetition -----------------------------------------------------------------------------------


def test_repeated_ngrams_by_hand():
    # the cat, cat the, the cat, cat sat: 3 of 4 are distinct
    assert one(repetition, "The cat the CAT sat", n=2) == pytest.approx(-0.25)
    # 5 words, 2 distinct
    assert one(repetition, "no no yes no no", n=1) == pytest.approx(-0.6)
    # (0.6 - 0.2) / 0.8
    assert one(repetition, "no no yes no no", n=1, free=0.2) == pytest.approx(-0.5)
    assert one(repetition, "a b c d", n=3) == 0.0
    assert one(repetition, "a b", n=3) == 0.0
    assert one(repetition, "no no yes no no", n=1, free=0.7) == 0.0


def test_the_same_word_five_hundred_times_is_nearly_all_repetition():
    # 498 trigrams, 1 distinct
    assert one(repetition, "please " * 500) == pytest.approx(-497 / 498)
    assert one(repetition, "please " * 500, by="compression") < -0.95


def test_compression_is_deflate_without_its_header():
    text = "the cat sees the dog and the dog sees the cat and the bird"
    packed = len(zlib.compress(text.encode())) - 6  # 2 bytes of header, 4 of checksum
    assert one(repetition, text, by="compression") == pytest.approx(packed / len(text) - 1)
    assert one(repetition, "abc", by="compression") == 0.0  # grows
    assert one(repetition, "", by="compression") == 0.0


# --- phrases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("As an AI, I cannot", 1),
        ("as  an\nai", 1),
        ("AS AN AI. As an AI!", 2),
        ("alas an ai", 0),  # within a word
        ("as an aide", 0),
        ("as an_ai", 0),
        ("ａｓ ａｎ ＡＩ", 1),  # full-width letters
        ("as an", 0),
    ],
)
def test_banned_phrases_are_whole_words_in_any_case(text, found):
    assert one(banned, text, phrases=("As an AI",), most=4) == -found / 4


def test_occurrences_of_all_phrases_count_up_to_most():
    text = "straße, STRASSE and c++"
    assert one(banned, text, phrases=("Strasse", "C++"), most=5) == pytest.approx(-0.6)
    assert one(banned, text, phrases=("Strasse", "C++"), most=2) == -1.0
    assert one(banned, text, phrases=("Strasse", "C++")) == -1.0
    assert one(banned, text, phrases=("c+",)) == -1.0  # a mark may touch a mark


def test_required_phrases_are_counted_once():
    phrases = ("sources", "to be sure", "thanks")
    assert one(required, "Thanks! Sources, sources and sources.", phrases=phrases) == 2 / 3
    assert one(required, "resources", phrases=phrases) == 0.0


# --- format ---------------------------------------------------------------------------------------


def test_a_format_is_of_the_whole_text_or_of_a_part():
    assert one(format, " 12:30\n", pattern=r"\d\d:\d\d") == 1.0
    assert one(format, "at 12:30", pattern=r"\d\d:\d\d") == 0.0
    assert one(format, "at 12:30", pattern=r"\d\d:\d\d", search=True) == 1.0
    assert one(format, "<a>\nx\n</a>", pattern="<a>.*</a>") == 1.0  # over line breaks


def test_what_is_too_long_is_no_match():
    assert one(format, "a" * 20, pattern="a*", longest=20) == 1.0
    assert one(format, "a" * 21, pattern="a*", longest=20) == 0.0


def test_a_pattern_that_backtracks_without_end_stops_the_run(monkeypatch):
    monkeypatch.setattr(rules, "FORMAT_SECONDS", 0.05)
    with pytest.raises(CheckError, match=r"took more than 0.05 s on the completion 'aaaa") as error:
        one(format, "a" * 5000 + "!", pattern=r"(a|a|aa)+b")
    assert "\n" not in str(error.value)


# --- settings that cannot work: refused before any text -----------------------------------------


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (length, {}, "most=0 must be above 0, or least must"),
        (length, {"least": 5, "most": 4}, "most=4 must be at least least=5"),
        (length, {"least": -1}, "least=-1 must be a number of at least 0"),
        (length, {"most": 1, "slack": -1}, "slack=-1"),
        (repetition, {"n": 0}, "n=0 must be a number above 0"),
        (repetition, {"free": 1.0}, "free=1.0 must be at least 0 and below 1"),
        (banned, {"phrases": ()}, r"phrases=\(\) must name one at least"),
        (banned, {"phrases": ("a", " ")}, "phrases=' ' must hold a word"),
        (banned, {"phrases": ("a",), "most": 0}, "most=0"),
        (required, {"phrases": ("",)}, "phrases='' must hold a word"),
        (format, {"pattern": "(a"}, r"pattern='\(a' is not a regular expression: missing \)"),
        (format, {"pattern": "a", "longest": 0}, "longest=0"),
        (citations, {"support": 1.5}, "support=1.5 must lie between 0 and 1"),
        (citations, {"claim_words": 0}, "claim_words=0 must be 1 or more"),
        (json_form, {"schema": {}, "partial": -1.0}, "partial=-1.0"),
    ],
)
def test_refused(rule, settings, message):
    with pytest.raises(ConfigError, match=message):
        rule([], [], **settings)


# --- any text ---------------------------------------------------------------------------------

PROMPT = "[1] the mill is near the river. it opens at noon.\n[b] no fee is charged."
BOUNDED = [
    (length, {"least": 2, "most": 4, "slack": 2}, 0, 1),
    (length, {"most": 9, "unit": "characters"}, 0, 1),
    (repetition, {}, -1, 0),
    (repetition, {"n": 1, "free": 0.3}, -1, 0),
    (repetition, {"by": "compression"}, -1, 0),
    (banned, {"phrases": ("a", "no fee"), "most": 3}, -1, 0),
    (required, {"phrases": ("a", "ß")}, 0, 1),
    (format, {"pattern": r"\w+ ?"}, 0, 1),
    (json_form, {"schema": {"type": "object"}, "partial": 0.5}, 0, 1),
    (citations, {}, -1, 1),
    (refusal, {}, 0, 1),
]
TEXTS = st.one_of(
    st.text(alphabet=st.characters(), max_size=60),  # surrogates, too
    st.text(alphabet='ab1.,[]"{}:!? \n`“’-', max_size=60),
    st.lists(st.sampled_from(["the mill", "[1]", "[b]", "not", ".", "```", "1,0"])).map(" ".join),
)


@pytest.mark.parametrize(("rule", "chosen", "low", "high"), BOUNDED)
@given(text=TEXTS, prompt=st.one_of(st.just(PROMPT), TEXTS))
@settings(max_examples=40, deadline=None)
def test_scores_of_any_text_are_within_their_bounds(rule, chosen, low, high, text, prompt):
    scores = rule([prompt, prompt], [text, ""], **chosen)
    assert len(scores) == 2
    assert all(isinstance(score, float) and low <= score <= high for score in scores)
    assert rule([prompt], [text], **chosen) == scores[:1]  # whatever is scored with it
    assert not any(math.isnan(score) for score in scores)


LONG = 30_000
NASTY = {
    "letters": "a" * LONG,
    "words": "mill river " * (LONG // 11),
    "periods": "." * LONG,
    "periods and a letter": "." * (LONG - 1) + "a",
    "brackets": "[" * LONG,
    "names": "[a,b,c,d" * (LONG // 8),
    "citations": "[1]" * (LONG // 3),
    "spaces": "i am sorry" + " " * LONG,
    "quotes": ".'" * (LONG // 2),
    "braces": "{" * LONG,
    "arrays": "[[" * (LONG // 2),
    "digits": "1" * LONG,
    "commas": "1,000" * (LONG // 5),
    "fences": "```" * (LONG // 3),
    "claims": "the mill is near the river [1]. " * 200,
    "one line each": "the mill is near the river [1]\n" * 200,
}


@pytest.mark.parametrize("name", NASTY)
def test_time_grows_with_the_text_alone(name):
    # A megabyte takes at most 0.6 s where no annotation is checked; here, where every call is,
    # what grows with the square of the length would still take far longer than this.
    begun = time.process_time()
    for rule, chosen, _, _ in BOUNDED:
        rule([PROMPT], [NASTY[name]], **chosen)
    assert time.process_time() - begun < 5
