"""A judge says which of two completions answers a question better, as a probability.

A judge sees one order at a time and every judge has a place that it likes; `both_orders` asks twice
and takes the mean, so that what it returns does not depend on which completion came first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from tether.records import Text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of a prompt, and the question by which they are compared."""

    prompt: Text
    first: str
    second: str
    question: str

    @property
    def swapped(self) -> "Comparison":
        """The same with the completions in the other order."""
        return Comparison(self.prompt, self.second, self.first, self.question)


@runtime_checkable
class Judge(Protocol):
    """Anything that compares: a model in this process, or an endpoint."""

    def first_wins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(the first is better) as the judge sees it in this order, in [0, 1], one each."""
        ...


class Verdict(NamedTuple):
    """What both orders together say.

    Attributes:
        probability: That the first completion is better: (p + 1 - q) / 2, where p and q are the
            probabilities of whichever came first in the two orders.
        flipped: True where the two orders prefer different completions.
    """

    probability: float
    flipped: bool


def both_orders(judge: Judge, comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Ask each question in both orders; swapping the completions gives 1 - probability exactly."""
    asked = [*comparisons, *(each.swapped for each in comparisons)]
    answers = judge.first_wins(asked)
    pairs = zip(answers[: len(comparisons)], answers[len(comparisons) :], strict=True)
    return [Verdict((p + 1 - q) / 2, (p > 0.5) == (q > 0.5)) for p, q in pairs]
