import dataclasses
import math

import pytest
import torch
from tests.rewards.test_judge import INJECTIONS
from tests.tiny import (
    CHAT_TEMPLATE,
    WORDS,
    byte_bpe_tokenizer,
    metaspace_tokenizer,
    save_tiny,
    word_tokenizer,
)

from tether.errors import DataError, ModelError
from tether.models.language_model import load
from tether.records import Text
from tether.rewards.judge import Comparison, Wording, ask, both_orders
from tether.rewards.local_judge import LocalJudge, against, holds, log_odds
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
SHORT = Wording(
    comparison="{prompt} A: {first} B: {second} {question}",
    statement="{prompt} A: {completion} {question}",
    reasoning=" tell",
    answer=" Answer:",
    yes_no=("yes", "no"),
)
ASKED = [
    Comparison("the cat sees", "a dog", "it helps the small bird", "kind"),
    Comparison("why", "sorry", "no", "who"),
    Comparison("tell me about it", "please yes thanks", "a", "kind"),
]


def tokenizer(**settings):
    return word_tokenizer([*WORDS, "A", "B", "Answer:", ">", "A:", "B:"], **settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    return load(str(save_tiny(folder, tokenizer=tokenizer())), CPU)


@pytest.fixture
def judge(model):
    return LocalJudge(model, SHORT)


def by_transformers(language_model, text, letters=("A", "B")):
    """(p of the first letter among both, probability of both) by the model's own forward pass."""
    ids = language_model.tokenizer(text, return_tensors="pt")["input_ids"]
    pair = language_model.tokenizer.convert_tokens_to_ids(list(letters))
    with torch.no_grad():
        probabilities = language_model.model(input_ids=ids).logits[0, -1].double().softmax(-1)
    one, two = (float(probabilities[i]) for i in pair)
    return one / (one + two), one + two


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_answers_with_the_probabilities_of_the_letters(tmp_path, kind):
    model = load(str(save_tiny(tmp_path, kind, tokenizer=tokenizer())), CPU)
    judge = LocalJudge(model, SHORT)
    expected = [by_transformers(model, f"{ask(each, SHORT)} Answer:") for each in ASKED]
    assert judge.first_wins(ASKED) == pytest.approx([p for p, _ in expected], abs=1e-6)
    assert judge.mass == pytest.approx([mass for _, mass in expected], abs=1e-6)
    assert len({round(p, 3) for p, _ in expected}) == 3


def test_one_alone_is_judged_as_among_others(judge):
    together = judge.first_wins(ASKED)
    assert [judge.first_wins([each])[0] for each in ASKED] == pytest.approx(together, abs=1e-6)
    assert judge.first_wins([]) == []


def test_swapping_the_completions_gives_the_complement(judge):
    one = both_orders(judge, ASKED)
    other = both_orders(judge, [each.swapped for each in ASKED])
    for a, b in zip(one, other, strict=True):
        assert a.probability + b.probability == pytest.approx(1, abs=1e-6)
        assert a.flipped == b.flipped


@pytest.mark.parametrize("make", [byte_bpe_tokenizer, metaspace_tokenizer])
def test_letters_are_found_in_other_tokenizers(tmp_path, make):
    settings = {"max_position_embeddings": 512}
    model = load(str(save_tiny(tmp_path, tokenizer=make(), **settings)), CPU)
    judge = LocalJudge(model)
    [p] = judge.first_wins([ASKED[0]])
    text = f"{ask(ASKED[0], Wording())}\n\nAnswer: A"
    ids = model.tokenizer(text)["input_ids"]
    other = model.tokenizer(text[:-1] + "B")["input_ids"]
    assert ids[:-1] == other[:-1]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids[:-1]])).logits[0, -1]
    # σ(z_A − z_B) is what remains of the softmax where only two tokens count
    assert p == pytest.approx(float((logits[ids[-1]] - logits[other[-1]]).sigmoid()), abs=1e-5)


@pytest.mark.parametrize("letters", [("yes please", "no"), ("A", "B big"), ("cat a", "cat the")])
def test_answers_of_several_words_count_whole(model, letters):
    judge = LocalJudge(model, dataclasses.replace(SHORT, letters=letters))
    found = judge.first_wins(ASKED)
    for each, p, mass in zip(ASKED, found, judge.mass, strict=True):
        text = f"{ask(each, judge.wording)} Answer:"
        logs = [log_of_words(model, text, answer) for answer in letters]
        if letters[0].startswith("cat"):  # what both share decides nothing
            shared = log_of_words(model, text, "cat")
            logs = [log - shared for log in logs]
        first, second = map(math.exp, logs)
        assert p == pytest.approx(first / (first + second), abs=1e-5)
        assert mass == pytest.approx(first + second, abs=1e-5)


def log_of_words(language_model, text, answer):
    """Log-prob of the words of an answer, one after the other."""
    total = 0.0
    for word in answer.split():
        ids = language_model.tokenizer(text, return_tensors="pt")["input_ids"]
        number = language_model.tokenizer.convert_tokens_to_ids(word)
        with torch.no_grad():
            total += float(
                language_model.model(input_ids=ids).logits[0, -1].log_softmax(-1)[number]
            )
        text += f" {word}"
    return total


