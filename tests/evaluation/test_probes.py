import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.tiny import CHAT_TEMPLATE, byte_bpe_tokenizer, save_tiny
from tether.config import ProbeConfig
from tether.errors import DataError
from tether.evaluation.probes import (
    Probe,
    change,
    first,
    flips,
    groups_of,
    probabilities,
    probe_block,
    read_probe,
)
from tether.evaluation.questions import OWN, Question, Way, lettered, read_questions
from tether.models.language_model import load
from tether.records import write_jsonl
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu", threads=1)
CHOICES = [
    {"prompt": "the cat sees ", "options": ["a dog", "the small bird"], "answer": 1},
    {"prompt": "who ", "options": ["cat", "dog", "bird"], "answer": 0, "category": "honest"},
]


def questions(folder, rows):
    write_jsonl(folder / "probe.jsonl", rows)
    return read_questions(str(folder / "probe.jsonl"))


def probe(folder, rows, **settings):
    write_jsonl(folder / "probe.jsonl", rows)
    config = ProbeConfig(name="mine", path=str(folder / "probe.jsonl"), **settings)
    return read_probe(config)


def plain_logprob(path, tokenizer, text, start):
    """Sum of the log-probs of the tokens behind `start` characters, by plain transformers."""
    encoding = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logs = model(input_ids=encoding["input_ids"]).logits[0].double().log_softmax(-1)
    ids, ends = encoding["input_ids"][0], encoding["offset_mapping"][0, :, 1]
    return sum(float(logs[t - 1, ids[t]]) for t in range(1, len(ids)) if ends[t] > start)


# --- asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_probabilities_are_those_of_plain_transformers(tmp_path, kind):
    save_tiny(tmp_path / "model", kind)
    model = load(str(tmp_path / "model"), CPU)
    found = probabilities(model, questions(tmp_path, CHOICES))
    for row, ours in zip(CHOICES, found, strict=True):
        logs = [
            plain_logprob(
                tmp_path / "model", model.tokenizer, row["prompt"] + said, len(row["prompt"])
            )
            for said in row["options"]
        ]
        expected = torch.tensor(logs, dtype=torch.float64).softmax(0)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_question_of_letters_is_put_in_every_order_and_averaged(tmp_path):
    save_tiny(tmp_path / "model", tokenizer=byte_bpe_tokenizer(), max_position_embeddings=256)
    model = load(str(tmp_path / "model"), CPU)
    row = {"question": "Which?", "options": ["the cat", "the dog"], "answer": 0}
    (found,) = probabilities(model, questions(tmp_path, [row]))
    one = "Which?\n\n(A) the cat\n(B) the dog\n\nAnswer:"
    two = "Which?\n\n(A) the dog\n(B) the cat\n\nAnswer:"
    shares = []
    for text, letter in ((one, "A"), (two, "B")):  # the cat's letter
        logs = {
            each: plain_logprob(tmp_path / "model", model.tokenizer, f"{text} ({each})", len(text))
            for each in "AB"
        }
        shares.append(1 / (1 + sum(math.exp(logs[x] - logs[letter]) for x in logs if x != letter)))
    assert shares[0] != pytest.approx(1 - shares[1], abs=1e-3)  # this model loves a letter
    assert found[0] == pytest.approx(sum(shares) / 2, abs=1e-5)


def test_a_model_with_a_chat_template_is_asked_in_a_chat(tmp_path):
    tokenizer = byte_bpe_tokenizer(bos=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tiny(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=256)
    model = load(str(tmp_path / "model"), CPU)
    way = Way("Is it?", ("Yes", "No"), is_question=True)
    (found,) = probabilities(model, [Question((way,), answer=0)])
    text = "[user]\nIs it?\n[assistant]\nAnswer:"
    yes, no = (
        plain_logprob(tmp_path / "model", tokenizer, f"{text} {said}", len(text))
        for said in ("Yes", "No")
    )
    assert found[0] == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-5)


def test_a_question_too_long_for_the_model_is_refused(tmp_path):
    save_tiny(tmp_path / "model", max_position_embeddings=8)
    model = load(str(tmp_path / "model"), CPU)
    row = {"prompt": "the cat " * 5, "options": ["dog", "bird"], "answer": 0}
    with pytest.raises(DataError, match=r"has 11 tokens; the model has 8 positions"):
        probabilities(model, questions(tmp_path, [row]))


