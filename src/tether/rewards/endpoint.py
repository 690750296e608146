"""A judge behind an OpenAI-compatible endpoint, such as vLLM, llama.cpp or a company's.

Each comparison is one request for a single token and its log-probs, of which the two letters are
read:

    P(first is better) = p(A) / (p(A) + p(B))

Where the server gives no log-probs, or a letter is not among those it lists, answers are sampled
instead and counted as votes: P = (a + 1) / (a + b + 2). Every answer is kept in a file before it
is used (rewards/spending.py) and failures that may pass are tried again (rewards/calls.py).
"""

import asyncio
import math
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tether.errors import ServerError, TetherError
from tether.progress import Steps, console
from tether.records import Message
from tether.rewards.calls import MayPass, Server, Wait, finish, read_key, short
from tether.rewards.judge import Comparison
from tether.rewards.spending import Budget, BudgetSpent, Ledger, Usage, at_most, request_key
from tether.sections import require
from tether.servers import EndpointConfig

Ask = Callable[[Comparison], list[Message]]

PATIENCE = 20  # questions in a row that no vote answers, after which the run stops
NEGLIGIBLE = 0.01  # a letter that is not listed has at most this share: half of it is taken


def load_endpoint_judge(
    config: EndpointConfig,
    folder: Path,
    ask: Ask,
    *,
    letters: tuple[str, str] = ("A", "B"),
    show: bool = True,
    wait: Wait = asyncio.sleep,
) -> "EndpointJudge":
    """The judge that a config describes; the key is read from the environment here.

    Args:
        config: The endpoint and what it may cost.
        folder: Where judge.db is kept unless `config.cache` names another file.
        ask: The messages that ask which of two completions is better.
        letters: The answers that mean the first and the second.
        show: Whether `first_wins` draws a progress bar with the cost so far.
        wait: What waits between tries.

    Raises:
        ConfigError: There is no base_url, or the key can be no key.
        DataError: The file of answers cannot be used.
    """
    require(bool(config.base_url), "endpoint.base_url", config.base_url, "must name an endpoint")
    server = Server(
        url=config.base_url.rstrip("/") + "/chat/completions",
        key=read_key(config.key_env),
        timeout=config.timeout,
        attempts=config.attempts,
        wait=wait,
    )
    cache = Path(config.cache) if config.cache else folder / "judge.db"
    Ledger(cache).close()  # a file that cannot be used is refused before anything is asked
    return EndpointJudge(config, server, cache, ask, letters, show)


