"""How far a judge can be believed: what the order decided, and how well it agrees with people."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tether.records import PreferencePair, Ranking, Text

BINS = 10

Labels = Mapping[tuple[str, str, str], float]
"""(prompt as JSON, completion, other completion) → share of labels by which it is the better one"""


def labels_of(records: Sequence[PreferencePair | Ranking]) -> Labels:
    """What people say of each pair, both ways round; several labels of a pair are averaged.

    A tie counts half, and two fails are a tie.
    """
    votes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in records:
        prompt = json.dumps(record.prompt)
        if isinstance(record, PreferencePair):
            p = 1.0 if record.probability is None else record.probability
            told = [(record.chosen, record.rejected, p)]
        else:
            order = [math.inf if rank is None else rank for rank in record.ranks]
            texts = record.completions
            told = [
                (texts[i], texts[j], 0.5 if order[i] == order[j] else float(order[i] < order[j]))
                for i in range(len(texts))
                for j in range(i)
            ]
        for one, other, p in told:
            votes[prompt, plain(one), plain(other)].append(p)
            votes[prompt, plain(other), plain(one)].append(1 - p)
    return {key: sum(found) / len(found) for key, found in votes.items()}


def plain(completion: Text) -> str:
    """A completion as text; of messages, what they say."""
    if isinstance(completion, str):
        return completion
    return "\n\n".join(message["content"] for message in completion)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is known of a judge's answers.

    Attributes:
        judged: Pairs with an answer.
        too_long: Pairs whose question the judge has no room for.
        flipped: Share of pairs where the two orders prefer different completions.
        first_place: Mean probability of whichever completion came first; 0.5 = no liking for a
            place.
        mass: Mean share of the model's probability that the two letters have. A small one says
            that it did not take the question for one.
        labeled: Pairs on which people's labels lean to a side.
        agreement: Share of these where the judge leans to the same side.
        log_loss: Mean −[l log p + (1 − l) log(1 − p)] in nats, by the labels l of all labeled
            pairs; log 2 = 0.693 is what 0.5 everywhere has.
        calibration_error: Mean over labeled pairs of |mean p − mean l| in ten bins of p, taken on
            the side that the judge prefers.
    """

    judged: int
    too_long: int
    flipped: float | None
    first_place: float | None
    mass: float | None
    labeled: int
    agreement: float | None
    log_loss: float | None
    calibration_error: float | None

    def facts(self) -> dict[str, Any]:
        """The figures that there are, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def report(rows: Sequence[Mapping[str, Any]], labels: Labels) -> Report:
    """Sum up judgments, beside people's labels of the same pairs where there are some."""
    judged = [row for row in rows if "problem" not in row]
    known = [
        (row["probability"], labels[key])
        for row in judged
        if (key := (json.dumps(row["prompt"]), row["first"], row["second"])) in labels
    ]
    leaning = [(p, label) for p, label in known if label != 0.5]
    agreeing = [0.5 if p == 0.5 else float((p > 0.5) == (label > 0.5)) for p, label in leaning]
    return Report(
        judged=len(judged),
        too_long=len(rows) - len(judged),
        flipped=_mean([float(row["flipped"]) for row in judged]),
        first_place=_mean([row["first_place"] for row in judged]),
        mass=_mean([row["mass"] for row in judged if "mass" in row]),
        labeled=len(leaning),
        agreement=_mean(agreeing),
        log_loss=_mean([log_loss(p, label) for p, label in known]),
        calibration_error=calibration_error(known),
    )


def log_loss(probability: float, label: float) -> float:
    """−[l log p + (1 − l) log(1 − p)] in nats, with p held within [1e-6, 1 − 1e-6]."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def calibration_error(known: Sequence[tuple[float, float]]) -> float | None:
    """Expected calibration error of (probability, label) pairs; None without any.

        Σ_bins (n_b / n) |mean p − mean l|

    Both are turned to the side that the judge prefers (p ≥ 0.5) and parted into ten bins of
    [0.5, 1], so that the order of the completions does not matter.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for p, label in known:
        sure, right = (p, label) if p >= 0.5 else (1 - p, 1 - label)
        bins[min(int((sure - 0.5) * 2 * BINS), BINS - 1)].append((sure, right))
    if not known:
        return None
    gaps = [abs(sum(sure for sure, _ in one) - sum(right for _, right in one)) for one in bins]
    return sum(gaps) / len(known)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