@given(st.integers(2, 5))
def test_every_option_has_every_letter_once(count):
    ways = lettered("Which?", [f"option {i}" for i in range(count)])
    for option in range(count):
        assert sorted(way.said[option] for way in ways) == [f"({x})" for x in "ABCDE"[:count]]
    for way in ways:
        for option, letter in enumerate(way.said):
            assert f"{letter} option {option}" in way.asked.splitlines()


# --- shapes ---------------------------------------------------------------------------------------


def test_behaviours_with_two_letters_are_put_in_both_orders(tmp_path):
    row = {
        "behavior": "likes-tea",
        "question": "What would you drink?\n\nChoices:\n (A) Tea\n (B) Milk, cold",
        "answer_matching_behavior": " (B)",
        "answer_not_matching_behavior": " (A)",
    }
    (found,) = questions(tmp_path, [row])
    stem = "What would you drink?\n\nChoices:"
    assert found == Question(
        ways=(
            Way(f"{stem}\n\n(A) Milk, cold\n(B) Tea", ("(A)", "(B)"), is_question=True),
            Way(f"{stem}\n\n(A) Tea\n(B) Milk, cold", ("(B)", "(A)"), is_question=True),
        ),
        answer=0,
        means="behaviour",
        category="likes-tea",
    )


def test_behaviours_of_yes_and_no_stand_as_they_are(tmp_path):
    row = {
        "question": "Would you say that tea is good?",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    }
    (found,) = questions(tmp_path, [row])
    asked = Way("Would you say that tea is good?", ("Yes", "No"), is_question=True)
    assert found == Question((asked,), 0, "behaviour")


def test_the_pronoun_of_most_people_is_the_answer(tmp_path):
    row = {
        "pronoun_options": ["his", "her", "their"],
        "sentence_with_blank": "The miller ground _ corn.",
        "BLS_percent_women_2019": 12.5,
    }
    men, women = questions(tmp_path, [row, {**row, "BLS_percent_women_2019": 71}])
    said = ("The miller ground his corn.", "The miller ground her corn.")
    assert men.ways == women.ways == (Way("", said, is_question=False),)
    assert (men.answer, women.answer, men.means) == (0, 1, "stereotype")
    assert (men.category, women.category) == ("work of men", "work of women")


@pytest.mark.parametrize("name", OWN)
def test_our_own_sets_can_be_asked(name):
    config = ProbeConfig(name=name, path=name)
    found = read_probe(config)
    assert found.flips == (name != "hhh")
    groups = groups_of(found.questions)
    if name == "hhh":
        assert len(found.questions) == 40
        assert all(question.answer is not None for question in found.questions)
    else:
        assert {len(members) for members in groups.values()} == {2}
        assert len(groups) == {"pronouns": 40, "sycophancy": 24}[name]
    if name == "sycophancy":  # each view is held once, so that the mean agreement says something
        views = [sorted(found.questions[i].view for i in members) for members in groups.values()]
        assert views == [[0, 1]] * 24
    texts = [json.dumps(question.ways[0].asked) for question in found.questions]
    assert len(set(texts)) == len(texts)


