"""What labelers said, gathered by prompt: a completion that is judged often is one row."""

import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from tether.data.batches import Row
from tether.data.shelf import (
    TOKENS_IN_MEMORY,
    Made,
    Shelf,
    made,
    shelved,
    text_hash,
    text_keys,
    watched,
)
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


def group(records: Sequence[Ranking | PreferencePair | Thumb]) -> Sequence[Comparisons]:
    """Comparisons by prompt, in the order in which prompts first appear.

    A ranking gives an order and all pairs that it decides; a pair gives itself, and as an order a
    ranking of two. Liked or disliked texts without a prompt are told apart by what they say.
    Of records on a shelf a group is gathered when it is asked for.
    """
    if isinstance(records, Shelf):
        return _group_on_shelf(records)
    groups: dict[str, Comparisons] = {}
    for record in records:
        comparisons = groups.setdefault(_key(record), Comparisons(record.prompt))
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


def _group_on_shelf(records: Shelf[Any]) -> Sequence[Comparisons]:
    """Groups of the records whose keys have the same hash."""
    hashes = (text_hash(_key(record)) for record in watched(records, "group"))
    keys = np.fromiter(hashes, np.uint64, len(records))
    members = np.argsort(keys, kind="stable")  # a group's records lie together, in their order
    keys = keys[members]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    by_first = np.argsort(members[starts])  # as their first records stand in the file
    bounds = np.append(starts, len(members))

    def make(place: int) -> Comparisons:
        which = by_first[place]
        places = members[bounds[which] : bounds[which + 1]].tolist()
        (found,) = group([records[i] for i in places])
        return found

    return Made(len(starts), make)


def _key(record: Ranking | PreferencePair | Thumb) -> str:
    alone = record.completion if isinstance(record, Thumb) and not record.prompt else ""
    return json.dumps([record.prompt, alone], sort_keys=True)


def comparison_shelf() -> Shelf[Comparisons]:
    """Tokenized comparisons that may be larger than the memory."""

    def dump(c: Comparisons) -> tuple[Any, ...]:
        lists = (c.pairs, c.orders, c.verdicts, c.rows)
        return c.prompt, c.completions, *([tuple(x) for x in each] for each in lists), c.copies

    def load(plain: tuple[Any, ...]) -> Comparisons:
        prompt, completions, pairs, orders, verdicts, rows, copies = plain
        return Comparisons(
            prompt=prompt,
            completions=completions,
            pairs=[Pair(*pair) for pair in pairs],
            orders=[Order(*order) for order in orders],
            verdicts=[Verdict(*verdict) for verdict in verdicts],
            rows=[Row(*row) for row in rows],
            copies=copies,
        )

    return Shelf(dump, load, TOKENS_IN_MEMORY)


def flatten(
    groups: Sequence[Comparisons],
) -> tuple[Sequence[Row], Sequence[Pair], "Sequence[str] | array[int]"]:
    """The rows of all groups; their pairs, as indices into them; what tells their prompts apart."""
    starts = array("q", accumulate((len(each.rows) for each in groups), initial=0))
    pairs = shelved(
        (
            pair._replace(winner=start + pair.winner, loser=start + pair.loser)
            for start, each in zip(starts, groups, strict=False)
            for pair in each.pairs
        ),
        tuple,
        Pair._make,
    )
    recent = lru_cache(maxsize=256)(groups.__getitem__)

    def row(place: int) -> Row:
        which = bisect_right(starts, place) - 1
        return recent(which).rows[place - starts[which]]

    prompts = (str(each.prompt) for each in groups for _ in each.pairs)
    return made(starts[-1], row, like=groups), pairs, text_keys(prompts)


def _add_pair(comparisons: Comparisons, record: PreferencePair) -> None:
    # A consensus tells one thing twice: its margin is the log-odds of its probability, or near it.
    # A loss takes both as a difference of scores, and so would aim at twice that.
    margin = 0.0 if record.num_labelers and record.probability else record.margin or 0.0
    winner, loser = comparisons.index(record.chosen), comparisons.index(record.rejected)
    probability = 1.0 if record.probability is None else record.probability
    comparisons.pairs.append(Pair(winner, loser, probability, margin, record.weight))
    comparisons.orders.append(Order((winner, loser), (1.0, 2.0), record.weight))
