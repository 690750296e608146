"""The world with sources: what its answers are worth, and that its model can speak it."""

from random import Random

import pytest

from tether.config import SandboxConfig
from tether.models.language_model import load_tokenizer
from tether.records import read_jsonl
from tether.rewards.citations import citations
from tether.sandbox import sources
from tether.sandbox.sources import RELATIONS, Fact, Question, answered, ask, supported, write_answer
from tether.sandbox.stage import make_sandbox
from tether.sandbox.tokenizer import SPECIAL, build_tokenizer

NEAR, OPENS = RELATIONS[:2]
QUESTION = Question((Fact("mill", NEAR, "river"), Fact("inn", OPENS, "noon")), 1)


def test_a_prompt_by_hand():
    assert QUESTION.prompt == (
        "Sources:\n[1] the mill is near the river.\n[2] the inn opens at noon.\n\n"
        "Person: when does the inn open?\nHelper:"
    )


@pytest.mark.parametrize(
    ("answer", "share", "right"),
    [
        (" the inn opens at noon [2].", 1.0, 1.0),
        (" sure. the inn opens at noon [2].", 1.0, 1.0),
        (" the mill is near the river [1].", 1.0, 0.0),  # true, but not asked for
        (" the inn opens at noon [1].", 0.0, 0.0),
        (" the inn opens at noon [3].", 0.0, 0.0),
        (" the inn opens at ten [2].", 0.0, 0.0),
        (" the inn opens at noon.", 0.0, 0.0),
        (" the inn opens at noon [1] [2].", 0.0, 0.0),
        (" the inn opens at noon [2]. the mill is near the river.", 0.5, 0.0),
        (" sure.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_what_is_measured_beside_the_rule(answer, share, right):
    assert supported([QUESTION.prompt], [answer]) == [share]
    assert answered([QUESTION.prompt], [answer]) == [right]


@pytest.mark.parametrize(
    ("kind", "earned"),
    [("good", 1.0), ("uncited", -0.5), ("other", -1.0), ("invented", -1.0), ("false", -1.0)],
)
def test_what_the_rule_gives_for_each_kind_of_answer(kind, earned):
    random = Random(3)
    questions = [ask(random) for _ in range(50)]
    prompts = [question.prompt for question in questions]
    answers = [write_answer(random, question, kind) for question in questions]
    assert citations(prompts, answers) == [earned] * 50
    assert supported(prompts, answers) == [float(kind == "good")] * 50


def test_every_prompt_has_two_or_three_facts_that_differ():
    random = Random(4)
    for question in (ask(random) for _ in range(200)):
        assert len({(fact.place, fact.relation) for fact in question.facts}) in (2, 3)


def test_the_tokenizer_gives_every_text_back():
    tokenizer, random = build_tokenizer([*SPECIAL, *sources.vocabulary()], sources.SPLIT), Random(5)
    for kind in sources.CORPUS_MIX:
        question = ask(random)
        text = question.prompt + write_answer(random, question, kind)
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == text


def test_the_stage_writes_it(tmp_path, monkeypatch):
    for name in ("DOCUMENTS", "DEMONSTRATIONS", "PROMPTS", "TESTS"):
        monkeypatch.setattr(sources, name, 6)
    settings = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    out = make_sandbox(SandboxConfig(out=str(tmp_path / "w"), world="sources", **settings))
    names = ("corpus", "demonstrations", "ppo_prompts", "test_prompts")
    prompts = [row["prompt"] for name in names for _, row in read_jsonl(out / f"{name}.jsonl")]
    assert len(prompts) == len(set(prompts)) == 24
    assert "\n[1]" in load_tokenizer(str(out / "model")).get_vocab()
