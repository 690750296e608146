from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.constitution.principles import DEFAULT, Constitution, Principle, read_constitution
from tether.errors import ConfigError, DataError

GOOD = """
[[principle]]
id = "harm"
critique = "Is it harmful?"
revision = "Make it harmless."
preference = "Which is less harmful?"

[[principle]]
id = "manners"
revision = "Be polite."
weight = 3
"""


@pytest.fixture
def read(tmp_path):
    def call(text):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        return read_constitution(file)

    return call


# --- the default ----------------------------------------------------------------------------------


def test_the_default_has_whole_principles_of_all_three_kinds():
    constitution = read_constitution("default")
    assert constitution == read_constitution(DEFAULT)
    assert len(constitution.principles) >= 16
    for principle in constitution.principles:
        assert principle.critique
        assert principle.revision
        assert principle.preference.endswith("?")
        assert principle.source
    assert constitution.examples
    answers = Counter(each.answer for each in constitution.judgments)
    assert answers["A"] == answers["B"] > 0


def test_refusals_are_known_by_their_phrases():
    words = read_constitution("default").format
    assert words.refuses("I’m sorry, but that is not something for me.")
    assert words.refuses("No. I CAN'T HELP with that.")
    assert not words.refuses("I am sorry to hear that. Here is what helps.")


# --- reading --------------------------------------------------------------------------------------


def test_a_file_is_read(read):
    constitution = read(GOOD)
    assert constitution.name == "mine"
    harm, manners = constitution.principles
    assert (harm.id, harm.weight, harm.source) == ("harm", 1.0, "")
    assert manners == Principle(id="manners", revision="Be polite.", weight=3.0)
    assert (harm.serves("revision"), harm.serves("preference")) == (True, True)
    assert (manners.serves("revision"), manners.serves("preference")) == (True, False)
    assert constitution.by_id("manners") is manners


def test_the_hash_is_of_the_content_alone(read, tmp_path):
    first = read(GOOD).hash
    assert len(first) == 16
    other = tmp_path / "sub"
    other.mkdir()
    (other / "mine.toml").write_text("# a comment\n" + GOOD)
    assert read_constitution(other / "mine.toml").hash == first
    assert read(GOOD.replace("polite", "kind")).hash != first
    assert read(GOOD.replace("weight = 3", "weight = 2")).hash != first
    assert read(GOOD + '[format]\nbetween = "\\n"\n').hash != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.toml: has no [[principle]]; write at least one"),
        ("principle = 3", "mine.toml: principle=3 must be tables; write [[principle]] above each"),
        (
            "[[principles]]\nid = 'a'",
            "mine.toml: 'principles' is not a constitution's; it has name",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'\nweight = 'x'",
            "mine.toml: principle 3: weight='x' must be of type float, not str",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'\nrevison = 'x'",
            "mine.toml: principle 3: revison='x' is not a setting; did you mean 'revision'?",
        ),
        (GOOD + "[[principle]]\nrevision = 'x'", "mine.toml: principle 3: id is missing"),
        (
            GOOD + "[[principle]]\nid = 'harm'\nrevision = 'x'",
            "mine.toml: principle 3: id='harm' must be a name of its own",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'\nrevision = 'x'\nweight = -1",
            "mine.toml: principle 3: weight=-1.0 must be a number of at least 0; 0 leaves",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'\nrevision = 'x'\nweight = nan",
            "mine.toml: principle 3: weight=nan must be a number of at least 0",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'\ncritique = 'x'",
            "mine.toml: principle 3: critique='x' needs a `revision` that asks for the better",
        ),
        (
            GOOD + "[[principle]]\nid = 'c'",
            "mine.toml: principle 3: 'c' asks nothing; give it `critique` and `revision`, or a",
        ),
        (
            "[[principle]]\nid = 'c'\nrevision = 'x'\nweight = 0",
            "mine.toml: every principle has weight=0; give one a weight above 0",
        ),
        (
            GOOD
            + "[[judgment]]\nprompt='p'\nfirst='f'\nsecond='s'\nprinciple='manners'\nanswer='A'",
            "mine.toml: judgment 1: principle='manners' must be the id of one with a preference; "
            "there are harm",
        ),
        (
            GOOD + "[[judgment]]\nprompt='p'\nfirst='f'\nsecond='s'\nprinciple='harm'\nanswer='C'",
            "mine.toml: judgment 1: answer='C' must be one of ['A', 'B']",
        ),
        (
            GOOD + "[format]\ncritique = 'Ask: {question}'",
            "mine.toml: format.critique='Ask: {question}' must hold {request} and no other slot",
        ),
        (GOOD + "[format]\nprompt = '{prompt'", "mine.toml: format.prompt: "),
        (
            GOOD + "[wording]\nletters = ['A']",
            "mine.toml: wording.letters=['A'] must have 2 entries",
        ),
        (GOOD + "[wording]\nletters = ['A', 'A']", "mine.toml: wording.letters=('A', 'A') must be"),
        (
            GOOD + "[wording]\nstatement = '''{prompt}\n> {completion}{question}'''",
            "mine.toml: wording.statement must have no line that begins with >",
        ),
        ("format = 3\n" + GOOD, "mine.toml: format=3 must be a table; write [format]"),
    ],
)
def test_a_mistake_is_told_in_one_line(read, text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line():
    with pytest.raises(DataError, match=r"nowhere\.toml"):
        read_constitution("nowhere.toml")


def test_what_a_stage_needs_is_required(read):
    constitution = read(GOOD.replace('preference = "Which is less harmful?"', ""))
    constitution.require("revision")
    with pytest.raises(ConfigError, match="none of its 2 principles has a `preference` question"):
        constitution.require("preference")


# --- drawing --------------------------------------------------------------------------------------


def of(*weights, **fields):
    return Constitution(
        name="drawn",
        principles=tuple(
            Principle(id=str(i), revision="x", preference="y?", weight=float(weight), **fields)
            for i, weight in enumerate(weights)
        ),
    )


def test_draws_follow_the_weights():
    drawn = Counter(of(1, 3, 0, 4).draw("revision", 0, f"p{i}", 1).id for i in range(4000))
    # Shares 1/8, 3/8, 0, 1/2; four standard errors at 1/2 are 4 · √(0.25/4000) = 0.032
    assert drawn["0"] / 4000 == pytest.approx(1 / 8, abs=0.032)
    assert drawn["1"] / 4000 == pytest.approx(3 / 8, abs=0.032)
    assert drawn["2"] == 0


def test_rounds_seeds_and_uses_draw_apart():
    constitution = of(*[1] * 16)
    draws = [
        [constitution.draw(use, seed, f"p{i}", round).id for i in range(300)]
        for use in ("revision", "preference")
        for seed in (0, 1)
        for round in (1, 2)
    ]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            # independent draws agree on 1/16 of 300 = 19; six standard errors are 25
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 44


@given(st.text(), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_a_draw_is_a_function_of_its_arguments(prompt, seed, round):
    constitution = of(1, 2, 3)
    draw = constitution.draw("revision", seed, prompt, round)
    assert draw == of(1, 2, 3).draw("revision", seed, prompt, round)
    messages = [{"role": "user", "content": prompt}]
    assert constitution.draw("revision", seed, messages, round) in constitution.principles


def test_only_fitting_principles_are_drawn(read):
    constitution = read(GOOD)
    ids = {constitution.draw("preference", 0, f"p{i}").id for i in range(50)}
    assert ids == {"harm"}
