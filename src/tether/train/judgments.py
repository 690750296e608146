"""Scores against what labelers said of them: the losses of a reward model, and its accuracy.

N completions of some prompts, one prompt after the other, scored by H heads. A loss is the mean
over the heads, each on its own resample of the prompts: with `copies` c of a prompt in the data of
a head, all its judgments count c times there.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.core.preference_losses import binary, bradley_terry, centering_penalty, plackett_luce
from tether.data.comparisons import Comparisons, Order, Pair, Verdict


def judged(kind: str, group: Comparisons) -> Sequence[Pair | Order | Verdict]:
    """What a loss learns from: pairs, whole rankings, or verdicts on single completions."""
    return {"pairwise": group.pairs, "listwise": group.orders, "binary": group.verdicts}[kind]


def total_weight(kind: str, groups: Sequence[Comparisons]) -> float:
    """Sum of the weights of all judgments."""
    return sum(judgment.weight for group in groups for judgment in judged(kind, group))


def loss(
    kind: str,
    scores: Float[Tensor, "N H"],
    groups: Sequence[Comparisons],
    *,
    total: float,
    resampled: bool = False,
    centering: float = 0.0,
) -> Float[Tensor, ""]:
    """Loss in nats per pair, per stage of a ranking, or per verdict, as a mean over heads.

    Args:
        kind: "pairwise" (Bradley-Terry), "listwise" (Plackett-Luce) or "binary" (cross-entropy).
        scores: In the order of the groups' rows.
        groups: Whole prompts.
        total: Sum of the weights in the whole optimizer batch, so that device batches add up.
        resampled: True counts a prompt as often as `copies` says, by head; False once.
        centering: Coefficient of (r_chosen + r_rejected)², for "pairwise".
    """
    copies = torch.ones(len(groups), scores.shape[1], device=scores.device)
    if resampled:
        copies *= torch.tensor([group.copies for group in groups], device=scores.device)
    total = total * scores.shape[1]
    if kind == "listwise":
        return _listwise(scores, groups, copies, total)
    if kind == "binary":
        return _binary(scores, groups, copies, total)
    return _pairwise(scores, groups, copies, total, centering)


def _pairwise(
    scores: Float[Tensor, "N H"],
    groups: Sequence[Comparisons],
    copies: Float[Tensor, "G H"],
    total: float,
    centering: float,
) -> Float[Tensor, ""]:
    every = [
        (start + pair.winner, start + pair.loser, g, pair.probability, pair.margin, pair.weight)
        for g, (start, group) in enumerate(placed(groups))
        for pair in group.pairs
    ]
    table = torch.tensor(every, dtype=torch.float64, device=scores.device)
    winner, loser, prompt = table[:, :3].long().T
    heads = scores.shape[1]
    probability, margin, weight = table[:, 3:].float().repeat_interleave(heads, dim=0).T
    chosen, rejected = scores[winner].flatten(), scores[loser].flatten()
    weight = weight * copies[prompt].flatten()
    labels = {"probability": probability, "margin": margin, "weight": weight}
    found = bradley_terry(chosen, rejected, **labels, num_pairs=total).loss
    if centering:
        penalty = centering_penalty(chosen, rejected, weight=weight, num_pairs=total)
        found = found + centering * penalty
    return found


def _listwise(
    scores: Float[Tensor, "N H"],
    groups: Sequence[Comparisons],
    copies: Float[Tensor, "G H"],
    total: float,
) -> Float[Tensor, ""]:
    every = [(g, start, o) for g, (start, c) in enumerate(placed(groups)) for o in c.orders]
    longest = max((len(order.places) for _, _, order in every), default=0)
    places = torch.zeros(len(every), longest, dtype=torch.long)
    ranks = torch.full((len(every), longest), torch.nan)  # NaN: no completion
    for i, (_, start, order) in enumerate(every):
        places[i, : len(order.places)] = start + torch.tensor(order.places)
        ranks[i, : len(order.ranks)] = torch.tensor(order.ranks)
    lists = scores[places.to(scores.device)].movedim(-1, 1)  # (R, H, K)
    losses = plackett_luce(lists, ranks.to(scores.device)[:, None].expand(lists.shape))
    weight = torch.tensor([order.weight for *_, order in every], device=scores.device)
    prompt = torch.tensor([g for g, *_ in every], dtype=torch.long, device=scores.device)
    return (losses * weight[:, None] * copies[prompt]).sum() / total


def _binary(
    scores: Float[Tensor, "N H"],
    groups: Sequence[Comparisons],
    copies: Float[Tensor, "G H"],
    total: float,
) -> Float[Tensor, ""]:
    every = [
        (start + verdict.place, g, verdict.liked, verdict.weight)
        for g, (start, group) in enumerate(placed(groups))
        for verdict in group.verdicts
    ]
    table = torch.tensor(every, dtype=torch.float64, device=scores.device)
    place, prompt = table[:, :2].long().T
    liked, weight = table[:, 2:].float().repeat_interleave(scores.shape[1], dim=0).T
    weight = weight * copies[prompt].flatten()
    return binary(scores[place].flatten(), liked, weight=weight, num_examples=total).loss


def placed(groups: Sequence[Comparisons]) -> Iterator[tuple[int, Comparisons]]:
    """Each group with the index of its first row among those of all."""
    start = 0
    for group in groups:
        yield start, group
        start += len(group.rows)


class Agreement(NamedTuple):
    """Which judgments the scores agree with, one entry a pair (also of rankings) or verdict."""

    correct: list[float]  # 1 right, 0 wrong, ½ equal
    longer_wins: list[float]  # the same for a rule on the length alone
    weights: list[float]
    prompts: list[int]  # which prompt each belongs to, for intervals

    @property
    def accuracy(self) -> float:
        """Weighted share that is right."""
        pairs = zip(self.correct, self.weights, strict=True)
        return sum(right * weight for right, weight in pairs) / sum(self.weights)


def agreement(kind: str, scores: Float[Tensor, " N"], groups: Sequence[Comparisons]) -> Agreement:
    """Compare scores with the judgments.

    A pair is right where the winner scores higher; of verdicts, liked ones are to score above 0.
    The rule on length: the longer completion wins; of verdicts, what is longer than the median is
    liked.
    """
    lengths = torch.tensor([len(row.ids) for group in groups for row in group.rows])
    found = Agreement([], [], [], [])
    for g, group in enumerate(groups):
        judgments = group.verdicts if kind == "binary" else group.pairs
        found.weights.extend(judgment.weight for judgment in judgments)
        found.prompts.extend([g] * len(judgments))
    if kind == "binary":
        every = [(i + v.place, 2 * v.liked - 1) for i, c in placed(groups) for v in c.verdicts]
        place, side = _columns(every)
        found.correct.extend(_right(scores.cpu()[place] * side))
        found.longer_wins.extend(_right((lengths[place] - lengths[place].median()) * side))
    else:
        every = [(i + pair.winner, i + pair.loser) for i, c in placed(groups) for pair in c.pairs]
        winner, loser = _columns(every)
        found.correct.extend(_right((scores[winner] - scores[loser]).cpu()))
        found.longer_wins.extend(_right(lengths[winner] - lengths[loser]))
    return found


def _columns(rows: list[tuple[int, int]]) -> Int[Tensor, "2 J"]:
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2).T


def _right(gaps: Tensor) -> list[float]:
    return (gaps.sign() / 2 + 0.5).tolist()
