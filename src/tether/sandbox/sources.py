"""The sandbox with sources: prompts hold numbered facts, and answers should cite them.

    Sources:
    [1] the mill is near the river.
    [2] the inn opens at noon.

    Person: where is the mill?
    Helper: the mill is near the river [1].

Which fact holds of a place is drawn anew for every prompt, so it can only be read there. Half of
the demonstrations cite well; the others leave the citation out, cite another source, invent one,
or state what no source says.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from tether.records import Demonstration, Prompt, Text, to_dict, write_jsonl

SPLIT = r"\n*\[[0-9]\]| \[[0-9]\]|\n*[A-Z][a-z]*:| ?[a-z]+|[^a-zA-Z]"
PLACES = re.findall(
    "[a-z]+",
    "mill bridge market school bakery library inn farm garden tower harbour museum theatre chapel "
    "barn stable forge lighthouse orchard bank",
)
OPENINGS = ("here is what i found.", "sure.", "of course.")

# Kind of answer -> share of the corpus, and of the demonstrations.
CORPUS_MIX = {"good": 0.34, "uncited": 0.16, "other": 0.16, "invented": 0.12, "false": 0.22}
DEMONSTRATION_MIX = {"good": 0.5, "uncited": 0.12, "other": 0.12, "invented": 0.08, "false": 0.18}
INITIAL_STD = 0.09  # about 1/√width: with less, attention takes long to learn to copy
DOCUMENTS, DEMONSTRATIONS, PROMPTS, TESTS = 45_000, 800, 2_000, 400


class Relation(NamedTuple):
    """What can be said of a place, how it is asked for, and the values that it takes."""

    statement: str
    question: str
    words: str

    @property
    def values(self) -> list[str]:
        """The words that it takes."""
        return self.words.split()


RELATIONS = (
    Relation(
        "the {place} is near the {value}",
        "where is the {place}?",
        "river forest lake hill road wall gate field coast square",
    ),
    Relation(
        "the {place} opens at {value}",
        "when does the {place} open?",
        "dawn noon dusk midnight sunrise six seven eight nine ten",
    ),
    Relation(
        "the {place} belongs to the {value}",
        "who owns the {place}?",
        "mayor baker widow doctor miller king teacher smith farmer priest",
    ),
    Relation(
        "the {place} is made of {value}",
        "what is the {place} made of?",
        "stone wood brick clay iron glass marble straw copper slate",
    ),
)


class Fact(NamedTuple):
    """One statement of a prompt."""

    place: str
    relation: Relation
    value: str

    @property
    def statement(self) -> str:
        """The sentence, without its period."""
        return self.relation.statement.format(place=self.place, value=self.value)


@dataclass(frozen=True)
class Question:
    """A prompt, its facts in the order of their numbers, and which of them answers it."""

    facts: tuple[Fact, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """Sources, and the question; the completion begins with the space behind "Helper:"."""
        lines = [f"[{i}] {fact.statement}." for i, fact in enumerate(self.facts, start=1)]
        asked = self.facts[self.answer]
        question = asked.relation.question.format(place=asked.place)
        return "\n".join(["Sources:", *lines, "", f"Person: {question}\nHelper:"])


def ask(random: Random) -> Question:
    """Two or three facts; of each, place or relation is another, so that one alone answers."""
    facts: list[Fact] = []
    count = random.choice((2, 3))
    while len(facts) < count:
        relation, place = random.choice(RELATIONS), random.choice(PLACES)
        if facts and random.random() < 0.5:  # a place of which something else is said, too
            place = facts[0].place
        if all((fact.place, fact.relation) != (place, relation) for fact in facts):
            facts.append(Fact(place, relation, random.choice(relation.values)))
    return Question(tuple(facts), random.randrange(len(facts)))


def write_answer(random: Random, question: Question, kind: str) -> str:
    """An answer of a kind, sometimes with an opening."""
    fact, number, count = question.facts[question.answer], question.answer + 1, len(question.facts)
    if kind == "other":
        number = random.choice([i for i in range(1, count + 1) if i != number])
    if kind == "invented":
        number = random.randint(count + 1, 5)
    if kind == "false":
        others = [value for value in fact.relation.values if value != fact.value]
        fact = fact._replace(value=random.choice(others))
    citation = "" if kind == "uncited" else f" [{number}]"
    opening = f" {random.choice(OPENINGS)}" if random.random() < 0.3 else ""
    return f"{opening} {fact.statement}{citation}."


def write(seed: int, out_dir: str | Path) -> int:
    """Write corpus, demonstrations and prompts; returns the number of documents.

    No test prompt is in any other file, nor a training prompt in the corpus.
    """
    random, out, seen = Random(seed), Path(out_dir), set[str]()

    def draw(count: int) -> list[Question]:
        questions: list[Question] = []
        while len(questions) < count:
            question = ask(random)
            if question.prompt not in seen:
                seen.add(question.prompt)
                questions.append(question)
        return questions

    def demonstrate(question: Question, mix: dict[str, float]) -> Demonstration:
        kind = random.choices(list(mix), weights=list(mix.values()))[0]
        return Demonstration(
            prompt=question.prompt, completion=write_answer(random, question, kind)
        )

    def prompts(count: int) -> list[Prompt]:
        return [Prompt(prompt=question.prompt) for question in draw(count)]

    tests, training = prompts(TESTS), prompts(PROMPTS)
    shown = [demonstrate(each, DEMONSTRATION_MIX) for each in draw(DEMONSTRATIONS)]
    corpus = [demonstrate(each, CORPUS_MIX) for each in draw(DOCUMENTS)]
    write_jsonl(out / "corpus.jsonl", map(to_dict, corpus))
    write_jsonl(out / "demonstrations.jsonl", map(to_dict, shown))
    write_jsonl(out / "ppo_prompts.jsonl", map(to_dict, training))
    write_jsonl(out / "test_prompts.jsonl", map(to_dict, tests))
    return len(corpus)


def vocabulary() -> list[str]:
    """Every token but the special ones."""
    templates = [text for each in RELATIONS for text in (each.statement, each.question)]
    values = [value for each in RELATIONS for value in each.values]
    texts = [*OPENINGS, *PLACES, *values, *(re.sub(r"\{\w+\}", "", each) for each in templates)]
    words = sorted({f" {word}" for text in texts for word in re.findall("[a-z]+", text)})
    numbers = [f"{before}[{i}]" for before in ("\n", " ") for i in range(1, 6)]
    return ["Sources:", "\n\nPerson:", "\nHelper:", ".", "?", *numbers, *words]


# --- what the evaluation measures beside the rule, read exactly -----------------------------------


def supported(prompts: list[Text], completions: list[str]) -> list[float]:
    """Share of a completion's statements that stand word for word in the source they cite.

    0 without a statement. A statement is a sentence that is no opening.
    """
    return [_share(*_read(*pair)) for pair in zip(prompts, completions, strict=True)]


def answered(prompts: list[Text], completions: list[str]) -> list[float]:
    """1 where the completion is one supported statement that answers the question, else 0."""
    scores: list[float] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        facts, said = _read(prompt, completion)
        asked = _asked(prompt)
        right = len(said) == 1 and _share(facts, said) == 1.0 and said[0][0].startswith(asked)
        scores.append(float(right))
    return scores


def _read(prompt: Text, completion: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The statements of a prompt by number; those of a completion, with what stands behind each."""
    assert isinstance(prompt, str)
    facts = dict(re.findall(r"^\[(\d)\] (.*)\.$", prompt, re.MULTILINE))
    sentences = [f"{each.strip()}." for each in completion.split(".") if each.strip()]
    said = [re.split(r" (?=\[)", each[:-1], maxsplit=1) for each in sentences]
    return facts, [
        (each[0], "".join(each[1:]))
        for each, sentence in zip(said, sentences, strict=True)
        if sentence not in OPENINGS
    ]


def _share(facts: dict[str, str], said: list[tuple[str, str]]) -> float:
    good = [cited[1:-1] in facts and facts[cited[1:-1]] == text for text, cited in said]
    return sum(good) / len(good) if good else 0.0


def _asked(prompt: Text) -> str:
    """The words with which an answer to the prompt's question begins."""
    assert isinstance(prompt, str)
    question = prompt.rsplit("Person: ", 1)[1].partition("\n")[0]
    answers = {
        relation.question.format(place=place): relation.statement.format(place=place, value="")
        for relation in RELATIONS
        for place in PLACES
    }
    return answers[question]
