"""A language model in this process as a judge: the log-probs of the letters that answer.

The model reads the question and the words before the answer; of all its next-token probabilities
only those of the two answers count:

    p = exp(log π(A | question)) / (exp(log π(A | question)) + exp(log π(B | question)))
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tether.core import logprobs
from tether.data.batches import Row, device_batches
from tether.engine.decode import completion_text, generate_tokens
from tether.engine.sampling import JUDGMENT
from tether.errors import DataError, ModelError
from tether.models.chat import encode
from tether.models.language_model import LanguageModel, completion_logprobs, predicting
from tether.models.place import at_work
from tether.records import Text, shown
from tether.rewards.judge import Comparison, Judge, Wording, ask, ask_of_one, both_orders, in_turns
from tether.sections import SamplingConfig

ROWS_PER_BATCH = 64
SURE = 1 - 1e-6  # the most sure a judge may be, so that log-odds stay finite


class Asked(NamedTuple):
    """A question, and what stands between it and the answer.

    `lead` is the beginning of the judge's own text: its reasoning, if any, and the words before
    the answer.
    """

    question: Text
    lead: str


class Answer(NamedTuple):
    """The probability of the first of two answers, in [0, 1], and that of both together.

    A small `mass` says that the model would rather have said something else.
    """

    probability: float
    mass: float


@dataclass
class LocalJudge:
    """A judge that answers with the probabilities of a language model.

    Attributes:
        language_model: Any causal language model; one with a chat template is asked in a chat.
        wording: The words of the question.
        examples: Worked-out questions put before each: (question, answer with its lead).
        reasoning: With these settings the model first thinks in its own words; None = it does not.
        clamp: With reasoning, probabilities are held within 0.5 ± this: a model that has argued
            for an answer is nearly always sure of it.
        seed, step: The reasoning's random numbers are a function of both.
        mass: What every answer asked so far had, both letters together.
    """

    language_model: LanguageModel
    wording: Wording = field(default_factory=Wording)
    examples: Sequence[tuple[str, str]] = ()
    reasoning: SamplingConfig | None = None
    clamp: float = 0.1
    seed: int = 0
    step: int = 0
    mass: list[float] = field(default_factory=list)

    def first_wins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(the first is better), in [0, 1], one each, in this order of the completions.

        Raises:
            DataError: A question is longer than the model's positions.
            ModelError: The tokenizer does not tell the letters apart.
        """
        asked = [self._put(ask(each, self.wording, self._special)) for each in comparisons]
        if self.reasoning:
            asked = self._reason(asked, self.reasoning)
        answers = self._answer(asked, self.wording.letters)
        self.mass += [answer.mass for answer in answers]
        if not self.reasoning:
            return [answer.probability for answer in answers]
        low, high = 0.5 - self.clamp, 0.5 + self.clamp
        return [min(max(answer.probability, low), high) for answer in answers]

    def affirms(
        self, prompts: Sequence[Text], completions: Sequence[str], question: str
    ) -> list[float]:
        """P(yes) to a question about each completion, in [0, 1]."""
        rows = zip(prompts, completions, strict=True)
        texts = [ask_of_one(*row, question, self.wording, self._special) for row in rows]
        answers = self._answer([self._put(text) for text in texts], self.wording.yes_no)
        return [answer.probability for answer in answers]

    def fits(self, comparison: Comparison) -> bool:
        """Whether a question leaves the model room to answer."""
        asked = self._put(ask(comparison, self.wording, self._special))
        text = f"{self.wording.reasoning}{asked.lead} {self.wording.letters[0]}"
        tokenizer = self.language_model.tokenizer
        length = len(encode(tokenizer, asked.question, text, end=False).ids) + 1
        thought = self.reasoning.max_new_tokens if self.reasoning else 0
        return length + thought <= self.language_model.max_positions

    @property
    def _special(self) -> list[str]:
        return self.language_model.tokenizer.all_special_tokens

    def _put(self, question: str) -> Asked:
        """The question behind the examples, in a chat where the model has a template for one."""
        if self.language_model.tokenizer.chat_template is None:
            before = "".join(f"{asked}{answer}\n\n" for asked, answer in self.examples)
            return Asked(before + question, self.wording.answer)
        messages = in_turns(question, self.examples)
        return Asked(messages, self.wording.answer.lstrip())

    def _reason(self, asked: Sequence[Asked], sampling: SamplingConfig) -> list[Asked]:
        """The same with what the model thinks of each question in front of the answer."""
        model = self.language_model
        chat = model.tokenizer.chat_template is not None
        opening = self.wording.reasoning.lstrip() if chat else self.wording.reasoning
        prompts = [encode(model.tokenizer, each.question, opening, end=False).ids for each in asked]
        sampled = generate_tokens(
            model, prompts, sampling, seed=self.seed, step=JUDGMENT + self.step
        )
        thoughts = [
            completion_text(model, prompt, sample.token_ids, finished=sample.finished)
            for prompt, sample in zip(prompts, sampled, strict=True)
        ]
        # What it thinks ends where it would answer; the answer itself is asked for below.
        ends = [thought.split(self.wording.answer)[0] for thought in thoughts]
        return [
            each._replace(lead=opening + thought + self.wording.answer)
            for each, thought in zip(asked, ends, strict=True)
        ]

    def _answer(self, asked: Sequence[Asked], answers: tuple[str, str]) -> list[Answer]:
        """Probabilities of two answers to each question."""
        parted = [self._part(each, answers) for each in asked]
        short = [i for i, each in enumerate(parted) if len(each.first) == len(each.second) == 1]
        long = sorted(set(range(len(parted))) - set(short))
        logs = torch.zeros(len(parted), 2)
        logs[short] = self._of_letters([parted[i] for i in short])
        logs[long] = self._of_texts([parted[i] for i in long])
        return [_normalized(pair) for pair in logs]

    @torch.no_grad()
    def _of_letters(self, parted: Sequence["Parted"]) -> Float[Tensor, "N 2"]:
        """Log-probs (nats) of answers of one token, both from one forward pass a question."""
        model = self.language_model
        # One more token, so that the hidden state before it is "the one that predicts it".
        rows = [Row([*each.ids, *each.first], len(each.ids)) for each in parted]
        logs = torch.zeros(len(rows), 2)
        with at_work(model.model, model.place):
            for chunk, batch in device_batches(rows, ROWS_PER_BATCH):
                hidden = model.hidden_states(batch, predicting(batch))
                every = logprobs.of_vocabulary(model.head(hidden))
                letters = torch.tensor([parted[i].first + parted[i].second for i in chunk])
                logs[chunk] = every.gather(-1, letters.to(every.device)).cpu()
        return logs

    @torch.no_grad()
    def _of_texts(self, parted: Sequence["Parted"]) -> Float[Tensor, "N 2"]:
        """The same of answers of several tokens: the sum over them, a row an answer."""
        rows = [
            Row(each.ids + answer, len(each.ids))
            for each in parted
            for answer in (each.first, each.second)
        ]
        logs = torch.zeros(len(rows))
        for chunk, batch in device_batches(rows, ROWS_PER_BATCH):
            found, _ = completion_logprobs(self.language_model, batch)
            parts = found.cpu().split([rows[i].num_completion for i in chunk])
            logs[chunk] = torch.stack([part.sum() for part in parts])
        return logs.view(-1, 2)

    def _part(self, asked: Asked, answers: tuple[str, str]) -> "Parted":
        """Token ids up to where the two answers part, and what each goes on with.

        Raises:
            DataError: They leave no room for the answer.
            ModelError: The tokenizer does not tell the answers apart.
        """
        tokenizer = self.language_model.tokenizer
        one, two = (
            encode(tokenizer, asked.question, f"{asked.lead} {answer}", end=False).ids
            for answer in answers
        )
        limit = self.language_model.max_positions
        if max(len(one), len(two)) > limit:
            raise DataError(
                f"the question {shown(asked.question)} has {len(one)} tokens; the judge has "
                f"{limit} positions: leave out such completions, or take another judge"
            )
        same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
        if same == 0:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} does not tell the answers "
                f"{answers[0]!r} and {answers[1]!r} apart; choose others in a "
                "constitution's [wording] (letters, yes_no)"
            )
        return Parted(one[:same], one[same:], two[same:])


