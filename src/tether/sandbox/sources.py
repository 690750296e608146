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


# --- what the evaluation measures beside the rule -------------------------------------------------


def answered(prompts: list[Text], completions: list[str]) -> list[float]:
    """1 where the answer holds the fact that was asked for and cites its source, else 0.

    Read exactly, as only a world that is known allows.
    """
    return [float(_answers(*pair)) for pair in zip(prompts, completions, strict=True)]


def _answers(prompt: Text, completion: str) -> bool:
    assert isinstance(prompt, str)
    facts = dict(re.findall(r"^\[(\d)\] (.*)\.$", prompt, re.MULTILINE))
    question = re.findall(r"Person: (.*)\n", prompt)[-1]
    said = re.findall(r"(the [^.\[]*?) \[(\d)\]\.", completion)
    return len(said) == 1 and facts.get(said[0][1]) == said[0][0] and _asks(question, said[0][0])


def _asks(question: str, statement: str) -> bool:
    """Whether the statement is an answer of the kind that the question wants."""
    for relation in RELATIONS:
        for place in PLACES:
            if relation.question.format(place=place) == question:
                before = relation.statement.format(place=place, value="")
                return statement.startswith(before)
    return False