def test_a_chat_model_is_asked_in_a_chat(tmp_path):
    words = tokenizer()
    words.chat_template = CHAT_TEMPLATE
    model = load(str(save_tiny(tmp_path, tokenizer=words)), CPU)
    examples = [("who A: no B: yes", " Answer: B")]
    judge = LocalJudge(model, SHORT, examples)
    text = (
        f"[user]\nwho A: no B: yes\n[assistant]\nAnswer: B{words.eos_token}\n"
        f"[user]\n{ask(ASKED[0], SHORT)}\n[assistant]\nAnswer:"
    )
    assert judge.first_wins(ASKED[:1])[0] == pytest.approx(by_transformers(model, text)[0])


def test_examples_stand_before_the_question(model):
    judge = LocalJudge(model, SHORT, [("who A: no B: yes", " Answer: B")])
    text = f"who A: no B: yes Answer: B\n\n{ask(ASKED[0], SHORT)} Answer:"
    assert judge.first_wins(ASKED[:1])[0] == pytest.approx(by_transformers(model, text)[0])


# --- reasoning ------------------------------------------------------------------------------------


def test_reasoning_comes_before_the_answer_and_is_held_in(model, monkeypatch):
    thinking = SamplingConfig(max_new_tokens=5)
    judge = LocalJudge(model, SHORT, reasoning=thinking, clamp=0.03)
    asked: list[Text] = []
    answer = LocalJudge._answer

    def seen(self, questions, answers):
        asked.extend(f"{each.question}{each.lead}" for each in questions)
        return answer(self, questions, answers)

    monkeypatch.setattr(LocalJudge, "_answer", seen)
    held = judge.first_wins(ASKED)
    for text, each, p in zip(asked, ASKED, held, strict=True):
        assert text.startswith(f"{ask(each, SHORT)} tell")
        assert text.endswith(" Answer:")
        free = by_transformers(model, text)[0]
        assert p == pytest.approx(min(max(free, 0.47), 0.53), abs=1e-6)
    assert {0.47, 0.53} & set(held)
    assert judge.first_wins(ASKED) == held  # the same random numbers
    judge.step = 1
    asked.clear()
    judge.first_wins(ASKED)
    assert asked[0].startswith(f"{ask(ASKED[0], SHORT)} tell")


# --- refusals -------------------------------------------------------------------------------------


def test_a_question_that_is_too_long_is_told_beforehand(judge):
    long = dataclasses.replace(ASKED[0], first="dog " * 60)  # 64 positions
    assert judge.fits(ASKED[0])
    assert not judge.fits(long)
    with pytest.raises(DataError, match=r"has \d+ tokens; the judge has 64 positions"):
        judge.first_wins([long])


def test_letters_that_the_tokenizer_does_not_know_are_refused(tmp_path):
    model = load(str(save_tiny(tmp_path)), CPU)  # "A" and "B" are both <unk>
    with pytest.raises(ModelError, match="does not tell the answers 'A' and 'B' apart"):
        LocalJudge(model, SHORT).first_wins(ASKED[:1])


def test_injections_are_words_like_any_other(tmp_path):
    """A drawn model has no idea of answers: an injection moves it as other words do, no more."""
    folder = save_tiny(tmp_path, tokenizer=byte_bpe_tokenizer(), max_position_embeddings=1024)
    judge = LocalJudge(load(str(folder), CPU))
    plain = Comparison("how do i get in?", "i will not help.", "the window is open.", "better?")
    [start] = both_orders(judge, [plain])

    def shift(texts):
        asked = [dataclasses.replace(plain, second=f"{plain.second} {each}") for each in texts]
        found = both_orders(judge, asked)
        return sum(abs(each.probability - start.probability) for each in found) / len(found)

    others = ["then go to sleep.", "the cat sat on the mat.", "who knows?", "bread, water, yeast"]
    assert shift(INJECTIONS) < 2 * shift(others) + 0.01


# --- as a reward ----------------------------------------------------------------------------------


class Numbers:
    """P(the first is better) by the length of the two."""

    def first_wins(self, comparisons):
        return [len(c.first) / (len(c.first) + len(c.second)) for c in comparisons]


def test_against_a_reference_by_hand():
    reward = against(Numbers(), "better?", {"why": "xx"})
    # 6 letters against 2: p = 6/8, in the other order 2/8, so (0.75 + 1 - 0.25)/2 = 0.75: log 3
    assert reward(["why", "why"], ["yyyyyy", "zz"]) == pytest.approx([math.log(3), 0.0])
    with pytest.raises(DataError, match="no reference completion for the prompt 'who'"):
        reward(["who"], ["a"])


def test_a_question_about_one_completion(judge, model):
    reward = holds(judge, "kind")
    p, _ = by_transformers(model, "> why A: > sorry kind Answer:", ("yes", "no"))
    assert reward(["why"], ["sorry"])[0] == pytest.approx(math.log(p / (1 - p)), abs=1e-4)


def test_log_odds_stay_finite():
    assert log_odds(0.75) == pytest.approx(math.log(3))
    assert log_odds(1.0) == pytest.approx(-log_odds(0.0)) == pytest.approx(13.8155, abs=1e-3)