class Parted(NamedTuple):
    """Token ids of a question up to where its two answers part, and those of each from there."""

    ids: list[int]
    first: list[int]
    second: list[int]


def _normalized(pair: Float[Tensor, " 2"]) -> Answer:
    """Probability of the first answer among the two, and what both have of all probability."""
    first, second = pair.double()
    return Answer(float(torch.sigmoid(first - second)), float(pair.double().exp().sum()))


# --- a judge as a reward --------------------------------------------------------------------------

RewardFunction = Callable[[list[Text], list[str]], list[float]]


def against(judge: Judge, question: str, references: Mapping[str, str]) -> RewardFunction:
    """A reward: the log-odds, in both orders, that a completion beats its prompt's reference.

        r = log(p / (1 − p)),   p = P(the completion is better than the reference completion)

    Args:
        judge: Any judge.
        question: By which they are compared.
        references: The reference completion of each prompt, by `str(prompt)`.
    """

    def scores(prompts: list[Text], completions: list[str]) -> list[float]:
        for prompt in prompts:
            if str(prompt) not in references:
                raise DataError(
                    f"there is no reference completion for the prompt {shown(prompt)}; generate "
                    "one for every prompt"
                )
        rows = zip(prompts, completions, strict=True)
        asked = [Comparison(p, c, references[str(p)], question) for p, c in rows]
        return [log_odds(verdict.probability) for verdict in both_orders(judge, asked)]

    return scores


def holds(judge: LocalJudge, question: str) -> RewardFunction:
    """A reward: the log-odds that the answer to a question about a completion is yes."""
    return lambda prompts, completions: [
        log_odds(p) for p in judge.affirms(prompts, completions, question)
    ]


def log_odds(probability: float) -> float:
    """log(p / (1 − p)) in nats, between ± 13.8: no judge is surer than one in a million."""
    p = min(max(probability, 1 - SURE), SURE)
    return math.log(p / (1 - p))
