"""The sandbox world: a mixed corpus, imperfect demonstrations, prompts for each stage.

A prompt is a form, a topic and an ending. Of the combinations of every known topic some are kept
for the test, so that its wording is new to every stage; new topics are only in the test.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

from tether.records import Demonstration, Prompt, to_dict, write_jsonl
from tether.sandbox.texts import TEXTS, Question, Topic, ask
from tether.sandbox.writer import Writer

TEST_PER_TOPIC = 20  # of 120 combinations of form and ending
TEST_PER_NEW_TOPIC = 25
DEMONSTRATIONS = 800
RANKING_PROMPTS = 1800

# What is written on a topic: kind of completion -> share.
CORPUS_MIX = {
    "helpful": 0.14,
    "plain": 0.12,
    "rude": 0.14,
    "rambling": 0.14,
    "sycophantic": 0.12,
    "off topic": 0.12,
    "repetitive": 0.08,
    "more prompts": 0.10,
    "refusal": 0.04,
}
# Of the completions on harmful topics 60 % are of the same mix, 40 % comply or are rude.
HARMFUL_CORPUS_MIX = {kind: 0.6 * share for kind, share in CORPUS_MIX.items()}
HARMFUL_CORPUS_MIX["compliance"] = 0.28
HARMFUL_CORPUS_MIX["rude"] += 0.12

# Demonstrations are imperfect, as people's are; perfect ones would leave nothing to be learned
# from rankings.
DEMONSTRATION_MIX = {
    "helpful": 0.34,
    "plain": 0.22,
    "sycophantic": 0.14,
    "rambling": 0.10,
    "off topic": 0.10,
    "rude": 0.06,
    "refusal": 0.04,
}
HARMFUL_DEMONSTRATION_MIX = {
    "refusal": 0.46,
    "compliance": 0.22,
    "off topic": 0.20,
    "rude": 0.08,
    "plain": 0.04,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """All records of the sandbox.

    `corpus` holds whole documents (no prompt). No test prompt is in any other list or document;
    demonstrations and rankings share no prompt; `ppo_prompts` are all prompts that are not tests.
    """

    corpus: list[Demonstration]
    demonstrations: list[Demonstration]
    ranking_prompts: list[Prompt]
    ppo_prompts: list[Prompt]
    test_prompts: list[Prompt]


def build(seed: int, *, num_documents: int = 60_000) -> World:
    """Make a world; the same seed gives the same texts.

    Args:
        seed: Any whole number from 0.
        num_documents: Documents of the corpus, about 36 tokens each.
    """
    random = Random(seed)
    train, test = split(random)
    writer = Writer(random, train)
    ranked = train[DEMONSTRATIONS : DEMONSTRATIONS + RANKING_PROMPTS]
    return World(
        corpus=write_corpus(writer, train, num_documents),
        demonstrations=_write_demonstrations(writer, train[:DEMONSTRATIONS]),
        ranking_prompts=[to_prompt(question) for question in ranked],
        ppo_prompts=[to_prompt(question) for question in train],
        test_prompts=[to_prompt(question) for question in test],
    )


def write(world: World, out_dir: str | Path) -> None:
    """Write each list of a world to its own file, NAME.jsonl."""
    out = Path(out_dir)
    write_jsonl(out / "corpus.jsonl", ({"text": row.completion} for row in world.corpus))
    for name in ("demonstrations", "ranking_prompts", "ppo_prompts", "test_prompts"):
        write_jsonl(out / f"{name}.jsonl", map(to_dict, getattr(world, name)))


def split(random: Random) -> tuple[list[Question], list[Question]]:
    """Questions to train on and to test with.

    Training questions come in rounds with one of every topic in random order: any stretch of them
    has the topics, and so the harmful ones, in equal shares.
    """
    rounds: list[list[Question]] = []
    test: list[Question] = []
    for topic in TEXTS.topics:
        wordings = list(product(TEXTS.forms, TEXTS.endings))
        random.shuffle(wordings)
        questions = [ask(topic, *wording) for wording in wordings]
        kept = TEST_PER_NEW_TOPIC if topic.new else TEST_PER_TOPIC
        test += questions[:kept]
        if not topic.new:
            rounds.append(questions[kept:])
    random.shuffle(test)
    train: list[Question] = []
    for one_of_each in zip(*rounds, strict=True):
        train += random.sample(one_of_each, len(one_of_each))
    return train, test


def to_prompt(question: Question) -> Prompt:
    """The record of a question."""
    return Prompt(prompt=question.prompt, category=question.topic.category)


def write_corpus(writer: Writer, train: list[Question], count: int) -> list[Demonstration]:
    """Documents of mixed quality: each a question and its completion."""
    documents: list[Demonstration] = []
    for question in writer.random.choices(train, k=count):
        mix = HARMFUL_CORPUS_MIX if question.topic.harmful else CORPUS_MIX
        completion = write_one(writer, question.topic, mix)
        documents.append(Demonstration(prompt="", completion=question.prompt + completion))
    return documents


def _write_demonstrations(writer: Writer, questions: list[Question]) -> list[Demonstration]:
    rows: list[Demonstration] = []
    for question in questions:
        mix = HARMFUL_DEMONSTRATION_MIX if question.topic.harmful else DEMONSTRATION_MIX
        completion = write_one(writer, question.topic, mix)
        rows.append(Demonstration(prompt=question.prompt, completion=completion))
    return rows


def write_one(writer: Writer, topic: Topic, mix: dict[str, float]) -> str:
    """A completion of a kind that is drawn from the mix."""
    kind = writer.random.choices(list(mix), weights=list(mix.values()))[0]
    return writer.write(kind, topic)
