"""What labelers said, gathered by prompt: a completion that is judged often is one row."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tether.data.batches import Row
from tether.records import PreferencePair, Ranking, Text, Thumb, pairs


class Pair(NamedTuple):
    """`winner` beats `loser`, both indices into the completions of one prompt."""

    winner: int
    loser: int
    probability: float = 1.0
    margin: float = 0.0
    weight: float = 1.0


class Order(NamedTuple):
    """A whole ranking: indices of completions and their ranks (1 = best, inf = fail)."""

    places: tuple[int, ...]
    ranks: tuple[float, ...]
    weight: float = 1.0


class Verdict(NamedTuple):
    """One completion, by its index, that was liked or not."""

    place: int
    liked: bool
    weight: float = 1.0


@dataclass
class Comparisons:
    """Everything that labelers said about the completions of one prompt."""

    prompt: Text
    completions: list[Text] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    copies: tuple[int, ...] = (1,)
    """How often the prompt is in the data of each head of an ensemble"""

    @property
    def key(self) -> str:
        """What resamples and held-out shares go by: the prompt, or a text that has none."""
        return str(self.prompt or self.completions[:1] if self.verdicts else self.prompt)

    def index(self, completion: Text) -> int:
        """Position of a completion, which is added if it is new."""
        if completion not in self.completions:
            self.completions.append(completion)
        return self.completions.index(completion)

    def keep_usable(self, limit: int) -> None:
        """Drop rows longer than `limit` tokens, and judgments that teach nothing without them.

        A ranking loses what is too long and stays while it decides between two different rows.
        """
        rows, kept = self.rows, [i for i, row in enumerate(self.rows) if len(row.ids) <= limit]
        place = {old: new for new, old in enumerate(kept)}
        self.completions = [self.completions[i] for i in kept]
        self.rows = [rows[i] for i in kept]
        self.pairs = [
            pair._replace(winner=place[pair.winner], loser=place[pair.loser])
            for pair in self.pairs
            if {pair.winner, pair.loser} <= place.keys()
            and rows[pair.winner].ids != rows[pair.loser].ids
            and pair.weight > 0
        ]
        orders = [_within(order, place) for order in self.orders]
        self.orders = [order for order in orders if _decides(order, self.rows)]
        self.verdicts = [
            verdict._replace(place=place[verdict.place])
            for verdict in self.verdicts
            if verdict.place in place and verdict.weight > 0
        ]


def _within(order: Order, place: dict[int, int]) -> Order:
    """An order of the completions that are left, under their new indices."""
    left = [(place[p], rank) for p, rank in zip(*order[:2], strict=True) if p in place]
    return Order(tuple(p for p, _ in left), tuple(rank for _, rank in left), order.weight)


def _decides(order: Order, rows: Sequence[Row]) -> bool:
    worst = max(order.ranks, default=0.0)
    ends = [(rows[p].ids, rank) for p, rank in zip(*order[:2], strict=True)]
    better = [ids for ids, rank in ends if rank < worst]
    return order.weight > 0 and any(ids != other for ids in better for other, _ in ends)


def group(records: Sequence[Ranking | PreferencePair | Thumb]) -> list[Comparisons]:
    """Comparisons by prompt, in the order in which prompts first appear.

    A ranking gives an order and all pairs that it decides; a pair gives itself, and as an order a
    ranking of two. Liked or disliked texts without a prompt are told apart by what they say.
    """
    groups: dict[str, Comparisons] = {}
    for record in records:
        alone = record.completion if isinstance(record, Thumb) and not record.prompt else ""
        key = json.dumps([record.prompt, alone], sort_keys=True)
        comparisons = groups.setdefault(key, Comparisons(record.prompt))
        if isinstance(record, PreferencePair):
            _add_pair(comparisons, record)
        elif isinstance(record, Thumb):
            place = comparisons.index(record.completion)
            comparisons.verdicts.append(Verdict(place, record.label, record.weight))
        else:
            places = [comparisons.index(completion) for completion in record.completions]
            comparisons.pairs += [
                Pair(places[better], places[worse]) for better, worse in pairs(record)
            ]
            ranks = tuple(math.inf if rank is None else rank for rank in record.ranks)
            comparisons.orders.append(Order(tuple(places), ranks))
    return list(groups.values())


def _add_pair(comparisons: Comparisons, record: PreferencePair) -> None:
    # A consensus tells one thing twice: its margin is the log-odds of its probability, or near it.
    # A loss takes both as a difference of scores, and so would aim at twice that.
    margin = 0.0 if record.num_labelers and record.probability else record.margin or 0.0
    winner, loser = comparisons.index(record.chosen), comparisons.index(record.rejected)
    probability = 1.0 if record.probability is None else record.probability
    comparisons.pairs.append(Pair(winner, loser, probability, margin, record.weight))
    comparisons.orders.append(Order((winner, loser), (1.0, 2.0), record.weight))