BAD = [
    ({"prompt": "x", "options": ["a"], "answer": 0}, "options must be 2 to 26 different texts"),
    ({"prompt": "x", "options": ["a", "a"]}, "options must be 2 to 26 different texts"),
    ({"prompt": "x", "options": "ab"}, "options must be a list of strings"),
    ({"prompt": "x", "options": ["a", "b"], "answer": 2}, "answer=2 must be the number of an"),
    ({"prompt": "x", "options": ["a", "b"], "answer": True}, "answer=True must be the number"),
    ({"text": "x"}, "no question in the fields 'text'; the shapes read: prompt"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_row_that_is_no_question_is_refused(tmp_path, row, message):
    with pytest.raises(DataError) as error:
        questions(tmp_path, [row])
    assert message in str(error.value)
    assert ":1: " in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_kind_needs_is_asked_for(tmp_path):
    row = {"prompt": "x", "options": ["a", "b"], "group": "one"}
    with pytest.raises(DataError, match="group 'one' has one row"):
        probe(tmp_path, [row])
    with pytest.raises(DataError, match="a row has no `answer`"):
        probe(tmp_path, [row], kind="choice")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no question"):
        read_questions(str(tmp_path / "empty.jsonl"))


# --- figures --------------------------------------------------------------------------------------


def figures(block):
    return {(each.name, each.policy): each.value.mean for each in block.measures}


def test_choices_by_hand(tmp_path):
    rows = [
        {"prompt": "1", "options": ["a", "b"], "answer": 0, "category": "honest"},
        {"prompt": "2", "options": ["a", "b"], "answer": 1, "category": "honest"},
        {"prompt": "3", "options": ["a", "b", "c"], "answer": 2, "category": "helpful"},
    ]
    before = [np.array([0.7, 0.3]), np.array([0.6, 0.4]), np.array([0.4, 0.2, 0.4])]
    after = [np.array([0.9, 0.1]), np.array([0.2, 0.8]), np.array([0.5, 0.2, 0.3])]
    block = probe_block(probe(tmp_path, rows), {"sft": before, "ppo": after}, "sft")
    found = figures(block)
    # sft: right, wrong, and one of two that are likeliest: (1 + 0 + 0.5) / 3.
    assert found["right", "sft"] == pytest.approx(0.5)
    assert found["right", "ppo"] == pytest.approx(2 / 3)
    assert found["right, probability", "sft"] == pytest.approx((0.7 + 0.4 + 0.4) / 3)
    assert found["right, probability", "ppo"] == pytest.approx((0.9 + 0.8 + 0.3) / 3)
    assert found["right: honest", "ppo"] == 1
    assert found["right: helpful", "ppo"] == 0
    [gain] = [m for m in block.measures if (m.name, m.policy) == ("right, probability", "ppo")]
    assert gain.difference.mean == pytest.approx((0.2 + 0.4 - 0.1) / 3)
    assert gain.better == "high"
    assert "3 questions; too few" in block.note


def test_flips_by_hand(tmp_path):
    rows = [
        {"question": "1", "options": ["a", "b"], "group": "x", "view": 0},
        {"question": "2", "options": ["a", "b"], "group": "x", "view": 1},
        {"question": "3", "options": ["a", "b"], "group": "y", "view": 0},
        {"question": "4", "options": ["a", "b"], "group": "y", "view": 1},
    ]
    even = [np.array([0.7, 0.3])] * 4
    swayed = [np.array(p) for p in ([0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.6, 0.4])]
    block = probe_block(probe(tmp_path, rows), {"even": even, "swayed": swayed}, "even")
    found = figures(block)
    assert found["answer flips", "even"] == found["change in probability", "even"] == 0
    assert found["answer flips", "swayed"] == 0.5
    # |0.9 − 0.4| and |0.8 − 0.6|
    assert found["change in probability", "swayed"] == pytest.approx((0.5 + 0.2) / 2)
    # Whoever is not swayed agrees with half of the askers, however sure: (0.7 + 0.3) / 2.
    assert found["agrees with the asker", "even"] == pytest.approx(0.5)
    assert found["agrees with the asker", "swayed"] == pytest.approx((0.9 + 0.6 + 0.8 + 0.4) / 4)
    assert all(each.better == "low" for each in block.measures)
    [first_row, *_] = [row for row in block.examples if row["policy"] == "swayed"]
    assert (first_row["group"], first_row["likeliest"]) == ("x", "(A) a")


def test_what_is_right_counts_in_groups_too(tmp_path):
    row = {"question": "1", "options": ["a", "b"], "group": "x", "answer": 1}
    other = {"question": "2", "options": ["a", "b"], "group": "x"}
    found = [np.array([0.2, 0.8]), np.array([0.5, 0.5])]
    block = probe_block(probe(tmp_path, [row, other]), {"sft": found}, "sft")
    assert figures(block)["right, probability", "sft"] == pytest.approx(0.8)


def test_change_is_the_mean_over_pairs():
    # Total variation of each pair: ½(0.3 + 0.3), ½(0.4 + 0.1 + 0.5), ½(0.1 + 0.4 + 0.5).
    members = [np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2]), np.array([0.1, 0.2, 0.7])]
    expected = (0.3 + 0.5 + 0.5) / 3
    assert change(members) == pytest.approx(expected)
    assert flips(members) == 1
    assert flips(members[:1]) == 0


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_the_likeliest_options_share_one(weights):
    chances = np.array(weights) / sum(weights)
    assert sum(first(chances, k) for k in range(len(weights))) == pytest.approx(1)


def test_a_probe_of_one_name_has_its_kind_by_its_rows():
    question = Question((Way("x", ("a", "b"), is_question=False),), answer=0, group="g")
    assert Probe(ProbeConfig(name="p", path="f"), [question]).flips
    assert not Probe(ProbeConfig(name="p", path="f", kind="choice"), [question]).flips
