"""The reward model: a language model with one number in place of the next word.

It learns from rankings and preference pairs; all pairs of one prompt stay in one optimizer batch
element, because a completion that stands in several pairs must not count as several examples.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.config import RewardModelConfig
from tether.core.preference_losses import bradley_terry
from tether.data.batches import Row, device_batches, split_by_prompt
from tether.data.formats import read_comparisons
from tether.errors import DataError
from tether.models.chat import encode
from tether.models.language_model import max_positions
from tether.models.scalar_head import (
    Centering,
    RewardModel,
    new_reward_model,
    save_reward_model,
)
from tether.progress import console
from tether.records import PreferencePair, Ranking, Text, pairs
from tether.rundir import StageFolder
from tether.statistics import cluster_mean
from tether.train import loop

GROUPS_PER_EVALUATION_BATCH = 16


class Pair(NamedTuple):
    """`winner` beats `loser`, both indices into the completions of one prompt."""

    winner: int
    loser: int
    probability: float = 1.0
    margin: float = 0.0
    weight: float = 1.0


@dataclass
class Comparisons:
    """Everything that labelers said about the completions of one prompt."""

    prompt: Text
    completions: list[Text] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def index(self, completion: Text) -> int:
        """Position of a completion, which is added if it is new."""
        if completion not in self.completions:
            self.completions.append(completion)
        return self.completions.index(completion)

    def keep_usable(self, limit: int) -> None:
        """Drop rows longer than `limit` tokens, and pairs that teach nothing without them."""
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


class HeldOut(NamedTuple):
    """How a reward model does on pairs it has not seen."""

    loss: float
    correct: list[float]  # 1 right, 0 wrong, ½ equal, a pair
    longer_wins: list[float]  # the same for the rule "the longer completion is better"
    prompts: list[int]  # prompt of each pair, for intervals


def train_reward(config: RewardModelConfig) -> Path:
    """Train a reward model on rankings or pairs and write it to `config.out`.

    The scores' mean and std over the ranked completions (samples of the reference) are stored
    with the model, so that PPO can use centred scores.

    Returns:
        The stage's folder; the model is in its `model/`.
    """
    folder = StageFolder(config, "reward", [config.model, config.data])
    if folder.finished:
        return folder.path
    groups = group(read_comparisons(config.data))
    reward = new_reward_model(config.model, config.compute)
    groups, dropped = tokenize(reward, groups, config.max_length, config.data)
    if dropped:
        console.print(f"{dropped} pairs dropped: too long, the same on both sides, or of weight 0")
    keys = [str(group_.prompt) for group_ in groups]
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    held_groups = [groups[i] for i in held]
    provenance = {"made_by": "tether reward", "model": config.model, "data": config.data}

    def write(path: Path) -> None:
        save_reward_model(reward, path, provenance)

    steps = loop.fit(
        config,
        folder,
        reward.model,
        len(train),
        lambda chosen: _backward(
            reward, [groups[train[i]] for i in chosen], config.device_batch_size
        ),
        lambda: _held_out_metrics(reward, held_groups),
        write,
    )
    reward.centering = center(reward, groups)
    folder.write_model(write)
    facts = {
        "steps": steps,
        "pairs": sum(len(groups[i].pairs) for i in train),
        "dropped_pairs": dropped,
        "centering": reward.centering._asdict(),
    }
    return folder.finish(**facts, **held_out_facts(reward, held_groups))


def group(records: list[Ranking | PreferencePair]) -> list[Comparisons]:
    """Comparisons by prompt, in the order in which prompts first appear."""
    groups: dict[str, Comparisons] = {}
    for record in records:
        key = json.dumps(record.prompt, sort_keys=True)
        comparisons = groups.setdefault(key, Comparisons(record.prompt))
        if isinstance(record, PreferencePair):
            winner, loser = comparisons.index(record.chosen), comparisons.index(record.rejected)
            probability = 1.0 if record.probability is None else record.probability
            margin = record.margin or 0.0
            comparisons.pairs.append(Pair(winner, loser, probability, margin, record.weight))
        else:
            places = [comparisons.index(completion) for completion in record.completions]
            comparisons.pairs += [
                Pair(places[better], places[worse]) for better, worse in pairs(record)
            ]
    return list(groups.values())


def tokenize(
    reward: RewardModel, groups: list[Comparisons], max_length: int, where: str
) -> tuple[list[Comparisons], int]:
    """Fill in token rows; drop pairs with a row too long, with equal rows, or of weight 0.

    Returns:
        The groups that still have a pair, and the number of pairs dropped.

    Raises:
        DataError: No pair is left.
    """
    positions = max_positions(reward.model.config)
    limit = min(max_length or positions, positions)
    before = sum(len(group_.pairs) for group_ in groups)
    for group_ in groups:
        encoded = [encode(reward.tokenizer, group_.prompt, c) for c in group_.completions]
        group_.rows = [Row(e.ids, e.num_prompt) for e in encoded]
        group_.keep_usable(limit)
    left = [group_ for group_ in groups if group_.pairs]
    if not left:
        raise DataError(
            f"{where}: none of {before} pairs can be used: each is a tie, has equal sides or "
            f"weight 0, or exceeds {limit} tokens; give rankings with a difference, or raise "
            "max_length"
        )
    return left, before - sum(len(group_.pairs) for group_ in left)


def _backward(
    reward: RewardModel, groups: list[Comparisons], device_batch_size: int
) -> dict[str, float]:
    """Accumulate the gradient of an optimizer batch; returns its loss and accuracy."""
    num_pairs = sum(pair.weight for group_ in groups for pair in group_.pairs)
    sums = torch.zeros(2)
    for part in chunks(groups, device_batch_size):
        scores, found, labels = score_pairs(reward, part)
        winner, loser = scores[found[:, 0]], scores[found[:, 1]]
        result = bradley_terry(winner, loser, **labels, num_pairs=num_pairs)
        result.loss.backward()
        sums += torch.stack([result.loss.detach(), result.accuracy]).cpu()
    return {"loss": float(sums[0]), "accuracy": float(sums[1])}


def chunks(groups: list[Comparisons], rows: int) -> list[list[Comparisons]]:
    """Whole groups in device batches of at most `rows` completions (0 = all), at least one each."""
    parts: list[list[Comparisons]] = []
    count = 0
    for group_ in sorted(groups, key=lambda g: -max(len(row.ids) for row in g.rows)):
        count += len(group_.rows)
        if not parts or (rows and count > rows):
            parts.append([])
            count = len(group_.rows)
        parts[-1].append(group_)
    return parts


def score_pairs(
    reward: RewardModel, groups: list[Comparisons]
) -> tuple[Float[Tensor, " N"], Int[Tensor, "P 2"], dict[str, Float[Tensor, " P"]]]:
    """One forward pass over all completions of some prompts.

    Returns:
        Scores of the completions; the pairs as winner and loser index into them; what else their
        labels say, under the names that `bradley_terry` knows it by.
    """
    rows = [row for group_ in groups for row in group_.rows]
    offsets = np.cumsum([0, *(len(group_.rows) for group_ in groups)])
    every = [
        (offset + pair.winner, offset + pair.loser, pair.probability, pair.margin, pair.weight)
        for offset, group_ in zip(offsets, groups, strict=False)
        for pair in group_.pairs
    ]
    scores = score_rows(reward, rows)
    table = torch.tensor(every, dtype=torch.float64, device=scores.device)
    probability, margin, weight = table[:, 2:].float().T
    labels = {"probability": probability, "margin": margin, "weight": weight}
    return scores, table[:, :2].long(), labels


def score_rows(reward: RewardModel, rows: list[Row]) -> Tensor:
    """Raw scores (N,) of rows in one forward pass, with gradients where they are on."""
    ((order, batch),) = device_batches(rows, 0)
    places = torch.tensor(order).argsort()
    return reward.scores(batch)[places.to(reward.place.device)]


@torch.no_grad()
def held_out(reward: RewardModel, groups: list[Comparisons]) -> HeldOut:
    """Loss and accuracy on held-out pairs, with the length-only baseline beside it."""
    correct, longer, prompts = [], [], []
    loss = weight = 0.0
    for start in range(0, len(groups), GROUPS_PER_EVALUATION_BATCH):
        part = groups[start : start + GROUPS_PER_EVALUATION_BATCH]
        scores, found, labels = score_pairs(reward, part)
        lengths = torch.tensor([len(row.ids) for group_ in part for row in group_.rows])
        winner, loser = scores[found[:, 0]], scores[found[:, 1]]
        loss += float(bradley_terry(winner, loser, **labels, num_pairs=1).loss)
        weight += float(labels["weight"].sum())
        correct += ((winner - loser).sign() / 2 + 0.5).tolist()
        gaps = lengths[found[:, 0].cpu()] - lengths[found[:, 1].cpu()]
        longer += (gaps.sign() / 2 + 0.5).tolist()
        prompts += [start + i for i, group_ in enumerate(part) for _ in group_.pairs]
    return HeldOut(loss / weight if groups else 0.0, correct, longer, prompts)


def _held_out_metrics(reward: RewardModel, groups: list[Comparisons]) -> dict[str, float]:
    found = held_out(reward, groups)
    if not found.correct:
        return {}
    return {"held_out_loss": found.loss, "held_out_accuracy": float(np.mean(found.correct))}


def held_out_facts(reward: RewardModel, groups: list[Comparisons]) -> dict[str, object]:
    """Final accuracy on held-out pairs with its interval over prompts."""
    found = held_out(reward, groups)
    if not found.correct:
        return {"held_out_pairs": 0}
    accuracy = cluster_mean(np.array(found.correct), found.prompts)
    console.print(
        f"held-out accuracy {accuracy.mean:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] on "
        f"{len(found.correct)} pairs of {len(groups)} prompts "
        f"(choosing the longer one: {np.mean(found.longer_wins):.3f})"
    )
    ends = accuracy._asdict().items()  # one prompt has no interval, and JSON no NaN
    return {
        "held_out_accuracy": {k: end if math.isfinite(end) else None for k, end in ends},
        "held_out_loss": found.loss,
        "held_out_pairs": len(found.correct),
        "length_baseline_accuracy": float(np.mean(found.longer_wins)),
    }


@torch.no_grad()
def center(reward: RewardModel, groups: list[Comparisons]) -> Centering:
    """Mean and std of the raw scores over all completions."""
    scores = [score_rows(reward, g.rows) for g in groups]
    every = torch.cat(scores).double()
    return Centering(float(every.mean()), float(every.std(correction=0).clamp(min=1e-6)))