@dataclass
class EndpointJudge:
    """A judge that asks an endpoint.

    Attributes:
        asked, voted, unanswered: Questions so far; those that votes decided; and those of them
            that no vote answered, which get 0.5.
    """

    config: EndpointConfig
    server: Server
    cache: Path
    ask: Ask
    letters: tuple[str, str] = ("A", "B")
    show: bool = True
    asked: int = 0
    voted: int = 0
    unanswered: int = 0
    unanswered_in_a_row: int = field(default=0, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def first_wins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(the first is better), in [0, 1], one each, in this order of the completions.

        Raises:
            TetherError: As `probabilities`.
        """
        return self.probabilities([self.ask(each) for each in comparisons], self.letters)

    def probabilities(
        self, questions: Sequence[list[Message]], answers: tuple[str, str]
    ) -> list[float]:
        """P(the first of two answers), in [0, 1], to each question.

        Requests that were answered before, by any run with the same cache, cost nothing; two that
        are the same are asked once. Where the batch cannot be finished, the requests under way
        are, and what was answered is kept.

        Args:
            questions: The messages of each.
            answers: Two letters or words, each of them one token.

        Raises:
            BudgetSpent: The next request could exceed the budget.
            ServerError: The server refuses a request, fails as often as is allowed, or goes on
                answering something else.
        """
        with self._turn:  # one batch at a time, from whatever thread
            return finish(self._all(questions, answers))

    async def _all(
        self, questions: Sequence[list[Message]], answers: tuple[str, str]
    ) -> list[float]:
        bar = Steps("judging", len(questions)) if self.show else nullcontext()
        before = self.unanswered
        with closing(Ledger(self.cache)) as ledger, bar as steps:
            async with self.server.client() as client:
                batch = _Batch(self, answers, ledger, client, steps)
                results = await batch.probabilities(questions)
        if missed := self.unanswered - before:
            console.print(
                f"{missed} of {len(questions)} questions were not answered with one of the two "
                f"answers by {self.config.model}; they count as 0.5"
            )
        return results

    def note(self, answered: bool, last: str, answers: tuple[str, str]) -> None:
        """Count a question that votes decided, or did not.

        Raises:
            ServerError: It has been going on like this for long.
        """
        if not self.voted and self.config.top_logprobs:
            console.print(
                f"{self.config.model} does not list the log-probs of both answers, so votes are "
                "asked for; where it never does, top_logprobs = 0 spares the first request"
            )
        self.voted += 1
        self.unanswered += not answered
        self.unanswered_in_a_row = 0 if answered else self.unanswered_in_a_row + 1
        if self.unanswered_in_a_row >= PATIENCE:
            raise ServerError(
                f"{self.config.model} at {self.config.base_url} answered none of {PATIENCE} "
                f"questions in a row with {answers[0]} or {answers[1]}, the last one with "
                f"{short(last)}; take a model that follows the question, or raise vote_tokens"
            )


class _Batch:
    """One batch of questions on its way: a few workers that take one after the other."""

    def __init__(
        self,
        judge: EndpointJudge,
        letters: tuple[str, str],
        ledger: Ledger,
        client: httpx.AsyncClient,
        steps: Steps | None,
    ) -> None:
        self.judge, self.letters, self.ledger = judge, letters, ledger
        self.client, self.steps = client, steps
        self.config = judge.config
        self.budget = Budget(judge.config, ledger)
        self.same: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.results: list[float | None] = []
        self.failure: TetherError | None = None

    async def probabilities(self, questions: Sequence[list[Message]]) -> list[float]:
        """P(the first answer) to each.

        Raises:
            TetherError: The first failure, once what was under way has ended.
        """
        self.results = [None] * len(questions)
        work = enumerate(questions)
        async with asyncio.TaskGroup() as workers:
            for _ in range(self.config.concurrency):
                workers.create_task(self._work(work))
        if isinstance(self.failure, BudgetSpent):
            self.failure.answered = self.results
        if self.failure:
            raise self.failure
        return [each for each in self.results if each is not None]

    async def _work(self, work: Iterator[tuple[int, list[Message]]]) -> None:
        for i, messages in work:
            try:
                self.results[i] = await self._probability(messages)
            except TetherError as error:
                self.failure = self.failure or error
            if self.failure:
                return
            self.judge.asked += 1
            if self.steps:
                tokens, cost = self.ledger.spent
                self.steps.advance(1, tokens=float(tokens), cost=cost)

    async def _probability(self, messages: list[Message]) -> float:
        """By the log-probs of the letters, or else by votes."""
        body: dict[str, Any] = {"model": self.config.model, "messages": messages}
        if self.config.top_logprobs:
            more = {"temperature": 0, "logprobs": True, "top_logprobs": self.config.top_logprobs}
            answer = await self._answer({**body, **more}, 1)
            probability = by_logprobs(answer, self.letters)
            if probability is not None:
                self.judge.unanswered_in_a_row = 0
                return probability
        votes: list[str | None] = []
        said = ""
        for i in range(self.config.votes):
            more = {"temperature": 1, "seed": self.config.seed + i}
            said = content(await self._answer({**body, **more}, self.config.vote_tokens))
            votes.append(chosen(said, self.letters))
        self.judge.note(any(votes), said, self.letters)
        return by_votes(votes, self.letters)

    async def _answer(self, body: dict[str, Any], tokens: int) -> Any:
        """The answer to a request: the one that was kept, or a new one, kept before it is used."""
        body[self.config.limit_name] = tokens
        key = request_key(self.judge.server.url, body)
        async with self.same[key]:
            kept = self.ledger.find(key)
            if kept is None:
                most = at_most(body, tokens)
                kept = await self.judge.server.persist(lambda: self._call(key, body, most))
        return kept

    async def _call(self, key: str, body: dict[str, Any], most: Usage) -> Any:
        """Ask once. What may have been charged for counts in full unless the server says less."""
        async with self.budget.room(most):
            if self.failure:  # of another worker, since this question was begun
                raise self.failure
            try:
                answer = await self.judge.server.post(self.client, body)
            except (MayPass, asyncio.CancelledError) as error:
                if not isinstance(error, MayPass) or error.done:
                    self.ledger.lose(key, most, most.spent(self.config).cost)
                raise
            used = usage(answer) or most
            cost = used.spent(self.config).cost
            if first_choice(answer) is None:
                self.ledger.lose(key, used, cost)
                raise MayPass(f"an answer without choices: {short(str(answer))}")
            return self.ledger.keep(key, answer, used, cost)


# --- reading answers ------------------------------------------------------------------------------


def by_logprobs(answer: Any, letters: tuple[str, str]) -> float | None:
    """p(A) / (p(A) + p(B)) by the log-probs of the first token; None where they do not tell.

    All tokens that write a letter count together: "A", " A", "(A", "(A)" and " (A)". A letter that
    is not listed is no likelier than the least that is; where that is less than 1% of both
    letters together, half of it is taken (so P is wrong by 0.005 at most).
    """
    listed = first_token(answer)
    first, second = (
        sum(math.exp(value) for token, value in listed.items() if letter_of(token) == letter)
        for letter in letters
    )
    if first > 0 and second > 0:
        return first / (first + second)
    seen = first or second
    least = min((math.exp(value) for value in listed.values()), default=1.0)
    if not seen or least > NEGLIGIBLE * (seen + least):
        return None
    unseen = least / 2
    return (first or unseen) / (seen + unseen)


def by_votes(votes: Sequence[str | None], letters: tuple[str, str]) -> float:
    """(a + 1) / (a + b + 2): the mean of Beta(1, 1) after a votes for the first, b for the second.

    Answers that are no letter (None) do not count.
    """
    first, second = (sum(vote == letter for vote in votes) for letter in letters)
    return (first + 1) / (first + second + 2)


def chosen(text: str, letters: tuple[str, str]) -> str | None:
    """The letter that an answer consists of or opens with: "A", "(B)", "**A**", "Answer: B. …".

    A letter that a blank and a word follow is none: "A good reply …" is not the answer A. What a
    model thinks before it answers, up to </think>, does not count.
    """
    text = text.rpartition("</think>")[2]
    either = "|".join(map(re.escape, letters))
    opening = r"\W*(?:(?:the )?(?:best |better )?(?:answer|option|reply)(?: is)?\W+)?"
    found = re.match(rf"(?i:{opening})({either})(?!\w)(?! +\w)", text)
    return found[1] if found else None


def letter_of(token: str) -> str:
    """A token without the blanks (also as tokenizers write them) and the bracket around it."""
    return token.replace("Ġ", " ").replace("▁", " ").strip().removeprefix("(").removesuffix(")")


def first_choice(answer: Any) -> dict[str, Any] | None:
    """The first choice of a chat completion; None where the answer is no chat completion."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    usable = isinstance(choice, dict) and isinstance(choice.get("message"), dict)
    return choice if usable else None


def content(answer: Any) -> str:
    """The text of an answer; "" where the server gives none, as for a refusal."""
    text = (first_choice(answer) or {"message": {}})["message"].get("content")
    return text if isinstance(text, str) else ""


def first_token(answer: Any) -> dict[str, float]:
    """Log-probs (nats) that an answer lists for its first token; {} where it lists none."""
    try:
        place = (first_choice(answer) or {})["logprobs"]["content"][0]
        listed = {each["token"]: float(each["logprob"]) for each in place["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return {}
    return {token: value for token, value in listed.items() if value <= 1e-3}


def usage(answer: Any) -> Usage | None:
    """Tokens of a call by the server's own count; None where it gives none."""
    try:
        counts = (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    except (KeyError, TypeError):
        return None
    whole = all(isinstance(count, int) and count >= 0 for count in counts)
    return Usage(*counts) if whole else None
