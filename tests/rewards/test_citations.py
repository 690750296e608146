"""Claims, sources and verdicts by hand, and the measured precision on texts written by hand."""

import pytest

from tether.records import read_jsonl
from tether.rewards.citations import citations, claims_in, read, sources_in, stem, verdict

PROMPT = (
    "Answer and cite.\n\n[1] The mill is near the river. It opens at 9:30.\n"
    "[doc-2] No fee is charged for 1,000 transfers,\nnot even at night.\n\n"
    "(3) no source [4] neither\n[5]\nThe barn belongs to Ann.\n\nWhere is the mill?"
)


def score(completion, prompt=PROMPT, **settings):
    (found,) = citations([prompt], [completion], **settings)
    return found


# --- what is read ---------------------------------------------------------------------------------


def test_sources_are_lines_that_begin_with_a_name():
    sources = sources_in(PROMPT)
    assert list(sources) == ["1", "doc-2", "5"]
    assert [set(each.words) for each in sources["1"]] == [
        {"mill", "near", "river"},
        {"open", "9:30"},
    ]
    first, second = sources["doc-2"]
    assert (set(first.words), first.negated) == ({"fee", "charg", "1000", "transfer"}, True)
    assert (set(second.words), second.negated) == ({"even", "night"}, True)
    assert sources["5"][0].names == {"ann"}


def test_sources_of_chat_messages():
    chat = [
        {"role": "system", "content": "[1] The mill is old."},
        {"role": "user", "content": "how old?\n[B]: two words"},
    ]
    assert list(sources_in(chat)) == ["1", "b"]
    assert citations([chat], ["The mill is old [1]."], claim_words=1) == [1.0]


def test_claims_are_sentences_that_say_something_or_cite():
    text = "Sure! The mill is near the river.[1] Is it far, do you think?\nYes [doc-2, 5]. See [x]"
    claims = claims_in(text)
    assert [claim.cited for claim in claims] == [("1",), ("doc-2", "5"), ("x",)]
    assert claims[0].words == {"mill", "near", "river"}
    assert claims_in("The mill is near.") == []
    assert len(claims_in("The mill is near.", claim_words=2)) == 1


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("The mill opens early [1]. The barn is red [5].", [("1",), ("5",)]),
        ("The mill opens early. [1] The barn is red. [5]", [("1",), ("5",)]),
        ("The mill opens early.[1][5] The barn is red now.", [("1", "5"), ()]),
        ("The mill opens early. [5] says the barn is red.", [(), ("5",)]),
        ("The mill [1] opens early, the barn later [1; 5].", [("1", "5")]),
    ],
)
def test_where_a_citation_belongs(text, cited):
    assert [claim.cited for claim in claims_in(text)] == cited


def test_words_without_their_endings():
    words = ("mills", "opened", "baking", "bake", "lies", "lie", "glass", "ann's", "1,000", "1,5")
    assert [stem(word) for word in words] == [
        *("mill", "open", "bak", "bak", "lie", "lie", "glass", "ann", "1000", "1,5"),
    ]


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The mill is near the river [1].", "supported"),
        ("Near the river is the mill [1].", "supported"),  # words in another order: not seen
        ("The old mill is near the river [1].", "supported"),  # 3 of 4 words: 0.75
        ("The very old red mill is near the river [1].", "unsupported"),  # 3 of 5
        ("The mill is near the river.", "missing"),
        ("The mill is near the river [2].", "invented"),
        ("The mill is near the river [1][2].", "invented"),
        ("The mill is near the river [5].", "unsupported"),
        ("The mill is not near the river [1].", "unsupported"),
        ("It opens at 9:30 [1].", "supported"),
        ("It opens at 9:40 [1].", "unsupported"),
        ("A fee is charged for 1000 transfers [doc-2].", "unsupported"),
        ("No fee is charged for 1000 transfers [doc-2].", "supported"),
        ("No fee isn't charged for 1000 transfers [doc-2].", "unsupported"),
        ("The barn belongs to Ann [5].", "supported"),
        ("The great barn belongs to Bob [5].", "unsupported"),  # a name that no source has
        # mill, near, river, barn, ann: 3 of 5 and 2 of 5, together 5 of 5
        ("The mill is near the river, the barn is Ann's [1][5].", "supported"),
        ("The mill is near the river [1][5].", "unsupported"),  # the second adds nothing
        ("[1]", "unsupported"),
    ],
)
def test_a_verdict(claim, expected):
    assert verdict(read(claim), sources_in(PROMPT)) == expected


def test_support_is_the_share_that_must_be_found():
    claim, sources = read("The old mill is near the river [1]."), sources_in(PROMPT)
    assert verdict(claim, sources, support=0.76) == "unsupported"


# --- the score ------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_what_claims_earn():
    good, bad = "The mill is near the river [1].", "The mill is near the sea [9]."
    missing = "The mill is quite beautiful."
    assert score(good) == 1.0
    assert score(bad) == -1.0
    assert score(missing) == -0.5
    assert score(f"{good} {bad} {good}") == pytest.approx(1 / 3)
    assert score(f"{good} {missing} Really?") == 0.25
    assert score("Sure. Anything else?") == 0.0
    assert score("") == 0.0
    assert score(missing, claim_words=4) == 0.0  # mill, quite, beautiful


def test_more_of_the_same_earns_no_more():
    good = "The mill is near the river [1]. "
    assert score(good * 10) == score(good) == 1.0


def test_without_sources_only_a_citation_can_lose():
    prompt = "Where is the mill?"
    assert score("The mill is near the river.", prompt) == 0.0
    assert score("The mill is near the river [1].", prompt) == -1.0


# --- texts written by hand ------------------------------------------------------------------------


def called_good(row):
    sources, claims = sources_in(row["prompt"]), claims_in(row["completion"])
    return all(verdict(claim, sources) == "supported" for claim in claims)


def measured(rows):
    """Precision and recall of "every claim is supported", by whether that is so."""
    good = [row["good"] for row in rows]
    right = [called_good(row) for row in rows]
    hits = sum(map(all, zip(good, right, strict=True)))
    return hits / sum(right), hits / sum(good)


@pytest.fixture(scope="module")
def rows():
    return [row for _, row in read_jsonl("tests/rewards/citations.jsonl")]


def test_precision_and_recall_are_what_the_docs_say(rows):
    assert len(rows) == len({(row["prompt"], row["completion"]) for row in rows}) == 188
    precision, recall = measured(rows)
    assert precision == pytest.approx(63 / 76)
    assert recall == pytest.approx(63 / 85)


def test_what_words_can_tell_is_told(rows):
    told = ("wrong source", "invented", "missing", "negated", "unsupported", "cites everything")
    for kind in told:
        some = [row for row in rows if row["kind"] == kind]
        assert some
        assert not any(map(called_good, some)), kind


def test_what_words_cannot_tell_is_not(rows):
    """The limits that the docs name; a better rule would fail here, and should."""
    swapped = [row for row in rows if row["kind"] == "roles swapped"]
    reworded = [row for row in rows if row["kind"] == "paraphrase"]
    assert all(map(called_good, swapped))
    assert not any(map(called_good, reworded))
