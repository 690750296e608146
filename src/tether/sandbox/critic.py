"""The constitutional variant of the sandbox: a world whose texts also criticize and compare.

A model this small finds no fault by itself. Its corpus therefore holds, beside the documents of
the demo, transcripts of critiques and revisions and questions which of two answers is better, in
the formats of `constitution.toml`. They err now and then, as people do. Everything after the
pretraining is the model's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tether.constitution.principles import Constitution, Principle, read_constitution
from tether.constitution.transcripts import revision_prompt
from tether.records import Demonstration, Prompt, to_dict, write_jsonl
from tether.rewards.judge import Comparison, ask
from tether.sandbox.gold import breakdown
from tether.sandbox.texts import TEXTS, Question
from tether.sandbox.world import DEMONSTRATION_MIX, split, to_prompt, write_corpus, write_one
from tether.sandbox.writer import Writer

CONSTITUTION = Path(__file__).with_name("constitution.toml")

DOCUMENTS = {"plain": 24_000, "transcripts": 16_000, "questions": 24_000}
HARMFUL_SHARE = 0.6  # of the prompts in transcripts and questions
SEES = 0.85  # how often a critique finds what is there
MENDS = 0.85  # how often a revision mends what the critique found
GUESSES = 0.05  # share of questions answered by chance
TRIES = 5  # pairs drawn until one differs in what is asked about
QUESTION_WEIGHT = 10.0  # of an answer's three tokens in the loss

HARMFUL_MIX = {
    "compliance": 0.42,
    "refusal": 0.28,
    "rude": 0.1,
    "plain": 0.08,
    "sycophantic": 0.06,
    "off topic": 0.06,
}
HARMLESS_MIX = {
    "helpful": 0.3,
    "plain": 0.2,
    "sycophantic": 0.2,
    "rude": 0.2,
    "refusal": 0.1,
}
# Demonstrations that help with everything: there must be something to revise.
DEMONSTRATIONS = 800
HELPFUL_MIX = {kind: share for kind, share in DEMONSTRATION_MIX.items() if kind != "refusal"}
# Some answer another question: else no comparison tells the reward model that this is no way out.
COMPLIANT_MIX = {"compliance": 0.64, "plain": 0.06, "off topic": 0.2, "rude": 0.05, "refusal": 0.05}
LABELED_PROMPTS = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticWorld:
    """All records of the variant. No test prompt is in any other list or document.

    `helpful` are those of the demonstrations that answer harmless prompts; `helpful_prompts` are
    harmless prompts that no demonstration answers.
    """

    corpus: list[Demonstration]
    demonstrations: list[Demonstration]
    helpful: list[Demonstration]
    red_team: list[Prompt]
    helpful_prompts: list[Prompt]
    ppo_prompts: list[Prompt]
    red_team_test: list[Prompt]
    helpful_test: list[Prompt]


def build(seed: int, documents: dict[str, int] = DOCUMENTS) -> CriticWorld:
    """Make the world; the same seed gives the same texts.

    Args:
        seed: Any whole number from 0.
        documents: How many of each kind; a transcript or question has about 100 tokens.
    """
    random = Random(seed)
    train, test = split(random)
    writer = Writer(random, train)
    critic = Critic(writer, train, read_constitution(CONSTITUTION))
    corpus = write_corpus(writer, train, documents["plain"])
    corpus += [critic.transcript() for _ in range(documents["transcripts"])]
    corpus += [critic.question() for _ in range(documents["questions"])]
    random.shuffle(corpus)
    labeled = [q for q in train[DEMONSTRATIONS:] if not q.topic.harmful][:LABELED_PROMPTS]
    demonstrated = train[:DEMONSTRATIONS]
    demonstrations = _demonstrate(writer, demonstrated)
    both = zip(demonstrations, demonstrated, strict=True)
    return CriticWorld(
        corpus=corpus,
        demonstrations=demonstrations,
        helpful=[row for row, question in both if not question.topic.harmful],
        red_team=[to_prompt(question) for question in train if question.topic.harmful],
        helpful_prompts=[to_prompt(question) for question in labeled],
        ppo_prompts=[to_prompt(question) for question in train],
        red_team_test=[to_prompt(question) for question in test if question.topic.harmful],
        helpful_test=[to_prompt(question) for question in test if not question.topic.harmful],
    )


def write(seed: int, out: Path) -> int:
    """Write each list to its own file, NAME.jsonl, and the constitution beside them.

    Returns:
        Documents of the corpus.
    """
    world = build(seed)
    for name in world.__dataclass_fields__:
        write_jsonl(out / f"{name}.jsonl", map(to_dict, getattr(world, name)))
    (out / "constitution.toml").write_bytes(CONSTITUTION.read_bytes())
    return len(world.corpus)


def _demonstrate(writer: Writer, questions: list[Question]) -> list[Demonstration]:
    rows: list[Demonstration] = []
    for question in questions:
        mix = COMPLIANT_MIX if question.topic.harmful else HELPFUL_MIX
        completion = write_one(writer, question.topic, mix)
        rows.append(Demonstration(prompt=question.prompt, completion=completion))
    return rows


Measure = Callable[[str, str], float]
"""(prompt, completion) → how much of something it has."""


class Critic:
    """Writes transcripts and questions."""

    def __init__(self, writer: Writer, questions: list[Question], constitution: Constitution):
        self.writer, self.random, self.constitution = writer, writer.random, constitution
        self.harmful = [question for question in questions if question.topic.harmful]
        self.harmless = [question for question in questions if not question.topic.harmful]

    def transcript(self) -> Demonstration:
        """A completion, what is wrong with it by a principle, and a better one."""
        question, principle = self._draw()
        completion = self._answer(question)
        fault = FAULTS[principle.id](question.prompt, completion)
        found = fault > 0 and self.random.random() < SEES
        critique = self.random.choice(FOUND[principle.id] if found else NOTHING)
        revision = completion
        if found and self.random.random() < MENDS:
            revision = self._mend(question, principle, completion)
        prompt = revision_prompt(
            self.constitution, question.prompt, completion, principle, f" {critique}"
        )
        assert isinstance(prompt, str)
        return Demonstration(prompt="", completion=prompt + revision)

    def question(self) -> Demonstration:
        """Which of two completions is better by a principle: a letter."""
        question, principle = self._draw()
        fault = FAULTS[principle.id]
        first, second = self._two(question, fault)
        ahead = fault(question.prompt, second) - fault(question.prompt, first)
        better = 0 if ahead > 0 else 1
        if ahead == 0 or self.random.random() < GUESSES:
            better = self.random.randrange(2)
        wording = self.constitution.wording
        comparison = Comparison(question.prompt, first, second, principle.preference)
        return Demonstration(
            prompt=ask(comparison, wording) + wording.answer,
            completion=f" {wording.letters[better]}",
            weight=QUESTION_WEIGHT,
        )

    def _draw(self) -> tuple[Question, Principle]:
        harmful = self.random.random() < HARMFUL_SHARE
        question = self.random.choice(self.harmful if harmful else self.harmless)
        return question, self.random.choice(self.constitution.principles)

    def _answer(self, question: Question) -> str:
        mix = HARMFUL_MIX if question.topic.harmful else HARMLESS_MIX
        return write_one(self.writer, question.topic, mix)

    def _two(self, question: Question, fault: Measure) -> tuple[str, str]:
        """Two completions, most often such as differ in what is asked about."""
        for _ in range(TRIES - 1):
            first, second = self._answer(question), self._answer(question)
            if fault(question.prompt, first) != fault(question.prompt, second):
                return first, second
        return self._answer(question), self._answer(question)

    def _mend(self, question: Question, principle: Principle, completion: str) -> str:
        if principle.id not in ("manners", "honesty"):
            return self.writer.refusal(question.topic)
        bad = TEXTS.rudeness if principle.id == "manners" else TEXTS.flattery
        for sentence in bad:
            completion = completion.replace(f" {sentence}", "")
        kind = "refusal" if question.topic.harmful else "helpful"
        return completion or self.writer.write(kind, question.topic)


def harm(prompt: str, completion: str) -> float:
    """How far a completion goes along with a harmful prompt, in [-1, 1]; -1 refuses."""
    return -breakdown(prompt, completion)["harmlessness"]


def rudeness(prompt: str, completion: str) -> float:
    """What rude sentences cost."""
    return -breakdown(prompt, completion)["rudeness"]


def flattery(prompt: str, completion: str) -> float:
    """What flattery costs."""
    return -breakdown(prompt, completion)["flattery"]


FAULTS: dict[str, Measure] = {
    **dict.fromkeys(("harm", "law", "fairness", "care"), harm),
    "manners": rudeness,
    "honesty": flattery,
}
"""What each principle of `constitution.toml` is against."""

FOUND = {
    "harm": ["yes, it could hurt someone.", "yes, someone could get hurt."],
    "law": ["yes, it is against the law.", "yes, the law says no to this."],
    "fairness": ["yes, it is not fair to other people.", "yes, other people would lose."],
    "care": ["yes, someone would lose what they care about.", "yes, this takes no care at all."],
    "manners": ["yes, it is rude.", "yes, a good helper is not rude."],
    "honesty": ["yes, it flatters the person.", "yes, this is flattery."],
}
NOTHING = ["no, this is a good answer.", "no, there is nothing wrong with it."]


def known_harm(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Completions ranked by what is known of their harm, to measure a judge; nothing is trained."""
    ranked: list[dict[str, Any]] = []
    for row in rows:
        found = [harm(row["prompt"], completion) for completion in row["completions"]]
        ranks = [1 + sum(other < own for other in found) for own in found]
        ranked.append({"prompt": row["prompt"], "completions": row["completions"], "ranks": ranks})
    return {"harm": ranked}


def sentences() -> list[str]:
    """Everything written here that the demo's texts do not hold, for the vocabulary."""
    asked = [
        text
        for principle in read_constitution(CONSTITUTION).principles
        for text in (principle.critique, principle.revision, principle.preference)
    ]
    return [*asked, *NOTHING, *(text for texts in FOUND.values() for text in texts)]


MARKS = (
    *("\nAsk:", "\nCritique:", "\nRevision:", "\nA:", "\nB:", "\nAnswer:"),
    *("Helper:", ">", "\n", " ", "A", "B"),
)
"""What opens a turn, quotes a line or answers a question."""
